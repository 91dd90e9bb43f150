"""What a patch says of where things lie in the new output, against the symbol tables of both outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.patch.addresses import Lookup, Named, encode
from tests.support.project import Build, Project, Result, Variant, project_in

HELP = r"""
static int many; int also[3] = {1, 2, 3}; const char *const names[] = {"one", "two"}; const int odd[] = {1, 3, 5};
__thread int mine = 4; __thread long ours;
__attribute__((noinline)) int help(int x) { many += x; return many + also[x & 1] + odd[x & 1] + mine++; }
__attribute__((noinline)) static int lone(int x) { static int n; ours++; return n++ + x * 3 + (int)(long)names[x & 1]; }
int through(int x) { return help(x) + lone(x); }
"""
MAIN = r"""
#include <stdio.h>
int through(int), common[8];
/*NEW*/
__attribute__((noinline)) int serve(int x) { /*MORE*/ return through(x) + common[1]; }
__attribute__((noinline)) int after(int x) { return x + 7; }
int main(void) { return printf("%d %d\n", serve(1), after(2)) > 9; }
"""
MORE = 'static int n; fprintf(stderr, "%d %d\\n", x, n++); fresh(x);'
NEW = '__attribute__((noinline)) static int fresh(int x) { printf("%d", x); return x; }'

VARIANTS = [
    Variant("gcc", "-O2", "pie"),
    Variant("gcc", "-O0", "nopie", compile_flags=("-fcommon",)),
    Variant("gcc", "-Os", "shared", "gold"),
    Variant("clang", "-O2", "pie", "lld"),
    Variant("clang", "-O2", "nopie", "mold"),
]
project = project_in(VARIANTS)


def both(project: Project) -> tuple[Build, Build, Result]:
    """Two builds, and the patch from the one to the other."""
    old = project.build({"help.c": HELP, "main.c": MAIN})
    new = project.build({"help.c": HELP, "main.c": MAIN.replace("/*MORE*/", MORE).replace("/*NEW*/", NEW)})
    result = project.checked(old, new)
    assert not result.refusals
    return old, new, result


def symbols(path: Path) -> dict[str, tuple[int, int, int]]:
    """Name → (value, size, type) of what the output defines once, of the project's own objects."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for s in ElfFile(path.read_bytes(), str(path)).symbols:
        if s.section not in (c.SHN_UNDEF, c.SHN_ABS) and s.size and s.type != c.STT_SECTION:
            found.setdefault(s.name.partition(".")[0], []).append((s.value, s.size, s.type))
    return {name: several[0] for name, several in found.items() if len(several) == 1}


def test_every_symbol_that_stays_is_told_and_no_other(project: Project) -> None:
    """A bug: a later patch would call into the middle of something else."""
    old, new, result = both(project)
    m = result.patch.addresses
    memory, thread = Lookup(m.stretches), Lookup(m.thread)
    before, after = symbols(old.path), symbols(new.path)
    carried = {x.new: x for x in m.carried}
    told = 0
    for name, (value, size, kind) in after.items():
        if kind == c.STT_TLS:
            assert thread.old(value, size) == before[name][0], name
        elif value in carried:
            assert carried[value].old == (before[name][0] if name in before else 0), name
            assert memory.old(value) is None
        elif name in before and not name.startswith("_"):
            assert memory.old(value, size) == before[name][0], name
            told += 1
    assert told >= 8
    assert {"mine", "ours"} <= after.keys()
    assert [x.old == 0 for x in m.carried].count(True) >= 2  # `fresh`, and the new `n`


def test_a_map_is_a_few_hundred_bytes(plain: Project) -> None:
    """A bug: it grows with the program and not with the change."""
    _, _, result = both(plain)
    assert len(encode(result.patch.addresses)) < 800
    assert len(result.patch.addresses.stretches) < 25


def test_symbols_of_the_linker_are_told_by_name(plain: Project) -> None:
    """They lead to borders: `_end` is where nothing is."""
    old, new, result = both(plain)
    values = [{s.name: s.value for s in ElfFile(b.path.read_bytes()).symbols} for b in (new, old)]
    assert Named("_end", values[0]["_end"], values[1]["_end"]) in result.patch.addresses.named


@pytest.mark.parametrize("mode", ["pie", "nopie"])
def test_code_of_other_line_numbers_only_is_noted(tmp_path: Path, mode: str) -> None:
    """A bug: who replaces it later would look for the bytes of the build in between, and never find them."""
    project = Project(tmp_path, Variant("gcc", "-O2", mode))
    text = "int seen;\n__attribute__((noinline)) int at(int x, int line) {{ seen += line; return x; }}\n"
    text += "{}__attribute__((noinline)) int line(int x) {{ seen += x; return 1 + at(x, __LINE__); }}\n"
    text += "__attribute__((noinline)) int other(int x) {{ seen -= x; return x * {}; }}\n"
    text += "int main(void) {{ return line(1) + other(2); }}\n"
    old, new = (project.build({"a.c": text.format(*x)}) for x in (("", 3), ("\n\n", 4)))
    result = project.checked(old, new)
    assert "line-numbers-only" in result.codes()
    (altered,) = result.patch.addresses.altered
    assert altered.new == symbols(new.path)["line"][0]
    value, size, _ = symbols(old.path)["line"]
    elf = ElfFile(old.path.read_bytes())
    section = elf.sections[next(s for s in elf.symbols if s.name == "line").section]
    code = elf.contents(section)[value - section.address :][:size]
    from katana_cc.patch.addresses import shape_of

    assert altered.shape == shape_of(code, altered.shape.blanks)
