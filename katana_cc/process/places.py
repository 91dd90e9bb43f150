"""Where objects that are made anew go: in their block, or in one that malloc gave out before.  Pure.

For all of them at once, and one by one where they come and go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Final, NamedTuple, Protocol

from katana_cc.process.moves import Kind
from katana_cc.process.reachable import Found, Reached

_ADDRESS: Final = itemgetter(0)  # of a Found


class Placement(NamedTuple):
    """Where the objects of types that are transformed go.  `objects` are by address, `news` the addresses of their new
    blocks.  `wanted`: size in bytes → how many new blocks that takes; `used` are those of them that were there, and not
    only imagined (`is_real`)."""

    objects: Sequence[Found]
    news: Sequence[int]
    wanted: dict[int, int]
    used: Sequence[int]
    is_real: bool

    @property
    def is_complete(self) -> bool:
        """Whether there were blocks for all."""
        return sum(self.wanted.values()) == len(self.used)


class Supply(Protocol):
    """New blocks, by size."""

    def get(self, size: int, /) -> Sequence[int] | None:
        """Those of a size."""


class Imagined:
    """For a look before there are any: addresses that are no block's."""

    def get(self, size: int, /) -> Sequence[int]:
        """As many as are asked for."""
        return range(1 << 60, 1 << 61, 16 + (size + 15 & -16))


def place(reached: Reached, spare: Supply, apart: Collection[str] = ()) -> Placement:
    """Decide for each object of a type that is transformed where it goes; of the types `apart` never to its own
    block."""
    stays = [t.name not in apart for t in reached.types]
    sizes = [None if t.is_identity else t.new_size for t in reached.types]
    objects = sorted((f for f in reached.objects if sizes[f.type] is not None), key=_ADDRESS)
    news: list[int] = []
    used: list[int] = []
    wanted: Counter[int] = Counter()
    for f in objects:
        one = sizes[f.type] or 1
        size = f.elements * one
        if f.size // one == f.elements and stays[f.type]:
            news.append(f.address)
            continue
        blocks = spare.get(size) or ()
        if wanted[size] < len(blocks):
            used.append(blocks[wanted[size]])
            news.append(used[-1])
        else:
            news.append(0)
        wanted[size] += 1
    return Placement(objects, news, dict(wanted), used, not isinstance(spare, Imagined))


class Places:
    """As `place`, of objects that come and go.

    Args:
        kinds: of the types, by their numbers.
        placement: of those that are there at the beginning.
        spare: size in bytes → new blocks.

    Attributes:
        starts: type → start of a block → where its objects go; 0 where there is no new block.
        needed: size in bytes → how many new blocks that takes.
    """

    def __init__(self, kinds: Sequence[Kind], placement: Placement, spare: Mapping[int, Sequence[int]]) -> None:
        self._kinds = kinds
        self.starts: dict[str, dict[int, int]] = {k.name: {} for k in kinds}
        for f, new in zip(placement.objects, placement.news, strict=True):
            self.starts[kinds[f.type].name][f.address] = new
        self.needed = Counter(placement.wanted)
        used = set(placement.used)
        self._given = {a: size for size, blocks in spare.items() for a in blocks}
        self._free = {size: [a for a in blocks if a not in used] for size, blocks in spare.items()}
        self._short: set[int] = set()  # objects for which there is no new block

    @property
    def given(self) -> Iterable[int]:
        """All new blocks."""
        return self._given

    @property
    def wanted(self) -> dict[int, int]:
        """How many new blocks of each size it takes."""
        return {size: n for size, n in self.needed.items() if n}

    @property
    def is_complete(self) -> bool:
        """Whether there are blocks for all."""
        return not self._short

    def is_given(self, address: int) -> bool:
        """Whether a new block is there."""
        return address in self._given

    def add(self, f: Found) -> None:
        """Decide where an object goes."""
        kind = self._kinds[f.type]
        if kind.stays:
            return
        new_size = kind.transformation.new_size
        if f.size // new_size == f.elements and not kind.made:
            self.starts[kind.name][f.address] = f.address
            return
        size = f.elements * new_size
        self.needed[size] += 1
        free = self._free.get(size)
        if not free:
            self._short.add(f.address)
        self.starts[kind.name][f.address] = free.pop() if free else 0

    def remove(self, f: Found) -> None:
        """It is there no more."""
        kind = self._kinds[f.type]
        new = self.starts[kind.name].pop(f.address, None)
        if new is not None and new != f.address:
            self._short.discard(f.address)
            size = self._given.get(new, f.elements * kind.transformation.new_size)
            self.needed[size] -= 1
            if new:
                self._free[size].append(new)
