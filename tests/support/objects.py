"""Object files as patches, without a diff."""

from __future__ import annotations

from pathlib import Path

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.patch.model import Identity, PatchObject, PatchRelocation, PatchSection, PatchSymbol, Verdict


def as_patch(path: Path, existing: dict[str, tuple[int, int]]) -> PatchObject:
    """An object's allocated sections as a patch; undefined symbols are the existing ones."""
    elf = ElfFile(path.read_bytes())
    kept = [s for s in elf.sections if s.flags & c.SHF_ALLOC and s.size]
    index = {s.number: i for i, s in enumerate(kept)}
    symbols = []
    for s in elf.symbols:
        value, size = existing.get(s.name, (s.value, s.size))
        binding = c.STB_LOCAL if s.section else c.STB_GLOBAL
        symbols.append(PatchSymbol(s.name, binding, s.type, index.get(s.section), value, size))
    sections = []
    for section in kept:
        moved = tuple(PatchRelocation(*r) for r in elf.relocations(section.number))
        name, kind, flags = section.name, section.type, section.flags
        data = elf.contents(section)
        sections.append(PatchSection(name, kind, flags, section.alignment, data, section.size, 0, moved))
    return PatchObject(Identity("x", elf.machine, "", "", "", ""), Verdict.SAFE, (), tuple(sections), tuple(symbols))
