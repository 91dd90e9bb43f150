"""Pure parts of the proof: line numbers as immediates, fields, and memory that a stored image does not hold."""

from __future__ import annotations

import struct
from functools import partial

from katana_cc.cpu.x86_64 import code as x86
from katana_cc.cpu.x86_64 import relocations
from katana_cc.diff.program import Place
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.proof import irrelevant
from katana_cc.proof.model import Absolute, Carried, Content, Field, Named, Target

only_own_lines = partial(irrelevant.only_own_lines, code=x86)
ROWS_OLD = [(0, 10), (5, 12)]
ROWS_NEW = [(0, 13), (5, 15)]


def code(line: int) -> bytes:
    """mov $line, %edi; ret."""
    return b"\xbf" + struct.pack("<I", line) + b"\xc3"


def test_line_that_moved_with_its_statement() -> None:
    assert only_own_lines(code(12), code(15), ROWS_OLD, ROWS_NEW)


def test_end_of_a_macro_call_over_some_lines() -> None:
    assert only_own_lines(code(14), code(17), ROWS_OLD, ROWS_NEW)


def test_number_that_moved_further_than_its_line() -> None:
    assert not only_own_lines(code(12), code(16), ROWS_OLD, ROWS_NEW)


def test_number_that_is_no_line() -> None:
    assert not only_own_lines(code(700), code(703), ROWS_OLD, ROWS_NEW)


def test_nothing_is_a_line_without_a_line_table() -> None:
    assert not only_own_lines(code(12), code(15), [], [])


def test_line_that_crosses_a_byte() -> None:
    """254 → 257 changes two bytes of the immediate."""
    assert only_own_lines(code(254), code(257), [(0, 254)], [(0, 257)])


def test_line_in_one_byte() -> None:
    assert only_own_lines(b"\x6a\x0c\xc3", b"\x6a\x0f\xc3", ROWS_OLD, ROWS_NEW)


def test_code_of_another_size_is_no_line() -> None:
    assert not only_own_lines(code(12), code(15) + b"\x90", ROWS_OLD, ROWS_NEW)


def test_number_between_two_lines_of_its_instruction() -> None:
    """No line moved: several statements are one instruction, and a byte of its constant is near one of their lines."""
    rows = [(0, 19), (0, 22), (0, 23), (6, 24)]
    code = bytes.fromhex("bf 22040000 c3"), bytes.fromhex("bf 23040000 c3")  # mov $1058,%edi; ret
    assert not only_own_lines(*code, rows, rows)
    assert not only_own_lines(b"\xbf\x16" + code[0][2:], b"\xbf\x17" + code[1][2:], rows, rows)


def test_low_byte_of_a_number_is_no_line() -> None:
    rows, later = [(0, 30)], [(0, 31)]
    assert not only_own_lines(bytes.fromhex("bf 22040000 c3"), bytes.fromhex("bf 23040000 c3"), rows, later)
    assert not only_own_lines(bytes.fromhex("83 c7 22 c3"), bytes.fromhex("83 c7 23 c3"), rows, later)  # add $34,%edi


def test_targets_of_different_kinds_are_never_equal() -> None:
    """A carried section 1 is not the number 1, and no place."""
    targets: set[Target] = {Carried(1), Absolute(1), Named("1"), Content(b"1"), Place(1, 1)}
    assert len(targets) == 5


def test_entry_counts_from_the_end_of_the_field() -> None:
    assert Field(1, c.R_X86_64_PLT32, Carried(0), -4, 0).is_entry(relocations)
    assert Field(0, c.R_X86_64_64, Carried(0), 0, 0).is_entry(relocations)
    assert not Field(0, c.R_X86_64_PC32, Carried(0), 0, 0).is_entry(relocations)


def test_masked_leaves_all_but_the_fields() -> None:
    fields = [Field(1, c.R_X86_64_PC32, Carried(0), -4, 0)]
    assert relocations.masked(b"\xe8\x01\x02\x03\x04\xc3", fields, relaxed=False) == b"\xe8\0\0\0\0\xc3"


def test_memory_beyond_the_end_of_the_file_is_zero() -> None:
    """.bss of a stored image, which ends with the last segment's part of the file."""
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 6, 0, 0x1000, 0x1000, 124, 0x1000, 0x1000)
    elf = ElfFile(header + segment + b"data")
    assert elf.read(0x1000 + 120, 8) == b"data\0\0\0\0"
    assert elf.read(0x1000 + 0x800, 8) == bytes(8)
