import os
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from torpor.api import CHANNELS, Endpoints
from torpor.daemon.processes import Process
from torpor.daemon.records import KernelRow, SandboxRow
from torpor.daemon.registry import Registry
from torpor.errors import BackendUnavailable, ConfigError
from torpor.lifecycle import Status, Target

ROW = KernelRow(
    kernel_id="k1",
    kernel_name="python3",
    template="default",
    status=Status.LIVE,
    target=Target.PRESENT,
    client=Endpoints("tcp", "127.0.0.1", dict.fromkeys(CHANNELS, 5), "client-secret"),
    created_at="2026-11-22T10:00:00+00:00",
    guest_key="guest-secret",
    owner=Process(1, 2, "boot"),
    sandbox_id="s1",
)
SANDBOX = SandboxRow("s1", "k1", Path("/x/s1"), {"pid": 3, "version": 1})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "registry.sqlite"


def test_everything_comes_back(path):
    registry = Registry(path)
    registry.put_kernel(ROW)
    registry.put_sandbox(SANDBOX)
    registry.put_sandbox(replace(SANDBOX, sandbox_id="s2", handle=None))
    registry.drop_sandbox("s3")
    registry.close()
    registry.close()
    again = Registry(path)
    assert again.kernels == {"k1": ROW}
    assert [row.sandbox_id for row in again.sandboxes_of("k1")] == ["s1", "s2"]
    assert again.sandboxes["s1"] == SANDBOX
    again.drop_kernel("k1")
    again.close()


def test_it_holds_secrets_and_is_private(path):
    Registry(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret" not in repr(ROW)


def test_a_write_is_there_for_a_successor_at_once(path):
    registry = Registry(path)
    registry.put_kernel(ROW)
    other = sqlite3.connect(path)  # as after kill -9: nothing was closed
    assert other.execute("SELECT count(*) FROM kernels").fetchone() == (1,)
    other.close()
    registry.close()


@pytest.mark.parametrize(
    "damage", [b"not a database at all, really not" * 40, b"SQLite format 3\0"]
)
def test_a_damaged_file_says_what_to_do(path, damage):
    path.write_bytes(damage)
    with pytest.raises(ConfigError, match="damaged") as caught:
        Registry(path)
    assert "move" in caught.value.hint
    assert path.read_bytes().startswith(damage[:15])  # nothing is thrown away


def test_damaged_rows_are_noticed(path):
    Registry(path).close()
    db = sqlite3.connect(path)
    db.execute("INSERT INTO kernels VALUES ('k', '{}')")
    db.commit()
    db.close()
    with pytest.raises(ConfigError, match="damaged"):
        Registry(path)


def test_another_version_is_refused(path):
    Registry(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(ConfigError, match="version 99"):
        Registry(path)


def test_somebody_elses_database_is_refused(path):
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(ConfigError, match="version 0"):
        Registry(path)


def test_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="cannot open"):
        Registry(tmp_path / "missing" / "r.sqlite")


def test_a_link_is_not_followed(tmp_path, path):
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(ConfigError):
        Registry(path)


def test_a_full_disk_is_an_error_and_changes_nothing(path):
    registry = Registry(path)
    pages = registry._db.execute("PRAGMA page_count").fetchone()[0]
    registry._db.execute(f"PRAGMA max_page_count={pages}").close()
    with pytest.raises(BackendUnavailable, match="full"):
        registry.put_kernel(replace(ROW, reason="x" * 100_000))
    assert registry.kernels == {}
    registry.close()


def test_synced_with_and_without_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    registry = Registry(tmp_path / "registry.sqlite")
    registry.put_kernel(replace(ROW, status=Status.ASLEEP))
    registry.sync()
    assert synced == [str(tmp_path / "registry.sqlite-wal")]
    registry.close()  # which writes the log back
    registry.sync()
    assert len(synced) == 1
