"""Room for one more kernel, what the machine has left, and what the pool remembers of a kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.backends.base import Lineage, SandboxSpec
from torpor.daemon.capacity import START_BYTES, check_room
from torpor.daemon.freshness import folders_of
from torpor.daemon.lineages import Lineages
from torpor.daemon.machine import available_bytes, processors_are_busy
from torpor.daemon.pool_shapes import Kind, limits_of, shape_name
from torpor.errors import AtCapacity
from torpor.golden.build import Golden
from torpor.golden.fingerprint import take
from torpor.lifecycle.pool_demand import ARRIVALS_KEPT, NO_POOL, PoolLimits
from torpor.template import GIB, MIB, Template

ROOM = {
    "available_bytes": 8 * GIB,
    "reserve_bytes": GIB,
    "starting": 0,
    "kernels": 3,
    "most_kernels": 0,
}


def room(**changes: int) -> None:
    check_room(**{**ROOM, **changes})


def test_there_is_room() -> None:
    room()
    room(most_kernels=4)
    room(available_bytes=START_BYTES, reserve_bytes=0)
    room(kernels=10_000)


@pytest.mark.parametrize("kernels", [4, 5])
def test_as_many_kernels_as_there_may_be(kernels: int) -> None:
    with pytest.raises(AtCapacity, match=rf"{kernels} kernels run.*most_kernels is 4") as caught:
        room(kernels=kernels, most_kernels=4)
    assert "most_kernels" in caught.value.hint


def test_too_little_memory() -> None:
    with pytest.raises(AtCapacity, match=r"100 MiB of memory are free.*1024 MiB stay") as caught:
        room(available_bytes=100 * MIB)
    assert "reserve_bytes" in caught.value.hint


def test_those_that_are_starting_have_theirs_still_to_take() -> None:
    free = GIB + 3 * START_BYTES
    room(available_bytes=free, starting=2)
    with pytest.raises(AtCapacity, match="3 other kernels are starting"):
        room(available_bytes=free, starting=3)
    with pytest.raises(AtCapacity):
        room(available_bytes=free - 1, starting=2)


@given(
    available=st.integers(0, 1 << 40),
    reserve=st.integers(0, 1 << 40),
    starting=st.integers(0, 1000),
    kernels=st.integers(0, 1000),
    most=st.integers(0, 1000),
)
def test_less_room_is_never_more(
    available: int, reserve: int, starting: int, kernels: int, most: int
) -> None:
    """What is refused stays refused with less memory, more reserve, more starting or more kernels."""

    def fits(**changes: int) -> bool:
        fields = {
            "available_bytes": available,
            "reserve_bytes": reserve,
            "starting": starting,
            "kernels": kernels,
            "most_kernels": most,
        }
        try:
            check_room(**{**fields, **changes})
        except AtCapacity:
            return False
        return True

    if not fits():
        assert not fits(available_bytes=available // 2)
        assert not fits(reserve_bytes=reserve + 1)
        assert not fits(starting=starting + 1)
        assert not fits(kernels=kernels + 1)


def proc(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


MEMINFO = "MemTotal: 24683520 kB\nMemFree: 1000 kB\nMemAvailable:   23456 kB\nBuffers: 1 kB\n"
CALM = "some avg10=12.50 avg60=99.00 avg300=99.00 total=1\nfull avg10=99.00 avg60=0 total=0\n"


def test_available_memory(tmp_path: Path) -> None:
    assert available_bytes(proc(tmp_path, meminfo=MEMINFO)) == 23456 * 1024


def test_a_machine_that_does_not_tell_has_none(tmp_path: Path) -> None:
    assert available_bytes(proc(tmp_path, meminfo="MemTotal: 5 kB\n")) == 0


def test_this_machine_has_some() -> None:
    assert available_bytes() > MIB
    assert processors_are_busy() in (True, False)


@pytest.mark.parametrize(
    ("pressure", "busy"),
    [
        (CALM, False),
        (CALM.replace("12.50", "50.00"), False),
        (CALM.replace("12.50", "50.01"), True),
        (CALM.replace("12.50", "100.00"), True),
    ],
)
def test_pressure_of_the_last_ten_seconds(tmp_path: Path, pressure: str, busy: bool) -> None:
    folder = proc(tmp_path, pressure__cpu=pressure, loadavg="99.0 99.0 99.0 1/1 1\n")
    assert processors_are_busy(folder) is busy


@pytest.mark.parametrize("pressure", [None, "", "some avg60=1.0\n", "some avg10=much total=0\n"])
@pytest.mark.parametrize(("load", "busy"), [("0.10", False), ("1000.0", True)])
def test_load_where_there_are_no_pressure_figures(
    tmp_path: Path, pressure: str | None, load: str, busy: bool
) -> None:
    proc(tmp_path, loadavg=f"{load} 0.00 0.00 1/100 4242\n")
    if pressure is not None:
        proc(tmp_path, pressure__cpu=pressure)
    assert processors_are_busy(tmp_path) is busy


def spec(**changes: Any) -> SandboxSpec:
    fields: dict[str, Any] = {
        "sandbox_id": "s",
        "template": Template(),
        "argv": ("python",),
        "env": {"A": "1"},
        "cwd": "/",
        "workspace": None,
        "key": "",
        "directory": Path("/k/s"),
        "kernel_name": "python3",
        "start_timeout_s": 60.0,
    }
    return SandboxSpec(**{**fields, **changes})


def lineage(**changes: Any) -> Lineage:
    fields: dict[str, Any] = {
        "key": "0123456789abcdef" * 4,
        "golden": spec(),
        "read_only": False,
        "workspace": "/w",
        "asked": "",
        "mode": "rw",
        "claim": {},
        "watched": (),
    }
    return Lineage(**{**fields, **changes})


def kind(**changes: Any) -> Kind:
    return Kind("python", lineage(), spec(), **changes)


def test_what_clones_differ_in_names_them_apart() -> None:
    names = [
        shape_name(lineage()),
        shape_name(lineage(workspace="/other")),
        shape_name(lineage(workspace=None, mode="none")),
        shape_name(lineage(mode="ro")),
        shape_name(lineage(asked="/link")),
        shape_name(lineage(key="f" * 64)),
    ]
    assert len(set(names)) == len(names)
    assert shape_name(lineage(claim={"env": {"A": "1"}})) == names[0], "a claim sets the rest"


def test_a_workspace_cannot_pass_for_another_and_its_link() -> None:
    """Whatever is in the names of folders."""
    assert shape_name(lineage(workspace="/w:/l")) != shape_name(
        lineage(workspace="/w", asked="/l:")
    )


def test_limits_come_from_the_template() -> None:
    template = Template(pool_least=1, pool_most=3, pool_keep_s=60.0)
    assert limits_of(template) == PoolLimits(1, 3, 60.0)
    assert kind().shape(Template()).limits == limits_of(Template())
    assert kind().shape(Template(pool_most=1)).limits == NO_POOL, "the template was edited"
    assert kind().shape(None).limits == NO_POOL


def test_the_newest_restore_weighs_most() -> None:
    found = kind()
    for _ in range(40):
        found.restored(2.0)
    assert found.restore_s == pytest.approx(2.0, rel=0.01)
    found.restored(0.2)
    assert 0.2 < found.restore_s < 2.0


def test_failures_count_until_a_restore_succeeds() -> None:
    found = kind()
    found.failed("no", 5.0)
    found.failed("still no", 7.0)
    assert (found.shape(Template()).failures, found.shape(Template()).failed_at) == (2, 7.0)
    assert found.to_json("r")["last_failure"] == "still no"
    found.restored(0.1)
    assert (found.failures, found.to_json("r")["last_failure"]) == (0, None)


def test_only_the_newest_arrivals_are_kept() -> None:
    found = kind()
    found.arrivals.extend(float(number) for number in range(1000))
    assert found.shape(Template()).arrivals == tuple(
        float(n) for n in range(1000 - ARRIVALS_KEPT, 1000)
    )


def test_a_clone_needs_what_its_golden_has_and_gvisor_besides() -> None:
    golden = Golden(None, Path("/g"), 100 * MIB, 0.0, 0)  # type: ignore[arg-type]
    assert kind(golden=golden).clone_bytes > 100 * MIB
    assert kind().clone_bytes > 64 * MIB


def test_what_people_see_has_nothing_secret() -> None:
    body = kind().to_json("1 wanted")
    assert body["reason"] == "1 wanted"
    assert (body["workspace"], body["kernel_name"], body["template"]) == (
        "/w",
        "python3",
        "default",
    )
    assert not {"env", "key", "claim"} & body.keys()


class Counting:
    """A backend that says which lineage it worked out, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def lineage(self, wanted: SandboxSpec) -> Lineage:
        self.asked += 1
        return lineage(workspace=None if wanted.workspace is None else str(wanted.workspace))


