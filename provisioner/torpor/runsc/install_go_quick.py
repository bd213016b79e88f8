"""Changes to a copy of gVisor's source that take work out of its starts, saves and restores.

All are measured (tests/bench/README.md), most on two processors, where whatever is done takes the time
of something else:

* The sentry collects no garbage while it starts, saves or restores.
* It asks for the signals that it forwards a second after it has begun to run, not before: each of
  thirty takes two switches between threads. In that second a signal does to it what it does to any
  other program.
* What is in an array of numbers is saved as its memory, not as one object for each number: these
  were half of all objects. Images made before are read, too; other builds do not read these.
* No statistics are kept about the types of these objects.
* Memory that nobody has written to is not looked at when a sandbox is saved.
* What can be traced is listed when somebody wants to trace, not at every start.
* Threads that wait for system calls do not spin in the first half second after a start, nor in the
  first 20 ms after a time without anything to do.
* Pages are read and written by as many threads as there are processors but one, not by 128.
* Clocks can be read without a system call as soon as the sandbox runs, not a second later.
* The processor is asked each question about itself once, not for each of two hundred features.
* Who takes the sandbox's ``/proc`` away does that at once, without becoming a whole runsc before.

What a sandbox may do stays the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from torpor.runsc.install_staging import SourceUnusable

_ADDED = {
    "quiet.go": "pkg/torpor/quiet.go",
    "boot.go": "runsc/boot/torpor_quick.go",
    "sighandling.go": "pkg/sighandling/torpor_quick.go",
    "plain.go": "pkg/state/torpor_plain.go",
    "holes.go": "pkg/sentry/pgalloc/torpor_holes.go",
    "parallel.go": "pkg/sentry/state/stateio/torpor_parallel.go",
    "hurry.go": "pkg/sentry/platform/systrap/torpor_hurry.go",
    "early.go": "pkg/sentry/time/torpor_early.go",
    "once.go": "pkg/cpuid/torpor_once.go",
    "umount.go": "pkg/torpor/umount/umount.go",
}
_SAVE = "func (cm *containerManager) Checkpoint(o *control.SaveOpts, _ *struct{}) error {\n"
_RESTORE = "func (cm *containerManager) Restore(o *RestoreOpts, _ *struct{}) (retErr error) {\n"
_NOTIFY = "\t\tsignal.Notify(sigchan, unix.Signal(sig))\n"
_ENCODE, _DECODE, _STATE = (f"pkg/state/{name}.go" for name in ("encode", "decode", "state"))
_PAGES = "pkg/sentry/pgalloc/save_restore.go"
_PAGES_FILE = "pkg/sentry/state/stateio/pagesfile.go"
_ARRAY = "\tl := obj.Len()\n\ta := &wire.Array{\n"
_STRING = "\t\tobj.SetString(string(*x))\n"
_MAP = "make(map[reflect.Value]*wire.Struct"
_ZERO_PAGE = "\tzeroPage := make([]byte, hostarch.PageSize)\n"
_LOOK = "\t\t\t\tisZeroed := bytes.Equal(pg, zeroPage)\n"
_POINTS = "\tseccheck.Initialize()\n"
_TRACE = "func Create(conf *SessionConfig, force bool) error {\n"
_METRICS = "pkg/sentry/platform/systrap/metrics.go"
_UNPARK = "\ts.monitorParked.Store(false)\n"
_SPIN = "\tif s.sentryFPBackoff == 0 {\n\t\ts.enableSentryFP()\n\t\ts.curState = sentryOnStubOff\n"
_SAMPLER = "\t\tref: newSampler(c),\n"
_TWO = "\tif len(s.samples) < 2 {\n"
_NATIVE = "\t\tFunction: &Native{},\n"
_PROCESS = "runsc/cmd/sandboxsetup/process.go"
_IMPORT = '\t"gvisor.dev/gvisor/pkg/log"\n'
_CHILD = "\tcmd.ExtraFiles = append(cmd.ExtraFiles, r)\n"
_DEFAULT = "(fd, pagesFileFDDefaultMaxIOBytes, pagesFileFDDefaultMaxParallel)\n"


@dataclass(frozen=True, slots=True)
class _Change:
    """What stands once in a file, and what is to stand there."""

    path: str
    before: str
    after: str


_CHANGES = (
    _Change("runsc/boot/controller.go", _SAVE, f"{_SAVE}\ttorporQuiet()\n"),
    _Change("runsc/boot/controller.go", _RESTORE, f"{_RESTORE}\ttorporQuiet()\n\ttorporSample()\n"),
    _Change(
        "pkg/sighandling/sighandling.go",
        _NOTIFY,
        "\t\ttorporLater(func() { signal.Notify(sigchan, unix.Signal(sig)) })\n",
    ),
    _Change(
        _ENCODE,
        _ARRAY,
        "\tif torporPlain(obj.Type()) {\n\t\t*dest = torporEncode(obj)\n\t\treturn\n\t}\n" + _ARRAY,
    ),
    _Change(
        _DECODE,
        _STRING,
        "\t\tif obj.Kind() == reflect.Array {\n\t\t\ttorporDecode(obj, x)\n\t\t\treturn\n\t\t}\n"
        + _STRING,
    ),
    _Change(_ENCODE, "\tes.stats.start(te.ID)\n\tdefer es.stats.done()\n", ""),
    _Change(_DECODE, "\tds.stats.start(ods.typ)\n\tdefer ds.stats.done()\n", ""),
    _Change(_STATE, f"{_MAP})", f"{_MAP}, torporRoom(rootPtr))"),
    _Change(_PAGES, _ZERO_PAGE, f"\tholes := torporHoles{{fd: int(f.file.Fd())}}\n{_ZERO_PAGE}"),
    _Change(
        _PAGES,
        _LOOK,
        "\t\t\t\tif !wasCommitted && holes.has(off) {\n"
        "\t\t\t\t\talreadyUncommittedBytes += hostarch.PageSize\n"
        "\t\t\t\t\tpage := memmap.FileRange{off, off + hostarch.PageSize}\n"
        "\t\t\t\t\tmaseg = updateAddRange(maseg, page, false, false)\n"
        "\t\t\t\t\tcontinue\n"
        "\t\t\t\t}\n" + _LOOK,
    ),
    _Change("runsc/boot/loader.go", _POINTS, ""),
    _Change("pkg/sentry/seccheck/config.go", _TRACE, f"{_TRACE}\tInitialize()\n"),
    _Change(_METRICS, _SPIN, f"\tif torporHurried() {{\n\t\treturn\n\t}}\n{_SPIN}"),
    _Change(_METRICS, _UNPARK, f"{_UNPARK}\ttorporAwakened()\n"),
    _Change("pkg/sentry/time/calibrated_clock.go", _SAMPLER, "\t\tref: torporSampler(c),\n"),
    _Change(
        "pkg/sentry/time/sampler.go",
        _TWO,
        "\tif len(s.samples) < 2 || torporTooSoon(s.samples) {\n",
    ),
    _Change("pkg/cpuid/native_amd64.go", _NATIVE, "\t\tFunction: torporOnce{},\n"),
    _Change(_PROCESS, _IMPORT, f'{_IMPORT}\t"gvisor.dev/gvisor/pkg/torpor/umount"\n'),
    _Change(_PROCESS, _CHILD, f"{_CHILD}\tcmd.Env = []string{{umount.Env}}\n"),
    *(
        _Change(
            _PAGES_FILE,
            f"\treturn NewPagesFileFD{what}{_DEFAULT}",
            f"\treturn NewPagesFileFD{what}(fd, pagesFileFDDefaultMaxIOBytes, torporParallel())\n",
        )
        for what in ("Reader", "Writer")
    ),
)


def make_quick(copy: Path) -> None:
    """Change the source in ``copy``. All or nothing.

    Raises:
        SourceUnusable: it is not the source that this was written for.
        OSError: a file cannot be read or written; what is there is of no use any more.
    """
    changed: dict[Path, str] = {}
    for change in _CHANGES:
        path = copy / change.path
        if not path.is_file():
            raise SourceUnusable(f"there is no {change.path} in it")
        text = changed.get(path) or path.read_text()
        if text.count(change.before) != 1:
            raise SourceUnusable(f"{change.path} is not as it was: {change.before.strip()!r}")
        changed[path] = text.replace(change.before, change.after)
    for path, text in changed.items():
        path.write_text(text)
    ours = files("torpor.runsc") / "quick"
    for name, at in _ADDED.items():
        (copy / at).parent.mkdir(parents=True, exist_ok=True)
        (copy / at).write_bytes((ours / name).read_bytes())
