"""Exception tables taken apart, against tables written by hand and the compilers' own assembly."""

from __future__ import annotations

import pytest

from katana_cc.dwarf.lsda import CallSite, read_lsda
from katana_cc.errors import FormatError

# types: pcrel|indirect|sdata4; two call sites; actions: catch 1 then cleanup, "only type 2 may pass"
_SITES = bytes([0x04, 0x05, 0x20, 0x01, 0x10, 0x02, 0x00, 0x00, 0x14, 0x03, 0x28, 0x05])
_ACTIONS = bytes([0x01, 0x01, 0x00, 0x00, 0x7F, 0x00])  # (1, next +1), (0, end), (-1, end)
_TYPES = bytes(8)  # type 2, type 1
_LISTS = bytes([0x02, 0x00])
_HEAD = bytes([0xFF, 0x9B, len(_SITES) + len(_ACTIONS) + len(_TYPES) + 2, 0x01, len(_SITES)])
TABLE = _HEAD + _SITES + _ACTIONS + _TYPES + _LISTS


def test_call_sites_lead_to_types_by_their_first_use() -> None:
    lsda = read_lsda(TABLE, 0)
    assert lsda.call_sites == (
        CallSite(4, 5, 0x20, ((0,), 0)),
        CallSite(0x10, 2, 0, ()),
        CallSite(0x14, 3, 0x28, ((-1, 1),)),
    )
    base = len(_HEAD) + len(_SITES) + len(_ACTIONS) + len(_TYPES)
    assert lsda.types == (base - 4, base - 8)
    assert (lsda.end, lsda.width, TABLE[lsda.encoding_at]) == (len(TABLE), 4, 0x9B)


def test_table_in_the_middle_of_a_section_ends_where_it_ends() -> None:
    """A bug: the neighbour's table comes along, or the list of an exception specification is cut off."""
    lsda = read_lsda(b"\xcc" * 7 + TABLE + b"\xcc" * 9, 7)
    assert (lsda.start, lsda.end) == (7, 7 + len(TABLE))


def test_table_without_types() -> None:
    """C with cleanups, and functions that let nothing pass."""
    lsda = read_lsda(bytes([0xFF, 0xFF, 0x01, 0x04, 0x02, 0x03, 0x09, 0x00]), 0)
    assert (lsda.call_sites, lsda.types, lsda.end) == ((CallSite(2, 3, 9, ()),), (), 8)
    assert read_lsda(bytes([0xFF, 0xFF, 0x01, 0x00]), 0).call_sites == ()


@pytest.mark.parametrize("size", range(len(TABLE)))
def test_cut_off_table_is_a_format_error(size: int) -> None:
    """A bug: an IndexError, or a table that is believed."""
    with pytest.raises(FormatError):
        read_lsda(TABLE[:size], 0)


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0x1B), (1, 0x01), (3, 0x1B), (len(_HEAD) + 3, 0x7F), (len(_HEAD) + len(_SITES), 0x05)],
    ids=["landing pad base", "odd pointers", "relocated call sites", "action out of the table", "type out of it"],
)
def test_forms_that_are_not_known_are_format_errors(at: int, value: int) -> None:
    damaged = bytearray(TABLE)
    damaged[at] = value
    with pytest.raises(FormatError):
        read_lsda(bytes(damaged), 0)


def test_actions_that_go_round_end() -> None:
    damaged = bytearray(TABLE)
    damaged[len(_HEAD) + len(_SITES) + 3] = 0x7D  # the cleanup leads back to the catch
    with pytest.raises(FormatError):
        read_lsda(bytes(damaged), 0)
