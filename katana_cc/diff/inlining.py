"""Which inlined callee is behind the change of a function.

A function changes although nobody touched it when a function that was inlined into it did.  Debug information says
which bytes came from which inlined callee.  A callee is named when the code it left in a function differs between the
two builds, and does so in at least half of the changed functions that it was inlined into: where most hold the same
code of it as before, the compiler only arranged it differently in the others.

This explains; what is carried does not depend on it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from katana_cc.diff.program import Place, Program
from katana_cc.diff.reasons import INFO, Code
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.inlined import inlined_calls
from katana_cc.errors import FormatError

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff


class _Callee(NamedTuple):
    name: str
    file: str


_SYSTEM: Final = ("/usr/include/", "/usr/lib/")

_Code = dict[_Callee, list[bytes]]


def explain_inlining(diff: Diff) -> None:
    """Add a reason to each replaced function that changed with a function inlined into it."""
    same: Counter[_Callee] = Counter()
    differing: dict[Place, list[_Callee]] = {}
    lines: dict[_Callee, int] = {}
    for place, old_place in diff.changes.replaced.items():
        before, _ = _inlined_code(diff, diff.old, old_place)
        after, where = _inlined_code(diff, diff.new, place)
        lines |= where
        for callee in before.keys() & after.keys():
            if sorted(before[callee]) == sorted(after[callee]):
                same[callee] += 1
            else:
                differing.setdefault(place, []).append(callee)
    changed = Counter(callee for callees in differing.values() for callee in callees)
    for place, callees in differing.items():
        for callee in sorted(c for c in callees if changed[c] >= same[c]):
            if callee.file.startswith(_SYSTEM):
                continue  # it did not change: its arguments did
            text = f"the code inlined into it from {callee.name} ({callee.file}:{lines[callee]}) changed"
            diff.reason(Code.INLINED_CHANGED, INFO, place, text)


def _inlined_code(diff: Diff, program: Program, place: Place) -> tuple[_Code, dict[_Callee, int]]:
    info = diff.debug.info(program, place.unit)
    view = diff.view(program, place.unit)
    found: _Code = {}
    lines: dict[_Callee, int] = {}
    if not isinstance(info, DebugInfo):
        return found, lines
    texts: dict[int, bytes] = {}
    try:
        calls = inlined_calls(info, place.section)
    except FormatError:
        return found, lines  # compare_types refuses damaged information
    for call in calls:
        callee = _Callee(call.callee, call.file)
        lines[callee] = call.line
        pieces = b""
        for r in sorted(call.code, key=lambda r: (r.section, r.offset)):
            if r.section not in texts:
                relocations = [x for x in view.elf.relocations(r.section) if x.type in view.relocations.EXTENTS]
                texts[r.section] = view.relocations.masked(view.data(r.section), relocations, relaxed=False)
            pieces += texts[r.section][r.offset : r.offset + r.size]
        found.setdefault(callee, []).append(pieces)
    return found, lines
