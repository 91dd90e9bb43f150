"""Line programs: rows of (offset, file, line, statement) as the bytes of .debug_line, DWARF 5.

A line program is code for a small machine whose registers are address, file, line and is_stmt; `DW_LNS_copy` emits a
row, and a special opcode moves address and line a little and emits one, in a single byte.  With the parameters below
(those of gcc and clang) nearly every row of ordinary code takes one byte or four.

`Buffer` is what DWARF sections are built in: bytes, and which of them are addresses that need a relocation.

Source: DWARF 5, section 6.2 (line programs), 7.6 (LEB128), 7.4 (lengths).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.leb128 import sleb_bytes, uleb_bytes
from katana_cc.dwarf.lines import Row
from katana_cc.errors import InvalidPatchError

VERSION: Final = 5
ADDRESS_SIZE: Final = 8
_LINE_BASE: Final = -5
_LINE_RANGE: Final = 14  # a special opcode moves the line by -5 to 8
_STANDARD_LENGTHS: Final = bytes((0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1))  # operands of the opcodes 1 to 12 (6.2.5.2)
_OPCODE_BASE: Final = len(_STANDARD_LENGTHS) + 1


def string(text: str) -> bytes:
    """`text` for DW_FORM_string.

    Raises:
        InvalidPatchError: it holds a NUL.
    """
    if "\0" in text:
        raise InvalidPatchError(f"a name with a NUL in debug information: {text!r}")
    return text.encode("utf-8", "surrogateescape") + b"\0"


@dataclass(slots=True)
class Buffer:
    """A DWARF section in the making.  `fields` are (offset, width, section, addend): what a relocation fills in."""

    data: bytearray = field(default_factory=bytearray)
    fields: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add(self, *parts: bytes) -> None:
        """Appends bytes."""
        for part in parts:
            self.data += part

    def refer(self, width: int, section: int, offset: int) -> None:
        """Appends the address of `offset` in a section, `width` bytes wide."""
        self.fields.append((len(self.data), width, section, offset))
        self.data += bytes(width)

    def append(self, other: Buffer) -> None:
        """Appends another buffer."""
        at = len(self.data)
        self.fields += [(at + offset, width, section, addend) for offset, width, section, addend in other.fields]
        self.data += other.data

    def with_length(self) -> Buffer:
        """The same behind its length, in the 32-bit format."""
        result = Buffer(bytearray(struct.pack("<I", len(self.data))))
        result.append(self)
        return result


@dataclass(frozen=True, slots=True)
class LineSequence:
    """The rows of one stretch of code, rising by offset, which ends at the offset `end` of the section."""

    section: int
    end: int
    rows: tuple[Row, ...]


def line_section(sequences: Iterable[LineSequence], files: Mapping[str, int], directory: str) -> Buffer:
    """The whole of .debug_line: one program.  `files` numbers the files from 0, in order."""
    tables = Buffer()
    tables.add(bytes((1, 1, 1, _LINE_BASE & 0xFF, _LINE_RANGE, _OPCODE_BASE)), _STANDARD_LENGTHS)
    tables.add(b"\x01", uleb_bytes(d.DW_LNCT_path), uleb_bytes(d.DW_FORM_string), uleb_bytes(1), string(directory))
    tables.add(b"\x02", uleb_bytes(d.DW_LNCT_path), uleb_bytes(d.DW_FORM_string))
    tables.add(uleb_bytes(d.DW_LNCT_directory_index), uleb_bytes(d.DW_FORM_udata), uleb_bytes(len(files)))
    for name in files:
        tables.add(string(name), uleb_bytes(0))
    whole = Buffer()
    whole.add(struct.pack("<HBB", VERSION, ADDRESS_SIZE, 0))
    whole.append(tables.with_length())  # header_length counts what follows it up to the program
    for sequence in sequences:
        _sequence(whole, sequence, files)
    return whole.with_length()


def _sequence(out: Buffer, sequence: LineSequence, files: Mapping[str, int]) -> None:
    if not sequence.rows:
        return
    address, file, line, statement = sequence.rows[0].offset, 1, 1, True  # what the machine starts with
    out.add(b"\0", uleb_bytes(1 + ADDRESS_SIZE), bytes((d.DW_LNE_set_address,)))
    out.refer(ADDRESS_SIZE, sequence.section, address)
    for row in sequence.rows:
        if files[row.file] != file:
            file = files[row.file]
            out.add(bytes((d.DW_LNS_set_file,)), uleb_bytes(file))
        if row.statement != statement:
            statement = row.statement
            out.add(bytes((d.DW_LNS_negate_stmt,)))
        out.add(_step(row.offset - address, row.line - line))
        address, line = row.offset, row.line
    if sequence.end > address:
        out.add(bytes((d.DW_LNS_advance_pc,)), uleb_bytes(sequence.end - address))
    out.add(b"\0", uleb_bytes(1), bytes((d.DW_LNE_end_sequence,)))


def _step(addresses: int, lines: int) -> bytes:
    """The opcodes that move by so much and emit a row: a special opcode where it reaches."""
    if _LINE_BASE <= lines < _LINE_BASE + _LINE_RANGE:
        opcode = lines - _LINE_BASE + _LINE_RANGE * addresses + _OPCODE_BASE
        if opcode <= 255:
            return bytes((opcode,))
    moved = bytes((d.DW_LNS_advance_line,)) + sleb_bytes(lines) if lines else b""
    if addresses:
        moved += bytes((d.DW_LNS_advance_pc,)) + uleb_bytes(addresses)
    return moved + bytes((d.DW_LNS_copy,))
