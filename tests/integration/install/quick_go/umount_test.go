package umount

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	if name := os.Getenv("TORPOR_MARK"); name != "" { // no test: it was not what told allows
		_ = os.WriteFile(name, nil, 0o600)
		return
	}
	os.Exit(m.Run())
}

// start gives the exit status of this program with these arguments, what it wrote, and whether it became
// itself: then it has written a file. It has a namespace of mounts of its own, in which only root may unmount
// what was there before.
func start(t *testing.T, sync string, args ...string) (int, string, bool) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	mark := t.TempDir() + "/mark"
	cmd := exec.Command(os.Args[0])
	cmd.Args = append([]string{"runsc"}, args...)
	cmd.Env = []string{Env, "TORPOR_MARK=" + mark}
	cmd.ExtraFiles = []*os.File{r}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Unshareflags |= syscall.CLONE_NEWUSER
	}
	said := &strings.Builder{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = w.WriteString(sync)
	w.Close()
	_ = cmd.Wait()
	_, err = os.Stat(mark)
	return cmd.ProcessState.ExitCode(), said.String(), err == nil
}

func TestItUnmounts(t *testing.T) {
	wanted := 0
	if os.Getuid() != 0 {
		wanted = failed
	}
	code, said, became := start(t, "x", "umount", "--sync-fd=3", "/proc")
	if code != wanted || (said != "") != (code == failed) || became {
		t.Fatalf("status %d, %q, itself: %v", code, said, became)
	}
	if _, err := os.Stat("/proc/self"); err != nil {
		t.Fatalf("it was ours: %v", err)
	}
}

func TestItIsNotTold(t *testing.T) {
	code, said, became := start(t, "", "umount", "--sync-fd=3", "/proc")
	if code != failed || !strings.Contains(said, "nothing was to be read") || became {
		t.Fatalf("status %d, %q, itself: %v", code, said, became)
	}
}

func TestAnyOtherBecomesItself(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"umount", "--sync-fd=3", "/sys"},
		{"umount", "--sync-fd=3", "/proc", "more"},
		{"boot", "--sync-fd=3", "/proc"},
	} {
		if _, said, became := start(t, "x", args...); said != "" || !became {
			t.Errorf("%q: %q, itself: %v", args, said, became)
		}
	}
}

func TestWhatIsNotMountedIsAnError(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, _ = w.WriteString("x")
	w.Close()
	if code := umount(int(r.Fd()), t.TempDir()); code != failed {
		t.Fatalf("status %d", code)
	}
}
