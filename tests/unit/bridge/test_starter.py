"""When the bridge starts torpord, how often, and that it holds nothing afterwards."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torpor.bridge.protocol import RequestError
from torpor.bridge.reactor import Reactor
from torpor.bridge.starter import ATTEMPTS, Starter, parse_starter

from tests.unit.processes import children

SAYS = "import os, sys; open({log!r}, 'a').write('x'); os.write(int(sys.argv[-1]), {said!r})"


class World:
    """A bridge without kernels: whether somebody waits, and whether a daemon is there, is set."""

    def __init__(self, tmp_path: Path) -> None:
        self.others = children()
        self.reactor = Reactor()
        self.attached = False
        self.wanted = True
        self.given_up: list[str] = []
        self.log = tmp_path / "log"
        self.lock = tmp_path / "lock"
        self.starter = Starter(
            self.reactor,
            attached=lambda: self.attached,
            wanted=lambda: self.wanted,
            given_up=self._give_up,
            wait_s=0.002,
        )

    def crashed(self, exc: Exception) -> None:
        raise exc

    def _give_up(self, reason: str) -> None:
        self.given_up.append(reason)
        self.wanted = False
        self.reactor.stop()

    def command(self, said: bytes = b'{"ready": true}', **changes: Any) -> dict[str, Any]:
        code = SAYS.format(log=str(self.log), said=said)
        argv = [sys.executable, "-S", "-c", code]
        return {"argv": argv, "env": {"PATH": os.environ["PATH"]}, "lock": str(self.lock)} | changes

    def run(self, for_s: float) -> None:
        self.reactor.later(for_s, self, self.reactor.stop)
        self.reactor.run()

    def until(self, reached: Callable[[], bool], within_s: float = 10) -> None:
        """Run until ``reached``: a child takes as long to start as the machine is busy."""
        ends_at = time.monotonic() + within_s
        while not reached():
            assert time.monotonic() < ends_at
            self.run(0.02)

    def alone(self) -> bool:
        """Whether every child has ended and was waited for."""
        return children() <= self.others

    @property
    def starts(self) -> int:
        return len(self.log.read_text()) if self.log.exists() else 0


@pytest.fixture
def world(tmp_path: Path):
    before = len(os.listdir("/proc/self/fd"))
    made = World(tmp_path)
    yield made
    made.starter.close()
    made.until(made.alone)
    made.reactor.close()
    assert len(os.listdir("/proc/self/fd")) == before


def learn(world: World, command: dict[str, Any] | None) -> None:
    world.starter.learn(parse_starter({"starter": command}))


def test_it_is_started_when_somebody_waits(world: World) -> None:
    world.wanted = False
    learn(world, world.command())
    world.run(0.05)
    assert world.starts == 0
    world.wanted = True
    world.starter.consider()
    world.starter.consider()
    world.until(lambda: world.starts >= 1)
    assert world.given_up == []


def test_not_while_there_is_one_and_not_after_it_took_its_word_back(world: World) -> None:
    world.attached = True
    learn(world, world.command())
    world.run(0.05)
    learn(world, None)
    world.attached = False
    world.starter.consider()
    world.run(0.05)
    assert world.starts == 0


def test_one_that_comes_by_itself_is_waited_for(world: World) -> None:
    learn(world, world.command())
    world.attached = True
    world.starter.consider()
    world.run(0.05)
    assert world.starts == 0


def test_one_that_did_what_it_was_wanted_for_is_no_failure(world: World) -> None:
    """However often it dies later: who waits then is not kept waiting for what was before."""
    learn(world, world.command())
    for _ in range(ATTEMPTS + 2):
        world.wanted, before = True, world.starts
        world.starter.consider()
        world.until(lambda before=before: world.starts > before)
        world.attached = True
        world.starter.consider()
        world.wanted = False
        world.starter.consider()
        world.attached = False
        world.starter.consider()
        world.until(world.alone)
    assert world.given_up == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"said": b'{"error": {"code": "unavailable", "message": "too early"}}'}, "too early"),
        ({"said": b"{"}, "ended before it was ready"),
        ({"argv": ["/nonexistent"]}, "/nonexistent cannot be run"),
        ({"lock": "/nonexistent/lock"}, "cannot be run"),
    ],
)
def test_it_is_tried_a_few_times(world: World, changes: dict[str, Any], said: str) -> None:
    learn(world, world.command(**changes))
    world.run(10)
    [reason] = world.given_up
    assert said in reason
    assert world.starts in (0, ATTEMPTS)


WRONG = b'{"error": {"code": "config", "message": "no such trait"}}'


def test_a_wrong_configuration_is_told_at_once(world: World) -> None:
    """As is whoever asks later: by then somebody may have corrected it."""
    for count in (1, 2):
        learn(world, world.command(said=WRONG))
        began = time.monotonic()
        world.run(10)
        assert time.monotonic() - began < 5
        assert world.starts == count
        assert "no such trait" in world.given_up[-1]
        world.wanted = True
    assert len(world.given_up) == 2


def test_nobody_is_told_of_a_wrong_configuration_later(world: World) -> None:
    learn(world, world.command(said=WRONG))
    world.run(10)
    world.wanted = True
    learn(world, world.command())
    world.until(lambda: world.starts >= 2)
    assert len(world.given_up) == 1


def test_somebody_else_starts_it(world: World) -> None:
    with world.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        learn(world, world.command())
        world.run(0.05)
        assert world.starts == 0


@pytest.mark.parametrize(
    "changes",
    [{"argv": []}, {"argv": [1]}, {"argv": "x"}, {"env": {"A": 1}}, {"env": []}, {"lock": "here"}],
)
def test_what_is_no_command(world: World, changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        parse_starter({"starter": world.command(**changes)})
    with pytest.raises(RequestError):
        parse_starter({"starter": []})
