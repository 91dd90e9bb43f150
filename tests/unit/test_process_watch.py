"""Pages that changed since they were copied, and the words in them: always what a search of everything finds."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katana_cc.process.copies import BLOCK, PAGE, Copy
from katana_cc.process.watch import Watch
from katana_cc.process.words import Seeker, Word

START = 0x5555_5555_0000 & -BLOCK
SIZE = 3 * BLOCK + 5 * PAGE
RANGES = [(0x7F00_0000_1230, 0x100), (0x7F00_0010_0000, 8)]


class Memory:
    """Stands in for BulkReader, and counts what it is asked for."""

    def __init__(self, size: int = SIZE) -> None:
        self.data = bytearray(size)
        self.asked = 0

    def read(self, vectors: Sequence[tuple[int, int]]) -> memoryview:
        """As process_vm_readv."""
        self.asked += sum(size for _, size in vectors)
        return memoryview(b"".join(self.data[a - START : a - START + size] for a, size in vectors))

    def put(self, offset: int, value: int) -> None:
        """Write a word."""
        struct.pack_into("<Q", self.data, offset, value)


def changed(copy: Copy, *vectors: tuple[int, int]) -> list[tuple[int, int]]:
    """(offset, size) of what is told, which must be what is there."""
    return [(address - START, len(data)) for address, data in copy.changed(vectors)]


def test_only_pages_that_differ_are_told() -> None:
    memory = Memory()
    copy = Copy(memory, 1 << 30)
    assert sum(size for _, size in changed(copy, (START, SIZE))) == SIZE
    assert changed(copy, (START, SIZE)) == []
    memory.put(5 * PAGE + 8, 1)
    memory.put(6 * PAGE, 1)
    memory.put(BLOCK - 8, 1)
    memory.put(BLOCK, 1)
    memory.put(SIZE - 8, 1)
    told = [(5 * PAGE, 2 * PAGE), (BLOCK - PAGE, PAGE), (BLOCK, PAGE), (SIZE - PAGE, PAGE)]
    assert changed(copy, (START, SIZE)) == told
    assert changed(copy, (START, SIZE)) == []


def test_what_was_not_read_before_has_changed() -> None:
    """A bug: a page that is new among those asked for is compared with the zeros of a copy never read."""
    copy = Copy(Memory(), 1 << 30)
    assert changed(copy, (START + PAGE, PAGE), (START + 3 * PAGE, PAGE)) == [(PAGE, PAGE), (3 * PAGE, PAGE)]
    assert changed(copy, (START, 5 * PAGE)) == [(0, PAGE), (2 * PAGE, PAGE), (4 * PAGE, PAGE)]


def test_parts_of_pages_are_whole_pages() -> None:
    memory = Memory()
    copy = Copy(memory, 1 << 30)
    assert changed(copy, (START + 8, 16), (START + 64, 8), (START + PAGE - 8, 16)) == [(0, 2 * PAGE)]
    memory.put(PAGE + 512, 1)
    assert changed(copy, (START + 8, PAGE)) == [(PAGE, PAGE)]


def test_what_there_is_no_room_for_has_changed() -> None:
    memory = Memory()
    copy = Copy(memory, BLOCK)
    assert sum(size for _, size in changed(copy, (START, SIZE))) == SIZE
    assert changed(copy, (START, 2 * BLOCK)) == [(BLOCK, BLOCK)]


def test_a_page_that_is_back_as_it_was_is_none_that_changed() -> None:
    memory = Memory()
    copy = Copy(memory, 1 << 30)
    changed(copy, (START, SIZE))
    memory.put(64, 1)
    assert changed(copy, (START, SIZE)) == [(0, PAGE)]
    memory.put(64, 0)
    assert changed(copy, (START, SIZE)) == [(0, PAGE)]
    memory.put(64, 1)
    memory.put(64, 0)
    assert changed(copy, (START, SIZE)) == []


class Near(Seeker):
    """Knows better than its range which words lead somewhere."""

    def __init__(self, exact: Seeker) -> None:
        super().__init__([(0x7F00_0000_0000, 0x20_0000)])
        self._exact = exact

    def leads(self, value: int) -> bool:
        return self._exact.leads(value)


RANGES_LED = [(start, start + size) for start, size in RANGES]
VALUES = st.sampled_from([0, 0x7F00_0000_1230, 0x7F00_0000_132F, 0x7F00_0000_1330, 0x7F00_0010_0000, 0x7F00_0010_0008])
WRITES = st.lists(st.tuples(st.integers(0, SIZE // 8 - 1), VALUES), max_size=20)
VECTORS = st.lists(
    st.tuples(st.integers(0, SIZE // 8 - 1), st.integers(1, BLOCK // 8)).map(
        lambda pair: (START + 8 * pair[0], min(8 * pair[1], SIZE - 8 * pair[0]))
    ),
    max_size=4,
)


def apart(vectors: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that do not overlap."""
    result: list[tuple[int, int]] = []
    for start, size in sorted(vectors):
        begin = max(start, sum(result[-1])) if result else start
        if begin < start + size:
            result.append((begin, start + size - begin))
    return result


@settings(max_examples=150)
@given(
    st.lists(st.tuples(WRITES, VECTORS, st.integers(1, 3)), min_size=1, max_size=5),
    st.sampled_from([0, BLOCK, 1 << 30]),
    st.booleans(),
)
def test_it_finds_what_a_search_of_everything_finds(
    looks: list[tuple[list[tuple[int, int]], list[tuple[int, int]], int]], room: int, is_wide: bool
) -> None:
    memory = Memory()
    watch = Watch(memory, room)
    for writes, asked, which in looks:
        for at, value in writes:
            memory.put(8 * at, value)
        vectors = apart(asked)
        seeker = Seeker([r for n, r in enumerate(RANGES, 1) if which & n])
        expected = seeker.in_memory(memory, vectors)  # type: ignore[arg-type]
        near = Near(seeker) if is_wide else seeker
        assert watch.words(vectors, near, RANGES_LED) == expected
        if which == 2:
            watch.settle(near)


def test_pages_that_are_the_same_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    watch = Watch(memory, 1 << 30)
    seeker = Seeker(RANGES)
    memory.put(8, RANGES[0][0])
    assert watch.words([(START, SIZE)], seeker) == [Word(START + 8, RANGES[0][0])]
    assert watch.searched == SIZE
    monkeypatch.setattr(Seeker, "near", lambda *_, **__: pytest.fail("searched"))
    assert watch.words([(START, SIZE)], seeker) == [Word(START + 8, RANGES[0][0])]
    assert watch.searched == 0
