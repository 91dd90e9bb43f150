"""Constants that have to be made anew, since the old ones cannot be rewritten where they are, and what refers to them.

A table that changed its size does not fit; a table of labels (computed goto) belongs to one version of its function;
a variable whose layout changed is carried over into a new one (`relayout.py`).  Whoever refers to such a thing has to
refer to the new one: constants are rewritten, and functions that did not change are carried for it, or, where it is a
variable, get the fields rewritten that lead to it (`retarget.py`).  A variable may hold its address at run time: of a
constant that is refused; pointers to variables are followed when the patch is applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from katana_cc.diff.data import take_over_table
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import INFO, REFUSED, Code
from katana_cc.diff.relayout import check_pointers
from katana_cc.diff.retarget import retarget
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.elf import constants as c

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff


def _recreate_label_tables(diff: Diff) -> None:
    """Tables of labels (computed goto) belong to their function: a new function needs its own.

    They may be writable and may even be unchanged: with the old table the new code would jump into the old code.
    """
    for place in list(diff.changes.replaced):
        view = diff.view(diff.new, place.unit)
        parts = view.parts.get(place.section, [])
        for number in dict.fromkeys(n for part in (place.section, *parts) for n in view.referrers.get(part, ())):
            if view.kinds[number] not in (Kind.CONST, Kind.DATA, Kind.THREAD):
                continue
            # The start of the function itself is no label; that of its .cold part may be one.
            labels = (
                r.section in parts or (r.section == place.section and r.base + r.addend)
                for r in view.references(number)
            )
            if not any(labels):
                continue
            table = Place(place.unit, number)
            users = {view.parent.get(n, n) for n in view.referrers.get(number, ())}
            if users <= {place.section} and not view.is_global(number) and view.kinds[number] is not Kind.THREAD:
                if table not in diff.changes.recreated:
                    diff.changes.recreated.add(table)
                diff.changes.edits.pop(table, None)
            else:
                text = f"it holds labels of {view.label(place.section)}, which changed, and others use it too"
                diff.reason(Code.DATA_POINTERS_CHANGED, REFUSED, table, text)


def recreate(diff: Diff) -> None:
    """Make anew what must be, and carry what refers to it, until nothing more is found."""
    size = -1
    while size != len(diff.changes.recreated) + len(diff.changes.replaced):
        size = len(diff.changes.recreated) + len(diff.changes.replaced)
        _recreate_label_tables(diff)
        _pull_in_users_of_recreated(diff)
    for place in [p for p in diff.changes.retargeted if _is_carried(diff, p)]:
        del diff.changes.retargeted[place]
    _refuse_thrown_types(diff)


def _is_carried(diff: Diff, place: Place) -> bool:
    whole = Place(place.unit, diff.view(diff.new, place.unit).parent.get(place.section, place.section))
    return whole in diff.changes.replaced or whole in diff.changes.renewed


def _refuse_thrown_types(diff: Diff) -> None:
    """A type_info made anew that handlers of old code name: they would go on knowing the old bases of the type."""
    for place in sorted(diff.changes.recreated):
        label = diff.view(diff.new, place.unit).label(place.section)
        if label.startswith("_ZTI") and any(_has_handlers_of(diff, unit, label) for unit in _units(diff)):
            text = (
                "the bases of this class changed, and handlers name it: old code would go on catching by the old ones"
            )
            diff.reason(Code.EXCEPTIONS, REFUSED, place, text)


def _units(diff: Diff) -> range:
    return range(len(diff.old.snapshot.units))


def _has_handlers_of(diff: Diff, unit: int, label: str) -> bool:
    view = diff.view(diff.old, unit)
    entries = (e for several in view.frames.values() for e in several if e.handlers is not None)
    return any(t is not None and t.name == label for e in entries if e.handlers for t in e.handlers.types)


def _pull_in_users_of_recreated(diff: Diff) -> None:
    """Everything that refers to a constant made anew has to refer to the new one."""
    waiting = sorted(diff.changes.recreated)
    seen: set[Place] = set()
    while waiting:
        target = waiting.pop()
        if target in seen:
            continue
        seen.add(target)
        for view, place in _users(diff, target):
            if view.kinds[place.section] is Kind.ANONYMOUS:
                waiting.append(place)
            else:
                whole = Place(place.unit, view.parent.get(place.section, place.section))
                _refers_to_recreated(diff, view, whole, target)


def _users(diff: Diff, target: Place) -> Iterator[tuple[ObjectView, Place]]:
    """What refers to a datum, in its own object, and by its global name in all others."""
    view = diff.view(diff.new, target.unit)
    for number in view.referrers.get(target.section, ()):
        yield view, Place(target.unit, number)
    names = {s.name for s in view.symbols_in.get(target.section, ()) if s.binding != c.STB_LOCAL}
    if not names:
        return
    for unit in range(len(diff.new.snapshot.units)):
        other = diff.view(diff.new, unit)
        if unit == target.unit or not names & other.undefined:
            continue
        for number in other.kinds:
            if any(not r.section and r.name in names for r in other.references(number)):
                yield other, Place(unit, number)


def _refers_to_recreated(diff: Diff, view: ObjectView, place: Place, target: Place) -> None:
    old_place = diff.correlation.old_place(place)
    if old_place is None or diff.old.address(old_place) is None or place in diff.changes.replaced:
        return
    kind = view.kinds[place.section]
    label = diff.view(diff.new, target.unit).label(target.section)
    text = f"it uses {label}, which is made anew"
    if kind in (Kind.FUNCTION, Kind.CODE) and retarget(diff, place, old_place, target):
        pass  # noted when it is fixed
    elif kind is Kind.DATA and target in diff.changes.moved:
        check_pointers(diff, place, target)
    elif kind is Kind.FUNCTION:
        diff.changes.replaced[place] = old_place
        diff.reason(Code.CALLEE_MOVED, INFO, place, text)
    elif kind is Kind.CONST and place not in diff.changes.edits and place not in diff.changes.recreated:
        diff.changes.edits[place] = old_place
        diff.reason(Code.CONSTANT_CHANGED, INFO, place, text)
    elif kind is Kind.DATA and take_over_table(diff, place, old_place, text):
        pass
    elif kind in (Kind.DATA, Kind.THREAD):
        text = f"it may hold the address of {label}, which is made anew"
        diff.reason(Code.DATA_POINTERS_CHANGED, REFUSED, place, text)
    elif kind is Kind.CODE:
        diff.reason(Code.CODE_SHARED_SECTION, REFUSED, place, text)
    elif kind in (Kind.STARTUP, Kind.OTHER):
        diff.reason(Code.SECTION_CHANGED, REFUSED, place, text)
