"""Variables of compiled objects, against the symbol table."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.dwarf.elftools_reader import operations
from katana_cc.dwarf.variables import Variable, variables
from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError
from tests.support.dwarf import BUILDS, build, compile_object, read

SOURCE = r"""
struct conf { int a; long b; };
struct conf conf = { 1, 2 };
static long counts[4][2];
const char *const names[] = { "one", "two" };
__thread int depth;
static __thread long local_depth;
extern int elsewhere;
struct { int n; } nameless;
static int shared(int v) { static int calls; calls += v; return calls; }
int serve(int v)
{
    static int count;
    int automatic = v;
    { static long count = 4; count += v; automatic += (int)count; }
    { static const int table[3] = { 1, 2, 3 }; automatic += *(volatile const int *)&table[v & 1]; }
    count++; depth++; local_depth++; counts[v & 3][0]++; nameless.n++;
    return shared(v) + count + automatic + elsewhere + (int)local_depth + (int)counts[v & 3][1];
}
int (*taken)(int) = shared;
"""


def named(found: tuple[Variable, ...], qualified: str) -> list[Variable]:
    return [v for v in found if v.qualified == qualified]


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
def test_every_object_symbol_is_one_variable(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Each data symbol of the object is described once, in its place and of its size."""
    path = compile_object(tmp_path, SOURCE, *command)
    data = (c.STT_OBJECT, c.STT_TLS)
    symbols = sorted((s.section, s.value, s.size) for s in ElfFile(path.read_bytes()).symbols if s.type in data)
    found = [v for v in variables(read(path)) if v.place is not None]
    assert sorted((v.place.section, v.place.offset, v.size) for v in found if v.place) == symbols


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
def test_statics_are_named_by_their_function(tmp_path: Path, command: tuple[str, ...]) -> None:
    found = variables(build(tmp_path, SOURCE, *command))
    assert [v.type for v in named(found, "serve()::count")] == ["int", "long"]
    assert [v.type for v in named(found, "serve()::table")] == ["int[3]"]
    assert [v.type for v in named(found, "shared()::calls")] == ["int"]
    assert not named(found, "serve()::automatic")


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
def test_storage_is_told(tmp_path: Path, command: tuple[str, ...]) -> None:
    found = variables(build(tmp_path, SOURCE, *command))
    facts = {v.qualified: (v.external, v.thread_local, v.constant) for v in found if v.place}
    assert facts["conf"] == (True, False, False)
    assert facts["counts"] == (False, False, False)
    assert facts["names"] == (True, False, True)
    assert facts["depth"] == (True, True, False)
    assert facts["local_depth"] == (False, True, False)
    assert facts["serve()::table"] == (False, False, True)


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
def test_types_and_lines(tmp_path: Path, command: tuple[str, ...]) -> None:
    found = {v.qualified: v for v in variables(build(tmp_path, SOURCE, *command))}
    assert (found["conf"].type, found["conf"].size, found["conf"].aggregate) == ("struct conf", 16, "conf")
    assert (found["counts"].type, found["counts"].size) == ("long[4][2]", 64)
    assert (found["nameless"].type, found["nameless"].aggregate) == ("struct (nameless)", "(nameless)")
    assert found["taken"].type == "int (*)(int)"
    assert (found["conf"].file, found["conf"].line) == ("unit.c", 3)


def test_declaration_has_no_place(tmp_path: Path) -> None:
    (found,) = named(variables(build(tmp_path, SOURCE, "gcc", "-g")), "elsewhere")
    assert (found.declaration, found.place, found.type) == (True, None, "int")


def test_declaration_beside_its_definition_is_left_out(tmp_path: Path) -> None:
    source = "struct s; extern struct s v; struct s { int a; }; struct s v; struct s *p = &v;"
    found = named(variables(build(tmp_path, source, "gcc", "-g")), "v")
    assert [(v.declaration, v.size) for v in found] == [(False, 4)]


def test_common_symbol_is_placed_by_name(tmp_path: Path) -> None:
    (found,) = variables(build(tmp_path, "int shared_by_all[3];", "gcc", "-g", "-fcommon"))
    assert found.place == (c.SHN_COMMON, 0, "shared_by_all")


