"""Expressions taken apart: what is copied, what is translated, and what cannot be said elsewhere."""

from __future__ import annotations

import pytest

from katana_cc.dwarf.operations import Source, expression_at
from katana_cc.dwarf.sections import Place
from katana_cc.dwarf.tree import Address, Expression, Reference, Width

HERE = Place(7, 0x20, "")
INDEXED = Place(9, 4, "")


class Fields:
    """Address fields of a buffer: one, or none."""

    def __init__(self, *positions: int) -> None:
        self.positions = positions

    def get(self, position: int) -> Place | None:
        return HERE if position in self.positions else None


def taken(data: bytes, *fields: int) -> Expression | None:
    """An expression at byte 3 of a unit that starts at 0x100, with address fields at these offsets in it."""
    addresses = Fields(*(3 + at for at in fields))
    source = Source(bytes(3) + data, addresses, 0x100, lambda index: INDEXED if index == 5 else None)  # type: ignore[arg-type]
    return expression_at(source, 3, len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"\x91\x5c",  # fbreg -36
        b"\x55",  # reg5
        b"\x75\x80\x7f\x06\x23\x10\x9f",  # breg5, deref, plus_uconst, stack_value
        b"\x08\x01\x28\x02\x00\x31\x30\x96",  # const1u, bra, literals, nop
        b"\x9e\x03abc",  # implicit_value
        b"\x50\x93\x08\x9d\x04\x02",  # reg0, piece, bit_piece
    ],
)
def test_what_means_the_same_everywhere_is_copied(data: bytes) -> None:
    assert taken(data) == Expression((data,))


def test_addresses_are_told_apart_from_what_is_around_them() -> None:
    found = taken(b"\x03" + bytes(8) + b"\x23\x08", 1)
    assert found == Expression((b"\x03", Address(HERE), b"\x23\x08"))
    assert found.size == 11


def test_an_index_becomes_the_address_it_means() -> None:
    assert taken(b"\xa1\x05\x9f") == Expression((b"\x03", Address(INDEXED), b"\x9f"))
    assert taken(b"\xa1\x06") is None


def test_references_are_counted_from_the_start_of_the_debug_information() -> None:
    assert taken(b"\xa8\x30") == Expression((b"\xa8", Reference(0x130, Width.ULEB)))
    assert taken(b"\xa8\x00") == Expression((b"\xa8\x00",)), "the generic type"
    assert taken(b"\xa5\x01\x30") == Expression((b"\xa5\x01", Reference(0x130, Width.ULEB)))
    found = taken(b"\xa0\x44\x33\x00\x00\x7c")  # implicit_pointer
    assert found == Expression((b"\xa0", Reference(0x3344, Width.SECTION), b"\x7c"))


def test_an_expression_inside_another_has_its_new_length() -> None:
    """A bug: the length of the inner one is that of before, and what follows is read as a part of it."""
    found = taken(b"\xa3\x03\xa8\x30\x55\x9f")
    assert found == Expression((b"\xa3\x06\xa8", Reference(0x130, Width.ULEB), b"\x55\x9f"))


def test_what_is_not_known_makes_all_of_it_unknown() -> None:
    assert taken(b"\x91\x5c\xff") is None


def test_a_jump_over_bytes_whose_number_changes_makes_it_unknown() -> None:
    assert taken(b"\x28\x02\x00\xa8\x30") is None


def test_a_relocated_number_makes_it_unknown() -> None:
    """A bug: the offset of a thread-local variable, unrelocated, is taken for its value."""
    assert taken(b"\x0e" + bytes(8) + b"\xe0", 1) is None
    assert taken(b"\x0e" + bytes(8) + b"\x9f") is not None


def test_an_address_that_leads_nowhere_makes_it_unknown() -> None:
    assert taken(b"\x03" + bytes(8)) is None


@pytest.mark.parametrize("data", [b"\x91\x80", b"\x9e\x05ab", b"\x08", b"\xa3\x04\x55"])
def test_what_is_cut_off_is_said_so(data: bytes) -> None:
    with pytest.raises(IndexError):
        taken(data)
