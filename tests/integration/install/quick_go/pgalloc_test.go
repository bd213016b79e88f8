package pgalloc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/hostarch"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"
	"gvisor.dev/gvisor/pkg/sentry/usage"
)

const page = hostarch.PageSize

// inMemory gives a file of size bytes that is one hole; in such a one the sentry has its memory.
func inMemory(t *testing.T, size int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("torpor-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return sized(t, os.NewFile(uintptr(fd), "torpor-test"), size)
}

func onDisk(t *testing.T, size int) *os.File {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	return sized(t, file, size)
}

func sized(t *testing.T, file *os.File, size int) *os.File {
	t.Helper()
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	return file
}

// write puts one byte into each of these pages as the sentry and its processes do it, through a mapping.
func write(t *testing.T, file *os.File, size int, pages []bool) {
	t.Helper()
	memory, err := unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(memory)
	for i, written := range pages {
		if written {
			within := min(page, size-i*page)
			memory[i*page+(i*1021)%within] = 1
		}
	}
}

// layout gives which of that many pages are written to: every number is another choice.
func layout(number, pages int) []bool {
	written := make([]bool, pages)
	for i := range written {
		written[i] = number&(1<<i) != 0
	}
	return written
}

// sizes are of up to six pages, and end where a page does and elsewhere.
var sizes = []int{1, page - 1, page, page + 1, 5 * page, 5*page + 100, 6*page - 1, 6 * page}

func forEachFile(t *testing.T, empty func(*testing.T, int) *os.File, do func(what string, fd int, written []bool)) {
	t.Helper()
	for _, size := range sizes {
		pages := (size + page - 1) / page
		for number := range 1 << pages {
			file, written := empty(t, size), layout(number, pages)
			write(t, file, size, written)
			do(fmt.Sprintf("%d bytes, %v", size, written), int(file.Fd()), written)
			file.Close()
		}
	}
}

func TestWhatWasNotWrittenIsAHoleAndNothingElse(t *testing.T) {
	forEachFile(t, inMemory, func(what string, fd int, written []bool) {
		for step := 1; step <= 3; step++ {
			for first := range step {
				holes := torporHoles{fd: fd}
				for i := first; i < len(written); i += step {
					if holes.has(uint64(i)*page) == written[i] {
						t.Errorf("%s: wrong about page %d of each %d", what, i, step)
					}
				}
			}
		}
	})
}

// How much of what was not written is a hole depends on the file system. What was written never is.
func TestOnADiskNothingThatWasWrittenIsAHole(t *testing.T) {
	forEachFile(t, onDisk, func(what string, fd int, written []bool) {
		holes := torporHoles{fd: fd}
		for i := range written {
			if holes.has(uint64(i)*page) && written[i] {
				t.Errorf("%s: page %d is no hole", what, i)
			}
		}
	})
}

func TestTheFileIsAskedOnceForEachRun(t *testing.T) {
	const size = 9 * page
	file, none, all := inMemory(t, size), inMemory(t, size), inMemory(t, size)
	write(t, file, size, []bool{true, true, true, false, false, false, true, true, true})
	write(t, all, size, slices.Repeat([]bool{true}, 9))
	holes := torporHoles{}
	for i, other := range []*os.File{none, none, none, all, all, all, none, none, none} {
		holes.fd = int(other.Fd())
		if i == 0 || i == 3 { // data, then a hole and the data behind it
			holes.fd = int(file.Fd())
		}
		if holes.has(uint64(i)*page) != (i/3 == 1) {
			t.Errorf("page %d was asked for again", i)
		}
	}
}

func TestWhereNothingCanBeSaidThereAreNone(t *testing.T) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	for _, fd := range []int{-1, ends[0]} {
		holes := torporHoles{fd: fd}
		for off := uint64(0); off < 4*page; off += page {
			if holes.has(off) {
				t.Errorf("page %d of %d is a hole", off/page, fd)
			}
		}
	}
}

