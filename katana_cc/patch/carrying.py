"""What a patch object under construction holds so far: carried sections, symbols, pools of literals.

Carrying a section of the new program reserves its place among the patch object's sections and puts it on the queue;
its relocations are translated when the queue is worked off (`build.py`), which may carry more.
"""

from __future__ import annotations

from katana_cc.diff.engine import Changes, Diff
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import INFO, REFUSED, Code
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.elf import constants as c
from katana_cc.patch.model import PatchSection, PatchSymbol
from katana_cc.patch.pool import LiteralPool


class Carrier:
    """The sections and symbols of a patch object, each thing once.

    Args:
        diff, changes: what is to be carried and why; reasons found on the way are added there.
    """

    def __init__(self, diff: Diff, changes: Changes) -> None:
        self.diff = diff
        self.changes = changes
        self.sections: list[PatchSection | None] = []
        self.symbols: list[PatchSymbol] = []
        self.carried: dict[Place, int] = {}
        self.queue: list[Place] = []
        self.pools: dict[tuple[int, int], LiteralPool] = {}
        self.commons: dict[str, int] = {}
        self._symbol_numbers: dict[PatchSymbol, int] = {}

    def view(self, place: Place) -> ObjectView:
        """The new object that holds `place`."""
        return self.diff.view(self.diff.new, place.unit)

    def carry(self, place: Place) -> int:
        """The patch section that carries a section of the new program."""
        number = self.carried.get(place)
        if number is not None:
            return number
        view = self.view(place)
        source = view.elf.sections[place.section]
        kind = view.kinds[place.section]
        number = self.carried[place] = len(self.sections)
        flags = source.flags & (c.SHF_ALLOC | c.SHF_WRITE | c.SHF_EXECINSTR)
        if source.name.startswith(".data.rel.ro"):
            flags &= ~c.SHF_WRITE  # relocated before it is mapped
        kind_of_section = c.SHT_NOBITS if source.type == c.SHT_NOBITS else c.SHT_PROGBITS
        data = b"" if kind_of_section == c.SHT_NOBITS else view.elf.contents(source)
        alignment = max(source.alignment, 1)
        self.sections.append(PatchSection(source.name, kind_of_section, flags, alignment, data, source.size))
        for s in view.symbols_in.get(place.section, ()):
            if s.type in (c.STT_FUNC, c.STT_OBJECT):
                self.symbol(PatchSymbol(s.name, c.STB_LOCAL, s.type, number, s.value, s.size))
        if (
            kind in (Kind.FUNCTION, Kind.CODE)
            and place not in self.changes.replaced
            and place not in self.changes.renewed
            and place not in self.changes.hooks
            and not view.is_part(place.section)
        ):
            self.diff.reason(Code.FUNCTION_NEW, INFO, place, "new function")
        elif kind in (Kind.DATA, Kind.CONST) and place not in self.changes.recreated:
            self.diff.reason(Code.DATA_NEW, INFO, place, f"new {'variable' if kind is Kind.DATA else 'constant'}")
        self.queue.append(place)
        for part in view.parts.get(place.section, ()):
            self.carry(Place(place.unit, part))
        return number

    def symbol(self, symbol: PatchSymbol) -> int:
        number = self._symbol_numbers.get(symbol)
        if number is None:
            number = self._symbol_numbers[symbol] = len(self.symbols)
            self.symbols.append(symbol)
        return number

    def section_symbol(self, section: int) -> int:
        return self.symbol(PatchSymbol("", c.STB_LOCAL, c.STT_SECTION, section, 0, 0))

    def common(self, name: str, size: int) -> int:
        if name not in self.commons:
            self.commons[name] = len(self.sections)
            flags = c.SHF_ALLOC | c.SHF_WRITE
            self.sections.append(PatchSection(f".bss.{name}", c.SHT_NOBITS, flags, 32, b"", size))
            self.symbol(PatchSymbol(name, c.STB_LOCAL, c.STT_OBJECT, self.commons[name], 0, size))
        return self.commons[name]

    def refuse(self, code: Code, place: Place, text: str) -> None:
        self.diff.reason(code, REFUSED, place, text)