async def test_lineages_are_remembered_for_some_seconds(tmp_path: Path) -> None:
    now, backend = [0.0], Counting()
    lineages = Lineages(backend, lambda: now[0])  # type: ignore[arg-type]
    wanted = spec(workspace=tmp_path)
    await lineages.of(wanted)
    now[0] = 9.0
    await lineages.of(wanted)
    assert backend.asked == 1
    now[0] = 10.5
    await lineages.of(wanted)
    assert backend.asked == 2
    lineages.forget()
    await lineages.of(wanted)
    assert backend.asked == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"template": Template()},  # as after an edit of the configuration
        {"argv": ("python", "-v")},
        {"env": {"A": "2"}},
        {"cwd": "/tmp"},
        {"workspace": None},
        {"kernel_name": "other"},
    ],
)
async def test_another_request_has_a_lineage_of_its_own(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    backend, template = Counting(), Template()
    lineages = Lineages(backend, lambda: 0.0)  # type: ignore[arg-type]
    await lineages.of(spec(workspace=tmp_path, template=template))
    await lineages.of(spec(**{"workspace": tmp_path, "template": template, **changes}))
    assert backend.asked == 2


async def test_a_workspace_that_is_gone_is_noticed(tmp_path: Path) -> None:
    backend, folder = Counting(), tmp_path / "ws"
    folder.mkdir()
    lineages = Lineages(backend, lambda: 0.0)  # type: ignore[arg-type]
    await lineages.of(spec(workspace=folder))
    folder.rmdir()
    await lineages.of(spec(workspace=folder))
    assert backend.asked == 2


async def test_lineages_do_not_pile_up() -> None:
    backend = Counting()
    lineages = Lineages(backend, lambda: 0.0)  # type: ignore[arg-type]
    for number in range(1000):
        await lineages.of(spec(cwd=f"/{number}"))
    assert len(lineages._known) <= 64


def test_every_folder_of_an_environment_is_watched(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.py").touch()
    files = [str(tmp_path / "a/m.py"), str(tmp_path / "b/m.py")]
    folders = folders_of(take(files, [str(tmp_path / "b"), str(tmp_path / "c")]))
    assert folders == [str(tmp_path / name) for name in ("a", "b", "c")]
