"""Live data that the new build lays out otherwise: variables that are made anew elsewhere, and what that leaves open.

Theory of operation.  The new code reads every object by the new layout, so an object of the old one must be made anew
in the same instant.  Of a *variable* it is known where it lies, who uses it and what it holds: it is carried like a new
one, with the transformation that fills it from the old object (`katana_cc.transform`), and whatever refers to it is
made to refer to the new one (`recreate.py`, `retarget.py`; pointers at run time are followed when it is applied).

Objects of a changed type that are no variables are the affair of `elsewhere.py`.

What no transformation follows for is refused, with the question that a person would have to answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from katana_cc.diff.handmade import makers_for
from katana_cc.diff.marks import note_kept
from katana_cc.diff.program import Place, Program
from katana_cc.diff.reasons import INFO, NEEDS, REFUSED, Code
from katana_cc.diff.view import Kind
from katana_cc.dwarf.variables import Variable, variables
from katana_cc.elf import constants as c
from katana_cc.patch.model import Reason
from katana_cc.transform.between import between_variables, parts_by_hand
from katana_cc.transform.byhand import Part
from katana_cc.transform.execute import apply
from katana_cc.transform.inverse import invert
from katana_cc.transform.model import Dropped, Initial, Repeat, Step, Transformation, nothing_of
from katana_cc.transform.places import field_at, moved_offset, pointer_at, word_at

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff


_PAGE = 4096


class Move(NamedTuple):
    """A variable made anew: the old place, and how the new object comes of the old one.

    `takes_nothing`: it begins as the new build has it, and the old one must still hold what it began with.  `parts` are
    made by functions of the user's.
    """

    old: Place
    transformation: Transformation
    takes_nothing: bool = False
    parts: tuple[Part, ...] = ()


# -- variables ---------------------------------------------------------------------------------------------------------


def find_moves(diff: Diff) -> None:
    """Fill `changes.moved` with the variables whose live objects have to be made anew, and refuse those that cannot be.

    Comes before sections are compared, which leaves such variables alone.
    """
    pairs = {new: old for old, new in diff.correlation.changed_units}
    for unit in [*pairs, *diff.correlation.new_units]:
        for v in live_variables(diff, diff.new, unit):
            was, old_place = _counterpart(diff, unit, v, pairs.get(unit))
            if was is not None and not v.constant:
                _consider(diff, Place(unit, v.place.section if v.place else 0), v, old_place, was, pairs.get(unit))


def live_variables(diff: Diff, program: Program, unit: int) -> Iterator[Variable]:
    """The variables that have storage in a unit, or a part of it."""
    info = diff.debug.readable(program, unit)
    return (v for v in (variables(info) if info is not None else ()) if v.place is not None or v.pieces)


def _counterpart(diff: Diff, unit: int, v: Variable, paired: int | None) -> tuple[Variable | None, Place | None]:
    """The old variable, and its section where it has one of its own."""
    if v.place is not None and v.is_stored:
        old_place = diff.correlation.old_place(Place(unit, v.place.section))
        return (diff.debug.stored_in(diff.old, old_place), old_place) if old_place is not None else (None, None)
    if paired is None:
        return None, None
    return next((x for x in live_variables(diff, diff.old, paired) if x.qualified == v.qualified), None), None


def _consider(
    diff: Diff, place: Place, v: Variable, old_place: Place | None, was: Variable, paired: int | None
) -> None:
    old_unit = old_place.unit if old_place is not None else paired
    assert old_unit is not None
    view = diff.view(diff.new, place.unit)
    kind = view.kinds.get(place.section)
    if (
        kind is Kind.CONST
        or (kind is not None and view.holds_labels(place.section))
        or (old_place is not None and diff.old.address(old_place) is None)
    ):
        return  # nothing live
    if key := _described_elsewhere(diff, v, old_unit, place.unit):
        diff.settled.add(place)
        text = (
            f"it holds a struct {key}, which is laid out otherwise, and only another object describes it (build with "
            "-femit-class-debug-always, clang: -fstandalone-debug)"
        )
        _note(diff, Code.VARIABLE_TYPE_CHANGED, REFUSED, v, text)
        return
    same = (was.type, was.size, was.aggregate) == (v.type, v.size, v.aggregate)
    needed = misaligned(diff, place, old_place) if old_place is not None and v.is_stored else 0
    if same and not needed and v.aggregate not in diff.changed_types(old_unit, place.unit):
        return
    before, after = diff.debug.layouts(diff.old, old_unit), diff.debug.layouts(diff.new, place.unit)
    by_hand = makers_for(diff.makers, before, after)
    found = between_variables(was, before, v, after, diff.answers, by_hand)
    stays = isinstance(found, Transformation) and found.is_identity and not needed
    if not stays:
        diff.settled.add(place)
    if isinstance(found, Transformation) and stays:
        text = f"{v.qualified} was {was.type} and is {v.type}: its live value means the same"
        if was.type != v.type:
            _note(diff, Code.VARIABLE_TYPE_CHANGED, INFO, v, text)
        return
    if not isinstance(found, Transformation):
        for problem in found:
            _note(
                diff, Code.VARIABLE_TYPE_CHANGED, REFUSED, v, f"its live value cannot be carried over: {problem.text}"
            )
        return
    why = _why_fixed(diff, place, v, old_place, was)
    if why:
        code = Code.THREAD_LOCAL if v.thread_local or was.thread_local else Code.DATA_RESIZED
        _note(diff, code, REFUSED, v, f"{v.qualified} {_how(found, needed)}, and {why}")
        return
    assert old_place is not None
    why = _elements_shifted(diff, place, old_place, found)
    is_table = bool(v.form.bounds) or _resizes(found.steps)
    if why and not is_table:
        _note(diff, Code.DATA_POINTERS_CHANGED, REFUSED, v, f"{v.qualified} {_how(found, needed)}, and {why}")
        return
    if _is_exported(diff, place):
        text = (
            f"{v.qualified} {_how(found, needed)} and is made anew elsewhere, and the program exports its name "
            "(-rdynamic): a library that used it by name would go on with the old one (all is well if none does, now "
            "or later)"
        )
        diff.reason(Code.DATA_EXPORTED, NEEDS, place, text)
    parts = () if why else parts_by_hand(was, before, v, after, by_hand)
    diff.changes.moved[place] = Move(old_place, _taking_nothing(found) if why else found, bool(why), parts)
    diff.comparison.moved[place] = old_place, found  # code knows where fields lie, not what they hold
    diff.changes.recreated.add(place)
    if why:
        text = f"{v.qualified} {_how(found, needed)}, and {why}; it is made anew as the new build has it, which is "
        _note(diff, Code.TABLE_TAKEN_OVER, INFO, v, text + "right if nothing has written to it (or it is refused)")
        return
    makers = ", ".join(dict.fromkeys(diff.makers[p.key].name for p in parts))
    text = f"{v.qualified} {_how(found, needed)}: it is made anew, and its live value carried over"
    text += f" by {makers}" if makers else ""
    _note(diff, Code.DATA_TRANSFORMED, INFO, v, text)


def _described_elsewhere(diff: Diff, v: Variable, old_unit: int, unit: int) -> str:
    """The key of a type that a variable holds by value, whose layout changed, and that its own object only declares; ""
    if there is none.

    Compilers describe a class in the object of its first virtual function only, or where it is constructed.
    """
    for program, here in ((diff.old, old_unit), (diff.new, unit)):
        known = diff.debug.layouts(program, here)
        waiting, seen = [v.aggregate], {""}
        while waiting:
            key = waiting.pop()
            if key in seen:
                continue
            seen.add(key)
            layout = known.get(key)
            if layout is not None:
                waiting += [m.aggregate for m in layout.members] + [b.key for b in layout.bases]
            elif any(key in diff.changed_types(*pair) for pair in diff.correlation.changed_units):
                return key
    return ""


def misaligned(diff: Diff, place: Place, old_place: Place) -> int:
    """The alignment that new code relies on and the old object does not have; 0 where there is none.

    Nobody has to ask for it: an optimiser that widens accesses raises the alignment of what it accesses.
    """
    old_view, view = diff.view(diff.old, old_place.unit), diff.view(diff.new, place.unit)
    was, needed = (v.elf.sections[p.section].alignment for v, p in ((old_view, old_place), (view, place)))
    address = diff.old.address(old_place)
    if needed <= was or address is None:
        return 0
    # The address in the output tells nothing of these: modules begin at any page, threads' objects anywhere.
    unknown = needed > _PAGE or view.kinds.get(place.section) is Kind.THREAD
    return needed if unknown or address % needed else 0


def _how(t: Transformation, needed: int) -> str:
    if needed and t.is_identity:
        return f"must lie at a multiple of {needed} bytes, which it does not"
    if t.old_size == t.new_size:
        return "is laid out otherwise"
    verb = "grows" if t.new_size > t.old_size else "shrinks"
    return f"{verb} from {t.old_size} to {t.new_size} bytes"


def _why_fixed(diff: Diff, place: Place, v: Variable, old_place: Place | None, was: Variable) -> str:
    """Why an object cannot be made anew elsewhere; "" if it can."""
    if v.thread_local or was.thread_local:
        return "each thread has one of its own"
    if v.pieces or was.pieces:
        return "the compiler took it apart"
    if not v.is_stored or not was.is_stored or old_place is None:
        return "it has no section of its own (build with -fdata-sections -fno-common)"
    for program, at in ((diff.old, old_place), (diff.new, place)):
        view = diff.view(program, at.unit)
        if view.is_shared(at.section) or view.kinds.get(at.section) is not Kind.DATA:
            return "it has no writable section of its own (build with -fdata-sections)"
    if view.elf.sections[place.section].size != v.size or was.size != _size(diff, old_place):
        return "its section holds more than its type tells"
    if diff.old.is_library and _is_exported(diff, place):
        return "other modules may hold its address (it is exported)"
    if why := diff.old.unplaced.get(old_place):
        return f"its place in the old output is not known: {why}"
    return ""


def _is_exported(diff: Diff, place: Place) -> bool:
    symbols = diff.view(diff.new, place.unit).symbols_in.get(place.section, ())
    return any(s.binding != c.STB_LOCAL and s.name in diff.old.tables.by_name for s in symbols)


def _size(diff: Diff, place: Place) -> int:
    return diff.view(diff.old, place.unit).elf.sections[place.section].size


def _taking_nothing(t: Transformation) -> Transformation:
    """The transformation that leaves the whole old object behind."""
    return Transformation(t.name, t.old_size, t.new_size, nothing_of(t.old_size, t.new_size), t.type)


def _elements_shifted(diff: Diff, place: Place, old_place: Place, t: Transformation) -> str:
    """Why carrying values over field by field would be wrong, by the initial values; "" if it would not.

    A table that gained an entry in its midst begins with other values than before: whether the live entries are those
    of the same index, only a person knows.
    """
    if field := _address_begins_otherwise(diff, place, old_place, t):
        return f"{field} begins as another pointer, while the live one may still be the old one"
    begun = apply(t, _initial(diff, diff.old, old_place), initial := _initial(diff, diff.new, place))
    if begun == initial:
        return ""
    if _resizes(t.steps):
        return "its elements begin with other values than before: whether some were inserted is not known"
    note_kept(diff, place, "its layout changes too, and its live value is carried over")
    return ""


def _address_begins_otherwise(diff: Diff, place: Place, old_place: Place, t: Transformation) -> str:
    """The first field that both objects have, and that begins with another address; "" if there is none.

    Whatever its type: an address in a number or a union is carried over like any value.
    """
    befores = {r.relocation.offset: r for r in diff.view(diff.old, old_place.unit).references(old_place.section)}
    afters = {r.relocation.offset: r for r in diff.view(diff.new, place.unit).references(place.section)}
    for at, a in befores.items():
        word = word_at(t, at)
        b = afters.pop(word.new, None) if word.new is not None else None
        if word.carried and (b is None or not diff.comparison.correspond(old_place, a, place, b)):
            return f"`{field_at(t, at)}`"
    came = (at for at in afters if word_at(invert(t), at).carried)
    return next((f"`{field_at(t, at, new=True)}`" for at in came), "")


def _resizes(steps: Iterable[Step]) -> bool:
    """Whether an array in it changes its number of elements."""
    for step in steps:
        if isinstance(step, Repeat) and _resizes(step.steps):
            return True
        if isinstance(step, Initial | Dropped) and (step.field if isinstance(step, Initial) else step.source).endswith(
            "]"
        ):
            return True
    return False


def _initial(diff: Diff, program: Program, place: Place) -> bytes:
    section = diff.view(program, place.unit).elf.sections[place.section]
    return bytes(section.size) if section.type == c.SHT_NOBITS else diff.view(program, place.unit).data(place.section)


def leads_along(diff: Diff, place: Place, old_place: Place, at: int) -> bool:
    """Whether the pointers at offset `at` of two data lead into a variable that moves, to places that stand for each
    other: the field has another offset now."""
    found = []
    for program, here in ((diff.old, old_place), (diff.new, place)):
        references = diff.view(program, here.unit).references(here.section)
        reference = next((r for r in references if r.relocation.offset == at), None)
        if reference is None or reference.literal is not None or reference.section < 0:
            return False
        resolved = diff.comparison.resolve(program, here, reference)
        if resolved is None:
            return False
        found.append((resolved[0], resolved[1] + reference.addend))
    (old_target, was), (target, now) = found
    move = diff.changes.moved.get(target)
    holder = diff.debug.stored_in(diff.old, old_place)
    pointee = _pointee(diff, old_place.unit, holder, at) if holder is not None else ""
    return move is not None and move.old == old_target and moved_offset(move.transformation, was, pointee) == now


def check_pointers(diff: Diff, place: Place, target: Place) -> None:
    """Whether the pointers that a variable holds from the start can be followed into a `target` that moves."""
    old_place = diff.correlation.old_place(place)
    move = diff.changes.moved[target]
    if old_place is None:
        return  # new: it holds the new address
    name, holder = move.transformation.name, diff.debug.stored_in(diff.old, old_place)
    for r in diff.view(diff.old, old_place.unit).references(old_place.section):
        if r.literal is not None or r.section < 0:
            continue
        resolved = diff.comparison.resolve(diff.old, old_place, r)
        if resolved is None or resolved[0] != move.old:
            continue
        pointee = _pointee(diff, old_place.unit, holder, r.relocation.offset) if holder is not None else ""
        offset = resolved[1] + r.addend
        if moved_offset(move.transformation, offset, pointee) is None:
            text = (
                f"it may hold the address of byte {offset} of {name}, and what that means in the new one is not known"
            )
            diff.reason(Code.DATA_POINTERS_CHANGED, REFUSED, place, text)
        elif pointee in ("", "void"):
            label = diff.view(diff.new, place.unit).label(place.section)
            text = (
                f"{label} may hold its address, and its type does not tell that it points there (if it does, follow it)"
            )
            file, line = diff.debug.declared(diff.new, place)
            diff.changes.reasons.append(Reason(Code.POINTER_OPAQUE.value, NEEDS, name, file, line, text))


def _pointee(diff: Diff, unit: int, holder: Variable, at: int) -> str:
    """What the pointer at an offset of a variable points to, by its type; "" when that is not known."""
    known = diff.debug.layouts(diff.old, unit)
    same = between_variables(holder, known, holder, known)
    found = pointer_at(same, at) if isinstance(same, Transformation) else None
    return found.pointee if found is not None else ""


def _note(diff: Diff, code: Code, severity: str, v: Variable, text: str) -> None:
    diff.changes.reasons.append(Reason(code.value, severity, v.name, v.file, v.line, text))
