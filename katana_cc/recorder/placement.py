"""Where every input section of a link lies in the output, confirmed by the output's own bytes.

Theory of operation.  The link map says which section of which input went to which address; it is text for people, and
cannot tell two archive members of one name apart.  So each contribution is matched with the sections of that name and
size among its candidate objects, and the candidate whose bytes are in the final file is taken: all bytes that no
relocation touches (and no relaxation may rewrite) for objects read for the first time, a 16-byte witness for objects
whose record is already known.  A contribution that no candidate confirms, or several different ones, is reported,
never guessed: the diff refuses to patch what lies there.

Sections that linkers merge or edit (strings, .eh_frame) have no address of their own and are left out.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from katana_cc.cpu.choice import of
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.recorder.linkmap import Contribution
from katana_cc.recorder.record import ObjectRecord, SectionRecord, SectionRow

_SIZE = 3  # in a SectionRow
_DIFFERS = "the output's bytes differ from the object's"


class Candidate(NamedTuple):
    """One object that a map's (file, member) may mean; `elf` is there when it was read just now."""

    unit: int
    record: ObjectRecord
    elf: ElfFile | None


class Image(Protocol):
    """The output, by link-time addresses."""

    def read(self, address: int, size: int) -> bytes:
        """What lies there."""

    def holds(self, address: int, data: bytes) -> bool:
        """Whether `data` lies there."""


class Placed:
    """The result: addresses by (unit, section), and what could not be confirmed."""

    __slots__ = ("addresses", "unplaced")

    def __init__(self) -> None:
        self.addresses: dict[tuple[int, int], int] = {}
        self.unplaced: list[tuple[int, int, str]] = []


def place(contributions: Iterable[Contribution], candidates: Sequence[Candidate], image: Image, result: Placed) -> None:
    """Match the contributions of one input with the sections of the objects it may mean.

    Args:
        contributions: those of one (file, member) of the link map, in its order.
        candidates: the objects that this may mean.
        image: the output.
        result: what is found is added here.
    """
    if len(candidates) == 1 and (rows := candidates[0].record.rows_by_name()) is not None:
        _place_by_name(contributions, candidates[0], rows, image, result)
    else:
        _place_among(contributions, candidates, image, result)


def _place_by_name(
    contributions: Iterable[Contribution],
    candidate: Candidate,
    rows: dict[str, SectionRow],
    image: Image,
    result: Placed,
) -> None:
    """What `_place_among` does where a name means one section or none: nearly always, and thousands of times a link."""
    unit, _, elf = candidate
    addresses, holds = result.addresses, image.holds
    for name, address, size in contributions:
        row = rows.get(name)
        if row is None or row[_SIZE] != size:
            continue
        del rows[name]
        number, kind, flags, _, offset, witness = row
        if elf is None and witness:  # none where the linker edits, and where the file holds nothing
            there = holds(address + offset, witness)
        elif flags & c.SHF_MERGE or name == ".eh_frame":
            continue
        elif kind == c.SHT_NOBITS:
            there = True
        else:
            there = holds(address, b"") if elf is None else _is_there(elf, number, address, image)
        if there:
            addresses[unit, number] = address
        else:
            result.unplaced.append((unit, number, _DIFFERS))


def _place_among(
    contributions: Iterable[Contribution], candidates: Iterable[Candidate], image: Image, result: Placed
) -> None:
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
        confirmed = [w for w in fits if _confirmed(*w, contribution.address, image)]
        chosen = (confirmed or fits)[0]
        waiting.remove(chosen)
        candidate, section = chosen
        if section.flags & c.SHF_MERGE or section.name == ".eh_frame":
            continue
        if not confirmed:
            result.unplaced.append((candidate.unit, section.number, _DIFFERS))
            continue
        result.addresses[candidate.unit, section.number] = contribution.address
        if any(other.record is not candidate.record for other, _ in confirmed):
            # Members of one name, alike but for what they refer to: which is where is a guess, for each of them.
            why = "another archive member of that name fits as well"
            result.unplaced += [(other.unit, x.number, why) for other, x in confirmed]


def _confirmed(candidate: Candidate, section: SectionRecord, address: int, image: Image) -> bool:
    if section.type == c.SHT_NOBITS or section.flags & c.SHF_MERGE or section.name == ".eh_frame":
        return True
    if candidate.elf is None:
        return image.holds(address + section.witness_offset, section.witness)
    return _is_there(candidate.elf, section.number, address, image)


def _is_there(elf: ElfFile, number: int, address: int, image: Image) -> bool:
    """Whether all bytes of a section that no relocation touches lie there."""
    data = elf.bytes_of(number)
    final = image.read(address, len(data))
    return final == data or of(elf.machine).relocations.same_outside(data, final, elf.relocation_rows(number))
