"""What a walk found, repaired where memory changed: always what a walk of the whole finds."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katana_cc.process.reachable import Reached
from katana_cc.process.repair import Repair, Repaired, UnrepairableError
from katana_cc.process.walk import walk
from tests.support.churn import TYPES, Program
from tests.support.heaps import HEAP, MAPPED, FakeHeap


class ToldHeap(FakeHeap):
    """A made-up heap that can be looked at as it was."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self._taken = 0
        self._gone: dict[int, list[int]] = {}
        self._bytes: dict[int, int] = {}

    def mapped(self, size: int) -> int:
        """At a place of its own, which nothing else gets when it is gone."""
        self._taken += 1
        start = MAPPED + self._taken * 0x100000 + 16
        self._mapped[start] = bytearray((size + 16 + 4095 & -4096) - 16)
        return start

    def is_told(self, address: int) -> bool:
        """Blocks with mappings of their own are not told."""
        return HEAP <= address < MAPPED

    def copy(self) -> dict[int, bytes]:
        """All memory, by where it begins."""
        return {HEAP: bytes(self._data), **{start: bytes(data) for start, data in self._mapped.items()}}

    def malloc(self, size: int, *, more: int = 0, fill: int = 0) -> int:
        """A block, often one that was free."""
        free = self._gone.get(size)
        if free and self.random.random() < 0.8:
            block = free.pop(self.random.randrange(len(free)))
            self._blocks[block] = self._blocks[block][0], True
            return block
        block = self.mapped(size) if size > 4000 else super().malloc(size, more=more, fill=fill)
        self._bytes[block] = size
        return block

    def release(self, block: int) -> None:
        """Take it back; what it held stays, for the most part."""
        if block >= MAPPED:
            del self._mapped[block]
            return
        self.free(block)
        if self.random.random() < 0.5:
            self.put(block, "QQ", self.random.getrandbits(64), 0)
        self._gone.setdefault(self._bytes[block], []).append(block)

    def get(self, address: int) -> int:
        """The word there."""
        value: int = struct.unpack("<Q", read(self.copy(), address, 8))[0]
        return value


def read(copy: Mapping[int, bytes], address: int, size: int) -> bytes:
    """Out of a copy."""
    start = max(s for s in copy if s <= address)
    return copy[start][address - start : address - start + size]


def found(objects: list[tuple[int, int, int]]) -> dict[int, tuple[int, int]]:
    return {address: (type_, elements) for address, type_, elements in objects}


def of_walk(reached: Reached) -> dict[int, tuple[int, int]]:
    """Address → (type, elements)."""
    return found([(f.address, f.type, f.elements) for f in reached.objects])


def of_repair(repair: Repair) -> dict[int, tuple[int, int]]:
    """The same."""
    every = [repair.objects[n] for n in repair.numbers.values()]
    return found([(f.address, f.type, f.elements) for f in every])


def check_ways(repair: Repair, copy: Mapping[int, bytes]) -> None:
    """Every object is led to by the pointer that it is said to be found by, and on the way back there is a variable."""
    for number in repair.numbers.values():
        f = repair.objects[number]
        if f.holder < 0:
            value = int.from_bytes(repair.roots[-1 - f.holder].content[f.at : f.at + 8], "little")
        else:
            value = int.from_bytes(read(copy, repair.objects[f.holder].address + f.at, 8), "little")
        assert value == f.address
        seen = 0
        while f.holder >= 0:
            f, seen = repair.objects[f.holder], seen + 1
            assert seen <= len(repair.numbers), "a ring"


class Follower:
    """A program, a walk of it, and its repair."""

    def __init__(self, program: Program, heap: ToldHeap) -> None:
        self.program, self.heap = program, heap
        self.used = dict(heap.used)
        self.mapped = set(heap._mapped)
        self.copy = heap.copy()
        self.repair = Repair(TYPES, self.walk(), heap, heap)

    def walk(self) -> Reached:
        """The oracle."""
        return walk(TYPES, self.program.roots(), self.heap, self.heap)

    def follow(self, *, is_exact: bool) -> Repaired:
        """One round."""
        heap, before = self.heap, self.copy
        now, used, mapped = heap.copy(), dict(heap.used), set(heap._mapped)
        gone = {b: n for b, n in self.used.items() if used.get(b) != n}
        gone |= {b: len(before[b]) for b in self.mapped - mapped}
        came = {b: n for b, n in used.items() if self.used.get(b) != n}
        touched = []
        for number in self.repair.numbers.values():
            f = self.repair.objects[number]
            if f.address in gone or read(before, f.address, f.size) != read(now, f.address, f.size):
                touched.append(number)
        self.used, self.mapped, self.copy = used, mapped, now
        roots = [r.content for r in self.program.roots()]
        return self.repair.follow(
            touched, gone, came, lambda a, n: read(before, a, n), lambda a, n: read(now, a, n), roots, is_exact=is_exact
        )


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=8))
def test_it_is_what_a_walk_finds(seed: int, rounds: list[tuple[int, bool]]) -> None:
    heap = ToldHeap(seed)
    program = Program(seed, heap)
    for _ in range(120):
        program.step()
    follower = Follower(program, heap)
    for steps, is_exact in [*rounds, (0, True)]:
        before = of_repair(follower.repair)
        for _ in range(steps):
            program.step()
        try:
            repaired = follower.follow(is_exact=is_exact)
        except UnrepairableError:
            assert steps
            follower = Follower(program, heap)
            continue
        if is_exact and not repaired.open:
            reached = follower.walk()
            assert reached.problems == ()
            now = of_repair(follower.repair)
            assert now == of_walk(reached)
            check_ways(follower.repair, follower.copy)
            told = {follower.repair.objects[n].address for n in (*repaired.added, *repaired.dropped)}
            if all(exact for _, exact in rounds):
                assert {a for a in {*before, *now} if before.get(a) != now.get(a)} <= told


