"""What becomes of each field of one live object, with its value: for a person, before it is done.

Fields that only move are not told of.  Values of fields that only one side has are shown as bytes are: their types are
not in the transformation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from katana_cc.dwarf.forms import Encoding
from katana_cc.transform.bits import plain, read_bits, read_float
from katana_cc.transform.model import Dropped, Float, Initial, Integer, Repeat, Step, Transformation, joined
from katana_cc.transform.places import element_path


class FateKind(StrEnum):
    """What becomes of a field."""

    COMES = "comes"
    GOES = "goes"
    CONVERTED = "converted"


class Fate(NamedTuple):
    """What becomes of one field: its path with indices, of the new object unless it goes; the value it had and the one
    it gets, "" where that side has no such field."""

    kind: FateKind
    field: str
    old: str
    new: str


def fates(t: Transformation, live: bytes, made: bytes) -> Iterator[Fate]:
    """What becomes of each field that does not come over as it is, in the order of the steps, element by element.

    Args:
        live: the old object, `t.old_size` bytes.
        made: the new one, `t.new_size` bytes.
    """
    if t.takes_nothing:
        return iter([Fate(FateKind.COMES, "", "", "what the new build begins with")])
    return _fates(t.steps, live, made, 0, 0, "", "")


def _fates(
    steps: Sequence[Step], live: bytes, made: bytes, old: int, new: int, field: str, source: str
) -> Iterator[Fate]:
    for step in steps:
        match step:
            case Initial():
                yield Fate(
                    FateKind.COMES,
                    joined(field, step.field),
                    "",
                    plain(made, new * 8 + step.new, step.bits, step.field),
                )
            case Dropped():
                yield Fate(
                    FateKind.GOES,
                    joined(source, step.source),
                    plain(live, old * 8 + step.old, step.bits, step.source),
                    "",
                )
            case Integer() if (step.old_bits, step.old_encoding) != (step.new_bits, step.new_encoding):
                before = _number(live, old * 8 + step.old, step.old_bits, step.old_encoding)
                after = _number(made, new * 8 + step.new, step.new_bits, step.new_encoding)
                yield Fate(FateKind.CONVERTED, joined(field, step.field), before, after)
            case Float():
                before = repr(read_float(live, old + step.old, step.old_size))
                after = repr(read_float(made, new + step.new, step.new_size))
                yield Fate(FateKind.CONVERTED, joined(field, step.field), before, after)
            case Repeat() if any(_tells(s) for s in step.steps):
                for i in range(step.count):
                    starts = old + step.old + i * step.old_stride, new + step.new + i * step.new_stride
                    paths = element_path(field, step.field, i), element_path(source, step.source, i)
                    yield from _fates(step.steps, live, made, *starts, *paths)
            case _:
                pass


def _tells(step: Step) -> bool:
    if isinstance(step, Repeat):
        return any(_tells(s) for s in step.steps)
    if isinstance(step, Integer):
        return (step.old_bits, step.old_encoding) != (step.new_bits, step.new_encoding)
    return isinstance(step, Initial | Dropped | Float)


def _number(data: bytes, bit: int, bits: int, encoding: Encoding) -> str:
    return str(read_bits(data, bit, bits, encoding is Encoding.SIGNED))
