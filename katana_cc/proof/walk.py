"""What a patch object carries, compared with the new build: the equivalence check.

Theory of operation.  The walk starts at the replacements, the hooks and the data edits, and follows the relocations of
the carried sections in step with the fields of the new build's places.  The address of a replaced function tells which
old function it is, its name and that of the symbol it is replaced by which new one; from there on a carried section is
the new place that the corresponding field of the new build leads to.  Each carried section must hold the bytes of its
place, and each of its relocations lead where the new link's field leads (`judge.py`).  So each name is believed only
once, at a replacement, and only if it is the new build's own name for what it would replace.

A section that nothing leads to is not looked at: no process would reach it either.  Call frame information is compared
last (`frames.py`); debug information is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from katana_cc.diff.program import Place
from katana_cc.diff.view import Kind
from katana_cc.elf import constants as c
from katana_cc.patch.model import DataEdit, DataTransform, Hook, Replacement
from katana_cc.proof.frames import frames_differ
from katana_cc.proof.image import Image
from katana_cc.proof.judge import Judge
from katana_cc.proof.model import Carried, Field, Finding, Named
from katana_cc.proof.tables import Tables
from katana_cc.recorder.record import stem

BYTES_DIFFER: Final = "its bytes differ"


class Difference(NamedTuple):
    """`size` bytes at an offset of a new place differ; `after` and `before` are fields that disagree, if they do."""

    offset: int
    size: int
    text: str
    after: Field | None = None
    before: Field | None = None


def walk(judge: Judge) -> list[Finding]:
    """Compare all that the patch object carries with the new build; from then on it is known what is carried."""
    walker = _Walker(judge)
    return list(walker.run())


class _Walker:
    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.old, self.new = judge.old, judge.new
        self.patch = judge.carried.patch
        self._put_off: list[tuple[Place, Field, Field]] = []
        self._here = Place(0, 0)
        self._functions: dict[str, list[Place]] | None = None

    def run(self) -> Iterator[Finding]:
        self.judge.walking = lambda after, before: self._put_off.append((self._here, after, before))
        for replacement in self.patch.replacements:
            yield from self._replacement(replacement)
        for hook in self.patch.hooks:
            yield from self._hook(hook)
        for edit in self.patch.data_edits:
            if not edit.is_condition:
                yield from self._edit(edit)
        yield from self._drain()
        for transform in self.patch.transforms:
            self._bind_unused(transform)
        yield from self._drain()
        tables = Tables(self.judge)
        yield from tables.differences()
        while self.judge.pairs:
            yield from self._drain()
            yield from tables.differences()
        self.judge.walking = None
        # From here on it is known what is carried.
        for place, after, before in self._put_off:
            if not self.judge.agree(after, before):
                yield carried_finding(self.new, place, disagreement(self.old, self.new, after, before))
        yield from frames_differ(self.judge)

    def _drain(self) -> Iterator[Finding]:
        while self.judge.pairs:
            place, carried = self.judge.pairs.pop()
            assert isinstance(carried, Carried)
            yield from self._same(place, carried)

    def _same(self, place: Place, carried: Carried) -> Iterator[Finding]:
        self._here = place
        for difference in against_patch(self.judge, place, carried):
            yield carried_finding(self.new, place, difference)

    def _replacement(self, replacement: Replacement) -> Iterator[Finding]:
        symbol = self.patch.symbols[replacement.symbol]
        found = self.old.at(replacement.address)
        old = found[0] if found is not None and found[1] == 0 else None
        if not isinstance(old, Place) or symbol.section is None:
            text = f"the patch replaces {replacement.name} at {replacement.address:#x}: no function of the old build"
            yield Finding(replacement.name, text)
            return
        carried = Carried(symbol.section)
        places = [p for p in self._named(symbol.name) if self._may_be(p, old)]
        # Of several local functions of one name, the one whose bytes are carried.
        places.sort(key=lambda p: not _same_bytes(self.judge, p, carried))
        if not places or not self.judge.bind(places[0], carried):
            text = f"the patch replaces {replacement.name}, and the new build has no {symbol.name} in its stead"
            yield Finding(replacement.name, text, old, is_old=True)
            return
        self.judge.replaced[old] = carried

    def _hook(self, hook: Hook) -> Iterator[Finding]:
        symbol = self.patch.symbols[hook.symbol]
        carried = Carried(symbol.section if symbol.section is not None else -1)
        places = sorted(self._named(symbol.name), key=lambda p: not _same_bytes(self.judge, p, carried))
        if not any(self.judge.bind(place, carried) for place in places):
            yield Finding(hook.name, f"the patch calls {symbol.name}, which is no function of the new build")

    def _may_be(self, place: Place, old: Place) -> bool:
        known = self.judge.pairing.old_of(place)
        if known is not None:
            return known == old
        return bool({stem(n) for n in self.new.names(place)} & {stem(n) for n in self.old.names(old)})

    def _named(self, name: str) -> list[Place]:
        """The functions of the new build that have a name: the one it means globally, and all local ones."""
        target, _, _ = self.new.defined(name)
        if self._functions is None:
            self._functions = {}
            for unit in range(len(self.new.program.snapshot.units)):
                for s in self.new.program.record(unit).symbols:
                    if s.binding == c.STB_LOCAL and s.type in (c.STT_FUNC, c.STT_GNU_IFUNC):
                        self._functions.setdefault(s.name, []).append(Place(unit, s.section))
        return [*([target] if isinstance(target, Place) else []), *self._functions.get(name, [])]

    def _edit(self, edit: DataEdit) -> Iterator[Finding]:
        found = self.old.at(edit.address)
        place = None if found is None or not isinstance(found[0], Place) else self._new_of(found[0], edit.name)
        if found is None or place is None:
            text = f"the patch rewrites {edit.name} at {edit.address:#x}, which is nothing of the new build's"
            yield Finding(edit.name, text)
            return
        self._here = place
        replacement = Carried(edit.replacement)
        if found[1] == 0 and self.judge.carried.size(replacement) == self.new.size(place):
            yield from self._same(place, replacement)
            return
        for after, before in self._pointers(place, found[1], replacement):
            if not self.judge.agree(after, before):
                yield carried_finding(self.new, place, disagreement(self.old, self.new, after, before))

    def _bind_unused(self, transform: DataTransform) -> None:
        """Find the variable that moves though nothing carried refers to it: it is the one that its names tell."""
        if transform.symbol is None or transform.address is None:
            return
        symbol, found = self.patch.symbols[transform.symbol], self.old.at(transform.address)
        old = found[0] if found is not None else None
        if symbol.section is None or Carried(symbol.section) in self.judge.carries or not isinstance(old, Place):
            return
        place = self._new_of(old, symbol.name)
        if place is not None:
            self.judge.bind(place, Carried(symbol.section))

    def _pointers(self, place: Place, at: int, carried: Carried) -> Iterable[tuple[Field, Field]]:
        before = {f.offset + at: f for f in self.judge.carried.fields(carried)}
        return ((f, before[f.offset]) for f in self.new.fields(place) if f.offset in before)

    def _new_of(self, old: Place, called: str) -> Place | None:
        """The new place of an old datum, or of code, that is `called` so in the patch: by its names, and the old place
        they lead back to."""
        names = set(self.old.names(old))
        for name in sorted(names):
            target, _, _ = self.new.defined(name)
            if isinstance(target, Place) and self.judge.pairing.old_of(target) in (None, old):
                return target
        wanted = {stem(n) for n in names}
        locals_ = [
            Place(unit, s.section)
            for unit in range(len(self.new.program.snapshot.units))
            for s in self.new.program.record(unit).symbols
            if s.type in (c.STT_OBJECT, c.STT_FUNC) and s.section < c.SHN_LORESERVE and stem(s.name) in wanted
        ]
        fitting = [p for p in dict.fromkeys(locals_) if self.judge.pairing.old_of(p) in (None, old)]
        exact = [p for p in fitting if self.judge.pairing.old_of(p) == old]
        own_unit = [p for p in fitting if self.judge.pairing.units.get(p.unit) == old.unit]
        named = [p for p in own_unit if called.partition("+")[0] in self.new.names(p)]
        return next(iter([*exact, *named, *own_unit, *fitting]), None)


def _same_bytes(judge: Judge, place: Place, carried: Carried) -> bool:
    fields = judge.carried.fields(carried)
    own, masked = judge.new.fields(place), judge.new.known.masked
    if [f.offset for f in fields] != [f.offset for f in own]:
        return False
    return masked(judge.new.data(place), own, relaxed=False) == masked(
        judge.carried.data(carried), fields, relaxed=False
    )


def against_patch(judge: Judge, place: Place, carried: Carried) -> Iterator[Difference]:
    """How a carried section differs from the new build's place."""
    yield from not_as_linked(judge.new, place)
    theirs = judge.carried.data(carried), judge.carried.fields(carried)
    yield from differences(judge, place, *theirs)


