"""Reading an output by its link-time addresses."""

from __future__ import annotations

import struct

import pytest

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError

BASE = 0x1000


def output(data: bytes, memory: int, cut: int = 0) -> ElfFile:
    """One PT_LOAD segment at BASE: `data`, then zeros up to `memory` bytes; the file is cut off by `cut` bytes."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", c.ET_EXEC, c.EM_X86_64, 1, BASE, 64, 0, 0, 64, 56, 1, 64, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", c.PT_LOAD, 5, 120, BASE, BASE, len(data), memory, 1)
    whole = header + segment + data
    return ElfFile(whole[: len(whole) - cut])


@pytest.mark.parametrize(
    ("offset", "data"),
    [(0, b"abcd"), (2, b"cdef"), (6, b"gh\0\0"), (8, b"\0"), (0, b"x"), (7, b"hi"), (15, b"\0"), (4, b"")],
)
def test_image_holds_what_is_read_there(offset: int, data: bytes) -> None:
    """The end of the file's part of a segment is not the end of the segment: zeros follow."""
    elf = output(b"abcdefgh", 16)
    assert elf.holds(BASE + offset, data) == (elf.read(BASE + offset, len(data)) == data)


@pytest.mark.parametrize(("offset", "data"), [(-1, b"a"), (15, b"\0\0"), (16, b"\0"), (4096, b"")])
def test_image_holds_nothing_outside_its_segments(offset: int, data: bytes) -> None:
    with pytest.raises(FormatError, match="no segment holds"):
        output(b"abcdefgh", 16).holds(BASE + offset, data)


def test_image_that_is_cut_off_is_an_error() -> None:
    with pytest.raises(FormatError, match="truncated"):
        output(b"abcdefgh", 16, cut=2).holds(BASE, b"ab")
