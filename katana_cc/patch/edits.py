"""Data rewritten in place: what must be there now, and what is to be there.

Both are sections of the patch object with relocations, for the dynamic linker relocated the old contents too.  What is
compared are the final bytes of the old output, with the fields that the dynamic linker wrote as it wrote them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import PurePath

from katana_cc.diff.program import Place
from katana_cc.diff.retarget import as_linked, fields
from katana_cc.elf import constants as c
from katana_cc.patch.carrying import Carrier
from katana_cc.patch.model import DataEdit, PatchRelocation, PatchSection, PatchSymbol
from katana_cc.patch.references import References


class Edits:
    """Makes data edits, adding their sections to `carrier`."""

    def __init__(self, carrier: Carrier, references: References) -> None:
        self.carrier = carrier
        self.references = references
        self.diff = carrier.diff
        self.old = self.diff.old
        self.old_tables = self.old.tables
        self.fixed: set[int] = set()  # sections of old contents that hold addresses without a relocation

    def initialisers(self, changed: Mapping[Place, Place], taken: Collection[Place]) -> list[DataEdit]:
        """The new initial values of variables, each under a name of its own: `limit`, or `a.c:limit` if several are.

        The source says of those in `taken` that they are to be taken over.
        """
        labels = {place: self.carrier.view(place).label(place.section) for place in changed}
        several = {name for name, times in Counter(labels.values()).items() if times > 1}
        result = []
        for place, old_place in sorted(changed.items()):
            name = labels[place]
            if name in several:
                name = f"{PurePath(self.carrier.view(place).file or self.diff.new.unit_name(place.unit)).name}:{name}"
            result.append(
                replace(self.whole(place, old_place), name=name, is_initialiser=True, is_taken=place in taken)
            )
        return result

    def whole(self, place: Place, old_place: Place) -> DataEdit:
        view = self.carrier.view(place)
        source = view.elf.sections[place.section]
        name = view.label(place.section)
        address = self.old.address(old_place)
        assert address is not None
        expected = len(self.carrier.sections)
        data, relocations = self._old_contents(old_place, address, source.size)
        kind = c.SHT_PROGBITS
        self.carrier.sections.append(
            PatchSection(f".katold.{name}", kind, 0, 8, data, len(data), relocations=tuple(relocations))
        )
        replacement = len(self.carrier.sections)
        self.carrier.sections.append(None)
        blank = PatchSection(
            f".katnew.{name}", kind, 0, 8, view.elf.contents(source).ljust(source.size, b"\0"), source.size
        )
        self.carrier.sections[replacement] = self.references.translated(place, blank)
        return DataEdit(name, address, expected, replacement)

    def untouched(self, old_place: Place) -> DataEdit:
        """What stays as it is, and must still be what it began as."""
        address = self.old.address(old_place)
        assert address is not None
        view = self.diff.view(self.old, old_place.unit)
        source, name = view.elf.sections[old_place.section], view.label(old_place.section)
        data: bytes = bytes(source.size)
        found: Iterable[PatchRelocation] = ()
        if source.type != c.SHT_NOBITS:
            data, found = self._old_contents(old_place, address, source.size)
        number = len(self.carrier.sections)
        self.carrier.sections.append(
            PatchSection(f".katold.{name}", c.SHT_PROGBITS, 0, 8, data, len(data), relocations=tuple(found))
        )
        return DataEdit(name, address, number, number)

    def pointer(self, place: Place, old_place: Place, at: int) -> DataEdit:
        """One pointer at offset `at` of a variable: it must still be the old initial one."""
        name = f"{self.carrier.view(place).label(place.section)}+{at:#x}"
        base = self.old.address(old_place)
        assert base is not None
        data, found = self._old_contents(old_place, base, at + 8)
        expected = len(self.carrier.sections)
        relocations = tuple(PatchRelocation(0, r.type, r.symbol, r.addend) for r in found if r.offset == at)
        kind = c.SHT_PROGBITS
        self.carrier.sections.append(PatchSection(f".katold.{name}", kind, 0, 8, data[at:], 8, relocations=relocations))
        reference = next(r for r in self.carrier.view(place).references(place.section) if r.relocation.offset == at)
        moved = self.references.translate(place, reference)
        fields = () if moved is None else (PatchRelocation(0, moved.type, moved.symbol, moved.addend),)
        self.carrier.sections.append(PatchSection(f".katnew.{name}", kind, 0, 8, bytes(8), 8, relocations=fields))
        return DataEdit(name, base + at, expected, len(self.carrier.sections) - 1)

    def retargeted(self, place: Place, old_place: Place) -> list[DataEdit]:
        """The fields of code that stays, where they lead to a variable that is made anew."""
        label, start = self.carrier.view(place).label(place.section), self.old.address(old_place)
        assert start is not None
        result = []
        for new, old, variable in fields(self.diff, place, old_place):
            at, kind = old.relocation.offset, as_linked(self.old.cpu.relocations, old.relocation.type)
            before = self.diff.comparison.resolve(self.old, old_place, old)
            after = self.diff.comparison.resolve(self.diff.new, place, new)
            assert before is not None
            assert after is not None  # `retarget.py` takes only what is known
            carried = self.carrier.section_symbol(self.carrier.carry(after[0]))
            fields_of = (
                PatchRelocation(0, kind, self.references.existing(variable), before[1] + old.addend),
                PatchRelocation(0, kind, carried, after[1] + new.addend),
            )
            name, first = f"{label}+{at:#x}", len(self.carrier.sections)
            for prefix, field in zip((".katold", ".katnew"), fields_of, strict=True):
                self.carrier.sections.append(
                    PatchSection(f"{prefix}.{name}", c.SHT_PROGBITS, 0, 4, bytes(4), 4, relocations=(field,))
                )
            result.append(DataEdit(name, start + at, first, first + 1))
        return result

    def _old_contents(self, place: Place, address: int, size: int) -> tuple[bytes, Iterable[PatchRelocation]]:
        """What must be in the target at `address`: the final bytes, with what the dynamic linker added."""
        data = bytearray(self.old.image.read(address, size))
        relocations = []
        whole = self.old.cpu.relocations.ABSOLUTE[8]
        for r in self.old.object(place.unit).relocations(place.section):
            if r.type != whole or r.offset + 8 > size:
                if r.offset < size:
                    self.fixed.add(len(self.carrier.sections))
                continue
            dynamic = self.old_tables.relocations.get(address + r.offset)
            if dynamic is not None and dynamic.symbol:
                symbol = PatchSymbol(dynamic.symbol, c.STB_GLOBAL, c.STT_NOTYPE, None, 0, 0)
                known = self.old_tables.by_name.get(dynamic.symbol)
                if known is not None and known.value:
                    symbol = PatchSymbol(dynamic.symbol, c.STB_GLOBAL, c.STT_NOTYPE, None, known.value, 0)
                addend = dynamic.addend
            else:
                held = int.from_bytes(data[r.offset : r.offset + 8], "little")
                value = dynamic.addend if dynamic is not None else held
                if not value:
                    continue  # an absent weak symbol
                symbol = PatchSymbol(f"old.{value:x}", c.STB_GLOBAL, c.STT_NOTYPE, None, value, 0)
                addend = 0
            data[r.offset : r.offset + 8] = bytes(8)
            relocations.append(PatchRelocation(r.offset, r.type, self.carrier.symbol(symbol), addend))
        return bytes(data), relocations
