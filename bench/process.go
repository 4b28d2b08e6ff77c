package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startProcess starts a program with the given environment, and without the variables of
// the shell, such as VAULT_ADDR.
func startProcess(log string, env []string, program string, args ...string) (*exec.Cmd, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(log)}, env...)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, cmd.Start()
}

func stopProcess(cmd *exec.Cmd) {
	if cmd == nil || cmd.Process == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	kill.Stop()
}

// freeAddress returns a loopback address with a free port.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// children returns the IDs of the processes that a process has started.
func children(pid int) (pids []int, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil { // it has ended
			continue
		}
		// The name of the command, which is in parentheses, is followed by the state and the
		// parent (proc(5)).
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if fields[1] == strconv.Itoa(pid) {
			child, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				return nil, err
			}
			pids = append(pids, child)
		}
	}
	return pids, nil
}

// cpuOf returns the CPU time that processes have used.
func cpuOf(pids ...int) (sum time.Duration, err error) {
	for _, pid := range pids {
		clock := int32(^pid<<3 | 2) // clock_getcpuclockid(3)
		var t unix.Timespec
		if err := unix.ClockGettime(clock, &t); err != nil {
			return 0, fmt.Errorf("get the CPU time of process %d: %w", pid, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// peakMemory returns the sum of the peaks of the resident memory of processes, in bytes.
func peakMemory(pids ...int) (sum int64, err error) {
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		_, peak, _ := strings.Cut(string(status), "VmHWM:")
		var kb int64
		if _, err := fmt.Sscanf(peak, "%d kB", &kb); err != nil {
			return 0, fmt.Errorf("get the peak memory of process %d: %w", pid, err)
		}
		sum += kb << 10
	}
	return sum, nil
}
