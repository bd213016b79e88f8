"""A torpord that can be made to end itself at a step: loaded by the configuration of a test's home.

Each step is a call that changes something others see: the registry, the bridge, a sandbox, the disk.
It counts once before and once after. The file ``die`` in the home holds how many more are to pass.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = """
import sys
if "torpor.daemon.app" in sys.modules and "torpor_tests_dying" not in sys.modules:
    from importlib.util import module_from_spec, spec_from_file_location
    spec = spec_from_file_location("torpor_tests_dying", {path!r})
    sys.modules["torpor_tests_dying"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.arm()
"""
ONLY_LOOKING = ("status", "ping")


def config() -> str:
    """Give what a home's configuration needs for this."""
    return CONFIG.format(path=str(Path(__file__)))


def arm() -> None:
    """Have every step of this process count."""
    from torpor.backends.local import LocalBackend
    from torpor.backends.local_saving import Saving
    from torpor.daemon.bridge_keeper import BridgeKeeper
    from torpor.daemon.registry import Registry
    from torpor.snapshot.remote.objects import Objects
    from torpor.snapshot.shelf import Shelf
    from torpor.snapshot.store import SnapshotStore

    step = Step(Path(os.environ["TORPOR_HOME"]))
    for cls, names in (
        (Registry, ("put_kernel", "put_sandbox", "drop_sandbox", "sync")),
        (BridgeKeeper, ("call", "rpc")),
        (LocalBackend, ("prepare_saved", "start", "resume", "thaw", "freeze", "destroy")),
        (Saving, ("save",)),
        (SnapshotStore, ("draft", "publish", "adopt", "answered", "drop")),
        (Shelf, ("place",)),
        (Objects, ("write", "remove_all")),
    ):
        for name in names:
            setattr(cls, name, step.around(name, getattr(cls, name)))


class Step:
    def __init__(self, home: Path) -> None:
        self._die, self._marks = home / "die", home / "marks"
        self._lock = threading.Lock()

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        async def later(*args: Any, **kwargs: Any) -> Any:
            words = f"{name} {args[1]}" if name == "call" else name
            words = f"{name} {args[2]}" if name == "rpc" else words
            if words.endswith(ONLY_LOOKING):
                return await call(*args, **kwargs)
            self._mark(f"before {words}")
            result = await call(*args, **kwargs)
            self._mark(f"after {words}")
            return result

        @functools.wraps(call)
        def now(*args: Any, **kwargs: Any) -> Any:
            self._mark(f"before {name}")
            result = call(*args, **kwargs)
            self._mark(f"after {name}")
            return result

        return later if inspect.iscoroutinefunction(call) else now

    def _mark(self, words: str) -> None:
        with self._lock:
            try:
                said = self._die.read_text()
            except FileNotFoundError:
                return
            if not said:  # a test is just writing it
                return
            left = int(said)
            with self._marks.open("a") as file:
                file.write(f"{words}\n")
            if left <= 0:
                self._die.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            beside = self._die.with_name("die.new")  # whoever looks sees a number, or no file
            beside.write_text(str(left - 1))
            beside.replace(self._die)


if __name__ == "__main__":
    sys.exit("it is loaded by a configuration")
