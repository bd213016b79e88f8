from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torpor.snapshot.manifest import SnapshotManifest
from torpor.snapshot.mismatch import MachineFacts, mismatch
from torpor.template import WorkspaceMode

from tests.unit.snapshot.making import a_manifest

MANIFEST = a_manifest()
NO_FOLDER = a_manifest(workspace=None, workspace_mode=WorkspaceMode.NONE)
SAME = MachineFacts(
    owner_uid=MANIFEST.owner_uid,
    runsc_build=MANIFEST.runsc_build,
    cpu_features=frozenset(MANIFEST.cpu_features),
    template_digest=MANIFEST.template_digest,
    plan_digest=MANIFEST.plan_digest,
    workspace_mode=MANIFEST.workspace_mode,
)


@pytest.mark.parametrize(
    ("manifest", "changes"),
    [
        (MANIFEST, {}),
        (MANIFEST, {"cpu_features": SAME.cpu_features | {"avx512f"}}),
        (NO_FOLDER, {}),
        (NO_FOLDER, {"workspace_mode": None}),
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
            {"workspace_mode": None},
            "its workspace /home/somebody/work is gone: put it back or mount it",
        ),
        (
            {"workspace_mode": None, "workspace_reason": "no folder"},
            "its workspace /home/somebody/work is gone (no folder): put it back or mount it",
        ),
        (
            {"workspace_mode": WorkspaceMode.READ_ONLY, "workspace_reason": "it is the system's"},
            "its workspace /home/somebody/work was shown as rw and would now be ro "
            "(it is the system's): put its place and rights back as they were",
        ),
        (
            {"plan_digest": "other"},
            "its sandbox would be made differently now: Torpor, a folder of the system or the "
            "start of the kernel has changed; put that back",
        ),
        # a plan that differs is no news where a reason is known
        (
            {"plan_digest": "other", "template_digest": None, "runsc_build": "r"},
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
