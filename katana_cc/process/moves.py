"""What a patch does to the variables of one process: which move, which stay and hold pointers to those that do.

The values, and how the ledger keeps them (docs/ledger.md): `katana revert` has nothing else to go by.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from katana_cc.elf import constants as c
from katana_cc.errors import InvalidPatchError, RefusedError
from katana_cc.patch.model import DataTransform, PatchObject
from katana_cc.patch.needs import Grant, Option, needs_of
from katana_cc.process.link import Layout, Linked
from katana_cc.process.packing import Cursor, block, text
from katana_cc.transform.destinations import Destinations
from katana_cc.transform.inverse import invert
from katana_cc.transform.model import Transformation
from katana_cc.transform.table_reader import decode
from katana_cc.transform.tables import Label, encode, labelled, labels

_FOLLOWED, _ALL = 1, 2  # flags on disk, append-only


class Made(NamedTuple):
    """`number` parts of an object that a function of the program's makes.  `name` and `back_name` are what its authors
    call it and the one for the way back, `function` and `back` their addresses (0: there is none); the parts lie as of
    `katana_cc.patch.model.Handed`."""

    name: str
    back_name: str
    function: int
    back: int
    old: int
    new: int
    number: int
    old_stride: int
    new_stride: int

    def at(self, offset: int) -> int | None:
        """Where the part that begins at a byte of the old object begins in the new one; None where none does."""
        index, rest = divmod(offset - self.old, self.old_stride)
        return self.new + index * self.new_stride if not rest and 0 <= index < self.number else None

    def holds(self, offset: int) -> bool:
        """Whether a byte of the new object lies in a part (or between two, where nothing else does)."""
        return self.new <= offset < self.new + self.number * self.new_stride

    def reversed(self) -> Made:
        """The same on the way back."""
        return Made(
            self.back_name,
            self.name,
            self.back,
            self.function,
            self.new,
            self.old,
            self.number,
            self.new_stride,
            self.old_stride,
        )


@dataclass(frozen=True, slots=True)
class Move:
    """A variable of the target that gets a new layout at a new place, or one that stays and holds pointers.

    `old`, `new`: addresses in the target, equal for one that stays.  `initial`: what the new object begins as; empty:
    zeros (a large array shall not be in the ledger), and of one that stays.  `is_followed`: words that lead to it are
    taken for pointers, whatever else they may be (`--follow`).  `made` are the parts of the new object that functions
    of the program's make.
    """

    transformation: Transformation
    old: int
    new: int
    initial: bytes = b""
    is_followed: bool = False
    made: tuple[Made, ...] = ()

    @property
    def name(self) -> str:
        """The variable's name."""
        return self.transformation.name

    @property
    def begun(self) -> bytes:
        """What the new object begins as, in full."""
        return self.initial or bytes(self.transformation.new_size)

    @property
    def stays(self) -> bool:
        """Whether it keeps its place."""
        return self.old == self.new


@dataclass(frozen=True, slots=True)
class Kind:
    """A type whose objects are walked, in the direction of the patch.  `begins`: the name of the type that it begins
    with; `is_followed`, `may_drop`: as of a `Passage`; `is_all`: what the walk reaches is all there is, whatever the
    heap looks like (`--only-reached`); `made` are the parts of a new object that functions of the program's make."""

    transformation: Transformation
    begins: str = ""
    is_followed: bool = False
    may_drop: bool = True
    is_all: bool = False
    made: tuple[Made, ...] = ()

    @property
    def name(self) -> str:
        """The type's."""
        return self.transformation.name

    @property
    def stays(self) -> bool:
        """Whether its objects stay as they are."""
        return self.transformation.is_identity


def moves_of(
    po: PatchObject, bias: int, base: int, layout: Layout | None, linked: Linked | None, followed: Collection[str]
) -> tuple[Move, ...]:
    """The variables that a patch moves, or whose pointers it rewrites, in the order of the patch.

    Args:
        bias: load bias of the patched module.
        base: address of the mapping.
        layout, linked: where things are in it and what they begin as; None while only the sizes are of interest.
        followed: names of variables (`followed_by`).

    Raises:
        InvalidPatchError: a new object that is not in the patch's writable memory, or of another size.
    """
    return tuple(
        _move(po, d, bias + d.address, base, layout, linked, followed) for d in po.transforms if d.address is not None
    )


