"""Functions of the user's that run when a patch is applied or reverted: found in objects, and which of them belong to
it.

Theory of operation.  Each macro of `katana.h` makes a small function, the *wrapper*, that calls the user's, and a
record of it in the section `.katana.hooks`, which no linker keeps: an address within the wrapper, which macro it was,
what the user's function is called.  The program never calls a wrapper, so that an old one is nothing to be replaced; a
new one is carried by the patch and called by Katana.

A hook stays in the source after the release it was written for.  So it belongs to the patch only if the build the
patch starts from does not have the same: a wrapper of the same macro in the same object, with the same code, whose
callees did not change.  A hook of an object that did not change is one that the old build has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from katana_cc.diff.compare import Outcome
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import INFO, REFUSED, Code
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.elf.reader import ElfFile, Section
from katana_cc.errors import FormatError
from katana_cc.patch.model import HookKind, Reason

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff

SECTION: Final = ".katana.hooks"
_MARK: Final = 7  # KATANA_TAKE_INITIALISER: a record of a variable
# Address within the wrapper (relocated), number of the macro, place in the source, size of the name with its NUL.
_HEAD: Final = Struct("<QIII")
_ALIGNMENT: Final = 8
_WRAPPER: Final = re.compile(r"katana_(before|after|before_revert|after_revert|transform|transform_back)_hook_(\w+)")
_RUNS: Final = {
    HookKind.BEFORE: "runs before the patch takes effect",
    HookKind.AFTER: "runs once the patch is in effect",
    HookKind.BEFORE_REVERT: "runs before the patch is reverted",
    HookKind.AFTER_REVERT: "runs once the patch is reverted",
    HookKind.TRANSFORM: "makes live objects anew",
    HookKind.TRANSFORM_BACK: "makes live objects anew when the patch is reverted",
}
_LEFT_OUT: Final = "it is in the build that the patch starts from already, with the same code: it does not run again"


class HookRecord(NamedTuple):
    """One hook of an object: `section` holds its wrapper."""

    kind: HookKind
    name: str
    section: int


def hooks_in(elf: ElfFile) -> tuple[HookRecord, ...]:
    """The hooks that an object records, in the order of its source.

    Raises:
        FormatError: the records are not as `katana.h` makes them.
    """
    found = [r for r in _records(elf) if r.number != _MARK]
    return tuple(HookRecord(HookKind(r.number), r.name, r.section) for r in sorted(found, key=lambda r: r.order))


def marked_variables(view: ObjectView) -> frozenset[str]:
    """The variables of an object that are to take their new initial values; none where its records cannot be read,
    which `note_hooks` refuses."""
    try:
        return frozenset(r.name for r in _records(view.elf) if r.number == _MARK)
    except FormatError:
        return frozenset()


class _Record(NamedTuple):
    order: int
    number: int
    name: str
    section: int


def _records(elf: ElfFile) -> Iterator[_Record]:
    for section in elf.sections:
        if section.name == SECTION:
            yield from _records_of(elf, section)


def _records_of(elf: ElfFile, section: Section) -> Iterator[_Record]:
    data = elf.contents(section)
    targets = {r.offset: elf.symbols[r.symbol].section for r in elf.relocations(section.number)}
    at = 0
    while at < len(data):
        if at + _HEAD.size > len(data):
            raise FormatError(f"{SECTION} holds no record at {at:#x}", where=elf.where)
        _, number, order, size = _HEAD.unpack_from(data, at)
        if (at in targets) is (number == _MARK):
            raise FormatError(f"{SECTION} holds no record at {at:#x}", where=elf.where)
        text = data[at + _HEAD.size : at + _HEAD.size + size]
        if number not in {*HookKind, _MARK} or len(text) != size or text[-1:] != b"\0":
            raise FormatError(
                f"{SECTION} holds a record at {at:#x} of a later katana.h, or a damaged one", where=elf.where
            )
        yield _Record(order, number, text[:-1].decode("utf-8", "surrogateescape"), targets.get(at, 0))
        at = -(-(at + _HEAD.size + size) // _ALIGNMENT) * _ALIGNMENT


def wrappers_of(view: ObjectView) -> frozenset[int]:
    """The sections of an object that hold wrappers; none where its records cannot be read, which `note_hooks`
    refuses."""
    try:
        return frozenset(h.section for h in hooks_in(view.elf))
    except FormatError:
        return frozenset()


def note_hooks(diff: Diff) -> None:
    """Fill `changes.hooks`.  The changed functions are known by now."""
    pairs = [*diff.correlation.changed_units, *((None, n) for n in diff.correlation.new_units)]
    for old_unit, unit in sorted(pairs, key=lambda pair: pair[1]):
        if diff.new.record(unit).problem:
            continue
        try:
            records = hooks_in(diff.view(diff.new, unit).elf)
        except FormatError as error:
            name = diff.new.unit_name(unit)
            diff.changes.reasons.append(Reason(Code.HOOK_UNUSABLE.value, REFUSED, name, "", 0, error.what))
            continue
        for record in records:
            if record.kind.makes_objects:
                continue  # `handmade.py` has decided
            _note(diff, old_unit, Place(unit, record.section), record)
    _note_unchanged(diff)


def _note(diff: Diff, old_unit: int | None, place: Place, record: HookRecord) -> None:
    if why := _unusable(diff, place):
        _reason(diff, Code.HOOK_UNUSABLE, REFUSED, place, record, why)
    elif old_unit is not None and _is_old(diff, place, record):
        _reason(diff, Code.HOOK_LEFT_OUT, INFO, place, record, f"{_RUNS[record.kind]}; {_LEFT_OUT}")
    else:
        # Whatever the old build calls so, nothing but Katana calls it.
        diff.correlation.forget(place)
        diff.changes.hooks[place] = record
        _reason(diff, Code.HOOK, INFO, place, record, _RUNS[record.kind])


def _unusable(diff: Diff, place: Place) -> str:
    """Why a wrapper cannot be carried; "" when it can."""
    if diff.view(diff.new, place.unit).kinds.get(place.section) is not Kind.FUNCTION:
        return "its function shares a section with others (compile with -ffunction-sections)"
    if diff.new.address(place) is None:
        return "the linker left it out (--gc-sections, and a compiler that knows no attribute `retain`)"
    return ""


def _is_old(diff: Diff, place: Place, record: HookRecord) -> bool:
    """Whether the old build has the same hook."""
    old_place = diff.correlation.old_of.get(place)
    if old_place is None:
        return False
    try:
        before = {h.section: h for h in hooks_in(diff.view(diff.old, old_place.unit).elf)}.get(old_place.section)
    except FormatError:
        return False
    if before is None or before[:2] != record[:2]:
        return False
    outcome = diff.function_outcome(old_place, place)
    if outcome is not Outcome.SAME and not (outcome is Outcome.BYTES and diff.only_lines(old_place, place)):
        return False
    return not any(_is_changed(diff, target) for target in _callees(diff, place))


def _callees(diff: Diff, place: Place) -> Iterator[Place]:
    """The functions of the program that a wrapper refers to: the user's, or what was inlined of it."""
    view = diff.view(diff.new, place.unit)
    for number in (place.section, *view.parts.get(place.section, ())):
        for reference in view.references(number):
            if reference.literal is not None or reference.section < 0:
                continue
            resolved = diff.comparison.resolve(diff.new, place, reference)
            if resolved is None or resolved[0] == place:
                continue
            if diff.view(diff.new, resolved[0].unit).kinds.get(resolved[0].section) in (Kind.FUNCTION, Kind.CODE):
                yield resolved[0]


def _is_changed(diff: Diff, place: Place) -> bool:
    changes = diff.changes
    return place in changes.replaced or place in changes.renewed or diff.correlation.old_place(place) is None


def _note_unchanged(diff: Diff) -> None:
    """Say of the hooks in objects that did not change that they are left out."""
    for unit in sorted(diff.correlation.same_units):
        if not any(_WRAPPER.search(name) for name in diff.new.record(unit).symbol_names):
            continue
        try:
            records = hooks_in(diff.view(diff.new, unit).elf)
        except FormatError:
            continue
        for r in (r for r in records if not r.kind.makes_objects):
            _reason(diff, Code.HOOK_LEFT_OUT, INFO, Place(unit, r.section), r, f"{_RUNS[r.kind]}; {_LEFT_OUT}")


def _reason(diff: Diff, code: Code, severity: str, place: Place, record: HookRecord, text: str) -> None:
    file, line = diff.debug.declared(diff.new, place)
    where = file or diff.new.unit_name(place.unit)
    diff.changes.reasons.append(Reason(code.value, severity, record.name, where, line, text))
