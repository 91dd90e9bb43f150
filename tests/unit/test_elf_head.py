"""The head of an ELF image in memory: what tools read there."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from katana_cc.elf import constants as c
from katana_cc.elf.image import (
    PAGE,
    FrameIndex,
    ImageSection,
    ImageSegment,
    ImageSymbol,
    write_head,
)
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import TargetError
from katana_cc.process.image import PT_KATANA, image_file, ledger_address
from katana_cc.process.maps import MemoryMap
from katana_cc.process.target import extent

LEDGER = b"KATANALG" + bytes(PAGE - 8)
CODE = bytes(range(256)) * 16
DATA = b"secret" + bytes(PAGE - 6)
SEGMENTS = (
    ImageSegment(c.PT_LOAD, c.PF_R, 0, PAGE),
    ImageSegment(c.PT_LOAD, c.PF_R | c.PF_X, PAGE, PAGE),
    ImageSegment(c.PT_LOAD, c.PF_R | c.PF_W, 2 * PAGE, PAGE),
    ImageSegment(PT_KATANA, c.PF_R, 0, 64, 8),
)
SECTIONS = (
    ImageSection(".eh_frame", c.SHT_PROGBITS, c.SHF_ALLOC, 0x800, 0x40),
    ImageSection(".text", c.SHT_PROGBITS, c.SHF_ALLOC | c.SHF_EXECINSTR, PAGE, 0x100),
)
SYMBOLS = (ImageSymbol("answer", c.STT_FUNC, 1, PAGE + 0x10, 0x20), ImageSymbol("more", c.STT_FUNC, 1, PAGE + 0x40, 8))
FRAMES = FrameIndex(0x800, ((PAGE + 0x40, 0x820), (PAGE + 0x10, 0x810)))


def unloaded(head: int) -> Sequence[tuple[str, bytes]]:
    return [(".debug_info", struct.pack("<Q", head + PAGE)), (".debug_str", b"x" * 5000)]


def head() -> bytes:
    return write_head(c.EM_X86_64, SEGMENTS, SECTIONS, SYMBOLS, unloaded, FRAMES)


class FakeMemory:
    """A process that maps some bytes at an address."""

    def __init__(self, start: int, data: bytes) -> None:
        self.start, self.data = start, data

    def read(self, address: int, size: int) -> bytes:
        at = address - self.start
        if at < 0 or at + size > len(self.data):
            raise TargetError("not mapped")
        return self.data[at : at + size]


def mapping() -> bytes:
    return head() + LEDGER + CODE + DATA


def test_offsets_addresses_and_distances_are_the_same() -> None:
    """A bug: a tool that goes by one of them is led astray by another."""
    elf = ElfFile(mapping())
    size = len(head())
    assert size % PAGE == 0
    assert elf.type == c.ET_DYN
    assert all(s.offset == s.vaddr for s in elf.segments)
    loads = [(s.vaddr, s.file_size, s.flags) for s in elf.segments if s.type == c.PT_LOAD]
    assert loads == [(0, size + PAGE, 4), (size + PAGE, PAGE, 5), (size + 2 * PAGE, PAGE, 6)]
    assert all(s.address in (0, s.offset) for s in elf.sections)


def test_symbols_lie_where_the_code_lies() -> None:
    elf = ElfFile(mapping())
    text = elf.section(".text")
    assert text is not None
    found = [(y.name, y.value - len(head()), y.size, y.section) for y in elf.symbols[1:]]
    assert found == [("answer", PAGE + 0x10, 0x20, text.number), ("more", PAGE + 0x40, 8, text.number)]
    assert elf.contents(text) == CODE[:0x100]


def test_what_is_not_loaded_knows_the_size_of_the_head() -> None:
    elf = ElfFile(mapping())
    info = elf.section(".debug_info")
    assert info is not None
    assert struct.unpack("<Q", elf.contents(info)) == (len(head()) + PAGE,)


def test_the_index_of_frames_is_sorted_and_relative_to_itself() -> None:
    """A bug: a search by halves misses a function."""
    elf = ElfFile(mapping())
    section = elf.section(".eh_frame_hdr")
    assert section is not None
    version, *encodings, frame, count = struct.unpack_from("<4BiI", elf.contents(section))
    assert (version, encodings, count) == (1, [0x1B, 0x03, 0x3B], 2)
    size = len(head())
    assert section.address + 4 + frame == size + 0x800
    table = list(struct.iter_unpack("<ii", elf.contents(section)[12:]))
    found = [(section.address + pc - size, section.address + fde - size) for pc, fde in table]
    assert found == sorted(FRAMES.entries)
    assert any(s.type == c.PT_GNU_EH_FRAME and s.vaddr == section.address for s in elf.segments)


def test_the_build_id_tells_contents_apart_and_nothing_else() -> None:
    ids = {ElfFile(mapping()).build_id for _ in range(2)}
    other = write_head(c.EM_X86_64, SEGMENTS, SECTIONS, SYMBOLS[:1], unloaded, FRAMES)
    assert len(ids) == 1
    assert ElfFile(other).build_id not in ids


def test_the_ledger_is_found_behind_a_head_and_without_one() -> None:
    """A bug: a patch that an earlier katana applied is taken for an abandoned one, and unmapped."""
    start = 0x7F0000000000
    assert ledger_address(FakeMemory(start, mapping()), start) == start + len(head())
    assert ledger_address(FakeMemory(start, LEDGER), start) == start
    assert ledger_address(FakeMemory(start, bytes(PAGE)), start) == start


@pytest.mark.parametrize("at", [54, 56, 32])
def test_a_head_that_makes_no_sense_leads_nowhere(at: int) -> None:
    """A bug: what a process has written there leads to an error that is no KatanaError."""
    damaged = bytearray(mapping())
    damaged[at : at + 2] = b"\xff\xff"
    address = ledger_address(FakeMemory(0x10000, bytes(damaged)), 0x10000)
    assert address == 0x10000


def test_the_file_of_an_image_holds_code_and_no_variables() -> None:
    start = 0x10000
    data = image_file(FakeMemory(start, mapping()), start, start + len(mapping()))
    assert data[: -len(DATA)] == mapping()[: -len(DATA)]
    assert data[-len(DATA) :] == bytes(len(DATA))


TEXT = """\
10000-12000 r--p 00000000 00:01 7    /memfd:katana:a..b (deleted)
12000-13000 r--p 00000000 00:01 8    /memfd:katana:a..c (deleted)
13000-15000 r--p 00002000 00:01 8    /memfd:katana:a..c (deleted)
15000-16000 r-xp 00004000 00:01 8    /memfd:katana:a..c (deleted)
16000-17000 rw-p 00000000 00:00 0
"""


def test_the_extent_of_a_mapping_begins_with_its_own_head() -> None:
    """A bug: the neighbour, another patch, is unmapped with it; or the head is left."""
    regions = MemoryMap.parse(TEXT)
    assert extent(regions, 0x13000, 0x3000) == (0x12000, 0x16000)
    assert extent(regions, 0x10000, 0x2000) == (0x10000, 0x12000)
    assert extent(regions, 0x11000, 0x1000) == (0x10000, 0x12000)
