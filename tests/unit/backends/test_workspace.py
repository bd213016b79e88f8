"""How much of the user's folder a sandbox gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from torpor.backends.local_workspace import Granted, grant_workspace
from torpor.errors import ConfigError
from torpor.template import WorkspaceMode

RW, RO = WorkspaceMode.READ_WRITE, WorkspaceMode.READ_ONLY
OVERLAY, NONE = WorkspaceMode.OVERLAY, WorkspaceMode.NONE


def _grant(
    workspace: Path | None,
    wish: WorkspaceMode = RW,
    *,
    homes: tuple[str, ...] = (),
    prefixes: tuple[str, ...] = (),
    private: tuple[str, ...] = (),
) -> Granted:
    return grant_workspace(wish, workspace, homes=homes, prefixes=prefixes, private=private)


@pytest.mark.parametrize("wish", [RW, RO, OVERLAY])
def test_an_ordinary_folder_is_granted_as_wished(tmp_path: Path, wish: WorkspaceMode) -> None:
    granted = _grant(tmp_path, wish, homes=("/home/someone", "", "/"))
    assert (granted.mode, granted.reason) == (wish, "")
    assert granted.mount is not None
    assert granted.mount.path == str(tmp_path)


def test_none_is_none(tmp_path: Path) -> None:
    assert _grant(tmp_path, NONE) == Granted(None)
    assert _grant(None) == Granted(None)


@pytest.mark.parametrize("wish", [RW, RO, OVERLAY])
def test_homes_and_what_holds_them_are_never_shown(tmp_path: Path, wish: WorkspaceMode) -> None:
    home = tmp_path / "home/someone"
    home.mkdir(parents=True)
    for path in (home, home.parent, Path("/"), Path("/tmp"), Path("/home")):
        if path.exists():
            granted = _grant(path, wish, homes=(str(home),))
            assert granted.mode is NONE
            assert str(path) in granted.reason
    below = home / "project"
    below.mkdir()
    assert _grant(below, wish, homes=(str(home),)).mode is wish


def test_a_link_to_a_home_is_a_home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to("home")
    assert _grant(tmp_path / "link", homes=(str(tmp_path / "home"),)).mode is NONE


@pytest.mark.parametrize("path", ["/usr", "/usr/lib", "/etc"])
def test_system_folders_are_read_only(path: str) -> None:
    granted = _grant(Path(path))
    assert granted.mode is RO
    assert "system" in granted.reason


def test_an_environment_as_workspace_is_read_only(tmp_path: Path) -> None:
    inner = tmp_path / "venv/src"
    inner.mkdir(parents=True)
    granted = _grant(inner, prefixes=(str(tmp_path / "venv"),))
    assert granted.mode is RO
    assert "environment" in granted.reason


def test_torpors_own_folders_are_hidden_or_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    granted = _grant(tmp_path, private=(str(state), "/var/lib/other"))
    assert granted.mount is not None
    assert granted.mount.hidden == (str(state),)
    (state / "k").mkdir()
    assert _grant(state / "k", private=(str(state),)).mode is NONE


def test_missing_and_unfit_workspaces_are_config_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("missing", "file"):
        with pytest.raises(ConfigError, match=name):
            _grant(tmp_path / name)
