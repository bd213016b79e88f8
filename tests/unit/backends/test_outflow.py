"""What sends a file to the disk while it grows ends with its context, whatever it finds."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from torpor.backends.local_outflow import Outflow

WITHIN_S = 5.0


def outflows() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "outflow"]


def opened(path: Path) -> int:
    """Give how many descriptors of this process are of ``path``."""
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of this loop
            found += os.readlink(fd) == str(path)
    return found


def eventually(condition: Callable[[], bool]) -> bool:
    ends_at = time.monotonic() + WITHIN_S
    while not condition() and time.monotonic() < ends_at:
        time.sleep(0.001)
    return condition()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path.resolve() / "pages.img"


@pytest.fixture(autouse=True)
def nothing_left(path: Path) -> Iterator[None]:
    yield
    assert eventually(lambda: not outflows())
    assert not opened(path)


def test_a_file_that_comes_later_and_grows(path: Path) -> None:
    piece = os.urandom(1 << 16)
    with Outflow(path):
        assert len(outflows()) == 1
        path.write_bytes(piece)
        assert eventually(lambda: opened(path) == 1)
        for _ in range(8):
            time.sleep(0.005)  # it looks every 4 ms
            with path.open("ab") as file:
                file.write(piece)
        assert opened(path) == 1
        assert len(outflows()) == 1
    assert eventually(lambda: not outflows())
    assert not opened(path)
    assert path.read_bytes() == piece * 9


def test_a_file_that_is_removed_meanwhile(path: Path) -> None:
    path.write_bytes(b"x")
    with Outflow(path):
        assert eventually(lambda: opened(path) == 1)
        path.unlink()
        assert len(outflows()) == 1
    assert eventually(lambda: not outflows())
    assert not opened(Path(f"{path} (deleted)"))


def test_a_file_that_never_comes(path: Path) -> None:
    with Outflow(path):
        assert len(outflows()) == 1
    assert eventually(lambda: not outflows())
    assert not path.exists()


def a_link(path: Path) -> None:
    path.with_name("other").write_bytes(b"x")
    path.symlink_to(path.with_name("other"))


@pytest.mark.parametrize("make", [a_link, os.mkfifo, Path.mkdir])
def test_what_is_no_plain_file_is_not_looked_at_again(
    path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    with Outflow(path):
        assert eventually(lambda: not outflows())
        assert not opened(path)
        assert not opened(path.with_name("other"))


def test_a_link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    with Outflow(path):
        assert len(outflows()) == 1
    assert eventually(lambda: not outflows())
    assert not path.with_name("other").exists()


def test_an_error_of_what_writes_is_passed_on(path: Path) -> None:
    with pytest.raises(ValueError, match="disk"), Outflow(path):
        raise ValueError("disk")
    assert eventually(lambda: not outflows())
