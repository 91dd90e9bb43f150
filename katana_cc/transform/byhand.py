"""Parts of live objects that a function of the user's makes anew, and what they begin as.

Of a type that a function makes, nothing is asked and nothing refused: the function decides.  It gets the old object and
a new one, in which the fields are filled that both layouts have by name and that take over each old value as it is;
every other field begins as its initial bytes.

A part is told by where it lies in the whole: in arrays, where the first lies and how far apart they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from katana_cc.dwarf.forms import Encoding
from katana_cc.transform.model import Float, Integer, Repeat, Step

ROWS_LIMIT: Final = 1 << 16


class Level(NamedTuple):
    """An array that a part lies in: where it begins in what holds it, and how far apart its elements are, in bytes."""

    number: int
    old: int
    old_stride: int
    new: int
    new_stride: int


class Part(NamedTuple):
    """`number` parts of the type `key`: the first at byte `old` of the old object and `new` of the new one."""

    key: str
    old: int
    new: int
    number: int
    old_stride: int
    new_stride: int


def parts(key: str, old: int, new: int, sizes: tuple[int, int], levels: Sequence[Level]) -> Iterator[Part]:
    """The parts that one place of a type stands for: `old` and `new` count from the element of the innermost of
    `levels`, which are the arrays around it, the outermost first."""
    *outer, inner = levels or [Level(1, 0, sizes[0], 0, sizes[1])]
    for indices in itertools.product(*(range(level.number) for level in outer)):
        pairs = list(zip(outer, indices, strict=True))
        start = old + inner.old + sum(x.old + i * x.old_stride for x, i in pairs)
        end = new + inner.new + sum(x.new + i * x.new_stride for x, i in pairs)
        yield Part(key, start, end, inner.number, inner.old_stride, inner.new_stride)


def rows(levels: Sequence[Level]) -> int:
    """How many parts that is."""
    count = 1
    for level in levels[:-1]:
        count *= level.number
    return count


def may_lose(steps: Iterable[Step]) -> bool:
    """Whether a conversion among these steps may not keep a value as it is."""
    return any(_may_lose(s) for s in steps)


def _may_lose(step: Step) -> bool:
    match step:
        case Repeat():
            return may_lose(step.steps)
        case Float():
            return step.new_size < step.old_size
        case Integer():
            if step.truth:
                return True
            was, now = step.old_encoding is Encoding.SIGNED, step.new_encoding is Encoding.SIGNED
            room = step.new_bits - (1 if now and not was else 0)
            return room < step.old_bits or (was and not now)
        case _:
            return False
