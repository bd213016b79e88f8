"""File systems with one connection, and what of a store's URL, options and errors people may see."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from fsspec import AbstractFileSystem
from torpor.snapshot.errors import StoreUnavailable
from torpor.snapshot.remote.calls import Calls, Left, Patience
from torpor.snapshot.remote.lines import Lines
from torpor.snapshot.remote.shown import hidden_of, shown_url
from torpor.snapshot.remote.transfer import Stop


class OneConnection(AbstractFileSystem):
    cachable = False


def test_one_for_each_call_at_a_time() -> None:
    lines = Lines(OneConnection)
    assert (lines.is_shared, lines.is_folder) == (False, False)
    with lines.lend() as one, lines.lend() as two:
        assert one is not two
    with lines.lend() as again:
        assert again in (one, two)


def test_none_after_a_call_that_failed() -> None:
    lines = Lines(OneConnection)
    with pytest.raises(OSError, match="half-way"), lines.lend() as broken:
        raise OSError("half-way")
    with lines.lend() as next_one:
        assert next_one is not broken


def test_one_for_all() -> None:
    class Asynchronous(AbstractFileSystem):
        cachable = False
        async_impl = True

    lines = Lines(Asynchronous)
    with lines.lend() as one, lines.lend() as two:
        assert one is two


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("ftp://me:hush@host/x", "ftp://***@host/x"),
        ("ftp://me:h@sh@host/x", "ftp://***@host/x"),
        ("ftp://me:hu/sh@host/x", "ftp://***@host/x"),
        ("https://host/x?sig=hush&se=2", "https://host/x?***"),
        ("simplecache::ftp://me:hush@host/x", "simplecache::ftp://***@host/x"),
        ("dir://me:hush@a::ftp://me:hush@host/x", "dir://***::ftp://***@host/x"),
        ("file:///home/me@work/x", "file:///home/me@work/x"),
        ("no url", "no url"),
    ],
)
def test_a_url_for_people(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("ftp://me:hush-hush@host/x", {}, "cannot login me:hush-hush"),
        ("ftp://me:hush-hush@host/x", {}, "530 hush-hush"),
        ("ftp://me:hush%2Dhush@host/x", {}, "530 hush-hush"),
        ("https://host/x?sig=hush-hush", {}, "GET https://host/x?sig=hush-hush failed"),
        ("s3://b", {"secret": "hush-hush"}, "hush-hush"),
        ("s3://b", {"client_kwargs": {"aws_session_token": "hush-hush"}}, "hush-hush"),
        ("abfs://b", {"connection_string": "AccountKey=hush-hush"}, "x AccountKey=hush-hush y"),
        ("x://b", {"passwords": ["hush-hush"]}, "hush-hush"),
    ],
)
def test_secrets_are_not_in_errors(url: str, options: dict[str, Any], said: str) -> None:
    hidden = hidden_of(url, options)
    assert "hush" not in hidden.out_of(said)
    assert "hush" not in repr(hidden)
    calls = Calls("it", Patience(1, 1, 0), Stop(), hidden)

    def fails() -> None:
        raise RuntimeError(said)

    with pytest.raises(StoreUnavailable) as caught:
        calls.make("asking", fails)
    assert "hush" not in str(caught.value)


def test_what_is_no_secret_is_shown() -> None:
    hidden = hidden_of(
        "s3://bucket", {"endpoint_url": "http://host", "secret": "no", "anon": False}
    )
    assert hidden.out_of("no bucket at http://host") == "no bucket at http://host"


def test_threads_that_hang_are_counted() -> None:
    """A store that never answers takes no more threads than that, and they count until they end."""
    end = threading.Event()
    calls = Calls("it", Patience(0.02, 1, 0), Stop(), left=Left(3))
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="no answer in"):
            calls.make("asking", end.wait)
    for _ in range(5):
        with pytest.raises(StoreUnavailable, match="3 calls before this one"):
            calls.make("asking", end.wait)
    assert threading.active_count() == before + 3
    end.set()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    patient = replace(calls, patience=Patience(10, 1, 0))  # a thread may take a while to start
    assert patient.make("asking", lambda: 1) == 1
