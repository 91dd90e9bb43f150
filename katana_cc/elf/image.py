"""A writer for the head of an ELF image in memory: what makes tools see a mapping as a shared object.

The mapping has segments of its own (code, constants, variables), whose contents are somebody else's.  In front of them
come the pages written here, so that the file offset of every byte is its distance from the start of the mapping, and
its link-time address too:

    0     ELF header, program headers, build-id note      must be in the first page: readers look there only
          .eh_frame_hdr, .symtab .strtab .shstrtab, debug sections
          section headers
    head  the segments, as they are

Everything is inside the first PT_LOAD, also what nothing loads: who has the memory of the process only (a debugger, the
kernel, a core file) has the whole file.

The size of the head follows from what is in it, and addresses in it follow from its size.  No field's width depends on
its value, so it is written twice: once to learn the size, once with it.

Sources: System V gABI, chapters 4 and 5; elf(5); LSB core 4.1, 10.6.2 (.eh_frame_hdr).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from katana_cc.elf import constants as c
from katana_cc.elf.writer import StringTable

PAGE: Final = 4096
_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_SHDR: Final = struct.Struct("<IIQQQQIIQQ")
_SYM: Final = struct.Struct("<IBBHQQ")
_IDENT: Final = b"\x7fELF\x02\x01\x01" + bytes(9)
_FRAMES: Final = struct.Struct(
    "<4BiI"
)  # version, encodings: 4 bytes relative to the field, count, relative to the section
FRAME_TABLE_AT: Final = _FRAMES.size  # in .eh_frame_hdr; 8 bytes an FDE
_NOTE: Final = struct.Struct("<III4s16s")  # its name is "GNU", its contents 16 bytes of digest


@dataclass(frozen=True, slots=True)
class ImageSegment:
    """A program header for [offset, offset + size), counted from the end of the head; `flags` are PF_*.  The head is
    added to the first PT_LOAD, which must start at 0."""

    type: int
    flags: int
    offset: int
    size: int
    alignment: int = PAGE


@dataclass(frozen=True, slots=True)
class ImageSection:
    """A section header for [offset, offset + size), counted from the end of the head."""

    name: str
    type: int
    flags: int
    offset: int
    size: int
    alignment: int = 8


@dataclass(frozen=True, slots=True)
class ImageSymbol:
    """A symbol `offset` bytes behind the end of the head, in `section`, an index into the sections given."""

    name: str
    type: int
    section: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Of call frame information `eh_frame` bytes behind the end of the head: (first address of code, FDE) of each FDE,
    counted likewise."""

    eh_frame: int
    entries: tuple[tuple[int, int], ...]


HeadSections = Callable[[int], Sequence[tuple[str, bytes]]]
"""From the size of the head to (name, contents) of the sections in it that are not loaded: always the same lengths."""


def write_head(
    machine: int,
    segments: Sequence[ImageSegment],
    sections: Sequence[ImageSection],
    symbols: Sequence[ImageSymbol],
    unloaded: HeadSections,
    frames: FrameIndex | None = None,
) -> bytes:
    """The head, whole pages.  Its build-id is a digest of its contents.

    Args:
        machine: an EM_* number.
        segments, sections, symbols: what lies behind the head.
        unloaded: debug sections.
        frames: what .eh_frame_hdr lists.
    """

    def assemble(size: int, digest: bytes) -> bytes:
        return _assemble(machine, segments, sections, symbols, unloaded(size), frames, size, digest)

    size = len(assemble(0, bytes(16)))
    return assemble(size, hashlib.sha256(assemble(size, bytes(16))).digest()[:16])


