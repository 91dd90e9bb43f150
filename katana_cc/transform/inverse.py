"""The way back: a transformation from the new layout to the old.

Every step knows both sides, so the inverse is to swap them: what was dropped begins as its initial bytes (the old
object's, if they were kept), what was added is dropped.  Whether live values survive the way back depends on them, not
on the types: `katana_cc.transform.execute.losses` of the inverse says it, before anything is written.
"""

from __future__ import annotations

from katana_cc.transform.model import Copy, Dropped, Float, Initial, Integer, Pointer, Repeat, Step, Transformation
from katana_cc.transform.rules import ordered


def invert(t: Transformation) -> Transformation:
    """The transformation of a new object into an old one; inverted again, it is `t`."""
    return Transformation(t.name, t.new_size, t.old_size, ordered(_inverse(s) for s in t.steps), t.type)


def _inverse(step: Step) -> Step:
    match step:
        case Copy():
            return Copy(step.old, step.new, step.size, step.source, step.field)
        case Pointer():
            return Pointer(step.old, step.new, step.pointee, step.source, step.field)
        case Integer():
            return Integer(
                new=step.old,
                new_bits=step.old_bits,
                new_encoding=step.old_encoding,
                old=step.new,
                old_bits=step.new_bits,
                old_encoding=step.new_encoding,
                field=step.source,
                source=step.field,
            )
        case Float():
            return Float(step.old, step.old_size, step.new, step.new_size, step.source, step.field)
        case Repeat():
            steps = ordered(_inverse(s) for s in step.steps)
            return Repeat(
                step.count, step.old, step.old_stride, step.new, step.new_stride, steps, step.source, step.field
            )
        case Initial():
            return Dropped(step.new, step.bits, step.field)
        case Dropped():
            return Initial(step.old, step.bits, step.source)
