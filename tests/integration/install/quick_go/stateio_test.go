package stateio

import (
	"os"
	"testing"
	_ "unsafe" // for go:linkname

	"golang.org/x/sys/unix"
)

// What runtime.NumCPU gives.
//
//go:linkname processors runtime.numCPUStartup
var processors int32

func setProcessors(t *testing.T, number int32) {
	before := processors
	processors = number
	t.Cleanup(func() { processors = before })
}

func TestAllProcessorsButOneWithinBounds(t *testing.T) {
	for number, want := range map[int32]int{1: 1, 2: 1, 3: 2, 4: 3, 64: 63, 128: 127, 129: 128, 130: 128, 4096: 128} {
		setProcessors(t, number)
		if got := torporParallel(); got != want {
			t.Errorf("of %d processors %d are used, not %d", number, got, want)
		}
	}
}

func TestPagesFilesUseAsMany(t *testing.T) {
	setProcessors(t, 6)
	reader := NewPagesFileFDReaderDefault(descriptor(t))
	defer reader.Close()
	writer := NewPagesFileFDWriterDefault(descriptor(t))
	defer writer.Close()
	if reader.MaxParallel() != 5 || writer.MaxParallel() != 5 {
		t.Errorf("%d are read and %d are written at a time", reader.MaxParallel(), writer.MaxParallel())
	}
}

// descriptor gives one that whoever gets it closes.
func descriptor(t *testing.T) int32 {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return int32(null)
}
