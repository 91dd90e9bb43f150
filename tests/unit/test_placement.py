"""Placement: which object's section a contribution of the link map is, by the bytes of the output."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from katana_cc.elf import constants as c
from katana_cc.recorder.linkmap import Contribution
from katana_cc.recorder.placement import Candidate, Placed, place
from katana_cc.recorder.record import ObjectRecord, SectionRecord

BASE = 0x1000


def candidate(unit: int, *sections: tuple[str, bytes], kind: int = c.SHT_PROGBITS) -> Candidate:
    """An object read before: each section is known by its first bytes."""
    records = [
        SectionRecord(name, i + 1, kind, c.SHF_ALLOC, max(len(data), 4), 0, data)
        for i, (name, data) in enumerate(sections)
    ]
    return Candidate(unit, ObjectRecord("a.c", tuple(records), ()), None)


class Output:
    """An output of one segment, at BASE."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, address: int, size: int) -> bytes:
        return self.data[address - BASE : address - BASE + size]

    def holds(self, address: int, data: bytes) -> bool:
        return self.read(address, len(data)) == data


def placed(image: bytes, names: list[str], *candidates: Candidate) -> Placed:
    """Contributions of four bytes each, one after the other."""
    result = Placed()
    its = [Contribution(name, BASE + 4 * i, 4) for i, name in enumerate(names)]
    place(its, candidates, Output(image), result)
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
    merged = SectionRecord(".rodata.str1.1", 1, c.SHT_PROGBITS, c.SHF_ALLOC | c.SHF_MERGE, 4, 0, b"")
    result = placed(b"xxxx", [".rodata.str1.1"], Candidate(0, ObjectRecord("a.c", (merged,), ()), None))
    assert (result.addresses, result.unplaced) == ({}, [])


SECTIONS = st.tuples(
    st.sampled_from([".text.f", ".text.g", ".eh_frame", ".bss"]), st.sampled_from([b"aaaa", b"bb", b""])
)


@given(
    st.lists(SECTIONS, max_size=4, unique_by=lambda s: s[0]),
    st.lists(st.sampled_from([".text.f", ".text.g", ".eh_frame", ".bss", ".plt"]), max_size=6),
    st.text("ab", max_size=24),
    st.sampled_from([c.SHT_PROGBITS, c.SHT_NOBITS]),
)
def test_an_object_is_placed_alike_by_name_and_among_others(
    sections: list[tuple[str, bytes]], names: list[str], image: str, kind: int
) -> None:
    """The short way for one object whose sections have names of their own must not decide otherwise."""
    # As in records: no witness where the linker edits, or the file holds nothing.
    known = [(name, b"" if name == ".eh_frame" or kind == c.SHT_NOBITS else data) for name, data in sections]
    only = candidate(0, *known, kind=kind)
    # An object of no sections makes it the long way.
    none = Candidate(1, ObjectRecord("b.c", (), ()), None)
    short = placed(image.encode(), names, only)
    long = placed(image.encode(), names, only, none)
    assert short.addresses == long.addresses
    assert short.unplaced == long.unplaced
