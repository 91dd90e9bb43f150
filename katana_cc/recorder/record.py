"""The record of one object file: its allocated sections with witnesses, and its symbols.

Theory of operation.  What every link of an object needs of it is found once: which sections it has, what it defines,
and how to recognise each section in an output.  The *witness* is the longest
run (at most 16 bytes) that no relocation touches: the recorder checks it in the final file, to know that the placement
the link map promised is true, without parsing unchanged objects again.  Its *fields* are those bytes of it that tell an
address; the store predicts later images by them (`snapshot/images.py`).

A record is kept packed, as rows of one layout beside the names they belong to: a link asks hundreds of unchanged
objects for their sections by name, and hardly one for its symbols.

A record depends on the object's bytes only and is kept in the store by the object's hash.  What a diff alone asks for
(canonical keys, references, types) is read from the object when it is asked for.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from struct import Struct
from typing import Final, NamedTuple, Self

from katana_cc.cpu.choice import SUPPORTED, of, unsupported
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile, Row, Section, Symbol
from katana_cc.errors import FormatError

WITNESS_SIZE: Final = 16


class SectionRecord(NamedTuple):
    """One allocated section: its name, then what a row holds of it."""

    name: str
    number: int
    type: int
    flags: int
    size: int
    witness_offset: int
    witness: bytes


SectionRow = tuple[int, int, int, int, int, bytes]  # a SectionRecord without its name

_HEADER: Final = Struct("<6Q")  # sizes of the parts, in bytes
_SECTION: Final = Struct(f"<IIQQQ{WITNESS_SIZE + 1}p")
_SYMBOL: Final = Struct("<BBBIQQ")


class ObjectRecord:
    """What is kept of an object: `file` is its STT_FILE symbol, `problem` why it was not read whole, if so."""

    def __init__(
        self, file: str, sections: Iterable[SectionRecord], symbols: Iterable[Symbol], problem: str = ""
    ) -> None:
        self.file = file
        self.problem = problem
        self.sections = tuple(sections)
        self.symbols = tuple(symbols)
        self.section_names = [s[0] for s in self.sections]
        self.section_rows = b"".join([_SECTION.pack(*s[1:]) for s in self.sections])
        self.symbol_names = [s[0] for s in self.symbols]
        self.symbol_rows = b"".join([_SYMBOL.pack(*s[1:]) for s in self.symbols])
        self.common_names = [s.name for s in self.symbols if s.section == c.SHN_COMMON]
        self.field_rows = b""

    @classmethod
    def packed(
        cls,
        file: str,
        problem: str,
        section_names: list[str],
        section_rows: bytes,
        symbol_names: list[str],
        symbol_rows: bytes,
        common_names: list[str],
        field_rows: bytes,
    ) -> Self:
        """A record of the parts that `to_bytes` writes."""
        made = cls.__new__(cls)
        made.file = file
        made.problem = problem
        made.section_names = section_names
        made.section_rows = section_rows
        made.symbol_names = symbol_names
        made.symbol_rows = symbol_rows
        made.common_names = common_names
        made.field_rows = field_rows
        return made

    @cached_property
    def sections(self) -> tuple[SectionRecord, ...]:
        """All its sections."""
        pairs = zip(self.section_names, _SECTION.iter_unpack(self.section_rows), strict=True)
        return tuple([tuple.__new__(SectionRecord, (name, *row)) for name, row in pairs])

    def fields(self) -> Iterator[tuple[int, int, Sequence[int]]]:
        """Section number, how its fields tell an address (`cpu/extent`), and their offsets in it."""
        numbers = array("I", self.field_rows)
        at = 0
        while at < len(numbers):
            end = at + 3 + numbers[at + 2]
            yield numbers[at], numbers[at + 1], numbers[at + 3 : end]
            at = end

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """What it defines."""
        pairs = zip(self.symbol_names, _SYMBOL.iter_unpack(self.symbol_rows), strict=True)
        return tuple([tuple.__new__(Symbol, (name, *row)) for name, row in pairs])

    def rows_by_name(self) -> dict[str, SectionRow] | None:
        """Name → the rest of a section; None when two share a name."""
        rows = dict(zip(self.section_names, _SECTION.iter_unpack(self.section_rows), strict=True))
        return rows if len(rows) == len(self.section_names) else None


@cache
def _numbered() -> re.Pattern[str]:
    return re.compile(r"\.\d+(?=$|\.)")


def stem(name: str) -> str:
    """A symbol's name without the numbers compilers add to tell locals apart.

    `counter.0` → `counter`; `parse.constprop.0` → `parse.constprop`; `parse.isra.0.cold` → `parse.isra.cold`.
    """
    return _numbered().sub("", name) if "." in name else name


def make_record(elf: ElfFile) -> ObjectRecord:
    """Read one relocatable object.

    Raises:
        FormatError: it is not ET_REL for a supported machine, or damaged.
    """
    if elf.type != c.ET_REL:
        raise FormatError("not a relocatable object", where=elf.where)
    if elf.machine not in SUPPORTED:
        raise FormatError(unsupported(elf.machine), where=elf.where)
    extents = of(elf.machine).relocations.EXTENTS
    addresses = of(elf.machine).relocations.ADDRESSES
    known = frozenset(extents)
    problem = ""
    names: list[str] = []
    rows: list[bytes] = []
    fields = array("I")
    kept = {c.SHN_COMMON}
    has_code = False
    # Of the headers and symbols of an object a third is kept, and nothing is made of the others.
    for number, (at, kind, flags, _, _, size, _, _, _, _) in enumerate(elf.headers):
        if not flags & c.SHF_ALLOC or not size:
            continue
        name = elf.section_name(at)
        relocations = elf.relocation_rows(number)
        if relocations and (unknown := {info & 0xFFFFFFFF for _, info, _ in relocations} - known):
            problem = f"relocation type {min(unknown)} in {name} is not known"
            continue
        # .eh_frame and merged sections are edited by the linker: they have no place of their own to be confirmed.
        edited = name == ".eh_frame" or flags & c.SHF_MERGE
        offset, witness = (0, b"") if edited else _witness(elf.bytes_of(number), relocations, extents)
        names.append(name)
        rows.append(_SECTION.pack(number, kind, flags, size, offset, witness))
        kept.add(number)
        if relocations and not edited:
            _add_fields(fields, number, relocations, addresses)
        if flags & c.SHF_EXECINSTR:
            has_code = True
    if not has_code and any(elf.section_name(h[0]).startswith((".gnu.lto_", ".gnu.debuglto_")) for h in elf.headers):
        problem = "it holds link-time-optimisation bytecode and no machine code; build without -flto"
    file = None
    symbol_names: list[str] = []
    symbol_rows: list[bytes] = []
    common_names: list[str] = []
    entries, string = elf.symbol_rows()
    for at, info, other, section, value, size in entries:
        kind = info & 15
        if kind == c.STT_FILE and file is None:
            file = string(at)
        if section in kept and kind != c.STT_SECTION and at and (name := string(at)):
            symbol_names.append(name)
            symbol_rows.append(_SYMBOL.pack(info >> 4, kind, other & 3, section, value, size))
            if section == c.SHN_COMMON:
                common_names.append(name)
    return ObjectRecord.packed(
        file or "", problem, names, b"".join(rows), symbol_names, b"".join(symbol_rows), common_names, fields.tobytes()
    )


def _add_fields(fields: "array[int]", number: int, rows: Sequence[Row], addresses: Mapping[int, int]) -> None:
    """For each way to tell an address: the section, the way, how many fields, their offsets."""
    found: dict[int, list[int]] = {}
    for offset, info, _ in rows:
        way = addresses.get(info & 0xFFFFFFFF)
        if way is not None:
            found.setdefault(way, []).append(offset)
    for way, offsets in found.items():
        fields.extend((number, way, len(offsets)))
        fields.extend(offsets)


def _witness(data: bytes, rows: Sequence[Row], extents: Mapping[int, tuple[int, int]]) -> tuple[int, bytes]:
    if not rows:
        return 0, data[:WITNESS_SIZE]
    best_at, best = 0, 0
    position = 0
    for offset, info, _ in sorted(rows):
        before, after = extents[info & 0xFFFFFFFF]
        run = offset - before - position
        if run > best:
            best_at, best = position, run
            if best >= WITNESS_SIZE:
                return best_at, data[best_at : best_at + WITNESS_SIZE]
        position = max(position, offset + after)
    if len(data) - position > best:
        best_at, best = position, len(data) - position
    return best_at, data[best_at : best_at + min(best, WITNESS_SIZE)]


def literal_at(data: bytes, section: Section, offset: int) -> bytes:
    """The literal at `offset` of an SHF_MERGE section that holds `data`: up to its terminator, or else one entry."""
    width = max(section.entry_size, 1)
    if not section.flags & c.SHF_STRINGS:
        return data[offset : offset + width]
    if width == 1:
        end = data.find(b"\0", offset)
        return data[offset : end + 1 if end >= 0 else len(data)]
    end = offset
    while end < len(data) and data[end : end + width] != bytes(width):
        end += width
    return data[offset : end + width]


def to_bytes(record: ObjectRecord) -> bytes:
    """A record as the store keeps it: the sizes of six parts, and the parts.

    They are: names of sections, rows of sections, `file` with `problem` and the names of symbols, rows of symbols,
    names of common symbols, fields.  A NUL stands between names.
    """
    sections, symbols, commons = [
        "\0".join(names).encode("utf-8", "surrogateescape")
        for names in (
            record.section_names, [record.file, record.problem, *record.symbol_names], record.common_names
        )
    ]  # fmt: skip
    parts = (sections, record.section_rows, symbols, record.symbol_rows, commons, record.field_rows)
    return b"".join((_HEADER.pack(*map(len, parts)), *parts))


def from_bytes(data: bytes) -> ObjectRecord:
    """The inverse of `to_bytes`.

    Raises:
        ValueError, struct.error: not written by `to_bytes`.
    """
    parts = []
    at = _HEADER.size
    for size in _HEADER.unpack_from(data):
        parts.append(data[at : at + size])
        at += size
    if at != len(data):
        raise ValueError("a record is cut off")
    sections, section_rows, symbols, symbol_rows, commons, field_rows = parts
    file, problem, *symbol_names = _names(symbols)
    section_names = _names(sections) if section_rows else []
    common_names = _names(commons) if commons else []
    return ObjectRecord.packed(
        file, problem, section_names, section_rows, symbol_names, symbol_rows, common_names, field_rows
    )


def _names(text: bytes) -> list[str]:
    return text.decode("utf-8", "surrogateescape").split("\0")
