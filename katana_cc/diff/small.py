"""Functions too small to be jumped away from.

Theory of operation.  A jump has five bytes, and what follows a smaller function is not ours to overwrite.  Three ways,
the first that is possible:

1. What follows is padding: no section of any object lies there, no symbol points there, and the bytes are what
   assemblers and linkers fill gaps with.  Then the jump covers function and padding, and the patch object says so: both
   together are what must be found in the target.
2. The function's address is never used but to call it directly.  Then its callers are carried too, calling the new
   function, and nothing is written at the old one; it is as if the old function were gone and a new one had come.
3. Its address is used otherwise: in a pointer, a table, by another module.  Calls through it would go on reaching the
   old code: refused.

The callers of a redirected function have at least five bytes, as the call itself has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from katana_cc.diff.program import Place
from katana_cc.diff.reasons import INFO, REFUSED, Code
from katana_cc.diff.view import Kind, Reference
from katana_cc.elf import constants as c

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff

_LONGEST: Final = 15  # bytes of one instruction
_SILENT: Final = (Kind.FRAMES, Kind.EXCEPTIONS, Kind.INDIRECT, Kind.IGNORED)


def handle_small(diff: Diff) -> bool:
    """Decide for each replaced function that is too small; whether functions were added to those to replace."""
    grown = False
    for place, old_place in list(diff.changes.replaced.items()):
        if _size(diff, old_place) < _jump_size(diff) and place not in diff.changes.padded:
            grown |= _handle(diff, place, old_place)
    return grown


def _handle(diff: Diff, place: Place, old_place: Place) -> bool:
    if _followed_by_padding(diff, old_place):
        diff.changes.padded.add(place)
        return False
    callers, why = _callers(diff, old_place)
    if why:
        text = f"the old function has {_size(diff, old_place)} bytes, a jump needs {_jump_size(diff)}; {why}"
        diff.changes.padded.add(place)  # decided
        diff.reason(Code.FUNCTION_TOO_SMALL, REFUSED, place, text)
        return False
    del diff.changes.replaced[place]
    diff.changes.renewed.add(place)
    diff.correlation.forget(place)
    name = diff.view(diff.new, place.unit).label(place.section)
    grown = False
    for caller, new in diff.correlation.new_places(callers).items():
        if new not in diff.changes.replaced:
            diff.changes.replaced[new] = caller
            text = f"it calls {name}, which is too small to be jumped away from: the call leads to the new one"
            diff.reason(Code.CALLEE_REDIRECTED, INFO, new, text)
            grown = True
    return grown


def _jump_size(diff: Diff) -> int:
    return diff.old.cpu.code.JUMP_SIZE


def _size(diff: Diff, old_place: Place) -> int:
    return diff.view(diff.old, old_place.unit).elf.sections[old_place.section].size


# Padding


def _followed_by_padding(diff: Diff, old_place: Place) -> bool:
    """Whether nothing but padding lies in what a jump needs beyond the function."""
    address = diff.old.address(old_place)
    assert address is not None
    end, needed = address + _size(diff, old_place), address + _jump_size(diff)
    if any(_is_code(diff, place) for place in diff.old.unplaced):
        return False  # it might lie here
    if any(start < needed and stop > end for start, stop in _placed(diff)):
        return False
    if any(end <= value < needed for value in diff.old.snapshot.linker_symbols.values()):
        return False
    segment = next((s for s in diff.old.image.segments if s.type == c.PT_LOAD and s.flags & c.PF_X
                    and s.vaddr <= address and needed <= s.vaddr + s.file_size), None)  # fmt: skip
    if segment is None:
        return False
    room = min(segment.vaddr + segment.file_size - end, _LONGEST + _jump_size(diff))
    return diff.old.cpu.code.is_padding(diff.old.image.read(end, room), needed - end)


def _is_code(diff: Diff, place: Place) -> bool:
    known = (x for x in diff.old.record(place.unit).sections if x.number == place.section)
    return any(x.flags & c.SHF_EXECINSTR for x in known)


def _placed(diff: Diff) -> Iterator[tuple[int, int]]:
    """[start, end) of every section of an object in the old output."""
    for unit in range(len(diff.old.snapshot.units)):
        for section in diff.old.record(unit).sections:
            start = diff.old.address(Place(unit, section.number))
            if start is not None:
                yield start, start + section.size


# Callers


def _callers(diff: Diff, old_place: Place) -> tuple[list[Place], str]:
    """The functions that call an old function directly, or why it may be reached in another way."""
    view = diff.view(diff.old, old_place.unit)
    names = {s.name for s in view.symbols_in.get(old_place.section, ()) if s.binding != c.STB_LOCAL}
    if exported := sorted(n for n in names if n in diff.old.tables.by_name):
        return [], f"other modules may call it: {exported[0]} is exported"
    found: dict[Place, None] = {}
    for place, reference in _references_to(diff, old_place, names):
        user = diff.view(diff.old, place.unit)
        label = user.label(place.section)
        if not reference.branch or user.kinds[place.section] is not Kind.FUNCTION:
            return [], f"its address is used otherwise than by a call, in {label}"
        found[Place(place.unit, user.parent.get(place.section, place.section))] = None
    return list(found), ""


def _references_to(diff: Diff, target: Place, names: set[str]) -> Iterator[tuple[Place, Reference]]:
    for unit in range(len(diff.old.snapshot.units)):
        view = diff.view(diff.old, unit)
        if unit != target.unit and not names & {s.name for s in view.elf.symbols}:
            continue
        for number, kind in view.kinds.items():
            place = Place(unit, number)
            if kind in _SILENT or place == target or diff.old.address(place) is None:
                continue
            for reference in view.references(number):
                resolved = diff.comparison.resolve(diff.old, place, reference)
                if resolved is not None and resolved[0] == target:
                    yield place, reference
