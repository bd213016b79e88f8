package boot

import "gvisor.dev/gvisor/pkg/torpor"

func init() { torpor.Quiet() }

func torporQuiet() { torpor.Quiet() }
