"""Objects made anew before the stop: the outcome is that of a look at the whole, whatever changed between."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from katana_cc.errors import RefusedError, TargetError
from katana_cc.process.ahead import Ahead, OpenError
from katana_cc.process.chunks import ARENA_SIZE
from katana_cc.process.follow import Edited, Passage
from katana_cc.process.heap import Allocator
from katana_cc.process.maps import MemoryMap, Region
from katana_cc.process.moves import Kind
from katana_cc.process.objects import Objects, ShortageError
from katana_cc.process.repair import UnrepairableError
from katana_cc.transform.model import Copy, Pointer, Transformation
from tests.support.churn import HEADS, NODE, TABLE, TOP, TREE, VARIABLES, Program
from tests.support.outcomes import contents, is_only_objects, undone, words
from tests.support.rows import PAGE, START, FakeRow

ARENA = 0x7F00_0000_1000
TURNED = Transformation(
    "struct node", 24, 24,
    (
        Pointer(0, 8, "struct node", "next", "next"),
        Pointer(8, 16, "struct node", "prev", "prev"),
        Copy(16, 0, 8, "key", "key"),
    ),
)  # fmt: skip


@dataclass
class Process:
    """A made-up process: a heap as malloc lays it out, its arena, and variables that are asked for elsewhere."""

    row: FakeRow
    pid: int = 1
    where: str = "pid 1"
    taken: set[int] = field(default_factory=set)

    def read(self, address: int, size: int) -> bytes:
        """Memory."""
        if address >= START and address + size <= self.row.limit:
            return bytes(self.row.data[address - START : address - START + size])
        if address >= ARENA and address + size <= ARENA + ARENA_SIZE:
            arena = bytearray(ARENA_SIZE)
            struct.pack_into("<Q", arena, 96, self.row.top)
            struct.pack_into("<Q", arena, 2160, ARENA)
            return bytes(arena[address - ARENA : address - ARENA + size])
        raise TargetError(hex(address))

    def write(self, address: int, data: bytes) -> None:
        """Only into new blocks, while nothing is stopped."""
        block = next(b for b in self.taken if b <= address < b + self.row.usable(b))
        assert address == block
        self.row.data[address - START : address - START + len(data)] = data

    @property
    def memory(self) -> Process:
        return self

    def read_map(self) -> MemoryMap:
        """What is mapped."""
        heap = Region(START, self.row.limit, "rw-p", 0, "00:00", 0, "[heap]")
        return MemoryMap((heap, Region(ARENA & -PAGE, ARENA + 2 * PAGE, "rw-p", 0, "08:01", 7, "/libc.so.6")))


class Bulk:
    """Stands in for BulkReader."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def read(self, vectors: Sequence[tuple[int, int]]) -> memoryview:
        """As process_vm_readv."""
        return memoryview(b"".join(self.process.read(*v) for v in vectors))


class RowStore:
    """The heap of a program."""

    def __init__(self, row: FakeRow) -> None:
        self.row = row

    def malloc(self, size: int) -> int:
        """A block."""
        block = self.row.malloc(size)
        if not block:
            self.row.grow(4 * PAGE)
            block = self.row.malloc(size)
        return block

    def release(self, block: int) -> None:
        """Take it back."""
        self.row.free(block)

    def put(self, address: int, form: str, *values: int) -> None:
        """Write values."""
        struct.pack_into("<" + form, self.row.data, address - START, *values)

    def get(self, address: int) -> int:
        """The word there."""
        return self.row.get(address)


class World:
    """A program, its process, and how both ways look at it."""

    def __init__(self, seed: int, node: Transformation, *, spare: int = 120) -> None:
        self.row = FakeRow(100 * PAGE, seed)
        self.store = RowStore(self.row)
        self.program = Program(seed, self.store)
        self.process = Process(self.row)
        self.random = random.Random(seed)
        blocks = [self.row.malloc(40) for _ in range(spare)]
        self.process.taken.update(blocks)
        self.other = [self.store.malloc(200) for _ in range(10)]
        self.kinds = (Kind(node), Kind(TABLE), Kind(TREE))
        target: Any = self.process
        allocator: Any = Allocator(SimpleNamespace(), ARENA, 0, 0)  # type: ignore[arg-type]
        safe: Any = None
        self.objects = Objects(target, allocator, self.kinds, safe, {40: blocks})
        self.passages = [
            Passage(t, at, at, None, None, False, True) for t, at in ((HEADS, VARIABLES), (TOP, VARIABLES + 64))
        ]
        self.bulk: Any = Bulk(self.process)

    def step(self, *, words: bool) -> None:
        """Something that the program does; `words`: it leaves addresses where no type tells of them."""
        self.program.step()
        nodes = [n for nodes in self.program.lists for n in nodes]
        if words and nodes and self.random.random() < 0.2:
            node = self.random.choice(nodes)
            if self.random.random() < 0.5:
                self.store.put(self.random.choice(self.other) + 8 * self.random.randrange(20), "Q", node)
            else:
                self.store.put(self.random.choice(nodes), "Q", node + self.random.choice((0, 8, 100)))

    def contents(self) -> list[bytes]:
        """What the variables hold."""
        return [r.content for r in self.program.roots()]

    def ahead(self) -> Ahead:
        """Before the stop."""
        return Ahead(self.objects, self.passages, Edited(()), self.bulk, self.process.read_map(), self.contents())

    def outcome(self, sight: Any) -> object:
        """Of a look in the stop."""
        cargo = sight.cargo
        assert undone(cargo, self.process.read)
        assert is_only_objects(cargo, self.kinds, self.process.read)
        rows = contents(cargo, self.kinds, self.process.read)
        left = [(u.kind.name, u.count, u.likely, u.first) for u in cargo.unreached]
        free = {a for blocks in self.objects.spare.values() for a in blocks}
        assert set(cargo.placement.used) <= free
        assert len(set(cargo.placement.used)) == len(cargo.placement.used)
        return (
            rows,
            words(sight.findings(Edited(()))),
            left,
            sorted(cargo.to_free),
            sum(cargo.placement.wanted.values()),
        )

    def whole(self) -> tuple[object, bool]:
        """(the oracle's outcome, whether it has nothing against it); None where it refuses."""
        try:
            sight = self.objects.look(
                self.passages, self.contents(), self.bulk, self.process.read_map(), Edited(()), is_stopped=True
            )
        except RefusedError as error:
            return str(error), False
        if sight.cargo.reached.problems or sight.cargo.converted.lost:
            return sight.cargo.reached.problems, False
        return self.outcome(sight), True


