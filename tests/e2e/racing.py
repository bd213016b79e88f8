"""Have a kernel fall asleep while something else happens to it, at every step of the way."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from torpor.errors import Busy

from tests.e2e.cells import run, value
from tests.e2e.sleeping import do, snapshots, state, wait

STEPS = (0.0, 0.25, 0.5, 0.75, 1.05)
"""When, in parts of how long it takes to fall asleep."""


class Falling:
    """One hibernation under way; ``refused`` is why it was, once it is over."""

    def __init__(self, km: KernelManager) -> None:
        self.refused: Exception | None = None
        self._km = km
        self._thread = threading.Thread(target=self._fall)
        self._thread.start()

    def _fall(self) -> None:
        try:
            do(self._km, "hibernate")
        except Exception as exc:
            self.refused = exc

    def over(self, *unless: type[Exception]) -> bool:
        """Wait for its end; tell whether the kernel fell asleep. It may be refused as one of ``unless``."""
        self._thread.join(30)
        assert not self._thread.is_alive(), "the hibernation hangs"
        assert self.refused is None or isinstance(self.refused, unless), repr(self.refused)
        return self.refused is None


class Racing:
    """A kernel with a counter ``n``, and what it should be."""

    def __init__(
        self, home: Path, km: KernelManager, kc: BlockingKernelClient, takes_s: float = 0.3
    ) -> None:
        self.home, self.km, self.kc = home, km, kc
        self.takes_s = takes_s
        self.n = 0

    def fresh(self) -> None:
        """Start counting."""
        self.n = 0
        assert value(self.kc, "n = 0; n") == "0"

    def measure(self) -> None:
        """See how long it takes to fall asleep, once it has been done before."""
        for _ in range(2):
            began = time.monotonic()
            do(self.km, "hibernate")
            self.takes_s = time.monotonic() - began
            value(self.kc, "1")

    @contextmanager
    def falling(self, step: float, *unless: type[Exception]) -> Iterator[Falling]:
        """Begin to fall asleep; go on at ``step``, or a little after. Afterwards it is over."""
        falling = Falling(self.km)
        try:
            time.sleep(self.takes_s * (step + random.uniform(0, 0.25)))
            yield falling
        finally:
            falling.over(*(unless or (Busy,)))

    def count(self, after_s: float = 0.0) -> None:
        """Execute a cell that counts: it must run, once, whatever the kernel is doing."""
        self.n += 1
        ran = run(self.kc, f"import time; time.sleep({after_s}); n += 1; n", timeout_s=20)
        assert ran.result == str(self.n), f"{ran.reply} instead of {self.n}"

    def check(self) -> None:
        """The kernel answers with the right count, is awake then, and nothing is left over."""
        assert value(self.kc, "n", timeout_s=20) == str(self.n)
        wait(lambda: self._settled(state(self.km)), lambda: f"{state(self.km)} {self.there()}")

    def _settled(self, seen: dict[str, Any]) -> bool:
        return seen["status"] == "running" and len(self.there()) == 1 and len(snapshots()) <= 2

    def there(self) -> list[str]:
        """Give the sandboxes that have a folder."""
        return [each.name for each in (self.home / "state" / "k").iterdir()]
