package state

import (
	"reflect"
	"unsafe"

	"gvisor.dev/gvisor/pkg/state/wire"
)

// usualStructs is more than the kernel of a sandbox with one notebook consists of.
const usualStructs = 1 << 15

const atomics = "gvisor.dev/gvisor/pkg/atomicbitops"

// torporRoom gives for how many structures there should be room when root is saved: a map of them that grows
// step by step takes as long for that as for all the rest.
func torporRoom(root any) int {
	if typ := reflect.TypeOf(root); typ != nil && typ.Elem().Name() == "Kernel" {
		return usualStructs
	}
	return 0
}

// torporPlain tells whether the elements of an array are numbers and nothing else, so that its memory says
// all: bytes, of which every thread has 11 KiB of floating point registers, or atomic integers, of which
// every process has 24 KiB. Each of them would be an object of its own otherwise.
func torporPlain(typ reflect.Type) bool {
	if typ.Kind() != reflect.Array {
		return false
	}
	elem := typ.Elem()
	switch elem.Kind() {
	case reflect.Uint8:
		return true
	case reflect.Struct:
		return elem.PkgPath() == atomics && elem.Name() == "Uint32" && elem.Size() == 4
	}
	return false
}

// torporEncode gives the memory of an array as one object.
func torporEncode(obj reflect.Value) wire.Object {
	if !obj.CanAddr() { // the key of a map
		copied := reflect.New(obj.Type()).Elem()
		copied.Set(obj)
		obj = copied
	}
	s := wire.String(torporMemory(obj))
	return &s
}

// torporDecode fills the memory of an array.
func torporDecode(obj reflect.Value, encoded *wire.String) {
	into := torporMemory(obj)
	if !torporPlain(obj.Type()) || len(*encoded) != len(into) {
		Failf("%d bytes were saved for an array of %v", len(*encoded), obj.Type())
	}
	copy(into, *encoded)
}

func torporMemory(obj reflect.Value) []byte {
	if obj.Type().Size() == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(obj.Addr().UnsafePointer()), obj.Type().Size())
}
