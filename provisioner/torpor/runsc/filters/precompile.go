// Copied by torpor.runsc.install_go_filters into two of gVisor's packages, because only inside of
// them can the rules of a seccomp program be had with values that become known at its start:
//
//	runsc/boot/filter/config/      what the sandbox itself may ask of the host
//	runsc/fsgofer/filter/config/   what its gofer may
//
// Needs of both, as in their config_precompiled.go: Options with ConfigKey and Vars, and rules.

package config

import (
	"maps"
	"slices"

	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
)

// TorporPrecompile gives the program that Install would build from scratch for opt.
func TorporPrecompile(opt Options, how seccomp.ProgramOptions) (precompiledseccomp.Program, error) {
	names := slices.Collect(maps.Keys(opt.Vars()))
	build := func(vars precompiledseccomp.Values) *seccomp.Program {
		allowed, denied := rules(opt, vars)
		return &seccomp.Program{
			RuleSets: []seccomp.RuleSet{
				{Rules: denied.Copy()},
				{Rules: allowed.Copy(), Action: seccomp.Allow},
			},
			Options: how,
		}
	}
	return precompiledseccomp.Precompile(opt.ConfigKey(), names, build)
}
