// Writes gVisor's seccomp programs, compiled, into a copy of its Go module, as its own Bazel build
// does. torpor.runsc.install_go_filters runs it in the root of the copy. It depends on these files:
//
//	runsc/boot/filter/filter_precompiled.go      registerPrograms with the line `stub`, to add to
//	runsc/fsgofer/filter/filter_precompiled.go   the same
//	runsc/boot/filter/config/config.go           Options, SeccompOptions; see precompile.go too
//	runsc/fsgofer/filter/config/config.go        Options; see precompile.go too
//	pkg/sentry/platform/platform.go              List, Lookup, PrecompiledSeccompInfo
//	pkg/seccomp/precompiledseccomp               Program.Registration
//
// A program is found by the ConfigKey of its options. Options for which there is none cost their
// sandbox some time at its start and nothing else, so only those that Torpor uses are here: without
// the host's network, sockets, devices and profiling, and, as CGO is off, without CGO.
package main

import (
	"fmt"
	"os"
	"strings"

	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	_ "gvisor.dev/gvisor/pkg/sentry/platform/platforms"
	sandbox "gvisor.dev/gvisor/runsc/boot/filter/config"
	gofer "gvisor.dev/gvisor/runsc/fsgofer/filter/config"
)

const stub = "\tprograms := make(map[string]precompiledseccomp.Program)\n"

var either = []bool{false, true}

func main() {
	for path, programs := range map[string]func() ([]precompiledseccomp.Program, error){
		"runsc/boot/filter/filter_precompiled.go":    sandboxPrograms,
		"runsc/fsgofer/filter/filter_precompiled.go": goferPrograms,
	} {
		if err := register(path, programs); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			os.Exit(1)
		}
	}
}

func sandboxPrograms() (programs []precompiledseccomp.Program, err error) {
	for _, name := range platform.List() {
		constructor, err := platform.Lookup(name)
		if err != nil {
			return nil, err
		}
		for _, info := range constructor.PrecompiledSeccompInfo() {
			for _, directFS := range either {
				opt := sandbox.Options{Platform: info, HostFilesystem: directFS}
				program, err := sandbox.TorporPrecompile(opt, sandbox.SeccompOptions(opt))
				if err != nil {
					return nil, err
				}
				programs = append(programs, program)
			}
		}
	}
	return programs, nil
}

func goferPrograms() (programs []precompiledseccomp.Program, err error) {
	for _, directFS := range either {
		for _, lisafs := range either {
			opt := gofer.Options{DirectFS: directFS, LisafsNeeded: lisafs}
			program, err := gofer.TorporPrecompile(opt, seccomp.ProgramOptions{})
			if err != nil {
				return nil, err
			}
			programs = append(programs, program)
		}
	}
	return programs, nil
}

func register(path string, give func() ([]precompiledseccomp.Program, error)) error {
	programs, err := give()
	if err != nil {
		return err
	}
	if len(programs) == 0 {
		return fmt.Errorf("there is nothing to register")
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	source := string(raw)
	if strings.Count(source, stub) != 1 {
		return fmt.Errorf("it does not hold one line %q", strings.TrimSpace(stub))
	}
	added := stub
	for _, program := range programs {
		added += program.Registration("\t", "precompiledseccomp", "programs")
	}
	return os.WriteFile(path, []byte(strings.Replace(source, stub, added, 1)), 0o644)
}
