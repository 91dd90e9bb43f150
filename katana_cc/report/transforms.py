"""Data transformations for a person and for scripts: each object, field by field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from katana_cc.patch.model import DataTransform, PatchObject
from katana_cc.report.summary import count
from katana_cc.transform.model import (
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
from katana_cc.transform.places import leading, pointer_steps, pointers


def transform_rows(po: PatchObject) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """(what becomes what, its fields as (new field, old field, how)) for each object or type; one line for all that may
    only hold pointers to what moves."""
    told = _told(po)
    rows = [(_title(d), _rows(_shown(d), "")) for d in told]
    kinds = Counter(d.is_type for d in set(po.transforms) - set(told))
    if kinds:
        words = count(kinds[False], "other variable"), count(kinds[True], "other type")
        rows.append((f"pointers in {' and objects of '.join(words)} are followed", []))
    return rows


def _shown(d: DataTransform) -> Sequence[Step]:
    """Of what stays, the pointers."""
    stays = d.symbol is None and d.transformation.is_identity
    return tuple(pointer_steps(d.transformation.steps)) if stays else d.transformation.steps


def _told(po: PatchObject) -> list[DataTransform]:
    """What moves, and what leads to objects of a type that is made anew."""
    types = {d.transformation.name: d for d in po.transforms if d.is_type}
    known = leading({n: d.transformation for n, d in types.items()}, {n: d.begins for n, d in types.items()})

    def leads(t: Transformation) -> bool:
        return any(p.pointee in known for p in pointers(t))

    return [
        d
        for d in po.transforms
        if d.symbol is not None or (d.transformation.name in known if d.is_type else leads(d.transformation))
    ]


def _title(d: DataTransform) -> str:
    t = d.transformation
    where = f" at {d.address:#x}" if d.address is not None else " wherever pointers lead to it"
    if d.address is not None and d.symbol is None:
        return f"variable {t.name}: {count(t.old_size, 'byte')}{where}, stays; pointers in it are followed"
    if d.is_type and t.is_identity:
        return f"{t.name}: {count(t.old_size, 'byte')}{where}, stays; pointers in it are followed"
    kind = "variable " if d.address is not None else ""
    return f"{kind}{t.name}: {count(t.old_size, 'byte')}{where} → {count(t.new_size, 'byte')}"


def _rows(steps: Sequence[Step], indent: str) -> list[tuple[str, str, str]]:
    rows = []
    for step in steps:
        new, old = _sides(step)
        rows.append((indent + new, old, _how(step)))
        if isinstance(step, Repeat):
            rows += _rows(step.steps, indent + "  ")
    return rows


def _sides(step: Step) -> tuple[str, str]:
    """The new and the old field, each with its place."""
    match step:
        case Initial():
            return f"{_name(step.field)} at {_bit_place(step.new)}", "its initial value"
        case Dropped():
            return "nothing", f"{_name(step.source)} at {_bit_place(step.old)}"
        case Integer():
            return (
                f"{_name(step.field)} at {_bit_place(step.new)}",
                f"{_name(step.source)} at {_bit_place(step.old)}",
            )
        case _:
            return f"{_name(step.field)} at {step.new}", f"{_name(step.source)} at {step.old}"


def _name(field: str) -> str:
    return field or "value"


def _bit_place(bit: int) -> str:
    return f"{bit // 8} bit {bit % 8}" if bit % 8 else f"{bit // 8}"


def _how(step: Step) -> str:
    match step:
        case Copy():
            return count(step.size, "byte")
        case Pointer():
            return f"pointer to {step.pointee or '?'}"
        case Integer():
            old = f"{step.old_encoding}, {count(step.old_bits, 'bit')}"
            return old if _same(step) else f"{old} → {step.new_encoding}, {count(step.new_bits, 'bit')}"
        case Float():
            return "float → double" if step.new_size > step.old_size else "double → float"
        case Repeat():
            return f"{count(step.count, 'element')}, {step.old_stride} → {count(step.new_stride, 'byte')} each"
        case Initial() | Dropped():
            return count(step.bits, "bit") if step.bits % 8 else count(step.bits // 8, "byte")


def _same(step: Integer) -> bool:
    return (step.old_bits, step.old_encoding) == (step.new_bits, step.new_encoding)


def transforms_json(po: PatchObject) -> list[dict[str, Any]]:
    """What `json.dumps` takes.  Offsets and sizes in bytes where a key does not say bits."""
    return [
        {
            "name": d.transformation.name,
            "kind": "type" if d.is_type else "staying" if d.symbol is None else "variable",
            "address": None if d.address is None else f"{d.address:#x}",
            "symbol": d.symbol,
            "old_size": d.transformation.old_size,
            "new_size": d.transformation.new_size,
            "steps": [_step(s) for s in d.transformation.steps],
        }
        for d in po.transforms
    ]


def _step(step: Step) -> dict[str, Any]:
    match step:
        case Copy():
            facts: dict[str, Any] = {"new_offset": step.new, "old_offset": step.old, "size": step.size}
        case Pointer():
            facts = {"new_offset": step.new, "old_offset": step.old, "pointee": step.pointee}
        case Integer():
            facts = {
                "new_bit": step.new,
                "new_bits": step.new_bits,
                "new_encoding": str(step.new_encoding),
                "old_bit": step.old,
                "old_bits": step.old_bits,
                "old_encoding": str(step.old_encoding),
            }
        case Float():
            facts = {"new_offset": step.new, "new_size": step.new_size}
            facts |= {"old_offset": step.old, "old_size": step.old_size}
        case Repeat():
            facts = {"count": step.count, "new_offset": step.new, "new_stride": step.new_stride}
            facts |= {"old_offset": step.old, "old_stride": step.old_stride, "steps": [_step(s) for s in step.steps]}
        case Initial():
            facts = {"new_bit": step.new, "bits": step.bits}
        case Dropped():
            facts = {"old_bit": step.old, "bits": step.bits}
    new = None if isinstance(step, Dropped) else step.field
    old = None if isinstance(step, Initial) else step.source
    return {"kind": type(step).__name__.lower(), "field": new, "from": old, **facts}
