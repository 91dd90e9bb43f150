"""Sections of a patch object taken apart and put together anew: fields that name their symbols themselves.

In a `PatchObject` sections, symbols and relocations know each other by number.  Whoever takes some of them from one
patch object and some from another needs them without: a *piece* is a section whose fields hold their symbols as values,
which know the piece they are in by a number that stays while others come and go.  `Assembly.finished` numbers what is
left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from katana_cc.elf import constants as c
from katana_cc.patch.model import REGISTRATION, PatchObject, PatchRelocation, PatchSection, PatchSymbol


class PieceField(NamedTuple):
    """A relocation; `symbol.section` is a piece's number."""

    offset: int
    type: int
    symbol: PatchSymbol
    addend: int


@dataclass(slots=True)
class Piece:
    """A section, without relocations of its own, and its fields."""

    section: PatchSection
    fields: list[PieceField]

    @property
    def data(self) -> bytes:
        """Its contents; zeros for SHT_NOBITS."""
        return self.section.data.ljust(self.section.size, b"\0")

    @property
    def is_code(self) -> bool:
        """Whether it is executable."""
        return bool(self.section.flags & c.SHF_EXECINSTR)

    def part(self, start: int, size: int) -> Piece:
        """A copy of [start, start + size) of it."""
        data = self.data[start : start + size]
        inside = [f._replace(offset=f.offset - start) for f in self.fields if start <= f.offset < start + size]
        return Piece(replace(self.section, type=c.SHT_PROGBITS, data=data, size=size), inside)

    def with_part(self, start: int, part: Piece) -> Piece:
        """A copy of it, with the contents and fields of another piece from `start` on."""
        end = start + part.section.size
        data = self.data[:start] + part.data + self.data[end:]
        kind = self.section.type if not any(data) and not part.fields else c.SHT_PROGBITS
        outside = [f for f in self.fields if not start <= f.offset < end]
        fields = sorted([*outside, *(f._replace(offset=f.offset + start) for f in part.fields)])
        made = replace(self.section, type=kind, data=data if kind == c.SHT_PROGBITS else self.section.data)
        return Piece(made, fields)

    def means(self, other: Piece) -> bool:
        """Whether both come to the same bytes in any target."""
        return self.data == other.data and _meanings(self.fields) == _meanings(other.fields)


def _meanings(fields: Iterable[PieceField]) -> list[tuple[int, int, object, int]]:
    """What fields come to, whatever the names of what exists in the target."""
    found: list[tuple[int, int, object, int]] = []
    for f in sorted(fields):
        exists = f.symbol.section is None and f.symbol.value and f.symbol.type != c.STT_GNU_IFUNC
        if exists and f.symbol.type != c.STT_TLS:
            found.append((f.offset, f.type, "there", f.symbol.value + f.addend))
        else:
            found.append((f.offset, f.type, f.symbol, f.addend))
    return found


def pieces_of(po: PatchObject, first: int = 0) -> tuple[dict[int, Piece], tuple[PatchSymbol, ...]]:
    """The pieces of a patch object, numbered from `first` on, and its symbols in their terms."""
    symbols = tuple(y if y.section is None else replace(y, section=y.section + first) for y in po.symbols)
    pieces = {}
    for n, s in enumerate(po.sections, first):
        fields = [PieceField(r.offset, r.type, symbols[r.symbol], r.addend) for r in s.relocations]
        pieces[n] = Piece(replace(s, relocations=()), fields)
    return pieces, symbols


def section_symbol(piece: int) -> PatchSymbol:
    """The symbol of a piece as a whole."""
    return PatchSymbol("", c.STB_LOCAL, c.STT_SECTION, piece, 0, 0)


class Assembly:
    """Pieces on the way to a patch object."""

    def __init__(self) -> None:
        self.pieces: dict[int, Piece] = {}
        self.names: list[PatchSymbol] = []  # of what the pieces hold, whether or not a field wants them

    def reached(self, roots: Iterable[int], enter: Callable[[int], Iterable[PatchSymbol]]) -> set[int]:
        """The pieces that some lead to, themselves with them.

        Args:
            enter: called of each before its fields are looked at; the symbols that it needs beside theirs.
        """
        found: set[int] = set()
        queue = list(roots)
        while queue:
            n = queue.pop()
            if n in found:
                continue
            found.add(n)
            needs = enter(n)
            queue += [f.symbol.section for f in self.pieces[n].fields if f.symbol.section is not None]
            queue += [y.section for y in needs if y.section is not None]
        return found

    def finished(self, kept: set[int], wanted: Sequence[PatchSymbol]) -> Numbered:
        """What is kept, numbered; `wanted` are symbols that something else than a field names."""
        number = {piece: n for n, piece in enumerate(n for n in sorted(self.pieces) if n in kept)}
        symbols: dict[PatchSymbol, int] = {}

        def numbered(symbol: PatchSymbol) -> int:
            known = symbol if symbol.section is None else replace(symbol, section=number[symbol.section])
            return symbols.setdefault(known, len(symbols))

        for y in self.names:
            if y.section in number or (y.section is None and y.name in REGISTRATION):
                numbered(y)
        sections = []
        for piece in number:
            p = self.pieces[piece]
            relocations = tuple(PatchRelocation(f.offset, f.type, numbered(f.symbol), f.addend) for f in p.fields)
            sections.append(replace(p.section, relocations=relocations))
        chosen = tuple(numbered(y) for y in wanted)
        return Numbered(tuple(sections), tuple(symbols), number, chosen)


class Numbered(NamedTuple):
    """Sections and symbols as a patch object has them; piece → section; the numbers of the symbols that were wanted."""

    sections: tuple[PatchSection, ...]
    symbols: tuple[PatchSymbol, ...]
    number: dict[int, int]
    wanted: tuple[int, ...]


def named_in(symbols: Iterable[PatchSymbol]) -> Iterator[PatchSymbol]:
    """Those that tell people and unwinders something, whether or not a field leads to them."""
    for y in symbols:
        if y.name in REGISTRATION if y.section is None else y.type in (c.STT_FUNC, c.STT_OBJECT):
            yield y
