from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torpor.golden import seen
from torpor.golden.fingerprint import (
    Fingerprint,
    changed,
    parse_fingerprint,
    take,
    written_since,
)

LONG_AGO_NS = 1_700_000_000_000_000_000


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site-packages"
    (site / "numpy").mkdir(parents=True)
    (site / "numpy" / "__init__.py").write_text("one = 1\n")
    (site / "numpy" / "core.py").write_text("two = 2\n")
    (site / "six.py").write_text("six = 6\n")
    (site / "editable.pth").write_text("/somewhere\n")
    for path in (*site.rglob("*"), site):
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return site


def taken(site: Path) -> Fingerprint:
    files = [str(path) for path in site.rglob("*.py")]
    return take([*files, str(site / "sitecustomize.py")], [str(site), str(site / "missing")])


def in_place(path: Path) -> None:
    kept = path.stat()
    path.write_text("six = 7\n")
    os.utime(path, ns=(kept.st_mtime_ns, kept.st_mtime_ns + 1))


def longer(path: Path) -> None:
    path.write_text("six = 6  # more\n")
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def replaced(path: Path) -> None:
    new = path.with_name("new")
    new.write_text("six = 7\n")
    os.utime(new, ns=(LONG_AGO_NS, LONG_AGO_NS))
    new.rename(path)


def test_untouched(site: Path) -> None:
    assert changed(taken(site)) is None


@pytest.mark.parametrize("edit", [in_place, longer, replaced, Path.touch])
def test_a_file_that_changed(site: Path, edit: Callable[[Path], None]) -> None:
    fingerprint = taken(site)
    edit(site / "six.py")
    assert changed(fingerprint) == f"{site}/six.py has changed since"


@pytest.mark.parametrize("name", ["six.py", "numpy/core.py"])
def test_a_file_that_is_gone(site: Path, name: str) -> None:
    fingerprint = taken(site)
    (site / name).unlink()
    assert changed(fingerprint) == f"{site}/{name} is gone"


def test_a_whole_package_that_is_gone(site: Path) -> None:
    fingerprint = taken(site)
    shutil.rmtree(site / "numpy")
    assert changed(fingerprint) == f"{site}/numpy/__init__.py is gone"


def test_a_missing_file_that_appears(site: Path) -> None:
    fingerprint = taken(site)
    (site / "sitecustomize.py").touch()
    assert changed(fingerprint) == f"{site}/sitecustomize.py is new"


def test_a_link_that_points_elsewhere(site: Path) -> None:
    (site / "python3").symlink_to("six.py")
    fingerprint = take([str(site / "python3")], [])
    (site / "python3").unlink()
    (site / "python3").symlink_to("numpy/core.py")
    assert changed(fingerprint) == f"{site}/python3 has changed since"


def test_what_leaves_the_content_alone(site: Path) -> None:
    fingerprint = taken(site)
    (site / "six.py").chmod(0o600)
    os.link(site / "six.py", site.parent / "backup")
    assert changed(fingerprint) is None


@pytest.mark.parametrize("name", ["scipy", "scipy.py", "new.pth", ".hidden.pth", "a.so"])
@pytest.mark.parametrize("settled", [True, False])
def test_a_name_that_appears_in_a_folder(site: Path, name: str, settled: bool) -> None:
    if not settled:
        os.utime(site)
    fingerprint = taken(site)
    (site / name).touch()
    assert changed(fingerprint) == f"something was added to {site} or removed from it since"


@pytest.mark.parametrize("name", ["__pycache__", ".six.py.swp", "~umpy", ".nfs0001"])
def test_a_name_that_means_nothing(site: Path, name: str) -> None:
    fingerprint = taken(site)
    (site / name).mkdir()
    assert changed(fingerprint) is None


def test_a_name_that_went(site: Path) -> None:
    (site / "old.dist-info").mkdir()
    fingerprint = taken(site)
    (site / "old.dist-info").rmdir()
    assert changed(fingerprint) == f"something was added to {site} or removed from it since"


