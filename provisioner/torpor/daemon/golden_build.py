"""Makes a golden: boot a kernel as nobody's, warm it, seal it, save it, publish the files."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torpor.backends.base import Image, Lineage
from torpor.daemon.guest_line import GuestLine
from torpor.daemon.logs import log
from torpor.daemon.parts import Parts
from torpor.daemon.unclaimed import Unclaimed
from torpor.errors import LaunchError, SandboxError
from torpor.golden import fingerprint
from torpor.golden.build import Golden
from torpor.golden.manifest import Manifest
from torpor.golden.store import GoldenStore

_STEP_S = 20.0
_WARM_UP_S = 60.0
_REPEATS = 2

# What a first cell, a first completion and a first look at an object pay otherwise.
_FIRST_CELLS = (
    "pass",
    "print(end='')",
    "from IPython.display import display as _torpor; del _torpor",
)
_FIRST_REQUESTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("complete_request", {"code": "import o", "cursor_pos": 8}),
    ("complete_request", {"code": "len", "cursor_pos": 3}),
    ("is_complete_request", {"code": "1"}),
    ("inspect_request", {"code": "len", "cursor_pos": 3, "detail_level": 0}),
    ("comm_info_request", {}),
)


class GoldenBuild:
    """Builds goldens into ``store``."""

    def __init__(self, parts: Parts, store: GoldenStore, unclaimed: Unclaimed) -> None:
        self._parts = parts
        self._store = store
        self._unclaimed = unclaimed

    async def build(self, lineage: Lineage) -> Golden:
        """Give a new, published golden. All or nothing, also when cancelled.

        Raises:
            SandboxError: it could not be made; the message says at which step.
            OSError: the disk is full, for example.
        """
        started = asyncio.get_running_loop().time()
        build = secrets.token_hex(8)
        draft: Path = await asyncio.to_thread(self._store.draft, build)
        try:
            manifest = await self._fill(lineage, build, draft)
            seconds = round(asyncio.get_running_loop().time() - started, 3)
            manifest = replace(manifest, build_seconds=seconds)
            golden = await asyncio.to_thread(self._store.publish, draft, manifest)
        except BaseException as exc:
            await asyncio.to_thread(self._store.discard, draft)
            if isinstance(exc, SandboxError | OSError) or not isinstance(exc, Exception):
                raise
            # The kernel may be anybody's program, and say anything.
            raise LaunchError(f"what the kernel says cannot be understood: {exc!r}") from exc
        log("golden built", key=lineage.key[:12], seconds=seconds, bytes=golden.size_bytes)
        return golden

    async def _fill(self, lineage: Lineage, build: str, draft: Path) -> Manifest:
        key, began_ns = secrets.token_hex(32), time.time_ns()
        image = Image(draft / "image", restore=False, read_only=lineage.read_only)
        spec = replace(lineage.golden, key=key, image=image)
        async with self._unclaimed.sandbox(spec) as (spec, handle):
            async with GuestLine(spec.directory) as line:
                ready = await line.event("ready", "failed", timeout_s=spec.start_timeout_s + 5)
                if ready.get("event") != "ready":
                    tail = f"\n{ready.get('stderr_tail') or ''}".rstrip()
                    raise LaunchError(f"the kernel did not start: {ready.get('message')}{tail}")
                missing = await self._warm_up(line, spec.template.warm_up)
                seen = await line.call("seen", timeout_s=_STEP_S)
                await line.call("seal", timeout_s=_STEP_S)
                await line.call("check", timeout_s=_STEP_S)
            # Before the memory is saved: what changes from here on makes the golden stale.
            environment = await asyncio.to_thread(_fingerprint, seen, lineage, began_ns)
            await self._parts.backend.checkpoint(spec, handle)
        info = dict(ready.get("kernel_info") or {})
        return Manifest(
            key=lineage.key,
            build=build,
            created_at=datetime.now(UTC).isoformat(),
            template=spec.template.name,
            kernel_name=spec.kernel_name,
            argv=spec.argv,
            python=str((info.get("language_info") or {}).get("version", "")),
            runsc_build=handle.runsc_build,
            cpu_features=lineage.processor,
            guest_key=key,
            kernel_info=info,
            iopub_welcome=bool(ready.get("iopub_welcome")),
            warm_up=spec.template.warm_up,
            warm_up_failed=missing,
            environment=environment,
            build_seconds=0.0,
        )

    async def _warm_up(self, line: GuestLine, modules: tuple[str, ...]) -> dict[str, str]:
        """Import ``modules`` and run the first of everything; give what is not there.

        Raises:
            LaunchError: one that should be there cannot be imported, or hangs.
        """
        missing = {}
        for each in modules:
            module = each.removesuffix("?")
            reply = await self._ask(
                line, "execute", {"code": f"import {module}\ndel {module.split('.')[0]}"}
            )
            if reply.get("status") == "ok":
                continue
            why = _reason(reply)
            if not (each.endswith("?") and reply.get("ename") == "ModuleNotFoundError"):
                raise LaunchError(
                    f"warm_up: import {module} failed: {why}", hint="mend the template's warm_up"
                )
            missing[module] = why
        for _ in range(_REPEATS):
            for code in _FIRST_CELLS:
                await self._ask(line, "execute", {"code": code})
            for msg_type, content in _FIRST_REQUESTS:
                await self._ask(line, "request", {"msg_type": msg_type, "content": content})
        return missing

    async def _ask(self, line: GuestLine, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        reply = await line.call(
            method, {**params, "timeout_s": _WARM_UP_S}, timeout_s=_WARM_UP_S + 5
        )
        if reply.get("status") == "timeout":
            raise LaunchError(
                f"warm_up: {json.dumps(dict(params))[:200]} took more than {_WARM_UP_S:g} s",
                hint="mend the template's warm_up",
            )
        return reply


def _reason(reply: Mapping[str, Any]) -> str:
    return f"{reply.get('ename')}: {reply.get('evalue')}"[:500]


def _fingerprint(
    seen: Mapping[str, Any], lineage: Lineage, began_ns: int
) -> fingerprint.Fingerprint:
    """Look at what the kernel has loaded, as far as the host has it under the same path.

    Raises:
        LaunchError: some of it was written meanwhile, so what was loaded is not known.
    """
    files = [path for path in seen.get("files", ()) if isinstance(path, str)]
    taken = fingerprint.take(files, lineage.watched)
    if why := fingerprint.written_since(taken, began_ns):
        raise LaunchError(why, hint="it is tried again by itself")
    return taken
