"""Where things lie in an object that a transformation describes: its pointers, and what a person calls a byte.

Whoever walks typed pointers through live data asks the first, also of types that did not change: their transformation
is an identity that still names every pointer.  Whoever found a word that nothing explains asks the second.  Where a
pointer into the old object leads in the new one is the third question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from katana_cc.transform.destinations import Destinations
from katana_cc.transform.model import (
    POINTER_SIZE,
    Copy,
    Dropped,
    Initial,
    Integer,
    Pointer,
    Repeat,
    Step,
    Transformation,
    joined,
)
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


def pointer_steps(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps that are pointers, and the arrays of what holds some, with these alone."""
    for step in steps:
        if isinstance(step, Pointer):
            yield step
        elif isinstance(step, Repeat) and (inner := tuple(pointer_steps(step.steps))):
            yield replace(step, steps=inner)


def leading(types: Mapping[str, Transformation], begins: Mapping[str, str]) -> frozenset[str]:
    """The names of those types that whoever looks for objects that are made anew has to know: these, what leads to one
    by typed pointers, and what one begins with (`begins`: name → what it begins with, "" for none of these)."""
    found = {name for name, t in types.items() if not t.is_identity}
    for name in sorted(found):
        while (name := begins.get(name, "")) and name not in found:
            found.add(name)
    holders: dict[str, list[str]] = {}
    for name, t in types.items():
        for p in pointers(t):
            holders.setdefault(p.pointee, []).append(name)
    waiting = list(found)
    while waiting:
        more = [name for name in holders.get(waiting.pop(), ()) if name not in found]
        found.update(more)
        waiting += more
    return frozenset(found)


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


def pointer_at(t: Transformation, offset: int) -> PointerPlace | None:
    """The pointer that begins at byte `offset` of the old object; None where none begins."""
    return _pointer_at(t.steps, offset, 0, 0, "")


def _pointer_at(steps: Sequence[Step], offset: int, old: int, new: int, prefix: str) -> PointerPlace | None:
    """`offset` counts from where the steps do; `old`, `new`: where that is."""
    for step in steps:
        if isinstance(step, Pointer) and step.old == offset:
            return PointerPlace(old + offset, new + step.new, step.pointee, joined(prefix, step.field))
        if isinstance(step, Repeat) and step.old <= offset < step.old + step.count * step.old_stride:
            index, rest = divmod(offset - step.old, step.old_stride)
            starts = old + step.old + index * step.old_stride, new + step.new + index * step.new_stride
            found = _pointer_at(step.steps, rest, *starts, element_path(prefix, step.field, index))
            if found is not None:
                return found
    return None


def moved_offset(t: Transformation, offset: int, pointee: str = "") -> int | None:
    """Where byte `offset` of the old object is in the new one: `katana_cc.transform.destinations`, asked once."""
    return Destinations(t).of(offset, pointee)


class WordPlace(NamedTuple):
    """What becomes of 8 bytes of the old object.  `carried`: whether any of them is; `new`: the byte offset of all of
    them in the new object, None where they are not together as they were."""

    carried: bool
    new: int | None


def word_at(t: Transformation, offset: int) -> WordPlace:
    """What becomes of the 8 bytes at `offset`, whatever their type: for words in fields that are no pointers."""
    whole = set(_whole(t.steps, offset))
    return WordPlace(any(_carried(t.steps, offset)), whole.pop() if len(whole) == 1 else None)


def _overlapping(steps: Sequence[Step], offset: int) -> Iterator[Step]:
    for step in steps:
        start, end = old_range(step)
        if not isinstance(step, Initial) and start < (offset + POINTER_SIZE) * 8 and offset * 8 < end:
            yield step


def _elements(repeat: Repeat, offset: int) -> Iterator[tuple[int, int]]:
    """(its number, `offset` counted from its start) of each element of an array that has some of the 8 bytes."""
    first, last = ((offset + n - repeat.old) // repeat.old_stride for n in (0, POINTER_SIZE - 1))
    for i in range(max(0, first), min(repeat.count, last + 1)):
        yield i, offset - repeat.old - i * repeat.old_stride


def _carried(steps: Sequence[Step], offset: int) -> Iterator[bool]:
    for step in _overlapping(steps, offset):
        if isinstance(step, Repeat):
            for _, inside in _elements(step, offset):
                yield from _carried(step.steps, inside)
        else:
            yield not isinstance(step, Dropped)


def _whole(steps: Sequence[Step], offset: int) -> Iterator[int]:
    """The new offset of the 8 bytes, from each step that has them all and keeps them as they are."""
    for step in _overlapping(steps, offset):
        if isinstance(step, Repeat):
            for i, inside in _elements(step, offset):
                yield from (step.new + i * step.new_stride + at for at in _whole(step.steps, inside))
            continue
        start, end = old_range(step)
        if start > offset * 8 or end < (offset + POINTER_SIZE) * 8:
            continue
        if isinstance(step, Copy | Pointer):
            yield step.new + offset - step.old
        elif isinstance(step, Integer) and step.new_bits == step.old_bits and not (step.truth or step.new % 8):
            yield step.new // 8
