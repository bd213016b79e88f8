"""What a golden was made of and what is in its image: ``manifest.json``.

Version 1 is one JSON object: the fields of ``Manifest``, ``version``, and ``sum``, the SHA-256 of
everything else. A manifest is read whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeGuard

from torpor.errors import SandboxError
from torpor.golden import fields as read
from torpor.golden.fingerprint import Fingerprint, parse_fingerprint

VERSION = 1
_KEY = re.compile(r"[0-9a-f]{8,128}")
_BUILD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class GoldenUnusable(SandboxError):
    """A golden, or the folder of all goldens, must not be used: start the kernel cold."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file of an image, as it was when that was published."""

    size_bytes: int
    sha256: str | None
    """None, of a snapshot's only: it is not known yet (`torpor.snapshot.later`)."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A golden's description.

    ``guest_key`` is what its guests and the host sign with: random, the same in every clone, and
    protecting nothing outside the sandbox. ``files`` is filled in when the golden is published.
    """

    key: str
    build: str
    created_at: str
    template: str
    kernel_name: str
    argv: tuple[str, ...]
    python: str
    runsc_build: str
    cpu_features: tuple[str, ...]
    guest_key: str = field(repr=False)
    kernel_info: Mapping[str, Any]
    iopub_welcome: bool
    warm_up: tuple[str, ...]
    warm_up_failed: Mapping[str, str]
    environment: Fingerprint = field(repr=False)
    build_seconds: float
    files: Mapping[str, ImageFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse names that would lead out of the goldens' folder. Raises GoldenUnusable."""
        check_key(self.key)
        check_build(self.build)

    def to_json(self) -> dict[str, Any]:
        """Give everything but the sum, in plain JSON types."""
        body = {each.name: getattr(self, each.name) for each in fields(self)}
        files = {
            name: {"bytes": file.size_bytes, "sha256": file.sha256}
            for name, file in self.files.items()
        }
        return body | {
            "version": VERSION,
            "environment": self.environment.to_json(),
            "files": files,
        }


def sealed(body: Mapping[str, Any]) -> bytes:
    """Give the content of ``manifest.json`` for what ``to_json`` gave.

    Raises ValueError when there is a NaN or an infinity in it.
    """
    return _canonical({**body, "sum": _sum(body)})


def parse_manifest(raw: bytes | str) -> Manifest:
    """Read a ``manifest.json``; fields it does not know are left out.

    Raises:
        GoldenUnusable: damaged, of another version, or with a field of a wrong type. The message
            names the field and never its value.
    """
    try:
        body = json.loads(raw)
        if not isinstance(body, dict):
            raise ValueError("it is no JSON object")
        if type(body.get("version")) is not int or body["version"] != VERSION:
            raise ValueError(f"it is not of version {VERSION}")
        if body.pop("sum", None) != _sum(body):
            raise ValueError("its content is not what was written")
        return _manifest(body)
    except (ValueError, RecursionError) as exc:
        raise GoldenUnusable(
            f"the manifest of the golden is not usable: {exc}", hint="it will be built anew"
        ) from exc


def is_key(name: str) -> bool:
    """Whether ``name`` can be the key of a golden: a hex digest in small letters."""
    return _KEY.fullmatch(name) is not None


def is_build(name: str) -> bool:
    """Whether ``name`` can be the name of a build: letters, digits, - and _, at most 64."""
    return _BUILD.fullmatch(name) is not None


def check_key(key: str) -> str:
    """Give ``key`` back. Raises GoldenUnusable when it is none."""
    if not is_key(key):
        raise GoldenUnusable(
            f"{key!r:.80} is not the key of a golden", hint="it is a hex digest in small letters"
        )
    return key


def check_build(build: str) -> str:
    """Give ``build`` back. Raises GoldenUnusable when it is no name of a build."""
    if not is_build(build):
        raise GoldenUnusable(
            f"{build!r:.80} is not the name of a build", hint="letters, digits, - and _, at most 64"
        )
    return build


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()


def _manifest(body: dict[str, Any]) -> Manifest:
    return Manifest(
        key=read.text(body, "key"),
        build=read.text(body, "build"),
        created_at=read.moment(body, "created_at"),
        template=read.text(body, "template"),
        kernel_name=read.text(body, "kernel_name"),
        argv=read.texts(body, "argv"),
        python=read.text(body, "python"),
        runsc_build=read.text(body, "runsc_build"),
        cpu_features=read.texts(body, "cpu_features"),
        guest_key=read.text(body, "guest_key"),
        kernel_info=read.mapping(body, "kernel_info"),
        iopub_welcome=read.flag(body, "iopub_welcome"),
        warm_up=read.texts(body, "warm_up"),
        warm_up_failed=read.text_mapping(body, "warm_up_failed"),
        environment=parse_fingerprint(body.get("environment")),
        build_seconds=read.duration(body, "build_seconds"),
        files={name: image_file(name, row) for name, row in read.mapping(body, "files").items()},
    )


def is_digest(value: object) -> TypeGuard[str]:
    """Whether ``value`` is a SHA-256 as a manifest has it."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def image_file(name: str, row: Any, *, later: bool = False) -> ImageFile:
    """Give what a manifest says of a file; with ``later`` its digest may be null.

    Raises ValueError.
    """
    if not isinstance(row, dict) or not _FILE.fullmatch(name):
        raise ValueError(f"the entry of the file {name!r:.80} is damaged")
    if later and row.get("sha256", "") is None:
        return ImageFile(read.count(row, "bytes"), None)
    sha256 = read.text(row, "sha256")
    if not is_digest(sha256):
        raise ValueError(f"the sum of the file {name!r:.80} is damaged")
    return ImageFile(read.count(row, "bytes"), sha256)
