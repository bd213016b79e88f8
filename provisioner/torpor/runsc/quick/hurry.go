package systrap

import (
	"time"

	"gvisor.dev/gvisor/pkg/torpor"
)

// torporAwake is for how long threads do not spin after a time in which nothing was done: whoever runs a
// short cell is served sooner when the processors are left to it. Only much longer work, with more system
// calls than that, gains by spinning.
const torporAwake = 20 * time.Millisecond

func torporHurried() bool { return torpor.Hurried() }

func torporAwakened() { torpor.Hurry(torporAwake) }
