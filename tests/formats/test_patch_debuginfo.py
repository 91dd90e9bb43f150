"""The debug information of a patch object, before readelf, elfutils, the linkers and gdb."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katana_cc.dwarf.dies import DebugInfo, open_debug_info
from katana_cc.dwarf.functions import functions
from katana_cc.dwarf.lines import Row, line_rows
from katana_cc.dwarf.sections import DwarfProblem
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import InvalidPatchError
from katana_cc.patch.checks import check_file
from katana_cc.patch.codec import decode, encode
from katana_cc.patch.debuginfo import CarriedFunction, with_debug_information
from katana_cc.patch.model import PatchObject
from katana_cc.patch.sources import with_sources
from tests.support.patches import carried_sections, from_object, sample

SOURCE = """\
int outside(int);
static int twice(int x)
{
  return outside(x) * 2;
}

int pick(int x)
{
  if (x > 3)
    return twice(x);
  x += 7;
  return outside(x);
}
#include "more.h"
"""
HEADER = "int more(int x)\n{\n  x = outside(x);\n  return x + 1;\n}\n"
COMPILERS = ["gcc -O0", "gcc -O2", "gcc -O2 -gdwarf-4", "clang -O0", "clang -O2"]


def _compile(words: str, folder: Path) -> ElfFile:
    compiler, *flags = words.split()
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    (folder / "s.c").write_text(SOURCE)
    (folder / "more.h").write_text(HEADER)
    command = [compiler, *flags, "-g", "-ffunction-sections", "-c", "s.c", "-o", "s.o"]
    subprocess.run(command, cwd=folder, check=True)
    return ElfFile((folder / "s.o").read_bytes())


def _with_debug_information(elf: ElfFile, folder: Path) -> PatchObject:
    info = open_debug_info(elf)
    assert isinstance(info, DebugInfo)
    index = {s.number: i for i, s in enumerate(carried_sections(elf))}
    carried = [
        CarriedFunction(f.name, index[f.code.section], f.code.offset, f.code.size, f.file, f.line, rows)
        for f in functions(info)
        if (rows := line_rows(info, f.code.section, f.code.offset, f.code.size))
    ]
    return with_debug_information(from_object(elf), carried, directory=str(folder))


@pytest.fixture(params=COMPILERS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, PatchObject]:
    """A patch object's path, beside the object `s.o` that it was made from."""
    po = _with_debug_information(_compile(request.param, tmp_path), tmp_path)
    path = tmp_path / "p.kpo"
    path.write_bytes(encode(po))
    return path, po


Made = tuple[Path, PatchObject]


def _silent(*command: str | Path, cwd: Path) -> str:
    if not shutil.which(str(command[0])):
        pytest.skip(f"needs {command[0]}")
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _decoded_lines(path: Path) -> Counter[tuple[str, str, str, bool]]:
    """(file, line, address, whether a statement) of every row as readelf decodes it."""
    out = _silent("readelf", "--debug-dump=decodedline", path, cwd=path.parent)
    rows = re.findall(r"^(\S+) +(\d+) +(0x[0-9a-f]+|0)(?: +\[?\d+\]?)?( +x)?$", out, re.MULTILINE)
    return Counter((file, line, address, bool(mark)) for file, line, address, mark in rows)


def test_readelf_decodes_the_compiler_s_own_rows(made: Made) -> None:
    path, _ = made
    ours, theirs = _decoded_lines(path), _decoded_lines(path.with_name("s.o"))
    assert ours
    assert ours == theirs


def test_readelf_shows_each_function_with_its_declaration(made: Made) -> None:
    path, _ = made
    out = _silent("readelf", "--debug-dump=info", path, cwd=path.parent)
    found = re.findall(r"DW_AT_name +: (\w+)\n.*\n.*\n +<.*decl_file +: (\d+)\n.*decl_line +: (\d+)", out)
    lines = {name: line for name, _, line in found}
    assert lines["pick"] == "7"
    assert lines["more"] == "1"
    assert len({file for _, file, _ in found}) == 2  # s.c and more.h


def test_elfutils_reads_it_without_a_word(made: Made) -> None:
    path, _ = made
    out = _silent("eu-readelf", "--debug-dump=info", "--debug-dump=line", "--debug-dump=ranges", path, cwd=path.parent)
    assert '"pick"' in out
    assert _silent("eu-elflint", "--strict", path, cwd=path.parent) == "No errors\n"


@pytest.mark.parametrize("linker", ["ld.bfd", "ld.gold", "ld.lld", "ld.mold"])
def test_linkers_relocate_it(made: Made, linker: str) -> None:
    path, _ = made
    _silent(linker, "-r", path, "-o", path.with_suffix(".o"), cwd=path.parent)


def test_the_second_reader_sees_the_same(made: Made) -> None:
    path, po = made
    data = path.read_bytes()
    assert decode(data, "x") == po
    assert check_file(path, data, po) == []


def test_gdb_shows_file_and_line_of_new_code(made: Made) -> None:
    path, _ = made
    add = f"add-symbol-file {path} -s .text.pick 0x100000 -s .text.more 0x200000"
    questions = ["info line pick", "info line *0x200000", "info symbol 0x100001", "list pick", "info scope pick"]
    commands = [word for q in (add, *questions) for word in ("-ex", q)]
    out = _silent("gdb", "-nx", "-batch", *commands, cwd=path.parent)
    assert re.search(r'Line \d+ of ".*s\.c" starts at address 0x100000 <pick>', out)
    assert re.search(r'Line \d+ of ".*more\.h" starts at address 0x200000 <more>', out)
    assert "if (x > 3)" in out
    # gdb on what the compiler itself wrote is the oracle; there both functions begin at 0 or at some place of gdb's.
    for function in ("pick", "more"):
        (ours,) = _line_of(function, path, f"-s .text.{function} 0x100000")
        (theirs,) = _line_of(function, path.with_name("s.o"), f"-s .text.{function} 0x100000")
        assert ours == theirs


