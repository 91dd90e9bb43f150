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
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import InvalidPatchError
from katana_cc.patch.checks import check_file
from katana_cc.patch.codec import decode, encode
from katana_cc.patch.debuginfo import CarriedFunction, with_debug_information
from katana_cc.patch.model import PatchObject
from katana_cc.patch.sources import Origin, with_sources
from tests.support.patches import carried_sections, from_object, sample
from tests.support.tools import silent

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


def _decoded_lines(path: Path) -> Counter[tuple[str, str, str, bool]]:
    """(file, line, address, whether a statement) of every row as readelf decodes it."""
    out = silent("readelf", "--debug-dump=decodedline", path, cwd=path.parent)
    rows = re.findall(r"^(\S+) +(\d+) +(0x[0-9a-f]+|0)(?: +\[?\d+\]?)?( +x)?$", out, re.MULTILINE)
    return Counter((file, line, address, bool(mark)) for file, line, address, mark in rows)


def test_readelf_decodes_the_compiler_s_own_rows(made: Made) -> None:
    path, _ = made
    ours, theirs = _decoded_lines(path), _decoded_lines(path.with_name("s.o"))
    assert ours
    assert ours == theirs


def test_readelf_shows_each_function_with_its_declaration(made: Made) -> None:
    path, _ = made
    out = silent("readelf", "--debug-dump=info", path, cwd=path.parent)
    found = re.findall(r"DW_AT_name +: (\w+)\n.*\n.*\n +<.*decl_file +: (\d+)\n.*decl_line +: (\d+)", out)
    lines = {name: line for name, _, line in found}
    assert lines["pick"] == "7"
    assert lines["more"] == "1"
    assert len({file for _, file, _ in found}) == 2  # s.c and more.h


def test_elfutils_reads_it_without_a_word(made: Made) -> None:
    path, _ = made
    out = silent("eu-readelf", "--debug-dump=info", "--debug-dump=line", "--debug-dump=ranges", path, cwd=path.parent)
    assert '"pick"' in out
    assert silent("eu-elflint", "--strict", path, cwd=path.parent) == "No errors\n"


@pytest.mark.parametrize("linker", ["ld.bfd", "ld.gold", "ld.lld", "ld.mold"])
def test_linkers_relocate_it(made: Made, linker: str) -> None:
    path, _ = made
    silent(linker, "-r", path, "-o", path.with_suffix(".o"), cwd=path.parent)


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
    out = silent("gdb", "-nx", "-batch", *commands, cwd=path.parent)
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
    out = silent("gdb", "-nx", "-batch", "-ex", add, "-ex", f"info line {function}", cwd=path.parent)
    return re.findall(r'Line (\d+) of ".*" starts at address 0x100000 <.*> and ends at (0x\w+)', out)


ROWS = st.lists(
    st.builds(
        Row, st.integers(0, 20), st.sampled_from(["a.c", "dir/b.h", "/abs/c.c"]), st.integers(0, 100_000), st.booleans()
    ),
    min_size=1,
    max_size=12,
).map(lambda rows: sorted(rows, key=lambda row: row.offset))


@settings(max_examples=200)
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


def _origins(elf: ElfFile, first: int) -> list[Origin]:
    info = open_debug_info(elf)
    code = [s for s in carried_sections(elf) if s.flags & 4]
    places = {s.number: i for i, s in enumerate(carried_sections(elf))}
    return [Origin(first + places[s.number], info, s.number) for s in code]


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
    out = silent("gdb", "-nx", "-batch", *words, cwd=tmp_path)
    assert "if (x > 3)" in out
    assert "return x + 5;" in out


