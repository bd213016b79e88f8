"""The pure parts of every source, and unpacking."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from torpor.runsc.install_distribution import parse_candidate, what_it_lacks
from torpor.runsc.install_go import go_install_argv, toolchain_env
from torpor.runsc.install_go_filters import (
    build_argv,
    copy_source,
    generate_argv,
    module_folder,
)
from torpor.runsc.install_release import archive_url, parse_digest, unpack_release
from torpor.runsc.install_staging import SourceUnusable, last_line
from torpor.runsc.version import GO_VERSION

RECORDED = Path(__file__).parents[2] / "recorded" / "runsc"
DIGEST = "ab" * 64


def tar(path: Path, members: dict[str, bytes | str]) -> Path:
    """Write a bzip2 tar: bytes are files, a string is the target of a symbolic link."""
    with tarfile.open(path, "w:bz2") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def unpacked(archive: Path, into: Path) -> set[str]:
    unpack_release(archive, into, lambda line: None)
    return {str(file.relative_to(into)) for file in into.rglob("*") if not file.is_dir()}


def test_runsc_and_its_sidecars_are_unpacked_and_nothing_else(tmp_path: Path) -> None:
    archive = tar(
        tmp_path / "a.tar.bz2",
        {
            "./runsc": b"R",
            "containerd-shim-runsc-v1": b"S",
            "gvisor-bin/gvisor_sentry": b"G",
            "./gvisor-bin/checkpointgofer": b"C",
            "gvisor-bin/deep/er": b"D",
            "../outside": b"O",
            "gvisor-bin/../../outside": b"O",
            "/etc/outside": b"O",
            "gvisor-bin/..": b"O",
            "gvisor-bin/link": "/etc/passwd",
        },
    )
    into = tmp_path / "deep" / "into"
    assert unpacked(archive, into) == {
        "runsc",
        "gvisor-bin/gvisor_sentry",
        "gvisor-bin/checkpointgofer",
    }
    assert (into / "runsc").stat().st_mode & 0o777 == 0o755
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize(
    "members", [{}, {"bin/runsc": b"R"}, {"runsc": "/bin/true"}], ids=["empty", "moved", "link"]
)
def test_an_archive_without_runsc_is_refused(
    tmp_path: Path, members: dict[str, bytes | str]
) -> None:
    with pytest.raises(SourceUnusable, match="holds no runsc"):
        unpacked(tar(tmp_path / "a.tar.bz2", members), tmp_path / "into")


@pytest.mark.parametrize("keep", [0, 10, 60, 0.5, -20])
def test_a_damaged_archive_is_refused(tmp_path: Path, keep: float) -> None:
    archive = tar(tmp_path / "a.tar.bz2", {"runsc": bytes(range(256)) * 400})
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else int(keep)])
    with pytest.raises(SourceUnusable, match=r"cannot be unpacked|holds no runsc"):
        unpacked(archive, tmp_path / "into")


def test_address_of_the_archive() -> None:
    url = archive_url("http://h/base/", "20260907", "x86_64")
    assert url == "http://h/base/20260907/x86_64/gvisor.tar.bz2"
    assert "/aarch64/" in archive_url("http://h", "latest", "arm64")
    assert "/20260907.1/" in archive_url("http://h", "20260907.1", "x86_64")


@pytest.mark.parametrize(
    ("release", "machine"), [("../x", "x86_64"), ("", "x86_64"), ("20260907", "riscv64")]
)
def test_unusable_addresses(release: str, machine: str) -> None:
    with pytest.raises(SourceUnusable):
        archive_url("http://h", release, machine)


@pytest.mark.parametrize(
    "text",
    [DIGEST, f"{DIGEST}  n\n", f"{DIGEST.upper()} *n", f"{DIGEST}  ./n", f"{DIGEST}  out/n\n"],
)
def test_published_digests(text: str) -> None:
    assert parse_digest(text, "n") == DIGEST


@pytest.mark.parametrize(
    "text", ["", "<html>", DIGEST[:-1], f"{DIGEST}  other", f"{DIGEST}\nx y z"]
)
def test_unreadable_digests(text: str) -> None:
    with pytest.raises(SourceUnusable, match="unreadable"):
        parse_digest(text, "n")


def test_the_go_build_is_labelled_with_its_version() -> None:
    argv = go_install_argv("/go", GO_VERSION)
    assert f"-s -w -X gvisor.dev/gvisor/runsc/version.version={GO_VERSION}" in argv
    assert argv[-1] == f"gvisor.dev/gvisor/runsc@{GO_VERSION}"


def test_the_build_with_filters_is_labelled_so_and_leaves_the_repository_around_alone() -> None:
    argv = build_argv("/go", f"{GO_VERSION}+filters", Path("/copy"), Path("/out/runsc"))
    assert argv[:4] == ["/go", "-C", "/copy", "build"]
    assert f"-s -w -X gvisor.dev/gvisor/runsc/version.version={GO_VERSION}+filters" in argv
    assert {"-trimpath", "-buildvcs=false"} <= set(argv) & set(generate_argv("/go", Path("/copy")))


def test_the_copied_source_may_be_written(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "pkg").mkdir(parents=True)
    (source / "pkg" / "a.go").write_text("package pkg\n")
    (source / "pkg" / "a.go").chmod(0o444)
    (source / "pkg").chmod(0o555)
    copy_source(source, tmp_path / "copy")
    assert (tmp_path / "copy" / "pkg").stat().st_mode & 0o200
    copied = tmp_path / "copy" / "pkg" / "a.go"
    assert copied.stat().st_mode & 0o200
    assert copied.read_text() == "package pkg\n"


def test_where_the_module_is() -> None:
    assert module_folder('{"Path": "m", "Dir": "/a/b"}') == Path("/a/b")


@pytest.mark.parametrize("answer", ["", "[]", "{}", '{"Dir": null}', "go: downloading"])
def test_no_folder_of_the_module(answer: str) -> None:
    with pytest.raises(SourceUnusable, match="`go mod download` printed"):
        module_folder(answer)


@pytest.mark.parametrize(
    ("version", "toolchain", "added"),
    [
        ("go1.26.8", "local", {}),
        ("go1.26.3", "auto", {}),
        ("go1.27", "local", {}),
        ("go1.27rc1", "local", {}),
        ("go1.26.2", "auto", {"GOTOOLCHAIN": "go1.26.3+auto"}),
        ("go1.21.0", "go1.22.1", {"GOTOOLCHAIN": "go1.26.3+auto"}),
    ],
)
def test_toolchain(version: str, toolchain: str, added: dict[str, str]) -> None:
    assert toolchain_env(version, toolchain) == added


@pytest.mark.parametrize(
    ("version", "toolchain", "says"),
    [
        ("go1.19.8", "", "install it"),
        ("go1.25.0", "local", "GOTOOLCHAIN=auto"),
        ("devel", "", "no Go version"),
    ],
)
def test_too_old_a_go(version: str, toolchain: str, says: str) -> None:
    with pytest.raises(SourceUnusable, match=says):
        toolchain_env(version, toolchain)


def test_the_recorded_package_is_too_old() -> None:
    recorded = (RECORDED / "apt-policy-bookworm.txt").read_text()
    candidate = parse_candidate(recorded)
    assert candidate == "0.0~20221219.0-2+b3"
    assert "older than 20260406" in what_it_lacks(candidate)
    assert what_it_lacks("0.0~20260907.0-1") == ""
    assert "older" in what_it_lacks("2:1.0")


@pytest.mark.parametrize("output", ["", "runsc:\n  Installed: (none)\n  Candidate: (none)\n"])
def test_no_package(output: str) -> None:
    assert parse_candidate(output) is None


def test_last_line() -> None:
    assert last_line("a\n b \n\n") == "b"
    assert last_line("\n") == "it printed nothing"
