"""Where the call-frame information of a process is: one table a module, one a patch."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Sequence

from katana_cc.cpu.native import system
from katana_cc.dwarf.frames import Fde, HeaderTable, SectionTable, records
from katana_cc.dwarf.unwind import Unwinder
from katana_cc.elf import constants as c
from katana_cc.errors import KatanaError
from katana_cc.process.ledger import Ledger
from katana_cc.process.memory import Reader
from katana_cc.process.modules import Module

_MAX_SEARCH = 1 << 28
_CIE_START = b"\0\0\0\0\x01z"  # CIE id 0, version 1, an augmentation with data; its length stands before


class FrameTables:
    """Finds the FDE of any pc in a process; a module's table is read when it is first needed."""

    def __init__(self, memory: Reader, modules: Sequence[Module], ledgers: Sequence[Ledger]) -> None:
        self._memory = memory
        self._areas: list[tuple[int, int, Module | Ledger]] = sorted(
            [(m.start, m.end, m) for m in modules] + [(g.base, g.base + g.size, g) for g in ledgers],
            key=lambda area: area[0],
        )
        self._starts = [start for start, _, _ in self._areas]
        self._tables: dict[int, HeaderTable | SectionTable | None] = {}

    def find(self, pc: int) -> Fde | None:
        """The FDE that covers `pc`; None when the code has no call-frame information."""
        i = bisect_right(self._starts, pc) - 1
        if i < 0 or pc >= self._areas[i][1]:
            return None
        if i not in self._tables:
            self._tables[i] = self._load(self._areas[i][2])
        table = self._tables[i]
        return table.find(pc) if table else None

    def preload(self, modules: Sequence[Module]) -> None:
        """Read the tables of these modules now, so that a stop need not."""
        for i, (_, _, area) in enumerate(self._areas):
            if area in modules and i not in self._tables:
                self._tables[i] = self._load(area)

    def _load(self, area: Module | Ledger) -> HeaderTable | SectionTable | None:
        with contextlib.suppress(KatanaError):
            if isinstance(area, Ledger):
                address, size = area.eh_frame
                return SectionTable(self._memory.read(address, size), address) if size else None
            segment = area.segment(c.PT_GNU_EH_FRAME)
            if segment is not None:
                return HeaderTable(self._memory.read, area.bias + segment.vaddr)
        return find_section_table(self._memory, area) if isinstance(area, Module) else None

    def unwinder(self) -> Unwinder:
        """An unwinder over these tables and this memory."""
        return Unwinder(self.find, self._memory.read, system.DWARF)


def find_section_table(memory: Reader, module: Module) -> SectionTable | None:
    """The .eh_frame of a module that has no .eh_frame_hdr, as statically linked programs do: found by its first CIE.

    Section headers are not in memory, so the read-only segments are searched for what a CIE begins with.  A place is
    believed only when everything from there to the terminator parses, and every FDE describes code of this module.
    """
    code = [(module.bias + s.vaddr, module.bias + s.vaddr + s.memory_size) for s in module.segments if s.flags & c.PF_X]
    for segment in module.segments:
        if segment.type != c.PT_LOAD or segment.flags & c.PF_W or segment.memory_size > _MAX_SEARCH:
            continue
        address = module.bias + segment.vaddr
        with contextlib.suppress(KatanaError):
            data = memory.read(address, segment.memory_size)
            at = data.find(_CIE_START)
            while at >= 0:
                table = _table_at(data, at - 4, address, code)
                if table is not None:
                    return table
                at = data.find(_CIE_START, at + 1)
    return None


def _table_at(data: bytes, start: int, address: int, code: list[tuple[int, int]]) -> SectionTable | None:
    if start < 0 or start % 4:
        return None
    end = start
    while end + 4 <= len(data):
        length = int.from_bytes(data[end : end + 4], "little")
        if not length:
            break
        end += 4 + length
    with contextlib.suppress(KatanaError):
        found = [r for r in records(data[start:end], address + start) if isinstance(r, Fde)]
        if found and all(any(low <= f.pc < high for low, high in code) for f in found):
            return SectionTable(data[start:end], address + start)
    return None
