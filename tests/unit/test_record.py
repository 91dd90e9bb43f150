"""Records of objects: what is packed is read back, and a record that is cut off is not taken for another."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from katana_cc.elf import constants as c
from katana_cc.elf.reader import Symbol
from katana_cc.recorder.record import ObjectRecord, SectionRecord, from_bytes, to_bytes

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
BYTE = st.integers(0, 255)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.just("\udc80"), max_size=8)
SECTIONS = st.builds(SectionRecord, NAMES, U32, U32, U64, U64, U64, st.binary(max_size=16))
SYMBOLS = st.builds(Symbol, NAMES.filter(bool), BYTE, BYTE, BYTE, U32 | st.just(c.SHN_COMMON), U64, U64)
RECORDS = st.builds(ObjectRecord, NAMES, st.lists(SECTIONS, max_size=4), st.lists(SYMBOLS, max_size=4), NAMES)


@given(RECORDS)
def test_record_is_read_as_it_was_written(record: ObjectRecord) -> None:
    read = from_bytes(to_bytes(record))
    assert (read.file, read.problem) == (record.file, record.problem)
    assert read.sections == record.sections
    assert read.symbols == record.symbols
    assert read.symbol_names == [s.name for s in record.symbols]
    assert read.common_names == [s.name for s in record.symbols if s.section == c.SHN_COMMON]


@given(RECORDS, st.data())
def test_record_that_is_cut_off_is_an_error(record: ObjectRecord, data: st.DataObject) -> None:
    whole = to_bytes(record)
    with pytest.raises((ValueError, struct.error)):
        from_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_sections_of_one_name_are_not_looked_up_by_it() -> None:
    """One of the two would be placed where the other lies."""
    text = SectionRecord(".text.f", 1, c.SHT_PROGBITS, c.SHF_ALLOC, 4, 0, b"abcd")
    assert ObjectRecord("a.c", [text], ()).rows_by_name() == {".text.f": text[1:]}
    assert ObjectRecord("a.c", [text, text._replace(number=2)], ()).rows_by_name() is None
