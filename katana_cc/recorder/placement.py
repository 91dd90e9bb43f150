"""Where every input section of a link lies in the output, confirmed by the output's own bytes.

Theory of operation.  The link map says which section of which input went to which address; it is text for people, and
cannot tell two archive members of one name apart.  So each contribution is matched with the sections of that name and
size among its candidate objects, and the candidate whose bytes are in the final file is taken: all bytes that no
relocation touches (and no relaxation may rewrite) for objects read for the first time, a 16-byte witness for objects
whose record is already known.  A contribution that no candidate confirms, or several different ones, is reported,
never guessed: the diff refuses to patch what lies there.

Sections that linkers merge or edit (strings, .eh_frame) have no address of their own and are left out.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from katana_cc.elf import constants as c
from katana_cc.elf.fields import same_outside
from katana_cc.elf.reader import ElfFile
from katana_cc.recorder.linkmap import Contribution
from katana_cc.recorder.record import ObjectRecord, SectionRecord

ReadImage = Callable[[int, int], bytes]


class Candidate(NamedTuple):
    """One object that a map's (file, member) may mean; `elf` is there when it was read just now."""

    unit: int
    record: ObjectRecord
    elf: ElfFile | None


class Placed:
    """The result: addresses by (unit, section), and what could not be confirmed."""

    __slots__ = ("addresses", "unplaced")

    def __init__(self) -> None:
        self.addresses: dict[tuple[int, int], int] = {}
        self.unplaced: list[tuple[int, int, str]] = []


def place(
    contributions: Iterable[Contribution], candidates: Iterable[Candidate], read: ReadImage, result: Placed
) -> None:
    """Match the contributions of one input with the sections of the objects it may mean.

    Args:
        contributions: those of one (file, member) of the link map, in its order.
        candidates: the objects that this may mean.
        read: reads `size` bytes of the final image at a link-time address.
        result: what is found is added here.
    """
    pool: dict[str, list[tuple[Candidate, SectionRecord]]] = {}
    for candidate in candidates:
        for section in candidate.record.sections:
            pool.setdefault(section.name, []).append((candidate, section))
    for contribution in contributions:
        waiting = pool.get(contribution.section)
        if not waiting:
            continue  # made by the linker (.plt, .got), or COMMON
        fits = [w for w in waiting if w[1].size == contribution.size]
        if not fits:
            continue  # merged strings: the map gives what is left of them
        confirmed = [w for w in fits if _confirmed(*w, contribution.address, read)]
        chosen = (confirmed or fits)[0]
        waiting.remove(chosen)
        candidate, section = chosen
        if section.flags & c.SHF_MERGE or section.name == ".eh_frame":
            continue
        if not confirmed:
            result.unplaced.append((candidate.unit, section.number, "the output's bytes differ from the object's"))
            continue
        result.addresses[candidate.unit, section.number] = contribution.address
        if any(other.record is not candidate.record for other, _ in confirmed):
            # Members of one name, alike but for what they refer to: which is where is a guess, for each of them.
            why = "another archive member of that name fits as well"
            result.unplaced += [(other.unit, x.number, why) for other, x in confirmed]


def _confirmed(candidate: Candidate, section: SectionRecord, address: int, read: ReadImage) -> bool:
    if section.type == c.SHT_NOBITS or section.flags & c.SHF_MERGE or section.name == ".eh_frame":
        return True
    if candidate.elf is None:
        return read(address + section.witness_offset, len(section.witness)) == section.witness
    data = candidate.elf.contents(candidate.elf.sections[section.number])
    final = read(address, section.size)
    return final == data or same_outside(data, final, candidate.elf.relocation_rows(section.number))
