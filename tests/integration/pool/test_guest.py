"""The guest of a clone: what it refuses, and what a kernel that answers strangely can do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from torpor.daemon.guest_line import GuestLine, GuestRefused
from torpor.errors import BackendUnavailable

from tests.integration.pool.making import (
    IPYKERNEL,
    LONG_S,
    Making,
    Running,
    claim,
    clone,
    make_image,
    reported,
    sandbox,
)

pytestmark = [
    pytest.mark.slow,  # minutes: `make slow`
    pytest.mark.runsc,
]


@asynccontextmanager
async def lined(running: Running) -> AsyncIterator[GuestLine]:
    async with running.line() as line:
        yield line


async def refusal(line: GuestLine, params: dict[str, Any]) -> str:
    """Give why the guest refused this claim; the guest itself must be as well as before."""
    with pytest.raises(GuestRefused) as caught:
        await line.call("claim", params, timeout_s=10)
    assert caught.value.reason == "claim"
    assert (await line.call("status", timeout_s=10))["generation"] == 1
    return str(caught.value)


async def execute(line: GuestLine, code: str) -> None:
    reply = await line.call("execute", {"code": code}, timeout_s=LONG_S)
    assert reply.get("status") == "ok", reply


async def test_a_clone_is_claimed_once(making: Making, image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ws"
    folder.mkdir()
    async with clone(making, image, "c", folder) as running:
        async with running.line() as line:
            await line.call("claim", claim(folder), timeout_s=LONG_S)
            for method, params in (
                ("claim", claim(folder, env={"REPORT": "second"})),
                ("execute", {"code": "1"}),
                ("request", {"msg_type": "kernel_info_request"}),
                ("seen", {}),
            ):
                with pytest.raises(GuestRefused, match="somebody's already"):
                    await line.call(method, params, timeout_s=LONG_S)
        assert (await reported(running))["env"] == "1"


async def test_what_a_claim_says_is_checked_first(making: Making, image: Path) -> None:
    async with clone(making, image, "c", None) as running, lined(running) as line:
        for start in (None, {}, {"argv": [], "env": {}, "cwd": "/"}, {"argv": ["x"], "env": 1}):
            with pytest.raises(GuestRefused) as caught:
                await line.call("claim", claim(None, start=start), timeout_s=LONG_S)
            assert caught.value.reason == "bad_request"
        await line.call("claim", claim(None), timeout_s=LONG_S)  # nothing was done before


@pytest.mark.parametrize(
    ("path", "keep"),
    [
        ("/etc/passwd", []),
        ("/usr/lib/not-there/deeper", []),
        ("/proc/1/cwd/x", []),
        ("/tmp/ws", ["/tmp/ws/not-there"]),
        (None, []),
        ("/tmp/ws", None),
    ],
)
async def test_a_workspace_that_cannot_be_shown(
    making: Making, image: Path, tmp_path: Path, path: Any, keep: Any
) -> None:
    folder = tmp_path / "ws"
    folder.mkdir()
    async with clone(making, image, "c", folder) as running, lined(running) as line:
        params = claim(folder, workspace={"path": path, "keep": keep})
        assert "workspace" in await refusal(line, params)
        with pytest.raises(GuestRefused, match="somebody's already"):
            await line.call("claim", claim(folder), timeout_s=LONG_S)


async def test_a_folder_that_is_not_there(making: Making, image: Path) -> None:
    async with clone(making, image, "c", None) as running, lined(running) as line:
        assert "FileNotFoundError" in await refusal(line, claim(None, cwd="/not/there"))


@pytest.mark.parametrize("env", [{"A": "nul\0"}, {"": "x"}, {"A=B": "x"}, {"A": 5}, ["A"]])
async def test_an_environment_that_cannot_be(making: Making, image: Path, env: Any) -> None:
    async with clone(making, image, "c", None) as running, lined(running) as line:
        assert "new identity" in await refusal(line, claim(None, env=env))


def answering(expression: str) -> str:
    """Give a cell after which the kernel's end of the line answers with these bytes instead."""
    return (
        "import os, kernel_claim\n"
        f"kernel_claim._Line.write = lambda self, content: [os.write(3, b) for b in {expression}]"
    )


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (answering(r"[b'garbage\n']"), "nobody asked for"),
        (answering(r"[b'\xff\xfe\xfd\n']"), "nobody asked for"),
        (answering(r"[b'5\n']"), "nobody asked for"),
        (answering(r"[b'[' * 200000 + b'\n']"), "nobody asked for"),
        (answering(r"[b'{}\n']"), "None"),
        (answering(r"[b'{\"ok\": 1}\n']"), "None"),
        (answering(r"[b'{\"ok\": false, \"error\": {\"a\": [1]}}\n']"), "{'a': [1]}"),
        (answering(r"[b'x' * (1 << 20)] * 17"), "said too much"),
        ("import socket; socket.socket(fileno=os.dup(3)).shutdown(2)", "closed its line"),
        ("import os; os.write(3, b'{}\\n')", "nobody asked for"),
    ],
    ids=[
        "garbage",
        "bytes",
        "scalar",
        "deep",
        "empty",
        "odd-ok",
        "error",
        "endless",
        "hung-up",
        "early",
    ],
)
async def test_a_kernel_that_answers_strangely(
    making: Making, image: Path, code: str, why: str
) -> None:
    async with clone(making, image, "c", None) as running, lined(running) as line:
        await execute(line, f"import os\n{code}")
        assert why in await refusal(line, claim(None))
        assert await running.backend.alive(running.handle)


