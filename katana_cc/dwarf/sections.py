"""The debug sections of a relocatable object, decompressed and relocated.

In an ET_REL file every cross-section value in DWARF is a relocation: string offsets, abbreviation offsets, and the
addresses of functions and variables, where all sections still start at address 0.  So two things come out of one pass
over each relocation table: offsets into other debug sections are written into the bytes, as the linker would; and
addresses go into a side table, field position → (symbol, addend), since "offset 0" says nothing without its section.

An object may hold many `.debug_info` sections (DWARF 5 type units, each in its COMDAT group), `.debug_types` sections
(DWARF 4), and one `.debug_addr`.  They are laid end to end in one buffer, the *space*, so that one integer names any
DIE or address field of the object.

Source: DWARF 5, section 7.3 to 7.5 and 7.27; gABI chapter 4 for SHF_COMPRESSED; x86-64 psABI, AArch64 ELF ABI.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple

from katana_cc.cpu.choice import of
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile, Section
from katana_cc.errors import FormatError

_RELA: Final = struct.Struct("<QQq")
_CHDR: Final = struct.Struct("<IIQQ")
_ELFCOMPRESS_ZLIB: Final = 1
_ELFCOMPRESS_ZSTD: Final = 2
_WIDTHS: Final = {4: struct.Struct("<I"), 8: struct.Struct("<Q")}

Decompressor = Callable[[bytes, int], bytes]
"""Takes compressed bytes and the size they must expand to; returns the expanded bytes."""


class ProblemKind(StrEnum):
    """Why an object's DWARF cannot be used."""

    ABSENT = "absent"
    SPLIT = "split"
    COMPRESSED = "compressed"
    VERSION = "version"
    LINES_ONLY = "lines-only"


@dataclass(frozen=True, slots=True)
class DwarfProblem:
    """A thing a verdict should mention: the object is fine, but its debug information cannot be used.

    A value and not an exception, since what follows is a decision of the diff: without types it must refuse data
    changes, yet may still carry code.
    """

    kind: ProblemKind
    where: str
    text: str
    remedy: str


class Place(NamedTuple):
    """Where a relocated address points: section header index and offset in it.

    `section` is SHN_UNDEF or SHN_COMMON for symbols that are defined elsewhere or nowhere yet; then `symbol` tells them
    apart.  `symbol` is "" when the relocation is against a section.
    """

    section: int
    offset: int
    symbol: str


class AddressFields:
    """The address fields of a buffer, by position: the side table."""

    def __init__(self, elf: ElfFile, found: dict[int, tuple[int, int]]) -> None:
        self._elf = elf
        self._found = found  # position → (symbol index, addend)

    def alike(self, other: AddressFields) -> bool:
        """Whether the same fields lead to the same, in two objects with equal symbol tables."""
        return self._found == other._found

    def positions(self) -> Iterator[int]:
        """Where address fields are."""
        return iter(self._found)

    def get(self, position: int) -> Place | None:
        """Where the field at `position` points; None when no relocation is there: a discarded or absolute address."""
        found = self._found.get(position)
        if found is None:
            return None
        symbol = self._elf.symbols[found[0]]
        name = "" if symbol.type == c.STT_SECTION else symbol.name
        value = 0 if symbol.section == c.SHN_COMMON else symbol.value  # there it is an alignment
        return Place(symbol.section, value + found[1], name)


class Area(NamedTuple):
    """Where one section lies in the space: [start, end), and whether it is a `.debug_types`."""

    section: int
    start: int
    end: int
    types: bool


class UnusableDebugSection(Exception):
    """Carries a DwarfProblem from depth to `DebugSections.open`."""

    def __init__(self, problem: DwarfProblem) -> None:
        super().__init__(problem.text)
        self.problem = problem


