#!/bin/sh
# Prints the commands that install the plugin from this directory in a Vault server.
# Does not run them. For OpenBao, replace vault with bao in the commands.
#   ./register.sh            first installation
#   ./register.sh upgrade    upgrade from a previous version
#   -d DIR    Vault's plugin_directory (default: /etc/vault/plugins)
#   -p PATH   mount path of the engine (default: ati)
# The file name in the plugin directory includes the version, so that you can go back
# to the previous one.
set -eu

# Set by make release.
version=

name=vault-plugin-secrets-ati
directory=/etc/vault/plugins
mount=ati

fail() {
  echo "$*" >&2
  exit 1
}

# quote prints a value as one shell word.
quote() {
  case $1 in
    *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
  esac
}

# Not named sha256, which is the command that it calls on FreeBSD.
sha256_of() {
  if command -v sha256sum >/dev/null; then
    sha256sum <"$1" | cut -d ' ' -f 1
  elif command -v shasum >/dev/null; then
    shasum -a 256 <"$1" | cut -d ' ' -f 1
  elif command -v sha256 >/dev/null; then # FreeBSD
    sha256 -q "$1"
  else
    fail "none of sha256sum, shasum, or sha256 is installed"
  fi
}

usage="usage: register.sh [-d PLUGIN_DIRECTORY] [-p MOUNT_PATH] [upgrade]"
while getopts d:p: option; do
  case $option in
    d) directory=$OPTARG ;;
    p) mount=$OPTARG ;;
    *) fail "$usage" ;;
  esac
done
shift $((OPTIND - 1))
mount=${mount#/}
mount=${mount%/}
[ -n "$mount" ] || fail "-p must be the mount path of the engine, such as ati"
case $#,${1:-} in
  0,) first=yes ;;
  1,upgrade) first= ;;
  *) fail "$usage" ;;
esac

[ -n "$version" ] || fail "run this script from an unpacked release archive"
unset CDPATH
here=$(cd "$(dirname "$0")" && pwd)
extension=
[ -f "$here/$name" ] || extension=.exe
binary=$here/$name$extension
[ -f "$binary" ] || fail "$name not found in $here; run this script from an unpacked release archive"
command=$name-$version$extension
sum=$(sha256_of "$binary")
[ ${#sum} -eq 64 ] || fail "cannot compute the SHA-256 of $binary"

cat <<COMMANDS
# On each node of the cluster:
cp $(quote "$binary") $(quote "${directory%/}/$command")
# Once per cluster:
vault plugin register -sha256=$sum -command=$command -version=$version secret $name
COMMANDS
if [ -n "$first" ]; then
  cat <<COMMANDS
vault secrets enable -path=$(quote "$mount") $name
# If a previous version is already mounted, use instead: $(quote "$0") upgrade
COMMANDS
else
  cat <<COMMANDS
vault secrets tune -plugin-version=$version $(quote "$mount")
vault plugin reload -plugin=$name -scope=global
# Must print $version:
vault read -field=running_plugin_version sys/mounts/$(quote "$mount")
COMMANDS
fi
