//go:build amd64
// +build amd64

package cpuid

// torporOnce asks the processor each question once. A virtual machine's processor is asked by way of its
// hypervisor, which takes 10 microseconds, and each of two hundred features asked it anew.
type torporOnce map[In]Out

// Query implements Function.Query.
func (known torporOnce) Query(in In) Out {
	out, ok := known[in]
	if !ok {
		out = (&Native{}).Query(in)
		known[in] = out
	}
	return out
}
