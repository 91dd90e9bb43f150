"""Carrying out a transformation on bytes.

Arrays are what costs, so a `Repeat` of plain copies works on whole columns (`new[i::stride] = old[j::stride]`): one
assignment for a byte of the element, however many elements there are.

Source: C11 6.3.1 (conversions).
"""

from __future__ import annotations

from katana_cc.dwarf.forms import Encoding
from katana_cc.errors import UsageError
from katana_cc.transform.bits import float_bytes, read_bits, read_float, write_bits
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


def apply(t: Transformation, old: bytes, initial: bytes) -> bytes:
    """The new object.

    Args:
        old: the live object, `t.old_size` bytes.
        initial: what the new one begins as, `t.new_size` bytes.

    Raises:
        UsageError: bytes of another size.
    """
    if len(old) != t.old_size or len(initial) != t.new_size:
        raise UsageError(
            f"{t.name}: {len(old)} and {len(initial)} bytes for a transformation of {t.old_size} into {t.new_size}"
        )
    new = bytearray(initial)
    _run(t.steps, old, 0, new, 0)
    return bytes(new)


def _run(steps: tuple[Step, ...], old: bytes, old_at: int, new: bytearray, new_at: int) -> None:
    for step in steps:
        match step:
            case Copy() | Pointer():
                size = step.size if isinstance(step, Copy) else POINTER_SIZE
                start = old_at + step.old
                new[new_at + step.new : new_at + step.new + size] = old[start : start + size]
            case Integer():
                write_bits(new, new_at * 8 + step.new, step.new_bits, _converted(step, old, old_at))
            case Float():
                value = read_float(old, old_at + step.old, step.old_size)
                at = new_at + step.new
                new[at : at + step.new_size] = float_bytes(value, step.new_size)
            case Repeat():
                _repeat(step, old, old_at + step.old, new, new_at + step.new)
            case Initial() | Dropped():
                pass


def _repeat(repeat: Repeat, old: bytes, old_at: int, new: bytearray, new_at: int) -> None:
    rest = []
    for step in repeat.steps:
        if isinstance(step, Copy | Pointer):
            size = step.size if isinstance(step, Copy) else POINTER_SIZE
            if size < repeat.count:
                _columns(repeat, step.old + old_at, old, step.new + new_at, new, size)
                continue
        rest.append(step)
    remaining = tuple(rest)
    if all(isinstance(s, Initial | Dropped) for s in remaining):
        return
    for i in range(repeat.count):
        _run(remaining, old, old_at + i * repeat.old_stride, new, new_at + i * repeat.new_stride)


def _columns(repeat: Repeat, old_at: int, old: bytes, new_at: int, new: bytearray, size: int) -> None:
    """Copy `size` bytes of each element, a column of bytes at a time."""
    old_span, new_span = ((repeat.count - 1) * s + 1 for s in (repeat.old_stride, repeat.new_stride))
    for i in range(size):
        column = old[old_at + i : old_at + i + old_span : repeat.old_stride]
        new[new_at + i : new_at + i + new_span : repeat.new_stride] = column


def _converted(step: Integer, old: bytes, old_at: int) -> int:
    value = read_bits(old, old_at * 8 + step.old, step.old_bits, step.old_encoding is Encoding.SIGNED)
    return int(value != 0) if step.truth else value
