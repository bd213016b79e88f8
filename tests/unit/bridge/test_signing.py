"""Signatures agree with jupyter_client's, and a repeated one is found."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.session import Session
from torpor.bridge.signing import SeenSignatures, Signer
from torpor.errors import ConfigError


@given(st.binary(min_size=1, max_size=300), st.lists(st.binary(), min_size=4, max_size=4))
def test_sign_is_hmac(key: bytes, body: list[bytes]) -> None:
    expected = hmac.new(key, b"".join(body), "sha256").hexdigest().encode()
    signer = Signer(key)
    assert signer.sign(body) == expected
    assert signer.sign([memoryview(part) for part in body]) == expected
    assert signer.verify(expected, body)


@pytest.mark.parametrize("name", ["md5", "sha1", "sha224", "sha256", "sha384", "sha512"])
def test_every_scheme_agrees_with_jupyter_client(name: str) -> None:
    session = Session(key=b"k" * 200, signature_scheme=f"hmac-{name}")
    parts = session.serialize(session.msg("x"))
    assert Signer(b"k" * 200, f"hmac-{name}").sign(parts[2:]) == parts[1]
    assert hashlib.new(name).digest_size * 2 == len(parts[1])


@pytest.mark.parametrize("scheme", ["", "sha256", "hmac-", "hmac-rot13", "hmac-shake_128"])
def test_unknown_schemes_are_refused(scheme: str) -> None:
    with pytest.raises(ConfigError, match="not supported"):
        Signer(b"k", scheme)


def test_wrong_signatures() -> None:
    signer, body = Signer(b"k"), [b"{}"] * 4
    good = signer.sign(body)
    for bad in (b"", good[:-1], good.upper(), good + b"0", bytes(64), b"\xff" * 64):
        assert not signer.verify(bad, body)
    assert not Signer(b"other").verify(good, body)


def test_an_empty_key_means_unsigned() -> None:
    signer = Signer(b"")
    assert (signer.enabled, signer.sign([b"{}"] * 4)) == (False, b"")
    assert signer.verify(b"whatever", [b"{}"] * 4)


def test_seen_signatures_are_remembered_within_bounds() -> None:
    seen = SeenSignatures(remembered=10)
    names = [f"{number:064d}"[::-1].encode() for number in range(100)]
    for index, name in enumerate(names):
        assert seen.first_time(name)
        for recent in names[max(0, index - 9) : index + 1]:
            assert not seen.first_time(recent)
    assert len(seen._new) + len(seen._old) <= 20
    assert seen.first_time(names[0]), "the oldest may be forgotten"
