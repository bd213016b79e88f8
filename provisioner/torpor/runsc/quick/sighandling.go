package sighandling

import "gvisor.dev/gvisor/pkg/torpor"

func torporLater(f func()) {
	torpor.Wide()
	torpor.Later(f)
}
