from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.snapshot.remote.retention import DAY_S, RetentionPolicy, Stored, surplus

NOW_S = 1_000 * DAY_S


def row(kernel_id: str, generation: int, days: float, name: str = "") -> Stored:
    return Stored(
        kernel_id=kernel_id,
        generation=generation,
        name=name,
        parent=None,
        created_at="2026-01-02T03:04:05+00:00",
        created_s=NOW_S - days * DAY_S,
        template="default",
        kernel_name="python3",
        size_bytes=1,
        stored_bytes=1,
    )


ROWS = [
    row("a", 1, 30),
    row("a", 2, 20, "kept"),
    row("a", 3, 10),
    row("a", 11, 1),
    row("b", 1, 40),
    row("c", 5, 50, "kept"),
    row("c", 6, -5),
]


@pytest.mark.parametrize(
    ("policy", "protect", "gone"),
    [
        (RetentionPolicy(), (), []),
        (RetentionPolicy(keep=1), (), ["a3", "a1"]),
        (RetentionPolicy(keep=2), (), ["a1"]),
        (RetentionPolicy(keep=3), (), []),
        (RetentionPolicy(keep_days=10), (), ["a1", "b1"]),
        (RetentionPolicy(keep_days=9.9), (), ["a3", "a1", "b1"]),
        (RetentionPolicy(keep_days=0.5), (), ["a11", "a3", "a1", "b1"]),
        (RetentionPolicy(keep=2, keep_days=35), (), ["a1", "b1"]),
        (RetentionPolicy(keep=1, keep_days=35), (), ["a3", "a1", "b1"]),
        (RetentionPolicy(keep=1, keep_days=35), {("b", 1), ("a", 3)}, ["a1"]),
    ],
)
def test_table(policy: RetentionPolicy, protect: set[tuple[str, int]], gone: list[str]) -> None:
    found = surplus(reversed(ROWS), policy, now_s=NOW_S, protect=protect)
    assert [f"{each.kernel_id}{each.generation}" for each in found] == gone


@given(
    st.lists(
        st.builds(
            row,
            st.sampled_from("ab"),
            st.integers(1, 9),
            st.floats(-1, 50),
            st.sampled_from(["", "", "x"]),
        ),
        unique_by=lambda each: (each.kernel_id, each.generation),
    ),
    st.builds(RetentionPolicy, st.none() | st.integers(1, 4), st.none() | st.floats(0.1, 60)),
)
def test_rules(rows: list[Stored], policy: RetentionPolicy) -> None:
    gone = surplus(rows, policy, now_s=NOW_S)
    stay = [each for each in rows if each not in gone]
    assert not any(each.name for each in gone)
    for kernel_id in "ab":
        ours = [each for each in stay if each.kernel_id == kernel_id and not each.name]
        assert policy.keep is None or len(ours) <= policy.keep
    if policy.keep_days is not None:
        assert all(
            each.created_s >= NOW_S - policy.keep_days * DAY_S for each in stay if not each.name
        )
    assert surplus(stay, policy, now_s=NOW_S) == ()
