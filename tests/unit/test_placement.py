"""Placement: which object's section a contribution of the link map is, by the bytes of the output."""

from __future__ import annotations

from katana_cc.elf import constants as c
from katana_cc.recorder.linkmap import Contribution
from katana_cc.recorder.placement import Candidate, Placed, place
from katana_cc.recorder.record import ObjectRecord, SectionRecord

BASE = 0x1000


def candidate(unit: int, *sections: tuple[str, bytes], kind: int = c.SHT_PROGBITS) -> Candidate:
    """An object read before: each section is known by its first bytes."""
    records = [
        SectionRecord(i + 1, name, kind, c.SHF_ALLOC, max(len(data), 4), 0, data)
        for i, (name, data) in enumerate(sections)
    ]
    return Candidate(unit, ObjectRecord("a.c", tuple(records), ()), None)


def placed(image: bytes, names: list[str], *candidates: Candidate) -> Placed:
    """Contributions of four bytes each, one after the other."""
    result = Placed()
    its = [Contribution("lib.a", "m.o", name, BASE + 4 * i, 4) for i, name in enumerate(names)]
    place(its, candidates, lambda at, size: image[at - BASE : at - BASE + size], result)
    return result


def test_of_several_candidates_the_one_whose_bytes_are_there_is_taken() -> None:
    result = placed(b"bbbb", [".text.f"], candidate(0, (".text.f", b"aaaa")), candidate(1, (".text.f", b"bbbb")))
    assert result.addresses == {(1, 1): BASE}
    assert result.unplaced == []


def test_members_of_one_name_in_another_order_than_in_the_archive() -> None:
    first, second = candidate(0, (".text.f", b"aaaa")), candidate(1, (".text.f", b"bbbb"))
    result = placed(b"bbbbaaaa", [".text.f", ".text.f"], first, second)
    assert result.addresses == {(1, 1): BASE, (0, 1): BASE + 4}
    assert result.unplaced == []


def test_what_no_candidate_confirms_is_reported() -> None:
    result = placed(b"cccc", [".text.f"], candidate(0, (".text.f", b"aaaa")))
    assert result.addresses == {}
    assert [(unit, section) for unit, section, _ in result.unplaced] == [(0, 1)]


def test_different_members_that_fit_alike_are_all_reported() -> None:
    """Each could be either: a patch of the one would go into the other."""
    first, second = candidate(0, (".text.f", b"aaaa")), candidate(1, (".text.f", b"aaaa"))
    result = placed(b"aaaaaaaa", [".text.f", ".text.f"], first, second)
    assert {(unit, section) for unit, section, _ in result.unplaced} == {(0, 1), (1, 1)}


def test_equal_members_need_not_be_told_apart() -> None:
    first = candidate(0, (".text.f", b"aaaa"))
    same = Candidate(1, first.record, None)
    result = placed(b"aaaaaaaa", [".text.f", ".text.f"], first, same)
    assert result.addresses == {(0, 1): BASE, (1, 1): BASE + 4}
    assert result.unplaced == []


def test_sections_that_linkers_merge_have_no_place() -> None:
    merged = SectionRecord(1, ".rodata.str1.1", c.SHT_PROGBITS, c.SHF_ALLOC | c.SHF_MERGE, 4, 0, b"")
    result = placed(b"xxxx", [".rodata.str1.1"], Candidate(0, ObjectRecord("a.c", (merged,), ()), None))
    assert (result.addresses, result.unplaced) == ({}, [])
