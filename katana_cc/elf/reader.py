"""A reader for 64-bit little-endian ELF: headers, sections, symbols, relocations, segments, notes.

Hand-written, since recording reads every object of a link while the user waits: `struct.iter_unpack` reads the
headers, symbols and relocations of 200 objects in a seventh of a second, where pyelftools takes six seconds.  It reads
lazily, keeps no state but caches, and works on any bytes-like object (a file, a blob of the store, target memory).

Source: System V gABI, chapters 4 and 5; elf(5).
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from katana_cc.elf import constants as c
from katana_cc.errors import FormatError

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_PHDR = struct.Struct("<IIQQQQQQ")
_SYM = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")
RELA_SIZE = _RELA.size
SYMBOL_SIZE = _SYM.size
_NHDR = struct.Struct("<III")
_DYN = struct.Struct("<qQ")


class Section(NamedTuple):
    """One section header, its name resolved.  `number` is its section header index."""

    number: int
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class Segment(NamedTuple):
    """One program header."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    file_size: int
    memory_size: int
    alignment: int


class Symbol(NamedTuple):
    """One symbol, its name and section index resolved (SHN_XINDEX followed)."""

    name: str
    binding: int
    type: int
    visibility: int
    section: int
    value: int
    size: int


Header = tuple[int, int, int, int, int, int, int, int, int, int]
"""sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign, sh_entsize."""

SymbolRow = tuple[int, int, int, int, int, int]
"""st_name, st_info, st_other, st_shndx (SHN_XINDEX followed), st_value, st_size."""

Row = tuple[int, int, int]  # r_offset, r_info (symbol << 32 | type), r_addend


class Relocation(NamedTuple):
    """One RELA entry; `symbol` is an index into the symbol table."""

    offset: int
    type: int
    symbol: int
    addend: int


class Note(NamedTuple):
    """One note of a note section or segment."""

    name: str
    type: int
    description: bytes


def notes_of(data: bytes, alignment: int = 4) -> Iterator[Note]:
    """The notes in `data`, a whole note section or PT_NOTE segment.  Stops at the first malformed one."""
    align = 8 if alignment == 8 else 4
    position = 0
    while position + 12 <= len(data):
        name_size, desc_size, kind = _NHDR.unpack_from(data, position)
        name_at = position + 12
        desc_at = (name_at + name_size + align - 1) & -align
        if desc_at + desc_size > len(data):
            return
        name = data[name_at : name_at + name_size].rstrip(b"\0").decode("latin-1")
        yield Note(name, kind, bytes(data[desc_at : desc_at + desc_size]))
        position = (desc_at + desc_size + align - 1) & -align


def build_id_of(notes: Iterator[Note]) -> str | None:
    """The GNU build-id among `notes`, in hex."""
    for note in notes:
        if note.name == "GNU" and note.type == c.NT_GNU_BUILD_ID:
            return note.description.hex()
    return None


