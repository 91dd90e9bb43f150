"""A pool of literals of one kind: strings or constants of one entry size, each kept once."""

from __future__ import annotations

from katana_cc.elf import constants as c
from katana_cc.patch.model import PatchSection


class LiteralPool:
    """Collects literals into one SHF_MERGE section, placed at `section` among the patch object's sections."""

    def __init__(self, section: int, flags: int, entry_size: int) -> None:
        self.section = section
        self.flags = flags
        self.entry_size = entry_size
        self._data = bytearray()
        self._alignment = 1
        self._known: dict[tuple[bytes, int], int] = {}

    def add(self, literal: bytes, alignment: int) -> int:
        """The offset of a literal in the pool, a multiple of `alignment`."""
        key = (literal, alignment)
        if key not in self._known:
            self._alignment = max(self._alignment, alignment)
            self._data += bytes(-len(self._data) % max(alignment, self.entry_size))
            self._known[key] = len(self._data)
            self._data += literal
        return self._known[key]

    def finish(self) -> PatchSection:
        """The section."""
        strings = bool(self.flags & c.SHF_STRINGS)
        stem = "str" if strings else "cst"
        name = f".rodata.{stem}{self.entry_size}" + (f".{self._alignment}" if strings else "")
        data = bytes(self._data)
        return PatchSection(name, c.SHT_PROGBITS, self.flags, self._alignment, data, len(data), self.entry_size)