def looked(world: World, ahead: Ahead) -> object:
    """The outcome of what was looked at ahead, checked for its ways."""
    sight = ahead.look(world.process.read_map(), world.contents())
    reached = sight.cargo.reached
    for n, f in enumerate(reached.objects):
        assert f.holder < n
        reached.path_to(n)
    return world.outcome(sight)


@settings(max_examples=150)
@given(
    st.integers(0, 2**32),
    st.sampled_from([NODE, TURNED]),
    st.booleans(),
    st.lists(st.integers(0, 12), max_size=4),
    st.lists(st.integers(0, 12), min_size=1, max_size=3),
)
def test_outcome_is_that_of_a_look_at_the_whole(
    seed: int, node: Transformation, has_words: bool, rounds: list[int], stops: list[int]
) -> None:
    world = World(seed, node)
    for _ in range(60):
        world.step(words=has_words)
    try:
        ahead = world.ahead()
        for steps in rounds:
            for _ in range(steps):
                world.step(words=has_words)
            ahead.round(world.process.read_map(), world.contents())
        for steps in stops:
            for _ in range(steps):
                world.step(words=has_words)
            try:
                mine = looked(world, ahead)
            except OpenError:
                continue
            its, is_right = world.whole()
            assert is_right, its
            assert mine == its
    except (UnrepairableError, ShortageError):
        return


def test_it_mostly_comes_out_even() -> None:
    """A bug: each stop is left to the look at the whole."""
    failed = 0
    for seed in range(30):
        world = World(seed, NODE)
        for _ in range(60):
            world.step(words=False)
        try:
            ahead = world.ahead()
            for _ in range(3):
                for _ in range(4):
                    world.step(words=False)
                ahead.round(world.process.read_map(), world.contents())
            for _ in range(4):
                world.step(words=False)
            looked(world, ahead)
        except UnrepairableError:
            failed += 1
    assert failed < 6


def test_shortage_is_told() -> None:
    world = World(1, NODE, spare=10)
    world.program.lists[0] = [world.store.malloc(24) for _ in range(10)]
    world.program.relink(0)
    ahead = world.ahead()
    world.program.lists[0].append(world.store.malloc(24))
    world.program.relink(0)
    try:
        ahead.look(world.process.read_map(), world.contents())
    except ShortageError as error:
        assert error.wanted == {40: 11}
    else:
        raise AssertionError("there are enough")


def test_word_that_was_there_before_its_object_is_found() -> None:
    """A bug: memory that did not change is taken to hold nothing that leads to an object which came since."""
    world = World(1, NODE)
    world.program.lists[0] = [world.store.malloc(24) for _ in range(5)]
    world.program.relink(0)
    later = world.store.malloc(24)
    world.store.put(world.other[0] + 16, "Q", later)
    ahead = world.ahead()
    world.program.lists[0].append(later)
    world.program.relink(0)
    sight = ahead.look(world.process.read_map(), world.contents())
    assert [f.word.value for f in sight.findings(Edited(()))] == [later]


def test_nothing_but_what_changed_is_converted(monkeypatch: Any) -> None:
    world = World(1, NODE)
    nodes = world.program.lists[0] = [world.store.malloc(24) for _ in range(100)]
    world.program.relink(0)
    ahead = world.ahead()
    world.store.put(nodes[50], "Q", 4711)
    made: list[int] = []
    make = Ahead._make

    def noted(self: Ahead, numbers: Any, *, is_ahead: bool) -> Any:
        found = list(numbers)
        made.extend(found)
        return make(self, found, is_ahead=is_ahead)

    monkeypatch.setattr(Ahead, "_make", noted)
    looked(world, ahead)
    assert 0 < len(made) <= PAGE // 32 + 1
