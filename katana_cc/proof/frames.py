"""Call frame information of carried functions, compared with that of the new build's objects.

Stacks are unwound through new code with it, so it must say what the compiler said.  In a patch object as in an object
all addresses are relocations: an FDE is the same when its bytes behind the start address are, and so are its CIE's.

Source: LSB core, "Exception Frames" (10.6.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from katana_cc.elf import constants as c
from katana_cc.patch.frames import INITIAL_LOCATION, frame_entries
from katana_cc.proof.judge import Judge
from katana_cc.proof.model import Carried, Finding

_REST: Final = INITIAL_LOCATION + 4  # what follows the start address
_Entry = tuple[int, bytes, bytes]  # offset of the function in its section, FDE behind the start address, CIE


def frames_differ(judge: Judge) -> Iterator[Finding]:
    """Carried functions whose frames are not those of the new build; after the walk."""
    carried = _carried(judge)
    sections = judge.carried.patch.sections
    expected: dict[int, dict[int, list[_Entry]]] = {}
    for target, place in judge.carries.items():
        if not sections[target.number].flags & c.SHF_EXECINSTR:
            continue
        if place.unit not in expected:
            found = expected[place.unit] = {}
            for e in frame_entries(judge.new.view(place).elf):
                found.setdefault(e.section, []).append((e.offset, e.fde[_REST:], e.cie))
        if sorted(carried.get(target, ())) != sorted(expected[place.unit].get(place.section, ())):
            label = judge.new.label(place)
            text = f"the call frame information that the patch carries for {label} is not the new build's"
            yield Finding(label, text, place)


def _carried(judge: Judge) -> dict[Carried, list[_Entry]]:
    """The FDEs of a patch object by the section of their function."""
    result: dict[Carried, list[_Entry]] = {}
    for number, section in enumerate(judge.carried.patch.sections):
        if section.name != ".eh_frame" or not section.flags & c.SHF_ALLOC:
            continue
        starts = {f.offset: f for f in judge.carried.fields(Carried(number))}
        for at, end in _entries(section.data):
            field = starts.get(at + INITIAL_LOCATION)
            cie = at + 4 - int.from_bytes(section.data[at + 4 : at + 8], "little")
            if field is None or not isinstance(field.target, Carried) or not 0 <= cie < at:
                continue
            cie_end = cie + 4 + int.from_bytes(section.data[cie : cie + 4], "little")
            entry = field.distance, section.data[at + _REST : end], section.data[cie:cie_end]
            result.setdefault(field.target, []).append(entry)
    return result


def _entries(data: bytes) -> Iterator[tuple[int, int]]:
    """[start, end) of each FDE of an .eh_frame section."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        if not length or at + 4 + length > len(data):
            return
        if data[at + 4 : at + 8] != bytes(4):
            yield at, at + 4 + length
        at += 4 + length
