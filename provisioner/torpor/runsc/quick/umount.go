// Package umount takes the sandbox's /proc away when the sandbox is about to lock itself in.
//
// That is for a process of its own, as the sandbox has no right to do it by then: runsc's command "umount".
// One that finds Env in its environment does the same before anything else is set up: the start of
// a runsc takes 5 ms of a processor, and others need that just then.
package umount

import "syscall"

const (
	key = "TORPOR_UMOUNT"

	// Env is for the environment of a runsc that is told to unmount /proc, whose descriptor 3 gives a byte when it is time.
	Env = key + "=1"

	arguments = "\x00umount\x00--sync-fd=3\x00/proc\x00"
	failed    = 128 // as the command
)

func init() {
	if _, asked := syscall.Getenv(key); asked && told() {
		syscall.Exit(umount(3, "/proc"))
	}
}

// told tells whether these are the arguments of this process: any other becomes what it is told to.
func told() bool {
	fd, err := syscall.Open("/proc/self/cmdline", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	buf := make([]byte, 4096)
	n, err := syscall.Read(fd, buf)
	if err != nil || n < len(arguments) {
		return false
	}
	return string(buf[n-len(arguments):n]) == arguments
}

func umount(sync int, path string) int {
	buf := make([]byte, 1)
	n, err := syscall.Read(sync, buf)
	for err == syscall.EINTR {
		n, err = syscall.Read(sync, buf)
	}
	if err != nil || n != 1 {
		return fail("nothing was to be read from the sync descriptor")
	}
	if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
		return fail(path + " cannot be unmounted: " + err.Error())
	}
	return 0
}

func fail(why string) int {
	_, _ = syscall.Write(2, []byte(why+"\n"))
	return failed
}
