"""Whether a section of the new program means the same as one of the old.

Theory of operation.  Two sections are the same when their bytes are, relocated fields apart, and every relocation of
the one refers to what the corresponding relocation of the other refers to: correlated things at the same distance,
literals and unnamed data of equal contents (followed recursively), the same import.  Nothing is resolved to addresses:
everything moves in every link.

Code that leads to a variable that is made anew elsewhere is rewritten there in any case, so it is the same also where
the offset it leads to is another, if the same field is there.

A function that differs only in immediates that are its own line numbers (`__LINE__` in an assertion) is told apart:
with equal size and equal references, every differing field must hold, before and after, a line at or shortly after that
of its own instruction, and have moved as far as the instruction's line did.

Literals that differ only in what `__DATE__` and `__TIME__` are, and whose new value is about the time of the new link,
are told apart too: a file that is compiled again for nothing should not be a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from katana_cc.diff.correlate import Correlation
from katana_cc.diff.frames import FrameEntry
from katana_cc.diff.harmless import same_but_built_later
from katana_cc.diff.program import Place, Program
from katana_cc.diff.view import Kind, ObjectView, Reference
from katana_cc.elf import constants as c
from katana_cc.transform.model import Transformation
from katana_cc.transform.places import moved_offset


class Outcome(Enum):
    """The result of comparing two sections."""

    SAME = auto()
    DATES = auto()  # nothing but the time of the build
    BYTES = auto()  # same size, same references, other bytes
    REFERENCES = auto()  # it refers to something else
    SIZE = auto()
    HANDLERS = auto()  # the code may be the same: what it catches or cleans up is not


_CODE = (Kind.FUNCTION, Kind.CODE)
_VALUE = "a value"  # what an instruction reads or writes: never a struct as a whole
_BY_CONTENT = (Kind.ANONYMOUS, Kind.EXCEPTIONS, Kind.INDIRECT)


class Comparison:
    """Compares places of two programs; remembers what it found."""

    def __init__(
        self, old: Program, new: Program, correlation: Correlation, view: Callable[[Program, int], ObjectView]
    ) -> None:
        self.old = old
        self.new = new
        self.correlation = correlation
        self.view = view
        # Variables that are made anew elsewhere: new → old, and how.
        self.moved: dict[Place, tuple[Place, Transformation]] = {}
        self._dated = False
        self._known: dict[tuple[Place, Place], Outcome] = {}

    def compare(self, old: Place, new: Place) -> Outcome:
        """Compare two sections; `SAME` for a pair being compared already (a jump table refers back to its function)."""
        known = self._known.get((old, new))
        if known is None:
            self._known[old, new] = Outcome.SAME
            outer, self._dated = self._dated, False
            known = self._compare(old, new)
            if known is Outcome.SAME and self._dated:
                known = Outcome.DATES
            self._known[old, new] = known
            self._dated = outer
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
            if a.relocation.type not in old_view.relocations.EXTENTS:
                return Outcome.REFERENCES
            if not self.correspond(old, a, new, b):
                return Outcome.REFERENCES
        if c.SHT_NOBITS in (old_section.type, new_section.type):
            if old_section.type == new_section.type:
                return Outcome.SAME
            blank = old_view.data(old.section) or new_view.data(new.section)
            return Outcome.BYTES if any(blank) else Outcome.SAME
        blanked = old_view.relocations.masked
        before = blanked(old_view.data(old.section), (r.relocation for r in old_references), relaxed=False)
        after = blanked(new_view.data(new.section), (r.relocation for r in new_references), relaxed=False)
        if before == after:
            return Outcome.SAME
        if not new_section.flags & c.SHF_EXECINSTR and same_but_built_later(before, after, self.new.snapshot.time):
            return Outcome.DATES
        return Outcome.BYTES

    def same_handlers(self, old: Place, new: Place) -> bool:
        """Whether two code sections have the same handlers and cleanups for the same calls."""
        if not any(self.view(p, place.unit).has_handlers for p, place in ((self.old, old), (self.new, new))):
            return True
        before = [e for e in self.view(self.old, old.unit).frames.get(old.section, ()) if e.takes_part]
        after = [e for e in self.view(self.new, new.unit).frames.get(new.section, ()) if e.takes_part]
        if len(before) != len(after):
            return False
        return all(self._same_entry(old, a, new, b) for a, b in zip(before, after, strict=True))

    def _same_entry(self, old: Place, a: FrameEntry, new: Place, b: FrameEntry) -> bool:
        if a.offset != b.offset or not self._correspond_or_none(old, a.personality, new, b.personality):
            return False
        if a.handlers is None or b.handlers is None:
            if not a.problem and not b.problem:
                return a.handlers is b.handlers
            # Not understood: then it has to be the same to the byte.
            same = a.fde[8:] == b.fde[8:] and a.cie == b.cie
            return same and self._correspond_or_none(old, a.lsda, new, b.lsda)
        if a.handlers.lsda.call_sites != b.handlers.lsda.call_sites:
            return False
        pairs = zip(a.handlers.types, b.handlers.types, strict=True)
        return all(self._correspond_or_none(old, x, new, y) for x, y in pairs)

    def _correspond_or_none(self, old: Place, a: Reference | None, new: Place, b: Reference | None) -> bool:
        return a is b if a is None or b is None else self.correspond(old, a, new, b)

    def changed_pointers(self, old: Place, new: Place) -> list[tuple[int, frozenset[Kind]]] | None:
        """Offset and target kinds (old and new) of each pointer of two data that means another thing than before.

        None when the two do not hold pointers at the same offsets, or other fields than whole pointers.
        """
        before = self.view(self.old, old.unit).references(old.section)
        after = self.view(self.new, new.unit).references(new.section)
        offsets = [[(r.relocation.offset, r.relocation.type) for r in side] for side in (before, after)]
        if offsets[0] != offsets[1]:
            return None
        whole = self.old.cpu.relocations.ABSOLUTE[8]
        found = []
        for a, b in zip(before, after, strict=True):
            if self.correspond(old, a, new, b):
                continue
            if a.relocation.type != whole:
                return None
            kinds = {self._target_kind(self.old, old, a), self._target_kind(self.new, new, b)}
            found.append((a.relocation.offset, frozenset(kinds)))
        return found

    def _target_kind(self, program: Program, place: Place, reference: Reference) -> Kind:
        if reference.literal is not None:
            return Kind.LITERAL
        resolved = self.resolve(program, place, reference)
        if resolved is None:
            return Kind.OTHER
        target, base = resolved
        kind = self.view(program, target.unit).kinds.get(target.section, Kind.OTHER)
        return Kind.OTHER if kind is Kind.FUNCTION and base + reference.addend else kind

    def bytes_differ(self, old: Place, new: Place) -> bool:
        """Whether two data of equal shape differ outside their pointers."""
        sides = []
        for program, place in ((self.old, old), (self.new, new)):
            view = self.view(program, place.unit)
            relocations = view.elf.relocations(place.section)
            sides.append(view.relocations.masked(view.data(place.section), relocations, relaxed=False))
        return sides[0] != sides[1]

    def correspond(self, old: Place, a: Reference, new: Place, b: Reference) -> bool:
        """Whether `a` in the old section `old` and `b` in the new section `new` refer to the same thing."""
        if (a.literal is None) != (b.literal is None):
            return False
        if a.literal is not None:
            assert b.literal is not None
            if a.by_section != b.by_section or (not a.by_section and a.addend != b.addend):
                return False
            if a.literal == b.literal:
                return True
            later = same_but_built_later(a.literal, b.literal, self.new.snapshot.time)
            self._dated |= later
            return later
        if a.section == b.section == -1:
            return a.base == b.base and a.addend == b.addend
        here, there = self.resolve(self.old, old, a), self.resolve(self.new, new, b)
        if here is None or there is None:
            return here is there and self.old.meant(a.name) == self.new.meant(b.name) and a.addend == b.addend
        (old_target, old_base), (new_target, new_base) = here, there
        offsets = old_base + a.addend, new_base + b.addend
        if offsets[0] != offsets[1] and not self._is_same_field(new, b, old_target, new_target, offsets):
            return False
        if self.correlation.old_place(new_target) == old_target:
            return True
        kinds = (
            self.view(self.old, old_target.unit).kinds.get(old_target.section),
            self.view(self.new, new_target.unit).kinds.get(new_target.section),
        )
        if kinds[0] is not kinds[1] or kinds[0] not in _BY_CONTENT:
            return False
        outcome = self.compare(old_target, new_target)
        self._dated |= outcome is Outcome.DATES
        return outcome in (Outcome.SAME, Outcome.DATES)

    def _is_same_field(
        self, place: Place, field: Reference, old_target: Place, new_target: Place, offsets: tuple[int, int]
    ) -> bool:
        """Whether code leads to the same field as before of a variable that is made anew, which has another offset."""
        move = self.moved.get(new_target)
        view = self.view(self.new, place.unit)
        if move is None or move[0] != old_target or view.kinds.get(place.section) not in _CODE:
            return False
        relative = field.relocation.type in view.relocations.PC_RELATIVE
        added = view.starts(place.section, field.relocation.offset) if relative else 0
        return moved_offset(move[1], offsets[0] + added, _VALUE) == offsets[1] + added

    def resolve(self, program: Program, place: Place, reference: Reference) -> tuple[Place, int] | None:
        """The section and offset a reference means; None for imports, COMMON and linker-made symbols.

        What an object defines by a global or weak name is not always what the name means there: the linker keeps one
        of several inline functions (COMDAT), and a strong definition elsewhere overrides a weak one.
        """
        if reference.section > 0:
            here = Place(place.unit, reference.section)
            symbol = self.view(program, place.unit).elf.symbols[reference.relocation.symbol]
            kept = None if symbol.binding == c.STB_LOCAL else program.globals.get(symbol.name)
            if kept is None or kept.place is None:
                return here, reference.base
            return kept.place, kept.value
        definition = program.globals.get(program.meant(reference.name))
        if definition is None or definition.place is None:
            return None
        return definition.place, definition.value