def _line_of(function: str, path: Path, where: str) -> list[tuple[str, str]]:
    """(line, end) as gdb's `info line` states them."""
    add = f"add-symbol-file {path} {where}"
    out = _silent("gdb", "-nx", "-batch", "-ex", add, "-ex", f"info line {function}", cwd=path.parent)
    return re.findall(r'Line (\d+) of ".*" starts at address 0x100000 <.*> and ends at (0x\w+)', out)


ROWS = st.lists(
    st.builds(
        Row, st.integers(0, 20), st.sampled_from(["a.c", "dir/b.h", "/abs/c.c"]), st.integers(0, 100_000), st.booleans()
    ),
    min_size=1,
    max_size=12,
).map(lambda rows: sorted(rows, key=lambda row: row.offset))


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_our_own_reader_gets_back_every_row(rows: list[Row]) -> None:
    carried = CarriedFunction("parse", 0, 0, 21, "a.c", 5, rows)
    elf = ElfFile(encode(with_debug_information(sample(), [carried], directory="/src")))
    info = open_debug_info(elf)
    assert isinstance(info, DebugInfo)
    assert list(line_rows(info, 2)) == rows  # section 2 of the file is the first carried one


def test_a_row_that_began_before_the_function_starts_with_it() -> None:
    carried = CarriedFunction("parse", 0, 4, 8, rows=[Row(at, "a.c", at + 1) for at in (0, 2, 6, 12)])
    info = open_debug_info(ElfFile(encode(with_debug_information(sample(), [carried]))))
    assert isinstance(info, DebugInfo)
    assert list(line_rows(info, 2)) == [Row(4, "a.c", 3), Row(6, "a.c", 7)]


def test_nothing_is_added_for_no_function() -> None:
    assert with_debug_information(sample(), []) == sample()


def test_no_index_changes() -> None:
    po = with_debug_information(sample(), [CarriedFunction("parse", 0, 0, 21)])
    assert po.sections[:7] == sample().sections
    assert po.symbols[:12] == sample().symbols
    assert po.replacements == sample().replacements


@pytest.mark.parametrize(
    "bad",
    [CarriedFunction("f", 99, 0, 1), CarriedFunction("f", 0, 0, 22), CarriedFunction("f", 0, -1, 1),
     CarriedFunction("a\0b", 0, 0, 1), CarriedFunction("f", 0, 0, 1, "a\0b", 1)],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(bad: CarriedFunction) -> None:
    with pytest.raises(InvalidPatchError):
        with_debug_information(sample(), [bad])


def _origins(elf: ElfFile, first: int) -> list[tuple[int, DebugInfo | DwarfProblem, int]]:
    info = open_debug_info(elf)
    code = [s for s in carried_sections(elf) if s.flags & 4]
    places = {s.number: i for i, s in enumerate(carried_sections(elf))}
    return [(first + places[s.number], info, s.number) for s in code]


def test_sources_of_several_directories_are_all_found_by_gdb(tmp_path: Path) -> None:
    """A unit has one directory; a function from elsewhere must not be looked for there."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    first = _compile("gcc -O0", one)
    (two / "other.c").write_text("\n\nint other(int x)\n{\n  return x + 5;\n}\n")
    subprocess.run(["gcc", "-g", "-O0", "-ffunction-sections", "-c", "other.c"], cwd=two, check=True)
    second = ElfFile((two / "other.o").read_bytes())
    a, b = from_object(first), from_object(second)
    joined = replace(a, sections=(*a.sections, *(replace(s, relocations=()) for s in b.sections)))
    po = with_sources(joined, [*_origins(first, 0), *_origins(second, len(a.sections))])
    path = tmp_path / "p.kpo"
    path.write_bytes(encode(po))
    add = f"add-symbol-file {path} -s .text.pick 0x100000 -s .text.other 0x200000"
    words = ["-ex", add, "-ex", "list pick", "-ex", "list *0x200000"]
    out = _silent("gdb", "-nx", "-batch", *words, cwd=tmp_path)
    assert "if (x > 3)" in out
    assert "return x + 5;" in out


def test_cpp_functions_are_named_as_in_cpp(tmp_path: Path) -> None:
    (tmp_path / "s.cc").write_text("namespace space { struct S { int m(int); }; int S::m(int x) { return x * 3; } }\n")
    subprocess.run(["g++", "-g", "-O1", "-ffunction-sections", "-c", "s.cc"], cwd=tmp_path, check=True)
    elf = ElfFile((tmp_path / "s.o").read_bytes())
    path = tmp_path / "p.kpo"
    path.write_bytes(encode(with_sources(from_object(elf), _origins(elf, 0))))
    out = _silent("readelf", "--debug-dump=info", path, cwd=tmp_path)
    assert re.search(r"DW_AT_name +: space::S::m\n", out)
    assert "(C++14)" in out


def test_an_object_without_debug_information_adds_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.c").write_text("int f(int x) { return x; }\n")
    subprocess.run(["gcc", "-g0", "-ffunction-sections", "-c", "s.c"], cwd=tmp_path, check=True)
    elf = ElfFile((tmp_path / "s.o").read_bytes())
    po = from_object(elf)
    assert with_sources(po, _origins(elf, 0)) == po
