"""The search for words that lead into ranges, in bytes and in made-up memory maps."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katana_cc.process.maps import MemoryMap
from katana_cc.process.words import Pages, Seeker, Touched, Word, to_search

PIE = 0x55D3_1A2B_C040


def naive(data: bytes, address: int, ranges: Sequence[tuple[int, int]], step: int) -> list[Word]:
    """Every word, one after the other."""
    return [
        Word(address + at, value)
        for at in range(-address % step, len(data) - 7, step)
        for (value,) in [struct.unpack_from("<Q", data, at)]
        if any(start <= value < start + size for start, size in ranges)
    ]


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.integers(1, 1 << 20), st.sampled_from([PIE, 0x404000, 0x400000, 0x7F00_0000_0000]))
def test_it_finds_what_a_naive_search_finds(seed: int, size: int, base: int) -> None:
    random.seed(seed)
    ranges = [(base, size), (base + size + 64, 8)]
    words = [base + random.randrange(-300, size + 300) for _ in range(40)] + [0] * 20
    data = bytearray(random.randbytes(16) + struct.pack(f"<{len(words)}Q", *random.sample(words, len(words))))
    for _ in range(4):  # some of them shifted
        at = random.randrange(len(data))
        del data[at : at + 1]
    seeker = Seeker(ranges)
    for aligned, step in ((True, 8), (False, 1)):
        assert sorted(seeker.in_bytes(data, 0x1008, aligned=aligned)) == naive(bytes(data), 0x1008, ranges, step)


def test_a_hit_that_overlaps_another_is_seen() -> None:
    """The bytes searched for may begin as they end: 00 40 00 00 00 00 00."""
    data = struct.pack("<QQ", 0x4000_0000_0000_0012, 0x400012)
    assert [w.address for w in Seeker([(0x400000, 256)]).in_bytes(data, 0)] == [8]


class Memory:
    """Stands in for BulkReader."""

    def __init__(self, start: int, data: bytes) -> None:
        self.start, self.data = start, data

    def read(self, vectors: Sequence[tuple[int, int]]) -> memoryview:
        """As process_vm_readv."""
        return memoryview(b"".join(self.data[a - self.start : a - self.start + size] for a, size in vectors))


def test_addresses_are_those_of_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: what is found in a later range, or in a later batch, is told at another address."""
    monkeypatch.setattr("katana_cc.process.words.BATCH", 64)
    words = [0] * 40
    for i in (3, 9, 10, 31, 39):
        words[i] = PIE + i
    bulk = Memory(0x10000, struct.pack("<40Q", *words))
    vectors = [(0x10000, 80), (0x10050, 8), (0x10058, 168), (0x10138, 8)]
    found = Seeker([(PIE, 64)]).in_memory(bulk, vectors)  # type: ignore[arg-type]
    assert found == [Word(0x10000 + 8 * i, PIE + i) for i in (3, 9, 10, 31, 39)]


MAP = """\
555500000000-555500001000 r-xp 00000000 08:01 11 /bin/server
555500001000-555500002000 r--p 00000000 08:01 11 /bin/server
555500002000-555500004000 rw-p 00000000 08:01 11 /bin/server
555510000000-555510020000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000001000 ---p 00000000 00:00 0
7f0000001000-7f0000009000 rw-p 00000000 00:00 0
7f0000010000-7f0000018000 rw-p 00000000 00:00 0
7f0000020000-7f0000021000 rw-s 00000000 00:05 77 /dev/dri/card0
7f0000022000-7f0000023000 rw-s 00000000 00:05 78 /dev/shm/queue
7f0000024000-7f0000025000 -w-p 00000000 00:00 0
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
"""


def whole(start: int, end: int) -> Iterable[tuple[int, int]]:
    """As if every page had been touched."""
    return ((start, end),)


def none(_start: int, _end: int) -> Iterable[tuple[int, int]]:
    """As if no page of a file had been written to."""
    return ()


def search(
    spared: Sequence[tuple[int, int]] = (), stacks: Sequence[tuple[int, int]] = (), written: Touched = none
) -> dict[int, int]:
    """Start -> end of what is searched."""
    return {a: a + size for a, size in to_search(MemoryMap.parse(MAP), spared, stacks, whole, written)}


def test_all_that_is_writable_is_searched() -> None:
    assert search() == {
        0x5555_0000_2000: 0x5555_0000_4000,
        0x5555_1000_0000: 0x5555_1002_0000,
        0x7F00_0000_1000: 0x7F00_0000_9000,
        0x7F00_0001_0000: 0x7F00_0001_8000,
        0x7F00_0002_2000: 0x7F00_0002_3000,
        0x7FFD_0000_0000: 0x7FFD_0002_1000,
    }


def test_what_a_loader_wrote_is_searched_though_it_is_read_only_now() -> None:
    assert set(search(written=whole)) - set(search()) == {0x5555_0000_1000}


def test_dead_stack_is_left_out_where_it_surely_is_one() -> None:
    found = search(stacks=[(1, 0x7FFD_0001_0000), (2, 0x7F00_0000_5004), (3, 0x7F00_0001_2000)])
    assert 0x7FFD_0001_0000 - 128 in found
    assert 0x7F00_0000_5000 - 128 in found
    assert 0x7F00_0001_0000 in found, "no guard pages: may be the heap of a coroutine library"


def test_two_threads_in_one_mapping_are_searched_whole() -> None:
    assert 0x7F00_0000_1000 in search(stacks=[(1, 0x7F00_0000_5000), (2, 0x7F00_0000_7000)])


def test_what_is_spared_is_cut_out_but_for_words_that_reach_in() -> None:
    found = search(spared=[(0x5555_0000_2010, 0x5555_0000_2024), (0x5555_0000_3FF3, 0x5555_0000_4000)])
    assert found[0x5555_0000_2000] == 0x5555_0000_2010
    assert found[0x5555_0000_2020] == 0x5555_0000_3FF8


def test_pages_never_touched_are_not_read() -> None:
    """Of this very process: an anonymous mapping of which two pages were written to."""
    memory = mmap.mmap(-1, 64 * 4096, flags=mmap.MAP_PRIVATE)
    memory[5 * 4096] = memory[6 * 4096] = memory[40 * 4096] = 1
    pages = Pages(os.getpid())
    try:
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert pages.touched(base, base + 64 * 4096) == [
            (base + 5 * 4096, base + 7 * 4096),
            (base + 40 * 4096, base + 41 * 4096),
        ]
        within = base + 5 * 4096 + 24, base + 41 * 4096 - 8
        assert pages.touched(*within) == [(within[0], base + 7 * 4096), (base + 40 * 4096, within[1])]
    finally:
        pages.close()
