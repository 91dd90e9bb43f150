"""The diff: from two snapshots to what changed, each change with its reason.

The passes, in order: correlate the sections; compare those of changed objects; let constants that had to be made anew
pull in what refers to them; compare the layouts of types and variables.  What can be carried ends in `Changes`; what
cannot is a reason of severity "refused".  Nothing that differs is dropped without a reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from katana_cc.diff.alike import loaded_alike
from katana_cc.diff.compare import Comparison, Outcome
from katana_cc.diff.compilers import note_compilers
from katana_cc.diff.correlate import Correlation, correlate
from katana_cc.diff.data import compare_constant, compare_variable
from katana_cc.diff.debug import DebugCache
from katana_cc.diff.elsewhere import check_types
from katana_cc.diff.handmade import Maker, find_makers
from katana_cc.diff.harmless import only_lines_differ
from katana_cc.diff.hooks import HookRecord, note_hooks, wrappers_of
from katana_cc.diff.inlining import explain_inlining
from katana_cc.diff.linkage import check_names, check_outputs
from katana_cc.diff.marks import note_kept
from katana_cc.diff.program import ObjectCache, Place, Program
from katana_cc.diff.reach import Walked
from katana_cc.diff.reasons import INFO, REFUSED, Code
from katana_cc.diff.recreate import recreate
from katana_cc.diff.relayout import Move, find_moves
from katana_cc.diff.reliance import Found, note_reliances
from katana_cc.diff.replaceable import check_replaceable, runs_at_start
from katana_cc.diff.retarget import note_retargeted
from katana_cc.diff.sequences import check_sequences
from katana_cc.diff.small import handle_small
from katana_cc.diff.storage import check_storage
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.dwarf.changes import compare_layouts
from katana_cc.dwarf.uses import holders_of
from katana_cc.elf import constants as c
from katana_cc.patch.model import Reason
from katana_cc.recorder.record import stem
from katana_cc.snapshot.answers import read_answers
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.store import Store


@dataclass(slots=True)
class Changes:
    """The result of a diff.

    `replaced[new]` is the old function a new one takes the place of; `edits` are constants rewritten where they are,
    as (new, old); `recreated` are data carried anew although there was an old one: constants since their size changed,
    and `moved` variables, whose live value is carried over; `retargeted` is code that stays as it is, but for the
    fields that lead to a variable that moved, as (new, old) sections; `pointers[new]` are the old variable and the
    offsets of function pointers to rewrite in it; `initialisers[new]` are old variables that keep their live value
    although the initial one changed, but those in `taken`, as the source says; `reliances` tell which replaced
    function's old code relies on which other one (new places).  `padded` are replaced functions whose jump also covers
    padding behind the old one; `renewed` ones take no place: all their callers change.  `walked` says of which types
    objects on the heap are made anew, and how they are found.  `hooks` are functions of the user's that run when the
    patch is applied or reverted, in their order.
    """

    replaced: dict[Place, Place] = field(default_factory=dict)
    edits: dict[Place, Place] = field(default_factory=dict)
    moved: dict[Place, Move] = field(default_factory=dict)
    retargeted: dict[Place, Place] = field(default_factory=dict)
    recreated: set[Place] = field(default_factory=set)
    pointers: dict[Place, tuple[Place, tuple[int, ...]]] = field(default_factory=dict)
    initialisers: dict[Place, Place] = field(default_factory=dict)
    taken: set[Place] = field(default_factory=set)
    reliances: list[Found] = field(default_factory=list)
    padded: set[Place] = field(default_factory=set)
    renewed: set[Place] = field(default_factory=set)
    hooks: dict[Place, HookRecord] = field(default_factory=dict)
    walked: Walked = field(default_factory=Walked)
    reasons: list[Reason] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing that a running process could take over, and nothing refused."""
        carried = self.replaced or self.edits or self.pointers or self.renewed or self.initialisers or self.moved
        return not (carried or self.hooks) and all(r.severity == INFO for r in self.reasons)


