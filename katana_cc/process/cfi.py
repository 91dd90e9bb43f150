"""Where the call-frame information of a process is: one table a module, one a patch."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Sequence

from katana_cc.dwarf.frames import Fde, HeaderTable, SectionTable
from katana_cc.dwarf.unwind import Unwinder
from katana_cc.elf import constants as c
from katana_cc.errors import KatanaError
from katana_cc.process.ledger import Ledger
from katana_cc.process.memory import Reader
from katana_cc.process.modules import Module


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
        return None

    def unwinder(self) -> Unwinder:
        """An unwinder over these tables and this memory."""
        return Unwinder(self.find, self._memory.read)
