"""Which live data a patch carries over, and which pointers to it are known.

A variable that is made anew is carried like a new one, with its transformation.  Pointers to the old one may be held by
any variable of the program: those whose type says that they may lead to it, or into it, are named by an *identity*, the
transformation of a variable that stays as it is.  Whoever applies the patch follows them; other words that could be
such a pointer are for a person to decide.
"""

from __future__ import annotations

from collections.abc import Iterator

from katana_cc.diff.engine import Diff
from katana_cc.diff.program import Place
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.types import TypeKind, layouts
from katana_cc.dwarf.variables import variables
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError
from katana_cc.patch.carrying import Carrier
from katana_cc.patch.model import DataTransform, PatchSymbol
from katana_cc.transform.between import between_variables
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
        yield DataTransform(move.transformation, address, symbol)


def staying(diff: Diff) -> Iterator[DataTransform]:
    """The variables that stay where they are and hold pointers which may lead to one that is made anew."""
    olds = {m.old for m in diff.changes.moved.values()}
    texts = frozenset(t for place in olds for t in _pointed_types(diff, place))
    for unit in range(len(diff.old.snapshot.units)) if olds else ():
        info = diff.debug.info(diff.old, unit)
        if not isinstance(info, DebugInfo):
            continue
        try:
            known = variables(info)
        except FormatError:
            continue  # what is not known of its pointers is not followed
        for v in known:
            place = Place(unit, v.place.section) if v.place is not None else None
            if place is None or place in olds or v.thread_local or v.constant or v.declaration:
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
    if v is None or not isinstance(info, DebugInfo):
        return
    known = layouts(info)
    yield from _with_elements(v.type, v.form.bounds)
    waiting, seen = [v.aggregate], set()
    while waiting:
        key = waiting.pop()
        layout = known.get(key)
        if layout is None or key in seen:
            continue
        seen.add(key)
        if layout.kind is not TypeKind.ENUM:
            yield f"{layout.kind} {key}"
        for m in layout.members:
            yield from _with_elements(m.type, m.form.bounds)
            waiting.append(m.aggregate)
        waiting += [b.key for b in layout.bases]


def _with_elements(text: str, bounds: tuple[int | None, ...]) -> Iterator[str]:
    yield text
    for count in bounds:
        text = text.replace(f"[{'' if count is None else count}]", "", 1)
        yield text