class Diff:
    """A diff of two snapshots of one output.

    Args:
        store: where the blobs of both are, and what a person has answered.
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
        self.answers = read_answers(store.folder)
        self.lost: set[tuple[int, str]] = set()  # old variables, (unit, qualified name), that `check_storage` refused
        self._changed_types: dict[tuple[int, int], frozenset[str]] = {}
        self.makers: dict[str, Maker] = {}  # by the key of the type whose objects each makes anew
        self.settled: set[Place] = set()  # variables that are moved, or refused since they cannot be

    def view(self, program: Program, unit: int) -> ObjectView:
        """The view of a unit's object; one for both programs when they share the object."""
        blob = program.snapshot.units[unit].blob
        if blob not in self._views:
            self._views[blob] = ObjectView(program.object(unit))
        return self._views[blob]

    def changed_types(self, old_unit: int, new_unit: int) -> frozenset[str]:
        """The aggregates that two units lay out otherwise, themselves or what they hold, by their keys."""
        key = old_unit, new_unit
        if key not in self._changed_types:
            before, after = self.debug.layouts(self.old, old_unit), self.debug.layouts(self.new, new_unit)
            changed = {x.type for x in compare_layouts(before, after) if not x.harmless}
            self._changed_types[key] = holders_of(changed, after) if changed else frozenset()
        return self._changed_types[key]

    @cached_property
    def correlation(self) -> Correlation:
        """Which place is which."""
        return correlate(self.old, self.new, self.view, self.debug.scopes, self._is_alike)

    def _is_alike(self, old_unit: int, new_unit: int) -> bool:
        """Whether two units are the same but for where things are declared."""
        if not loaded_alike(self.old.object(old_unit), self.new.object(new_unit)):
            return False
        return self.debug.only_lines_moved(self.old, old_unit, self.new, new_unit)

    @cached_property
    def comparison(self) -> Comparison:
        """The comparison of places."""
        return Comparison(self.old, self.new, self.correlation, self.view)

    def run(self) -> Changes:
        """All changes with their reasons."""
        check_outputs(self)
        note_compilers(self)
        check_storage(self)
        self.makers = find_makers(self)
        find_moves(self)
        for old_unit, new_unit in self.correlation.changed_units:
            self._compare_unit(old_unit, new_unit)
        for unit in self.correlation.new_units:
            self._new_unit(unit)
        check_names(self)
        note_hooks(self)
        recreate(self)
        while handle_small(self):
            recreate(self)
        # From here on the set of replaced functions, edits and recreated constants is fixed.
        note_retargeted(self)
        explain_inlining(self)
        for place, old_place in self.changes.replaced.items():
            check_replaceable(self, place, old_place)
        check_sequences(self)
        note_reliances(self)
        check_types(self)
        self.changes.reasons = _unique(self.changes.reasons)
        return self.changes

    # Reasons

    def reason(
        self, code: Code, severity: str, place: Place | None, text: str, *, program: Program | None = None
    ) -> None:
        """Note a reason about what `place` holds."""
        subject, file, line = ("", "", 0) if place is None else self._subject(program or self.new, place)
        self.changes.reasons.append(Reason(code.value, severity, subject, file, line, text))

    def take_back(self, place: Place, codes: Collection[Code], *, program: Program | None = None) -> None:
        """Drop the reasons of these codes about what `place` holds: something else is done with it."""
        subject = self._subject(program or self.new, place)
        reasons = self.changes.reasons
        reasons[:] = [r for r in reasons if r.code not in codes or (r.subject, r.file, r.line) != subject]

    def _subject(self, program: Program, place: Place) -> tuple[str, str, int]:
        """What a reason about what `place` holds is about: its name, and file and line."""
        view = self.view(program, place.unit)
        file, line = self._declared(program, place)
        return view.label(place.section), file or view.file or program.unit_name(place.unit), line

    def _declared(self, program: Program, place: Place) -> tuple[str, int]:
        """Where something is declared; what a compiler made, where the one function is that uses it."""
        view = self.view(program, place.unit)
        users = view.users.get(place.section, frozenset())
        at = self.debug.declared(program, place)
        if at[1] or len(users) != 1:
            return at
        user = next((n for n, k in view.kinds.items() if k is Kind.FUNCTION and stem(view.label(n)) in users), None)
        return at if user is None else self.debug.declared(program, Place(place.unit, user))

    # Passes

    def _compare_unit(self, old_unit: int, new_unit: int) -> None:
        view = self.view(self.new, new_unit)
        wrappers = wrappers_of(view)
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
            if self._is_spare(place) or number in wrappers:
                continue
            if kind is Kind.FUNCTION:
                if not view.is_part(number) or number not in view.parent:
                    self._compare_function(place, old_place)
            elif kind is Kind.CONST:
                compare_constant(self, place, old_place)
            elif kind in (Kind.DATA, Kind.THREAD):
                compare_variable(self, place, old_place, kind)
            elif kind in (Kind.CODE, Kind.OTHER, Kind.STARTUP):
                self._compare_whole(place, old_place, kind)
        self._note_removed(old_unit)

    def _is_spare(self, place: Place) -> bool:
        """Whether it is a copy of something inline (COMDAT) of which the new link kept another object's."""
        if self.new.address(place) is not None:
            return False
        symbols = self.view(self.new, place.unit).symbols_in.get(place.section, ())
        kept = (self.new.globals.get(s.name) for s in symbols if s.binding != c.STB_LOCAL)
        return any(k is not None and k.address is not None and k.place != place for k in kept)

    def _compare_function(self, place: Place, old_place: Place | None) -> None:
        if old_place is None:
            self.check_new_name(place)
            return  # carried when something refers to it
        outcome = self.function_outcome(old_place, place)
        if outcome is Outcome.SAME:
            return
        if self.old.address(old_place) is None:
            self.check_absent(place, old_place)
            return
        if outcome is Outcome.DATES:
            self.reason(Code.BUILD_TIME, INFO, place, "only the date or time of the build differs; left out")
            return
        if outcome is Outcome.BYTES and self.only_lines(old_place, place):
            self.reason(Code.LINES_ONLY, INFO, place, "only its own line numbers moved; left out")
            return
        self.changes.replaced[place] = old_place
        moved = (old_place.unit, place.unit) not in self.correlation.changed_units
        code = Code.FUNCTION_MOVED if moved else Code.FUNCTION_CHANGED
        self.reason(code, INFO, place, _HOW.get(outcome, "its code changed"))

    def check_new_name(self, place: Place) -> None:
        """A new section whose global name existed before: in a way that cannot be paired."""
        view = self.view(self.new, place.unit)
        for s in view.symbols_in.get(place.section, ()):
            if s.binding == c.STB_LOCAL and view.kinds[place.section] is Kind.DATA and s.name not in self.new.globals:
                common = self.old.globals.get(s.name)
                if common is not None and common.place is None and common.address is not None:
                    text = "it was a common variable and is static now; its live value would be lost"
                    self.reason(Code.DATA_KIND_CHANGED, REFUSED, place, text)
                continue
            before = self.old.globals.get(s.name) if s.binding != c.STB_LOCAL else None
            if before is None or before.address is None:
                continue
            if before.place is None and view.kinds[place.section] is Kind.DATA:
                if before.size != s.size:
                    text = (
                        f"{s.name} changed its size from {before.size} to {s.size} bytes; its live value would not fit"
                    )
                    self.reason(Code.DATA_RESIZED, REFUSED, place, text)
                elif any(view.data(place.section)):
                    note_kept(self, place, "it was a common variable, without an initial value")
                continue
            code = Code.CODE_SHARED_SECTION if view.kinds[place.section] is Kind.FUNCTION else Code.DATA_REARRANGED
            text = (
                f"the old {s.name} lies in a section with others (built without -ffunction-sections -fdata-sections?)"
            )
            self.reason(code, REFUSED, place, text)

    def check_absent(self, place: Place, old_place: Place) -> None:
        """The old thing has no address: collected as unused, which is harmless, or folded, or not found."""
        old_view = self.view(self.old, old_place.unit)
        names = {s.name for s in old_view.symbols_in.get(old_place.section, ())}
        folded = {n for several in self.old.snapshot.folded.values() for n in several}
        stripped = not self.old.snapshot.linker_symbols
        if why := self.old.unplaced.get(old_place):
            self.reason(Code.NOT_PLACED, REFUSED, place, f"its place in the old output is not known: {why}")
        elif names & folded or (self.old.options.icf and stripped):
            text = "the linker may have folded the old one with another that is equal (--icf)"
            self.reason(Code.FUNCTION_FOLDED, REFUSED, place, text)

    def function_outcome(self, old_place: Place, place: Place) -> Outcome:
        """How a function with its .cold halves differs."""
        old_view, view = self.view(self.old, old_place.unit), self.view(self.new, place.unit)
        old_parts, parts = old_view.parts.get(old_place.section, []), view.parts.get(place.section, [])
        outcomes = []
        pairs = [(old_place.section, place.section)]
        if len(old_parts) != len(parts):
            outcomes.append(Outcome.SIZE)
        else:
            pairs += zip(old_parts, parts, strict=True)
        for a, b in pairs:
            before, after = Place(old_place.unit, a), Place(place.unit, b)
            outcomes.append(self.comparison.compare(before, after))
            if not self.comparison.same_handlers(before, after):
                outcomes.append(Outcome.HANDLERS)
        return max(outcomes, key=lambda o: o.value)

    def only_lines(self, old_place: Place, place: Place) -> bool:
        """Whether the bytes of two functions differ in their own line numbers only."""
        old_view, view = self.view(self.old, old_place.unit), self.view(self.new, place.unit)
        sections = [(old_place.section, place.section)]
        sections += zip(old_view.parts.get(old_place.section, []), view.parts.get(place.section, []), strict=True)
        for a, b in sections:
            before = old_view.relocations.masked(old_view.data(a), old_view.elf.relocations(a), relaxed=False)
            after = view.relocations.masked(view.data(b), view.elf.relocations(b), relaxed=False)
            if before == after:
                continue
            lines = (
                self.debug.lines(self.old, Place(old_place.unit, a)),
                self.debug.lines(self.new, Place(place.unit, b)),
            )
            if not only_lines_differ(before, after, *lines, view.code):
                return False
        return True

    def _compare_whole(self, place: Place, old_place: Place | None, kind: Kind) -> None:
        view = self.view(self.new, place.unit)
        name = view.elf.sections[place.section].name
        if old_place is not None and self.comparison.compare(old_place, place) in (Outcome.SAME, Outcome.DATES):
            old_view = self.view(self.old, old_place.unit)
            if kind is Kind.CODE and self.comparison.same_handlers(old_place, place):
                return
            if kind is not Kind.CODE and old_view.layout(old_place.section) == view.layout(place.section):
                return
        if kind is Kind.STARTUP or (kind is Kind.CODE and runs_at_start(view, place.section)):
            text = f"{name}: constructors or destructors changed; they run at start and exit"
            self.reason(Code.STARTUP_CHANGED, REFUSED, place, text)
        elif kind is Kind.CODE:
            text = f"code changed in {name}, which holds several functions or none (assembly?)"
            self.reason(Code.CODE_SHARED_SECTION, REFUSED, place, text)
        else:
            self.reason(Code.SECTION_CHANGED, REFUSED, place, f"section {name} changed, and its use is not known")

    def _note_removed(self, old_unit: int) -> None:
        kept = set(self.correlation.old_of.values())
        view, scopes = self.view(self.old, old_unit), self.debug.scopes(self.old, old_unit)
        wrappers = wrappers_of(view)
        for number, kind in view.kinds.items():
            place = Place(old_unit, number)
            if place in kept or number in wrappers or self.old.address(place) is None:
                continue
            if kind is Kind.FUNCTION and not view.is_part(number):
                text = "it is gone in the new build; the old one stays for pointers that still lead to it"
                self.reason(Code.FUNCTION_REMOVED, INFO, place, text, program=self.old)
            elif kind in (Kind.DATA, Kind.THREAD) and view.is_shared(number) and view.symbols_in.get(number):
                name = view.elf.sections[number].name
                text = f"section {name}, which held several variables, is gone (build with -fdata-sections)"
                self.reason(Code.DATA_REARRANGED, REFUSED, place, text, program=self.old)
            elif kind in (Kind.DATA, Kind.THREAD) and view.symbols_in.get(number):
                if (old_unit, scopes[number].name if number in scopes else "") in self.lost:
                    continue
                self.reason(Code.DATA_REMOVED, INFO, place, "it is gone in the new build; left alone", program=self.old)
            elif kind in (Kind.STARTUP, Kind.OTHER, Kind.CODE):
                name = view.elf.sections[number].name
                code = _WHOLE[kind]
                self.reason(code, REFUSED, place, f"section {name} is gone", program=self.old)

    def _new_unit(self, unit: int) -> None:
        view = self.view(self.new, unit)
        if problem := self.new.record(unit).problem:
            name = self.new.unit_name(unit)
            self.changes.reasons.append(Reason(Code.NOT_RECORDED_WHOLE.value, REFUSED, name, "", 0, problem))
            return
        wrappers = wrappers_of(view)
        for number, kind in view.kinds.items():
            place = Place(unit, number)
            if number in wrappers:
                continue
            old_place = self.correlation.old_of.get(place)
            if kind in (Kind.STARTUP, Kind.OTHER):
                self._compare_whole(place, None, kind)
            elif kind is Kind.FUNCTION:
                if number not in view.parent:
                    self._compare_function(place, old_place)
            elif kind is Kind.CONST:
                compare_constant(self, place, old_place)
            elif kind in (Kind.DATA, Kind.THREAD):
                compare_variable(self, place, old_place, kind)


_HOW = {
    Outcome.REFERENCES: "it refers to other functions, data or literals",
    Outcome.HANDLERS: "what it catches or cleans up changed",
}
_WHOLE = {
    Kind.STARTUP: Code.STARTUP_CHANGED,
    Kind.OTHER: Code.SECTION_CHANGED,
    Kind.CODE: Code.CODE_SHARED_SECTION,
}


def _unique(reasons: Iterable[Reason]) -> list[Reason]:
    return list(dict.fromkeys(reasons))
