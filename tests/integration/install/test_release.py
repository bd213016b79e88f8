"""The official release over real HTTP from a local server: good, tampered, truncated, missing."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import platform
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torpor.errors import ConfigError
from torpor.paths import Paths, resolve_paths
from torpor.runsc.install import Options, Source, install_runsc
from torpor.runsc.version import RELEASE, find_runsc

BUILD = f"release-{RELEASE}.0"
ARCHIVE = f"/{RELEASE}/{platform.machine()}/gvisor.tar.bz2"


@dataclass
class Server:
    """What the server answers, by path; ``cut`` is how many bytes of the archive it sends."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: int | None = None
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            body = state.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            is_cut = self.path == ARCHIVE and state.cut is not None
            self.wfile.write(body[: state.cut] if is_cut else body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        state.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield state
        listening.shutdown()
        thread.join()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return resolve_paths({"TORPOR_HOME": str(tmp_path / "home")}, uid=1000, home=tmp_path)


def archive(build: str = BUILD) -> bytes:
    script = (
        f"#!/bin/sh\ncat $(dirname $0)/gvisor-bin/gvisor_sentry\necho 'runsc version {build}'\n"
    )
    members = {"runsc": script.encode(), "gvisor-bin/gvisor_sentry": b"", "LICENSE": b"text"}
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:bz2") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


def publish(server: Server, content: bytes, *, digest_of: bytes | None = None) -> None:
    digest = hashlib.sha512(content if digest_of is None else digest_of).hexdigest()
    server.files[ARCHIVE] = content
    server.files[f"{ARCHIVE}.sha512"] = f"{digest}  gvisor.tar.bz2\n".encode()


def install(paths: Paths, url: str, sources: tuple[Source, ...] = (Source.RELEASE,)) -> list[str]:
    lines: list[str] = []
    install_runsc(paths, report=lines.append, sources=sources, options=Options(release_url=url))
    return lines


def left_in(paths: Paths) -> set[str]:
    return {entry.name for entry in paths.data.iterdir()} - {".install.lock"}


def test_a_good_release_is_installed_with_its_sidecars(server: Server, paths: Paths) -> None:
    publish(server, archive())
    lines = install(paths, server.url)
    found = find_runsc(paths)
    assert (found.ok, found.build) == (True, BUILD)
    assert found.path == paths.data / "gvisor" / BUILD / "runsc"
    assert (found.path.parent / "gvisor-bin" / "gvisor_sentry").exists()
    assert left_in(paths) == {"runsc", "gvisor"}
    assert any("unpacking runsc" in line for line in lines)


def test_twice_and_an_upgrade_keep_the_older_build(server: Server, paths: Paths) -> None:
    publish(server, archive())
    install(paths, server.url)
    install(paths, server.url)
    publish(server, archive("release-20261005.0"))
    install(paths, server.url)
    assert find_runsc(paths).build == "release-20261005.0"
    kept = {entry.name for entry in (paths.data / "gvisor").iterdir()}
    assert kept == {BUILD, "release-20261005.0"}
    assert left_in(paths) == {"runsc", "gvisor"}


def tampered(server: Server) -> None:
    publish(server, archive("release-20261006.0"), digest_of=archive())


def truncated(server: Server) -> None:
    publish(server, archive())
    server.cut = 40


def truncated_at_the_source(server: Server) -> None:
    publish(server, archive()[:-30])


def without_archive(server: Server) -> None:
    publish(server, archive())
    del server.files[ARCHIVE]


def without_digest(server: Server) -> None:
    publish(server, archive())
    del server.files[f"{ARCHIVE}.sha512"]


def unreadable_digest(server: Server) -> None:
    publish(server, archive())
    server.files[f"{ARCHIVE}.sha512"] = b"<html>" * 10_000


def too_old(server: Server) -> None:
    publish(server, archive("release-20240101.0"))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (tampered, "does not match its published SHA-512"),
        (truncated, "broke off"),
        (truncated_at_the_source, "cannot be unpacked"),
        (without_archive, r"gvisor.tar.bz2 is not there \(404\)"),
        (without_digest, r"gvisor.tar.bz2.sha512 is not there \(404\)"),
        (unreadable_digest, "SHA-512 of gvisor.tar.bz2 is unreadable"),
        (too_old, "older than 20260406"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_release_changes_nothing(
    server: Server, paths: Paths, fault: object, says: str
) -> None:
    publish(server, archive())
    install(paths, server.url)
    before = find_runsc(paths)
    assert callable(fault)
    fault(server)
    with pytest.raises(ConfigError, match=says):
        install(paths, server.url)
    assert find_runsc(paths) == before
    assert left_in(paths) == {"runsc", "gvisor"}


def test_an_unreachable_server_is_one_line_and_quick(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torpor.runsc.install_release._CONNECT_TIMEOUT_S", 60.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ConfigError, match=r"release: 127.0.0.1 cannot be reached") as caught:
            install(paths, url)
    assert time.monotonic() - started < 30, "nobody waits for one that refuses"
    assert "\n" not in str(caught.value)
    assert left_in(paths) == set()


def test_the_next_source_is_tried_and_every_outcome_told(server: Server, paths: Paths) -> None:
    publish(server, archive())
    lines = install(paths, server.url, (Source.EXISTING, Source.RELEASE))
    assert lines[0].startswith("existing: no runsc found")
    assert lines[0].endswith("trying the next source")
    server.asked.clear()
    assert install(paths, server.url, (Source.EXISTING, Source.RELEASE)) == []
    assert server.asked == []


def test_what_a_killed_install_left_is_removed(server: Server, paths: Paths) -> None:
    publish(server, archive())
    stale = paths.data / ".installing-stale"
    stale.mkdir(parents=True)
    (stale / "gvisor.tar.bz2").write_bytes(b"half")
    install(paths, server.url)
    assert not stale.exists()


def test_a_folder_that_cannot_be_written_is_one_line(server: Server, tmp_path: Path) -> None:
    publish(server, archive())
    (tmp_path / "file").write_text("")
    paths = resolve_paths({"TORPOR_HOME": str(tmp_path / "file")}, uid=1000, home=tmp_path)
    with pytest.raises(ConfigError, match="Not a directory"):
        install(paths, server.url)


def test_two_at_once_wait_for_each_other(server: Server, paths: Paths) -> None:
    publish(server, archive())
    failures: list[BaseException] = []

    def run() -> None:
        try:
            install(paths, server.url)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert find_runsc(paths).ok
    assert left_in(paths) == {"runsc", "gvisor"}
    assert os.readlink(paths.runsc) == f"gvisor/{BUILD}/runsc"
