"""Line tables of compiled objects, against addr2line, and against pyelftools row by row."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile  # type: ignore[import-untyped,unused-ignore] # noqa: TID251

from katana_cc.dwarf.functions import functions
from katana_cc.dwarf.lines import Row, line_pairs, line_rows
from katana_cc.elf.reader import ElfFile
from tests.support.dwarf import BUILDS, build, compile_object, read

SOURCE = r"""
#include <stdio.h>
#include "sum.h"
int first(int n)
{
    int total = 0;
    for (int i = 0; i < n; i++) {
        total += sum(i, n);
        if (total > 1000)
            printf("%d at %d\n", total, __LINE__);
    }
    return total;
}



int second(const char *s)
{
    switch (s[0]) {
    case 'a': return first(1);
    case 'b': return sum(3, 4);
    case 'c': puts("c"); break;
    default: return 0;
    }
    return -1;
}
"""
HEADER = "static inline int sum(int a, int b)\n{\n    if (a > b)\n        return a;\n    return a + b;\n}\n"


def compiled(folder: Path, *command: str) -> Path:
    (folder / "sum.h").write_text(HEADER)
    return compile_object(folder, SOURCE, *command)


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
def test_line_of_every_byte_is_what_addr2line_says(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = compiled(tmp_path, *command)
    info, elf = read(path), ElfFile(path.read_bytes())
    for function in functions(info):
        section = elf.sections[function.code.section].name
        offsets = range(function.code.size)
        answer = subprocess.run(
            ["addr2line", "-j", section, "-e", path, *(hex(o) for o in offsets)],
            check=True, capture_output=True, text=True,
        ).stdout.splitlines()  # fmt: skip
        rows = line_rows(info, function.code.section)
        ends = [b.offset for _, b in pairwise(rows)] + [function.code.size]
        for offset, said in zip(offsets, answer, strict=True):
            # Only the line: binutils' addr2line names the wrong file for a header's function in DWARF 5.
            line = said.split(" (")[0].rsplit(":", 1)[1].replace("?", "0")
            row = next(r for r, end in zip(rows, ends, strict=True) if r.offset <= offset < end)
            assert line == str(row.line), hex(offset)


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
def test_rows_are_those_of_pyelftools(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = compiled(tmp_path, *command)
    info, elf = read(path), ElfFile(path.read_bytes())
    ours = [[tuple(r) for r in line_rows(info, s.number)] for s in elf.sections if line_rows(info, s.number)]
    theirs = []
    with path.open("rb") as stream:
        dwarf = ELFFile(stream).get_dwarf_info()
        for unit in dwarf.iter_CUs():
            current: list[tuple[int, str, int, bool]] = []
            program = dwarf.line_program_for_CU(unit)
            assert program is not None
            files = program.header.file_entry
            for entry in program.get_entries():
                if entry.state is None:
                    continue
                if entry.state.end_sequence:
                    theirs.append(current)
                    current = []
                else:
                    number = entry.state.file - (program.header.version < 5)
                    name, statement = files[number].name.decode(), bool(entry.state.is_stmt)
                    current.append((entry.state.address, name, entry.state.line, statement))
    assert sorted(ours) == sorted(theirs)


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
def test_inlined_header_code_has_rows_of_the_header(tmp_path: Path, command: tuple[str, ...]) -> None:
    info = read(compiled(tmp_path, *command))
    files = {r.file for f in functions(info) for r in line_rows(info, f.code.section)}
    assert files == {"unit.c", "sum.h"}


def test_rows_of_a_part_of_a_section_include_the_one_in_force(tmp_path: Path) -> None:
    info = read(compiled(tmp_path, "gcc", "-g", "-O0"))
    section = functions(info)[0].code.section
    rows = line_rows(info, section)
    between = rows[2].offset + 1
    assert rows[3].offset > between
    part = line_rows(info, section, between, 8)
    assert part[0] == rows[2]
    assert all(r.offset < between + 8 for r in part)


def test_lines_shifted_by_a_comment_are_paired(tmp_path: Path) -> None:
    """The case it is for: the code is equal but for `__LINE__`, which moved by three."""
    (tmp_path / "sum.h").write_text(HEADER)
    old = build(tmp_path, SOURCE, "gcc", "-g", "-O2")
    new = build(tmp_path, SOURCE.replace("int first", "/* why\n * so\n */\nint first"), "gcc", "-g", "-O2")
    before, after = (next(f for f in functions(i) if f.name == "first") for i in (old, new))
    assert before.code.size == after.code.size
    pairs = line_pairs(line_rows(old, before.code.section), line_rows(new, after.code.section))
    line = SOURCE.split("\n").index('            printf("%d at %d\\n", total, __LINE__);') + 1
    assert ("unit.c", line, line + 3) in pairs
    assert {b - a for file, a, b in pairs if file == "unit.c"} == {3}
    assert {b - a for file, a, b in pairs if file == "sum.h"} == {0}


def test_section_without_code_has_no_rows(tmp_path: Path) -> None:
    info = build(tmp_path, "int v = 3;", "gcc", "-g")
    assert [line_rows(info, s.number) for s in info.elf.sections if line_rows(info, s.number)] == []


def test_row_is_a_value() -> None:
    assert Row(1, "a.c", 2) == Row(1, "a.c", 2)