def not_as_linked(image: Image, place: Place) -> Iterator[Difference]:
    """Whether an output does not hold its object's bytes where a place is said to lie."""
    linked = image.linked(place)
    if linked is None or image.kind(place) in (Kind.DATA, Kind.THREAD):
        return
    elf = image.view(place).elf
    if not image.known.same_outside(image.data(place), linked, elf.relocation_rows(place.section)):
        yield Difference(0, len(linked), "the output does not hold the object's bytes there")


def differences(judge: Judge, place: Place, data: bytes, fields: tuple[Field, ...]) -> Iterator[Difference]:
    """How a new place differs from `data` of the patched process, whose relocated fields are `fields`."""
    mine, own = judge.new.data(place), judge.new.fields(place)
    if len(mine) != len(data):
        yield Difference(0, max(len(mine), len(data)), f"it has {len(mine)} bytes, and {len(data)} there")
        return
    if [(f.offset, f.type) for f in own] != [(f.offset, f.type) for f in fields]:
        yield Difference(0, len(mine), "it refers to other things, or at other places")
        return
    masked = judge.new.known.masked
    now, was = masked(mine, own, relaxed=False), masked(data, fields, relaxed=False)
    if now != was:
        changed = [i for i in range(len(now)) if now[i] != was[i]]
        first, last = changed[0], changed[-1] + 1
        yield Difference(first, last - first, BYTES_DIFFER)
    for after, before in zip(own, fields, strict=True):
        if not judge.agree(after, before):
            yield disagreement(judge.old, judge.new, after, before)


def disagreement(old: Image, new: Image, after: Field, before: Field) -> Difference:
    """The difference that two fields that disagree make."""
    text = f"it leads to {_worded(new, after)}, and to {_worded(old, before)} there"
    return Difference(after.offset, new.known.FIELD_SIZES[after.type], text, after, before)


def _worded(image: Image, field: Field) -> str:
    target = field.target
    if isinstance(target, Place):
        return image.label(target)
    if isinstance(target, Named):
        return target.name
    return "what the patch carries" if isinstance(target, Carried) else "another literal or number"


def carried_finding(new: Image, place: Place, difference: Difference) -> Finding:
    """The finding that something carried is not what the new build has."""
    what = f"what the patch carries is not what the new build has at {place_worded(new, place, difference)}"
    return Finding(new.label(place), f"{what}: {difference.text}", place)


def place_worded(image: Image, place: Place, difference: Difference) -> str:
    """Section, offset, address and object of a difference, in words."""
    section = image.view(place).elf.sections[place.section].name
    base = image.program.address(place)
    where = "" if base is None else f", {base + difference.offset:#x}"
    return f"{section}+{difference.offset:#x} ({difference.size} bytes{where}) of {image.program.unit_name(place.unit)}"
