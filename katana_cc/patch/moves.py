"""Which live data a patch carries over, and which pointers to it are known.

A variable that is made anew is carried like a new one, with its transformation.  Pointers to the old one may be held by
any variable of the program: those whose type says that they may lead to it, or into it, are named by an *identity*, the
transformation of a variable that stays as it is.  Whoever applies the patch follows them; other words that could be
such a pointer are for a person to decide.

Objects on the heap have no names: of them the patch says how each type is made anew, and of the types on the way to one
which pointers they hold (`katana_cc.diff.reach`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from katana_cc.diff.engine import Diff
from katana_cc.diff.program import Place
from katana_cc.diff.view import Kind
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.graph import fields_in, with_elements
from katana_cc.dwarf.types import layouts
from katana_cc.dwarf.variables import variables
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError
from katana_cc.patch.carrying import Carrier
from katana_cc.patch.model import DataTransform, Handed, PatchSymbol
from katana_cc.transform.between import between_variables
from katana_cc.transform.byhand import Part
from katana_cc.transform.model import Transformation
from katana_cc.transform.places import pointers


def moved(carrier: Carrier) -> Iterator[DataTransform]:
    """The variables that are made anew, carried."""
    for place, move in sorted(carrier.changes.moved.items()):
        address = carrier.diff.old.address(move.old)
        number = carrier.carry(place)
        named = carrier.view(place).symbols_in.get(place.section, ())
        s = next(s for s in named if s.type == c.STT_OBJECT and s.value == 0)
        symbol = carrier.symbol(PatchSymbol(s.name, c.STB_LOCAL, s.type, number, s.value, s.size))
        yield DataTransform(move.transformation, address, symbol, handed=tuple(_handed(carrier.diff, move.parts)))


def _handed(diff: Diff, parts: Iterable[Part]) -> Iterator[Handed]:
    """The parts of an object that functions of the user's make."""
    numbers = {place: n for n, place in enumerate(diff.changes.hooks)}
    for p in parts:
        maker = diff.makers[p.key]
        back = numbers[maker.back] if maker.back is not None else -1
        yield Handed(numbers[maker.forth], back, p.old, p.new, p.number, p.old_stride, p.new_stride)


def types(diff: Diff) -> Iterator[DataTransform]:
    """The types whose objects are found by following typed pointers, those on the way among them."""
    walked = diff.changes.walked
    for text, t in walked.types.items():
        yield DataTransform(t, begins=walked.begins[text], handed=tuple(_handed(diff, walked.parts.get(text, ()))))
    yield from (DataTransform(t) for t in walked.others.values())


def staying(diff: Diff) -> Iterator[DataTransform]:
    """The variables that stay where they are and hold pointers which may lead to one that is made anew, or to objects
    that are found by following them."""
    olds = {m.old for m in diff.changes.moved.values()}
    texts = diff.changes.walked.pointed.union(*(_pointed_types(diff, place) for place in olds))
    for unit in range(len(diff.old.snapshot.units)) if texts else ():
        info = diff.debug.info(diff.old, unit)
        if not isinstance(info, DebugInfo):
            continue
        try:
            known = variables(info)
        except FormatError:
            continue  # what is not known of its pointers is not followed
        for v in known:
            place = Place(unit, v.place.section) if v.place is not None else None
            if place is None or place in olds or v.thread_local or v.declaration:
                continue
            if v.constant and diff.view(diff.old, unit).kinds.get(place.section) is not Kind.DATA:
                continue
            address = diff.old.address(place)
            if address is None or v.place is None:
                continue
            found = between_variables(v, layouts(info), v, layouts(info))
            if isinstance(found, Transformation) and any(p.pointee in texts for p in pointers(found)):
                yield DataTransform(found, address + v.place.offset, None)


def _pointed_types(diff: Diff, place: Place) -> Iterator[str]:
    """The types, as texts, of what lies in an old variable: itself, its fields, their fields, elements of arrays."""
    info = diff.debug.info(diff.old, place.unit)
    v = diff.debug.stored_in(diff.old, place)
    if v is not None and isinstance(info, DebugInfo):
        yield from with_elements(v.type, v.form.bounds)
        yield from fields_in(layouts(info), v.aggregate)
