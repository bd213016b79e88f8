package time

import (
	"testing"
	"time"
)

func forget() {
	torporMu.Lock()
	defer torporMu.Unlock()
	clear(torporFirst)
}

// off gives by how many nanoseconds a clock with these parameters is behind one that is asked.
func off(t *testing.T, clock ClockID, p Parameters) int64 {
	t.Helper()
	asked, err := newSampler(clock).lowOverheadSample()
	if err != nil {
		t.Fatal(err)
	}
	computed, ok := p.ComputeTime(asked.after)
	if !ok {
		t.Fatal("it cannot be computed")
	}
	return int64(asked.ref) - computed
}

func TestAClockIsReadyAtItsFirstUpdate(t *testing.T) {
	for _, clock := range []ClockID{Monotonic, Realtime, MonotonicRaw} {
		forget()
		TorporSample()
		time.Sleep(2 * torporShortest)
		c := NewCalibratedClock(clock)
		p, ok := c.Update(true)
		if !ok || !c.ready {
			t.Fatalf("%v: not ready", clock)
		}
		for began := time.Now(); time.Since(began) < 500*time.Millisecond; time.Sleep(50 * time.Millisecond) {
			if ns := off(t, clock, p); ns < -200_000 || ns > 200_000 {
				t.Fatalf("%v: %d ns off after %v", clock, ns, time.Since(began))
			}
		}
		if _, ok := c.Update(false); !ok || c.errorNS.Magnitude() > 200_000 {
			t.Fatalf("%v: not ready any more, or %d ns off", clock, c.errorNS)
		}
	}
}

func TestSamplesTooNearEachOtherAreNotComputedWith(t *testing.T) {
	var c *CalibratedClock
	for near := false; !near; { // once more, if a pause of this process was between them
		forget()
		began := time.Now()
		TorporSample()
		c = NewCalibratedClock(Monotonic)
		_, ok := c.Update(true)
		if near = time.Since(began) < torporShortest; near && ok {
			t.Fatal("it is ready at once")
		}
	}
	time.Sleep(2 * torporShortest)
	if _, ok := c.Update(false); !ok {
		t.Fatal("it never is")
	}
}

func TestASampleThatIsTooOldIsReplaced(t *testing.T) {
	forget()
	TorporSample()
	old := torporFirst[Realtime]
	TorporSample()
	if torporFirst[Realtime] != old {
		t.Fatal("it was not old")
	}
	old.ref -= ReferenceNS(torporOldest)
	torporFirst[Realtime] = old
	if c := NewCalibratedClock(Realtime); len(c.ref.samples) != 0 {
		t.Fatal("a clock begins with it")
	}
	TorporSample()
	if torporFirst[Realtime] == old {
		t.Fatal("it is still there")
	}
	if c := NewCalibratedClock(Realtime); len(c.ref.samples) != 1 {
		t.Fatal("no clock begins with the new one")
	}
}

func TestASampleFromAfterNowIsNotUsed(t *testing.T) {
	forget()
	TorporSample()
	ahead := torporFirst[Realtime]
	ahead.ref += ReferenceNS(time.Hour)
	torporFirst[Realtime] = ahead
	if c := NewCalibratedClock(Realtime); len(c.ref.samples) != 0 {
		t.Fatal("whoever has set the clock back gets a wrong one")
	}
}
