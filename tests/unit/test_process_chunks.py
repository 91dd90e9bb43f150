"""malloc's chunks, arenas and lists of free blocks, in bytes made by hand."""

from __future__ import annotations

import struct

import pytest

from katana_cc.process import chunks
from katana_cc.process.chunks import CACHE_CHUNK, DamagedError, cached, chunks_of, find_main_arena, main_chunks

BASE = 0x5581_0000_0000
ARENA = 0x7F00_0000_1C60


class Made:
    """A row of chunks, as malloc would lay it out; `sizes` are of chunks, the last being the top."""

    def __init__(self, sizes: tuple[int, ...], free: tuple[int, ...] = (), before: int = 0) -> None:
        self.data = bytearray(before + sum(sizes))
        self.blocks = []
        at = before
        for n, size in enumerate(sizes):
            struct.pack_into("<Q", self.data, at + 8, size | (n - 1 not in free))
            self.blocks.append(BASE + at + 16)
            at += size
        self.top = self.blocks[-1] - 16

    def put(self, address: int, value: int) -> None:
        struct.pack_into("<Q", self.data, address - BASE, value)

    def word(self, address: int) -> int:
        return int(struct.unpack_from("<Q", self.data, address - BASE)[0])

    @property
    def words(self) -> memoryview:
        return memoryview(self.data).cast("Q")

    def size_of(self, address: int) -> int:
        found = chunks_of(self.words, BASE, self.blocks[0] - 16, self.top)
        return dict(zip(found.blocks, found.usable, strict=True)).get(address, 0)


def test_a_row_is_its_blocks_and_those_free_by_the_next_ones_mark() -> None:
    made = Made((0x290, 32, 48, 64, 4096), free=(1, 3))
    found = chunks_of(made.words, BASE, BASE, made.top)
    assert found.blocks == made.blocks[:-1]
    assert found.usable == [0x288, 24, 40, 56]
    assert found.free == [1, 3]


@pytest.mark.parametrize("size", [0, 16, 8, 40 | 2, 4096, 1 << 62])
def test_a_size_that_no_chunk_has_is_damage(size: int) -> None:
    """A heap that was written over would else be taken for other blocks than there are."""
    made = Made((0x290, 32, 48, 4096))
    made.put(made.blocks[1] - 8, size | 1)
    with pytest.raises(DamagedError):
        chunks_of(made.words, BASE, BASE, made.top)


def test_a_row_without_an_end_ends_at_its_fence() -> None:
    made = Made((64, 32, 16, 16))
    assert chunks_of(made.words, BASE, BASE, None).blocks == made.blocks[:2]
    with pytest.raises(DamagedError):
        chunks_of(Made((64, 32)).words, BASE, BASE, None)


@pytest.mark.parametrize("before", [0, 0x720])
def test_the_main_chunks_is_the_cache_wherever_it_is(before: int) -> None:
    """A static program has its thread-local variables before it."""
    made = Made((CACHE_CHUNK, 32, 0x290, 4096), before=before)
    made.put(BASE, 0x1234) if before else None
    assert main_chunks(made.words, BASE, made.top)[0] == BASE + before


@pytest.mark.parametrize("is_safe", [True, False], ids=["safe linking", "plain"])
def test_caches_and_fast_bins_hold_what_looks_used(is_safe: bool) -> None:
    made = Made((CACHE_CHUNK, 32, 32, 32, 64, CACHE_CHUNK, 64, 4096))
    cache, a, b, c, d, other, e, _ = made.blocks

    def link(at: int, to: int) -> None:
        made.put(at, to ^ (at >> 12 if is_safe else 0))

    made.put(cache + 128, a)  # 24 bytes: the first list
    link(a, b)
    link(b, 0)
    made.put(other + 200, 0xDEAD)  # a block of the same size, which is no cache
    link(d, e - 16)  # a chunk, not a block
    link(e, 0)
    fast = (0, 0, d - 16, 0, 0, 0, 0, 0, 0, 0)
    assert cached(made.word, (cache, other), (fast,), made.size_of, 9) == {a, b, d, e}
    assert c not in cached(made.word, (cache,), (fast,), made.size_of, 9)


def test_a_list_that_leads_astray_is_damage() -> None:
    made = Made((CACHE_CHUNK, 32, 48, 4096))
    cache, a, b, _ = made.blocks
    made.put(cache + 128, a)
    made.put(a, b ^ (a >> 12))
    made.put(b, b >> 12)
    with pytest.raises(DamagedError, match="24 bytes leads to"):
        cached(made.word, (cache,), (), made.size_of, 9)
    with pytest.raises(DamagedError):
        cached(made.word, (), ((a,),), made.size_of, 9)
    made.put(a, a ^ (a >> 12))
    with pytest.raises(DamagedError, match="has no end"):
        cached(made.word, (cache,), (), made.size_of, 9)


def arena(used: tuple[int, ...] = ()) -> bytes:
    """A main arena at ARENA; the bins `used` are not empty."""
    data = bytearray(chunks.ARENA_SIZE)
    struct.pack_into("<Q", data, 96, BASE + 0x5000)
    for n in range(127):
        place = ARENA + 112 + 16 * n
        value = BASE + 0x100 if n in used else place - 16
        struct.pack_into("<QQ", data, 112 + 16 * n, value, value)
    struct.pack_into("<QQQQQ", data, 2160, ARENA, 0, 1, 0x21000, 0x21000)
    return bytes(data)


@pytest.mark.parametrize("used", [(), (0,), (126,), (0, 1, 2, 126), tuple(range(90))])
def test_the_main_arena_is_found_by_its_empty_bins(used: tuple[int, ...]) -> None:
    """With the first or last bin in use, a place 16 bytes beside it fits as well by the bins alone."""
    data = bytes(0x460) + arena(used) + bytes(0x1000)
    assert find_main_arena(data, ARENA - 0x460) == ARENA


def test_no_arena_is_found_where_none_is() -> None:
    lists = b"".join(struct.pack("<QQ", *[ARENA + 16 * n] * 2) for n in range(200))  # empty lists of another kind
    assert find_main_arena(lists + bytes(4096), ARENA) is None
    assert find_main_arena(bytes(100), ARENA) is None


def test_malloc_rounds_up() -> None:
    assert [chunks.chunk_size(n) for n in (0, 1, 24, 25, 40, 41, 1000)] == [24, 24, 24, 40, 40, 56, 1000]
