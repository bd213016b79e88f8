//go:build amd64
// +build amd64

package cpuid

import (
	"reflect"
	"testing"
)

func TestAskedOnceItSaysTheSame(t *testing.T) {
	once := torporOnce{}
	if got, want := (FeatureSet{Function: once}).Fixed(), (FeatureSet{Function: &Native{}}).Fixed(); !reflect.DeepEqual(got, want) {
		t.Fatalf("%v\n%v", got, want)
	}
	if len(once) < 10 {
		t.Fatalf("%d questions", len(once))
	}
	in := In{Eax: uint32(featureInfo)}
	once[in] = Out{Eax: 1234}
	if out := once.Query(in); out.Eax != 1234 {
		t.Fatal("it asks again")
	}
}