def _move(
    po: PatchObject, d: DataTransform, old: int, base: int, layout: Layout | None, linked: Linked | None,
    followed: Collection[str],
) -> Move:  # fmt: skip
    t = d.transformation
    if d.symbol is None:
        return Move(t, old, old)
    symbol = po.symbols[d.symbol]
    section = None if symbol.section is None else po.sections[symbol.section]
    wanted = c.SHF_ALLOC | c.SHF_WRITE
    if section is None or section.flags & (wanted | c.SHF_TLS) != wanted:
        raise InvalidPatchError(f"the new {t.name} is not in writable memory of the patch", where=po.identity.output)
    if symbol.value + t.new_size > section.size:
        raise InvalidPatchError(f"the new {t.name} reaches beyond its section", where=po.identity.output)
    is_followed = t.name in followed
    is_zero = section.type == c.SHT_NOBITS
    if layout is None or linked is None or symbol.section is None:
        # An address that no old object has: sizes must not depend on it.
        unplaced = _made(po, d, 0, None)
        return Move(t, old, 0, b"" if is_zero else bytes(t.new_size), is_followed, unplaced)
    at = layout.sections[symbol.section] + symbol.value
    return Move(
        t,
        old,
        layout.heritage.places.get(symbol.section, base + layout.sections[symbol.section]) + symbol.value,
        b"" if is_zero else linked.image[at : at + t.new_size],
        is_followed,
        _made(po, d, base, layout),
    )


def entry(po: PatchObject, symbol: int, layout: Layout | None, base: int) -> int:
    """Where a function of the patch lies; 0 while that is not known."""
    meant = po.symbols[symbol]
    if layout is None or meant.section is None:
        return 0
    return base + layout.sections[meant.section] + meant.value


def _made(po: PatchObject, d: DataTransform, base: int, layout: Layout | None) -> tuple[Made, ...]:
    made = []
    for h in d.handed:
        hook = po.hooks[h.hook]
        back = po.hooks[h.back] if h.back >= 0 else None
        at = entry(po, hook.symbol, layout, base), entry(po, back.symbol, layout, base) if back is not None else 0
        made.append(Made(hook.name, back.name if back is not None else "", *at, *h[2:]))
    return tuple(made)


def followed_by(po: PatchObject, granted: Collection[Grant]) -> frozenset[str]:
    """The variables that `--follow` names.

    Raises:
        RefusedError: one that the patch does not move; names those it does.
    """
    asked = {g.value for g in granted if g.option is Option.FOLLOW}
    known = {d.transformation.name for d in po.transforms if d.symbol is not None} | _changed(po)
    refuse_unknown(asked, known, po.identity.output)
    return frozenset(asked)


def _changed(po: PatchObject) -> set[str]:
    """The names of types whose objects on the heap get a new layout."""
    return {d.transformation.name for d in po.transforms if d.is_type and not d.transformation.is_identity}


def kinds_of(po: PatchObject, granted: Collection[Grant]) -> tuple[Kind, ...]:
    """The types whose objects are looked for on the heap; none where nothing moves.

    Raises:
        RefusedError: `--only-reached` or `--only-static` names a type that the patch does not change.
    """
    named = {option: {g.value for g in granted if g.option is option} for option in Option}
    refuse_unknown(named[Option.ONLY_REACHED], _changed(po), po.identity.output, Option.ONLY_REACHED)
    asked = {n.grant.value for n in needs_of(po) if n.grant and n.grant.option is Option.ONLY_STATIC}
    refuse_unknown(named[Option.ONLY_STATIC], _changed(po) | asked, po.identity.output, Option.ONLY_STATIC)
    found = [
        Kind(
            t,
            d.begins,
            t.name in named[Option.FOLLOW],
            True,
            t.name in named[Option.ONLY_REACHED],
            _made(po, d, 0, None),
        )
        for d in po.transforms
        if d.is_type and (t := d.transformation).name not in named[Option.ONLY_STATIC]
    ]
    is_moving = any(d.symbol is not None for d in po.transforms) or any(not k.stays for k in found)
    return tuple(found) if is_moving else ()


def kinds_back(
    kinds: Iterable[Kind],
    followed: Collection[str] = (),
    discarded: Collection[str] = (),
    complete: Collection[str] = (),
) -> tuple[Kind, ...]:
    """The same of the way back; names as of `katana_cc.process.follow.back`; `complete` are types of which all objects
    are reached, whatever the heap looks like."""
    return tuple(
        Kind(
            invert(k.transformation),
            k.begins if Destinations(k.transformation).of(0, k.begins) == 0 else "",
            k.is_followed or k.name in followed,
            k.name in discarded or (bool(k.made) and all(made.back for made in k.made)),
            k.is_all or k.name in complete,
            tuple(made.reversed() for made in k.made if made.back),
        )
        for k in kinds
    )


def with_functions(po: PatchObject, kinds: Iterable[Kind], base: int, layout: Layout) -> tuple[Kind, ...]:
    """The same, with the addresses of what makes their objects."""
    known = {d.transformation.name: d for d in po.transforms if d.is_type}
    return tuple(replace(k, made=_made(po, known[k.name], base, layout)) if k.made else k for k in kinds)


