"""Exception tables of carried code: each LSDA cut out of its section, its types made reachable.

A type is a pointer to a type_info, which may be the old program's, a library's far away, or new.  The 32-bit fields of
the table reach none but the last, so that each goes through a pointer that the patch brings (`DW.ref.NAME`, as gcc
calls its own), relocated when the patch is applied: `pcrel|indirect`, whatever the object's own way was.  Which
type_info is meant decides `references.py`, as for any other pointer: what exists keeps its identity, so that old code
catches what new code throws.
"""

from __future__ import annotations

import dataclasses

from katana_cc.diff.frames import Handlers
from katana_cc.diff.program import Place
from katana_cc.diff.reasons import Code
from katana_cc.diff.view import Reference
from katana_cc.elf import constants as c
from katana_cc.patch.carrying import Carrier
from katana_cc.patch.frames import INDIRECT_FORMS
from katana_cc.patch.model import PatchRelocation, PatchSection
from katana_cc.patch.references import References


class HandlerTables:
    """Carries LSDAs and the pointers that they and the CIEs go through."""

    def __init__(self, carrier: Carrier, references: References) -> None:
        self.carrier = carrier
        self.references = references
        self._pointers: dict[tuple[int, int], int] = {}
        self._tables: dict[tuple[Place, int], int] = {}

    def pointer(self, place: Place, reference: Reference) -> int | None:
        """The symbol of a pointer to what a reference of `place` means; None after a refusal."""
        whole = reference.relocation._replace(offset=0, type=self.references.known.ABSOLUTE[8])
        meant = self.references.translate(place, dataclasses.replace(reference, relocation=whole))
        if meant is None:
            return None
        key = meant.symbol, meant.addend
        if key not in self._pointers:
            name = f".data.rel.ro.DW.ref.{reference.name}"
            self._pointers[key] = len(self.carrier.sections)
            self.carrier.sections.append(
                PatchSection(name, c.SHT_PROGBITS, c.SHF_ALLOC, 8, bytes(8), 8, relocations=(meant,))
            )
        return self.carrier.section_symbol(self._pointers[key])

    def table(self, place: Place, handlers: Handlers) -> int | None:
        """The symbol of the section that carries an LSDA of the code at `place`; None after a refusal."""
        lsda, source = handlers.lsda, Place(place.unit, handlers.source)
        if (source, lsda.start) in self._tables:
            return self.carrier.section_symbol(self._tables[source, lsda.start])
        view = self.carrier.view(place)
        data = bytearray(view.data(handlers.source)[lsda.start : lsda.end])
        relocations: list[PatchRelocation] = []
        if lsda.width:
            # From here on the types of no call site are null: nothing asks for them.
            low, high = lsda.table
            low = high - (high - low) // lsda.width * lsda.width
            data[low - lsda.start : high - lsda.start] = bytes(high - low)
            encoding, kind = INDIRECT_FORMS[lsda.width], self.references.known.RELATIVE[lsda.width]
            data[lsda.encoding_at - lsda.start] = encoding
            for at, meant in zip(lsda.types, handlers.types, strict=True):
                if meant is None:
                    continue
                symbol = self.pointer(source, meant)
                if symbol is None:
                    return None
                relocations.append(PatchRelocation(at - lsda.start, kind, symbol, 0))
        name = view.elf.sections[handlers.source].name
        number = self._tables[source, lsda.start] = len(self.carrier.sections)
        self.carrier.sections.append(
            PatchSection(name, c.SHT_PROGBITS, c.SHF_ALLOC, 4, bytes(data), len(data), relocations=tuple(relocations))
        )
        return self.carrier.section_symbol(number)

    def refuse(self, place: Place, why: str) -> None:
        """Note that the handlers of some code cannot be carried."""
        self.carrier.refuse(Code.EXCEPTIONS, place, f"{why}; exceptions could not pass through the new code")
