"""The sections of a patch object, read like places of an output."""

from __future__ import annotations

from katana_cc.elf import constants as c
from katana_cc.patch.model import PatchObject, PatchSymbol
from katana_cc.proof.image import Image
from katana_cc.proof.model import Carried, Field, Named, Target


class CarriedSections:
    """What a patch object carries.

    Args:
        patch: a finished patch object.
        old: the output it patches, which its undefined symbols are addresses of.
    """

    def __init__(self, patch: PatchObject, old: Image) -> None:
        self.patch = patch
        self.old = old
        self._fields: dict[int, tuple[Field, ...]] = {}

    def data(self, place: Carried) -> bytes:
        """The bytes of a section; zeros for SHT_NOBITS."""
        section = self.patch.sections[place.number]
        return section.data if section.type != c.SHT_NOBITS else bytes(section.size)

    def size(self, place: Carried) -> int:
        """Bytes of a section."""
        return self.patch.sections[place.number].size

    def is_pool(self, place: Carried) -> bool:
        """Whether it holds literals."""
        return bool(self.patch.sections[place.number].flags & c.SHF_MERGE)

    def names(self, place: Carried) -> list[str]:
        """Names of the symbols in a section."""
        return [y.name for y in self.patch.symbols if y.section == place.number and y.name]

    def fields(self, place: Carried) -> tuple[Field, ...]:
        """The relocated fields of a section, by offset."""
        found = self._fields.get(place.number)
        if found is None:
            rows = sorted(self.patch.sections[place.number].relocations, key=lambda r: (r.offset, r.type))
            made = []
            for r in rows:
                target, base = self._meant(self.patch.symbols[r.symbol])
                made.append(Field(r.offset, r.type, target, base + r.addend, 0))
            found = self._fields[place.number] = tuple(made)
        return found

    def _meant(self, symbol: PatchSymbol) -> tuple[Target, int]:
        if symbol.section is not None:
            return Carried(symbol.section), symbol.value
        if symbol.type == c.STT_TLS:
            vaddr, _ = self.old.thread_segment
            return self.old.thread_at(vaddr + symbol.value) or (Named(symbol.name), 0)
        if symbol.value:
            return self.old.at(symbol.value) or (Named(symbol.name), 0)
        target, base, _ = self.old.defined(symbol.name)
        return target, base
