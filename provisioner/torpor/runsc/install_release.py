"""gVisor's official release: download, check against the published SHA-512, unpack.

Layout on the server (https://gvisor.dev/docs/user_guide/install/)::

    BASE/RELEASE/ARCH/gvisor.tar.bz2          runsc, containerd-shim-runsc-v1, gvisor-bin/...
    BASE/RELEASE/ARCH/gvisor.tar.bz2.sha512   "<128 hex digits>  gvisor.tar.bz2"

RELEASE is ``YYYYMMDD``, ``YYYYMMDD.N`` or ``latest``. The digest comes from the same server as the
archive: it guards against damage in transit and on mirrors; TLS is what guards against an impostor.
"""

from __future__ import annotations

import hashlib
import platform
import re
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from torpor.runsc.install_staging import Report, SourceUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

BASE_URL = "https://storage.googleapis.com/gvisor/releases/release"
ARCHIVE = "gvisor.tar.bz2"

_CONNECT_TIMEOUT_S = 4.0  # an offline machine should learn it at once
_READ_TIMEOUT_S = 30.0
_LARGEST_BYTES = 2 << 30
_CHUNK_BYTES = 1 << 20
_REPORT_EVERY_S = 2.0
_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_DIGEST = re.compile(r"([0-9a-fA-F]{128})(?:\s+\*?(\S+))?\s*")


def fetch_release(folder: Path, *, base_url: str, release: str, report: Report) -> Path:
    """Give the folder, inside ``folder``, that holds the checked and unpacked release.

    Raises SourceUnusable: unreachable, not there, cut short, or not what its SHA-512 says.
    """
    import httpx  # 0.1 s to import: only when it is used

    url = archive_url(base_url, release, platform.machine())
    archive = folder / ARCHIVE
    timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    with httpx.Client(timeout=timeout, follow_redirects=True) as client:
        report(f"asking {httpx.URL(url).host} for gVisor release {release}")
        expected = _published_digest(client, f"{url}.sha512")
        found = _download(client, url, archive, report)
    if found != expected:
        raise SourceUnusable(f"{url} does not match its published SHA-512: damaged or forged")
    unpacked = folder / "release"
    unpack_release(archive, unpacked, report)
    return unpacked


def archive_url(base_url: str, release: str, machine: str) -> str:
    """Give the address of the archive for a machine as ``uname -m`` names it. Pure."""
    if not re.fullmatch(r"latest|\d{8}(\.\d+)?", release):
        raise SourceUnusable(f"release {release!r} is not YYYYMMDD, YYYYMMDD.N or latest")
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        raise SourceUnusable(f"gVisor has no release for {machine} (only x86_64 and aarch64)")
    return f"{base_url.rstrip('/')}/{release}/{architecture}/{ARCHIVE}"


def parse_digest(text: str, name: str) -> str:
    """Give the digest, in lower case, that a ``sha512sum`` file holds for ``name``. Pure."""
    found = _DIGEST.fullmatch(text.strip())
    if not found or (found.group(2) and PurePosixPath(found.group(2)).name != name):
        raise SourceUnusable(f"the published SHA-512 of {name} is unreadable: {text[:60]!r}")
    return found.group(1).lower()


def unpack_release(archive: Path, into: Path, report: Report) -> None:
    """Write ``runsc`` and the plain files of ``gvisor-bin/`` below ``into``, and nothing else.

    Raises SourceUnusable when the archive is damaged, holds no runsc or is unreasonably large.
    """
    (into / "gvisor-bin").mkdir(parents=True)
    left_bytes = _LARGEST_BYTES
    try:
        with tarfile.open(archive, "r|bz2") as members:
            for member in members:
                target = _wanted(member)
                if target is None:
                    continue
                left_bytes -= member.size
                if left_bytes < 0:
                    raise SourceUnusable(f"{archive.name} unpacks to over {_LARGEST_BYTES} bytes")
                report(f"unpacking {target} ({member.size >> 20} MiB)")
                content = members.extractfile(member)
                assert content is not None, "regular files have content"
                _write(content, into / target)
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise SourceUnusable(f"{archive.name} cannot be unpacked: {exc}") from exc
    if not (into / "runsc").is_file():
        raise SourceUnusable(f"{archive.name} holds no runsc")


def _wanted(member: tarfile.TarInfo) -> PurePosixPath | None:
    """Give where a member goes; None for all but regular files in the two known places."""
    path = PurePosixPath(*(part for part in PurePosixPath(member.name).parts if part != "."))
    known = path == PurePosixPath("runsc") or (
        len(path.parts) == 2 and path.parts[0] == "gvisor-bin" and path.name != ".."
    )
    return path if member.isreg() and known else None


def _write(content: IO[bytes], target: Path) -> None:
    with target.open("wb") as file:
        while chunk := content.read(_CHUNK_BYTES):
            file.write(chunk)
    target.chmod(0o755)


def _published_digest(client: httpx.Client, url: str) -> str:
    with _answer(client, url) as response:
        text = b""
        for chunk in response.iter_bytes():
            text += chunk
            if len(text) > 4096:
                break
    return parse_digest(text.decode("ascii", "replace"), ARCHIVE)


def _download(client: httpx.Client, url: str, target: Path, report: Report) -> str:
    """Write the body of ``url`` to ``target`` and give its SHA-512."""
    digest, got_bytes, said_at = hashlib.sha512(), 0, time.monotonic()
    with _answer(client, url) as response, target.open("wb") as file:
        total = response.headers.get("content-length", "")
        size = f" of {int(total) >> 20}" if total.isdigit() else ""
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            got_bytes += len(chunk)
            if got_bytes > _LARGEST_BYTES:
                raise SourceUnusable(f"{url} is larger than {_LARGEST_BYTES} bytes")
            digest.update(chunk)
            file.write(chunk)
            if time.monotonic() - said_at > _REPORT_EVERY_S:
                said_at = time.monotonic()
                report(f"downloading {ARCHIVE}: {got_bytes >> 20}{size} MiB")
    return digest.hexdigest()


@contextmanager
def _answer(client: httpx.Client, url: str) -> Iterator[httpx.Response]:
    """Give the streamed answer to a GET; every failure on the way is a SourceUnusable."""
    import httpx

    try:
        with client.stream("GET", url, headers={"accept-encoding": "identity"}) as response:
            if response.status_code == 404:
                raise SourceUnusable(f"{url} is not there (404)")
            response.raise_for_status()
            yield response
    except httpx.HTTPStatusError as exc:
        raise SourceUnusable(f"{url} answered {exc.response.status_code}") from exc
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        host = httpx.URL(url).host
        raise SourceUnusable(f"{host} cannot be reached ({exc or 'no answer'})") from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise SourceUnusable(f"{url} broke off: {exc or type(exc).__name__}") from exc
