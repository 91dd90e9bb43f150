"""The completeness proof: all that the new output does differently is carried, irrelevant, or a finding.

Theory of operation.  Let the patched process be the old output with the patch object applied.  For each place of the
new output that the old one has under the same name, and for each that such a place leads to, the patched process must
have a thing that means the same:

1. What the patch object carries is compared first (`walk.py`).  From then on it is known what is carried.
2. Each place of an object that changed, and that is not carried, is compared with the old place it stands for, as it is
   after the data edits.  What differs and has no reason that can be verified (`irrelevant.py`) is a finding.  What its
   fields lead to and names alone do not tell is compared in turn.
3. Objects whose allocated contents, relocations and symbols are equal byte for byte need no look inside: each section
   is itself, and each reference within the object leads to the section of the same number.  But a global name may lead
   elsewhere than before, so an object that uses a name which does not mean the same thing is treated as one that
   changed, and so is one of which the patch carries something that is not jumped to from its old place.
4. A variable that is carried although the old output has one of its name must be carried over: the patch object says
   how the live value gets there, and whoever applies it follows the pointers that other variables hold.
5. What runs once or is collected by the linker (start-up code, sections of other names) must be there in both.

New places that nothing old leads to are not looked at: no process can reach them, other than through what is compared.
Nothing here uses what the diff has found out; a change that it loses shows as a difference between two places that
bear the same name, or as a field that leads to a thing which is not what its name says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from katana_cc.diff.debug import DebugCache
from katana_cc.diff.program import Place, Program
from katana_cc.diff.reasons import Code
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.patch.model import PatchObject
from katana_cc.proof.carried import CarriedSections
from katana_cc.proof.handlers import Handlers
from katana_cc.proof.image import Image
from katana_cc.proof.irrelevant import Irrelevance
from katana_cc.proof.judge import Judge
from katana_cc.proof.model import Carried, Field, Finding, Named, Target
from katana_cc.proof.pairing import WHOLE, Pairing
from katana_cc.proof.walk import Difference, against_patch, differences, not_as_linked, place_worded, walk
from katana_cc.recorder.record import stem
from katana_cc.transform.model import Transformation
from katana_cc.transform.places import moved_offset, pointer_at

_SILENT = (Kind.FRAMES, Kind.EXCEPTIONS, Kind.INDIRECT, Kind.IGNORED, Kind.LITERAL, Kind.ANONYMOUS)
_UNUSED = (Kind.FRAMES, Kind.EXCEPTIONS, Kind.INDIRECT, Kind.IGNORED)  # nothing is reached through these
_ONCE = (Kind.STARTUP, Kind.OTHER)


def unaccounted(
    old: Program, new: Program, view: Callable[[Program, int], ObjectView], debug: DebugCache, patch: PatchObject
) -> list[Finding]:
    """All that a patch object that is not refused leaves unaccounted for.

    Args:
        old, new: the outputs it leads from and to.
        view: gives the view of a unit's object.
        debug: gives the line table of a code section, and the scopes of variables.
        patch: the finished patch object.
    """
    return list(dict.fromkeys(_Proof(Image(old, view), Image(new, view), debug, patch).findings()))


class _Proof:
    def __init__(self, old: Image, new: Image, debug: DebugCache, patch: PatchObject) -> None:
        self.old, self.new = old, new
        self.patch = patch
        self.pairing = Pairing(old, new)
        self.judge = Judge(old, new, self.pairing, CarriedSections(patch, old), debug.scopes)
        self.irrelevance = Irrelevance(old, new, debug.lines, patch)
        self.handlers = Handlers(self.judge)
        self.edits = {
            e.address: Carried(e.replacement)
            for e in patch.data_edits
            if not (e.is_initialiser or e.is_condition) or e.is_taken
        }
        self._done: set[Place] = set()
        self._moved: dict[Target, tuple[Carried, Transformation]] = {}

    def findings(self) -> Iterator[Finding]:
        yield from walk(self.judge)
        yield from self._carried_over()
        yield from self._gone()
        changed = set(range(len(self.new.program.snapshot.units))) - self.pairing.same
        changed |= {unit for unit in self.pairing.same if self._is_overridden(unit)}
        rebound = {name for name in self._suspects() if not self.judge.agree(*self._leads(name))}
        yield from self._exported(rebound)
        for unit in sorted(changed | self._users_of(rebound)):
            yield from self._unit(unit)
        yield from self._drain()

    def _is_overridden(self, unit: int) -> bool:
        """Whether something of an unchanged object is carried without a jump to it from its old place."""
        mine = [(p, carried) for p, carried in self.judge.carried_as.items() if p.unit == unit]
        jumped = set(self.judge.replaced.values())
        return any(carried not in jumped and not self._is_anonymous(p) for p, carried in mine)

    def _is_anonymous(self, place: Place) -> bool:
        return self.new.is_unnamed(place)

    # Places

    def _unit(self, unit: int) -> Iterator[Finding]:
        if self.new.program.record(unit).problem:
            return
        for number, kind in self.new.view(Place(unit, 0)).kinds.items():
            place = Place(unit, number)
            if kind in _SILENT or place in self.judge.carried_as or not self.new.is_there(place):
                continue
            old = self.judge.old_of(place)
            if old is not None:
                yield from self._compare(place, old)
            elif kind in _ONCE:
                yield self._finding(place, Difference(0, self.new.size(place), "the old build has none of it"))

    def _drain(self) -> Iterator[Finding]:
        while self.judge.pairs:
            place, theirs = self.judge.pairs.pop()
            yield from self._compare(place, theirs)

    def _compare(self, place: Place, theirs: Target) -> Iterator[Finding]:
        if place in self._done:
            return
        self._done.add(place)
        found = list(self._differences(place, theirs))
        if found and not self.irrelevance.explains(place, theirs, found) and not self._is_dead(place, theirs):
            for difference in found:
                yield self._finding(place, difference)

    def _is_dead(self, place: Place, theirs: Target) -> bool:
        """Whether nobody notices: nothing can reach the old function, or nothing in the new build the constant."""
        if not isinstance(theirs, Place):
            return False
        if self.old.kind(theirs) is Kind.FUNCTION:
            return _is_unreachable(self.old, theirs)
        both = self.old.kind(theirs), self.new.kind(place)
        return both == (Kind.CONST, Kind.CONST) and _is_unreachable(self.new, place)

    def _differences(self, place: Place, theirs: Target) -> Iterator[Difference]:
        if isinstance(theirs, Named):  # a COMMON variable: zero at first
            size = self.old.program.snapshot.commons[theirs.name][1]
            yield from differences(self.judge, place, bytes(size), ())
            return
        if isinstance(theirs, Carried):
            yield from against_patch(self.judge, place, theirs)
            return
        assert isinstance(theirs, Place)
        if self.old.kind(theirs) is not self.new.kind(place):
            yield Difference(0, self.new.size(place), "it is of another kind: writable, read-only or code")
            return
        yield from not_as_linked(self.new, place)
        yield from not_as_linked(self.old, theirs)
        address = self.old.program.address(theirs)
        data, fields = self.old.data(theirs), self.old.fields(theirs)
        if address is not None and (whole := self.edits.get(address)) and self.judge.carried.size(whole) == len(data):
            return  # rewritten as a whole, and compared
        # (A load from a slot that the linker relaxed is edited as what it became.)
        types = {f.offset: f.type for f in fields}
        edited = {f.offset: f._replace(type=types.get(f.offset, f.type)) for f in self._edited(address, len(data))}
        if self.new.kind(place) is Kind.DATA:
            fields = tuple(self._followed(f, address) for f in fields)
        yield from differences(self.judge, place, data, tuple(edited.get(f.offset, f) for f in fields))
        if self.new.kind(place) in (Kind.FUNCTION, Kind.CODE) and not self.handlers.agree(place, theirs):
            yield Difference(0, len(data), "the handlers of its exceptions differ")

    def _edited(self, address: int | None, size: int) -> Iterator[Field]:
        """The fields that pointer edits write within an old variable."""
        if address is None:
            return
        for start, carried in self.edits.items():
            if address <= start < address + size:
                for f in self.judge.carried.fields(carried):
                    yield f._replace(offset=f.offset + start - address)

    # Live values

    def _carried_over(self) -> Iterator[Finding]:
        """Whether each variable that the patch carries takes over what lives in the old one, if there is one."""
        for transform in self.patch.transforms:
            if transform.address is None or transform.symbol is None:
                continue
            symbol, t = self.patch.symbols[transform.symbol], transform.transformation
            carried = Carried(symbol.section if symbol.section is not None else -1)
            place, found = self.judge.carries.get(carried), self.old.at(transform.address)
            old = found[0] if found is not None and found[1] == symbol.value == 0 else None
            if place is None or not isinstance(old, Place) or not self._may_be(place, old):
                text = f"the patch fills {t.name} from {transform.address:#x}: no such variable of the old build"
                yield Finding(t.name, text, place)
            elif (self.old.size(old), self.new.size(place)) != (t.old_size, t.new_size):
                yield Finding(t.name, f"the patch carries over {t.old_size} bytes into {t.new_size}", place)
            else:
                self._moved[old] = carried, t
        filled = {carried for carried, _ in self._moved.values()}
        for place, carried in self.judge.carried_as.items():
            before = self.judge.old_of(place)
            if self.new.kind(place) is Kind.DATA and carried not in filled and before is not None:
                text = "the patch carries it anew, and leaves the live value of the old one behind"
                yield Finding(self.new.label(place), text, place)

    def _followed(self, field: Field, holder: int | None) -> Field:
        """What a pointer in a variable at `holder` leads to once it was followed."""
        if field.target not in self._moved or holder is None:
            return field
        carried, transformation = self._moved[field.target]
        offset = moved_offset(transformation, field.distance, self._pointee(holder + field.offset))
        return field if offset is None else field._replace(target=carried, distance=offset)

    def _pointee(self, address: int) -> str:
        """What the patch says that a pointer at an address points to; "" where it does not know one."""
        for transform in self.patch.transforms:
            start, t = transform.address, transform.transformation
            if transform.symbol is None and start is not None and start <= address < start + t.old_size:
                found = pointer_at(t, address - start)
                if found is not None:
                    return found.pointee
        return ""

    def _may_be(self, place: Place, old: Place) -> bool:
        known = self.judge.pairing.old_of(place)
        if known is not None:
            return known == old
        return bool({stem(n) for n in self.new.names(place)} & {stem(n) for n in self.old.names(old)})

    # Names, and what is gone

    def _exported(self, rebound: set[str]) -> Iterator[Finding]:
        """Names by which other modules would go on reaching what is not meant any more."""
        decided = {r.subject for r in self.patch.reasons if r.code == Code.DATA_EXPORTED}
        for name in sorted(rebound - decided):
            known = self.old.program.tables.by_name.get(name)
            if known is not None and known.defined:
                target = self.new.defined(name)[0]
                text = "other modules may know it by name, and would not reach what the new build means by it"
                yield Finding(name, text, target if isinstance(target, Place) else None)

    def _users_of(self, rebound: set[str]) -> set[int]:
        """Objects that did not change and refer to a name that does not mean the same as before."""
        wanted = [b"\0" + name.encode("utf-8", "surrogateescape") + b"\0" for name in rebound]
        found = set()
        for unit in self.pairing.same if rebound else ():
            elf = self.new.program.object(unit)
            if any(name in elf.data for name in wanted) and not rebound.isdisjoint(s.name for s in elf.symbols):
                found.add(unit)
        return found

    def _suspects(self) -> Iterator[str]:
        """Names that are not plainly the same section of the same object as before."""
        old, new = self.old.program, self.new.program
        for name, after in new.globals.items():
            before = old.globals.get(name)
            if before is None:
                if name in old.imports:
                    yield name
                continue  # new, and nothing old can use it
            if after.place is None or before.place is None:
                if after.place is not before.place:
                    yield name
                continue
            unit, section = after.place
            same = unit in self.pairing.same and self.pairing.units[unit] == before.place.unit
            if not (same and section == before.place.section and after.place not in self.judge.carried_as):
                yield name
        yield from (old.globals.keys() - new.globals.keys()) & new.imports

    def _leads(self, name: str) -> tuple[Field, Field]:
        """What pointers of the new and the old build to a name lead to."""
        return self._pointer(self.new, name), self._pointer(self.old, name)

    @staticmethod
    def _pointer(image: Image, name: str) -> Field:
        target, base, _ = image.defined(name)
        if isinstance(target, Place) and image.is_literal(target):
            target = image.literal(target, base)
            base = 0
        return Field(0, image.known.ABSOLUTE[8], target, base, -base)

    def _gone(self) -> Iterator[Finding]:
        """Start-up code and the like of the old output that the new one has not."""
        kept = {self.judge.old_of(place) for place in self._once(self.new)}
        for place in self._once(self.old):
            if place not in kept:
                name = self.old.view(place).elf.sections[place.section].name
                unit = self.old.program.unit_name(place.unit)
                yield Finding(self.old.label(place), f"section {name} of {unit} is gone", place, is_old=True)

    def _once(self, image: Image) -> Iterator[Place]:
        stand_ins = {o: n for n, o in self.pairing.units.items()}
        for unit in range(len(image.program.snapshot.units)):
            mine = unit if image is self.new else stand_ins.get(unit)
            if mine in self.pairing.same or image.program.record(unit).problem:
                continue
            for number, kind in image.view(Place(unit, 0)).kinds.items():
                if kind in WHOLE and kind in _ONCE and image.program.address(Place(unit, number)) is not None:
                    yield Place(unit, number)

    def _finding(self, place: Place, difference: Difference) -> Finding:
        where = place_worded(self.new, place, difference)
        return Finding(
            self.new.label(place), f"{where} differs from what the patched process has: {difference.text}", place
        )


def _is_unreachable(image: Image, target: Place) -> bool:
    """Whether no reference leads to what a place holds, and no other module knows its name."""
    program = image.program
    names = set(image.names(target))
    if not names.isdisjoint(program.tables.by_name) or program.address(target) == program.image.entry:
        return False
    if not names.isdisjoint(program.options.entry):
        return False
    for unit in range(len(program.snapshot.units)):
        elf = program.object(unit)
        if unit != target.unit and names.isdisjoint(s.name for s in elf.symbols):
            continue
        for number, kind in image.view(Place(unit, 0)).kinds.items():
            place = Place(unit, number)
            if kind in _UNUSED or place == target or program.address(place) is None:
                continue
            if any(f.target == target for f in image.fields(place)):
                return False
    return True
