"""Where the FDEs of functions are: in an object of the new build, and in a patch object.

In both all addresses are relocations, so the field that holds a function's address tells whose an FDE is.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from katana_cc.diff.program import Place
from katana_cc.dwarf.frames import Fde, records
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError
from katana_cc.proof.carried import CarriedSections
from katana_cc.proof.image import Image
from katana_cc.proof.model import Carried

P = TypeVar("P", Place, Carried)


class FdeAt(NamedTuple, Generic[P]):
    """An FDE in section `owner`, whose bytes are `data`; `start` is the offset of its function in the code section."""

    start: int
    owner: P
    data: bytes
    fde: Fde


def of_unit(image: Image, unit: int) -> dict[int, list[FdeAt[Place]]]:
    """The FDEs of an object, by the section of their function."""
    view = image.view(Place(unit, 0))
    result: dict[int, list[FdeAt[Place]]] = {}
    for section in view.elf.sections:
        if section.name == ".eh_frame" and section.size:
            data, owner = view.data(section.number), Place(unit, section.number)
            starts = {r.offset: r for r in view.elf.relocations(section.number)}
            for fde in _fdes(data):
                if (r := starts.get(fde.pc_offset)) is not None:
                    symbol = view.elf.symbols[r.symbol]
                    found = FdeAt(symbol.value + r.addend, owner, data, fde)
                    result.setdefault(symbol.section, []).append(found)
    return result


def of_patch(carried: CarriedSections) -> dict[Carried, list[FdeAt[Carried]]]:
    """The FDEs of a patch object, by the section of their function."""
    result: dict[Carried, list[FdeAt[Carried]]] = {}
    for number, section in enumerate(carried.patch.sections):
        if section.name != ".eh_frame" or not section.flags & c.SHF_ALLOC:
            continue
        owner = Carried(number)
        starts = {f.offset: f for f in carried.fields(owner)}
        for fde in _fdes(section.data):
            field = starts.get(fde.pc_offset)
            if field is not None and isinstance(field.target, Carried):
                result.setdefault(field.target, []).append(FdeAt(field.distance, owner, section.data, fde))
    return result


def _fdes(data: bytes) -> list[Fde]:
    """All FDEs; what is damaged counts as not there, on both sides."""
    try:
        return [record for record in records(data) if isinstance(record, Fde)]
    except FormatError:
        return []
