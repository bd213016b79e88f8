"""A hibernated kernel behind JupyterLab's own server: open tabs only look, and the next cell just works."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from torpor.client import Client
from torpor.client_sleep import SleepClient
from torpor.config import user_paths
from torpor.errors import Busy

from tests.e2e.sleeping import events, sandbox_pids, wait
from tests.e2e.tabs import open_tab, text_of
from tests.e2e.test_lab import (
    TOKEN,
    lab,  # noqa: F401 - a fixture
    request,
)
from tests.home import KERNEL

pytestmark = [pytest.mark.runsc, pytest.mark.timeout(180)]

DEBUG_INFO = {"type": "request", "seq": 1, "command": "debugInfo"}


async def status(kernel_id: str) -> str:
    return str((await Client(user_paths()).kernel(kernel_id))["status"])


async def wait_idle(base: str) -> None:
    """Return once the server says so of its only kernel: it hears that beside the tab that was just closed."""
    until = time.monotonic() + 10
    while True:
        [listed] = await asyncio.to_thread(request, base, "api/kernels")
        if listed["execution_state"] == "idle":
            return
        assert time.monotonic() < until, listed
        await asyncio.sleep(0.02)


async def hibernate(kernel_id: str) -> None:
    """Put it to sleep once it has answered everything: until it does, a server asks every 0.5 s who it is."""
    until = time.monotonic() + 10
    while True:
        try:
            told = await SleepClient(Client(user_paths())).do(kernel_id, "hibernate")
            break
        except Busy:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)
    assert told["status"] == "hibernated"


async def test_open_tabs_only_look(lab: str, torpor_env: Path) -> None:  # noqa: F811
    session = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": KERNEL}}
    kernel_id = request(lab, "api/sessions", "POST", session)["kernel"]["id"]
    async with open_tab(lab, kernel_id, TOKEN) as tab:
        await tab.execute("x = 1")
        await tab.ask("debug_request", DEBUG_INFO, "control")
        before = sandbox_pids(torpor_env)
        await hibernate(kernel_id)
        woken = len(events(torpor_env, "woken"))
        for _ in range(3):  # a browser that comes back again and again
            await wait_idle(lab)
            assert len(await asyncio.to_thread(request, lab, "api/sessions")) == 1
            async with open_tab(lab, kernel_id, TOKEN) as other:
                for kind in ("kernel_info_request", "comm_info_request"):
                    told = await other.ask(kind, {})
                    [reply] = [body for each, body in told if each.endswith("_reply")]
                    assert reply["status"] == "ok"
                told = await other.ask("debug_request", DEBUG_INFO, "control")
                assert any(body.get("command") == "debugInfo" for _, body in told)
    async with open_tab(lab, kernel_id, TOKEN) as tab:  # the last one was closed
        await tab.ask("kernel_info_request", {})
        await asyncio.sleep(1)
        assert await status(kernel_id) == "hibernated"
        assert len(events(torpor_env, "woken")) == woken
        assert set(sandbox_pids(torpor_env)) < set(before)
        assert text_of(await tab.execute("x += 1; x")) == "2"
        async with asyncio.timeout(10):  # the reply may come first
            while await status(kernel_id) != "running":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    await asyncio.to_thread(request, lab, f"api/kernels/{kernel_id}", "DELETE")


async def test_a_wake_that_fails_is_told_and_a_restart_is_fresh(
    lab: str,  # noqa: F811
    torpor_env: Path,
) -> None:
    kernel_id = request(lab, "api/kernels", "POST", {})["id"]
    async with open_tab(lab, kernel_id, TOKEN) as tab:
        await tab.execute("x = 1")
        await hibernate(kernel_id)
        [folder] = (torpor_env / "state/snapshots" / kernel_id).iterdir()
        wait((folder / "digests.json").exists, lambda: str(list(folder.iterdir())))
        pages = (folder / "image/pages.img").read_bytes()
        os.truncate(folder / "image/pages.img", 100)
        told = dict(await tab.execute("x"))
        for kind in ("error", "execute_reply"):
            assert "could not be woken" in told[kind]["evalue"]
            assert "restart the kernel to start fresh" in told[kind]["traceback"][-1]
        assert await status(kernel_id) == "hibernated"
        (folder / "image/pages.img").write_bytes(pages)  # somebody has found a copy
        assert text_of(await tab.execute("x")) == "1"
        await hibernate(kernel_id)
        [*_, folder] = sorted((torpor_env / "state/snapshots" / kernel_id).iterdir())
        os.truncate(folder / "image/pages.img", 100)
        await asyncio.to_thread(request, lab, f"api/kernels/{kernel_id}/restart", "POST", {})
        assert text_of(await tab.execute("'x' in globals()")) == "False"
    await asyncio.to_thread(request, lab, f"api/kernels/{kernel_id}", "DELETE")
