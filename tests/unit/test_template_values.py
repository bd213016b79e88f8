"""Values of templates in a configuration: what is taken, and what is said of all else."""

from __future__ import annotations

from typing import Any

import pytest
from torpor.errors import ConfigError
from torpor.template import GIB, MIB, Template
from torpor.template_values import template_of

NUMBERS = ["2", None, True, [], float("nan"), float("inf")]
WRONG: dict[str, tuple[list[Any], str]] = {
    "description": ([7, None, ["x"]], "a text"),
    "claim_code": ([7, None], "a text"),
    "workspace": ([7, None], "a text"),
    "network": ([7, True], "a text"),
    **dict.fromkeys(
        ("memory_bytes", "home_bytes", "tmp_bytes", "shm_bytes"),
        (["much", "2X", "", "-2G", "2GG", True, 2.5, None, [], float("nan")], "a size"),
    ),
    **dict.fromkeys(
        ("cpu_milli", "pids", "open_files", "pool_least", "pool_most"),
        ([*NUMBERS, 2.0], "a whole number"),
    ),
    **dict.fromkeys(
        (
            "start_timeout_s",
            "pool_keep_s",
            "freeze_after_s",
            "hibernate_after_s",
            "expire_after_s",
        ),
        (NUMBERS, "a number"),
    ),
    **dict.fromkeys(
        ("env_allow", "read_only", "warm_up", "env_at_start"),
        (["/data", 7, None, [7], [None], {"a": "b"}], "a list of texts"),
    ),
    "env": (["A=hush", ["hush"], {"A": 1}, {1: "hush"}, {"A": None}], "a dictionary of texts"),
    "count_background": ([0, 1, "no", None], "True or False"),
}


def test_every_field_is_here() -> None:
    assert set(WRONG) == {each for each in Template.__dataclass_fields__ if each != "name"}


@pytest.mark.parametrize("field", sorted(WRONG))
def test_a_value_of_the_wrong_kind(field: str) -> None:
    values, words = WRONG[field]
    for value in values:
        with pytest.raises(ConfigError) as caught:
            template_of("big", {field: value})
        said = caught.value.message
        assert said.startswith(f"template 'big': {field} ")
        assert f"is not {words}" in said
        assert "hush" not in said
        if field != "env":
            assert repr(value)[:80] in said
            assert type(value).__name__ in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, -1) for name in ("memory_bytes", "pids", "cpu_milli", "pool_most", "open_files")],
        *[(name, -1.0) for name in ("freeze_after_s", "hibernate_after_s", "expire_after_s")],
        ("start_timeout_s", 0),
        ("read_only", ["data"]),
        ("warm_up", ["a-b"]),
        ("workspace", "all"),
        ("network", "host"),
    ],
)
def test_a_value_that_cannot_be(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"template 'big': {field} "):
        template_of("big", {field: value})


@pytest.mark.parametrize(
    ("field", "near"),
    [("memory_byte", "memory_bytes"), ("hibernate_after", "hibernate_after_s"), ("Env", "env")],
)
def test_a_field_that_is_not_there(field: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"no field {field!r}; did you mean {near!r}") as caught:
        template_of("big", {field: 1})
    assert "memory_bytes" in caught.value.hint


def test_nothing_is_guessed_of_what_is_like_nothing() -> None:
    with pytest.raises(ConfigError) as caught:
        template_of("big", {"xyzzy": 1})
    assert caught.value.message == "template 'big' has no field 'xyzzy'"


@pytest.mark.parametrize("body", [7, None, "x", ["a"]])
def test_no_dictionary(body: object) -> None:
    with pytest.raises(ConfigError, match="template 'big' must be a dictionary, not "):
        template_of("big", body)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2G", 2 * GIB),
        ("512 MiB", 512 * MIB),
        ("1.5gb", 3 * GIB // 2),
        (2**31, 2 * GIB),
        (2e9, 2_000_000_000),
    ],
)
def test_sizes(value: object, expected: int) -> None:
    assert template_of("t", {"memory_bytes": value}).memory_bytes == expected


def test_all_the_right_kinds() -> None:
    found = template_of(
        "t",
        {
            "env": {"A": "b"},
            "env_allow": ["X"],
            "read_only": ("/data",),
            "freeze_after_s": 5,
            "count_background": False,
            "workspace": "ro",
            "pids": 64,
        },
    )
    assert found == Template(
        name="t",
        env={"A": "b"},
        env_allow=("X",),
        read_only=("/data",),
        freeze_after_s=5.0,
        count_background=False,
        workspace="ro",  # type: ignore[arg-type]
        pids=64,
    )