class DebugSections:
    """Debug sections of one ET_REL file; each is read when first asked for.

    Args:
        elf: the object.
        zstd: expands zstd-compressed sections; without it they are a problem of kind COMPRESSED.

    Raises:
        UnusableDebugSection: no `.debug_info`, or one that cannot be decompressed.
        FormatError: damaged sections or relocations of an unknown kind.
    """

    def __init__(self, elf: ElfFile, zstd: Decompressor | None = None) -> None:
        if elf.type != c.ET_REL:
            raise FormatError("debug sections are read from relocatable objects only", where=elf.where)
        self.elf = elf
        self.where = elf.where
        self._zstd = zstd
        self._widths = of(elf.machine).relocations.TABLE_WIDTHS
        holders = [s for s in elf.sections if s.name in (".debug_info", ".debug_types") and s.type != c.SHT_NOBITS]
        if not holders:
            raise UnusableDebugSection(self._absent())
        chunks = []
        areas = []
        position = 0
        tail = [s for s in elf.sections if s.name == ".debug_addr"]
        for section in (*holders, *tail):
            data = self._expand(section)
            areas.append(Area(section.number, position, position + len(data), section.name == ".debug_types"))
            chunks.append(data)
            position += len(data)
        self.areas: tuple[Area, ...] = tuple(areas[: len(holders)])
        self.addr_start = areas[-1].start if tail else 0
        self.addr_end = areas[-1].end if tail else 0
        # Where ref_addr relocations lead: a section's place in the space.
        self._bases = {a.section: a.start for a in areas}
        space = bytearray().join(chunks)
        addresses: dict[int, tuple[int, int]] = {}
        for area in areas:
            self._relocate(area.section, space, area.start, addresses)
        self.space = bytes(space)
        self.addresses = AddressFields(elf, addresses)

    def _absent(self) -> DwarfProblem:
        if any(s.name.startswith(".gnu.debuglto_") for s in self.elf.sections):
            return DwarfProblem(
                ProblemKind.ABSENT, self.where, "the object holds link-time-optimisation bytecode, no machine code",
                "build without -flto",
            )  # fmt: skip
        return DwarfProblem(ProblemKind.ABSENT, self.where, "the object has no debug information", "compile it with -g")

    def _expand(self, section: Section) -> bytes:
        data = self.elf.contents(section)
        if not section.flags & c.SHF_COMPRESSED:
            return data
        if len(data) < _CHDR.size:
            raise FormatError(f"{section.name}: compression header is cut off", where=self.where)
        kind, _reserved, size, _alignment = _CHDR.unpack_from(data)
        body = data[_CHDR.size :]
        try:
            if kind == _ELFCOMPRESS_ZLIB:
                engine = zlib.decompressobj()
                result = engine.decompress(body, size)
            elif kind == _ELFCOMPRESS_ZSTD and self._zstd is not None:
                result = self._zstd(body, size)
            else:
                name = "zstd" if kind == _ELFCOMPRESS_ZSTD else f"method {kind}"
                raise UnusableDebugSection(
                    DwarfProblem(
                        ProblemKind.COMPRESSED, self.where, f"{section.name} is compressed with {name}",
                        "compile with -gz=none",
                    )
                )  # fmt: skip
        except zlib.error as error:
            raise FormatError(f"{section.name} does not decompress: {error}", where=self.where) from error
        if len(result) != size:
            raise FormatError(f"{section.name} expands to {len(result)} bytes, not {size}", where=self.where)
        return result

    def _relocate(self, number: int, data: bytearray, start: int, addresses: dict[int, tuple[int, int]]) -> None:
        """Write debug offsets into `data`; note addresses by their position."""
        table = self.elf.relocation_sections.get(number)
        if table is None:
            return
        raw = self._expand(table)
        if len(raw) % _RELA.size:
            raise FormatError(f"{table.name} is cut off", where=self.where)
        end = len(data)
        # r_info → (how to write, value of the symbol), or None for an address: a few hundred distinct ones.
        plans: dict[int, tuple[Callable[[bytearray, int, int], None], int] | None] = {}
        for offset, info, addend in _RELA.iter_unpack(raw):
            if info not in plans:
                plans[info] = self._plan(info, table.name)
            plan = plans[info]
            offset += start
            if offset + 4 > end:
                raise FormatError(f"{table.name}: offset outside its section", where=self.where)
            if plan is None:
                if info & 0xFFFFFFFF:
                    addresses[offset] = (info >> 32, addend)
            else:
                write, value = plan
                try:
                    write(data, offset, value + addend)
                except struct.error as error:
                    raise FormatError(f"{table.name}: a value out of range", where=self.where) from error

    def _plan(self, info: int, table: str) -> tuple[Callable[[bytearray, int, int], None], int] | None:
        kind, index = info & 0xFFFFFFFF, info >> 32
        if kind == 0:
            return None
        width = self._widths.get(kind)
        if width is None:
            raise FormatError(f"{table}: relocation type {kind} is not known there", where=self.where)
        symbols, sections = self.elf.symbols, self.elf.sections
        if index >= len(symbols):
            raise FormatError(f"{table}: symbol index out of range", where=self.where)
        symbol = symbols[index]
        defined = 0 < symbol.section < len(sections)
        if not defined or sections[symbol.section].flags & c.SHF_ALLOC:
            return None
        return _WIDTHS[width].pack_into, symbol.value + self._bases.get(symbol.section, 0)

    @cached_property
    def abbrev(self) -> bytes:
        """`.debug_abbrev`."""
        return self._named(".debug_abbrev")[0]

    @cached_property
    def strings(self) -> bytes:
        """`.debug_str`."""
        return self._named(".debug_str")[0]

    @cached_property
    def line_strings(self) -> bytes:
        """`.debug_line_str`."""
        return self._named(".debug_line_str")[0]

    @cached_property
    def str_offsets(self) -> bytes:
        """`.debug_str_offsets`."""
        return self._named(".debug_str_offsets")[0]

    @cached_property
    def line(self) -> tuple[bytes, AddressFields]:
        """`.debug_line`, and what its address fields point at."""
        return self._named(".debug_line")

    @cached_property
    def ranges(self) -> tuple[bytes, AddressFields]:
        """`.debug_ranges` (DWARF 4)."""
        return self._named(".debug_ranges")

    @cached_property
    def rnglists(self) -> tuple[bytes, AddressFields]:
        """`.debug_rnglists` (DWARF 5)."""
        return self._named(".debug_rnglists")

    @cached_property
    def loc(self) -> tuple[bytes, AddressFields]:
        """`.debug_loc` (DWARF 4)."""
        return self._named(".debug_loc")

    @cached_property
    def loclists(self) -> tuple[bytes, AddressFields]:
        """`.debug_loclists` (DWARF 5)."""
        return self._named(".debug_loclists")

    def _named(self, name: str) -> tuple[bytes, AddressFields]:
        section = self.elf.section(name)
        if section is None:
            return b"", AddressFields(self.elf, {})
        data = bytearray(self._expand(section))
        addresses: dict[int, tuple[int, int]] = {}
        self._relocate(section.number, data, 0, addresses)
        return bytes(data), AddressFields(self.elf, addresses)
