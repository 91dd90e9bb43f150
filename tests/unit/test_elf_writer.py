"""The ET_REL writer, read back by our reader and by readelf."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.elf.writer import NewRelocation, NewSection, NewSymbol, symbol_numbers, write_relocatable
from katana_cc.errors import FormatError

TEXT = NewSection(".text.f", c.SHT_PROGBITS, 6, 16, b"\xe8\0\0\0\0\xc3", relocations=(NewRelocation(1, 4, 0, -4),))
BSS = NewSection(".bss.b", c.SHT_NOBITS, 3, 32, b"", 100)
CALLEE = NewSymbol("callee", c.STB_GLOBAL, c.STT_NOTYPE, 0, 0, 0)
F = NewSymbol("f", c.STB_LOCAL, c.STT_FUNC, 1, 0, 6)
B = NewSymbol("b", c.STB_LOCAL, c.STT_OBJECT, 2, 0, 100)


def _read(sections: list[NewSection], symbols: list[NewSymbol]) -> ElfFile:
    return ElfFile(write_relocatable(c.EM_X86_64, sections, symbols))


def test_the_same_input_gives_the_same_bytes() -> None:
    assert write_relocatable(62, [TEXT, BSS], [CALLEE, F, B]) == write_relocatable(62, [TEXT, BSS], [CALLEE, F, B])


def test_sections_keep_their_order_and_contents() -> None:
    elf = _read([TEXT, BSS], [CALLEE, F, B])
    assert [s.name for s in elf.sections[1:3]] == [".text.f", ".bss.b"]
    assert elf.contents(elf.sections[1]) == TEXT.data
    assert elf.sections[2].size == 100


def test_contents_are_aligned_in_the_file() -> None:
    odd = NewSection(".odd", c.SHT_PROGBITS, 0, 1, b"x")
    elf = _read([odd, replace(TEXT, alignment=64)], [CALLEE])
    assert elf.sections[2].offset % 64 == 0


def test_local_symbols_come_first_and_sh_info_counts_them() -> None:
    elf = _read([TEXT, BSS], [CALLEE, F, B])
    assert [s.name for s in elf.symbols] == ["", "f", "b", "callee"]
    table = elf.section(".symtab")
    assert table is not None
    assert table.info == 3


def test_symbol_numbers_tells_where_each_symbol_went() -> None:
    elf = _read([TEXT, BSS], [CALLEE, F, B])
    assert [elf.symbols[n].name for n in symbol_numbers([CALLEE, F, B])] == ["callee", "f", "b"]


def test_relocations_follow_the_renumbered_symbols() -> None:
    elf = _read([TEXT, BSS], [CALLEE, F, B])
    (relocation,) = elf.relocations(1)
    assert elf.symbols[relocation.symbol].name == "callee"
    assert (relocation.offset, relocation.type, relocation.addend) == (1, 4, -4)


def test_a_relocation_may_have_no_symbol() -> None:
    none = NewRelocation(1, 4, None, 5)
    assert _read([replace(TEXT, relocations=(none,))], [F]).relocations(1)[0].symbol == 0


def test_group_flags_are_stripped() -> None:
    elf = _read([replace(TEXT, flags=6 | c.SHF_GROUP | c.SHF_LINK_ORDER)], [CALLEE])
    assert elf.sections[1].flags == 6


def test_an_address_is_kept_for_images_in_memory() -> None:
    assert _read([replace(TEXT, address=0x7F0000001000)], [CALLEE]).sections[1].address == 0x7F0000001000


@pytest.mark.parametrize("count", [c.SHN_LORESERVE - 7, c.SHN_LORESERVE - 3, c.SHN_LORESERVE, c.SHN_LORESERVE + 40])
def test_more_sections_than_sixteen_bits_count(count: int) -> None:
    """From 0xff00 on the count, the name table's index and the symbols' sections are kept elsewhere."""
    sections = [NewSection(".s", c.SHT_PROGBITS, 2, 1, b"")] * (count - 1) + [NewSection(".last", 1, 2, 1, b"x")]
    symbols = [NewSymbol("first", 0, 1, 1, 0, 0), NewSymbol("last", 0, 1, count, 0, 1)]
    elf = _read(sections, symbols)
    assert elf.sections[elf.symbols[2].section].name == ".last"
    assert elf.symbols[1].section == 1
    assert elf.sections[-1].name == ".shstrtab"
    assert any(s.type == c.SHT_SYMTAB_SHNDX for s in elf.sections) == (count >= c.SHN_LORESERVE)


def test_readelf_agrees_about_many_sections(tmp_path: Path) -> None:
    count = c.SHN_LORESERVE + 40
    sections = [NewSection(".s", c.SHT_PROGBITS, 2, 1, b"")] * (count - 1) + [NewSection(".last", 1, 2, 1, b"x")]
    path = tmp_path / "many.o"
    path.write_bytes(write_relocatable(62, sections, [NewSymbol("last", 0, 1, count, 0, 1)]))
    done = subprocess.run(["readelf", "-hsW", path], capture_output=True, text=True, check=True)
    assert not done.stderr
    assert f"({count + 5})" in done.stdout  # null, .symtab, .symtab_shndx, .strtab, .shstrtab
    assert f"{count} last" in done.stdout


@pytest.mark.skipif(not shutil.which("eu-elflint"), reason="needs eu-elflint")
def test_eu_elflint_accepts_many_sections(tmp_path: Path) -> None:
    count = c.SHN_LORESERVE + 1
    sections = [NewSection(".s", c.SHT_PROGBITS, 2, 1, b"")] * count
    path = tmp_path / "many.o"
    path.write_bytes(write_relocatable(62, sections, [NewSymbol("last", 0, 1, count, 0, 0)]))
    done = subprocess.run(["eu-elflint", "--strict", path], capture_output=True, text=True, check=False)
    assert done.stdout == "No errors\n"


@pytest.mark.parametrize(
    ("sections", "symbols"),
    [
        ([replace(TEXT, name="a\0b")], [CALLEE]),
        ([replace(TEXT, alignment=3)], [CALLEE]),
        ([TEXT], []),  # its relocation has no symbol
        ([replace(BSS, data=b"x")], []),
        ([replace(TEXT, flags=2**64)], [CALLEE]),
        ([TEXT], [replace(CALLEE, section=2)]),
        ([TEXT], [replace(CALLEE, name="\ud800")]),
        ([TEXT], [replace(CALLEE, type=16)]),
        ([TEXT], [replace(CALLEE, value=-1)]),
    ],
)
def test_what_makes_no_sense_is_refused(sections: list[NewSection], symbols: list[NewSymbol]) -> None:
    with pytest.raises(FormatError):
        write_relocatable(62, sections, symbols)
