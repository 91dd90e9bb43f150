"""Blocks of just the size of a type that changed, to which nothing led: any of them may be an object that was missed.

Objects are found by the pointers that lead to them, so one to which only hidden pointers lead is not found.  It would
be left in its old layout, and nobody would be told: hence the question.  Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from katana_cc.process.chunks import chunk_size
from katana_cc.process.maps import MemoryMap
from katana_cc.process.moves import Kind
from katana_cc.process.reachable import Blocks, Root
from katana_cc.process.words import WORD
from katana_cc.transform.places import pointers

_NAMED: Final = 5  # blocks that a message names


class ReadableBlocks(Blocks, Protocol):
    """Blocks that can be read."""

    def read(self, address: int, size: int) -> bytes:
        """As of `Reader`."""


@dataclass(frozen=True, slots=True)
class Unreached:
    """Blocks of just the size of a type that no pointer of the walk led to.  `likely` of them hold pointers wherever
    such an object does; `first` are of these, if there are any."""

    kind: Kind
    count: int
    likely: int
    first: tuple[int, ...]

    @property
    def has_pointers(self) -> bool:
        """Whether objects of the type have pointers to be told by."""
        return any(pointers(self.kind.transformation))


class Unled:
    """Blocks of those sizes to which nothing led, kept up to date.

    Args:
        kinds: the types that are walked.
        heap: kept up to date by the caller.
        is_other: whether the block at an address is known to be something else.
    """

    def __init__(self, kinds: Sequence[Kind], heap: ReadableBlocks, is_other: Callable[[int], bool]) -> None:
        self._kinds, self._heap, self._is_other = kinds, heap, is_other
        self._left: dict[int, set[int]] = {size: set() for size in sizes_of(kinds)}
        if self._left:
            for address, size in heap.used.items():
                if size in self._left and not is_other(address):
                    self._left[size].add(address)

    def follow(self, gone: Mapping[int, int], came: Iterable[int]) -> None:
        """Take over that blocks are gone (start → size), and that others came or may be something else by now."""
        for address, size in gone.items():
            if size in self._left:
                self._left[size].discard(address)
        for address in came:
            for blocks in self._left.values():
                blocks.discard(address)
            size = self._heap.used.get(address, 0)
            if size in self._left and not self._is_other(address):
                self._left[size].add(address)

    def found(self, regions: MemoryMap, roots: Sequence[Root]) -> Iterator[Unreached]:
        """Those that may be objects."""
        left = {size: sorted(blocks) for size, blocks in self._left.items()}
        return unreached_among(left, self._kinds, self._heap, regions, roots)


def sizes_of(kinds: Iterable[Kind]) -> list[int]:
    """The sizes of blocks that may be such, in usable bytes, each once."""
    return list(dict.fromkeys(chunk_size(k.transformation.old_size) for k in kinds if not (k.stays or k.is_all)))


def unreached_among(
    left: Mapping[int, Sequence[int]],
    kinds: Sequence[Kind],
    heap: ReadableBlocks,
    regions: MemoryMap,
    roots: Sequence[Root],
) -> Iterator[Unreached]:
    """Blocks that may be objects to which nothing led.

    Args:
        left: size of a block → those in use to which nothing led.
    """
    named = {k.name for k in kinds}
    for size, addresses in left.items():
        for kind in kinds:
            t = kind.transformation
            if kind.stays or kind.is_all or chunk_size(t.old_size) != size:
                continue
            places = [(p.old, p.pointee in named) for p in pointers(t)]
            blocks = [a for a in addresses if _may_be(heap.read(a, t.old_size), places, regions)]
            likely = [a for a in blocks if _looks_like(heap.read(a, t.old_size), places, heap, regions, roots)]
            if blocks:
                yield Unreached(kind, len(blocks), len(likely), tuple((likely or blocks)[:_NAMED]))


def _may_be(data: bytes, places: Sequence[tuple[int, bool]], regions: MemoryMap) -> bool:
    """Whether a block may be an object.  One with a pointer to a type that is walked (as `places` says), and that leads
    to no memory, would be refused, had it been found: so it is none that was missed."""
    values = (int.from_bytes(data[at : at + WORD], "little") for at, is_walked in places if is_walked)
    return not any(value and regions.at(value) is None for value in values)


def _looks_like(
    data: bytes, places: Sequence[tuple[int, bool]], heap: ReadableBlocks, regions: MemoryMap, roots: Sequence[Root]
) -> bool:
    """Whether a block looks like an object: each pointer is null, or leads somewhere; one to a type that is walked to a
    block in use or a variable."""
    for at, is_walked in places:
        value = int.from_bytes(data[at : at + WORD], "little")
        if not value:
            continue
        if not is_walked:
            if regions.at(value) is None:
                return False
            continue
        block = heap.at(value)
        if not (block is not None and block.is_used) and not any(r.address <= value < r.end for r in roots):
            return False
    return True
