"""Two patches, v1..v2 and v2..v3, put together to one, v1..v3, without the builds.

Theory of operation.  What must run in the end is what v3 has of each thing that either patch changes:

    function            first patch   second patch    in the composed one
    changed in v2       replaces it   -               the first's, replacing v1's; its calls lead to the newest code
    changed in v3       -             replaces it     the second's, replacing v1's, which lies where the map says
    changed in both     replaces it   replaces it     the second's, replacing v1's
    new in v2           carries it    -, or its own   the first's, or the second's

Constants and variables go the same way; edits meet in `rewrites.py`.  The references of the second patch are addresses
of v2, and the first one's map (`addresses.py`) tells what each is (`rebase.py`).  What nothing leads to any more is
left out, with its frames and its debug information.

Of a function that only the second patch replaces, no build at hand tells v1's bytes: it is the same code, linked
elsewhere.  So its digest leaves out what a linker writes (`Replacement.blanks`).

The old code that is v1's was never looked at together with v3.  What the first patch replaces must therefore not be
active, if the second one changes anything that it may rely on (`Basis.TWO_STEPS`).

Refused, since nobody could tell what it means: live data that gets another layout in both steps; hooks of one step and
moved data of the other; all that the map does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from katana_cc.cpu.choice import of
from katana_cc.diff.reasons import INFO, Code, by_weight, verdict_of
from katana_cc.errors import RefusedError
from katana_cc.patch.addresses import AddressMap, Altered, Lookup, Lying, Named, Shape, Stretch, inverted, joined
from katana_cc.patch.framejoin import Frames, frames_of, joined_frames
from katana_cc.patch.model import (
    UNKNOWN,
    Basis,
    Brought,
    BroughtKind,
    DataTransform,
    Hook,
    Identity,
    PatchObject,
    PatchSymbol,
    Reason,
    Reliance,
    Replacement,
    Verdict,
    without_doubles,
)
from katana_cc.patch.pieces import Assembly, Numbered, Piece, named_in, pieces_of, section_symbol
from katana_cc.patch.rebase import Rebase, not_composable
from katana_cc.patch.resources import with_debug_information_of
from katana_cc.patch.rewrites import Rewrite, joined_rewrites, outside, plain, without_effect

FRAMES: Final = ".eh_frame"
_NEW: Final = {Code.FUNCTION_NEW.value: BroughtKind.FUNCTION, Code.DATA_NEW.value: None}


def compose(first: PatchObject, second: PatchObject) -> PatchObject:
    """One patch from the old build of `first` to the new build of `second`.

    Raises:
        RefusedError: they do not follow each other, or cannot be put together; with the reason.
    """
    refuse_unless_consecutive(first, second)
    _refuse_what_cannot_be_told(first, second, _moving(first, second))
    return _Composer(first, second).composed()


def refuse_unless_consecutive(first: PatchObject, second: PatchObject) -> None:
    """Raises RefusedError unless the second patch starts where the first one leads."""
    a, b = first.identity, second.identity
    if a.machine != b.machine or a.to_build_id != b.from_build_id:
        raise RefusedError(
            f"the second patch does not start where the first one leads: the first leads to {_build(a, is_to=True)}, "
            f"the second starts from {_build(b, is_to=False)}",
            where=b.output,
            remedy="name them in their order; `katana explain PO` says from where to where a patch leads",
        )

    if a.from_build_id == b.to_build_id:
        raise RefusedError(
            f"the second patch leads back to where the first one starts: {_build(a, is_to=False)}",
            where=b.output,
            remedy="nothing is to be applied for that; `katana revert` takes the first one out",
        )


def _build(i: Identity, *, is_to: bool) -> str:
    build_id, release = (i.to_build_id, i.to_release) if is_to else (i.from_build_id, i.from_release)
    return f"{i.output} {release} ({build_id})" if release else f"{i.output} ({build_id})"


def _lying(first: PatchObject) -> Lookup:
    """Where in v2 the first patch carries something."""
    known = {x.new: first.sections[x.section].size for x in first.addresses.carried}
    return Lookup([Stretch(at, size, at) for at, size in sorted(known.items()) if size])


def _moving(first: PatchObject, second: PatchObject) -> tuple[DataTransform, ...]:
    """The live data to which the second patch gives a new layout, or that leads to such: variables that come with the
    first one have none to keep, and without variables nothing leads to objects of a type."""
    lying = _lying(first)
    found = tuple(d for d in second.transforms if d.address is None or lying.stretch(d.address) is None)
    return found if any(d.address is not None for d in found) else ()


def _names(transforms: Sequence[DataTransform]) -> str:
    """What gets another layout."""
    return ", ".join(sorted({d.transformation.name for d in transforms if not d.transformation.is_identity}))


def _refuse_what_cannot_be_told(first: PatchObject, second: PatchObject, moving: Sequence[DataTransform]) -> None:
    for which, po in (("first", first), ("second", second)):
        if po.verdict is Verdict.REFUSED:
            refusal = next((f": {r.subject}: {r.text}" for r in po.reasons if r.severity == "refused"), "")
            raise not_composable(f"the {which} one was refused when it was made{refusal}", po.identity.output)
        carries = po.replacements or po.sections or po.data_edits
        if carries and not (po.addresses.stretches or po.addresses.carried):
            raise not_composable(f"the {which} one does not say what lies where", po.identity.output)
    if first.transforms and moving:
        which = f"the first {_names(first.transforms)}; the second {_names(moving)}"
        raise not_composable(f"both give live data another layout ({which})", first.identity.output)
    if first.hooks and second.hooks:
        names = ", ".join(sorted({h.name for h in (*first.hooks, *second.hooks)}))
        raise not_composable(f"both have functions of the user's to run ({names}), each made for a build of its own",
                             first.identity.output)  # fmt: skip
    for hooked, moved in ((first, moving), (second, first.transforms)):
        if hooked.hooks and moved:
            name = hooked.hooks[0].name
            raise not_composable(f"{name} runs when one is applied, and the other gives live data another layout",
                                 first.identity.output)  # fmt: skip
    if moving:
        gone = next((r.subject for r in first.reasons if r.code == Code.DATA_REMOVED.value), None)
        if gone is not None:
            raise not_composable(f"the second gives live data another layout, to which {gone} may lead, a variable "
                                 "that the first one leaves behind", first.identity.output)  # fmt: skip
        same = sorted({x.name for x in first.layouts} & {x.name for x in second.layouts})
        if same:
            raise not_composable(f"the layout of {same[0]} changes in both steps", first.identity.output)


@dataclass(frozen=True, slots=True)
class _Entering:
    """A replacement of the composed patch, before its symbol has a number; its shapes in the old build."""

    replacement: Replacement
    symbol: PatchSymbol
    shapes: tuple[Shape, ...]
    first: int = -1  # its number in each patch
    second: int = -1


class _Composer:
    def __init__(self, first: PatchObject, second: PatchObject) -> None:
        self.first, self.second = first, second
        self.shift = len(first.sections)
        self.assembly = Assembly()
        self.pieces = self.assembly.pieces
        mine, self.first_symbols = pieces_of(first)
        theirs, self.second_symbols = pieces_of(second, self.shift)
        self.pieces.update(mine)
        self.pieces.update(theirs)
        self.assembly.names += [*named_in(self.first_symbols), *named_in(self.second_symbols)]
        m = first.addresses
        self.by_new = {x.new: x for x in m.carried if first.sections[x.section].size}
        self.memory, self.lying = Lookup(m.stretches), _lying(first)
        self.thread = Lookup(m.thread)
        self._translated: set[int] = set()
        self.entering = self._replacements()
        replaced = {e.replacement.address: e.symbol for e in self.entering if e.second >= 0}
        self.rebase = Rebase(
            of(first.identity.machine), m, self.pieces, self._successors(), replaced, self.memory, self.thread,
            self.lying, self.by_new,
        )  # fmt: skip

    def composed(self) -> PatchObject:
        """The passes."""
        rewrites = joined_rewrites(self.first, self.second, self.rebase, self.pieces, self.shift)
        replaced = [e.replacement for e in self.entering]
        rewrites = [r for r in outside(rewrites, replaced) if not without_effect(r)]
        transforms = list(self._transforms())
        hooks = [*self._hooks(self.first, self.first_symbols), *self._hooks(self.second, self.second_symbols)]
        symbols = [e.symbol for e in self.entering]
        symbols += [y for _, y in hooks] + [y for _, y in transforms if y is not None]
        frames = [*frames_of(self.first, self.pieces, 0), *frames_of(self.second, self.pieces, self.shift)]
        live = self._live(rewrites, symbols, frames)
        for n in live:
            self._translate(n)
        # From here on every field is in terms of the old build and of pieces that are kept.
        expected = self._add_rewrites(rewrites, live)
        whole = joined_frames(frames, live)
        if whole is not None:
            live.add(self._add(whole))
        numbered = self.assembly.finished(live, symbols)
        return self._finished(numbered, rewrites, expected, hooks, transforms)

    # What is replaced by what

    def _replacements(self) -> list[_Entering]:
        later = {}
        for n, r in enumerate(self.second.replacements):
            later[r.address] = n, self.second_symbols[r.symbol]
        result = []
        by_old = {x.old: x for x in self.by_new.values() if x.old}
        for n, r in enumerate(self.first.replacements):
            at = by_old.get(r.address)
            number, symbol = later.pop(at.new, (-1, None)) if at is not None else (-1, None)
            name = symbol if symbol is not None else self.first_symbols[r.symbol]
            shapes = self.first.addresses.shapes
            result.append(_Entering(r, name, shapes[n] if shapes else (), n, number))
        altered = {a.new: a.shape for a in self.first.addresses.altered}
        for address, (n, symbol) in later.items():
            carried = self.lying.stretch(address)
            if carried is None:
                result.append(self._unchanged(n, symbol, altered))
            elif self.by_new[carried.new].old:
                raise not_composable("the first patch brings another version of it, without replacing the old one",
                                     self.second.replacements[n].name)  # fmt: skip
        return result

    def _unchanged(self, n: int, symbol: PatchSymbol, altered: dict[int, Shape]) -> _Entering:
        """A function that the first patch leaves where it is."""
        r, shapes = self.second.replacements[n], self.second.addresses.shapes
        places, known = [], []
        for which, (address, size, digest, blanks) in enumerate(r.ranges):
            at = self.memory.old(address, size)
            if at is None:
                raise not_composable("the first patch does not tell where it is in the old build", r.name)
            shape = altered.get(address) or (shapes[n][which] if shapes else Shape(blanks, digest))
            places.append((at, size, shape.digest))
            known.append(shape)
        (address, size, digest), *parts = places
        made = Replacement(r.name, address, size, digest, 0, tuple(parts))
        if any(s.blanks for s in known):
            made = replace(made, blanks=tuple(s.blanks for s in known))
        return _Entering(made, symbol, tuple(known), -1, n)

    def _successors(self) -> dict[int, PatchSymbol]:
        """Piece of the first patch → what the second one has in its stead."""
        found = {}
        functions = {r.address: self.second_symbols[r.symbol] for r in self.second.replacements}
        for x in self.second.addresses.carried:
            before = self.by_new.get(x.old) if x.old else None
            if before is None:
                continue
            section = x.section + self.shift
            symbol = section_symbol(section)
            function = functions.get(x.old)
            found[before.section] = function if function is not None and function.section == section else symbol
        return found

    # What is kept

    def _live(self, rewrites: list[Rewrite], symbols: list[PatchSymbol], frames: list[Frames]) -> set[int]:
        """The pieces that are kept."""
        roots = {y.section for y in symbols if y.section is not None}
        roots |= {y.section for y in self.rebase.successors.values() if y.section is not None}
        for r in rewrites:
            for piece in (r.before, r.after):
                roots |= {f.symbol.section for f in piece.fields if f.symbol.section is not None}
        needs: dict[int, list[PatchSymbol]] = {}
        for x in frames:
            needs.setdefault(x.code, []).extend(x.needs)

        def enter(n: int) -> Sequence[PatchSymbol]:
            self._translate(n)
            return needs.get(n, ())

        return self.assembly.reached(sorted(roots), enter)

    def _translate(self, n: int) -> None:
        """Bring the fields of a piece into terms of the old build, once."""
        if n in self._translated:
            return
        self._translated.add(n)
        piece = self.pieces[n]
        translate = self.rebase.of_first if n < self.shift else self.rebase.of_second
        subject = self._subject(n)
        self.pieces[n] = Piece(piece.section, [translate(piece, f, subject) for f in piece.fields])

    def _subject(self, n: int) -> str:
        named = [y for y in self.assembly.names if y.section == n and y.name]
        return named[0].name if named else self.pieces[n].section.name

    def _add(self, piece: Piece) -> int:
        number = max(self.pieces) + 1
        self.pieces[number] = piece
        return number

    def _add_rewrites(self, rewrites: list[Rewrite], live: set[int]) -> list[tuple[int, int]]:
        result = []
        for r in rewrites:
            before = self._add(plain(r.before, ".katold", r.edit.name))
            after = before if r.edit.is_condition else self._add(plain(r.after, ".katnew", r.edit.name))
            live |= {before, after}
            result.append((before, after))
        return result

    # Live data and hooks

    def _transforms(self) -> Iterator[tuple[DataTransform, PatchSymbol | None]]:
        for d in self.first.transforms:
            yield d, None if d.symbol is None else self.first_symbols[d.symbol]
        for d in _moving(self.first, self.second):
            symbol = None if d.symbol is None else self.second_symbols[d.symbol]
            if d.address is None:
                yield d, None
            else:
                at = self.memory.old(d.address, max(d.transformation.old_size, 1))
                if at is None:
                    raise not_composable("the first patch does not tell where it is in the old build",
                                         d.transformation.name)  # fmt: skip
                yield replace(d, address=at), symbol

    @staticmethod
    def _hooks(po: PatchObject, symbols: tuple[PatchSymbol, ...]) -> Iterator[tuple[Hook, PatchSymbol]]:
        return ((h, symbols[h.symbol]) for h in po.hooks)

    # The whole

    def _finished(
        self,
        numbered: Numbered,
        rewrites: list[Rewrite],
        expected: list[tuple[int, int]],
        hooks: list[tuple[Hook, PatchSymbol]],
        transforms: list[tuple[DataTransform, PatchSymbol | None]],
    ) -> PatchObject:
        a, b = self.first.identity, self.second.identity
        identity = Identity(b.output, a.machine, a.from_build_id, b.to_build_id, a.from_release, b.to_release)
        numbers = iter(numbered.wanted)
        replacements = tuple(replace(e.replacement, symbol=next(numbers)) for e in self.entering)
        hooked = tuple(replace(h, symbol=next(numbers)) for h, _ in hooks)
        moved = tuple(d if y is None else replace(d, symbol=next(numbers)) for d, y in transforms)
        edits = tuple(
            replace(r.edit, expected=numbered.number[x], replacement=numbered.number[y])
            for r, (x, y) in zip(rewrites, expected, strict=True)
        )
        brought = tuple(sorted(self._brought(numbered)))
        layouts = {x.name for x in self.second.layouts}
        reasons = by_weight(dict.fromkeys(self._reasons(numbered, rewrites)))
        po = PatchObject(
            identity, verdict_of(reasons), reasons, numbered.sections, numbered.symbols, replacements, edits,
            tuple(self._reliances()), moved, hooked, brought,
            tuple(sorted({*self.second.layouts, *(x for x in self.first.layouts if x.name not in layouts)})),
            self._addresses(numbered),
        )  # fmt: skip
        return with_debug_information_of(po, (self.first, self.second), (0, self.shift), numbered.number, self.rebase)

    def _reliances(self) -> Iterator[Reliance]:
        mine = {e.first: n for n, e in enumerate(self.entering) if e.first >= 0}
        theirs = {e.second: n for n, e in enumerate(self.entering) if e.second >= 0}
        for r in self.first.reliances:
            yield replace(r, caller=mine[r.caller], callee=mine[r.callee])
        for r in self.second.reliances:
            if r.caller in theirs and r.callee in theirs and self.entering[theirs[r.caller]].first < 0:
                yield replace(r, caller=theirs[r.caller], callee=theirs[r.callee])
        if self.second.replacements or _moving(self.first, self.second):
            for n in mine.values():
                yield Reliance(n, n, Basis.TWO_STEPS)

    def _brought(self, numbered: Numbered) -> Iterator[Brought]:
        found: dict[int, Brought] = {}
        staying = (self.rebase.lying_at(d.address) for d in self.second.transforms if d.address is not None)
        pointing = {x[0].section for x in staying if x is not None}
        for b in self.first.brought:
            if b.section in pointing:  # what it leads to has another layout, which its digest tells of
                b = b._replace(digest=UNKNOWN)
            successor = self.rebase.successors.get(b.section)
            piece = b.section if successor is None else successor.section
            if piece in numbered.number and (successor is None or b.kind is not BroughtKind.VARIABLE):
                found[numbered.number[piece]] = b._replace(section=numbered.number[piece])
        for b in self.second.brought:
            number = numbered.number.get(b.section + self.shift)
            if number is not None:
                found[number] = b._replace(section=number)
        yield from without_doubles(found.values())

    def _reasons(self, numbered: Numbered, rewrites: list[Rewrite]) -> Iterator[Reason]:
        a, b = self.first.identity, self.second.identity
        middle = a.to_release or b.from_release or a.to_build_id[:12]
        text = f"put together from a patch to {middle} and one from there, without the builds"
        yield Reason(Code.COMPOSED.value, INFO, b.output, "", 0, text)
        alive = {y.name for y in self.assembly.names if y.section in numbered.number}
        replaced = {e.replacement.name for e in self.entering}
        edited = {r.edit.name.rpartition("+")[0] for r in rewrites}
        for reason in (*self.second.reasons, *self.first.reasons):
            if reason.code == Code.COMPOSED.value:
                continue
            is_gone = reason.code in _NEW and reason.subject not in alive
            is_gone |= reason.code == Code.CODE_RETARGETED.value and reason.subject not in edited
            is_new_too = reason.code == Code.FUNCTION_CHANGED.value and reason.subject not in replaced
            if not is_gone and not is_new_too:
                yield reason

    def _addresses(self, numbered: Numbered) -> AddressMap:
        """From the newest build to the oldest."""
        m, n = self.first.addresses, self.second.addresses
        newest = Lookup(inverted(n.stretches))
        carried = []
        for x in n.carried:
            section = numbered.number.get(x.section + self.shift)
            if section is not None:
                before = self.by_new.get(x.old)
                old = before.old if before is not None else self.memory.old(x.old) if x.old else 0
                carried.append(Lying(section, x.new, old or 0))
        for x in m.carried:
            section, at = numbered.number.get(x.section), newest.old(x.new)
            if section is not None and at is not None:
                carried.append(Lying(section, at, x.old))
        named = {y.name: y.old for y in m.named if y.name}
        shapes = {a.new: a.shape for a in m.altered}
        altered = {at: a.shape for a in m.altered if (at := newest.old(a.new)) is not None}
        for a in n.altered:
            old = Lookup(n.stretches).old(a.new)
            if old is not None and self.lying.stretch(old) is None:
                altered[a.new] = shapes.get(old, a.shape)
        return AddressMap(
            joined(m.stretches, n.stretches),
            joined(m.thread, n.thread),
            tuple(sorted(carried)),
            tuple(sorted(Named(y.name, y.new, named.get(y.name, 0) if y.name else 0) for y in n.named)),
            tuple(sorted(Altered(at, shape) for at, shape in altered.items())),
            tuple(e.shapes for e in self.entering) if all(e.shapes for e in self.entering) else (),
        )
