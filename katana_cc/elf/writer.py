"""A writer for relocatable ELF files (ET_REL): the same input always gives the same bytes.

The caller gives content sections and symbols in any order; the writer adds what makes them a valid file:

    ELF header | contents of sections 1..n | .rela.* | .symtab [.symtab_shndx] .strtab .shstrtab | section headers

Sections keep their order: the i-th one given has section header index i + 1, and the first one's contents follow the
ELF header at once (aligned).  Symbols are renumbered, since the gABI wants the local ones first: `symbol_numbers` tells
beforehand which number each will have, so that a section's contents can speak of symbols.

Section indices from SHN_LORESERVE (0xff00) go through .symtab_shndx and section header 0, as the gABI says.
SHF_GROUP and SHF_LINK_ORDER are cleared: groups and link orders speak to a linker of other sections that are not here.

Source: System V gABI, chapter 4 (sections, symbol table, relocation).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from katana_cc.elf import constants as c
from katana_cc.errors import FormatError

_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR: Final = struct.Struct("<IIQQQQIIQQ")
_SYM: Final = struct.Struct("<IBBHQQ")
_RELA: Final = struct.Struct("<QQq")
_IDENT: Final = b"\x7fELF\x02\x01\x01" + bytes(9)  # 64-bit, little-endian, current version, no OS ABI
_DROPPED_FLAGS: Final = c.SHF_GROUP | c.SHF_LINK_ORDER


@dataclass(frozen=True, slots=True)
class NewRelocation:
    """A RELA entry; `symbol` indexes the symbols given (not the file's table), or is None for no symbol."""

    offset: int
    type: int
    symbol: int | None
    addend: int


@dataclass(frozen=True, slots=True)
class NewSection:
    """A content section.  `size` is used for SHT_NOBITS only; `address` is 0 but for images placed in memory."""

    name: str
    type: int
    flags: int
    alignment: int
    data: bytes
    size: int = 0
    entry_size: int = 0
    relocations: tuple[NewRelocation, ...] = ()
    address: int = 0


@dataclass(frozen=True, slots=True)
class NewSymbol:
    """A symbol; `section` is the section header index (index of the section given + 1), or SHN_UNDEF."""

    name: str
    binding: int
    type: int
    section: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class _Header:
    """A section header in the making, its name not yet an offset."""

    name: str
    type: int
    flags: int = 0
    address: int = 0
    offset: int = 0
    size: int = 0
    link: int = 0
    info: int = 0
    alignment: int = 1
    entry_size: int = 0


class StringTable:
    """A string table in the making: each string once, in order of first use; offset 0 is the empty string."""

    def __init__(self) -> None:
        self.data = bytearray(1)
        self._offsets = {b"": 0}

    def offset(self, text: str) -> int:
        """Where `text` stands in the table, which it is added to when it is new."""
        raw = text.encode("utf-8", "surrogateescape")
        found = self._offsets.get(raw)
        if found is None:
            found = self._offsets[raw] = len(self.data)
            self.data += raw + b"\0"
        return found


def symbol_numbers(symbols: Sequence[NewSymbol]) -> tuple[int, ...]:
    """For each symbol its index in the file's symbol table: local ones first, else in the order given, from 1."""
    order = sorted(range(len(symbols)), key=lambda i: symbols[i].binding != c.STB_LOCAL)
    numbers = [0] * len(symbols)
    for number, index in enumerate(order, start=1):
        numbers[index] = number
    return tuple(numbers)


def write_relocatable(machine: int, sections: Sequence[NewSection], symbols: Sequence[NewSymbol]) -> bytes:
    """The bytes of an ET_REL file for `machine` (an EM_* number) with these sections and symbols.

    Raises:
        FormatError: a number does not fit its field, a name holds a NUL, an index or an alignment makes no sense.
    """
    try:
        return _write(machine, sections, symbols)
    except (struct.error, UnicodeEncodeError) as error:
        raise FormatError(f"cannot be written as ELF: {error}") from error


def _write(machine: int, sections: Sequence[NewSection], symbols: Sequence[NewSymbol]) -> bytes:
    _validate(sections, symbols)
    numbers = symbol_numbers(symbols)
    image = bytearray(_EHDR.size)
    headers = [_Header("", c.SHT_NULL, alignment=0)]

    def place(header: _Header, data: bytes) -> None:
        size = header.size if header.type == c.SHT_NOBITS else len(data)
        image.extend(bytes(-len(image) % max(1, header.alignment)))
        headers.append(replace(header, offset=len(image), size=size))
        image.extend(data)

    for s in sections:
        flags = s.flags & ~_DROPPED_FLAGS
        place(_Header(s.name, s.type, flags, s.address, 0, s.size, 0, 0, s.alignment, s.entry_size), s.data)

    # From here on the number of every section is known, so that links can be written.
    with_relocations = [(i, s) for i, s in enumerate(sections, start=1) if s.relocations]
    symtab = 1 + len(sections) + len(with_relocations)
    extended = any(s.section >= c.SHN_LORESERVE for s in symbols)
    for i, s in with_relocations:
        raw = b"".join(_rela(r, numbers) for r in s.relocations)
        place(_Header(".rela" + s.name, c.SHT_RELA, c.SHF_INFO_LINK, 0, 0, 0, symtab, i, 8, _RELA.size), raw)

    strings = StringTable()
    entries = {numbers[i]: _symbol(s, strings) for i, s in enumerate(symbols)}
    table = bytes(_SYM.size) + b"".join(entries[n] for n in sorted(entries))
    locals_end = 1 + sum(s.binding == c.STB_LOCAL for s in symbols)
    strtab = symtab + 1 + extended
    place(_Header(".symtab", c.SHT_SYMTAB, 0, 0, 0, 0, strtab, locals_end, 8, _SYM.size), table)
    if extended:
        words = {numbers[i]: s.section if s.section >= c.SHN_LORESERVE else 0 for i, s in enumerate(symbols)}
        indices = struct.pack(f"<{len(words) + 1}I", 0, *(words[n] for n in sorted(words)))
        place(_Header(".symtab_shndx", c.SHT_SYMTAB_SHNDX, 0, 0, 0, 0, symtab, 0, 4, 4), indices)
    place(_Header(".strtab", c.SHT_STRTAB), bytes(strings.data))

    names = StringTable()
    offsets = [names.offset(h.name) for h in headers] + [names.offset(".shstrtab")]
    place(_Header(".shstrtab", c.SHT_STRTAB), bytes(names.data))
    image.extend(bytes(-len(image) % 8))
    at, count, names_index = len(image), len(headers), len(headers) - 1
    # gABI: counts and indices that do not fit the ELF header's 16 bits are kept in section header 0.
    headers[0] = replace(
        headers[0],
        size=count if count >= c.SHN_LORESERVE else 0,
        link=names_index if names_index >= c.SHN_LORESERVE else 0,
    )
    for h, name in zip(headers, offsets, strict=True):
        image += _SHDR.pack(
            name, h.type, h.flags, h.address, h.offset, h.size, h.link, h.info, h.alignment, h.entry_size
        )
    image[: _EHDR.size] = _EHDR.pack(
        _IDENT, c.ET_REL, machine, 1, 0, 0, at, 0, _EHDR.size, 0, 0, _SHDR.size,
        count if count < c.SHN_LORESERVE else 0,
        names_index if names_index < c.SHN_LORESERVE else c.SHN_XINDEX,
    )  # fmt: skip
    return bytes(image)


def _rela(r: NewRelocation, numbers: tuple[int, ...]) -> bytes:
    return _RELA.pack(r.offset, (0 if r.symbol is None else numbers[r.symbol]) << 32 | r.type, r.addend)


def _symbol(s: NewSymbol, strings: StringTable) -> bytes:
    index = s.section if s.section < c.SHN_LORESERVE else c.SHN_XINDEX
    return _SYM.pack(strings.offset(s.name), s.binding << 4 | s.type, 0, index, s.value, s.size)


def _validate(sections: Sequence[NewSection], symbols: Sequence[NewSymbol]) -> None:
    for s in sections:
        if "\0" in s.name:
            raise FormatError(f"section name {s.name!r} holds a NUL")
        if s.alignment < 0 or s.alignment & (s.alignment - 1):
            raise FormatError(f"section {s.name}: alignment {s.alignment} is no power of two")
        if s.type == c.SHT_NOBITS and (s.data or s.relocations):
            raise FormatError(f"section {s.name}: SHT_NOBITS with contents or relocations")
        for r in s.relocations:
            if not 0 <= r.type < 1 << 32 or (r.symbol is not None and not 0 <= r.symbol < len(symbols)):
                raise FormatError(f"section {s.name}: relocation of type {r.type} for symbol {r.symbol}")
    for y in symbols:
        if "\0" in y.name:
            raise FormatError(f"symbol name {y.name!r} holds a NUL")
        if not 0 <= y.section <= len(sections):
            raise FormatError(f"symbol {y.name}: section {y.section} of {len(sections)}")
        if not (0 <= y.binding < 16 and 0 <= y.type < 16):
            raise FormatError(f"symbol {y.name}: binding {y.binding}, type {y.type}")
