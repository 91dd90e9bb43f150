"""The data edits of two patches as those of one.

Theory of operation.  An edit says: at this place of v1 there is this, and it becomes that.  The second patch's say so
of v2.  Where the first patch writes nothing, that is the same place with the same contents.  Else:

    the second edits what the first brought     its section comes with the newer contents at once
    both edit one place                         what the first expects becomes what the second writes
    one edits a part of what the other does     the part takes the place of that part in the whole, on the side that it
                                                speaks of
    the second writes what the first expects    nothing is to be done

A variable whose initial value changed is no edit but an offer (`DataEdit.is_initialiser`): offers meet offers, edits
meet edits, and each is also a part of the other's contents.  An edit within a function that is replaced as a whole goes
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from katana_cc.elf import constants as c
from katana_cc.patch.model import DataEdit, PatchObject, Replacement
from katana_cc.patch.pieces import Piece, PieceField
from katana_cc.patch.rebase import Rebase, not_composable

_Translate = Callable[[Piece, PieceField, str], PieceField]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A data edit whose contents are pieces; they are numbered last."""

    edit: DataEdit
    before: Piece
    after: Piece

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.edit.address + self.before.section.size

    def holds(self, other: Rewrite) -> bool:
        """Whether the other lies within it."""
        return self.edit.address <= other.edit.address and other.end <= self.end

    def meets(self, other: Rewrite) -> bool:
        """Whether both have a byte in common."""
        return self.edit.address < other.end and other.edit.address < self.end


def joined_rewrites(
    first: PatchObject, second: PatchObject, rebase: Rebase, pieces: dict[int, Piece], shift: int
) -> list[Rewrite]:
    """The rewrites of both; those of the second patch in what the first one brought are made in `pieces`.

    Args:
        pieces: those of both, the second's numbered from `shift` on; fields still as each patch has them.

    Raises:
        NotComposableError: they meet in a way that tells of no one edit.
    """
    earlier = [Rewrite(e, pieces[e.expected], pieces[e.replacement]) for e in first.data_edits]
    earlier = [_in_terms(r, rebase.of_first) for r in earlier]
    later = []
    altered = {a.new for a in rebase.first.altered}
    for number, e in enumerate(second.data_edits):
        before, after = pieces[e.expected + shift], pieces[e.replacement + shift]
        carried = rebase.lying_at(e.address)
        if carried is not None:
            lying, offset = carried
            if lying.section not in rebase.successors:
                new = Rewrite(e, before, _translated(after, rebase.of_second, e.name))
                _into(pieces, lying.section, offset, new)
            continue
        at = rebase.memory.old(e.address, before.section.size)
        stretch = rebase.memory.stretch(e.address)
        if at is None or stretch is None:
            raise not_composable("the first patch does not tell where it is in the old build", e.name)
        if number in second.addresses.fixed:
            raise not_composable("what it held holds addresses of the build in between", e.name)
        if any(e.address <= a < e.address + before.section.size for a in altered):
            raise not_composable("the first patch leaves it as it was, other than the build in between has it", e.name)
        moved = Rewrite(replace(e, address=at), before, after)
        later.append(_in_terms(moved, rebase.of_second))
    return list(_met(earlier, later))


def _in_terms(r: Rewrite, of: _Translate) -> Rewrite:
    return Rewrite(r.edit, _translated(r.before, of, r.edit.name), _translated(r.after, of, r.edit.name))


def _translated(piece: Piece, of: _Translate, subject: str) -> Piece:
    return Piece(piece.section, [of(piece, f, subject) for f in piece.fields])


def _into(pieces: dict[int, Piece], number: int, offset: int, new: Rewrite) -> None:
    """What the second patch edits in a section of the first: new contents, or a field of code."""
    target = pieces[number]
    if new.edit.is_condition:
        return
    if not target.is_code:
        pieces[number] = target.with_part(offset, new.after)
        return
    there = [f for f in target.fields if f.offset == offset]
    (wanted,) = new.after.fields or (None,)
    if len(there) != 1 or wanted is None or there[0].type != wanted.type:
        raise not_composable("the code that uses it was linked otherwise than it was compiled", new.edit.name)
    fields = [f if f.offset != offset else wanted._replace(offset=offset) for f in target.fields]
    pieces[number] = Piece(target.section, fields)


def _met(earlier: list[Rewrite], later: list[Rewrite]) -> Iterator[Rewrite]:
    for a in earlier:
        for b in later:
            if a.meets(b) and not (a.holds(b) or b.holds(a)):
                raise not_composable(f"both patches edit parts of it ({a.edit.name}, {b.edit.name})", a.edit.name)
    for a in earlier:
        inside = [b for b in later if a.holds(b)]
        around = [b for b in later if b.holds(a) and _is_alike(a, b) and not a.holds(b)]
        if around:
            continue  # the whole speaks for it
        after = a.after
        # Offers last: the new initial value of all of it holds what is in it.
        for b in sorted(inside, key=lambda b: b.edit.is_initialiser):
            if not b.edit.is_condition:
                after = after.with_part(b.edit.address - a.edit.address, b.after)
        same = [b for b in inside if _is_alike(a, b) and b.end == a.end and b.edit.address == a.edit.address]
        yield _made(a.edit, a.before, after, same[0].edit if same else None)
    for b in later:
        if any(a.holds(b) and _is_alike(a, b) for a in earlier):
            continue
        before = b.before
        for a in sorted((a for a in earlier if b.holds(a)), key=lambda a: -a.edit.is_initialiser):
            before = before.with_part(a.edit.address - b.edit.address, a.before)
        for a in (a for a in earlier if a.holds(b) and not b.holds(a)):  # of the other kind
            before = a.before.part(b.edit.address - a.edit.address, b.before.section.size)
        yield _made(b.edit, before, b.after if not b.edit.is_condition else before, None)


def _is_alike(a: Rewrite, b: Rewrite) -> bool:
    return a.edit.is_initialiser == b.edit.is_initialiser


def _made(edit: DataEdit, before: Piece, after: Piece, later: DataEdit | None) -> Rewrite:
    if later is not None and edit.is_initialiser and edit.is_taken != later.is_taken:
        raise not_composable("the source of one step asks for its new initial value, and that of the other does not",
                             edit.name)  # fmt: skip
    return Rewrite(edit, before, after)


def without_effect(r: Rewrite) -> bool:
    """Whether nothing is to be done: the second patch took back what the first did."""
    return r.before.means(r.after) and not r.edit.is_condition


def outside(rewrites: Iterable[Rewrite], replaced: Iterable[Replacement]) -> Iterator[Rewrite]:
    """Those that are not within functions that are replaced as a whole."""
    ranges = [(at, at + size) for r in replaced for at, size, _, _ in r.ranges]
    for r in rewrites:
        if not any(start <= r.edit.address < end for start, end in ranges):
            yield r


def plain(piece: Piece, prefix: str, name: str) -> Piece:
    """A piece as a section that is never mapped."""
    section = replace(piece.section, name=f"{prefix}.{name}", type=c.SHT_PROGBITS, flags=0, data=piece.data)
    return Piece(section, piece.fields)
