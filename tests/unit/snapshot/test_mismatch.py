from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torpor.snapshot.manifest import SnapshotManifest
from torpor.snapshot.mismatch import MachineFacts, mismatch
from torpor.snapshot.shape import template_digest, template_fields
from torpor.template import GIB, Template, WorkspaceMode

from tests.unit.snapshot.making import a_manifest

MANIFEST = a_manifest()
NO_FOLDER = a_manifest(workspace=None, workspace_mode=WorkspaceMode.NONE)
SAME = MachineFacts(
    owner_uid=MANIFEST.owner_uid,
    runsc_build=MANIFEST.runsc_build,
    cpu_features=frozenset(MANIFEST.cpu_features),
    template_digest=MANIFEST.template_digest,
    template_fields=MANIFEST.template_fields,
)


@pytest.mark.parametrize(
    ("manifest", "changes"),
    [
        (MANIFEST, {}),
        (MANIFEST, {"cpu_features": SAME.cpu_features | {"avx512f"}}),
        (NO_FOLDER, {}),
    ],
)
def test_it_can_be_restored(manifest: SnapshotManifest, changes: dict[str, Any]) -> None:
    assert mismatch(manifest, replace(SAME, **changes)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"owner_uid": MANIFEST.owner_uid + 1},
            f"it belongs to user {MANIFEST.owner_uid}: restore it as that user",
        ),
        (
            {"runsc_build": "release-2"},
            "it was made by runsc release-20260101.0 and this is release-2: "
            "install that build again",
        ),
        (
            {"cpu_features": frozenset({"avx2"})},
            "this processor lacks sse4_2: restore it on one that has them",
        ),
        ({"template_digest": None}, "there is no template default any more: configure it again"),
        (
            {"template_digest": "other"},
            "the template default has changed since: put it back as it was",
        ),
        (
            {"environment_change": "/usr/x.py is gone"},
            "its environment is another one, /usr/x.py is gone: install what was there before",
        ),
        (
            {"workspace_there": False},
            "its workspace /home/somebody/work is gone: put it back or mount it",
        ),
        (
            {"template_digest": None, "runsc_build": "r"},
            "it was made by runsc release-20260101.0 and this is r: install that build again; "
            "there is no template default any more: configure it again",
        ),
    ],
)
def test_it_cannot(changes: dict[str, Any], words: str) -> None:
    assert mismatch(MANIFEST, replace(SAME, **changes)) == words


def test_not_all_features_are_told() -> None:
    manifest = a_manifest(cpu_features=tuple("abcdefgh"))
    words = mismatch(manifest, SAME)
    assert words == "this processor lacks a, b, c, d, e and 3 more: restore it on one that has them"


def test_what_of_a_template_has_changed() -> None:
    before = Template(env={"A": "1", "B": "hush"}, memory_bytes=GIB)
    now = Template(env={"A": "1", "B": "2", "C": "3"}, memory_bytes=2 * GIB, pool_most=1)
    manifest = replace(
        MANIFEST, template_digest=template_digest(before), template_fields=template_fields(before)
    )
    assert "hush" not in repr(manifest.to_json())
    same = replace(
        SAME, template_digest=template_digest(before), template_fields=template_fields(before)
    )
    assert mismatch(manifest, same) is None
    other = replace(
        SAME, template_digest=template_digest(now), template_fields=template_fields(now)
    )
    assert mismatch(manifest, other) == (
        "the template default has changed since in env[B], env[C], memory_bytes: "
        "put it back as it was"
    )


@pytest.mark.parametrize("name", ["pool_most", "freeze_after_s", "description", "start_timeout_s"])
def test_what_is_not_in_a_sandbox_may_change(name: str) -> None:
    value = "x" if name == "description" else 7
    assert template_digest(Template(**{name: value})) == template_digest(Template())
