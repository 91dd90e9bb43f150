"""Objects that are hard to read: each is recorded and patched all the same, or its verdict says why not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from katana_cc.elf.reader import ElfFile
from tests.support.project import Build, Project, Result, Variant

FILES = {
    "main.c": "int serve(int); int main(int c, char **v) { return serve(c); }",
    "a.c": "static int n; static int twice(int x) { return x * 2 + n; } int serve(int x) { n++; return twice(x) * 3; }",
}
CHANGE = {"a.c": FILES["a.c"].replace("* 3", "* 5")}


def changed(tmp_path: Path, *flags: str, compiler: str = "gcc", linker: str = "bfd") -> Result:
    """The diff of a one-function change with further compiler flags."""
    project = Project(tmp_path, Variant(compiler, "-O2", "pie", linker))
    return project.change(FILES, CHANGE, compile_flags=flags)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flag", ["-gz=zlib", "-gz=none"])
def test_compressed_debug_sections_are_read(tmp_path: Path, compiler: str, flag: str) -> None:
    result = changed(tmp_path, flag, compiler=compiler)
    assert result.refusals == []
    assert result.replaced == ["serve"]


def test_zstd_debug_sections_are_read(tmp_path: Path) -> None:
    if subprocess.run(["objcopy", "--compress-debug-sections=zstd", "--version"], capture_output=True).returncode:
        pytest.skip("this objcopy knows no zstd")
    builds = []
    project = Project(tmp_path)
    for files in (FILES, {**FILES, **CHANGE}):
        project.build(files)
        for name in ("main.o", "a.o"):
            done = subprocess.run(
                ["objcopy", "--compress-debug-sections=zstd", name], cwd=tmp_path, capture_output=True, text=True
            )
            if "not compiled with zstd" in done.stderr or done.returncode:
                pytest.skip("this objcopy was built without zstd")
        builds.append(relinked(project, "main.o", "a.o"))
    result = project.checked(*builds)
    assert result.refusals == []
    assert result.replaced == ["serve"]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_split_debug_information_is_refused_with_the_flag_to_leave_out(tmp_path: Path, compiler: str) -> None:
    result = changed(tmp_path, "-gsplit-dwarf", compiler=compiler)
    reasons = {r.text for r in result.patch.reasons if r.severity == "refused"}
    assert reasons
    assert all("(compile without -gsplit-dwarf)" in text for text in reasons)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_objects_without_debug_information_are_refused_when_they_changed(tmp_path: Path, compiler: str) -> None:
    """Whether a type changed cannot be seen without."""
    result = changed(tmp_path, "-g0", compiler=compiler)
    assert {r.code for r in result.patch.reasons if r.severity == "refused"} == {"debug-information-missing"}


STRUCT = {
    "main.c": "int serve(int); int main(int c, char **v) { return serve(c); }",
    "a.c": "#include <stdlib.h>\nstruct s { int a; }; static struct s *kept;"
    " int serve(int x) { if (!kept) kept = calloc(1, sizeof *kept); return kept->a += x; }",
}
GROWN = {"a.c": STRUCT["a.c"].replace("{ int a; }", "{ int a; int b; }").replace("kept->a += x", "kept->b += x")}


@pytest.mark.parametrize(
    ("compiler", "flag"),
    [("gcc", "-g1"), ("gcc", "-ggdb1"), ("clang", "-g1"), ("clang", "-gline-tables-only")],
)
def test_debug_information_of_lines_only_is_refused(tmp_path: Path, compiler: str, flag: str) -> None:
    """It names every function and knows no type: the live object would be read past its end."""
    project = Project(tmp_path, Variant(compiler))
    result = project.change(STRUCT, GROWN, compile_flags=[flag])
    assert ("debug-information-missing", "a.o") in result.refusals


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("optimise", ["-O0", "-O2"])
def test_unit_that_needs_no_types_is_no_unit_without_types(tmp_path: Path, compiler: str, optimise: str) -> None:
    files = {"main.c": "void f(void); int main(void) { f(); return 0; }", "a.c": "void g(void); void f(void) { g(); }"}
    files["b.c"] = "void g(void) { } void h(void) { }"
    project = Project(tmp_path, Variant(compiler, optimise))
    result = project.change(files, {"a.c": "void g(void); void h(void); void f(void) { g(); g(); h(); }"})
    assert result.refusals == []
    assert result.replaced == ["f"]


@pytest.mark.parametrize("flags", [("-ggdb3",), ("-gdwarf-4",), ("-g1", "-g")], ids=" ".join)
def test_other_debug_information_is_read(tmp_path: Path, flags: tuple[str, ...]) -> None:
    result = changed(tmp_path, *flags)
    assert result.refusals == []
    assert result.replaced == ["serve"]


def test_dwarf_3_is_refused_with_its_version(tmp_path: Path) -> None:
    (refusal,) = [r for r in changed(tmp_path, "-gdwarf-3").patch.reasons if r.severity == "refused"]
    assert "DWARF version 3" in refusal.text


@pytest.mark.parametrize("linker", ["bfd", "gold", "lld", "mold"])
def test_partial_links_are_objects_like_others(tmp_path: Path, linker: str) -> None:
    if shutil.which(f"ld.{linker}") is None:
        pytest.skip(f"ld.{linker} is not installed")
    project = Project(tmp_path, Variant("gcc", "-O2", "pie", linker))
    builds = []
    for files in (FILES, {**FILES, **CHANGE}):
        project.build(files)
        subprocess.run(["ld", "-r", "main.o", "a.o", "-o", "both.o"], cwd=tmp_path, check=True)
        builds.append(relinked(project, "both.o"))
    result = project.checked(*builds)
    assert result.refusals == []
    assert result.replaced == ["serve"]


@pytest.mark.rest
def test_object_with_more_sections_than_a_half_word_counts(tmp_path: Path) -> None:
    """From 0xff00 on section indices stand elsewhere (gABI, "SHN_XINDEX")."""
    many = "".join(f'.section .text.f{i},"ax",@progbits\n.type f{i},@function\nf{i}: ret\n' for i in range(66000))
    serve = '.section .text.serve,"ax",@progbits\n.globl serve\n.type serve,@function\nserve: lea {n}(%rdi),%eax\nret\n'
    serve += ".size serve, .-serve\n"
    note = '.section .note.GNU-stack,"",@progbits\n'
    project = Project(tmp_path)
    builds = []
    for number in (3, 5):
        (tmp_path / "many.s").write_text(many + serve.replace("{n}", str(number)) + note)
        subprocess.run(["gcc", "-c", "many.s"], cwd=tmp_path, check=True)
        project.build({"main.c": FILES["main.c"], "a.c": "int other(void) { return 1; }"}, link_flags=["many.o"])
        builds.append(relinked(project, "main.o", "many.o", flags=["-Wl,--gc-sections"]))
    assert len(ElfFile((tmp_path / "many.o").read_bytes()).sections) > 0xFF00
    result = project.diff(*builds)
    # Assembly has no types and no frames: it is refused, and names the function that changed.
    assert result.refusals
    assert "serve" in {subject for _, subject in result.refusals}


def test_script_that_drops_sections_leaves_what_is_there(tmp_path: Path) -> None:
    script = "SECTIONS { /DISCARD/ : { *(.comment) *(.note.GNU-stack) *(.text.unused) } } INSERT AFTER .text;"
    (tmp_path / "drop.ld").write_text(script)
    files = {**FILES, "a.c": FILES["a.c"] + " int unused(int x) { return x; }"}
    project = Project(tmp_path)
    change = {"a.c": files["a.c"].replace("* 3", "* 5")}
    result = project.change(files, change, link_flags=["-Wl,-T,drop.ld"])
    assert result.refusals == []
    assert result.replaced == ["serve"]


@pytest.mark.parametrize("linker", ["bfd", "gold", "lld", "mold"])
def test_output_without_a_symbol_table(tmp_path: Path, linker: str) -> None:
    """`-s` on the link: the map and the objects still say where everything is."""
    if shutil.which(f"ld.{linker}") is None:
        pytest.skip(f"ld.{linker} is not installed")
    project = Project(tmp_path, Variant("gcc", "-O2", "pie", linker))
    old = project.build(FILES, link_flags=["-s"])
    new = project.build({**FILES, **CHANGE}, link_flags=["-s"])
    result = project.diff(old, new)
    assert result.refusals == []
    assert result.replaced == ["serve"]


def relinked(project: Project, *objects: str, flags: list[str] | None = None) -> Build:
    """Link these objects again and record that."""
    words = [project.variant.compiler, f"-fuse-ld={project.variant.linker}", "-pie", *(flags or []), *objects]
    command = [*words, "-Wl,--build-id=sha1", "-Wl,-Map=.map", "-o", "prog"]
    subprocess.run(command, cwd=project.folder, check=True)
    return project.record("prog", words)
