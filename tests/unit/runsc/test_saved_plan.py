"""How a sandbox is saved and made again: as it was, but for what is its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torpor.runsc.plan import Machine
from torpor.runsc.saved_plan import (
    covered_places,
    needed_paths,
    own_places,
    restored_plan,
    save_argvs,
    without_secrets,
    written_paths,
)
from torpor.template import WorkspaceMode

from tests.unit.runsc.test_plan import _plan


@pytest.fixture(params=list(WorkspaceMode))
def plan(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = _plan(request.param)
    return found


def restored(plan: dict[str, Any]) -> dict[str, Any]:
    return restored_plan(
        without_secrets(plan), sandbox_id="s2", directory="/state/k/s2", image="/state/snap/image"
    )


def test_a_shape_holds_no_secret(plan: dict[str, Any]) -> None:
    assert "key" in json.dumps(plan)
    boots = [each for each in plan["tree"] if each["at"].endswith("/boot.json")]
    assert len(boots) == 1
    assert boots[0]["text"] not in json.dumps(without_secrets(plan))


def test_flags_are_those_it_was_started_with(plan: dict[str, Any]) -> None:
    argvs = save_argvs(plan["argv"], "g1", direct=False)
    end = argvs.save.index(";")
    pause, save = argvs.save[:end], argvs.save[end + 1 :]
    assert pause == argvs.pause
    flags = [each for each in plan["argv"] if each.startswith("--") and "bundle" not in each]
    for argv, word in ((pause, "pause"), (save, "checkpoint"), (argvs.resume, "resume")):
        assert argv[: len(flags) + 1] == [plan["argv"][0], *flags]
        assert argv[len(flags) + 1] == word
        assert argv[-1] == "s1"
    assert "--leave-running" in save
    assert "--image-path=/save/g1" in save
    again = restored(plan)
    assert again["argv"][: len(flags) + 1] == plan["argv"][: len(flags) + 1]
    assert again["argv"][len(flags) + 1] == "restore"


def test_directly_runsc_is_only_asked_what_it_alone_knows(plan: dict[str, Any]) -> None:
    through = save_argvs(plan["argv"], "g1", direct=False)
    directly = save_argvs(plan["argv"], "g1", direct=True)
    assert directly.save == ["@control", "save", "s1", "/save/g1"]
    assert directly.resume == ["@control", "resume", "s1", *through.resume]
    assert directly.pause == through.pause


def test_one_made_ahead_is_created_first_and_seen_the_same(plan: dict[str, Any]) -> None:
    """What is saved of it is the plan of an ordinary one."""
    ahead = restored_plan(
        without_secrets(plan),
        sandbox_id="s2",
        directory="/state/k/s2",
        image="/state/snap/image",
        ahead=True,
    )
    now = restored(plan)
    end = now["argv"].index("restore")
    assert ahead["first"] == [*now["argv"][:end], "create", *now["argv"][-2:]]
    assert ahead["argv"] == [*now["argv"][: end + 1], "--detach", *now["argv"][end + 1 :]]
    assert {**ahead, "argv": now["argv"]} == {**now, "first": ahead["first"]}
    later = restored_plan(ahead, sandbox_id="s3", directory="/state/k/s3", image="/i")
    assert "first" not in later


def test_it_sees_what_it_saw(plan: dict[str, Any]) -> None:
    def seen(tree: list[dict[str, Any]]) -> list[dict[str, Any]]:
        own = ("/log", "/save", "/image")
        return [each for each in tree if each["at"] not in own and "boot.json" not in each["at"]]

    assert seen(restored(plan)["tree"]) == seen(plan["tree"])


def test_nothing_of_the_old_folder_is_shown(plan: dict[str, Any]) -> None:
    again = restored(plan)
    assert "/state/k/s1" not in json.dumps(again)
    assert again["build_at"] == "/state/k/s2/root"
    [image] = [each for each in again["tree"] if each["at"] == "/image"]
    assert (image["from"], image["read_only"]) == ("/state/snap/image", True)


def test_twice_restored_is_as_once(plan: dict[str, Any]) -> None:
    once = restored(plan)
    twice = restored_plan(
        without_secrets(once), sandbox_id="s2", directory="/state/k/s2", image="/state/snap/image"
    )
    assert twice == once


def test_on_another_machine_torpors_own_files_are_where_they_are_there(
    plan: dict[str, Any],
) -> None:
    machine = Machine(runsc="/other/runsc", runsc_sidecars=None, cpus=1, memory_is_capped=True)
    guest = {"/opt/torpor/torpor_guest": "/other/guest", "/nowhere": "/other/nowhere"}
    moved = restored_plan(
        without_secrets(plan),
        sandbox_id="s2",
        directory="/state/k/s2",
        image="/image",
        ours=own_places(machine, guest),
    )
    before = {each["at"]: each["from"] for each in restored(plan)["tree"] if each["do"] == "bind"}
    after = {each["at"]: each["from"] for each in moved["tree"] if each["do"] == "bind"}
    before.pop("/image"), after.pop("/image")
    assert after.keys() == before.keys()
    changed = {at: after[at] for at in after if after[at] != before[at]}
    assert changed.pop("/runsc/runsc") == "/other/runsc"
    assert set(changed) <= {"/rootfs/opt/torpor/torpor_guest"}
    assert set(changed.values()) <= {"/other/guest"}


def test_what_a_machine_must_have(plan: dict[str, Any]) -> None:
    needed = needed_paths(plan)
    assert "/state/k/s1/log" in needed
    assert not [each for each in needed if each.startswith("/dev/")]
    optional = {each["from"] for each in plan["tree"] if each.get("optional")}
    assert optional
    assert not optional & set(needed)


def test_places_that_show_nothing_of_the_host(plan: dict[str, Any]) -> None:
    assert "/tmp" in covered_places(plan)
    config = next(each for each in plan["tree"] if each["at"] == "/bundle/config.json")
    mounts = json.loads(config["text"])["mounts"]
    bound = {each["destination"] for each in mounts if each["type"] != "tmpfs"}
    assert not covered_places(plan) & bound


@pytest.mark.parametrize("mode", list(WorkspaceMode))
def test_what_a_sandbox_can_write_to(mode: WorkspaceMode) -> None:
    plan = _plan(mode)
    expected = {"/work"} if mode is WorkspaceMode.READ_WRITE else set()
    assert written_paths(plan) == expected
    plan["tree"].append({"do": "bind", "from": "/root", "at": "/m/x", "read_only": False})
    assert written_paths(plan) == expected | {"/root"}


def test_one_made_ahead_may_be_restored_without_runsc(plan: dict[str, Any]) -> None:
    """What is saved of it says nothing of that, nor does one that is not made ahead."""
    ids = {"sandbox_id": "s2", "directory": "/state/k/s2", "image": "/state/snap/image"}
    through = restored_plan(plan, ahead=True, **ids)
    directly = restored_plan(plan, ahead=True, direct=True, **ids)
    assert directly == {**through, "restore": ["s2", "/image"]}
    assert restored_plan(directly, **ids) == restored_plan(plan, direct=True, **ids)
    assert "restore" not in restored_plan(directly, **ids)
