"""Launchers, the small Python programs that put runsc in its place: some of them have started already.

Starting Python takes 15 ms of a processor, and whoever waits for a kernel, or for one to be saved, waits
for that. So a few launchers wait to be told what to do, as idle as a process can be; they end by
themselves when this process does.
"""

from __future__ import annotations

import asyncio
import marshal
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

LAUNCHER = Path(__file__).parent / "launcher" / "__main__.py"
REST_S = 0.5
"""What has just been started has the processors for so long before others are made ready."""
LONGEST_REST_S = 2.0
"""Where something is started again and again, others are made ready after so long all the same."""


class Launchers:
    """Starts launchers; ``spare`` of them are ready, from half a second after the last was started on.

    ``label``: what those are called where processes are listed, after the word ``wait``.
    """

    def __init__(self, spare: int = 0, label: str = "") -> None:
        self._spare = spare
        self._label = label
        self._ready: deque[asyncio.subprocess.Process] = deque()
        self._refilling: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._closed = False

    async def start(self, arguments: Sequence[str]) -> asyncio.subprocess.Process:
        """Give a launcher that does what ``arguments`` say; its input and output are pipes.

        It is the caller's, to end and to wait for. Raises OSError: there is no process to be had.
        """
        self._asked_at = time.monotonic()
        self._refill()
        while self._ready:
            process = self._ready.popleft()
            if process.returncode is None and process.stdin is not None:
                wanted = marshal.dumps(list(arguments))
                process.stdin.write(len(wanted).to_bytes(4, "little") + wanted)
                return process
        return await _start(arguments)

    async def aclose(self) -> None:
        """End those that are ready, and wait until they are gone. Twice is fine."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.wait({self._refilling})
        while self._ready:
            process = self._ready.popleft()
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    def _refill(self) -> None:
        if self._spare and not self._closed and (not self._refilling or self._refilling.done()):
            self._refilling = asyncio.create_task(self._fill(), name="spare launchers")

    async def _fill(self) -> None:
        at_last = time.monotonic() + LONGEST_REST_S
        # Another start meanwhile moves the end.
        while (rest_s := min(self._asked_at + REST_S, at_last) - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(rest_s)
        with suppress(OSError):  # whoever wants one is told
            while len(self._ready) < self._spare:
                starting = asyncio.ensure_future(_start(["wait", self._label]))
                try:
                    self._ready.append(await asyncio.shield(starting))
                except asyncio.CancelledError:  # it is there, or will be in a moment
                    self._ready.append(await starting)
                    raise


async def _start(arguments: Sequence[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-E", str(LAUNCHER), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.defpath},
        cwd="/",
        start_new_session=True,
    )