def same_moves(
    some: Sequence[Move], some_kinds: Sequence[Kind], others: Sequence[Move], other_kinds: Sequence[Kind]
) -> bool:
    """Whether two patches give live data the same layouts: what is made for one is right for the other."""
    moves = [sorted((m.name, m.old, m.stays, repr(m.transformation.steps)) for m in x) for x in (some, others)]
    kinds = [sorted((k.name, k.begins, repr(k.transformation.steps)) for k in x) for x in (some_kinds, other_kinds)]
    return moves[0] == moves[1] and kinds[0] == kinds[1]


DISCARD: Final = "--discard"  # of `katana revert`


def refuse_unknown(asked: Collection[str], known: Collection[str], where: str, option: str = Option.FOLLOW) -> None:
    """Raises RefusedError when an option names a variable that does not move."""
    if unknown := sorted(set(asked) - set(known)):
        moved = f"it moves {', '.join(sorted(known))}" if known else "it moves none"
        raise RefusedError(f"{option}: the patch does not move {', '.join(unknown)} ({moved})", where=where)


# -- in the ledger -----------------------------------------------------------------------------------------------------


def packed(moves: Sequence[Move]) -> Iterator[bytes]:
    """The moves as the ledger keeps them."""
    yield struct.pack("<I", len(moves))
    if moves:
        yield block(encode([m.transformation for m in moves]))
    for m in moves:
        found = tuple(labels(m.transformation.steps))
        yield text(m.name) + text(m.transformation.type)
        yield struct.pack("<QQQI", m.transformation.old_size, m.old, m.new, m.is_followed * _FOLLOWED)
        yield block(m.initial) + struct.pack("<I", len(found))
        for label in found:
            yield b"".join(text(each) for each in label)


def packed_kinds(kinds: Sequence[Kind]) -> Iterator[bytes]:
    """The types as the ledger keeps them."""
    yield struct.pack("<I", len(kinds))
    if kinds:
        yield block(encode([k.transformation for k in kinds]))
    for k in kinds:
        found = tuple(labels(k.transformation.steps))
        yield text(k.name) + text(k.begins)
        yield struct.pack("<QI", k.transformation.old_size, k.is_followed * _FOLLOWED | k.is_all * _ALL)
        yield struct.pack("<I", len(found))
        for label in found:
            yield b"".join(text(each) for each in label)


def packed_made(of: Sequence[Move] | Sequence[Kind]) -> Iterator[bytes]:
    """What functions of the program's make of the moves, or of objects of the types."""
    every: list[tuple[Made, ...]] = [each.made for each in of]
    rows = [(n, row) for n, made in enumerate(every) for row in made]
    yield struct.pack("<I", len(rows))
    for n, row in rows:
        yield struct.pack("<I7Q", n, *row[2:]) + text(row.name) + text(row.back_name)


def unpacked_made(count: int, cursor: Cursor) -> list[tuple[Made, ...]]:
    """The reverse: of each of `count` moves or types."""
    rows: dict[int, list[Made]] = {}
    for _ in range(cursor.count()):
        n, *numbers = cursor.take("<I7Q")
        rows.setdefault(n, []).append(Made(cursor.text(), cursor.text(), *numbers))
    return [tuple(rows.get(n, ())) for n in range(count)]


def unpacked_kinds(cursor: Cursor) -> tuple[Kind, ...]:
    """The reverse.

    Raises:
        FormatError: another katana wrote it, in a way that this one does not know.
    """
    kinds = []
    count = cursor.count()
    tables = decode(cursor.block()) if count else ()
    for table in tables[:count]:
        name, begins = cursor.text(), cursor.text()
        size, flags = cursor.take("<QI")
        names = iter([Label(cursor.text(), cursor.text(), cursor.text()) for _ in range(cursor.count())])
        t = Transformation(name, size, table.new_size, labelled(table.steps, names))
        kinds.append(Kind(t, begins, bool(flags & _FOLLOWED), True, bool(flags & _ALL)))
    return tuple(kinds)


def unpacked(cursor: Cursor) -> tuple[Move, ...]:
    """The reverse.

    Raises:
        FormatError: another katana wrote it, in a way that this one does not know.
    """
    moves = []
    count = cursor.count()
    tables = decode(cursor.block()) if count else ()
    for i in range(count):
        name, of_type = cursor.text(), cursor.text()
        size, old, new, flags = cursor.take("<QQQI")
        initial = cursor.block()
        names = iter([Label(cursor.text(), cursor.text(), cursor.text()) for _ in range(cursor.count())])
        t = Transformation(name, size, tables[i].new_size, labelled(tables[i].steps, names), of_type)
        moves.append(Move(t, old, new, initial, bool(flags & _FOLLOWED)))
    return tuple(moves)
