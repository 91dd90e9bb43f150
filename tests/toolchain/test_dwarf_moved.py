"""Debug information of two builds of one source, of which only a header changed."""

from __future__ import annotations

import pytest

from katana_cc.diff.alike import loaded_alike
from katana_cc.dwarf.dies import DebugInfo, open_debug_info
from katana_cc.dwarf.moved import only_lines_moved
from katana_cc.dwarf.types import layouts
from katana_cc.elf.reader import ElfFile
from katana_cc.snapshot.blobs import expand_zstd
from tests.support.project import Project, Variant, project_in

HEADER = (
    "enum e {{ ONE,\nTWO }};\nstruct a_long_name {{\nint a;\nstruct {{ {} b; }} c; enum e e; }};\nextern {} shared;\n"
)
SOURCE = "\nint serve(int x) {\nreturn x * 3; }\nint other(struct a_long_name *p) { return p->a; }"
COMPILERS = [
    Variant("gcc", "-O2", "pie"),
    Variant("gcc", "-O0", "pie", compile_flags=("-gdwarf-4",)),
    Variant("gcc", "-O2", "pie", compile_flags=("-fdebug-types-section",)),
    Variant("clang", "-O2", "pie"),
    Variant("clang", "-O0", "pie", compile_flags=("-gdwarf-4",)),
]


project = project_in(COMPILERS, ids=lambda v: f"{v} {' '.join(v.compile_flags)}")


def compiled(project: Project, source: str) -> tuple[ElfFile, DebugInfo]:
    """The object of a.c and its debug information."""
    project.build({"main.c": "int main(void) { return 0; }", "a.c": source})
    elf = ElfFile((project.folder / "a.o").read_bytes(), "a.o")
    info = open_debug_info(elf, expand_zstd)
    assert isinstance(info, DebugInfo)
    return elf, info


def test_more_lines_before_declarations(project: Project) -> None:
    header = HEADER.format("long", "int")
    old, before = compiled(project, header + SOURCE)
    new, after = compiled(project, "/* one\n more */\n" + header + SOURCE)
    assert loaded_alike(old, new)
    assert only_lines_moved(before, after)
    assert before.sections.space != after.sections.space


@pytest.mark.parametrize(
    "header",
    [
        HEADER.format("int", "int"),
        HEADER.format("long", "int").replace("int a;", "char a;"),
        HEADER.format("long", "int").replace("ONE,\nTWO", "TWO,\nONE"),
        HEADER.format("long", "int").replace("int a;\nstruct", "int d;\nstruct").replace("p->a", "p->d"),
    ],
    ids=["inner type", "type", "enumerators", "name"],
)
def test_other_types_are_no_moved_lines(project: Project, header: str) -> None:
    """The oracle is the comparison of layouts: what it finds must not be passed over."""
    _, before = compiled(project, HEADER.format("long", "int") + SOURCE)
    source = SOURCE.replace("p->a", "p->d") if "int d;" in header else SOURCE
    _, after = compiled(project, header + source)
    assert layouts(before) != layouts(after)
    assert not only_lines_moved(before, after)


def test_other_code_is_not_alike(project: Project) -> None:
    header = HEADER.format("long", "int")
    old, _ = compiled(project, header + SOURCE)
    for source in (SOURCE.replace("* 3", "* 5"), SOURCE.replace("serve", "sorve"), SOURCE + " int more;"):
        assert not loaded_alike(old, compiled(project, header + source)[0])
