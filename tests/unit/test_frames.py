"""The .eh_frame reader against readelf, over whole libraries and our own objects."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from katana_cc.dwarf.frames import Cie, Fde, HeaderTable, SectionTable, records, row_at
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError

REGISTERS = ["rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "ra"]


def libc() -> Path:
    """The C library of this machine: its tables hold what others do not (DW_CFA_GNU_args_size, signal frames)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libc.so" in line or "/libc-" in line:
            return Path(line.split()[-1])
    pytest.skip("the C library's file is not found")


@pytest.fixture(scope="module")
def elf() -> ElfFile:
    """The C library."""
    return ElfFile(libc().read_bytes())


def frames_of(elf: ElfFile) -> tuple[bytes, int]:
    """Its .eh_frame: bytes and address."""
    section = elf.section(".eh_frame")
    assert section is not None
    return elf.contents(section), section.address


def test_every_fde_is_that_of_readelf(elf: ElfFile) -> None:
    """A bug: a record is skipped, or its range is wrong."""
    text = subprocess.run(["readelf", "-wF", libc()], capture_output=True, text=True, check=False).stdout
    wanted = {
        (int(m[1], 16), int(m[2], 16), int(m[3], 16))
        for m in re.finditer(r"^([0-9a-f]+) [0-9a-f]+ [0-9a-f]+ FDE cie=\S+ pc=([0-9a-f]+)\.\.([0-9a-f]+)", text, re.M)
    }
    found = {(r.offset, r.pc, r.pc + r.pc_size) for r in records(*frames_of(elf)) if isinstance(r, Fde)}
    assert found == wanted
    assert len(found) > 1000


def test_every_row_is_that_of_readelf(elf: ElfFile) -> None:
    """A bug: an instruction is misread; every row readelf prints is compared: CFA, saved registers, return address."""
    text = subprocess.run(["readelf", "-wF", libc()], capture_output=True, text=True, check=False).stdout
    fdes = {r.offset: r for r in records(*frames_of(elf)) if isinstance(r, Fde)}
    fde: Fde | None = None
    columns: list[str] = []
    compared = 0
    for line in text.splitlines():
        head = re.match(r"^([0-9a-f]+) [0-9a-f]+ [0-9a-f]+ (FDE|CIE)", line)
        if head:
            fde = fdes[int(head[1], 16)] if head[2] == "FDE" else None
        elif "LOC" in line:
            columns = line.split()[2:]
        elif fde is not None and re.match(r"^[0-9a-f]{16} ", line):
            words = re.sub(r"\br\d+ \((\w+)\)", r"\1", line).split()  # "r1 (rdx)" is one column
            pc = int(words[0], 16)
            if not fde.pc <= pc < fde.pc + fde.pc_size:
                continue
            row = row_at(fde, pc)
            cfa = f"{REGISTERS[row.cfa_register]}{row.cfa_offset:+}" if not row.cfa_expression else "exp"
            assert words[1] == cfa, (hex(pc), line)
            for column, value in zip(columns, words[2:], strict=False):
                rule = row.rules.get(REGISTERS.index(column))
                shown = {"offset": f"c{rule.value:+}" if rule else "", "expression": "exp", "val_expression": "vexp"}
                shown["register"] = REGISTERS[rule.value] if rule and rule.kind == "register" else ""
                assert value == ("u" if rule is None or rule.kind == "undefined" else shown[rule.kind]), (hex(pc), line)
            compared += 1
    assert compared > 10000


def test_header_table_finds_what_the_section_holds(elf: ElfFile) -> None:
    """A bug: the binary search is off by one at the first or last function."""
    section = SectionTable(*frames_of(elf))
    header = next(p for p in elf.segments if p.type == c.PT_GNU_EH_FRAME)
    table = HeaderTable(elf.read, header.vaddr)
    fdes = [r for r in records(*frames_of(elf)) if isinstance(r, Fde) and r.pc_size]
    for fde in fdes:
        for pc in (fde.pc, fde.pc + fde.pc_size - 1):
            found = table.find(pc)
            assert found is not None
            assert (found.pc, found.pc_size) == (fde.pc, fde.pc_size)
    first = min(f.pc for f in fdes)
    assert table.find(first - 1) is None
    assert section.find(first - 1) is None


def test_signal_frame_is_marked(elf: ElfFile) -> None:
    """A bug: the frame below a handler is looked up one byte too early."""
    restore = [r for r in records(*frames_of(elf)) if isinstance(r, Fde) and r.cie.is_signal_frame]
    assert len(restore) == 1
    assert row_at(restore[0], restore[0].pc).cfa_expression


def test_raw_ranges_of_an_object_cover_its_section(tmp_path: Path) -> None:
    """A bug: a copied record lacks bytes; field offsets must be where the relocations are."""
    (tmp_path / "a.c").write_text(
        "void g(int *); int f(int n) { int a[64]; g(a); return a[n]; } int h(void) { return 1; }"
    )
    subprocess.run(["gcc", "-O2", "-ffunction-sections", "-c", "a.c"], cwd=tmp_path, check=True)
    elf = ElfFile((tmp_path / "a.o").read_bytes())
    section = elf.section(".eh_frame")
    assert section is not None
    found = list(records(elf.contents(section)))
    assert sum(r.size for r in found) == section.size
    fields = {r.pc_offset for r in found if isinstance(r, Fde)}
    assert fields == {r.offset for r in elf.relocations(section.number)}


def test_personality_and_language_data_are_located(tmp_path: Path) -> None:
    """A bug: the fields of C++ exceptions are off."""
    (tmp_path / "a.cc").write_text("void g(); struct S { ~S(); }; void f() { S s; g(); }")
    subprocess.run(["g++", "-O2", "-c", "a.cc"], cwd=tmp_path, check=True)
    elf = ElfFile((tmp_path / "a.o").read_bytes())
    section = elf.section(".eh_frame")
    assert section is not None
    fields = set()
    for record in records(elf.contents(section)):
        if isinstance(record, Cie):
            fields |= {record.personality_offset} - {0}
        else:
            fields |= {record.pc_offset, record.lsda_offset} - {0}
    assert fields == {r.offset for r in elf.relocations(section.number)}


@pytest.mark.parametrize("cut", [9, 17, 30, 40])
def test_cut_off_section_is_a_format_error(elf: ElfFile, cut: int) -> None:
    """A bug: struct.error, or an endless loop."""
    data, address = frames_of(elf)
    with pytest.raises(FormatError):
        list(records(data[:cut], address))
