"""Code that stays where it is and is made to use another variable: only the fields that lead to it are rewritten.

A variable that is made anew elsewhere may be used by functions that did not change, `main` among them, which is always
active.  Such a function need not be replaced, nor be left by all threads: its instructions are the same, but for a
displacement or an absolute address.  Each is 4 bytes, written while all threads stand between two instructions.  What
a thread has already read of the old address is found in its registers and on its stack (`katana apply` looks there).

It takes the plain relocations (psABI 4.4.1), whose linked value is what the entry says, and loads of an address that
the linker turned into `lea` (psABI B.2), whose value is the same.  Where the linker made something else of an
instruction, or put a slot between, the function is carried instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from katana_cc.cpu import field
from katana_cc.cpu.interface import Relocations
from katana_cc.diff.compare import Outcome
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import INFO, Code
from katana_cc.diff.view import Kind, Reference

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff

_BEFORE: Final = 2  # bytes before a field that tell what a linker made of the instruction


def retarget(diff: Diff, place: Place, old_place: Place, target: Place) -> bool:
    """Note that code stays, and is made to use the new `target`; False when it has to be carried for it."""
    if target not in diff.changes.moved:
        return False
    view = diff.view(diff.new, place.unit)
    old_view = diff.view(diff.old, old_place.unit)
    old_parts, parts = old_view.parts.get(old_place.section, []), view.parts.get(place.section, [])
    if len(old_parts) != len(parts):
        return False
    pairs = [(place, old_place)]
    pairs += [(Place(place.unit, n), Place(old_place.unit, o)) for n, o in zip(parts, old_parts, strict=True)]
    if not all(_may_stay(diff, new, old) for new, old in pairs):
        return False
    diff.changes.retargeted.update((new, old) for new, old in pairs if any(fields(diff, new, old)))
    return True


def note_retargeted(diff: Diff) -> None:
    """Give the reason for each; called when it is fixed what is replaced."""
    for place, old_place in sorted(diff.changes.retargeted.items()):
        used = dict.fromkeys(
            diff.view(diff.old, old.unit).label(old.section) for _, _, old in fields(diff, place, old_place)
        )
        text = f"it uses {', '.join(used)}, and is made to use the new one where it is"
        diff.reason(Code.CODE_RETARGETED, INFO, place, text)


def fields(diff: Diff, place: Place, old_place: Place) -> Iterator[tuple[Reference, Reference, Place]]:
    """(new reference, old reference, old variable) of each field of code that leads to a variable that is made anew."""
    moved = diff.changes.moved
    before = diff.view(diff.old, old_place.unit).references(old_place.section)
    after = diff.view(diff.new, place.unit).references(place.section)
    for old, new in zip(before, after, strict=True):
        resolved = diff.comparison.resolve(diff.new, place, new) if new.literal is None and new.section >= 0 else None
        if resolved is not None and resolved[0] in moved:
            yield new, old, moved[resolved[0]].old


def _may_stay(diff: Diff, place: Place, old_place: Place) -> bool:
    sides = [
        [(r.relocation.offset, r.relocation.type) for r in diff.view(program, at.unit).references(at.section)]
        for program, at in ((diff.old, old_place), (diff.new, place))
    ]
    if sides[0] != sides[1]:
        return False
    code = diff.view(diff.new, place.unit).kinds[place.section] is Kind.CODE
    if code and diff.comparison.compare(old_place, place) is not Outcome.SAME:
        return False
    return all(_is_plain(diff, old_place, old, variable) for _, old, variable in fields(diff, place, old_place))


def _is_plain(diff: Diff, place: Place, reference: Reference, variable: Place) -> bool:
    """Whether the linked bytes of a field are what its relocation says of the old variable."""
    r = reference.relocation
    start, target = diff.old.address(place), diff.old.address(variable)
    resolved = diff.comparison.resolve(diff.old, place, reference)
    if start is None or target is None or resolved is None or resolved[0] != variable:
        return False
    cpu = diff.old.cpu
    known = cpu.relocations
    if r.offset < _BEFORE:
        return False
    linked = diff.old.image.read(start + r.offset - _BEFORE, _BEFORE + 4)
    is_relaxed = r.type in known.RELAXED_LOADS and cpu.code.was_relaxed(linked, _BEFORE)
    if r.type not in known.DIRECT and not is_relaxed:
        return False
    kind = known.relocation_kind(as_linked(known, r.type), "")
    value = field.from_place(kind, target + resolved[1] + r.addend, start + r.offset)
    expected = bytearray(linked)
    field.write(kind, expected, _BEFORE, value)
    return linked == expected


def as_linked(known: Relocations, type_: int) -> int:
    """The relocation type that says what the linker made of a field that `retarget` takes."""
    return known.AS_RELAXED if type_ in known.RELAXED_LOADS else type_
