"""The diff: from two snapshots to what changed, each change with its reason.

The passes, in order: correlate the sections; compare those of changed objects; let constants that had to be made anew
pull in what refers to them; compare the layouts of types and variables.  What can be carried ends in `Changes`; what
cannot is a reason of severity "refused".  Nothing that differs is dropped without a reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from katana_cc.diff.compare import Comparison, Outcome, only_lines_differ
from katana_cc.diff.correlate import Correlation, correlate
from katana_cc.diff.debug import DebugCache
from katana_cc.diff.program import ObjectCache, Place, Program
from katana_cc.diff.reasons import INFO, REFUSED, Code
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.elf import constants as c
from katana_cc.elf.fields import EXTENTS, masked
from katana_cc.patch.model import Reason
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.store import Store

SMALLEST_FUNCTION = 5  # bytes of `jmp rel32`


@dataclass(slots=True)
class Changes:
    """The result of a diff.

    `replaced[new]` is the old function a new one takes the place of; `edits` are constants rewritten where they are,
    as (new, old); `recreated` are constants carried anew although there was an old one, since their size changed.
    """

    replaced: dict[Place, Place] = field(default_factory=dict)
    edits: dict[Place, Place] = field(default_factory=dict)
    recreated: set[Place] = field(default_factory=set)
    reasons: list[Reason] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether a running process would not notice any of it: nothing to carry and nothing refused."""
        return not self.replaced and not self.edits and all(r.severity == INFO for r in self.reasons)


