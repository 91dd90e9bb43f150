"""LEB128 numbers, abbreviation plans and line pairs: the pure parts of the DWARF reader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.abbrev import abbreviations, skip_steps
from katana_cc.dwarf.leb128 import sleb, uleb
from katana_cc.dwarf.lines import Row, line_pairs
from katana_cc.errors import FormatError


def _uleb(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def _sleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        done = (value == 0 and not byte & 0x40) or (value == -1 and byte & 0x40)
        out.append(byte if done else byte | 0x80)
        if done:
            return bytes(out)


@given(st.integers(0, 2**64 - 1))
def test_uleb_reads_what_was_written(value: int) -> None:
    data = b"\xff" + _uleb(value) + b"\x80"
    assert uleb(data, 1) == (value, len(data) - 1)


@given(st.integers(-(2**63), 2**63 - 1))
def test_sleb_reads_what_was_written(value: int) -> None:
    data = b"\x80" + _sleb(value) + b"\x7f"
    assert sleb(data, 1) == (value, len(data) - 1)


_VALUES: dict[int, bytes] = {
    d.DW_FORM_data1: b"\x01", d.DW_FORM_data2: b"\x01\x02", d.DW_FORM_data4: b"\0" * 4, d.DW_FORM_data8: b"\xff" * 8,
    d.DW_FORM_data16: b"\0" * 16, d.DW_FORM_string: b"name\0", d.DW_FORM_udata: _uleb(300),
    d.DW_FORM_sdata: _sleb(-300), d.DW_FORM_exprloc: b"\x03abc", d.DW_FORM_block1: b"\x02ab",
    d.DW_FORM_block2: b"\x02\0ab", d.DW_FORM_block4: b"\x01\0\0\0a", d.DW_FORM_flag_present: b"",
    d.DW_FORM_addr: b"\0" * 8, d.DW_FORM_strp: b"\0" * 4, d.DW_FORM_strx3: b"\0" * 3, d.DW_FORM_ref_sig8: b"\0" * 8,
    d.DW_FORM_addrx: _uleb(70000), d.DW_FORM_indirect: _uleb(d.DW_FORM_data2) + b"ab",
    d.DW_FORM_sec_offset: b"\0" * 4, d.DW_FORM_ref_udata: _uleb(128),
}  # fmt: skip


@given(st.lists(st.sampled_from(sorted(_VALUES)), max_size=12))
def test_plan_passes_any_mixture_of_forms(forms: list[int]) -> None:
    """A wrong plan would lose its place in the unit: everything after would be read as something else."""
    table = b"\x01\x34\x00" + b"".join(b"\x03" + _uleb(f) for f in forms) + b"\0\0\0"
    found = abbreviations(table, 0, 8, 4)[1]
    data = b"".join(_VALUES[f] for f in forms)
    end = found.size if found.size >= 0 else skip_steps(data, 0, found.steps, 8, 4)
    assert end == len(data)


def test_unknown_form_is_refused() -> None:
    with pytest.raises(FormatError, match="form 0x7e is not known"):
        abbreviations(b"\x01\x34\x00\x03\x7e\0\0\0", 0, 8, 4)


def test_cut_off_abbreviation_table_is_refused() -> None:
    with pytest.raises(FormatError, match="cut off"):
        abbreviations(b"\x01\x34", 0, 8, 4)


def test_lines_at_equal_offsets_make_pairs() -> None:
    old = [Row(0, "a.c", 10), Row(4, "a.c", 12)]
    new = [Row(0, "a.c", 13), Row(4, "a.c", 15)]
    assert line_pairs(old, new) == {("a.c", 10, 13), ("a.c", 12, 15)}


def test_functions_that_begin_elsewhere_are_aligned() -> None:
    old = [Row(32, "a.c", 10), Row(36, "a.c", 11)]
    new = [Row(48, "a.c", 20), Row(52, "a.c", 21)]
    assert line_pairs(old, new, 32, 48) == {("a.c", 10, 20), ("a.c", 11, 21)}


def test_row_in_force_counts_where_only_one_side_has_a_row() -> None:
    pairs = line_pairs([Row(0, "a.c", 10), Row(4, "a.c", 11)], [Row(0, "a.c", 15)])
    assert pairs == {("a.c", 10, 15), ("a.c", 11, 15)}


def test_rows_of_different_files_make_no_pair() -> None:
    assert line_pairs([Row(0, "a.h", 10)], [Row(0, "a.c", 15)]) == frozenset()


def test_several_rows_at_one_offset_are_paired_in_order() -> None:
    old = [Row(0, "a.c", 10), Row(0, "a.c", 12)]
    new = [Row(0, "a.c", 11), Row(0, "a.c", 13)]
    assert line_pairs(old, new) == {("a.c", 10, 11), ("a.c", 12, 13)}