func newMemory(t *testing.T) *MemoryFile {
	t.Helper()
	opts := MemoryFileOpts{DisableMemoryAccounting: true, DisableIMAWorkAround: true}
	memory, err := NewMemoryFile(inMemory(t, 0), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(memory.Destroy)
	return memory
}

func allocate(t *testing.T, memory *MemoryFile, pages uint64, mode AllocationMode) memmap.FileRange {
	t.Helper()
	got, err := memory.Allocate(pages*page, AllocOpts{Kind: usage.Anonymous, Mode: mode})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// contents reads what is there, by which all of it is there from then on.
func contents(memory *MemoryFile, of ...memmap.FileRange) []byte {
	var got []byte
	for _, each := range of {
		memory.forEachMappingSlice(each, func(part []byte) { got = append(got, part...) })
	}
	return got
}

func set(memory *MemoryFile, at memmap.FileRange, pages map[int]byte) {
	memory.forEachMappingSlice(at, func(part []byte) {
		for i, value := range pages {
			part[i*page+i%page] = value
		}
	})
}

// takenPages gives how many pages of the host are behind a memory.
func takenPages(t *testing.T, memory *MemoryFile) int64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Fstat(memory.FD(), &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Blocks * 512 / page
}

func TestMemoryIsSavedAndLoaded(t *testing.T) {
	for _, thorough := range []bool{false, true} {
		for _, pagesFile := range []bool{false, true} {
			t.Run(fmt.Sprintf("thorough=%v,pagesFile=%v", thorough, pagesFile), func(t *testing.T) {
				saved := newMemory(t)
				known := allocate(t, saved, 4, AllocateUncommitted)
				set(saved, known, map[int]byte{0: 0, 1: 201, 2: 0, 3: 0})
				if err := saved.UpdateUsage(nil); err != nil { // by which it knows of these pages
					t.Fatal(err)
				}
				if err := saved.decommitFile(memmap.FileRange{known.Start + 3*page, known.End}); err != nil {
					t.Fatal(err)
				}
				some := allocate(t, saved, 12, AllocateUncommitted)
				// Holes are first, and before and behind data and zeros.
				set(saved, some, map[int]byte{2: 102, 3: 103, 4: 0, 6: 0, 8: 108, 11: 111})
				var image bytes.Buffer
				pages := save(t, saved, &image, thorough, pagesFile)

				expected := uint64(4 + 4)
				if thorough {
					expected = 1 + 4
				}
				if got := saved.knownCommittedBytes / page; got != expected {
					t.Errorf("%d pages are known, not %d", got, expected)
				}
				// Of those that were looked at without need nothing is left.
				if got := takenPages(t, saved); got > 4+4 {
					t.Errorf("%d pages are taken", got)
				}

				loaded := newMemory(t)
				load(t, loaded, &image, pages)
				if got := takenPages(t, loaded); got != int64(expected) {
					t.Errorf("%d pages were loaded, not %d", got, expected)
				}
				want := make([]byte, 16*page)
				for i, value := range map[int]byte{2: 102, 3: 103, 8: 108, 11: 111} {
					want[(4+i)*page+i] = value
				}
				want[page+1] = 201
				for what, memory := range map[string]*MemoryFile{"saved": saved, "loaded": loaded} {
					if !bytes.Equal(contents(memory, known, some), want) {
						t.Errorf("the %s memory is another", what)
					}
				}
			})
		}
	}
}

// save gives the pages file, if there is to be one.
func save(t *testing.T, memory *MemoryFile, to *bytes.Buffer, thorough, pagesFile bool) *os.File {
	t.Helper()
	opts := &SaveOpts{ExcludeCommittedZeroPages: thorough}
	done := make(chan error, 1)
	var pages *os.File
	if pagesFile {
		pages = inMemory(t, 0)
		var err error
		opts.PagesFile, err = StartAsyncPagesFileSave(
			stateio.NewPagesFileFDWriterDefault(again(t, pages)), func(err error) { done <- err })
		if err != nil {
			t.Fatal(err)
		}
	} else {
		done <- nil
	}
	if err := memory.SaveTo(context.Background(), to, opts); err != nil {
		t.Fatal(err)
	}
	if pagesFile {
		opts.PagesFile.MemoryFilesDone()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return pages
}

func load(t *testing.T, memory *MemoryFile, from *bytes.Buffer, pages *os.File) {
	t.Helper()
	opts := &LoadOpts{}
	done := make(chan error, 1)
	if pages != nil {
		var err error
		opts.PagesFile, err = StartAsyncPagesFileLoad(
			stateio.NewPagesFileFDReaderDefault(again(t, pages)), func(err error) { done <- err }, nil)
		if err != nil {
			t.Fatal(err)
		}
	} else {
		done <- nil
	}
	if err := memory.LoadFrom(context.Background(), from, opts); err != nil {
		t.Fatal(err)
	}
	if pages != nil {
		opts.PagesFile.MemoryFilesDone()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// again gives another descriptor of a file: whoever reads or writes it closes the one it got.
func again(t *testing.T, file *os.File) int32 {
	t.Helper()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return int32(fd)
}

// A page that is looked at is a page fault, and there is a page from then on.
func TestHolesAreNotLookedAtWhenMemoryIsSaved(t *testing.T) {
	const pages = 8192
	memory := newMemory(t)
	set(memory, allocate(t, memory, pages, AllocateUncommitted), map[int]byte{0: 1, pages - 1: 2})
	before := faults(t)
	save(t, memory, new(bytes.Buffer), false, false)
	if took := faults(t) - before; took > pages/4 {
		t.Errorf("%d page faults for %d pages that are not there", took, pages-2)
	}
}

func faults(t *testing.T) int64 {
	t.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return used.Minflt
}
