"""Where pointers into an object lead once it has moved.

Whoever points to the start of a field means the field, in the middle of an array an element; so a byte of the old
object is looked up among its fields.  Where a struct begins, its first field does too, and the pointer may mean
either:

    struct { int a; struct { int x; } in; }  →  struct { int a; struct { int n, x; } in; }

A pointer to byte 4 may be one to `in`, which is still there, or one to `in.x`, which is 4 bytes on.  Only where all
agree is it known.  Structs have no steps of their own: they are told by the paths of their fields, in whichever build
has them, and begin where the first of these does.

A pointer to a struct leads to one, or to the element of an array of them, where one begins.  Byte 0 is the object
itself, unless what the pointer is known to point to says otherwise: an `int *` leads to the first field.  A pointer of
such a type does not follow a number to another width: it would go on reading and writing the old one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from katana_cc.transform.model import Copy, Dropped, Float, Initial, Integer, Pointer, Repeat, Step, Transformation
from katana_cc.transform.rules import new_range, old_range

_OBJECTS = "struct ", "union ", "class "
_BYTES = "char", "signed char", "unsigned char"  # such a pointer may lead to anything


@dataclass(frozen=True, slots=True)
class _Level:
    """Steps that count from one place: (start and end in bits of the old side, the step, the level of its elements);
    and where each struct among them begins, (old, new) in bytes."""

    steps: tuple[tuple[int, int, Step, _Level | None], ...]
    structs: tuple[tuple[int, int], ...]


class Destinations:
    """Where the bytes of one old object are in the new; prepared, to be asked often."""

    def __init__(self, t: Transformation) -> None:
        self._level = _level(t.steps)
        self._type = t.type or t.name  # (a type has its text for a name)
        self._steps = t.steps
        self._takes_nothing = t.takes_nothing

    def of(self, offset: int, pointee: str = "") -> int | None:
        """The byte offset in the new object of what a pointer to byte `offset` of the old one means.

        None where that is not known for sure: in fields that are dropped, in the middle of a value that is converted,
        in padding, at the end, and where things that begin there part ways.

        Of an object that takes nothing over, the start alone is known.

        Args:
            pointee: what the pointer points to, as in `katana_cc.transform.model.Pointer`; "" where nobody knows.
        """
        if offset == 0 and (pointee in ("", "void", self._type) or self._takes_nothing):
            return 0
        if pointee and self._type.startswith(f"{pointee}[") and (element := _element(self._steps, offset)) is not None:
            return element
        is_object = pointee.startswith(_OBJECTS) and "*" not in pointee
        if offset and is_object and (objects := set(_objects(self._level, offset))):
            # A pointer to a struct means none of the numbers that begin with one.
            return objects.pop() if len(objects) == 1 else None
        if offset == 0 and is_object:
            found: set[int | None] = {0, *(new for old, new in self._level.structs if old == 0)}
        else:
            typed = pointee not in _BYTES and pointee not in ("", "void") and not is_object
            found = set(_destinations(self._level, offset, typed))
            if offset == 0 and pointee in _BYTES:
                found.add(0)
        return found.pop() if len(found) == 1 else None


def _element(steps: Sequence[Step], offset: int) -> int | None:
    """Where the element of an array that begins at `offset` is now; None where none does."""
    if len(steps) != 1 or not isinstance(repeat := steps[0], Repeat):
        return 0 if offset == 0 else None
    index, rest = divmod(offset - repeat.old, repeat.old_stride)
    inside = _element(repeat.steps, rest) if 0 <= index < repeat.count else None
    return None if inside is None else repeat.new + index * repeat.new_stride + inside


def _level(steps: Sequence[Step]) -> _Level:
    ranges = tuple(
        (*old_range(s), s, _level(s.steps) if isinstance(s, Repeat) else None)
        for s in steps
        if not isinstance(s, Initial)
    )
    pairs = {
        pair
        for s in steps
        if not isinstance(s, Initial | Dropped)
        for pair in zip(_outer(s.source), _outer(s.field), strict=False)
    }
    structs = {
        (
            min(old_range(s)[0] // 8 for s in steps if not isinstance(s, Initial) and before in _outer(s.source)),
            min(new_range(s)[0] // 8 for s in steps if not isinstance(s, Dropped) and after in _outer(s.field)),
        )
        for before, after in pairs
    }
    return _Level(ranges, tuple(sorted(structs)))


def _destinations(level: _Level, offset: int, typed: bool) -> Iterator[int | None]:
    """Where each thing lies now that a pointer to byte `offset` may mean; None: nowhere.  `typed`: the pointer says of
    what width the value is."""
    for start, end, step, elements in level.steps:
        if start <= offset * 8 < end:
            yield from _within(step, elements, offset - start // 8, typed)
    yield from (new for old, new in level.structs if old == offset)


def _objects(level: _Level, offset: int) -> Iterator[int]:
    """Where each struct is now that begins at byte `offset`: one of its own, or an element of an array."""
    yield from (new for old, new in level.structs if old == offset)
    for start, end, step, elements in level.steps:
        if isinstance(step, Repeat) and elements is not None and start <= offset * 8 < end:
            index, rest = divmod(offset - start // 8, step.old_stride)
            at = step.new + index * step.new_stride
            if not rest and any(not isinstance(s, Initial) and s.source for s in step.steps):
                yield at
            yield from (at + inside for inside in _objects(elements, rest))


def _within(step: Step, elements: _Level | None, inside: int, typed: bool) -> Iterator[int | None]:
    """The same for byte `inside` of a step's old side."""
    match step:
        case Copy():
            yield step.new + inside
        case Pointer():
            yield None if inside else step.new
        case Float():
            yield None if inside or typed else step.new
        case Integer():
            # Nothing points to a bit-field.
            if not (step.old % 8 or step.new % 8 or step.old_bits % 8 or step.new_bits % 8):
                whole = step.old_bits == step.new_bits and not step.truth
                yield step.new // 8 + inside if whole or not (inside or typed) else None
        case Repeat():
            index, rest = divmod(inside, step.old_stride)
            start = step.new + index * step.new_stride
            if not rest:
                yield start
            if elements is not None:
                yield from (None if at is None else start + at for at in _destinations(elements, rest, typed))
        case _:
            yield None


def _outer(path: str) -> list[str]:
    """The paths of the structs that a field lies in: of `a.b.c`, `a` and `a.b`."""
    found, depth = [], 0
    for i, char in enumerate(path):
        depth += (char in "(<[") - (char in ")>]")
        if char == "." and not depth:
            found.append(path[:i])
    return found
