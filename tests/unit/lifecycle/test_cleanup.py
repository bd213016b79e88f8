import asyncio

import pytest
from torpor.lifecycle import run_to_end


async def _work(gate: asyncio.Event, done: list[str]) -> str:
    await gate.wait()
    done.append("done")
    return "result"


async def test_gives_the_result():
    gate = asyncio.Event()
    gate.set()
    assert await run_to_end(_work(gate, []), within_s=1, name="work") == "result"


async def test_an_error_is_delivered():
    async def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_to_end(fail(), within_s=1, name="work")


async def test_cancelled_twice_still_finishes_and_then_is_cancelled():
    gate, done = asyncio.Event(), []
    task = asyncio.create_task(run_to_end(_work(gate, done), within_s=5, name="work"))
    for _ in range(2):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["done"]


async def test_a_failure_is_chained_to_the_cancel():
    gate = asyncio.Event()

    async def fail():
        await gate.wait()
        raise ValueError("the reason")

    task = asyncio.create_task(run_to_end(fail(), within_s=5, name="work"))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    gate.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert str(caught.value.__cause__) == "the reason"


async def test_what_takes_too_long_is_cut_off():
    with pytest.raises(TimeoutError):
        await run_to_end(asyncio.sleep(60), within_s=0.01, name="work")


async def test_cut_off_while_cancelled_is_a_cancel():
    task = asyncio.create_task(run_to_end(asyncio.sleep(60), within_s=0.05, name="work"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
