"""``torpor golden build``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from inspect import cleandoc
from typing import Any

from traitlets import Unicode

from torpor.cli.command import ALIASES, Command, progress
from torpor.cli.golden_request import chosen_kernel, golden_request, template_of_spec
from torpor.cli.golden_text import golden_text
from torpor.cli.kernelspec import all_specs
from torpor.cli.pool import pool_client
from torpor.config import load_settings, process_environment
from torpor.errors import ConfigError

_FIRST_TICK_S = 1.0
_TICK_S = 5.0


class BuildCommand(Command):
    name = "torpor golden build"
    description = """Build the golden of a kernel now, unless there is one, and let clones of it wait.

    Without an argument: of the sandboxed twin of python3, else of the first sandboxed kernel. It is
    the golden for starts from this shell: what the kernelspec says, the variables that the template
    lets through and the folder count. The daemon is started if it does not run."""
    examples = cleandoc("""
    torpor golden build
    torpor golden build python3-torpor --workspace ~/notebooks
    """)
    max_positionals = 1
    aliases: dict[str, Any] = {  # noqa: RUF012
        **ALIASES,
        "template": "BuildCommand.template",
        "workspace": "BuildCommand.workspace",
    }

    template = Unicode(
        "", help="The template to build from; empty: the one that the kernelspec names."
    ).tag(config=True)
    workspace = Unicode(
        "", help="The folder that the kernels will be started in; empty: the current one."
    ).tag(config=True)

    def run(self) -> int:
        request = self._request()
        golden, built, seconds = asyncio.run(self._build(request))
        document = {"golden": golden, "built": built, "seconds": seconds}
        self.show(document, golden_text(golden, built=built))
        return 0

    def _request(self) -> dict[str, Any]:
        specs, environ = all_specs(), process_environment()
        name = chosen_kernel(specs, self.extra_args[0] if self.extra_args else None, environ)
        wanted = self.template or template_of_spec(specs[name]["spec"])
        template = load_settings(self.paths).template(wanted)
        if template.pool_most <= 0:
            raise ConfigError(
                f"template {template.name!r} has no pool: its kernels are always started cold",
                hint="give it a pool_most of 1 or more",
            )
        return golden_request(
            name,
            specs[name],
            template=wanted,
            folder=_folder(self.workspace),
            environ=environ,
            allowed=template.env_allow,
            prefix=sys.prefix,
            python=sys.executable,
        )

    async def _build(self, request: dict[str, Any]) -> tuple[dict[str, Any], bool, float]:
        """Give the golden, whether it was not there before, and how long that took."""
        loop = asyncio.get_running_loop()
        before, asked_at = loop.time(), datetime.now(UTC)
        async with ticking(f"building the golden of {request['kernel_name']}", quiet=self.json):
            golden = await pool_client(self.paths).build(request)
        built = datetime.fromisoformat(golden["created_at"]) >= asked_at
        return golden, built, round(loop.time() - before, 3)


def _folder(chosen: str) -> str:
    """Give the folder as the provisioner would: absolute, links in it kept."""
    try:
        folder = os.path.abspath(os.path.expanduser(chosen or os.getcwd()))
    except FileNotFoundError as exc:
        raise ConfigError(
            "the current folder does not exist any more", hint="go elsewhere, or give --workspace"
        ) from exc
    if not os.path.isdir(folder):
        raise ConfigError(f"there is no folder {folder}", hint="--workspace takes a folder")
    return folder


@asynccontextmanager
async def ticking(what: str, *, quiet: bool) -> AsyncIterator[None]:
    """Say what takes so long while the context takes more than a second."""
    ticker = asyncio.create_task(_tick(what), name="progress") if not quiet else None
    try:
        yield
    finally:
        if ticker is not None:
            ticker.cancel()
            await asyncio.wait({ticker})


async def _tick(what: str) -> None:
    loop = asyncio.get_running_loop()
    started, next_s = loop.time(), _FIRST_TICK_S
    while True:
        await asyncio.sleep(started + next_s - loop.time())
        progress(f"{what}: {next_s:.0f} s")
        next_s = _TICK_S if next_s < _TICK_S else next_s + _TICK_S