def test_a_pth_file_that_changed(site: Path) -> None:
    fingerprint = taken(site)
    (site / "editable.pth").write_text("/elsewhere\n")
    assert changed(fingerprint) == f"{site}/editable.pth has changed since"


def test_folders_that_come_and_go(site: Path) -> None:
    fingerprint = take([], [str(site), str(site / "missing")])
    (site / "missing").mkdir()
    os.utime(site, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert changed(fingerprint) == f"{site}/missing is new"
    site.rename(site.parent / "moved")
    assert changed(fingerprint) == f"{site} is gone"
    site.mkdir()
    assert changed(fingerprint) == f"{site} has been replaced since"


def test_a_folder_that_cannot_be_listed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = taken(site)

    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "no", path)

    os.utime(site)
    monkeypatch.setattr(os, "listdir", refuse)
    assert changed(fingerprint) == f"something was added to {site} or removed from it since"


def test_an_archive_among_the_folders(site: Path) -> None:
    archive = site / "packed.zip"
    archive.write_bytes(b"PK")
    fingerprint = take([], [str(archive)])
    assert changed(fingerprint) is None
    archive.write_bytes(b"PK, longer")
    assert changed(fingerprint) == f"{archive} has changed since"


def test_paths_that_cannot_be(site: Path) -> None:
    fingerprint = take(["/nul\0/x", "/nul\0", f"{site}/six.py/"], ["/nul\0"])
    assert changed(fingerprint) is None
    assert written_since(fingerprint, 2**63) is None


def test_each_once_and_sorted(site: Path) -> None:
    files = [str(path) for path in site.rglob("*.py")]
    assert take(files + files[::-1], [str(site)] * 2) == take(sorted(files), [str(site)])


def test_the_round_trip(site: Path) -> None:
    odd = os.fsdecode(bytes(site) + b"/\xff.py")
    Path(odd).touch()
    fingerprint = take([odd, *(str(path) for path in site.rglob("*"))], [str(site), "/missing"])
    raw = json.dumps(fingerprint.to_json())
    assert parse_fingerprint(json.loads(raw)) == fingerprint
    assert changed(parse_fingerprint(json.loads(raw))) is None


def test_its_json_is_compact(site: Path) -> None:
    deep = site / ("deep" * 20)
    deep.mkdir()
    files = [str(deep / f"module{number}.py") for number in range(500)]
    for file in files:
        Path(file).touch()
    assert len(json.dumps(take(files, []).to_json())) < 500 * 70


def test_written_since(site: Path) -> None:
    fingerprint = taken(site)
    ctime_ns = (site / "six.py").stat().st_ctime_ns
    words = written_since(fingerprint, ctime_ns)
    assert words is not None
    assert words.endswith("was written while the golden was being built")
    assert written_since(fingerprint, time.time_ns() + 10**9) is None


def test_a_clock_that_is_behind(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder from the future is never taken for settled.
    monkeypatch.setattr(seen.time, "time_ns", lambda: LONG_AGO_NS - 10**12)
    assert take([], [str(site)]).folders[0].mtime_ns == -1


@pytest.mark.parametrize("row", [[1, 2, 3, 4], ["a", "2", 3, 4], ["a", 2, True, 4], ["a", 2, 3]])
def test_a_damaged_row(row: list[object]) -> None:
    with pytest.raises(ValueError, match="damaged"):
        parse_fingerprint({"files": [["/", [row]]], "folders": []})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


@settings(deadline=None, max_examples=50)
@given(
    JSON
    | st.fixed_dictionaries(
        {
            "files": JSON | st.lists(st.tuples(st.text(), st.lists(st.tuples(*[JSON] * 4)))),
            "folders": JSON | st.lists(st.tuples(*[JSON] * 5)),
        }
    )
)
def test_nothing_but_value_errors(body: object) -> None:
    try:
        fingerprint = parse_fingerprint(body)
    except ValueError:
        return
    changed(fingerprint)