class Diff:
    """A diff of two snapshots of one output.

    Args:
        store: where the blobs of both are.
        old: the snapshot that runs.
        new: the snapshot that was just built.
    """

    def __init__(self, store: Store, old: Snapshot, new: Snapshot) -> None:
        cache = ObjectCache(store)
        self.old = Program(cache, old)
        self.new = Program(cache, new)
        self._views: dict[str, ObjectView] = {}
        self.debug = DebugCache(self.view)
        self.changes = Changes()

    def view(self, program: Program, unit: int) -> ObjectView:
        """The view of a unit's object; one for both programs when they share the object."""
        blob = program.snapshot.units[unit].blob
        if blob not in self._views:
            self._views[blob] = ObjectView(program.object(unit))
        return self._views[blob]

    @cached_property
    def correlation(self) -> Correlation:
        """Which place is which."""
        return correlate(self.old, self.new, self.view)

    @cached_property
    def comparison(self) -> Comparison:
        """The comparison of places."""
        return Comparison(self.old, self.new, self.correlation, self.view)

    def run(self) -> Changes:
        """All changes with their reasons."""
        self._check_outputs()
        for old_unit, new_unit in self.correlation.changed_units:
            self._compare_unit(old_unit, new_unit)
        for unit in self.correlation.new_units:
            self._new_unit(unit)
        self._recreate_label_tables()
        self._pull_in_users_of_recreated()
        # From here on the set of replaced functions, edits and recreated constants is fixed.
        for place, old_place in self.changes.replaced.items():
            self._check_replaceable(place, old_place)
        for old_unit, new_unit in self.correlation.changed_units:
            self.changes.reasons += self.debug.compare_types(self.old, old_unit, self.new, new_unit, self.correlation)
        self.changes.reasons = _unique(self.changes.reasons)
        return self.changes

    # Reasons

    def reason(
        self, code: Code, severity: str, place: Place | None, text: str, *, program: Program | None = None
    ) -> None:
        """Note a reason about what `place` holds."""
        owner = program or self.new
        subject = file = ""
        line = 0
        if place is not None:
            view = self.view(owner, place.unit)
            subject = view.label(place.section)
            file, line = self.debug.declared(owner, place)
            file = file or view.file or owner.unit_name(place.unit)
        self.changes.reasons.append(Reason(code.value, severity, subject, file, line, text))

    # Passes

    def _check_outputs(self) -> None:
        old, new = self.old.image, self.new.image
        if (old.type, old.machine) != (new.type, new.machine):
            text = "the old output is position-independent and the new one is not, or the other way round"
            self.reason(Code.MACHINE_CHANGED, REFUSED, None, text)
        for tag, value in old.dynamic:
            if tag == c.DT_TEXTREL or (tag == c.DT_FLAGS and value & c.DF_TEXTREL):
                self.reason(
                    Code.TEXT_RELOCATIONS, REFUSED, None, "the old output has relocations in its code (DT_TEXTREL)"
                )
        for unit in self.correlation.removed_units:
            view = self.view(self.old, unit)
            for number, kind in view.kinds.items():
                if kind is Kind.STARTUP:
                    place = Place(unit, number)
                    self.reason(Code.STARTUP_CHANGED, REFUSED, place, "its start-up code is gone", program=self.old)

    def _compare_unit(self, old_unit: int, new_unit: int) -> None:
        view = self.view(self.new, new_unit)
        for program, unit in ((self.old, old_unit), (self.new, new_unit)):
            if problem := program.record(unit).problem:
                text = f"{program.unit_name(unit)}: {problem}"
                self.changes.reasons.append(
                    Reason(Code.NOT_RECORDED_WHOLE.value, REFUSED, program.unit_name(unit), "", 0, text)
                )
                return
        for number, kind in view.kinds.items():
            place = Place(new_unit, number)
            old_place = self.correlation.old_of.get(place)
            if kind is Kind.FUNCTION:
                if not view.is_part(number) or number not in view.parent:
                    self._compare_function(place, old_place)
            elif kind is Kind.CONST:
                self._compare_constant(place, old_place)
            elif kind in (Kind.DATA, Kind.THREAD):
                self._compare_variable(place, old_place, kind)
            elif kind in (Kind.CODE, Kind.OTHER, Kind.STARTUP):
                self._compare_whole(place, old_place, kind)
        self._note_removed(old_unit)

    def _compare_function(self, place: Place, old_place: Place | None) -> None:
        if old_place is None or self.old.address(old_place) is None:
            return  # new, or never in the output: carried when something refers to it
        outcome = self._function_outcome(old_place, place)
        if outcome is Outcome.SAME:
            return
        if outcome is Outcome.BYTES and self._only_lines(old_place, place):
            self.reason(Code.LINES_ONLY, INFO, place, "only its own line numbers moved; left out")
            return
        self.changes.replaced[place] = old_place
        moved = self.correlation.changed_units and (old_place.unit, place.unit) not in self.correlation.changed_units
        code = Code.FUNCTION_MOVED if moved else Code.FUNCTION_CHANGED
        how = {
            Outcome.SIZE: "its code changed",
            Outcome.BYTES: "its code changed",
            Outcome.REFERENCES: "it refers to other functions, data or literals",
            Outcome.SAME: "",
        }[outcome]
        self.reason(code, INFO, place, how)

    def _function_outcome(self, old_place: Place, place: Place) -> Outcome:
        old_view, view = self.view(self.old, old_place.unit), self.view(self.new, place.unit)
        old_parts, parts = old_view.parts.get(old_place.section, []), view.parts.get(place.section, [])
        outcome = self.comparison.compare(old_place, place)
        if outcome in (Outcome.SIZE, Outcome.REFERENCES):
            return outcome
        if len(old_parts) != len(parts):
            return Outcome.SIZE
        for a, b in zip(old_parts, parts, strict=True):
            part = self.comparison.compare(Place(old_place.unit, a), Place(place.unit, b))
            if part in (Outcome.SIZE, Outcome.REFERENCES):
                return part
            if part is Outcome.BYTES:
                outcome = part
        return outcome

    def _only_lines(self, old_place: Place, place: Place) -> bool:
        old_view, view = self.view(self.old, old_place.unit), self.view(self.new, place.unit)
        sections = [(old_place.section, place.section)]
        sections += zip(old_view.parts.get(old_place.section, []), view.parts.get(place.section, []), strict=True)
        pairs: set[tuple[int, int]] = set()
        for a, b in sections:
            pairs |= self.debug.line_pairs(self.old, Place(old_place.unit, a), self.new, Place(place.unit, b))
        for a, b in sections:
            before = masked(old_view.data(a), old_view.elf.relocations(a), relaxed=False)
            after = masked(view.data(b), view.elf.relocations(b), relaxed=False)
            if before != after and not only_lines_differ(before, after, pairs):
                return False
        return True

    def _compare_constant(self, place: Place, old_place: Place | None) -> None:
        if old_place is None or self.old.address(old_place) is None:
            return
        old_kind = self.view(self.old, old_place.unit).kinds.get(old_place.section)
        outcome = self.comparison.compare(old_place, place)
        if old_kind is not Kind.CONST:
            text = "it was a writable variable and is read-only now; the live value would be lost"
            self.reason(Code.DATA_KIND_CHANGED, REFUSED, place, text)
        elif outcome is Outcome.SIZE:
            self.changes.recreated.add(place)
            if self.view(self.new, place.unit).is_global(place.section):
                text = "this read-only table changed its size, and other objects may hold its address"
                self.reason(Code.CONSTANT_SHARED, REFUSED, place, text)
            else:
                self.reason(Code.CONSTANT_RECREATED, INFO, place, "this read-only table changed its size; made anew")
        elif outcome is not Outcome.SAME:
            self.changes.edits[place] = old_place
            self.reason(Code.CONSTANT_CHANGED, INFO, place, "this read-only data is rewritten where it is")

    def _compare_variable(self, place: Place, old_place: Place | None, kind: Kind) -> None:
        if old_place is None:
            return
        old_view, view = self.view(self.old, old_place.unit), self.view(self.new, place.unit)
        old_kind = old_view.kinds.get(old_place.section)
        outcome = self.comparison.compare(old_place, place)
        if self.old.address(old_place) is None:
            return
        if old_kind is not kind:
            text = "it was read-only, writable or thread-local before and is not now"
            self.reason(Code.DATA_KIND_CHANGED, REFUSED, place, text)
        elif outcome is Outcome.SIZE:
            sizes = (old_view.elf.sections[old_place.section].size, view.elf.sections[place.section].size)
            code = Code.THREAD_LOCAL if kind is Kind.THREAD else Code.DATA_RESIZED
            text = f"this variable changed its size from {sizes[0]} to {sizes[1]} bytes; its live value would not fit"
            self.reason(code, REFUSED, place, text)
        elif outcome is Outcome.REFERENCES and self._only_labels(view, place.section):
            pass  # a label table: _recreate_label_tables
        elif outcome is Outcome.REFERENCES:
            text = "pointers in its initial value changed, and its live value may still be the old one"
            self.reason(Code.DATA_POINTERS_CHANGED, REFUSED, place, text)
        elif outcome is Outcome.BYTES:
            self.reason(Code.INITIALISER_KEPT, INFO, place, "its initial value changed; the live value is kept")

    @staticmethod
    def _only_labels(view: ObjectView, section: int) -> bool:
        """Whether a datum holds addresses inside one function, and nothing else that is relocated."""
        references = view.references(section)
        targets = {r.section for r in references}
        inside = all(r.base + r.addend for r in references)
        return inside and len(targets) == 1 and view.kinds.get(targets.pop()) is Kind.FUNCTION

    def _compare_whole(self, place: Place, old_place: Place | None, kind: Kind) -> None:
        view = self.view(self.new, place.unit)
        name = view.elf.sections[place.section].name
        if old_place is not None and self.comparison.compare(old_place, place) is Outcome.SAME:
            return
        if kind is Kind.STARTUP:
            text = f"{name}: constructors or destructors changed; they run at start and exit"
            self.reason(Code.STARTUP_CHANGED, REFUSED, place, text)
        elif kind is Kind.CODE:
            text = f"code changed in {name}, which holds several functions or none (assembly?)"
            self.reason(Code.CODE_SHARED_SECTION, REFUSED, place, text)
        else:
            self.reason(Code.SECTION_CHANGED, REFUSED, place, f"section {name} changed, and its use is not known")

    def _note_removed(self, old_unit: int) -> None:
        kept = set(self.correlation.old_of.values())
        view = self.view(self.old, old_unit)
        for number, kind in view.kinds.items():
            place = Place(old_unit, number)
            if place in kept or self.old.address(place) is None:
                continue
            if kind is Kind.FUNCTION and not view.is_part(number):
                text = "it is gone in the new build; the old one stays for pointers that still lead to it"
                self.reason(Code.FUNCTION_REMOVED, INFO, place, text, program=self.old)
            elif kind is Kind.DATA and view.symbols_in.get(number):
                self.reason(Code.DATA_REMOVED, INFO, place, "it is gone in the new build; left alone", program=self.old)
            elif kind in (Kind.STARTUP, Kind.OTHER):
                name = view.elf.sections[number].name
                code = Code.STARTUP_CHANGED if kind is Kind.STARTUP else Code.SECTION_CHANGED
                self.reason(code, REFUSED, place, f"section {name} is gone", program=self.old)

    def _new_unit(self, unit: int) -> None:
        view = self.view(self.new, unit)
        if problem := self.new.record(unit).problem:
            name = self.new.unit_name(unit)
            self.changes.reasons.append(Reason(Code.NOT_RECORDED_WHOLE.value, REFUSED, name, "", 0, problem))
            return
        for number, kind in view.kinds.items():
            place = Place(unit, number)
            old_place = self.correlation.old_of.get(place)
            if kind in (Kind.STARTUP, Kind.OTHER):
                self._compare_whole(place, None, kind)
            elif old_place is not None:
                if kind is Kind.FUNCTION:
                    self._compare_function(place, old_place)
                elif kind is Kind.CONST:
                    self._compare_constant(place, old_place)
                else:
                    self._compare_variable(place, old_place, kind)

    def _recreate_label_tables(self) -> None:
        """Tables of labels (computed goto) belong to their function: a new function needs its own.

        They may be writable and may even be unchanged: with the old table the new code would jump into the old code.
        """
        for place in list(self.changes.replaced):
            view = self.view(self.new, place.unit)
            for number in view.referrers.get(place.section, ()):
                if view.kinds[number] not in (Kind.CONST, Kind.DATA, Kind.THREAD):
                    continue
                if not any(r.section == place.section and r.base + r.addend for r in view.references(number)):
                    continue
                table = Place(place.unit, number)
                users = {view.parent.get(n, n) for n in view.referrers.get(number, ())}
                if users <= {place.section} and not view.is_global(number) and view.kinds[number] is not Kind.THREAD:
                    self.changes.recreated.add(table)
                    self.changes.edits.pop(table, None)
                else:
                    text = f"it holds labels of {view.label(place.section)}, which changed, and others use it too"
                    self.reason(Code.DATA_POINTERS_CHANGED, REFUSED, table, text)

    def _pull_in_users_of_recreated(self) -> None:
        """Everything that refers to a constant made anew has to refer to the new one: to a fixed point."""
        waiting = sorted(self.changes.recreated)
        seen: set[Place] = set()
        while waiting:
            target = waiting.pop()
            if target in seen:
                continue
            seen.add(target)
            view = self.view(self.new, target.unit)
            for number in view.referrers.get(target.section, ()):
                if view.kinds[number] is Kind.ANONYMOUS:
                    waiting.append(Place(target.unit, number))
                else:
                    self._refers_to_recreated(view, Place(target.unit, view.parent.get(number, number)), target)

    def _refers_to_recreated(self, view: ObjectView, place: Place, target: Place) -> None:
        old_place = self.correlation.old_of.get(place)
        if old_place is None or self.old.address(old_place) is None or place in self.changes.replaced:
            return
        kind = view.kinds[place.section]
        text = f"it uses {view.label(target.section)}, which is made anew"
        if kind is Kind.FUNCTION:
            self.changes.replaced[place] = old_place
            self.reason(Code.CALLEE_MOVED, INFO, place, text)
        elif kind is Kind.CONST and place not in self.changes.edits and place not in self.changes.recreated:
            self.changes.edits[place] = old_place
            self.reason(Code.CONSTANT_CHANGED, INFO, place, text)
        elif kind in (Kind.DATA, Kind.THREAD):
            text = f"it may hold the address of {view.label(target.section)}, which is made anew"
            self.reason(Code.DATA_POINTERS_CHANGED, REFUSED, place, text)
        elif kind is Kind.CODE:
            self.reason(Code.CODE_SHARED_SECTION, REFUSED, place, text)

    def _check_replaceable(self, place: Place, old_place: Place) -> None:
        """Refuse what cannot be jumped away from."""
        old_view = self.view(self.old, old_place.unit)
        address = self.old.address(old_place)
        assert address is not None
        size = old_view.elf.sections[old_place.section].size
        if size < SMALLEST_FUNCTION:
            text = f"the old function has {size} bytes, a jump needs {SMALLEST_FUNCTION}"
            self.reason(Code.FUNCTION_TOO_SMALL, REFUSED, place, text)
        if others := self.old.snapshot.folded.get(address):
            text = f"the linker folded it with {', '.join(others)}: changing one would change all"
            self.reason(Code.FUNCTION_FOLDED, REFUSED, place, text)
        for number in (old_place.section, *old_view.parts.get(old_place.section, ())):
            self._check_bytes(place, Place(old_place.unit, number))
        if old_view.label(old_place.section) == "main":
            text = "main is on the stack for the whole life of the process: it can never be replaced there"
            self.reason(Code.MAIN_ACTIVE, INFO, place, text)

    def _check_bytes(self, place: Place, old_place: Place) -> None:
        """The old output must hold the old object's bytes where the recorder says: the jump goes there."""
        address = self.old.address(old_place)
        why = self.old.unplaced.get(old_place)
        if address is None or why:
            self.reason(
                Code.NOT_PLACED, REFUSED, place, f"its place in the old output is not known: {why or 'not in it'}"
            )
            return
        elf = self.view(self.old, old_place.unit).elf
        data = elf.contents(elf.sections[old_place.section])
        relocations = elf.relocations(old_place.section)
        if any(r.type not in EXTENTS for r in relocations):
            return  # the comparison said so already
        final = self.old.image.read(address, len(data))
        if masked(final, relocations, relaxed=True) != masked(data, relocations, relaxed=True):
            self.reason(
                Code.BYTES_UNEXPECTED, REFUSED, place, "the old output does not hold the old object's code there"
            )


def _unique(reasons: Iterable[Reason]) -> list[Reason]:
    return list(dict.fromkeys(reasons))
