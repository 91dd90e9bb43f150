"""Constants and variables of a changed object, compared: kept, rewritten where they are, made anew, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from katana_cc.diff.compare import Outcome
from katana_cc.diff.marks import is_marked, note_kept
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import INFO, REFUSED, Code
from katana_cc.diff.relayout import leads_along, misaligned
from katana_cc.diff.view import Kind
from katana_cc.elf import constants as c

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff

_SHARED = "it shares a section with others (compile with -fdata-sections)"
_VTABLES = ("_ZTV", "_ZTT", "_ZTC")  # Itanium C++ ABI, 5.1.4: of a class, of its bases, while it is constructed


def compare_constant(diff: Diff, place: Place, old_place: Place | None) -> None:
    if old_place is None:
        diff.check_new_name(place)
        return
    old_kind = diff.view(diff.old, old_place.unit).kinds.get(old_place.section)
    outcome = diff.comparison.compare(old_place, place)
    if diff.old.address(old_place) is None:
        if outcome is not Outcome.SAME:
            diff.check_absent(place, old_place)
    elif old_kind is not Kind.CONST:
        text = "it was a writable variable and is read-only now; the live value would be lost"
        diff.reason(Code.DATA_KIND_CHANGED, REFUSED, place, text)
    elif misaligned(diff, place, old_place) and outcome is not Outcome.SIZE:
        _make_anew(diff, place, "lies at a multiple of more bytes than before")
    elif outcome is Outcome.SAME or _rearranged(diff, place, old_place):
        return
    elif outcome is Outcome.SIZE and diff.view(diff.new, place.unit).label(place.section).startswith(_VTABLES):
        text = "virtual functions or bases of this class came or went; live objects have the old table"
        diff.reason(Code.TYPE_CHANGED, REFUSED, place, text)
    elif outcome is Outcome.SIZE:
        _make_anew(diff, place, "changed its size")
    elif outcome is Outcome.DATES:
        diff.reason(Code.BUILD_TIME, INFO, place, "only the date or time of the build differs; left out")
    else:
        diff.changes.edits[place] = old_place
        diff.reason(Code.CONSTANT_CHANGED, INFO, place, "this read-only data is rewritten where it is")


def _make_anew(diff: Diff, place: Place, why: str) -> None:
    diff.changes.recreated.add(place)
    exported = [s.name for s in diff.view(diff.new, place.unit).symbols_in.get(place.section, ())
                if s.binding != c.STB_LOCAL and s.name in diff.old.tables.by_name]  # fmt: skip
    if exported:
        text = f"this read-only table {why}, and other modules may hold its address"
        diff.reason(Code.CONSTANT_SHARED, REFUSED, place, text)
    else:
        text = f"this read-only table {why}; made anew (a pointer that the program stored still leads to the old one)"
        diff.reason(Code.CONSTANT_RECREATED, INFO, place, text)


def _rearranged(diff: Diff, place: Place, old_place: Place) -> bool:
    """Refuse a section of several data (no -fdata-sections) in which something came, went or moved."""
    before = diff.view(diff.old, old_place.unit).layout(old_place.section)
    after = diff.view(diff.new, place.unit).layout(place.section)
    if before == after or (len(before) == len(after) == 1):
        return False
    name = diff.view(diff.new, place.unit).elf.sections[place.section].name
    text = f"section {name} holds several variables, and they are arranged otherwise (build with -fdata-sections)"
    diff.reason(Code.DATA_REARRANGED, REFUSED, place, text)
    return True


def compare_variable(diff: Diff, place: Place, old_place: Place | None, kind: Kind) -> None:
    if place in diff.settled:
        return  # relayout.py
    if old_place is None:
        diff.check_new_name(place)
        return
    old_view, view = diff.view(diff.old, old_place.unit), diff.view(diff.new, place.unit)
    old_kind = old_view.kinds.get(old_place.section)
    outcome = diff.comparison.compare(old_place, place)
    if diff.old.address(old_place) is None:
        if outcome is not Outcome.SAME and old_place in diff.old.unplaced:
            diff.check_absent(place, old_place)
        return
    if old_kind is not kind:
        text = "it was read-only, writable or thread-local before and is not now"
        diff.reason(Code.DATA_KIND_CHANGED, REFUSED, place, text)
    elif _rearranged(diff, place, old_place):
        return
    elif needed := misaligned(diff, place, old_place):
        text = f"it must lie at a multiple of {needed} bytes now, which it does not"
        diff.reason(Code.THREAD_LOCAL if kind is Kind.THREAD else Code.DATA_RESIZED, REFUSED, place, text)
    elif outcome in (Outcome.REFERENCES, Outcome.SIZE) and view.holds_labels(place.section):
        pass  # a label table: recreate.py
    elif outcome is Outcome.SIZE:
        sizes = (old_view.elf.sections[old_place.section].size, view.elf.sections[place.section].size)
        code = Code.THREAD_LOCAL if kind is Kind.THREAD else Code.DATA_RESIZED
        text = f"this variable changed its size from {sizes[0]} to {sizes[1]} bytes; its live value would not fit"
        diff.reason(code, REFUSED, place, text)
    elif kind is Kind.THREAD and outcome is not Outcome.SAME:
        text = "the initial value of a thread-local changed; threads that start later would still get the old one"
        diff.reason(Code.THREAD_LOCAL, REFUSED, place, text)
    elif outcome is Outcome.REFERENCES:
        _compare_pointers(diff, place, old_place)
    elif outcome in (Outcome.BYTES, Outcome.DATES):
        _keep_value(diff, place, old_place)


def _compare_pointers(diff: Diff, place: Place, old_place: Place) -> None:
    """Pointers to functions are rewritten where the live one is still the old initial one, those to literals kept.

    A pointer to a literal is a value like a number: the old literal stays where it is.  A pointer to a function is
    behaviour: a table of handlers must gain the new one.  Pointers to data are neither; a table of them is rewritten as
    a whole, if nothing has written to it, and what is no table is refused.
    """
    moved = diff.comparison.changed_pointers(old_place, place)
    if moved is not None:
        moved = [(at, kinds) for at, kinds in moved if not leads_along(diff, place, old_place, at)]
    if moved is None:
        text = "pointers in its initial value came or went"
    elif any(not kinds <= {Kind.FUNCTION} and not kinds <= {Kind.LITERAL} for _, kinds in moved):
        text = "pointers to data in its initial value changed"
    else:
        text = ""
    if moved is None or text:
        if not take_over_table(diff, place, old_place, text):
            text += ", and its live value may still be the old one"
            diff.reason(Code.DATA_POINTERS_CHANGED, REFUSED, place, text)
        return
    functions = [at for at, kinds in moved if kinds <= {Kind.FUNCTION}]
    if functions:
        diff.changes.pointers[place] = (old_place, tuple(functions))
        text = f"{len(functions)} function pointers in it are rewritten, if they are still what they were initially"
        diff.reason(Code.POINTER_TAKEN_OVER, INFO, place, text)
    if len(functions) < len(moved) or diff.comparison.bytes_differ(old_place, place):
        _keep_value(diff, place, old_place)


def take_over_table(diff: Diff, place: Place, old_place: Place, why: str) -> bool:
    """Have an array rewritten as a whole, on the condition that it still is what it began as, and not in parts; False
    for what is none: of one pointer nobody can tell whether the program has set it."""
    variable = diff.debug.stored_in(diff.new, place)
    if variable is None or not variable.form.bounds or diff.view(diff.new, place.unit).is_shared(place.section):
        return False
    if place not in diff.changes.edits:
        diff.changes.edits[place] = old_place
        if diff.changes.pointers.pop(place, None) or diff.changes.initialisers.pop(place, None):
            diff.take_back(place, {Code.POINTER_TAKEN_OVER, Code.INITIALISER_KEPT, Code.INITIALISER_TAKEN})
        text = f"{why}; this table becomes as the new build has it, if nothing has written to it (or it is refused)"
        diff.reason(Code.TABLE_TAKEN_OVER, INFO, place, text)
    return True


def _keep_value(diff: Diff, place: Place, old_place: Place) -> None:
    """Note that the live value stays; the new initial one can be asked for where it is that of one variable."""
    if diff.view(diff.new, place.unit).is_shared(place.section):
        note_kept(diff, place, _SHARED)
        return
    diff.changes.initialisers[place] = old_place
    if is_marked(diff, place):
        diff.changes.taken.add(place)
        text = "its initial value changed; it is taken over, as KATANA_TAKE_INITIALISER in the source says"
        diff.reason(Code.INITIALISER_TAKEN, INFO, place, text)
    else:
        note_kept(diff, place, "")