def test_cpp_functions_are_named_as_in_cpp(tmp_path: Path) -> None:
    (tmp_path / "s.cc").write_text("namespace space { struct S { int m(int); }; int S::m(int x) { return x * 3; } }\n")
    subprocess.run(["g++", "-g", "-O1", "-ffunction-sections", "-c", "s.cc"], cwd=tmp_path, check=True)
    elf = ElfFile((tmp_path / "s.o").read_bytes())
    path = tmp_path / "p.kpo"
    path.write_bytes(encode(with_sources(from_object(elf), _origins(elf, 0))))
    where = path_section(path, ".text._ZN")
    add = f"add-symbol-file {path} -s {where} 0x100000"
    words = ["-ex", add, "-ex", "info line space::S::m", "-ex", "info scope space::S::m", "-ex", "ptype space::S"]
    out = silent("gdb", "-nx", "-batch", *words, cwd=tmp_path)
    assert re.search(r'Line 1 of "s.cc" starts at address 0x100000 ', out)
    assert re.search(r"Symbol this is .*length 8", out)
    assert "struct space::S {" in out


def path_section(path: Path, start: str) -> str:
    """The name of the section of a file that begins so."""
    return next(s.name for s in ElfFile(path.read_bytes()).sections if s.name.startswith(start))


def test_an_object_without_debug_information_adds_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.c").write_text("int f(int x) { return x; }\n")
    subprocess.run(["gcc", "-g0", "-ffunction-sections", "-c", "s.c"], cwd=tmp_path, check=True)
    elf = ElfFile((tmp_path / "s.o").read_bytes())
    po = from_object(elf)
    assert with_sources(po, _origins(elf, 0)) == po


RICH = """\
#include <stdarg.h>
struct leaf { double weight; unsigned flag : 3, mode : 5; union { int number; char text[4]; } u; };
typedef struct leaf leaf_t;
enum colour { RED, GREEN = 5, BLUE = -1 };
struct tree { struct tree *left, *right; leaf_t leaves[3]; enum colour colour; int (*visit)(struct tree *, ...); };
extern int outside(const void *, long);
static const int table[4] = {1, 2, 3, 4};
int kept;
static inline int helper(struct tree *t, int depth)
{
  int sum = t->leaves[0].u.number + depth;
  return outside(&sum, depth) + sum;
}
int pick(struct tree *t, const char *name, long many, ...)
{
  static int calls;
  int total = 0;
  va_list rest;
  va_start(rest, many);
  for (long i = 0; i < many; i++) {
    leaf_t copy = t->leaves[i % 3];
    copy.weight += va_arg(rest, double);
    total += outside(&copy, table[i & 3]) + helper(t, (int)i);
    char dynamic[many + 1];
    total += outside(dynamic, calls);
  }
  va_end(rest);
  calls++;
  kept += total;
  return total + outside(name, (long)t->visit);
}
"""
RICH_CPP = """\
#include <string>
#include <vector>
namespace space {
enum class Mode : short { off, on = 7 };
template <class T, int N> struct Box { T items[N]; Mode mode; static int made; T &at(int i) { return items[i]; } };
struct Base { virtual ~Base() {} virtual int value() const = 0; int id = 1; };
struct Derived : Base { int value() const override; Box<long, 3> box; struct Inner { char c; } inner;
  std::string name; };
extern int outside(const void *);
int Derived::value() const {
  auto twice = [this](int k) { return outside(&k) + id + k * 2; };
  std::vector<int> all{1, 2, 3};
  int sum = 0;
  for (const int &x : all) sum += twice(x);
  return sum + outside(&box) + static_cast<int>(inner.c);
}
}
"""
RICH_BUILDS = [
    ("c", "gcc -O0"), ("c", "gcc -O2"), ("c", "gcc -O2 -gdwarf-4"), ("c", "clang -O2"), ("c", "clang -O0"),
    ("cc", "g++ -O0"), ("cc", "g++ -O2"), ("cc", "g++ -O2 -fdebug-types-section"), ("cc", "clang++ -O2"),
]  # fmt: skip


