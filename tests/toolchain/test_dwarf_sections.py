"""Which debug information can be read, and what is said of the rest; damaged input."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from katana_cc.dwarf.dies import DebugInfo, open_debug_info
from katana_cc.dwarf.functions import functions, prototype
from katana_cc.dwarf.lines import line_rows
from katana_cc.dwarf.sections import DwarfProblem, ProblemKind
from katana_cc.dwarf.types import layouts
from katana_cc.dwarf.variables import variables
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import FormatError
from tests.support.dwarf import compile_object, read

SOURCE = r"""
struct s { int a; struct { long b; } in; } v = { 1, { 2 } };
static __thread int depth;
int f(int n) { static int count; depth++; return v.a + n + count++; }
"""


def everything(info: DebugInfo) -> object:
    """All that can be asked of an object."""
    found = functions(info)
    rows = [line_rows(info, f.code.section) for f in found]
    return layouts(info), variables(info), found, [prototype(info, f) for f in found], rows


def problem(path: Path) -> DwarfProblem:
    found = open_debug_info(ElfFile(path.read_bytes(), path.name))
    assert isinstance(found, DwarfProblem)
    return found


def test_no_debug_information_is_named(tmp_path: Path) -> None:
    found = problem(compile_object(tmp_path, SOURCE, "gcc"))
    assert (found.kind, found.where, found.remedy) == (ProblemKind.ABSENT, "unit.c.o", "compile it with -g")


def test_bytecode_object_is_named(tmp_path: Path) -> None:
    found = problem(compile_object(tmp_path, SOURCE, "gcc", "-g", "-flto"))
    assert (found.kind, found.remedy) == (ProblemKind.ABSENT, "build without -flto")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("version", ["-gdwarf-4", "-gdwarf-5"])
def test_split_debug_information_is_named(tmp_path: Path, compiler: str, version: str) -> None:
    found = problem(compile_object(tmp_path, SOURCE, compiler, version, "-gsplit-dwarf"))
    assert (found.kind, found.remedy) == (ProblemKind.SPLIT, "compile without -gsplit-dwarf")


def test_old_version_is_named(tmp_path: Path) -> None:
    found = problem(compile_object(tmp_path, SOURCE, "gcc", "-gdwarf-3"))
    assert (found.kind, found.text) == (ProblemKind.VERSION, "the debug information is of DWARF version 3")


def test_linked_file_is_refused(tmp_path: Path) -> None:
    subprocess.run(["gcc", "-g", "-shared", "-xc", "-", "-o", "lib.so"], input=b"int v;", cwd=tmp_path, check=True)
    with pytest.raises(FormatError, match="relocatable objects only"):
        open_debug_info(ElfFile((tmp_path / "lib.so").read_bytes()))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compressed_sections_read_like_plain_ones(tmp_path: Path, compiler: str) -> None:
    plain = everything(read(compile_object(tmp_path, SOURCE, compiler, "-g")))
    assert everything(read(compile_object(tmp_path, SOURCE, compiler, "-g", "-gz=zlib"))) == plain


def zstd_object(tmp_path: Path) -> Path:
    path = compile_object(tmp_path, SOURCE * 1, "gcc", "-g")
    objcopy = shutil.which("objcopy") or ""
    packed = path.with_suffix(".zst.o")
    done = subprocess.run([objcopy, "--compress-debug-sections=zstd", path, packed], capture_output=True)
    if done.returncode:
        pytest.skip("this objcopy cannot compress with zstd")
    return packed


def test_zstd_without_a_decompressor_is_named(tmp_path: Path) -> None:
    found = problem(zstd_object(tmp_path))
    assert (found.kind, found.remedy) == (ProblemKind.COMPRESSED, "compile with -gz=none")


def test_zstd_is_expanded_by_the_caller(tmp_path: Path) -> None:
    path = zstd_object(tmp_path)

    def expand(data: bytes, size: int) -> bytes:
        found = subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
        assert len(found) == size
        return found

    if shutil.which("zstd") is None:
        pytest.skip("no zstd command")
    found = open_debug_info(ElfFile(path.read_bytes()), expand)
    assert isinstance(found, DebugInfo)
    assert everything(found) == everything(read(tmp_path / "unit.c.o"))


@pytest.mark.parametrize("version", ["-gdwarf-4", "-gdwarf-5"])
def test_64_bit_format_reads_like_the_32_bit_one(tmp_path: Path, version: str) -> None:
    small = everything(read(compile_object(tmp_path, SOURCE, "gcc", version)))
    large = read(compile_object(tmp_path, SOURCE, "gcc", version, "-gdwarf64"))
    assert large.units[0].offset_size == 8

    def without_offsets(found: object) -> object:
        return [found[0], found[1], [(f.name, f.code, f.line) for f in found[2]], *found[3:]]  # type: ignore[index]

    assert without_offsets(everything(large)) == without_offsets(small)


def test_objects_joined_by_the_linker_have_a_unit_each(tmp_path: Path) -> None:
    first = compile_object(tmp_path, SOURCE, "gcc", "-g")
    second = compile_object(tmp_path, "struct t { int x; } w; int g(void) { return w.x; }", "clang", "-g", name="two.c")
    subprocess.run(["ld", "-r", first, second, "-o", "both.o"], cwd=tmp_path, check=True)
    info = read(tmp_path / "both.o")
    assert {f.name for f in functions(info)} == {"f", "g"}
    assert {"s", "s.in", "t"} == layouts(info).keys()


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_functions_alone_read_no_type(tmp_path: Path, compiler: str) -> None:
    """What the budget of a relink rests on: types are decoded only for those who ask."""
    info = read(compile_object(tmp_path, SOURCE, compiler, "-g"))
    functions(info)
    assert not info.memo.keys() & {"layouts", "variables"}
    assert len(info._dies) <= 3  # unit, f


DAMAGES: list[Callable[[random.Random, bytearray, int, int], None]] = [
    lambda chance, data, start, size: data.__setitem__(start + chance.randrange(size), chance.randrange(256)),
    lambda chance, data, start, size: data.__setitem__(
        slice(at := start + chance.randrange(size), min(at + 8, start + size)),
        b"\xff" * (min(at + 8, start + size) - at),
    ),
]


@pytest.mark.parametrize("command", [("gcc", "-gdwarf-5"), ("clang", "-gdwarf-5"), ("gcc", "-gdwarf-4")], ids=" ".join)
def test_damage_is_an_error_that_says_so_or_harmless(tmp_path: Path, command: tuple[str, ...]) -> None:
    """No damage may end in an endless loop or in an exception that is not ours."""
    path = compile_object(tmp_path, SOURCE, *command, "-O2")
    whole = path.read_bytes()
    places = [s for s in ElfFile(whole).sections if s.name.startswith((".debug_", ".rela.debug_")) and s.size]
    chance = random.Random(7)
    refused = 0
    for round_ in range(600):
        data = bytearray(whole)
        section = places[round_ % len(places)]
        for _ in range(chance.randint(1, 3)):
            chance.choice(DAMAGES)(chance, data, section.offset, section.size)
        try:
            found = open_debug_info(ElfFile(bytes(data), "damaged.o"))
            if isinstance(found, DebugInfo):
                everything(found)
        except FormatError as error:
            assert error.what
            refused += 1
    assert refused > 100
