"""The .eh_frame of a patch object: FDEs cut out of the objects' own, each CIE once.

Each object has one .eh_frame for all its functions; only the FDEs of the carried ones come along, with `CIE_pointer`
fixed and their relocations moved.  A personality routine is always reached as position-independent code does, through a
pointer beside it (`pcrel|indirect`): that works wherever the routine and the patch are.

Source: LSB core, "Exception Frames" (10.6.1).
"""

from __future__ import annotations

from typing import Final

from katana_cc.cpu.interface import Relocations
from katana_cc.diff.frames import FrameEntry
from katana_cc.elf import constants as c
from katana_cc.patch.model import PatchRelocation, PatchSection

INDIRECT_FORMS: Final = {4: 0x9B, 8: 0x9C}  # width → DW_EH_PE_indirect | pcrel | sdata4 or sdata8
_WIDTHS: Final = {0x00: 8, 0x03: 4, 0x04: 8, 0x0B: 4, 0x0C: 8}  # of a pointer, by its encoding's form


class FrameBuilder:
    """Puts FDEs into one .eh_frame section."""

    def __init__(self, known: Relocations) -> None:
        self._known = known
        self._data = bytearray()
        self._relocations: list[PatchRelocation] = []
        self._cies: dict[tuple[bytes, int | None], int] = {}

    def add(self, entry: FrameEntry, code: int, personality: int | None, lsda: int | None) -> None:
        """Append an FDE (and its CIE, once).

        Args:
            code: symbol of the section the FDE describes.
            personality: symbol of the pointer to the personality routine, if there is one.
            lsda: symbol of the section that its LSDA is, if there is one.
        """
        cie = self._cie(entry, personality)
        start = len(self._data)
        fde = bytearray(entry.fde)
        fde[4:8] = (start + 4 - cie).to_bytes(4, "little")
        kind = entry.location.relocation.type
        self._field(fde, entry.location_at, start, kind, code, entry.offset)
        if lsda is not None:
            assert entry.lsda is not None
            self._field(fde, entry.lsda_at, start, entry.lsda.relocation.type, lsda, 0)
        self._data += fde

    def _cie(self, entry: FrameEntry, personality: int | None) -> int:
        key = entry.cie, personality
        if key not in self._cies:
            start = self._cies[key] = len(self._data)
            cie = bytearray(entry.cie)
            if personality is not None:
                width = _WIDTHS[cie[entry.personality_at - 1] & 0x0F]
                kind = self._known.RELATIVE[width]
                cie[entry.personality_at - 1] = INDIRECT_FORMS[width]
                self._field(cie, entry.personality_at, start, kind, personality, 0)
            self._data += cie
        return self._cies[key]

    def _field(self, record: bytearray, at: int, start: int, kind: int, symbol: int, addend: int) -> None:
        width = 8 if kind in (self._known.ABSOLUTE[8], self._known.RELATIVE[8]) else 4
        record[at : at + width] = bytes(width)
        self._relocations.append(PatchRelocation(start + at, kind, symbol, addend))

    def finish(self) -> PatchSection | None:
        """The section, with the terminator that `__register_frame_info` wants; None when there is no FDE."""
        if not self._data:
            return None
        data = bytes(self._data) + bytes(4)
        return PatchSection(
            ".eh_frame", c.SHT_PROGBITS, c.SHF_ALLOC, 8, data, len(data), relocations=tuple(self._relocations)
        )