@pytest.fixture(params=RICH_BUILDS, ids=lambda b: b[1])
def rich(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A patch object with all code of a rich file, beside the object `s.o` it was made from."""
    suffix, words = request.param
    compiler, *flags = words.split()
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    (tmp_path / f"s.{suffix}").write_text(RICH if suffix == "c" else RICH_CPP)
    command = [compiler, *flags, "-g", "-ffunction-sections", "-fdata-sections", "-c", f"s.{suffix}", "-o", "s.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    elf = ElfFile((tmp_path / "s.o").read_bytes())
    info = open_debug_info(elf)
    places = {s.number: i for i, s in enumerate(carried_sections(elf))}
    po = with_sources(from_object(elf), [Origin(n, info, number) for number, n in places.items()])
    path = tmp_path / "p.kpo"
    path.write_bytes(encode(po))
    return path


def _scopes(path: Path, functions: list[str]) -> list[str]:
    """What gdb says of functions, their variables and the types of these."""
    # Sections of both files get the same addresses, as far apart as no section is long.
    sections = ElfFile(path.read_bytes()).sections
    names = sorted(s.name for s in sections if s.flags & 2 and s.name.startswith((".text", ".bss")))
    places = (f"-s {name} {0x100000 * n:#x}" for n, name in enumerate(names, 1))
    words = ["-ex", "set print entry-values no", "-ex", " ".join(["add-symbol-file", str(path), *places])]
    for f in functions:
        words += [w for ask in ("info scope", "info line", "ptype", "whatis") for w in ("-ex", f"{ask} {f}")]
    types = "struct tree", "leaf_t", "enum colour", "space::Derived", "space::Mode", "space::Box<long, 3>"
    words += [w for t in types for w in ("-ex", f"ptype /o {t}")]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", *words], capture_output=True, text=True, cwd=path.parent, check=False
    )
    told = (re.sub(r"0x[0-9a-f]+", "0x", line) for line in (done.stdout + done.stderr).splitlines())
    return [x for x in told if "_addr = " not in x and not x.startswith("add symbol table")]


def test_gdb_says_of_a_patch_what_it_says_of_the_object(rich: Path) -> None:
    """A bug: a variable, its place or its type is lost or told wrongly.  Methods that nothing refers to are left out,
    and of type units in an object gdb itself knows less than of ours."""
    is_c = rich.with_name("s.c").exists()
    functions = ["pick"] if is_c else ["space::Derived::value"]
    ours, theirs = _scopes(rich, functions), _scopes(rich.with_name("s.o"), functions)
    assert any("Symbol total is" in line or "Symbol this is" in line for line in ours)
    if not is_c:
        # Of clang's objects gdb's `info scope` takes the lambda's scope for that of the function around it.
        is_other = any(" is a function at address" in x for x in theirs)
        theirs = [x for x in theirs if "offset:" in x or (x.startswith("Symbol ") and not is_other)]
    assert [x for x in theirs if x not in ours] == []


def test_elfutils_reads_it(rich: Path) -> None:
    out = silent("eu-readelf", "--debug-dump=info", "--debug-dump=loc", rich, cwd=rich.parent)
    assert "unknown" not in out.replace("unknown_", "")


def test_readelf_reads_it_without_a_warning(rich: Path) -> None:
    silent("readelf", "--debug-dump=info,loc,Ranges,abbrev,decodedline", rich, cwd=rich.parent)


def test_our_own_reader_finds_the_same_functions(rich: Path) -> None:
    ours, theirs = (open_debug_info(ElfFile(p.read_bytes())) for p in (rich, rich.with_name("s.o")))
    assert isinstance(ours, DebugInfo)
    assert isinstance(theirs, DebugInfo)

    # Of a lambda the class says where it is declared, and where types are is left out.
    def told(info: DebugInfo) -> set[tuple[str, str, int, int]]:
        return {(f.name, f.file, f.line * ("(" not in f.name), f.code.size) for f in functions(info)}

    assert told(ours) == told(theirs)
