"""Blobs that are based on others: small, exact, never far from a whole one, and never a wrong byte."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest

from katana_cc.errors import StoreError
from katana_cc.snapshot.blobs import BlobStore, digest_of

KIB = 1 << 10


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def versions(count: int, seed: int = 1, size: int = 64 * KIB) -> list[bytes]:
    """Bytes that nothing compresses, and what becomes of them by small changes, one after another."""
    chance = random.Random(seed)
    data = bytearray(chance.randbytes(size))
    found = [bytes(data)]
    for _ in range(count - 1):
        at = chance.randrange(len(data))
        data[at : at + chance.randrange(20)] = chance.randbytes(chance.randrange(1, 20))
        found.append(bytes(data))
    return found


def put_all(blobs: BlobStore, datas: list[bytes]) -> list[str]:
    digests: list[str] = []
    for data in datas:
        digests.append(blobs.put(data, digests[-1] if digests else ""))
    return digests


def test_hundred_versions_take_the_room_of_one_and_are_all_read(blobs: BlobStore, tmp_path: Path) -> None:
    datas = versions(100)
    digests = put_all(blobs, datas)
    sizes = [blobs.path(digest).stat().st_size for digest in digests]
    assert sizes[0] > 64 * KIB
    assert max(sizes[1:]) < 2 * KIB
    again = BlobStore(tmp_path / "blobs")
    assert [again.get(digest) for digest in digests] == datas
    assert list(again.verify()) == []


def test_way_to_any_version_is_short(blobs: BlobStore) -> None:
    """A bug: each version based on the one before, the hundredth read through all of them."""
    digests = put_all(blobs, versions(100))
    headers = [blobs.header(digest) for digest in digests]
    ways = [header.way for header in headers if header]
    assert len(ways) == 100
    assert max(ways) <= 6
    assert ways == [n.bit_count() for n in range(100)]


def test_base_has_a_lower_number(blobs: BlobStore) -> None:
    digests = put_all(blobs, versions(40))
    for digest in digests[1:]:
        header = blobs.header(digest)
        assert header
        base = blobs.header(header.digest)
        assert base
        assert base.number < header.number


def test_other_bytes_are_kept_whole(blobs: BlobStore) -> None:
    first = blobs.put(random.Random(1).randbytes(KIB))
    other = blobs.header(blobs.put(random.Random(2).randbytes(KIB), first))
    assert other
    assert other.digest == ""


def test_what_cannot_be_read_is_no_base(blobs: BlobStore) -> None:
    old, new = versions(2)
    first = blobs.put(old)
    blobs.path(first).write_bytes(b"damage")
    assert blobs.get(blobs.put(new, first)) == new
    assert blobs.get(blobs.put(old + b"more", "0" * 64)) == old + b"more"


def test_damaged_base_is_named_by_itself_and_by_what_needs_it(blobs: BlobStore) -> None:
    old, new = versions(2)
    first = blobs.put(old)
    second = blobs.put(new, first)
    path = blobs.path(first)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert {digest for digest, _ in blobs.verify()} == {first, second}
    with pytest.raises(StoreError, match=first[:12]):
        BlobStore(blobs.folder).get(second)


def test_every_flipped_bit_of_a_blob_is_found(blobs: BlobStore) -> None:
    """A bug: bits of the header, or of the frame, that change nothing now and something later."""
    first, second = put_all(blobs, versions(2, size=KIB))
    for digest in (first, second):
        path = blobs.path(digest)
        whole = path.read_bytes()
        places = range(8 * len(whole)) if digest == second else range(0, 8 * len(whole), 7)
        for place in places:
            data = bytearray(whole)
            data[place >> 3] ^= 1 << (place & 7)
            path.write_bytes(data)
            assert digest in dict(blobs.verify()), place
        path.write_bytes(whole)
    assert list(blobs.verify()) == []


def test_based_blob_never_takes_the_place_of_one_that_is_there(blobs: BlobStore) -> None:
    """A bug: A based on B, written by one process, over the A that B's was based on by another."""
    old, new = versions(2)
    first = blobs.put(old)
    second = blobs.put(new, first)
    base = blobs.base_for(second)
    assert base
    before = blobs.path(first).read_bytes()
    blobs.write_based(first, old, base)
    assert blobs.path(first).read_bytes() == before
    assert list(blobs.unfinished()) == []
    assert BlobStore(blobs.folder).get(second) == new


def test_file_of_something_else_with_a_right_checksum_is_refused(blobs: BlobStore) -> None:
    digest = blobs.put(b"data")
    rest = blobs.path(blobs.put(b"other")).read_bytes()[8:]
    blobs.path(digest).write_bytes(b"KTB1" + zlib.crc32(rest).to_bytes(4, "little") + rest)
    with pytest.raises(StoreError, match=r"is damaged"):
        blobs.get(digest)
    assert digest_of(b"data") == digest
