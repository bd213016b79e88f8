"""A client meets a torpord that ends by itself just then, because it had nothing to do."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from torpor import client as module
from torpor.client import Client, Interrupted, NotRunning
from torpor.paths import resolve_paths


class Ending(Client):
    """Each request finds what is next in ``outcomes``: an error, or a daemon that runs."""

    def __init__(self, folder: Path, *outcomes: type[Exception] | None) -> None:
        super().__init__(resolve_paths({"TORPOR_HOME": str(folder)}, uid=1, home=folder))
        self.outcomes = list(outcomes)

    async def _send(self, *_: Any, **__: Any) -> Any:
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome("it has ended")
        return {"pid": 7}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []

    async def ended(_paths: object) -> None:
        made.append("waited for its end")

    async def start(*_: object) -> None:
        made.append("started")

    @asynccontextmanager
    async def lock(_paths: object) -> Any:
        yield

    monkeypatch.setattr(module, "daemon_ended", ended)
    monkeypatch.setattr(module, "start_daemon", start)
    monkeypatch.setattr(module, "start_lock", lock)
    return made


async def test_to_stop_one_that_ends_by_itself_is_fine(tmp_path: Path, calls: list[str]) -> None:
    await Ending(tmp_path, Interrupted).shutdown()
    assert calls == ["waited for its end"]
    await Ending(tmp_path, NotRunning).shutdown()
    assert calls == ["waited for its end"]


@pytest.mark.parametrize("error", [NotRunning, Interrupted])
async def test_one_that_ended_before_it_was_asked_is_started_again(
    tmp_path: Path, calls: list[str], error: type[Exception]
) -> None:
    client = Ending(tmp_path, NotRunning, NotRunning, error, None)
    assert await client.ensure() == {"pid": 7}
    assert calls == ["started", "started"]


async def test_one_that_never_stays_is_an_error(tmp_path: Path, calls: list[str]) -> None:
    with pytest.raises(NotRunning):
        await Ending(tmp_path, *[NotRunning] * 10).ensure()
    assert calls == ["started", "started"]
