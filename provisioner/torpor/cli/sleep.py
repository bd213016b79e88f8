"""``torpor hibernate``, ``freeze``, ``wake``, ``pin``, ``unpin`` and ``shutdown``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from traitlets import Bool

from torpor.cli.command import FLAGS, Command, progress
from torpor.cli.ids import one_of
from torpor.cli.reach import client_of, kernels_now
from torpor.cli.transfers import with_progress
from torpor.errors import SandboxError, SandboxGone
from torpor.snapshot.outside import words

if TYPE_CHECKING:
    from torpor.client_sleep import SleepClient

_TIERS = {"awake": "is awake", "frozen": "is frozen", "asleep": "is hibernated"}


class SleepCommand(Command):
    """One verb for one or more kernels; ``--all`` for those there are."""

    verb: ClassVar[str] = ""
    doing: ClassVar[str] = ""
    max_positionals = 1000
    flags: dict[str, Any] = {  # noqa: RUF012
        **FLAGS,
        "all": ({"SleepCommand": {"everything": True}}, "All kernels, but those that have exited."),
    }

    everything = Bool(False, help="All kernels; off: those that are named.").tag(config=True)

    def run(self) -> int:
        if bool(self.extra_args) == self.everything:
            return self.usage_error(
                "name at least one kernel (see `torpor kernels`), or give --all"
            )
        return asyncio.run(self._run())

    async def act(self, client: SleepClient, kernel_id: str) -> dict[str, Any]:
        """Do it to one kernel; give its state."""
        work = client.do(kernel_id, self.verb)
        return await with_progress(client, work, self.doing, kernel_id, shown=self.shows_progress)

    def said(self, state: Mapping[str, Any]) -> str:
        """Give what is so of a kernel now that it was done. Pure."""
        return _TIERS[state["sleep"]["tier"]]

    def more(self, state: dict[str, Any]) -> list[str]:
        """Give what else there is to tell of a kernel that it was done to. Pure."""
        return []

    def chosen_of(self, kernels: list[dict[str, Any]]) -> list[str]:
        """Give what ``--all`` stands for. Pure."""
        return [str(each["kernel_id"]) for each in kernels if not _ended(each)]

    def is_sure(self, kernels: list[str]) -> bool:
        """Whether to go on. Raises ConfigError where there is nobody to ask."""
        return True

    async def finish(self, client: SleepClient, states: list[dict[str, Any]]) -> None:
        """Learn what else there is to tell of kernels that it was done to."""

    async def _run(self) -> int:
        from torpor.client_sleep import SleepClient

        client, kernels = SleepClient(client_of(self.paths)), await kernels_now(self.paths)
        known = {str(each["kernel_id"]): each for each in kernels}
        wanted = self.chosen_of(kernels) if self.everything else self.extra_args
        if not self.is_sure(wanted):
            progress("nothing was done")
            return 1
        states: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for each in wanted:
            started = time.monotonic()
            try:
                kernel_id = one_of(each, known)
                self.require(known[kernel_id])
                state = await self.act(client, kernel_id)
                self.require(state)
            except SandboxError as exc:
                errors.append({"kernel": each, **exc.to_json()})
                self.say_error(exc)
                continue
            states.append(state)
            if not self.json:
                progress(f"{kernel_id} {self.said(state)} ({time.monotonic() - started:.2f} s)")
                for line in self.more(state):
                    progress(f"  {line}")
        await self.finish(client, states)
        if self.json:
            self.show({"kernels": states, "errors": errors}, "")
        elif not wanted:
            print("no kernels")
        return int(bool(errors))

    def require(self, state: Mapping[str, Any]) -> None:
        """Raise SandboxGone for a kernel that it cannot be done to."""
        if _ended(state):
            raise SandboxGone(
                f"kernel {state['kernel_id']} {_end(state)}",
                hint=f"only its client can restart it; `torpor shutdown {state['kernel_id']}` "
                "clears it away",
            )


class HibernateCommand(SleepCommand):
    name = "torpor hibernate"
    description = """Save the whole memory of idle kernels to disk and end their processes.

    torpor hibernate KERNEL...    an id, or how it begins; --all: all of them

    The next cell wakes a kernel: every variable, thread and file is as it was. One that runs a cell,
    waits for input or is stopped by a debugger is refused."""
    verb = "hibernate"
    doing = "hibernating"


class FreezeCommand(SleepCommand):
    name = "torpor freeze"
    description = """Stop the processes of idle kernels; their memory stays.

    torpor freeze KERNEL...    an id, or how it begins; --all: all of them

    They use no processor. The next cell lets a kernel go on, within milliseconds. One that is
    hibernated already stays so: that is deeper."""
    verb = "freeze"
    doing = "freezing"

    def said(self, state: Mapping[str, Any]) -> str:
        if state["sleep"]["tier"] == "asleep":
            return "is hibernated already, which is deeper than frozen: nothing was done"
        return super().said(state)


class WakeCommand(SleepCommand):
    name = "torpor wake"
    description = """Bring hibernated or frozen kernels back before anybody asks something of them.

    torpor wake KERNEL...    an id, or how it begins; --all: all of them"""
    verb = "wake"
    doing = "waking"

    def more(self, state: dict[str, Any]) -> list[str]:
        return [f"not as before: {each}" for each in words(state["sleep"].get("lost") or ())]


class PinCommand(SleepCommand):
    name = "torpor pin"
    description = """Keep kernels in their tier: one that is awake is not put to sleep by itself.

    torpor pin KERNEL...    an id, or how it begins; --all: all of them"""
    verb = "pin"
    doing = "pinning"

    def said(self, state: Mapping[str, Any]) -> str:
        tier = state["sleep"]["tier"]
        if tier == "awake":
            return "is pinned: it is not put to sleep by itself"
        is_so = _TIERS[tier].removeprefix("is ")
        return f"is pinned: it stays {is_so} until somebody asks something of it"


class UnpinCommand(SleepCommand):
    name = "torpor unpin"
    description = """Undo `torpor pin`: the idle policy of its template counts again.

    torpor unpin KERNEL...    an id, or how it begins; --all: all of them"""
    verb = "unpin"
    doing = "unpinning"

    def said(self, state: Mapping[str, Any]) -> str:
        return "is not pinned: the idle policy of its template counts"


def _ended(state: Mapping[str, Any]) -> bool:
    return state.get("status") in ("exited", "gone")


def _end(state: Mapping[str, Any]) -> str:
    """Say how a kernel has ended. Pure."""
    reason = f": {state['reason']}" if state.get("reason") else ""
    if state["status"] == "gone":
        return f"has lost its sandbox{reason}"
    return f"has exited with code {state.get('exit_code')}{reason}"
