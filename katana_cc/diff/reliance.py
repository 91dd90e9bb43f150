"""What old code that goes on running relies on in functions that are replaced.

Theory of operation.  A patch exchanges functions one by one, but a compiler optimises a function knowing the others of
its unit.  gcc's -fipa-ra (on at -O2) keeps a value in a call-clobbered register across a call, since the callee's code
spares that register; -fipa-pure-const and -fipa-modref keep a global in a register, since the callee does not write
it; -fipa-sra changes how it takes its arguments.  clang infers the same kind of thing.  So old code of a unit may run
only together with the old functions it was compiled with:

    static int tick(int x) { return x + 1; }              old: spares edx
    int answer(int x) { … int kept = n; … tick(x) + kept }     old: keeps `kept` in edx

When both are replaced and no thread is inside `answer`, nobody notices.  Old code meets new callees in three cases:

1. Code that did not change.  It was compiled again with the new callees in sight, and came out the same: whatever it
   relies on holds of them too.  Had it come out otherwise, it would be replaced.  Nothing to do.
2. A replaced function that the user allows to be active (`--allow-active`) goes on in its old code.  For each one we
   note the replaced functions it reaches by direct calls, also through functions of its unit that did not change,
   since knowledge is passed on along such calls.  `katana apply` then refuses to allow it.  `main` has no other way.
3. A function that is gone in the new build stays for pointers that lead to it, and was not compiled again.  If such a
   pointer may exist and the function relies on a replaced one, the change is refused.

The same holds of a variable that is made anew elsewhere: old code of a replaced function would go on with the old one,
which nobody else uses any more, and so would a function that is gone.  And of a type that is laid out otherwise: old
code that may know the old layout would misread objects that were made anew, wherever it finds them.

Between units only the prototype counts (there is no link-time optimisation in a recorded build), so a callee of
another unit matters when its prototype changed.  A call through a pointer follows the calling convention.  What the
compiler saw and did not use is counted too: which registers and what memory matter cannot be seen from outside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from katana_cc.diff.program import Place
from katana_cc.diff.reasons import NEEDS, REFUSED, Code, relies
from katana_cc.diff.view import Kind, ObjectView, Reference
from katana_cc.patch.model import Basis

if TYPE_CHECKING:
    from katana_cc.diff.engine import Diff


class Found(NamedTuple):
    """Old code of `caller` relies on `callee`, which is replaced (both places of the old program)."""

    caller: Place
    callee: Place
    basis: Basis
    through: str


def note_reliances(diff: Diff) -> None:
    """Fill `changes.reliances`, and refuse what follows from it.  The replaced functions are fixed by now."""
    walk = _Walk(diff)

    def of(old: Place) -> Iterator[Found]:
        yield from walk.reached(old)
        yield from (Found(old, old, Basis.DATA_MOVED, label) for label in walk.moved_used_by(old))

    _note(diff, walk, of)


def note_layouts(diff: Diff, units: Mapping[str, Collection[int]]) -> None:
    """The same for types that are laid out otherwise; `units`: title → old objects whose code may know the layout.

    Which function makes use of it, nobody can see: objects are reached through pointers that no name tells of.
    """

    def of(old: Place) -> Iterator[Found]:
        yield from (Found(old, old, Basis.TYPE_CHANGED, title) for title, those in units.items() if old.unit in those)

    if units:
        _note(diff, _Walk(diff), of)


def _note(diff: Diff, walk: _Walk, of: Callable[[Place], Iterator[Found]]) -> None:
    """Note what `of` says that old code relies on, and refuse what follows from it."""
    for new, old in sorted(diff.changes.replaced.items()):
        found = list(of(old))
        diff.changes.reliances += [f._replace(caller=new, callee=walk.replaced[f.callee]) for f in found]
        subject = diff.view(diff.new, new.unit).label(new.section)
        active = any(
            r.code == Code.MAIN_ACTIVE and r.severity == NEEDS and r.subject == subject for r in diff.changes.reasons
        )
        if active and found:
            text = f"it is always active, goes on in its old code, and {walk.sentence(found[0])}"
            diff.reason(Code.ACTIVE_RELIES, REFUSED, new, text)
    for old in sorted(walk.still_reachable()):
        for found_one in of(old):
            text = (
                f"it is gone in the new build, but a pointer or a jump may still lead to the old one, which "
                f"{walk.sentence(found_one)}"
            )
            diff.reason(Code.REMOVED_RELIES, REFUSED, old, text, program=diff.old)
            break


class _Walk:
    def __init__(self, diff: Diff) -> None:
        self.diff = diff
        self.old = diff.old
        self.replaced = {old: new for new, old in diff.changes.replaced.items()}
        correlation = diff.correlation
        self._surviving = set(correlation.old_of.values())
        self._same = set(correlation.same_units.values())
        self._prototypes: dict[Place, bool] = {}

    def sentence(self, found: Found) -> str:
        """`calls f (through g), …` for a person."""
        view = self.diff.view(self.old, found.callee.unit)
        return relies(view.label(found.callee.section), found.basis, found.through)

    def is_gone(self, place: Place) -> bool:
        """Whether the new program has no such function."""
        return place.unit not in self._same and place not in self._surviving

    def reached(self, origin: Place) -> Iterator[Found]:
        """The replaced functions that old code of `origin` relies on, each once."""
        queue = deque([(origin, "", True)])
        seen = {origin}
        found: set[Place] = set()
        while queue:
            place, through, stale = queue.popleft()
            for target in self.callees(place):
                seen_by_compiler = target.unit == place.unit
                if target in self.replaced:
                    changed = seen_by_compiler or (stale and self._prototype_changed(target))
                    if changed and target not in found:
                        found.add(target)
                        yield Found(origin, target, Basis.BODY_SEEN if seen_by_compiler else Basis.PROTOTYPE, through)
                    continue
                gone = self.is_gone(target)
                if target not in seen and (seen_by_compiler or (stale and gone)):
                    seen.add(target)
                    label = self.diff.view(self.old, target.unit).label(target.section)
                    queue.append((target, through or label, gone))

    def moved_used_by(self, place: Place) -> Iterator[str]:
        """Names of the variables made anew elsewhere that old code of `place` uses, each once."""
        moved = {m.old for m in self.diff.changes.moved.values()}
        used: dict[Place, None] = {}
        for _, reference in self._references(place) if moved else ():
            if reference.literal is None and reference.section >= 0:
                resolved = self.diff.comparison.resolve(self.old, place, reference)
                if resolved is not None and resolved[0] in moved:
                    used[resolved[0]] = None
        for variable in used:
            yield self.diff.view(self.old, variable.unit).label(variable.section)

    def callees(self, place: Place) -> Iterator[Place]:
        """The functions that the code of `place`, its .cold half included, refers to."""
        for number, reference in self._references(place):
            target = self._target(place.unit, reference)
            if target is None:
                continue
            inside = target == place and (
                number != place.section or _offset(self.diff.view(self.old, place.unit), reference) != 0
            )
            if not inside:
                yield target

    def still_reachable(self) -> set[Place]:
        """Functions that are gone, and that something may still enter other than by a call from code that is replaced:
        a pointer may be held, another module may know the name, or a jump (a tail call) led there and left no frame."""
        correlation = self.diff.correlation
        units = [*(o for o, _ in correlation.changed_units), *correlation.removed_units]
        gone = {place for unit in units for place in self._gone_functions(unit)}
        if not gone:
            return gone
        found = {p for p in gone if self._exported(p)}
        for unit in units:
            view = self.diff.view(self.old, unit)
            for number, kind in view.kinds.items():
                if kind in (Kind.FRAMES, Kind.EXCEPTIONS, Kind.INDIRECT, Kind.IGNORED):
                    continue
                own = Place(unit, view.parent.get(number, number))
                code = view.data(number) if kind in (Kind.FUNCTION, Kind.CODE) else b""
                for reference in view.references(number):
                    target = self._target(unit, reference)
                    if target in gone and target != own and not _is_call(view, code, reference):
                        found.add(target)
        return found

    def _gone_functions(self, unit: int) -> Iterator[Place]:
        view = self.diff.view(self.old, unit)
        for number in view.kinds:
            place = Place(unit, number)
            whole = view.is_function(number) and number not in view.parent
            if whole and self.is_gone(place) and self.old.address(place) is not None:
                yield place

    def _exported(self, place: Place) -> bool:
        symbols = self.diff.view(self.old, place.unit).symbols_in.get(place.section, ())
        known = (self.old.tables.by_name.get(s.name) for s in symbols)
        return any(k is not None and k.defined for k in known)

    def _references(self, place: Place) -> Iterator[tuple[int, Reference]]:
        view = self.diff.view(self.old, place.unit)
        for number in (place.section, *view.parts.get(place.section, ())):
            for reference in view.references(number):
                yield number, reference

    def _target(self, unit: int, reference: Reference) -> Place | None:
        """The function a reference leads to; the whole one for a .cold half."""
        if reference.literal is not None or reference.section < 0:
            return None
        resolved = self.diff.comparison.resolve(self.old, Place(unit, 0), reference)
        if resolved is None:
            return None
        place = resolved[0]
        view = self.diff.view(self.old, place.unit)
        if view.kinds.get(place.section) not in (Kind.FUNCTION, Kind.CODE):
            return None
        return Place(place.unit, view.parent.get(place.section, place.section))

    def _prototype_changed(self, callee: Place) -> bool:
        if callee not in self._prototypes:
            debug = self.diff.debug
            before, after = debug.prototype(self.old, callee), debug.prototype(self.diff.new, self.replaced[callee])
            self._prototypes[callee] = before is None or before != after
        return self._prototypes[callee]


def _offset(view: ObjectView, reference: Reference) -> int:
    return reference.base + reference.addend + view.pc_bias(reference.relocation.type)


def _is_call(view: ObjectView, code: bytes, reference: Reference) -> bool:
    r = reference.relocation
    return reference.branch and view.code.is_call(code, r.offset, r.type)