async def test_a_kernel_that_answers_twice(making: Making, image: Path) -> None:
    """The first answer counts; the second tells nobody anything."""
    async with clone(making, image, "c", None) as running, lined(running) as line:
        await execute(line, answering("[content, content]"))
        await line.call("claim", claim(None), timeout_s=LONG_S)
        assert (await line.call("status", timeout_s=LONG_S))["state"] == "ready"


async def test_a_kernel_that_never_answers(making: Making, image: Path) -> None:
    async with clone(making, image, "c", None) as running, lined(running) as line:
        await execute(
            line, "import time, kernel_claim\nkernel_claim._answer = lambda _: time.sleep(99)"
        )
        with pytest.raises(BackendUnavailable, match="did not answer 'claim' in 1 s"):
            await line.call("claim", claim(None), timeout_s=1)
        assert (await line.call("status", timeout_s=LONG_S))["state"] == "ready"


async def test_a_large_environment_is_claimed(making: Making, image: Path) -> None:
    """Larger than any socket's buffer, with a kernel that reads."""
    env = {f"A{number}": "x" * 10_000 for number in range(100)} | {"REPORT": "big"}
    async with clone(making, image, "c", None) as running:
        async with running.line() as line:
            await line.call("claim", claim(None, env=env), timeout_s=LONG_S)
        assert (await reported(running))["env"] == "big"


async def test_a_dead_kernel_is_asked_nothing(making: Making, image: Path) -> None:
    async with clone(making, image, "c", None) as running, lined(running) as line:
        await line.call("signal", {"signum": 9}, timeout_s=LONG_S)
        await line.event("exited", timeout_s=LONG_S)
        for method, params in (("check", {}), ("claim", claim(None)), ("execute", {"code": "1"})):
            with pytest.raises(GuestRefused) as caught:
                await line.call(method, params, timeout_s=LONG_S)
            assert caught.value.reason == "no_kernel"


async def test_a_kernel_that_dies_over_a_cell_is_told_at_once(making: Making, image: Path) -> None:
    """As a warm-up that crashes the process would: nobody has to wait for a limit."""
    async with clone(making, image, "c", None) as running, lined(running) as line:
        cell = {"code": "import os; os._exit(3)", "timeout_s": 8.0}
        asked = asyncio.create_task(line.call("execute", cell, timeout_s=LONG_S))
        await line.event("exited", timeout_s=LONG_S)
        done, _ = await asyncio.wait({asked}, timeout=3)
        if not done:
            await asyncio.wait({asked})
        assert done, f"after the kernel's end the guest still waited: {asked.result()}"


