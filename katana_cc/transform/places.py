"""Where things lie in an object that a transformation describes: its pointers, and what a person calls a byte.

Whoever walks typed pointers through live data asks the first, also of types that did not change: their transformation
is an identity that still names every pointer.  Whoever found a word that nothing explains asks the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from katana_cc.transform.model import Dropped, Initial, Pointer, Repeat, Step, Transformation, joined
from katana_cc.transform.rules import new_range, old_range


class PointerPlace(NamedTuple):
    """A pointer that both objects hold.  Byte offsets from the start of each; `pointee` as in `model.Pointer`; `path`
    that of the new field, with its indices."""

    old: int
    new: int
    pointee: str
    path: str


def pointers(t: Transformation) -> Iterator[PointerPlace]:
    """Every pointer, element by element.  Those in unions are not among them: which member is in use, no type says."""
    return _pointers(t.steps, 0, 0, "")


def _pointers(steps: Sequence[Step], old: int, new: int, prefix: str) -> Iterator[PointerPlace]:
    for step in steps:
        if isinstance(step, Pointer):
            yield PointerPlace(old + step.old, new + step.new, step.pointee, joined(prefix, step.field))
        elif isinstance(step, Repeat) and _holds_pointer(step):
            for i in range(step.count):
                path = element_path(prefix, step.field, i)
                starts = old + step.old + i * step.old_stride, new + step.new + i * step.new_stride
                yield from _pointers(step.steps, *starts, path)


def _holds_pointer(repeat: Repeat) -> bool:
    return any(isinstance(s, Pointer) or (isinstance(s, Repeat) and _holds_pointer(s)) for s in repeat.steps)


def element_path(prefix: str, array: str, index: int) -> str:
    """The path of an element of an array whose `Repeat` is labelled `array`."""
    return joined(prefix, f"{array.removesuffix('[]')}[{index}]")


def field_at(t: Transformation, offset: int, *, new: bool = False) -> str:
    """The path of the field that holds byte `offset` of the old object (`new`: of the new one); "" for padding.

    The path of a variable that is one value is "" as well.
    """
    return _field_at(t.steps, offset * 8, new, "")


def _field_at(steps: Sequence[Step], bit: int, new: bool, prefix: str) -> str:
    for step in steps:
        if isinstance(step, Dropped if new else Initial):
            continue
        start, end = new_range(step) if new else old_range(step)
        # Bit-fields share bytes: any that has a bit of this one.
        if not (start < bit + 8 and bit < end):
            continue
        name = step.field if isinstance(step, Initial) or (new and not isinstance(step, Dropped)) else step.source
        if not isinstance(step, Repeat):
            return joined(prefix, name)
        first, stride = (step.new, step.new_stride) if new else (step.old, step.old_stride)
        index, rest = divmod(bit - first * 8, stride * 8)
        return _field_at(step.steps, rest, new, element_path(prefix, name, index))
    return prefix
