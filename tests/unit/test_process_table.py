"""Blocks of a heap, kept up to date from pages that changed: always those that a look at the whole heap finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katana_cc.errors import TargetError
from katana_cc.process.chunks import HEADER, DamagedError
from katana_cc.process.heap import Heap, Outline, Row, make_heap, parse_row
from katana_cc.process.maps import MemoryMap
from katana_cc.process.table import Table, TableRow
from tests.support.rows import PAGE, START, FakeRow


class Nothing:
    """There is no other memory."""

    def read(self, address: int, size: int) -> bytes:
        """As of a process without any."""
        raise TargetError(f"{address:#x}, {size}")


def whole(row: FakeRow) -> Heap:
    """The oracle: everything read and taken apart."""
    free: dict[int, int] = {}
    plan = Row(START, len(row.data), None, row.top)
    read = parse_row(plan, bytes(row.data), free)
    return make_heap(Nothing(), MemoryMap(()), [read], free, Outline(0, (), (plan,)))


def pages(before: bytes, row: FakeRow) -> dict[int, bytes]:
    """What changed since."""
    now = bytes(row.data)
    return {
        START + at: now[at : at + PAGE]
        for at in range(0, len(now), PAGE)
        if at >= len(before) or before[at : at + PAGE] != now[at : at + PAGE]
    }


def step(row: FakeRow, is_large: bool) -> None:
    """Something that a program does."""
    kind = row.random.random()
    used = row.in_use()
    if kind < 0.5 or not used:
        row.malloc(row.random.choice((8, 24, 40, 100, 1000, 648) if not is_large else (24, 3000, 5000, 20000)))
    elif kind < 0.95:
        row.free(row.random.choice(used))
    else:
        row.grow(row.random.choice((-2, -1, 1, 3)) * PAGE)


def check(table: Table, row: FakeRow) -> None:
    heap = whole(row)
    assert table.used == heap.used
    for address in [*row.random.sample(range(START, row.limit), 40), *heap.used, *(b - 1 for b in heap.used)]:
        assert table.at(address) == heap.at(address), hex(address)
    # Wherever it is asked for, the chain is that of the whole.
    (mine,), (its,) = table.rows, heap.rows
    assert [b for page in range(len(mine.heads)) for b, _ in mine.in_page(page)] == its.blocks
    for page in row.random.sample(range(len(row.data) // PAGE), 3):
        begin = START + page * PAGE
        over = [
            (b, n) for b, n in zip(its.blocks, its.usable, strict=True) if b - HEADER < begin + PAGE and b + n > begin
        ]
        assert list(mine.overlapping(page)) == over


@settings(max_examples=120)
@given(st.integers(0, 2**32), st.booleans(), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_it_is_what_a_look_at_the_whole_finds(seed: int, is_large: bool, rounds: list[int]) -> None:
    row = FakeRow(60 * PAGE, seed)
    for _ in range(120):
        step(row, is_large)
    table = Table(whole(row))
    check(table, row)
    for steps in rounds:
        before, used = bytes(row.data), dict(table.used)
        for _ in range(steps):
            step(row, is_large)
        difference = table.update({START: (row.top, row.limit)}, pages(before, row), (), is_exact=True)
        check(table, row)
        assert {**{b: n for b, n in used.items() if b not in difference.gone}, **difference.came} == table.used
        assert difference.gone.items() <= used.items()


def test_damage_is_told() -> None:
    row = FakeRow(20 * PAGE, 1)
    blocks = [row.malloc(600) for _ in range(50)]
    table = Table(whole(row))
    before = bytes(row.data)
    row.put(blocks[20] - 8, 0x10)
    with pytest.raises(DamagedError):
        table.update({START: (row.top, row.limit)}, pages(before, row), (), is_exact=True)


def test_only_pages_beside_those_that_changed_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    row = FakeRow(60 * PAGE, 1)
    blocks = [row.malloc(40) for _ in range(3000)]
    table = Table(whole(row))
    before = bytes(row.data)
    row.put(blocks[1500], 1, 2)
    read: list[int] = []
    word = TableRow.word

    def noted(self: TableRow, address: int) -> int:
        read.append(address)
        return word(self, address)

    monkeypatch.setattr(TableRow, "word", noted)
    assert table.update({START: (row.top, row.limit)}, pages(before, row), (), is_exact=True) == ({}, {})
    near = [at for at in read if at > START + 2 * PAGE]
    assert near
    assert max(near) - min(near) < 3 * PAGE
