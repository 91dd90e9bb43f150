"""The order of a transformation's steps, and the rules that whoever makes or reads one holds it to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from katana_cc.transform.model import (
    POINTER_SIZE,
    Copy,
    Dropped,
    Float,
    Initial,
    Integer,
    Pointer,
    Repeat,
    Step,
    Transformation,
)

DEPTH_LIMIT = 32  # of repeats in repeats
SIZE_LIMIT = (1 << 32) - 1  # bytes of an object: what DW_CFA_advance_loc4 passes in one step
BITS_LIMIT = 64  # of a number that is converted: what one DWARF stack entry holds


def ordered(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The one order of these steps: by their place in the new object, then what is dropped, by its place in the old."""
    return tuple(sorted(steps, key=_rank))


def _rank(step: Step) -> tuple[int, int]:
    return (1, step.old) if isinstance(step, Dropped) else (0, new_range(step)[0])


def new_range(step: Step) -> tuple[int, int]:
    """[start, end) in bits of what a step speaks of in the new object; empty for what is dropped."""
    match step:
        case Copy():
            return step.new * 8, (step.new + step.size) * 8
        case Pointer():
            return step.new * 8, (step.new + POINTER_SIZE) * 8
        case Integer():
            return step.new, step.new + step.new_bits
        case Float():
            return step.new * 8, (step.new + step.new_size) * 8
        case Initial():
            return step.new, step.new + step.bits
        case Repeat():
            end = max((new_range(s)[1] for s in step.steps), default=0)
            return step.new * 8, (step.new + (step.count - 1) * step.new_stride) * 8 + end
        case Dropped():
            return 0, 0


def old_range(step: Step) -> tuple[int, int]:
    """[start, end) in bits of what a step speaks of in the old object; empty for what comes from none."""
    match step:
        case Copy():
            return step.old * 8, (step.old + step.size) * 8
        case Pointer():
            return step.old * 8, (step.old + POINTER_SIZE) * 8
        case Integer():
            return step.old, step.old + step.old_bits
        case Float():
            return step.old * 8, (step.old + step.old_size) * 8
        case Dropped():
            return step.old, step.old + step.bits
        case Repeat():
            end = max((old_range(s)[1] for s in step.steps), default=0)
            return step.old * 8, (step.old + (step.count - 1) * step.old_stride) * 8 + end
        case Initial():
            return 0, 0


def broken(t: Transformation) -> list[str]:
    """Each rule that `t` breaks, as a sentence; empty when it can be executed, inverted and written."""
    if not (0 <= t.old_size <= SIZE_LIMIT and 0 <= t.new_size <= SIZE_LIMIT):
        return [f"sizes {t.old_size} and {t.new_size}"]
    return list(_broken(t.steps, t.old_size * 8, t.new_size * 8, 0))


def _broken(steps: tuple[Step, ...], old_bits: int, new_bits: int, depth: int) -> Iterator[str]:
    if depth > DEPTH_LIMIT:
        yield f"arrays in arrays, more than {DEPTH_LIMIT} deep"
        return
    # What a step is by itself comes first: the ranges of one with a negative size mean nothing.
    for step in steps:
        if not _sound(step):
            yield f"{_words(step)}: a number out of range"
            return
    if steps != ordered(steps):
        yield "steps out of order"
    reach = {"new": 0, "old": 0}
    sides = (
        ("new", new_bits, [(new_range(s), s) for s in steps if not isinstance(s, Dropped)]),
        ("old", old_bits, [(old_range(s), s) for s in steps if not isinstance(s, Initial)]),
    )
    for side, size, ranges in sides:
        for (start, end), step in sorted(ranges, key=lambda pair: pair[0]):
            if end > size:
                yield f"{_words(step)}: beyond the end of the {side} object"
            if start < reach[side]:
                yield f"{_words(step)}: overlaps another field of the {side} object"
            reach[side] = max(reach[side], end)
    for step in steps:
        if isinstance(step, Repeat):
            if not step.steps:
                yield f"{_words(step)}: repeats nothing"
            yield from _broken(step.steps, step.old_stride * 8, step.new_stride * 8, depth + 1)


def _sound(step: Step) -> bool:
    """Whether the numbers of a step are within their ranges."""
    limit = SIZE_LIMIT * 8
    match step:
        case Copy():
            return _within(limit, step.new, step.old) and 0 < step.size <= limit
        case Pointer():
            return _within(limit, step.new, step.old)
        case Integer():
            widths = 1 <= step.new_bits <= BITS_LIMIT and 1 <= step.old_bits <= BITS_LIMIT
            return widths and _within(limit, step.new, step.old)
        case Float():
            return {step.new_size, step.old_size} == {4, 8} and _within(limit, step.new, step.old)
        case Repeat():
            counted = 1 <= step.count <= limit and step.new_stride > 0 and step.old_stride > 0
            return counted and _within(limit, step.new, step.old, step.new_stride, step.old_stride)
        case Initial():
            return _within(limit, step.new) and 0 < step.bits <= limit
        case Dropped():
            return _within(limit, step.old) and 0 < step.bits <= limit


def _within(limit: int, *numbers: int) -> bool:
    return all(0 <= n <= limit for n in numbers)


def _words(step: Step) -> str:
    name = step.source if isinstance(step, Dropped) else step.field
    return f"{type(step).__name__.lower()} `{name}`" if name else type(step).__name__.lower()
