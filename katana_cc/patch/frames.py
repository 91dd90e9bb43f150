"""Call frame information for the functions a patch object carries: their FDEs, cut out of the objects' .eh_frame.

Each object has one .eh_frame for all its functions; only the FDEs of the carried ones come along, each CIE once, with
`CIE_pointer` fixed and the relocations of `initial_location` moved.

Source: LSB core, "Exception Frames" (10.6.1); DWARF 5, 6.4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile, Relocation, Section
from katana_cc.errors import FormatError

INITIAL_LOCATION = 8  # offset of the relocated start address in an FDE (32-bit DWARF)


@dataclass(frozen=True, slots=True)
class FrameEntry:
    """One FDE: the section and offset it describes, its bytes, its CIE's bytes, and the relocations of both beyond
    `initial_location` (a personality routine, an LSDA)."""

    section: int
    offset: int
    fde: bytes
    cie: bytes
    initial_location: Relocation
    others: tuple[Relocation, ...]


def frame_entries(elf: ElfFile) -> Iterator[FrameEntry]:
    """All FDEs of an object.

    Raises:
        FormatError: .eh_frame is damaged or uses the 64-bit DWARF format.
    """
    for section in elf.sections:
        if section.name == ".eh_frame" and section.size:
            yield from _entries_of(elf, section)


def _entries_of(elf: ElfFile, section: Section) -> Iterator[FrameEntry]:
    data = elf.contents(section)
    relocations = elf.relocations(section.number)
    cies: dict[int, tuple[bytes, tuple[Relocation, ...]]] = {}
    at = 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        if length == 0:
            at += 4
            continue
        end = at + 4 + length
        if length == 0xFFFFFFFF or end > len(data):
            raise FormatError(f".eh_frame entry at {at:#x} is damaged or 64-bit", where=elf.where)
        entry = data[at:end]
        pointer = int.from_bytes(data[at + 4 : at + 8], "little")
        inside = tuple(r._replace(offset=r.offset - at) for r in relocations if at <= r.offset < end)
        if pointer == 0:
            cies[at] = entry, inside
        else:
            cie, cie_relocations = cies[at + 4 - pointer]
            start = next((r for r in inside if r.offset == INITIAL_LOCATION), None)
            if start is not None:
                symbol = elf.symbols[start.symbol]
                others = tuple(r for r in inside if r.offset != INITIAL_LOCATION) + cie_relocations
                if symbol.section != c.SHN_UNDEF:
                    yield FrameEntry(symbol.section, symbol.value + start.addend, entry, cie, start, others)
        at = end


class FrameBuilder:
    """Puts FDEs into one .eh_frame section."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._cies: dict[bytes, int] = {}

    def add(self, entry: FrameEntry) -> int:
        """Append an FDE (and its CIE, once); returns the offset of its `initial_location` field."""
        if entry.cie not in self._cies:
            self._cies[entry.cie] = len(self.data)
            self.data += entry.cie
        start = len(self.data)
        fde = bytearray(entry.fde)
        fde[4:8] = (start + 4 - self._cies[entry.cie]).to_bytes(4, "little")
        fde[INITIAL_LOCATION : INITIAL_LOCATION + 4] = bytes(4)
        self.data += fde
        return start + INITIAL_LOCATION

    def finish(self) -> bytes:
        """The section, with the terminator that `__register_frame` wants."""
        return bytes(self.data) + bytes(4)