def _assemble(
    machine: int,
    segments: Sequence[ImageSegment],
    sections: Sequence[ImageSection],
    symbols: Sequence[ImageSymbol],
    unloaded: Sequence[tuple[str, bytes]],
    frames: FrameIndex | None,
    head: int,
    digest: bytes,
) -> bytes:
    strings, names = StringTable(), StringTable()
    note_at = _EHDR.size + _PHDR.size * (len(segments) + 1 + (frames is not None))
    image = bytearray(note_at) + _NOTE.pack(4, 16, c.NT_GNU_BUILD_ID, b"GNU\0", digest)
    headers = [bytes(_SHDR.size)]
    programs = [_PHDR.pack(c.PT_NOTE, c.PF_R, note_at, note_at, note_at, _NOTE.size, _NOTE.size, 4)]

    def header(
        name: str, kind: int, flags: int, address: int, offset: int, size: int, *, alignment: int = 1,
        link: int = 0, info: int = 0, entry_size: int = 0,
    ) -> None:  # fmt: skip
        place = address, offset, size, link, info, alignment, entry_size
        headers.append(_SHDR.pack(names.offset(name), kind, flags, *place))

    def add(name: str, kind: int, data: bytes, **rest: int) -> None:
        image.extend(bytes(-len(image) % 8))
        header(name, kind, 0, 0, len(image), len(data), **rest)
        image.extend(data)

    header(".note.gnu.build-id", c.SHT_NOTE, c.SHF_ALLOC, note_at, note_at, _NOTE.size, alignment=4)
    if frames is not None:
        at = len(image)
        index = _frame_index(frames, head, at)
        header(".eh_frame_hdr", c.SHT_PROGBITS, c.SHF_ALLOC, at, at, len(index), alignment=4)
        programs.append(_PHDR.pack(c.PT_GNU_EH_FRAME, c.PF_R, at, at, at, len(index), len(index), 4))
        image.extend(index)
    first = len(headers)
    for s in sections:
        at = head + s.offset
        header(s.name, s.type, s.flags, at, at, s.size, alignment=s.alignment)
    entries = [bytes(_SYM.size)]
    for y in symbols:
        kind = c.STB_LOCAL << 4 | y.type
        entries.append(_SYM.pack(strings.offset(y.name), kind, 0, first + y.section, head + y.offset, y.size))
    symtab = b"".join(entries)
    add(".symtab", c.SHT_SYMTAB, symtab, alignment=8, link=len(headers) + 1, info=len(entries), entry_size=_SYM.size)
    add(".strtab", c.SHT_STRTAB, bytes(strings.data))
    for name, data in unloaded:
        add(name, c.SHT_PROGBITS, data)
    names.offset(".shstrtab")
    add(".shstrtab", c.SHT_STRTAB, bytes(names.data))
    # From here on nothing is added but the headers.
    image.extend(bytes(-len(image) % 8))
    headers_at = len(image)
    image += b"".join(headers)
    image.extend(bytes(-len(image) % PAGE))
    has_head = False
    for p in segments:
        start, size = head + p.offset, p.size
        if p.type == c.PT_LOAD and not has_head:
            start, size, has_head = 0, head + p.offset + p.size, True
        programs.append(_PHDR.pack(p.type, p.flags, start, start, start, size, size, p.alignment))
    image[: _EHDR.size] = _EHDR.pack(
        _IDENT, c.ET_DYN, machine, 1, 0, _EHDR.size, headers_at, 0, _EHDR.size, _PHDR.size, len(programs), _SHDR.size,
        len(headers), len(headers) - 1,
    )  # fmt: skip
    image[_EHDR.size : note_at] = b"".join(programs)
    return bytes(image)


def _frame_index(frames: FrameIndex, head: int, address: int) -> bytes:
    """The contents of .eh_frame_hdr at `address`: sorted, for a search by halves."""
    table = sorted((head + pc - address, head + fde - address) for pc, fde in frames.entries)
    # Encodings: four bytes relative to the field; an unsigned number; four bytes relative to the section.
    start = _FRAMES.pack(1, 0x1B, 0x03, 0x3B, head + frames.eh_frame - (address + 4), len(table))
    return start + b"".join(struct.pack("<ii", *entry) for entry in table)
