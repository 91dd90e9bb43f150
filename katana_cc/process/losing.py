"""What objects on the heap would lose when they are made anew: values that the way back does not bring again.

Of all objects of a type at once, which are few columns to compare; only those that do lose something are looked at one
by one, for the words to say so.  Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from katana_cc.dwarf.forms import Encoding
from katana_cc.process.moves import Kind
from katana_cc.process.reachable import Found
from katana_cc.transform.execute import apply_all
from katana_cc.transform.inverse import invert
from katana_cc.transform.losses import LossKind, losses
from katana_cc.transform.model import Copy, Dropped, Integer, Repeat, Step, Transformation

_NAMED: Final = 3  # objects of one type of which what they drop is told


class Losses:
    """What objects of one type would lose: sentences, as in a `Cargo`."""

    def __init__(self, kind: Kind, objects: Sequence[Found], old: bytes) -> None:
        t = kind.transformation
        count = len(old) // t.old_size
        self.name = t.name
        self.lost: list[str] = []
        self.dropped: list[tuple[str, str]] = []
        kinds: set[LossKind] = set()
        self._size = t.old_size
        self._objects = objects
        self._ends: list[int] = []
        back = apply_all(invert(t), count, apply_all(t, count, old, bytes(count * t.new_size)), old)
        gone = apply_all(_only_dropped(t), count, old, bytes(len(old)))
        nothing = bytes(len(old))
        bad = {*self._unlike(back, old), *(() if kind.may_drop else self._unlike(gone, nothing))}
        for element in sorted(bad):
            for loss in losses(t, self._slice(old, element)):
                if not (kind.may_drop and loss.kind is LossKind.DROPPED):
                    self.lost.append(f"{t.name} at {self._address(element):#x}: {loss.text}")
                    kinds.add(loss.kind)
        if kind.may_drop:
            found = list(self._unlike(gone, nothing))
            for element in found[:_NAMED]:
                sentences = [x.text for x in losses(t, self._slice(old, element)) if x.kind is LossKind.DROPPED]
                self.dropped += [(t.name, f"at {self._address(element):#x}: {text}") for text in sentences]
            if len(found) > _NAMED:
                self.dropped.append((t.name, f"and so in {len(found) - _NAMED} more"))
        self.is_discardable = kinds == {LossKind.DROPPED}

    def _slice(self, data: bytes, element: int) -> bytes:
        return data[element * self._size : (element + 1) * self._size]

    def _unlike(self, one: bytes, other: bytes) -> Iterator[int]:
        """The elements in which two arrays differ."""
        if one != other:
            yield from (i for i in range(len(one) // self._size) if self._slice(one, i) != self._slice(other, i))

    def _address(self, element: int) -> int:
        self._ends = self._ends or list(accumulate(f.elements for f in self._objects))
        i = bisect_right(self._ends, element)
        return self._objects[i].address + (element - self._ends[i] + self._objects[i].elements) * self._size


def _only_dropped(t: Transformation) -> Transformation:
    """Keeps what `t` drops, where it is, and nothing else."""
    return Transformation(t.name, t.old_size, t.old_size, tuple(_kept(t.steps)))


def _kept(steps: Iterable[Step]) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, Dropped):
            start, end = step.old, step.old + step.bits
            if start % 8 == 0 and end % 8 == 0:
                yield Copy(start // 8, start // 8, step.bits // 8)
            else:
                yield Integer(start, step.bits, Encoding.UNSIGNED, start, step.bits, Encoding.UNSIGNED)
        elif isinstance(step, Repeat) and (inner := tuple(_kept(step.steps))):
            yield Repeat(step.count, step.old, step.old_stride, step.old, step.old_stride, inner)
