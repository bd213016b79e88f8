"""Run a command as an ordinary user from a test that runs as root.

The user is a bare uid with no group, no capability and no name. What is below a folder that only root
may enter (a pyenv in /root, say) is shown to it in a mount namespace of the command's own: an empty
folder takes that folder's place, with only what the tests need bound into it. Nothing on the machine
changes. ::

    subprocess.run(as_user([sys.executable, "-m", "pytest", …], home=home), env=user_env(home))
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from torpor.runsc.launcher import syscalls

UID = 54320
REPOSITORY = Path(__file__).parents[2]


def as_user(argv: Sequence[str], *, home: Path, needs: Sequence[Path] = ()) -> list[str]:
    """Give the command line that runs ``argv`` as `UID`; ``home`` is made, and given to that uid.

    It can use this interpreter, this repository and the files and folders it ``needs`` besides.
    """
    home.mkdir(parents=True, exist_ok=True)
    os.chown(home, UID, UID)
    wanted = [Path(sys.prefix), Path(sys.base_prefix), REPOSITORY, home, *needs]
    shown = [str(each.resolve()) for each in wanted]
    return [sys.executable, __file__, *shown, "--", *argv]


def user_env(home: Path, **more: str) -> dict[str, str]:
    """Give the environment of a person with that home and nothing of root's."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    kept = {name: os.environ[name] for name in ("REQUIRE_RUNSC",) if name in os.environ}
    who = {"HOME": str(home), "USER": "someone", "LOGNAME": "someone", "LANG": "C.UTF-8"}
    return {"PATH": path, **who, **kept, **more}


def _show(wanted: Iterable[str]) -> None:
    """Make ``wanted`` reachable for everybody, in a mount namespace of this process's own."""
    syscalls.unshare(syscalls.CLONE_NEWNS, "mount namespace")
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    closed: dict[Path, list[Path]] = {}
    for path in sorted(map(Path, wanted)):
        barrier = _barrier(path)
        if barrier is not None:
            closed.setdefault(barrier, []).append(path)
    for barrier, paths in closed.items():
        trees = [
            (path, path.is_dir(), syscalls.open_tree(str(path), recursive=True)) for path in paths
        ]
        syscalls.mount("none", str(barrier), "tmpfs", 0, "mode=0755")
        for path, is_folder, tree in trees:
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_folder:
                path.mkdir(exist_ok=True)
            else:
                path.touch()
            syscalls.move_mount(tree, str(path))
            os.close(tree)


def _barrier(path: Path) -> Path | None:
    """Give the outermost folder on the way to ``path`` that others may not pass."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def main() -> None:
    split = sys.argv.index("--")
    _show(sys.argv[1:split])
    become = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
    become += ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    os.execvp("setpriv", [*become, *sys.argv[split + 1 :]])


if __name__ == "__main__":
    main()
