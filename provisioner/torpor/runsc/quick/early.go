package time

import (
	"sync"
	"time"
)

const (
	// torporOldest is how long ago the first sample of a clock may have been taken. Whoever sets a clock in
	// between makes the clocks of the sandbox wrong for as long.
	torporOldest = 2 * time.Second

	// torporShortest is between two samples that a frequency is computed from: each is exact to well below a
	// microsecond, so that is to some 50 parts in a million, until more is known a second later.
	torporShortest = 20 * time.Millisecond
)

var (
	torporMu    sync.Mutex
	torporFirst = map[ClockID]sample{}
)

func init() { TorporSample() }

// TorporSample has the clocks that are made from now on begin with a sample of this moment, unless one that is
// not too old is there. A clock with two samples can be read without a system call, and the second is
// taken when the sandbox begins to run; else it would be there a second later. What a kernel does first,
// it does with its eyes on the clock: a fourth of the system calls before its first reply were these.
func TorporSample() {
	torporMu.Lock()
	defer torporMu.Unlock()
	for _, clock := range []ClockID{Monotonic, Realtime, MonotonicRaw} {
		s := newSampler(clock)
		if first, ok := torporFirst[clock]; ok && torporRecent(s, first) {
			continue
		}
		delete(torporFirst, clock)
		if first, err := s.lowOverheadSample(); err == nil {
			torporFirst[clock] = first
		}
	}
}

func torporSampler(clock ClockID) *sampler {
	torporMu.Lock()
	defer torporMu.Unlock()
	s := newSampler(clock)
	if first, ok := torporFirst[clock]; ok && torporRecent(s, first) {
		s.samples = append(s.samples, first)
	}
	return s
}

func torporRecent(s *sampler, first sample) bool {
	now, err := s.Syscall()
	age := time.Duration(now - first.ref)
	return err == nil && age >= 0 && age < torporOldest
}

// torporTooSoon tells whether these samples, two at least, are too near each other to compute with.
func torporTooSoon(samples []sample) bool {
	return time.Duration(samples[len(samples)-1].ref-samples[0].ref) < torporShortest
}
