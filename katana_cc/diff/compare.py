"""Whether a section of the new program means the same as one of the old.

Theory of operation.  Two sections are the same when their bytes are, relocated fields apart, and every relocation of
the one refers to what the corresponding relocation of the other refers to: correlated things at the same distance,
literals and unnamed data of equal contents (followed recursively), the same import.  Nothing is resolved to addresses:
everything moves in every link.

A function that differs only in immediates that are its own line numbers (`__LINE__` in an assertion) is told apart:
with equal size and equal references, every differing field must hold a line of the old line table before and the line
of the same instruction in the new one after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum, auto

from katana_cc.diff.correlate import Correlation
from katana_cc.diff.program import Place, Program
from katana_cc.diff.view import Kind, ObjectView, Reference
from katana_cc.elf import constants as c
from katana_cc.elf.fields import EXTENTS, masked


class Outcome(Enum):
    """The result of comparing two sections."""

    SAME = auto()
    BYTES = auto()  # same size, same references, other bytes
    REFERENCES = auto()  # it refers to something else
    SIZE = auto()


_BY_CONTENT = (Kind.ANONYMOUS, Kind.EXCEPTIONS)


class Comparison:
    """Compares places of two programs; remembers what it found."""

    def __init__(
        self, old: Program, new: Program, correlation: Correlation, view: Callable[[Program, int], ObjectView]
    ) -> None:
        self.old = old
        self.new = new
        self.correlation = correlation
        self.view = view
        self._known: dict[tuple[Place, Place], Outcome] = {}

    def compare(self, old: Place, new: Place) -> Outcome:
        """Compare two sections; `SAME` for a pair being compared already (a jump table refers back to its function)."""
        known = self._known.get((old, new))
        if known is None:
            self._known[old, new] = Outcome.SAME
            known = self._known[old, new] = self._compare(old, new)
        return known

    def _compare(self, old: Place, new: Place) -> Outcome:
        old_view, new_view = self.view(self.old, old.unit), self.view(self.new, new.unit)
        old_section, new_section = old_view.elf.sections[old.section], new_view.elf.sections[new.section]
        if old_section.size != new_section.size:
            return Outcome.SIZE
        old_references, new_references = old_view.references(old.section), new_view.references(new.section)
        if len(old_references) != len(new_references):
            return Outcome.REFERENCES
        for a, b in zip(old_references, new_references, strict=True):
            if a.relocation.offset != b.relocation.offset or a.relocation.type != b.relocation.type:
                return Outcome.REFERENCES
            if a.relocation.type not in EXTENTS:
                return Outcome.REFERENCES
            if not self.correspond(old, a, new, b):
                return Outcome.REFERENCES
        if c.SHT_NOBITS in (old_section.type, new_section.type):
            if old_section.type == new_section.type:
                return Outcome.SAME
            blank = old_view.data(old.section) or new_view.data(new.section)
            return Outcome.BYTES if any(blank) else Outcome.SAME
        before = masked(old_view.data(old.section), (r.relocation for r in old_references), relaxed=False)
        after = masked(new_view.data(new.section), (r.relocation for r in new_references), relaxed=False)
        return Outcome.SAME if before == after else Outcome.BYTES

    def correspond(self, old: Place, a: Reference, new: Place, b: Reference) -> bool:
        """Whether `a` in the old section `old` and `b` in the new section `new` refer to the same thing."""
        if (a.literal is None) != (b.literal is None):
            return False
        if a.literal is not None:
            return a.literal == b.literal and a.by_section == b.by_section and (a.by_section or a.addend == b.addend)
        if a.section == b.section == -1:
            return a.base == b.base and a.addend == b.addend
        here, there = self.resolve(self.old, old, a), self.resolve(self.new, new, b)
        if here is None or there is None:
            return here is there and a.name == b.name and a.addend == b.addend
        (old_target, old_base), (new_target, new_base) = here, there
        if old_base + a.addend != new_base + b.addend:
            return False
        if self.correlation.old_place(new_target) == old_target:
            return True
        kinds = (
            self.view(self.old, old_target.unit).kinds.get(old_target.section),
            self.view(self.new, new_target.unit).kinds.get(new_target.section),
        )
        return kinds[0] is kinds[1] and kinds[0] in _BY_CONTENT and self.compare(old_target, new_target) is Outcome.SAME

    def resolve(self, program: Program, place: Place, reference: Reference) -> tuple[Place, int] | None:
        """The section and offset a reference means; None for imports, COMMON and linker-made symbols."""
        if reference.section > 0:
            return Place(place.unit, reference.section), reference.base
        definition = program.globals.get(reference.name)
        if definition is None or definition.place is None:
            return None
        return definition.place, definition.value


def only_lines_differ(old: bytes, new: bytes, pairs: Collection[tuple[int, int]]) -> bool:
    """Whether every difference of two equally long pieces of code is a line number that moved.

    Args:
        old: code with relocated fields zeroed.
        new: the same of the new build.
        pairs: (old line, new line) of instructions at equal offsets.
    """
    moved = {pair for pair in pairs if pair[0] != pair[1]}
    if len(old) != len(new) or not moved:
        return False
    at = 0
    size = len(old)
    while at < size:
        if old[at] == new[at]:
            at += 1
            continue
        end = _line_field(old, new, at, moved)
        if end is None:
            return False
        at = end
    return True


def _line_field(old: bytes, new: bytes, at: int, moved: Collection[tuple[int, int]]) -> int | None:
    """The end of an immediate that starts at or up to three bytes before `at` and holds a moved line; None if none."""
    for start in range(at, max(-1, at - 4), -1):
        end = start + 4
        if end > len(old):
            continue
        pair = int.from_bytes(old[start:end], "little"), int.from_bytes(new[start:end], "little")
        if pair in moved:
            return end
    # push imm8, cmp $imm8: a line below 128 in one byte.
    pair = old[at], new[at]
    if max(pair) < 128 and pair in moved:
        return at + 1
    return None
