"""Functions of compiled objects, against the symbol table and the source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from katana_cc.dwarf.functions import Function, functions, prototype
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from tests.support.dwarf import build, compile_object, read

BUILDS = [
    (compiler, version, level)
    for compiler in ("gcc", "clang")
    for version in ("-gdwarf-4", "-gdwarf-5")
    for level in ("-O0", "-O2", "-Os")
]

# Lines that declare a function are marked, so that the source itself is the oracle.
SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
struct request { int size; };
void fail(const char *, int) __attribute__((cold));
typedef int (*handler)(struct request *, const char *);
static inline int small(int v)              /* here: small */
{
    return v * 3;
}
static __attribute__((noinline)) int check(int c)       /* here: check */
{
    if (__builtin_expect(c > 100, 0)) {
        fail("rare", c);
        fprintf(stderr, "rare %d\n", c);
    }
    return c + small(c);
}
int serve(struct request *r, const char *text, unsigned long n) /* here: serve */
{
    return check(r->size) + (int)n + text[0];
}
void nothing(void) {}                       /* here: nothing */
static int handle(struct request *r, const char *s) { return serve(r, s, 1); } /* here: handle */
handler table[] = { handle };
__attribute__((noinline)) static int parts(struct request *r, int unused) { return r->size * 7; } /* here: parts */
int use(struct request *r) { return parts(r, 3) + small(r->size); } /* here: use */
int any(const char *format, ...) { return format[0]; } /* here: any */
int (*taken)(int) = small;
"""


def marked() -> dict[str, int]:
    """Function → line, from the marks."""
    lines = enumerate(SOURCE.split("\n"), 1)
    return {m[1]: n for n, text in lines if (m := re.search(r"/\* here: (\w+) \*/", text))}