def test_it_seldom_gives_up() -> None:
    """A bug: whatever a program does is too much, and the walk is made anew each time."""
    given_up = rounds = 0
    for seed in range(40):
        heap = ToldHeap(seed)
        program = Program(seed, heap)
        for _ in range(120):
            program.step()
        follower = Follower(program, heap)
        for _ in range(10):
            for _ in range(5):
                program.step()
            rounds += 1
            try:
                is_open = follower.follow(is_exact=True).open
            except UnrepairableError:
                is_open = "given up"
            if is_open:
                given_up += 1
                follower = Follower(program, heap)
    assert given_up < rounds / 10, f"{given_up} of {rounds}"


def linked(program: Program, heap: ToldHeap, count: int) -> list[int]:
    """A list of so many nodes."""
    program.lists[0] = [heap.malloc(24) for _ in range(count)]
    program.relink(0)
    return program.lists[0]


def test_only_what_changed_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    heap = ToldHeap()
    program = Program(1, heap)
    nodes = linked(program, heap, 500)
    follower = Follower(program, heap)
    nodes.insert(250, heap.malloc(24))
    gone = nodes.pop(100)
    program.relink(0)
    heap.release(gone)
    looked: list[int] = []
    slots = Repair._slots

    def noted(self: Repair, number: int, data: bytes) -> object:
        looked.append(number)
        return slots(self, number, data)

    monkeypatch.setattr(Repair, "_slots", noted)
    repaired = follower.follow(is_exact=True)
    assert (len(repaired.added), len(repaired.dropped), repaired.open) == (1, 1, "")
    assert len(set(looked)) < 10
    assert of_repair(follower.repair) == of_walk(follower.walk())


def test_ring_that_nothing_leads_to_is_not_kept() -> None:
    """A bug: two nodes that lead to each other pass for found, since a pointer leads to each."""
    heap = ToldHeap()
    program = Program(1, heap)
    nodes = linked(program, heap, 10)
    follower = Follower(program, heap)
    one, two = nodes[4:6]
    del nodes[4:6]
    program.relink(0)
    heap.put(one + 8, "QQ", two, two)
    heap.put(two + 8, "QQ", one, one)
    assert "which way" in follower.follow(is_exact=True).open
    assert one not in of_walk(follower.walk())


def test_pointer_to_memory_that_is_free_stays_open_until_it_is_gone() -> None:
    heap = ToldHeap()
    program = Program(1, heap)
    nodes = linked(program, heap, 10)
    follower = Follower(program, heap)
    gone = nodes[5]
    heap.free(gone)
    assert "is free" in follower.follow(is_exact=True).open
    nodes.remove(gone)
    program.relink(0)
    assert follower.follow(is_exact=True).open == ""
    assert of_repair(follower.repair) == of_walk(follower.walk())


def test_pointer_that_is_gone_when_its_block_comes_finds_nothing() -> None:
    """A bug: a pointer to memory that was free is judged anew since a block is there now, though it was overwritten."""
    heap = ToldHeap()
    program = Program(1, heap)
    nodes = linked(program, heap, 10)
    fresh = heap.malloc(24)
    heap.free(fresh)
    nodes.append(fresh)
    program.relink(0)
    follower = Follower(program, heap)
    heap._blocks[fresh] = heap._blocks[fresh][0], True
    nodes.remove(fresh)
    program.relink(0)
    assert follower.follow(is_exact=False).added == []
    assert follower.follow(is_exact=True).open == ""
    assert of_repair(follower.repair) == of_walk(follower.walk())


def test_what_is_not_linked_in_everywhere_stays_open() -> None:
    heap = ToldHeap()
    program = Program(1, heap)
    nodes = linked(program, heap, 10)
    follower = Follower(program, heap)
    fresh = heap.malloc(24)
    heap.free(fresh)
    nodes.insert(3, fresh)
    program.relink(0)
    assert follower.follow(is_exact=False).open == ""
    assert "no object" in follower.follow(is_exact=True).open
    heap._blocks[fresh] = heap._blocks[fresh][0], True
    assert follower.follow(is_exact=True).open == ""
    assert of_repair(follower.repair) == of_walk(follower.walk())
