"""The whole decision table: every state of the world there is."""

from itertools import product

import pytest
from torpor.lifecycle import Seen, Status, Step, Target, next_step

WORLDS = [Seen(*flags) for flags in product((False, True), repeat=4)]


@pytest.mark.parametrize("seen", WORLDS)
@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("status", list(Status))
def test_what_is_unwanted_is_always_on_its_way_out(status, target, seen):
    step = next_step(status, target, seen)
    unwanted = target is Target.ABSENT or not seen.owner
    assert (step in (Step.CANCEL, Step.REMOVE)) == (
        unwanted or (status is Status.LAUNCHING and not seen.launching)
    )
    assert (step is Step.CANCEL) == (unwanted and seen.launching)


@pytest.mark.parametrize("seen", [world for world in WORLDS if world.launching and world.owner])
@pytest.mark.parametrize("status", list(Status))
def test_a_launch_on_its_way_is_left_alone(status, seen):
    assert next_step(status, Target.PRESENT, seen) is Step.NOTHING


@pytest.mark.parametrize(
    ("status", "sandbox", "endpoints", "expected"),
    [
        (Status.LIVE, True, True, Step.NOTHING),
        (Status.LIVE, True, False, Step.OPEN),
        (Status.LIVE, False, True, Step.LOSE),
        (Status.LIVE, False, False, Step.LOSE),
        (Status.LOST, False, True, Step.NOTHING),
        (Status.LOST, False, False, Step.NOTHING),
        (Status.LAUNCHING, True, True, Step.REMOVE),
    ],
)
def test_a_wanted_kernel_at_rest(status, sandbox, endpoints, expected):
    seen = Seen(launching=False, sandbox=sandbox, endpoints=endpoints, owner=True)
    assert next_step(status, Target.PRESENT, seen) is expected


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("seen", [world for world in WORLDS if not world.launching])
def test_taking_the_steps_comes_to_rest(status, target, seen):
    """Executing what is said, and seeing its effect, ends within three steps."""
    for _ in range(3):
        step = next_step(status, target, seen)
        if step in (Step.NOTHING, Step.REMOVE):
            return
        assert step in (Step.LOSE, Step.OPEN)
        if step is Step.LOSE:
            status = Status.LOST
        else:
            seen = Seen(seen.launching, seen.sandbox, True, seen.owner)
    raise AssertionError("does not come to rest")
