"""Chunks, their names and table; and the pace of a transfer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from torpor.golden.manifest import ImageFile
from torpor.snapshot.errors import TransferCancelled
from torpor.snapshot.remote.chunks import (
    Body,
    Chunk,
    body_bytes,
    check_table,
    chunk_name,
    pack,
    parse_body,
    parse_chunk_name,
    places,
    unpack,
)
from torpor.snapshot.remote.seal import Place
from torpor.snapshot.remote.transfer import Stop, in_threads

FILES = {"b": ImageFile(10, "0" * 64), "a": ImageFile(8, "0" * 64), "c": ImageFile(0, "0" * 64)}


def test_places() -> None:
    assert list(places(FILES, 4)) == [
        Place("a", 0, 0, 2, 4),
        Place("a", 0, 1, 2, 4),
        Place("b", 1, 0, 3, 4),
        Place("b", 1, 1, 3, 4),
        Place("b", 1, 2, 3, 2),
    ]


def test_names() -> None:
    chunk = Chunk("ab" * 16, 77)
    name = chunk_name(Place("b", 1, 2, 3, 4), chunk)
    assert parse_chunk_name(name) == (1, 2, chunk)
    for other in ("header", name + ".new", name[1:], "." + name, ""):
        assert parse_chunk_name(other) is None


@given(st.binary(min_size=1, max_size=500))
def test_packed(raw: bytes) -> None:
    assert unpack(pack(raw), len(raw)) == raw
    for packed, size_bytes in (
        (pack(raw), len(raw) + 1),
        (pack(raw)[:-1], len(raw)),
        (raw, len(raw)),
        (pack(bytes(1 << 20)), 10),
        (zstandard.ZstdCompressor(write_content_size=False).compress(raw), len(raw)),
    ):
        with pytest.raises(ValueError, match=r"another size|cannot be decompressed"):
            unpack(packed, size_bytes)


def test_a_table_there_and_back() -> None:
    table = {"a": [Chunk("ab" * 16, 1), None], "b": [None] * 3, "c": []}
    body = Body(b"{}", table, {"/usr/lib/libc.so": "a" * 64})
    assert parse_body(body_bytes(body)) == body
    assert parse_body(pack(b'{"manifest": "{}", "chunks": {}}')) == Body(b"{}", {})
    check_table(table, FILES, 4)
    for wrong in ({"a": table["a"]}, table | {"d": []}, table | {"c": [None]}, table | {"b": []}):
        with pytest.raises(ValueError, match="not those of its files"):
            check_table(wrong, FILES, 4)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"manifest": 1, "chunks": {}}',
        b'{"manifest": "", "chunks": []}',
        b'{"manifest": "", "chunks": {"a": 1}}',
        b'{"manifest": "", "chunks": {"a": [1]}}',
        b'{"manifest": "", "chunks": {"a": [["x", 1]]}}',
        b'{"manifest": "", "chunks": {"a": [["%s", -1]]}}' % (b"ab" * 16),
        b'{"manifest": "", "chunks": {"a": [["%s", true]]}}' % (b"ab" * 16),
    ],
)
def test_a_damaged_table(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_body(pack(text))
    with pytest.raises(ValueError, match="cannot be decompressed"):
        parse_body(text)


def test_few_at_once_and_in_order() -> None:
    taken = asked = 0
    most = 0

    def jobs() -> Iterator[Callable[[], int]]:
        nonlocal asked, most
        for n in range(50):
            asked += 1
            most = max(most, asked - taken)
            yield lambda n=n: n  # type: ignore[misc]

    found = []
    for each in in_threads(jobs(), 3, Stop()):
        taken += 1
        found.append(each)
    assert found == list(range(50))
    assert most <= 5


def test_the_first_failure_ends_the_others() -> None:
    stop = Stop()
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        while True:
            stop.check()

    def fail() -> None:
        waiting.wait(10)
        raise KeyError("it")

    with pytest.raises(KeyError, match="it"):
        list(in_threads([wait, fail, wait], 3, stop))
    with pytest.raises(TransferCancelled):
        stop.check()


def test_whoever_ends_early_ends_the_others() -> None:
    stop = Stop()

    def wait() -> None:
        while True:
            stop.check()

    results = in_threads([lambda: None, wait, wait], 2, stop)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not [each for each in threading.enumerate() if each.name.startswith("torpor-transfer")]


def test_a_failure_while_jobs_are_made() -> None:
    def jobs() -> Iterator[Callable[[], int]]:
        yield lambda: 1
        raise OSError("reading")

    with pytest.raises(OSError, match="reading"):
        list(in_threads(jobs(), 2, Stop()))