class ElfFile:
    """An ELF file in memory.

    Args:
        data: the whole file.
        where: what to call it in errors.

    Raises:
        FormatError: not ELF, not 64-bit little-endian, or a table that lies outside the file.
    """

    def __init__(self, data: bytes | memoryview, where: str = "ELF file") -> None:
        self.data = data
        self.where = where
        if len(data) < _EHDR.size or bytes(data[:4]) != b"\x7fELF":
            raise FormatError("not an ELF file", where=where)
        if data[4] != 2 or data[5] != 1:
            raise FormatError("not a 64-bit little-endian ELF file", where=where)
        (
            _ident, self.type, self.machine, _version, self.entry, self._phoff, self._shoff, self.flags,
            _ehsize, self._phentsize, self._phnum, self._shentsize, self._shnum, self._shstrndx,
        ) = _EHDR.unpack_from(data, 0)  # fmt: skip
        self._rows: dict[int, list[Row]] = {}
        self._relocations: dict[int, tuple[Relocation, ...]] = {}

    def _slice(self, offset: int, size: int, what: str) -> bytes:
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise FormatError(f"{what} lies outside the file (truncated?)", where=self.where)
        return bytes(self.data[offset : offset + size])

    @cached_property
    def headers(self) -> list[Header]:
        """All section headers as they stand in the file, index 0 included."""
        if not self._shoff:
            return []
        if self._shentsize != _SHDR.size:
            raise FormatError(f"section headers of {self._shentsize} bytes", where=self.where)
        count = self._shnum
        if not count:
            count = _SHDR.unpack(self._slice(self._shoff, _SHDR.size, "section header table"))[5]
        return list(_SHDR.iter_unpack(self._slice(self._shoff, count * _SHDR.size, "section header table")))

    @cached_property
    def section_name(self) -> Callable[[int], str]:
        """A look-up of section names by sh_name."""
        headers = self.headers
        index = headers[0][6] if self._shstrndx == c.SHN_XINDEX else self._shstrndx
        if index >= len(headers):
            raise FormatError("section name table index out of range", where=self.where)
        return _strings(self._slice(headers[index][4], headers[index][5], "section name table"))

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """All sections, index 0 included."""
        if not self.headers:
            return ()
        name = self.section_name
        # A named tuple's own constructor takes twice as long, and there are 200 sections an object.
        return tuple([tuple.__new__(Section, (i, name(h[0]), *h[1:])) for i, h in enumerate(self.headers)])

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """All program headers."""
        if not self._phnum:
            return ()
        table = self._slice(self._phoff, self._phnum * _PHDR.size, "program header table")
        return tuple(Segment(*h) for h in _PHDR.iter_unpack(table))

    def contents(self, section: Section) -> bytes:
        """The bytes of a section; empty for SHT_NOBITS.

        Raises:
            FormatError: it lies outside the file.
        """
        if section.type in (c.SHT_NOBITS, c.SHT_NULL):
            return b""
        return self._slice(section.offset, section.size, f"section {section.name}")

    def bytes_of(self, number: int) -> bytes:
        """`contents` of the section with a section header index."""
        _, kind, _, _, offset, size, _, _, _, _ = self.headers[number]
        if kind in (c.SHT_NOBITS, c.SHT_NULL):
            return b""
        return self._slice(offset, size, f"section {number}")

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((s for s in self.sections if s.name == name), None)

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """The symbols of .symtab, index 0 included; empty when stripped."""
        return self._symbols_of(c.SHT_SYMTAB)

    @cached_property
    def dynamic_symbols(self) -> tuple[Symbol, ...]:
        """The symbols of .dynsym."""
        return self._symbols_of(c.SHT_DYNSYM)

    def _symbols_of(self, kind: int) -> tuple[Symbol, ...]:
        rows, string = self.symbol_rows(kind)
        new = tuple.__new__
        return tuple(
            [
                new(Symbol, (string(name) if name else "", info >> 4, info & 15, other & 3, shndx, value, size))
                for name, info, other, shndx, value, size in rows
            ]
        )

    def symbol_rows(self, kind: int = c.SHT_SYMTAB) -> tuple[Iterable[SymbolRow], Callable[[int], str]]:
        """The symbols of .symtab, or of another table, index 0 included, as they stand in the file; and a look-up of
        their names.

        Raises:
            FormatError: the table is cut off, or has no names.
        """
        table = next((number for number, h in enumerate(self.headers) if h[1] == kind), None)
        if table is None:
            return (), str
        link = self.headers[table][6]
        if link >= len(self.headers):
            raise FormatError("symbol table without its string table", where=self.where)
        string = _strings(self.bytes_of(link))
        raw = self.bytes_of(table)
        if len(raw) % _SYM.size:
            raise FormatError("symbol table is cut off", where=self.where)
        extended: tuple[int, ...] = ()
        for number, h in enumerate(self.headers):
            if h[1] == c.SHT_SYMTAB_SHNDX and h[6] == table:
                extended = tuple(v for (v,) in struct.iter_unpack("<I", self.bytes_of(number)))
        rows: Iterable[SymbolRow] = _SYM.iter_unpack(raw)
        if extended:
            rows = [
                (name, info, other, extended[i] if shndx == c.SHN_XINDEX and i < len(extended) else shndx, value, size)
                for i, (name, info, other, shndx, value, size) in enumerate(rows)
            ]
        return rows, string

    @cached_property
    def _tables(self) -> dict[int, int]:
        """Section index → index of its SHT_RELA section."""
        result = {}
        for number, (name, kind, _, _, _, _, _, target, _, _) in enumerate(self.headers):
            if kind == c.SHT_RELA and target:
                result[target] = number
            elif kind == c.SHT_REL:
                what = f"{self.section_name(name)}: SHT_REL relocations are not supported"
                raise FormatError(what, where=self.where)
        return result

    @cached_property
    def relocation_sections(self) -> dict[int, Section]:
        """Section index → its SHT_RELA section.

        Raises:
            FormatError: SHT_REL, which no supported machine uses.
        """
        return {target: self.sections[number] for target, number in self._tables.items()}

    def relocation_rows(self, section_index: int) -> list[Row]:
        """The relocations of a section as they stand in the file: (r_offset, r_info, r_addend).

        Raises:
            FormatError: the table is cut off; SHT_REL, which no supported machine uses.
        """
        rows = self._rows.get(section_index)
        if rows is None:
            table = self._tables.get(section_index)
            raw = b"" if table is None else self.bytes_of(table)
            if len(raw) % _RELA.size:
                raise FormatError(f"the relocations of section {section_index} are cut off", where=self.where)
            rows = self._rows[section_index] = list(_RELA.iter_unpack(raw))
        return rows

    def relocations(self, section_index: int) -> tuple[Relocation, ...]:
        """The relocations that apply to a section, in file order."""
        cached = self._relocations.get(section_index)
        if cached is None:
            rows = self.relocation_rows(section_index)
            cached = tuple(Relocation(o, i & 0xFFFFFFFF, i >> 32, a) for o, i, a in rows)
            self._relocations[section_index] = cached
        return cached

    @cached_property
    def build_id(self) -> str | None:
        """The GNU build-id in hex, from note sections, else from PT_NOTE segments."""
        for s in self.sections:
            if s.type == c.SHT_NOTE and (found := build_id_of(notes_of(self.contents(s), s.alignment))):
                return found
        for p in self.segments:
            if p.type == c.PT_NOTE:
                data = self._slice(p.offset, p.file_size, "PT_NOTE segment")
                if found := build_id_of(notes_of(data, p.alignment)):
                    return found
        return None

    @cached_property
    def dynamic(self) -> tuple[tuple[int, int], ...]:
        """(tag, value) pairs of PT_DYNAMIC up to DT_NULL."""
        for p in self.segments:
            if p.type == c.PT_DYNAMIC:
                pairs = []
                data = self._slice(p.offset, p.file_size & -16, "PT_DYNAMIC segment")
                for tag, value in _DYN.iter_unpack(data):
                    if tag == c.DT_NULL:
                        break
                    pairs.append((tag, value))
                return tuple(pairs)
        return ()

    def dynamic_strings(self, tag: int) -> tuple[str, ...]:
        """The strings that the dynamic entries `tag` (DT_NEEDED, DT_SONAME) name."""
        values = dict(self.dynamic)
        base = values.get(c.DT_STRTAB)
        if base is None:
            return ()
        table = self.read(base, values.get(c.DT_STRSZ, 0))
        return tuple(_string(table, v) for t, v in self.dynamic if t == tag)

    @cached_property
    def _loads(self) -> tuple[tuple[int, int, int, int], ...]:
        """(first address, end, file offset, bytes in the file) of each PT_LOAD segment."""
        loads = (p for p in self.segments if p.type == c.PT_LOAD)
        return tuple((p.vaddr, p.vaddr + p.memory_size, p.offset, p.file_size) for p in loads)

    @cached_property
    def _held(self) -> list[tuple[int, int, int]]:
        """(first address, end, file offset less address) of what the file holds of each PT_LOAD segment, largest first.

        Raises:
            FormatError: a segment lies outside the file.
        """
        if any(offset + held > len(self.data) for _, _, offset, held in self._loads):
            raise FormatError("a segment lies outside the file (truncated?)", where=self.where)
        found = [(start, start + held, offset - start) for start, _, offset, held in self._loads]
        return sorted(found, key=lambda part: part[0] - part[1])

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at a link-time address, zero-filled past the file's part of a segment (.bss).

        Raises:
            FormatError: no PT_LOAD segment holds the address range.
        """
        for start, end, offset, held in self._loads:
            if start <= address and address + size <= end:
                at = address - start
                stored = size if at + size <= held else max(0, held - at)
                data = self._slice(offset + at, stored, "segment") if stored else b""
                return data if stored == size else data + bytes(size - stored)
        raise FormatError(f"no segment holds {size} bytes at {address:#x}", where=self.where)

    def holds(self, address: int, data: bytes) -> bool:
        """Whether `data` lies at a link-time address: `read`, and a comparison, without a copy of what is there.

        Raises:
            FormatError: no PT_LOAD segment holds the address range.
        """
        end = address + len(data)
        for start, stop, bias in self._held:
            if start <= address and end <= stop:
                return self.data[address + bias : end + bias] == data
        return self.read(address, len(data)) == data


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    return table[offset : end if end >= 0 else len(table)].decode("utf-8", "surrogateescape")


def _strings(table: bytes) -> Callable[[int], str]:
    """A look-up of strings by offset that decodes a table once, where that is the same (ASCII)."""
    if not table.isascii():
        return lambda offset: _string(table, offset)
    text = table.decode("ascii")
    if not text.endswith("\0"):
        text += "\0"
    end = text.find
    return lambda offset: text[offset : end("\0", offset)]
