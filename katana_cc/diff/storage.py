"""Variables of which one of the two builds keeps no storage, or only a part, although both declare them.

An optimising compiler keeps a static only while the code of its file writes and reads it.  Without a writer its readers
take the initial value; without a reader what is written is dropped; clang does so for each field of a struct, and
reduces what only ever gets one value to a truth value.  The new code is right for a process that ran it from the start.
In one that runs the old code a live value is lost: the new code does not read it (`STORAGE_LOST`), or the old one never
stored it (`STORAGE_UNKNOWN`).  Debug information is the same whether it was the last reader or the last writer that
went, so somebody has to decide: such a change needs `--take-initialiser`.

What both builds keep in the same way is compared as a section elsewhere; a declaration that came or went is a new or a
removed variable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from katana_cc.diff.marks import names_marked
from katana_cc.diff.program import Place, Program
from katana_cc.diff.reasons import INFO, NEEDS, REFUSED, Code
from katana_cc.diff.view import Kind
from katana_cc.dwarf.detail import lines_only
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.variables import CHANGED, INLINED, Unstored, Variable, unstored, variables
from katana_cc.errors import FormatError
from katana_cc.patch.model import Reason

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff

_LOST = (
    "the new build still declares it and keeps no storage for it, or not for all of it: what reads it takes the "
    "initial value, not the live one (all is well if nothing reads it; a volatile variable keeps its storage)"
)
_UNKNOWN = (
    "the old build declares it and keeps no storage for it, or not for all of it: it starts from its initial value, "
    "and what the old code wrote to it, if anything, is nowhere"
)
_WHOLE, _PARTS = "whole", "in parts"


def _style(ways: Counter[str] | None) -> str:
    """How a variable is kept, in words; "" where it is not."""
    if not ways or ways.keys() == {_WHOLE}:
        return _WHOLE if ways else ""
    return _PARTS if all(way.startswith("part ") for way in ways) else " and ".join(sorted(ways))


@dataclass(slots=True)
class _Unit:
    """How the variables of an object are kept, by qualified name: whole, in parts, or in a way of the compiler's own.

    `writable` are those of `kept` that code can write.
    """

    info: DebugInfo
    kept: dict[str, Counter[str]] = field(default_factory=dict)
    writable: dict[str, Counter[str]] = field(default_factory=dict)

    def knows(self, name: str) -> bool:
        """Whether a variable is declared here, with storage or without."""
        return name in self.kept or self.without_storage(name) is not None

    def without_storage(self, name: str) -> Unstored | None:
        """The declaration of a variable that lies nowhere, or of which a part lies nowhere."""
        missing = unstored(self.info)
        found = missing.get(name) or missing.get(f"{INLINED}::{name.rpartition(')::')[2]}")
        if found is None and _style(self.kept.get(name)) == _PARTS:
            found = self.declaration(name)
        return found

    def declaration(self, name: str) -> Unstored:
        """The declaration of a variable that is kept."""
        return next(Unstored(v.file, v.line, v.constant) for v in variables(self.info) if v.qualified == name)


class _Side:
    """The units of one program that changed, came or went, each with its counterpart in the other."""

    def __init__(self, diff: Diff, program: Program, counterparts: Mapping[int, int | None]) -> None:
        self.program = program
        self.counterparts = counterparts
        self._diff = diff
        self._units: dict[int, _Unit | None] = {}

    def unit(self, number: int | None) -> _Unit | None:
        """What is known of a unit; None when its debug information cannot be read (refused elsewhere)."""
        if number is None:
            return None
        if number not in self._units:
            info = self._diff.debug.info(self.program, number)
            readable = isinstance(info, DebugInfo) and lines_only(info) is None
            self._units[number] = self._read(number, info) if readable and isinstance(info, DebugInfo) else None
        return self._units[number]

    def _read(self, number: int, info: DebugInfo) -> _Unit | None:
        unit = _Unit(info)
        kinds = self._diff.view(self.program, number).kinds
        try:
            for v in variables(info):
                for way, section in _ways(v):
                    unit.kept.setdefault(v.qualified, Counter())[way] += 1
                    placed = section is None or self.program.address(Place(number, section)) is not None
                    if placed and not v.constant and (section is None or kinds.get(section) in _WRITABLE):
                        unit.writable.setdefault(v.qualified, Counter())[way] += 1
            unstored(info)
        except FormatError:
            return None
        return unit


_WRITABLE = (Kind.DATA, Kind.THREAD)


def _ways(v: Variable) -> Iterator[tuple[str, int | None]]:
    """(way it is kept, section) of a variable and of its parts."""
    if v.place is not None:
        yield _WHOLE, v.place.section
    elif v.why.startswith(CHANGED):
        yield f"as {v.why.removeprefix(CHANGED)}", None
    for at, piece in v.pieces:
        yield f"part {at}", piece.section


def check_storage(diff: Diff) -> None:
    """Find changes by which a live value would be lost, since one of the builds does not keep it."""
    correlation = diff.correlation
    pairs = correlation.changed_units
    old = _Side(diff, diff.old, dict(pairs) | dict.fromkeys(correlation.removed_units))
    new = _Side(diff, diff.new, {n: o for o, n in pairs} | dict.fromkeys(correlation.new_units))
    _refuse_restyled(diff, old, new)
    for unit, name, at in _missing(old, new):
        diff.lost.add((unit, name))
        _note(diff, Code.STORAGE_LOST, *_judged(diff, old.counterparts[unit], name, _LOST), name, at)
    for unit, name, at in _missing(new, old):
        if not at.constant:
            _note(diff, Code.STORAGE_UNKNOWN, *_judged(diff, unit, name, _UNKNOWN), name, at)


def _judged(diff: Diff, unit: int | None, name: str, text: str) -> tuple[str, str]:
    """(severity, words): nobody has to decide where the source of the new unit has decided."""
    if unit is not None and names_marked(diff, unit, name):
        return INFO, f"{text}; the source says so: KATANA_TAKE_INITIALISER"
    return NEEDS, text


def _refuse_restyled(diff: Diff, old: _Side, new: _Side) -> None:
    """What both builds keep, each in its own way: as a whole and in parts, or as flags that stand for other values."""
    for old_unit, new_unit in diff.correlation.changed_units:
        before, after = old.unit(old_unit), new.unit(new_unit)
        for name, ways in before.writable.items() if before and after else ():
            assert after is not None
            styles = _style(ways), _style(after.kept.get(name))
            if styles[1] and styles[0] != styles[1]:
                text = f"the compiler keeps it {styles[1]}, and kept it {styles[0]}; its live value would be misread"
                _note(diff, Code.STORAGE_RESTYLED, REFUSED, text, name, after.declaration(name))


def _note(diff: Diff, code: Code, severity: str, text: str, name: str, at: Unstored) -> None:
    diff.changes.reasons.append(Reason(code.value, severity, name, at.file, at.line, text))


def _missing(here: _Side, there: _Side) -> Iterator[tuple[int, str, Unstored]]:
    """Variables that have storage here, and of which the other side declares what it keeps nowhere."""
    for number, counterpart in here.counterparts.items():
        unit, other = here.unit(number), there.unit(counterpart)
        for name, ways in unit.writable.items() if unit else ():
            if other is not None and other.knows(name):
                kept = other.kept.get(name, Counter())
                restyled = kept and _style(kept) != _style(ways)
                found = other.without_storage(name) if ways - kept and not restyled else None
            else:
                found = _moved(name, here, there)
            if found is not None:
                yield number, name, found


def _moved(name: str, here: _Side, there: _Side) -> Unstored | None:
    """The declaration without storage in a unit that did not declare it on this side: where it moved to."""
    for number, counterpart in there.counterparts.items():
        unit, before = there.unit(number), here.unit(counterpart)
        if unit is not None and (before is None or not before.knows(name)):
            found = unit.without_storage(name)
            if found is not None:
                return found
    return None
