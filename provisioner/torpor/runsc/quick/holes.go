package pgalloc

import (
	"math"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/hostarch"
)

// torporHoles tells which pages of a file there are not, so that they are zero, without looking into them:
// whoever reads such a page is given one, which takes longer than to copy one, and it is taken away
// again. Pages are asked for in rising order, and nobody writes to the file meanwhile.
type torporHoles struct {
	fd int

	// Between start and hole there are no pages, between hole and data there are some.
	start, hole, data uint64
}

// has tells whether the page at off is none. It may say no of one that is none.
func (h *torporHoles) has(off uint64) bool {
	if off < h.start || off >= h.data {
		h.look(off)
	}
	return off < h.hole
}

func (h *torporHoles) look(off uint64) {
	h.start, h.hole, h.data = off, off, off+hostarch.PageSize
	first, err := unix.Seek(h.fd, int64(off), unix.SEEK_DATA)
	if err == unix.ENXIO { // there are none up to its end
		h.hole, h.data = math.MaxUint64, math.MaxUint64
		return
	}
	if err != nil || first < int64(off) {
		return
	}
	h.hole = hostarch.PageRoundDown(uint64(first))
	h.data = max(h.data, h.hole)
	if end, err := unix.Seek(h.fd, first, unix.SEEK_HOLE); err == nil && end > first {
		h.data = max(h.data, hostarch.PageRoundDown(uint64(end)))
	}
}
