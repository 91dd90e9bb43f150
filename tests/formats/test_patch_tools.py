"""Patch objects before the tools that others wrote: each must take them, as the ET_REL files they are, silently."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from katana_cc.elf.reader import ElfFile
from katana_cc.patch.checks import check_file
from katana_cc.patch.codec import encode
from katana_cc.patch.model import FORMAT_VERSION, PatchObject
from tests.support.patches import from_object, refused, sample
from tests.support.tools import silent

SOURCE = """
#include <stdio.h>
extern int helper_old(int); extern int counter_old; extern __thread int depth_old;
static int calls; static const int table[] = {1, 2, 3}; int fresh = 4; __thread int mine;
__attribute__((cold, noinline)) static void complain(int x) { fprintf(stderr, "bad %d\\n", x); }
int pick(int x) {
  switch (x) { case 0: return helper_old(3); case 1: return 7; case 2: return counter_old; case 3: return x * 9;
               case 4: return depth_old + mine; case 5: complain(x); return 2; default: return table[x & 1] + fresh; }
}
int (*pointer)(int) = pick;
int main(int argc, char **argv) { calls++; return pick(argc) + calls; }
"""


def _from_compiler(compiler: str, flags: str, folder: Path) -> PatchObject:
    (folder / "s.c").write_text(SOURCE)
    command = [compiler, *flags.split(), "-ffunction-sections", "-fdata-sections", "-c", "s.c", "-o", "s.o"]
    subprocess.run(command, cwd=folder, check=True)
    return from_object(ElfFile((folder / "s.o").read_bytes()))


@pytest.fixture(
    params=[
        "sample",
        "refused",
        "gcc -O2",
        "gcc -O0 -fPIE",
        "gcc -Os -fPIC -fcf-protection",
        "clang -O2",
        "clang -O2 -fPIC",
    ]
)
def patch(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, PatchObject]:
    compiler, _, flags = request.param.partition(" ")
    if flags and not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    ready = {"sample": sample, "refused": refused}
    po = ready[compiler]() if compiler in ready else _from_compiler(compiler, flags, tmp_path)
    path = tmp_path / "p.kpo"
    path.write_bytes(encode(po))
    return path, po


Patch = tuple[Path, PatchObject]


def test_readelf_accepts_it(patch: Patch) -> None:
    path, po = patch
    out = silent("readelf", "-aW", path, cwd=path.parent)
    assert f"Katana patch {FORMAT_VERSION} " in out
    assert "arning" not in out
    for symbol in po.symbols:
        assert symbol.name in out


def test_objdump_accepts_it(patch: Patch) -> None:
    path, po = patch
    out = silent("objdump", "-dr", path, cwd=path.parent)
    for r in po.replacements:
        assert f"<{r.name}>:" in out


@pytest.mark.parametrize("linker", ["ld.bfd", "ld.gold", "ld.lld", "ld.mold"])
def test_linkers_accept_it(patch: Patch, linker: str) -> None:
    path, _ = patch
    silent(linker, "-r", path, "-o", path.with_suffix(".o"), cwd=path.parent)


@pytest.mark.parametrize("strictness", [[], ["--strict"], ["--gnu-ld"]])
def test_eu_elflint_finds_no_error(patch: Patch, strictness: list[str]) -> None:
    path, _ = patch
    assert silent("eu-elflint", *strictness, path, cwd=path.parent) == "No errors\n"


def test_eu_readelf_accepts_it(patch: Patch) -> None:
    path, _ = patch
    assert f"Katana patch {FORMAT_VERSION} " in silent("eu-readelf", "-a", path, cwd=path.parent)


def test_gdb_adds_its_symbols(patch: Patch) -> None:
    path, po = patch
    if not po.replacements:
        pytest.skip("a refused change brings no symbol")
    # gdb takes `.constprop.0` for a demangler's suffix and shows it otherwise.
    new = next(po.symbols[r.symbol] for r in po.replacements if "." not in r.name)
    assert new.section is not None
    section = po.sections[new.section].name
    add = f"add-symbol-file {path} -s {section} 0x100000"
    out = silent("gdb", "-nx", "-batch", "-ex", add, "-ex", "info symbol 0x100001", cwd=path.parent)
    assert f"{new.name} + 1 in section {section}" in out


def test_the_second_reader_sees_the_same(patch: Patch) -> None:
    path, po = patch
    assert check_file(path, path.read_bytes(), po) == []
