package boot

import (
	"gvisor.dev/gvisor/pkg/sentry/time"
	"gvisor.dev/gvisor/pkg/torpor"
)

func init() { torpor.Quiet() }

func torporQuiet() { torpor.Quiet() }

func torporSample() { time.TorporSample() }
