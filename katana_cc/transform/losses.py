"""What of a live object would not survive a transformation.

A value survives when converting it back gives the same one.  So -1 survives from `int` to `unsigned`, 70000 does not
survive from `int` to `short`, and a field without a successor survives only while it holds what it began with.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from katana_cc.dwarf.forms import Encoding
from katana_cc.errors import UsageError
from katana_cc.transform.bits import float_bytes, plain, read_bits, read_float, write_bits
from katana_cc.transform.model import Dropped, Float, Integer, Repeat, Step, Transformation, joined
from katana_cc.transform.places import element_path


class LossKind(StrEnum):
    """How a value is lost."""

    DROPPED = "dropped"  # the field has no successor
    DOES_NOT_FIT = "does-not-fit"  # converting it back would give another value


@dataclass(frozen=True, slots=True)
class Loss:
    """A value that would not survive: `field` with its indices, and a sentence."""

    kind: LossKind
    field: str
    text: str


def losses(t: Transformation, live: bytes, usual: bytes | None = None) -> tuple[Loss, ...]:
    """What of a live object does not survive `t`; of an inverse, whether going back loses something.

    Args:
        live: the object as it is, `t.old_size` bytes.
        usual: what it began as (of an inverse: the initial bytes of the forward way); a dropped field that still has
            this value is no loss.  None: zeros.

    Raises:
        UsageError: bytes of another size.
    """
    reference = bytes(t.old_size) if usual is None else usual
    if len(live) != t.old_size or len(reference) != t.old_size:
        raise UsageError(f"{t.name}: {len(live)} and {len(reference)} bytes for an object of {t.old_size}")
    if t.takes_nothing:
        # Forth, the patch object's own condition is that nothing has written to the old one.
        is_lost = usual is not None and live != usual
        return (Loss(LossKind.DROPPED, "", "something has written to it"),) if is_lost else ()
    return tuple(_losses(t.steps, live, reference, 0, ""))


def _losses(steps: tuple[Step, ...], live: bytes, usual: bytes, at: int, prefix: str) -> Iterator[Loss]:
    for step in steps:
        match step:
            case Integer():
                yield from _of_integer(step, live, at, prefix)
            case Float(new_size=4):
                value = read_float(live, at + step.old, 8)
                (back,) = struct.unpack("<f", float_bytes(value, 4))
                if back != value and not math.isnan(value):
                    field = joined(prefix, step.source)
                    yield Loss(
                        LossKind.DOES_NOT_FIT, field, f"{_subject(field)} is {value!r}, which no float holds exactly"
                    )
            case Dropped():
                if _bits(live, at, step) != _bits(usual, at, step):
                    field = joined(prefix, step.source)
                    held = plain(live, at * 8 + step.old, step.bits, field)
                    yield Loss(LossKind.DROPPED, field, f"`{field}` is {held}, and there is no such field")
            case Repeat() if any(_may_lose(s) for s in step.steps):
                for i in range(step.count):
                    path = element_path(prefix, step.source, i)
                    yield from _losses(step.steps, live, usual, at + step.old + i * step.old_stride, path)
            case _:
                pass


def _may_lose(step: Step) -> bool:
    if isinstance(step, Repeat):
        return any(_may_lose(s) for s in step.steps)
    if isinstance(step, Integer):
        return step.truth or step.new_bits < step.old_bits
    return isinstance(step, Dropped) or (isinstance(step, Float) and step.new_size == 4)


def _of_integer(step: Integer, live: bytes, at: int, prefix: str) -> Iterator[Loss]:
    signed = step.old_encoding is Encoding.SIGNED
    value = read_bits(live, at * 8 + step.old, step.old_bits, signed)
    stored = bytearray(16)
    write_bits(stored, 0, step.new_bits, int(value != 0) if step.truth else value)
    # The way back: as the new program reads it, cut to the old width, as the old one reads that.
    there = read_bits(bytes(stored), 0, step.new_bits, step.new_encoding is Encoding.SIGNED)
    back_bytes = (there & (1 << step.old_bits) - 1).to_bytes(8, "little")
    back = read_bits(back_bytes, 0, step.old_bits, signed)
    if back != value:
        field = joined(prefix, step.source)
        kind = "signed " if step.new_encoding is Encoding.SIGNED else ""
        room = "a truth value does" if step.truth else f"{step.new_bits} {kind}bits do"
        yield Loss(LossKind.DOES_NOT_FIT, field, f"{_subject(field)} is {value}, which {room} not hold")


def _subject(field: str) -> str:
    """A field in a sentence; a variable that is one number has none."""
    return f"`{field}`" if field else "its value"


def _bits(data: bytes, at: int, step: Dropped) -> int:
    return read_bits(data, at * 8 + step.old, step.bits, False)
