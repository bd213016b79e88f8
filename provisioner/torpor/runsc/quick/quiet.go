// Package torpor keeps what can wait out of the moments in which somebody waits for a sandbox.
// torpor.runsc.install_go_quick adds it, and calls of it, to a copy of gVisor's Go module.
package torpor

import (
	"math"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/gomaxprocs"
)

const (
	// quietFor is longer than a start, a save or a restore takes, but of large kernels.
	quietFor = 5 * time.Second

	// moreBytes is what may become garbage meanwhile; then it is collected all the same.
	moreBytes = 256 << 20

	// usualPercent is Go's own, as gVisor sets none.
	usualPercent = 100

	// extraProcs is how many more threads may run Go at the same time in the moment after a start, and
	// wideFor how long that is.
	extraProcs = 6
	wideFor    = 200 * time.Millisecond

	// hurriedFor is how long after a start no thread spins.
	hurriedFor = 500 * time.Millisecond
)

var (
	mu     sync.Mutex
	again  *time.Timer
	narrow *time.Timer

	hurriedUntil atomic.Int64 // in nanoseconds since 1970
)

// Quiet has no garbage collected for some seconds, and then all of it at once. A save or a restore makes
// 10 to 20 MiB of it, and on two cores collecting that takes as long as half of the rest. Calling it
// once more prolongs that.
func Quiet() {
	mu.Lock()
	defer mu.Unlock()
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(usedBytes() + moreBytes)
	if again != nil {
		again.Stop()
	}
	again = time.AfterFunc(quietFor, loud)
}

func loud() {
	mu.Lock()
	again = nil
	debug.SetGCPercent(usualPercent)
	debug.SetMemoryLimit(math.MaxInt64)
	mu.Unlock()
	debug.FreeOSMemory()
}

// usedBytes gives what counts against Go's memory limit.
func usedBytes() int64 {
	used := []metrics.Sample{
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(used)
	return int64(used[0].Value.Uint64() - used[1].Value.Uint64())
}

// Wide lets more threads run Go for a moment. A sandbox that begins to run makes its processes, waits for
// them in system calls, and on two cores nothing else of it would run until Go looks for that, which
// it does every 10 ms. Calling it again prolongs that.
func Wide() {
	mu.Lock()
	defer mu.Unlock()
	if narrow == nil || !narrow.Stop() {
		gomaxprocs.Add(extraProcs)
	}
	Hurry(hurriedFor)
	narrow = time.AfterFunc(wideFor, func() { gomaxprocs.Add(-extraProcs) })
}

// Later calls f in a second: what a sandbox can do without when it has just begun to run.
func Later(f func()) {
	time.AfterFunc(time.Second, f)
}

// Hurry has Hurried say yes for that long, or for longer if it does already.
func Hurry(d time.Duration) {
	until := time.Now().Add(d).UnixNano()
	if until > hurriedUntil.Load() {
		hurriedUntil.Store(until)
	}
}

// Hurried tells whether the processors should be left to those who have something to do.
func Hurried() bool {
	return time.Now().UnixNano() < hurriedUntil.Load()
}
