"""All pointers that objects hold, those at one place in a type at once: objects come by the hundred thousand.  Pure."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from katana_cc.process.reachable import Found, PieceReader, Pieces
from katana_cc.process.walk import Prepared
from katana_cc.process.ways import Slot


class Column(NamedTuple):
    """The pointers at one place of all objects of a type: what they lead to, where in an element they are, its size;
    what each holds; the objects, how many elements each has, and at which its ends."""

    target: int
    at: int
    size: int
    values: list[int]
    numbers: list[int]
    elements: list[int]
    ends: list[int]

    def leading_to(self, wanted: set[int]) -> Iterator[tuple[int, Slot]]:
        """Those that lead to one of these."""
        for element, value in enumerate(self.values) if wanted else ():
            if value in wanted:
                i = bisect_right(self.ends, element)
                inside = element - (self.ends[i] - self.elements[i])
                yield value, (self.numbers[i], inside * self.size + self.at)


def columns(
    kinds: Sequence[Prepared], objects: Sequence[Found], numbers: Iterable[int], memory: Pieces
) -> Iterator[Column]:
    """Those of some objects, by their numbers."""
    members: list[list[int]] = [[] for _ in kinds]
    for n in numbers:
        members[objects[n].type].append(n)
    reader = PieceReader(memory)
    for kind, mine in zip(kinds, members, strict=True):
        if not kind.places or not mine:
            continue
        elements = [objects[n].elements for n in mine]
        data = reader.join((objects[n].address, objects[n].elements * kind.size) for n in mine)
        ends = list(accumulate(elements))
        for target, at in kind.places:
            form = struct.Struct(f"<{at}xQ{kind.size - at - 8}x")
            yield Column(target, at, kind.size, [v for (v,) in form.iter_unpack(data)], mine, elements, ends)