def test_static_of_a_function_that_clang_inlined_everywhere_is_named_by_its_symbol(tmp_path: Path) -> None:
    """clang leaves a nameless function around it; without the symbol two such statics of one name could not be told
    apart."""
    source = """
    static int once(int v) { static int count; return count += v; }
    static int twice(int v) { static int count; return count += 2 * v; }
    int f(int v) { return once(v) + twice(v); }
    """
    found = variables(build(tmp_path, source, "clang", "-g", "-O2"))
    assert sorted(v.qualified for v in found) == ["once()::count", "twice()::count"]


def test_variable_that_the_compiler_reshaped_says_so(tmp_path: Path) -> None:
    """clang keeps an int that is only ever 0 or 7 as one byte: what is there is not what the type says."""
    source = "int f(int v) { static int state; int was = state; if (v) state = 7; return was; }"
    (found,) = variables(build(tmp_path, source, "clang", "-g", "-O2"))
    assert found.place is None
    assert found.why.startswith("the compiler changed how it is kept: DW_OP_addr")


def test_pointer_that_holds_an_address_is_no_variable_there(tmp_path: Path) -> None:
    """At -O2 an automatic pointer is described as the value `address`; taken for a location, two variables would share
    one place."""
    source = "int target[4]; int f(int n) { int *p = &target[1]; int *q = target; return *p + *q + n; }"
    found = variables(build(tmp_path, source, "gcc", "-g", "-O2"))
    assert [v.name for v in found if v.place or v.why] == ["target"]


CPP = r"""
namespace ns {
struct Thing { static int made; int get(); };
int Thing::made = 3;
int Thing::get() { static int asked; return ++asked; }
}
namespace { int hidden; }
template <class T> T next(T t) { static T last; T was = last; last = t; return was; }
inline int in_header = 5;
int use(int a) { return ++hidden + next(a) + (int)next(2.5) + in_header; }
"""


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
def test_cpp_variables_are_qualified(tmp_path: Path, command: tuple[str, ...]) -> None:
    compiler = {"gcc": "g++", "clang": "clang++"}[command[0]]
    path = compile_object(tmp_path, CPP, compiler, "-std=c++17", *command[1:], name="unit.cc")
    symbols = {s.name: (s.section, s.value) for s in ElfFile(path.read_bytes()).symbols if s.type == c.STT_OBJECT}
    found = {v.qualified: v.place[:2] for v in variables(read(path)) if v.place}
    assert found["ns::Thing::made"] == symbols["_ZN2ns5Thing4madeE"]
    assert found["ns::Thing::get()::asked"] == symbols["_ZZN2ns5Thing3getEvE5asked"]
    assert found["(anonymous namespace)::hidden"] == symbols["_ZN12_GLOBAL__N_16hiddenE"]
    assert found["in_header"] == symbols["in_header"]


def test_location_operations_have_names() -> None:
    found = operations(bytes.fromhex("03 0000000000000000 23 08"))
    assert [(op.name, op.operands) for op in found] == [("DW_OP_addr", (0,)), ("DW_OP_plus_uconst", (8,))]


def test_unknown_location_operation_is_refused() -> None:
    with pytest.raises(FormatError, match="damaged location expression"):
        operations(b"\xfe\xff\x01")


@pytest.mark.parametrize("version", ["-gdwarf-4", "-gdwarf-5"])
def test_struct_taken_apart_has_its_parts_by_offset(tmp_path: Path, version: str) -> None:
    """clang makes a variable of each field that is used, and numbers them by what is left."""
    source = (
        "static struct { int a; long b; int c; } s;"
        "void set(int x) { s.b += x; s.c ^= x; } long get(int x) { return s.b * x + s.c; }"
    )
    path = compile_object(tmp_path, source, "clang", version, "-O2")
    symbols = {s.name: s.section for s in ElfFile(path.read_bytes()).symbols if s.type == c.STT_OBJECT}
    (found,) = named(variables(read(path)), "s")
    assert found.place is None
    assert [(at, place.section) for at, place in found.pieces] == [(8, symbols["s.0"]), (16, symbols["s.1"])]
