"""``torpor hibernate``, ``freeze``, ``wake``, ``pin`` and ``unpin``."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, ClassVar

from torpor.cli.command import Command, progress
from torpor.cli.reach import client_of, kernels_now
from torpor.errors import SandboxError, SandboxGone
from torpor.snapshot.outside import words

if TYPE_CHECKING:
    from torpor.client_sleep import SleepClient


class SleepCommand(Command):
    """One verb for one or more kernels; ``--all`` for those there are."""

    verb: ClassVar[str] = ""
    done: ClassVar[str] = ""
    max_positionals = 1000

    def run(self) -> int:
        if not self.extra_args:
            return self.usage_error("name at least one kernel (see `torpor kernels`)")
        return asyncio.run(self._run())

    async def act(self, client: SleepClient, kernel_id: str) -> dict[str, Any]:
        """Do it to one kernel; give its state."""
        return await client.do(kernel_id, self.verb)

    def more(self, state: dict[str, Any]) -> list[str]:
        """Give what else there is to tell of a kernel that it was done to. Pure."""
        return []

    async def _run(self) -> int:
        from torpor.client_sleep import SleepClient

        known = [str(each["kernel_id"]) for each in await kernels_now(self.paths)]
        client, failed, states = SleepClient(client_of(self.paths)), 0, []
        for wanted in self.extra_args:
            started = time.monotonic()
            try:
                kernel_id = chosen(wanted, known)
                state = await self.act(client, kernel_id)
            except SandboxError as exc:
                self.show_error(exc)
                failed = 1
                continue
            states.append(state)
            if not self.json:
                progress(f"{kernel_id} {self.done} ({time.monotonic() - started:.2f} s)")
                for line in self.more(state):
                    progress(f"  {line}")
        if self.json:
            self.show({"kernels": states}, "")
        return failed


class ShutdownCommand(SleepCommand):
    name = "torpor shutdown"
    description = """End kernels, asleep or awake, with all that belongs to them but named checkpoints.

    torpor shutdown KERNEL...    an id, or how it begins"""
    done = "is no more"

    async def act(self, client: SleepClient, kernel_id: str) -> dict[str, Any]:
        await client_of(self.paths).delete(kernel_id)
        return {"kernel_id": kernel_id, "status": "gone"}


def chosen(wanted: str, known: list[str]) -> str:
    """Give the kernel whose id is ``wanted`` or begins so. Raises SandboxGone."""
    found = [each for each in known if each == wanted] or [
        each for each in known if wanted and each.startswith(wanted)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise SandboxGone(f"there is no kernel {wanted!r}", hint="see: torpor kernels")
    raise SandboxGone(
        f"{wanted!r} is the beginning of {len(found)} kernels' ids", hint="write more"
    )


class HibernateCommand(SleepCommand):
    name = "torpor hibernate"
    description = """Save the whole memory of idle kernels to disk and end their processes.

    torpor hibernate KERNEL...    an id, or how it begins

    The next cell wakes a kernel: every variable, thread and file is as it was. One that runs a cell,
    waits for input or is stopped by a debugger is refused."""
    verb = "hibernate"
    done = "is hibernated"


class FreezeCommand(SleepCommand):
    name = "torpor freeze"
    description = """Stop the processes of idle kernels; their memory stays.

    torpor freeze KERNEL...    an id, or how it begins

    They use no processor. The next cell lets a kernel go on, within milliseconds."""
    verb = "freeze"
    done = "is frozen"


class WakeCommand(SleepCommand):
    name = "torpor wake"
    description = """Bring hibernated or frozen kernels back before anybody asks something of them.

    torpor wake KERNEL...    an id, or how it begins"""
    verb = "wake"
    done = "is awake"

    async def act(self, client: SleepClient, kernel_id: str) -> dict[str, Any]:
        from torpor.cli.transfers import with_progress

        return await with_progress(client, client.do(kernel_id, self.verb), shown=not self.json)

    def more(self, state: dict[str, Any]) -> list[str]:
        return [f"not as before: {each}" for each in words(state["sleep"].get("lost") or ())]


class PinCommand(SleepCommand):
    name = "torpor pin"
    description = """Keep kernels in their tier: one that is awake is not put to sleep by itself.

    torpor pin KERNEL...    an id, or how it begins"""
    verb = "pin"
    done = "stays as it is"


class UnpinCommand(SleepCommand):
    name = "torpor unpin"
    description = """Undo `torpor pin`: the idle policy of its template counts again.

    torpor unpin KERNEL...    an id, or how it begins"""
    verb = "unpin"
    done = "sleeps when it is idle"
