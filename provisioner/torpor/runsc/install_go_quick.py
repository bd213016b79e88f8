"""Changes to a copy of gVisor's source that take work out of its starts, saves and restores.

Two things, both measured (tests/bench/README.md): the sentry collects no garbage while it starts, saves
or restores, and it asks for the signals that it forwards a second after it has begun to run, not
before: each of thirty takes two switches between threads. In that second a signal does to it what it
does to any other program. What a sandbox may do, and what is in a checkpoint, stays the same.
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
}
_SAVE = "func (cm *containerManager) Checkpoint(o *control.SaveOpts, _ *struct{}) error {\n"
_RESTORE = "func (cm *containerManager) Restore(o *RestoreOpts, _ *struct{}) (retErr error) {\n"
_NOTIFY = "\t\tsignal.Notify(sigchan, unix.Signal(sig))\n"


@dataclass(frozen=True, slots=True)
class _Change:
    """What stands once in a file, and what is to stand there."""

    path: str
    before: str
    after: str


_CHANGES = (
    _Change("runsc/boot/controller.go", _SAVE, f"{_SAVE}\ttorporQuiet()\n"),
    _Change("runsc/boot/controller.go", _RESTORE, f"{_RESTORE}\ttorporQuiet()\n"),
    _Change(
        "pkg/sighandling/sighandling.go",
        _NOTIFY,
        "\t\ttorporLater(func() { signal.Notify(sigchan, unix.Signal(sig)) })\n",
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
        (copy / at).parent.mkdir(exist_ok=True)
        (copy / at).write_bytes((ours / name).read_bytes())
