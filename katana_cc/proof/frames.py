"""Call frame information of carried functions, compared with that of the new build's objects.

Stacks are unwound through new code with it, so it must say what the compiler said: the same rules for the same bytes of
the function, and a personality routine and handlers where the new build has them.  In a patch object as in an object
all addresses are relocations.  How a personality routine is reached is the patch object's own affair.

Source: LSB core, "Exception Frames" (10.6.1).
"""

from __future__ import annotations

from collections.abc import Iterator

from katana_cc.diff.program import Place
from katana_cc.dwarf.frames import Fde, records
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError
from katana_cc.proof.image import Image
from katana_cc.proof.judge import Judge
from katana_cc.proof.model import Carried, Finding

_Entry = tuple[object, ...]  # offset of the function in its section, and what its FDE and CIE say


def frames_differ(judge: Judge) -> Iterator[Finding]:
    """Carried functions whose frames are not those of the new build; after the walk."""
    carried = _carried(judge)
    sections = judge.carried.patch.sections
    expected: dict[int, dict[int, list[_Entry]]] = {}
    for target, place in judge.carries.items():
        if not sections[target.number].flags & c.SHF_EXECINSTR:
            continue
        if place.unit not in expected:
            expected[place.unit] = _of_object(judge.new, place.unit)
        if sorted(carried.get(target, ())) != sorted(expected[place.unit].get(place.section, ())):
            label = judge.new.label(place)
            text = f"the call frame information that the patch carries for {label} is not the new build's"
            yield Finding(label, text, place)


def _of_object(image: Image, unit: int) -> dict[int, list[_Entry]]:
    """The FDEs of an object, by the section of their function."""
    view = image.view(Place(unit, 0))
    result: dict[int, list[_Entry]] = {}
    for section in view.elf.sections:
        if section.name == ".eh_frame" and section.size:
            starts = {r.offset: r for r in view.elf.relocations(section.number)}
            for fde in _fdes(view.data(section.number)):
                if (r := starts.get(fde.pc_offset)) is not None:
                    symbol = view.elf.symbols[r.symbol]
                    result.setdefault(symbol.section, []).append(_entry(symbol.value + r.addend, fde))
    return result


def _carried(judge: Judge) -> dict[Carried, list[_Entry]]:
    """The FDEs of a patch object by the section of their function."""
    result: dict[Carried, list[_Entry]] = {}
    for number, section in enumerate(judge.carried.patch.sections):
        if section.name != ".eh_frame" or not section.flags & c.SHF_ALLOC:
            continue
        starts = {f.offset: f for f in judge.carried.fields(Carried(number))}
        for fde in _fdes(section.data):
            field = starts.get(fde.pc_offset)
            if field is not None and isinstance(field.target, Carried):
                result.setdefault(field.target, []).append(_entry(field.distance, fde))
    return result


def _fdes(data: bytes) -> list[Fde]:
    """All FDEs; what is damaged counts as not there, on both sides."""
    try:
        return [record for record in records(data) if isinstance(record, Fde)]
    except FormatError:
        return []


def _entry(offset: int, fde: Fde) -> _Entry:
    cie = fde.cie
    return (
        offset, fde.pc_size, fde.instructions, bool(fde.lsda_offset), bool(cie.personality_offset), cie.instructions,
        cie.augmentation, cie.code_alignment, cie.data_alignment, cie.return_column, cie.fde_encoding,
    )  # fmt: skip
