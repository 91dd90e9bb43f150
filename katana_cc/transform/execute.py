"""Carrying out a transformation on bytes.

Arrays are what costs, so copies and numbers of whole bytes in a `Repeat` work on columns
(`new[i::stride] = old[j::stride]`): one assignment for a byte of the element, however many elements there are.  A sign
is extended by a column as well, translated from the highest byte's.

Source: C11 6.3.1 (conversions).
"""

from __future__ import annotations

from dataclasses import replace

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

_BLOCK = 4096  # elements at a time: what the processor's cache holds while each column passes over them
_SIGNS = bytes(128) + b"\xff" * 128  # the highest byte of a number -> the bytes above it


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


def apply_all(t: Transformation, count: int, old: bytes, initial: bytes) -> bytes:
    """The same for `count` objects, one after the other in `old` and in `initial`; faster than one by one.

    Raises:
        UsageError: bytes of another size.
    """
    if not count:
        return b""
    repeat = Repeat(count, 0, t.new_size, 0, t.old_size, t.steps)
    return apply(Transformation(t.name, count * t.old_size, count * t.new_size, (repeat,)), old, initial)


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
                for first in range(0, step.count, _BLOCK):
                    block = replace(step, count=min(_BLOCK, step.count - first))
                    starts = old_at + step.old + first * step.old_stride, new_at + step.new + first * step.new_stride
                    _repeat(block, old, starts[0], new, starts[1])
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
        elif isinstance(step, Integer) and _whole_bytes(step):
            _number_columns(repeat, step, old, old_at, new, new_at)
            continue
        rest.append(step)
    remaining = tuple(rest)
    if all(isinstance(s, Initial | Dropped) for s in remaining):
        return
    for i in range(repeat.count):
        _run(remaining, old, old_at + i * repeat.old_stride, new, new_at + i * repeat.new_stride)


def _whole_bytes(step: Integer) -> bool:
    return not step.truth and not (step.new % 8 or step.old % 8 or step.new_bits % 8 or step.old_bits % 8)


def _number_columns(repeat: Repeat, step: Integer, old: bytes, old_at: int, new: bytearray, new_at: int) -> None:
    """Convert a number of each element: its low bytes are copied, those above it are its sign."""
    old_at, new_at = old_at + step.old // 8, new_at + step.new // 8
    old_size, new_size = step.old_bits // 8, step.new_bits // 8
    _columns(repeat, old_at, old, new_at, new, min(old_size, new_size))
    old_span, new_span = ((repeat.count - 1) * s + 1 for s in (repeat.old_stride, repeat.new_stride))
    highest = old[old_at + old_size - 1 : old_at + old_size - 1 + old_span : repeat.old_stride]
    sign = highest.translate(_SIGNS) if step.old_encoding is Encoding.SIGNED else bytes(repeat.count)
    for i in range(old_size, new_size):
        new[new_at + i : new_at + i + new_span : repeat.new_stride] = sign


def _columns(repeat: Repeat, old_at: int, old: bytes, new_at: int, new: bytearray, size: int) -> None:
    """Copy `size` bytes of each element, a column of bytes at a time."""
    old_span, new_span = ((repeat.count - 1) * s + 1 for s in (repeat.old_stride, repeat.new_stride))
    for i in range(size):
        column = old[old_at + i : old_at + i + old_span : repeat.old_stride]
        new[new_at + i : new_at + i + new_span : repeat.new_stride] = column


def _converted(step: Integer, old: bytes, old_at: int) -> int:
    value = read_bits(old, old_at * 8 + step.old, step.old_bits, step.old_encoding is Encoding.SIGNED)
    return int(value != 0) if step.truth else value
