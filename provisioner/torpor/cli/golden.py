"""``torpor golden list|build|rm``."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Collection, Sequence
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

from traitlets import Bool

from torpor.cli.command import FLAGS, Command
from torpor.cli.golden_build import BuildCommand
from torpor.cli.golden_text import goldens_text, with_clones
from torpor.cli.pool import KEY_CHARACTERS, OFF, SWITCH_ON, pool_client
from torpor.cli.reach import daemon_status
from torpor.errors import Busy, ConfigError
from torpor.paths import Paths

if TYPE_CHECKING:
    from torpor.client_pool import PoolClient

_PREFIX = re.compile(r"[0-9a-f]{4,128}")


class ListCommand(Command):
    name = "torpor golden list"
    description = """List the goldens, and why the last build of others failed.

    A golden is a kernel that was started, warmed up and saved, to start others from in a moment.
    Starts nothing: where no daemon runs its goldens are not known."""

    def run(self) -> int:
        document = asyncio.run(_goldens_now(self.paths))
        self.show(document, goldens_text(document))
        return 0


class RemoveCommand(Command):
    name = "torpor golden rm"
    description = """Remove goldens, with the clones that wait. Kernels that run are not touched.

    A golden is named by its key or the beginning of it, at least 4 characters. Where such kernels
    were started lately it is built anew in the background, as after any start that finds none."""
    examples = cleandoc("""
    torpor golden rm 3f2a
    torpor golden rm --all
    """)
    max_positionals = sys.maxsize
    flags: dict[str, Any] = {  # noqa: RUF012
        **FLAGS,
        "all": ({"RemoveCommand": {"everything": True}}, "Remove all goldens."),
    }

    everything = Bool(False, help="Remove all goldens; off: those that are named.").tag(config=True)

    def run(self) -> int:
        if bool(self.extra_args) == self.everything:
            return self.usage_error("name at least one golden, or give --all")
        removed = asyncio.run(self._remove())
        text = f"removed {_shown(removed)}" if removed else "there was no golden"
        self.show({"removed": removed}, text)
        return 0

    async def _remove(self) -> list[str]:
        client = pool_client(self.paths)
        if not (await client.pool())["enabled"]:
            raise ConfigError(OFF, hint=SWITCH_ON)
        before = await _builds(client)
        keys = sorted(before) if self.everything else chosen_keys(before, self.extra_args)
        for key in keys:
            await client.remove(key)
        after = await _builds(client)
        if stayed := [key for key in keys if before[key] & after.get(key, set())]:
            raise Busy(
                f"not removed: {_shown(stayed)}: a clone is being made of it right now",
                hint="try again in a moment",
            )
        return keys


class GoldenCommand(Command):
    name = "torpor golden"
    description = "List, build and remove goldens: saved kernels that others are started from."
    subcommands: dict[str, Any] = {  # noqa: RUF012
        "list": (ListCommand, "List the goldens."),
        "build": (BuildCommand, "Build the golden of a kernel now."),
        "rm": (RemoveCommand, "Remove goldens, with the clones that wait."),
    }


def chosen_keys(known: Collection[str], wanted: Sequence[str]) -> list[str]:
    """Give the keys that ``wanted`` names by their beginnings, each once.

    Raises:
        ConfigError: one is no beginning of a key, or of none or several of ``known``.
    """
    chosen: dict[str, None] = {}
    for each in wanted:
        prefix = each.lower()
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError(
                f"{each!r:.80} is not the beginning of a key",
                hint="give 4 or more characters of 0-9 and a-f",
            )
        found = sorted(key for key in known if key.startswith(prefix))
        if not found:
            raise ConfigError(f"there is no golden {each!r}", hint="see `torpor golden list`")
        if len(found) > 1:
            shown = ", ".join(key[: max(KEY_CHARACTERS, len(prefix) + 4)] for key in found)
            raise ConfigError(f"{each!r} is the beginning of several keys", hint=f"one of {shown}")
        chosen[found[0]] = None
    return list(chosen)


async def _builds(client: PoolClient) -> dict[str, set[str]]:
    """Give the builds of each key: one that was removed may have been built anew already."""
    builds: dict[str, set[str]] = {}
    for golden in (await client.goldens())["goldens"]:
        builds.setdefault(golden["key"], set()).add(golden["build"])
    return builds


def _shown(keys: Sequence[str]) -> str:
    return ", ".join(key[:KEY_CHARACTERS] for key in keys)


async def _goldens_now(paths: Paths) -> dict[str, Any]:
    if await daemon_status(paths) is None:
        return {"running": False, "enabled": None, "goldens": [], "failures": [], "building": []}
    client = pool_client(paths)
    pool, found = await client.pool(), await client.goldens()
    return {
        "running": True,
        "enabled": pool["enabled"],
        "goldens": with_clones(found["goldens"], pool["shapes"]),
        "failures": found["failures"],
        "building": pool["building"],
    }
