package stateio

import "runtime"

// torporParallel gives how many parts of a pages file are read or written at a time. They are copies that
// the processors make, so that one of those is left to the kernel's state, which is saved or loaded
// meanwhile and takes longer.
func torporParallel() int {
	return min(pagesFileFDDefaultMaxParallel, max(1, runtime.NumCPU()-1))
}