def by_name(found: tuple[Function, ...]) -> dict[str, Function]:
    return {f.name: f for f in found}


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
def test_every_function_symbol_is_covered_and_nothing_else(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Each STT_FUNC symbol is the code or a part of one function, of exactly its size."""
    path = compile_object(tmp_path, SOURCE, *command)
    symbols = {(s.section, s.value, s.size) for s in ElfFile(path.read_bytes()).symbols if s.type == c.STT_FUNC}
    ranges = {(r.section, r.offset, r.size) for f in functions(read(path)) for r in (f.code, *f.parts)}
    assert ranges == symbols


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
def test_declaration_lines_are_those_of_the_source(tmp_path: Path, command: tuple[str, ...]) -> None:
    found = by_name(functions(build(tmp_path, SOURCE, *command)))
    assert {f.file for f in found.values()} == {"unit.c"}
    assert found.keys() <= marked().keys()
    assert {f.name: f.line for f in found.values()} == {k: v for k, v in marked().items() if k in found}


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
def test_prototypes_keep_parameters_that_were_optimised_away(tmp_path: Path, command: tuple[str, ...]) -> None:
    info = build(tmp_path, SOURCE, *command)
    texts = {f.name: prototype(info, f) for f in functions(info)}
    assert texts["serve"] == "int (struct request *, char *, unsigned long)"
    assert texts["nothing"] == "void (void)"
    assert texts["any"] == "int (char *, ...)"
    assert texts["parts"] == "int (struct request *, int)"


def test_cold_half_is_a_part_of_its_function(tmp_path: Path) -> None:
    path = compile_object(tmp_path, SOURCE, "gcc", "-g", "-O2")
    cold = next(s for s in ElfFile(path.read_bytes()).symbols if s.name == "check.cold")
    check = by_name(functions(read(path)))["check"]
    assert [(p.section, p.offset, p.size) for p in check.parts] == [(cold.section, cold.value, cold.size)]
    assert check.code.section != cold.section


def test_linkage_is_told(tmp_path: Path) -> None:
    found = by_name(functions(build(tmp_path, SOURCE, "gcc", "-g")))
    assert (found["serve"].external, found["check"].external) == (True, False)


def test_function_of_a_header_has_the_header_as_its_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "small.h").write_text("\nstatic int small(int v) { return v; }\n")
    found = by_name(
        functions(build(tmp_path, '#include "sub/small.h"\nint f(void) { return small(1); }\n', "gcc", "-g"))
    )
    assert (found["small"].file, found["small"].line) == ("sub/small.h", 2)


def test_source_named_by_its_full_path_is_told_relative_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.c").write_text("int f(void) { return 1; }\n")
    path = compile_object(tmp_path, "", "gcc", "-g", "-include", str(tmp_path / "src" / "a.c"))
    assert by_name(functions(read(path)))["f"].file == "src/a.c"


def test_two_functions_in_one_section_are_told_apart(tmp_path: Path) -> None:
    path = compile_object(tmp_path, SOURCE, "gcc", "-g", "-O1", "-fno-function-sections")
    # The last flag wins, so take the support's out of play by a section attribute instead.
    source = re.sub(
        r"(?m)^(int|void) (serve|nothing|use|any)\b", r'__attribute__((section(".text.all"))) \1 \2', SOURCE
    )
    path = compile_object(tmp_path, source, "gcc", "-g", "-O1")
    symbols = {s.name: (s.section, s.value, s.size) for s in ElfFile(path.read_bytes()).symbols if s.type == c.STT_FUNC}
    found = by_name(functions(read(path)))
    same = {n: (f.code.section, f.code.offset, f.code.size) for n, f in found.items()}
    assert len({v[0] for n, v in same.items() if n in ("serve", "nothing", "use", "any")}) == 1
    assert same == {n: symbols[n] for n in same}


CPP = r"""
namespace ns {
struct Thing { int v; Thing(int x); virtual ~Thing(); int get() const; static int made; };
Thing::Thing(int x) : v(x) { made++; } // here: ns::Thing::Thing
Thing::~Thing() {} // here: ns::Thing::~Thing
int Thing::get() const { return v; } // here: ns::Thing::get
int Thing::made;
template <class T> __attribute__((noinline)) T twice(T t) { return t + t; } // here: twice
}
namespace { __attribute__((noinline)) int hidden(int a) { return a; } } // here: (anonymous namespace)::hidden
extern "C" int plain(int a) { return ns::twice(a) + (int)ns::twice(2.5) + hidden(a); } // here: plain
auto lambda = [](int x) { return x + 1; };
int call(int a) { return lambda(a); } // here: call
"""


@pytest.mark.parametrize("command", [(p, *rest) for (p, *rest) in BUILDS], ids=" ".join)
def test_cpp_functions_are_found_by_their_linkage_names(tmp_path: Path, command: tuple[str, ...]) -> None:
    compiler = {"gcc": "g++", "clang": "clang++"}[command[0]]
    path = compile_object(tmp_path, CPP, compiler, *command[1:], name="unit.cc")
    symbols = {s.name: s for s in ElfFile(path.read_bytes()).symbols if s.type == c.STT_FUNC}
    found = [f for f in functions(read(path)) if f.linkage_name]
    assert {"_ZN2ns5ThingD0Ev", "_ZNK2ns5Thing3getEv"} <= {f.linkage_name for f in found}
    for f in found:
        symbol = symbols[f.linkage_name]
        assert (f.code.section, f.code.offset, f.code.size) == (symbol.section, symbol.value, symbol.size), f


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_cpp_names_and_lines(tmp_path: Path, compiler: str) -> None:
    info = build(tmp_path, CPP, compiler, "-g", "-O0", name="unit.cc")
    lines = {m[1]: n for n, text in enumerate(CPP.split("\n"), 1) if (m := re.search(r"// here: (.+)$", text))}
    found = {(f.name, f.line) for f in functions(info)}
    assert {("ns::twice<int>", lines.pop("twice")), *lines.items()} <= found