async def test_a_kernel_that_dies_in_its_claim(making: Making, image: Path) -> None:
    code = "import os, kernel_claim\nkernel_claim._REQUESTS['claim'] = lambda _: os._exit(3)"
    async with clone(making, image, "c", None) as running, lined(running) as line:
        await execute(line, code)
        assert "line" in await refusal(line, claim(None))


async def test_only_one_request_at_a_time(making: Making, image: Path) -> None:
    async with clone(making, image, "c", None) as running, lined(running) as line:
        cell = {"code": "import time; time.sleep(1)"}
        first = asyncio.create_task(line.call("execute", cell, timeout_s=LONG_S))
        await asyncio.sleep(0)  # it is sent: the next one comes after it on the same line
        with pytest.raises(GuestRefused) as caught:
            await line.call("execute", {"code": "1"}, timeout_s=LONG_S)
        assert caught.value.reason == "busy"
        assert (await first)["status"] == "ok"


async def test_a_cell_has_a_limit(making: Making, image: Path) -> None:
    async with clone(making, image, "c", None) as running, lined(running) as line:
        cell = {"code": "import time; time.sleep(30)", "timeout_s": 0.2}
        assert await line.call("execute", cell, timeout_s=LONG_S) == {"status": "timeout"}


async def test_a_guest_that_is_no_golden_has_none_of_this(making: Making) -> None:
    """A kernel that was started cold: nobody can run code in it silently, or move its folders."""
    async with sandbox(making, making.spec("cold")) as running, running.line() as line:
        await line.event("ready", timeout_s=LONG_S)
        for method in ("execute", "request", "seen", "seal", "rehearse", "claim"):
            with pytest.raises(GuestRefused) as caught:
                await line.call(method, {"code": "1"}, timeout_s=LONG_S)
            assert caught.value.reason == "bad_request"


@pytest.mark.parametrize("code", [None, "1"], ids=["", "with-claim-code"])
async def test_after_a_claim_the_line_is_gone(making: Making, code: str | None) -> None:
    """User code must find no way to the guest, whatever the template says."""
    reporter = (
        "import os, sys, threading, time\n"
        "def look(out=os.dup(getattr(sys.stdout, '_original_stdstream_copy', None) or 1)):\n"
        "    while 'REPORT' not in os.environ: time.sleep(0.01)\n"
        "    time.sleep(0.3)\n"
        "    try: found = os.readlink('/proc/self/fd/3')\n"
        "    except OSError: found = 'closed'\n"
        "    os.write(out, ('@@\"' + found + '\"\\n').encode())\n"
        "threading.Thread(target=look, daemon=True).start()"
    )
    folder = making.image_folder()
    await make_image(making, folder, reporter)
    async with clone(making, folder, "c", None) as running:
        async with running.line() as line:
            await line.call("claim", claim(None, code=code), timeout_s=LONG_S)
        found: Any = await reported(running)
    assert not str(found).startswith("socket"), found


async def test_a_kernel_without_a_hook_needs_code(making: Making) -> None:
    """The kernel of another language, here ipykernel as it is installed: cells make it somebody's."""
    folder, env = making.image_folder(), {"TORPOR_PLAIN_IPYKERNEL": "1"}
    await make_image(making, folder, "1", argv=IPYKERNEL, env=env)
    async with clone(making, folder, "none", None, env=env) as running, lined(running) as line:
        assert "no claim hook" in await refusal(line, claim(None))
        told = await line.call("claim", claim(None, code="claimed = 1"), timeout_s=LONG_S)
        assert told == {"reseeded": []}
    async with clone(making, folder, "bad", None, env=env) as running, lined(running) as line:
        assert "division by zero" in await refusal(line, claim(None, code="1 / 0"))
