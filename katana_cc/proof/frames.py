"""Call frame information of carried functions, compared with that of the new build's objects.

Stacks are unwound through new code with it, so it must say what the compiler said: the same rules for the same bytes of
the function, and a personality routine and handlers where the new build has them.  In a patch object as in an object
all addresses are relocations.  How a personality routine is reached is the patch object's own affair.

Source: LSB core, "Exception Frames" (10.6.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from katana_cc.diff.program import Place
from katana_cc.elf import constants as c
from katana_cc.proof import fdes
from katana_cc.proof.fdes import FdeAt
from katana_cc.proof.judge import Judge
from katana_cc.proof.model import Carried, Finding

_Entry = tuple[object, ...]  # offset of the function in its section, and what its FDE and CIE say


def frames_differ(judge: Judge) -> Iterator[Finding]:
    """Carried functions whose frames are not those of the new build; after the walk."""
    carried = fdes.of_patch(judge.carried)
    sections = judge.carried.patch.sections
    expected: dict[int, dict[int, list[FdeAt[Place]]]] = {}
    for target, place in judge.carries.items():
        if not sections[target.number].flags & c.SHF_EXECINSTR:
            continue
        if place.unit not in expected:
            expected[place.unit] = fdes.of_unit(judge.new, place.unit)
        if _entries(carried.get(target, ())) != _entries(expected[place.unit].get(place.section, ())):
            label = judge.new.label(place)
            text = f"the call frame information that the patch carries for {label} is not the new build's"
            yield Finding(label, text, place)


def _entries(found: Iterable[FdeAt[Place] | FdeAt[Carried]]) -> list[_Entry]:
    return sorted(_entry(f) for f in found)


def _entry(found: FdeAt[Place] | FdeAt[Carried]) -> _Entry:
    fde = found.fde
    cie = fde.cie
    rules = fde.instructions.rstrip(b"\0")  # DW_CFA_nop: how many there are depends on what lies behind
    return (
        found.start, fde.pc_size, rules, bool(fde.lsda_offset), bool(cie.personality_offset),
        cie.instructions, cie.augmentation, cie.code_alignment, cie.data_alignment, cie.return_column,
        cie.fde_encoding,
    )  # fmt: skip
