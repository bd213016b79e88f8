package systrap

import (
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/torpor"
)

// due gives a state in which the next step lets threads spin.
func due() *fastPathState {
	return &fastPathState{curState: sentryOffStubOff, monitorWakeup: make(chan struct{}, 1)}
}

func TestNobodySpinsInAHurryAndThenAgain(t *testing.T) {
	const hurry = 50 * time.Millisecond
	hurried := time.Now()
	torpor.Hurry(hurry)
	torpor.Hurry(time.Millisecond) // does not shorten it
	s := due()
	for began := time.Now(); time.Since(began) < 20*time.Millisecond; time.Sleep(time.Millisecond) {
		// After a pause of this process it may be over.
		if s.curState(s); s.sentryFastPath() && time.Since(hurried) < hurry {
			t.Fatalf("they spin %v after it began", time.Since(began))
		}
	}
	for began := time.Now(); !s.sentryFastPath(); time.Sleep(time.Millisecond) {
		if s.curState(s); time.Since(began) > 10*time.Second {
			t.Fatal("they never spin again")
		}
	}
}

func TestWhoeverIsAwakenedIsInAHurry(t *testing.T) {
	for { // once more, if a pause of this process was longer than the hurry
		for torpor.Hurried() {
			time.Sleep(time.Millisecond)
		}
		s := due()
		ended := make(chan struct{})
		go func() {
			s.park()
			close(ended)
		}()
		for !s.monitorParked.Load() {
			time.Sleep(time.Millisecond)
		}
		if torpor.Hurried() {
			t.Error("nothing is done, and there is a hurry")
		}
		began := time.Now()
		s.recordActivity()
		<-ended
		hurried := torpor.Hurried()
		s.curState(s)
		spin := s.sentryFastPath()
		if time.Since(began) >= torporAwake {
			continue
		}
		if !hurried {
			t.Error("there is no hurry")
		}
		if spin {
			t.Error("they spin")
		}
		return
	}
}
