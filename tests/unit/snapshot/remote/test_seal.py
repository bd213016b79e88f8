from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.snapshot.errors import SnapshotUnusable
from torpor.snapshot.remote.header import Header, split_header
from torpor.snapshot.remote.keys import MasterKey
from torpor.snapshot.remote.seal import GcmSeal, Place, Seal, new_seal, seal_of

KEY = MasterKey(b"k" * 32)
BLANK = Header(
    kernel_id="k1", generation=3, upload="ab" * 16, touched_s=1, content="", chunk_bytes=4096
)
PLACE = Place("pages.img", 1, 2, 5, 4096)
PLACES = st.builds(
    Place,
    st.sampled_from(["pages.img", "pages_meta.img"]),
    st.integers(0, 3),
    st.integers(0, 1 << 20),
    st.integers(1, 1 << 20),
    st.integers(1, 1 << 23),
)


def sealed(key: MasterKey | None = KEY, **changes: object) -> tuple[Header, Seal]:
    return new_seal(replace(BLANK, **changes), key)  # type: ignore[arg-type]


HEADER, SEAL = sealed()


@given(st.binary(max_size=300), PLACES)
def test_what_is_closed_can_be_opened(raw: bytes, place: Place) -> None:
    for key in (KEY, None):
        header, seal = sealed(key)
        again = seal_of(header, key)
        assert again.open_chunk(seal.close_chunk(raw, place), place) == raw
        assert again.open_manifest(seal.close_manifest(raw, b"head"), b"head") == raw
        assert again.mark(place, raw) == seal.mark(place, raw)
        assert again.content(raw) == seal.content(raw)


@given(st.binary(min_size=1, max_size=100), PLACES, PLACES)
def test_a_chunk_belongs_to_its_place(raw: bytes, place: Place, other: Place) -> None:
    if place == other:
        return
    with pytest.raises(ValueError, match="not what was sealed there"):
        SEAL.open_chunk(SEAL.close_chunk(raw, place), other)
    assert SEAL.mark(place, raw) != SEAL.mark(other, raw)


@pytest.mark.parametrize(
    "changes",
    [{"kernel_id": "k2"}, {"generation": 4}, {"upload": "cd" * 16}, {"chunk_bytes": 8192}],
)
def test_a_key_belongs_to_its_upload(changes: dict[str, object]) -> None:
    moved = replace(HEADER, **changes)  # type: ignore[arg-type]
    with pytest.raises(SnapshotUnusable, match=r"header of .* is damaged"):
        seal_of(moved, KEY)
    _, other = sealed(**changes)
    with pytest.raises(ValueError, match="not what was sealed there"):
        other.open_chunk(SEAL.close_chunk(b"x", PLACE), PLACE)


@pytest.mark.parametrize(
    "changes",
    [{"kernel_id": "k2"}, {"generation": 4}, {"upload": "cd" * 16}, {"chunk_bytes": 8192}],
)
def test_chunks_know_their_upload_even_with_its_key(changes: dict[str, object]) -> None:
    one = GcmSeal(b"d" * 32, BLANK)
    other = GcmSeal(b"d" * 32, replace(BLANK, **changes))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not what was sealed there"):
        other.open_chunk(one.close_chunk(b"x", PLACE), PLACE)
    assert one.mark(PLACE, b"d") != other.mark(PLACE, b"d")


@given(st.binary(max_size=40), st.data())
def test_every_bit_counts(raw: bytes, data: st.DataObject) -> None:
    closed = bytearray(SEAL.close_chunk(raw, PLACE))
    at = data.draw(st.integers(0, len(closed) * 8 - 1))
    closed[at // 8] ^= 1 << at % 8
    with pytest.raises(ValueError, match="not what was sealed there"):
        SEAL.open_chunk(bytes(closed), PLACE)
    cut = data.draw(st.integers(0, len(closed) - 1))
    with pytest.raises(ValueError, match="not what was sealed there"):
        SEAL.open_chunk(SEAL.close_chunk(raw, PLACE)[:cut], PLACE)


@pytest.mark.parametrize("key", [KEY, None])
def test_a_manifest_is_bound_to_its_header(key: MasterKey | None) -> None:
    _, seal = sealed(key)
    closed = seal.close_manifest(b"manifest", b"head")
    for broken, head in (
        (closed, b"other"),
        (closed[:-1], b"head"),
        (closed[:5], b"head"),
        (b"", b"head"),
        (bytes([closed[0] ^ 1]) + closed[1:], b"head"),
    ):
        with pytest.raises(ValueError, match=r".+"):
            seal.open_manifest(broken, head)


def test_nothing_is_closed_twice_the_same_way() -> None:
    """Two attempts at one upload must never use one key and nonce for two contents."""
    first, second = seal_of(HEADER, KEY), seal_of(HEADER, KEY)
    closed = [each.close_chunk(b"same", PLACE) for each in (SEAL, first, second)]
    assert len({each[:16] for each in closed}) == 3
    assert len({each[16:] for each in closed}) == 3
    assert first.mark(PLACE, b"d") == second.mark(PLACE, b"d")
    assert first.close_manifest(b"m", b"") != second.close_manifest(b"m", b"")


def test_marks_say_nothing_of_the_content() -> None:
    _, other = sealed()
    assert SEAL.mark(PLACE, b"digest") != other.mark(PLACE, b"digest")
    assert SEAL.content(b"manifest") != other.content(b"manifest")
    assert SEAL.mark(PLACE, b"digest") != SEAL.mark(replace(PLACE, index=3), b"digest")


@pytest.mark.parametrize(
    ("made_with", "opened_with", "words"),
    [
        (KEY, MasterKey(b"w" * 32), "is sealed with the key .* and the key here is"),
        (KEY, None, "and there is no key here"),
        (None, KEY, "is not sealed, and this store has a key"),
    ],
)
def test_other_keys(made_with: MasterKey | None, opened_with: MasterKey | None, words: str) -> None:
    header, _ = sealed(made_with)
    with pytest.raises(SnapshotUnusable, match=words) as caught:
        seal_of(header, opened_with)
    assert caught.value.hint


def test_a_header_there_and_back() -> None:
    raw = HEADER.encoded()
    assert split_header(raw + b"\nrest\n", "it") == (HEADER, raw, b"\nrest\n")


@given(st.binary(max_size=60), st.integers(0, 400))
def test_a_damaged_header(junk: bytes, at: int) -> None:
    """It is read, or refused with an error of ours."""
    raw = HEADER.encoded()
    for broken in (junk, raw[:at], raw[:at] + junk + raw[at:], raw[:at] + junk):
        try:
            header, _, _ = split_header(broken, "it")
            seal_of(header, KEY)
        except SnapshotUnusable:
            continue


def test_keys_are_not_shown() -> None:
    assert "kkk" not in repr(KEY)
    assert len(KEY.key_id) == 16
