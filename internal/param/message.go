package param

import "strings"

// Truncate returns at most that many bytes of a text, followed by "…" if there are
// more.
func Truncate(text string, bytes int) string {
	if len(text) <= bytes {
		return text
	}
	return strings.ToValidUTF8(text[:bytes], "") + "…"
}

// CommandPath returns the path of a mount for a command in a message. A mount point
// includes the namespace, which the command adds again if it is set in the environment,
// and which cannot be told from the first part of the mount's path.
func CommandPath(mountPoint string) string {
	if strings.Count(mountPoint, "/") > 1 {
		return "-namespace=/ " + mountPoint
	}
	return mountPoint
}
