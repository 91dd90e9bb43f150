"""What any build may ask of a compiler that stands in for another: points 20 to 28, in whole builds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.installation import Installation, clean_environment
from tests.support.staged import input_names, links, only_link

MAIN = "int g(void);\nint main(void) { return g() - 42; }\n"
G = "int g(void) { return 42; }\n"
CHANGED = "int g(void) { return 43; }\n"


@pytest.fixture
def sources(project: Path) -> Path:
    (project / "main.c").write_text(MAIN)
    (project / "g.c").write_text(G)
    return project


def good(katana: Installation, cwd: Path, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command that must succeed."""
    done = katana.run(*words, cwd=cwd, stdin=None, **variables)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done


def silent(katana: Installation, cwd: Path, *words: str | Path, **variables: str) -> None:
    """Run a command that must succeed and say nothing."""
    done = good(katana, cwd, *words, **variables)
    assert (done.stdout, done.stderr) == (b"", b"")


def need(*programs: str) -> None:
    """Skip where one is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def changed(done: subprocess.CompletedProcess[bytes]) -> bytes:
    """The one line a rebuild printed about a patch."""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(b"katana: ")]
    return line


# ---- 20: which compiler ----


@pytest.mark.parametrize("name", ["gcc-12", "gcc-13", "gcc-14", "clang-14", "clang-16", "clang-19", "c99-gcc"])
def test_20_compilers_with_a_version_in_their_name(katana: Installation, sources: Path, name: str) -> None:
    need(name)
    silent(katana, sources, katana.cc, name, "main.c", "g.c", "-o", "prog")
    assert only_link(sources / ".katana")["compiler"] == shutil.which(name)


def test_20_a_cross_compiler_by_its_prefix(katana: Installation, sources: Path) -> None:
    need("aarch64-linux-gnu-gcc")
    for name in ("main.c", "g.c"):
        silent(katana, sources, katana.cc, "aarch64-linux-gnu-gcc", "-c", name)
    silent(katana, sources, katana.cc, "aarch64-linux-gnu-gcc", "main.o", "g.o", "-o", "prog")
    entry = only_link(sources / ".katana")
    # Its own linker ran, not the native one: a link of foreign objects by that would have failed.
    assert "aarch64-linux-gnu" in entry["linker"] or "aarch64-linux-gnu" in entry["compiler_path"]
    assert input_names(entry) == {"main.o", "g.o"}


def test_20_a_cc_that_is_clang(katana: Installation, sources: Path, tmp_path: Path) -> None:
    need("clang")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "cc").symlink_to(str(shutil.which("clang")))
    path = f"{folder}:{clean_environment()['PATH']}"
    silent(katana, sources, katana.cc, "-Werror", "-c", "main.c", "g.c", PATH=path)
    silent(katana, sources, katana.cc, "-Werror", "main.o", "g.o", "-o", "prog", PATH=path)
    assert only_link(sources / ".katana")["compiler"] == str(folder / "cc")


# ---- 21: options of ours in CC ----


def _broken_store(sources: Path) -> None:
    (sources / ".katana").mkdir()
    (sources / ".katana" / "staged").write_text("a file where a folder should be")


def test_21_strictness_in_cc(katana: Installation, sources: Path) -> None:
    silent(katana, sources, katana.cc, "--katana-strict", "gcc", "main.c", "g.c", "-o", "prog")
    shutil.rmtree(sources / ".katana")
    _broken_store(sources)
    done = katana.run(katana.cc, "--katana-strict", "gcc", "main.c", "g.c", "-o", "prog", cwd=sources)
    assert done.returncode == 1
    done = katana.run(katana.cc, "--katana-strickt", "-c", "main.c", cwd=sources)
    assert (done.returncode, b"--katana-strickt" in done.stderr) == (127, True)


@pytest.mark.parametrize("system", ["cmake", "meson"])
def test_21_strictness_in_cc_of_a_build_system(katana: Installation, sources: Path, system: str) -> None:
    need(system, "ninja")
    if system == "cmake":
        (sources / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.13)\nproject(p C)\nadd_executable(prog main.c g.c)\n"
        )
        configure = ["cmake", "-G", "Ninja", "-S", ".", "-B", "build"]
    else:
        (sources / "meson.build").write_text("project('p', 'c')\nexecutable('prog', 'main.c', 'g.c')\n")
        configure = ["meson", "setup", "build"]
    good(katana, sources, *configure, CC="katana-cc --katana-strict")
    good(katana, sources, "ninja", "-C", "build")
    assert only_link(sources / ".katana")["output_key"] == "build/prog"
    shutil.rmtree(sources / ".katana")
    _broken_store(sources)
    (sources / "build" / "prog").unlink()
    done = katana.run("ninja", "-C", "build", cwd=sources)
    assert done.returncode != 0
    assert b"is not recorded" in done.stdout


# ---- 22: a second compiler that is not wrapped ----


@pytest.mark.parametrize("others", [True, False])
def test_22_c_objects_linked_by_an_unwrapped_cxx_are_explained(
    katana: Installation, sources: Path, others: bool
) -> None:
    need("g++")
    if others:
        silent(katana, sources, katana.cc, "gcc", "main.c", "g.c", "-o", "prog")
    silent(katana, sources, katana.cc, "gcc", "-c", "main.c", "g.c")
    subprocess.run(["g++", "g.o", "main.o", "-o", "escaped"], cwd=sources, check=True)
    done = katana.run("katana-release", "v1", cwd=sources)
    assert (done.returncode == 0) == others
    (line,) = [line for line in done.stderr.decode().splitlines() if str(sources / "escaped") in line]
    assert "CXX=katana-c++" in line
    assert b"prog is not recorded" not in done.stderr


def test_22_what_was_not_built_here_is_not_told_of(katana: Installation, sources: Path) -> None:
    silent(katana, sources, katana.cc, "gcc", "main.c", "g.c", "-o", "prog")
    shutil.copy("/bin/true", sources / "tool")
    subprocess.run(["objcopy", "--strip-all", "prog", "stripped"], cwd=sources, check=True)
    assert good(katana, sources, "katana-release", "v1").stderr == b""


# ---- 23: archives ----


@pytest.mark.parametrize("thin", [False, True])
def test_23_archives_with_two_members_of_one_name(katana: Installation, linker: str, project: Path, thin: bool) -> None:
    for folder, number in (("a", 1), ("b", 2)):
        (project / folder).mkdir()
        (project / folder / "util.c").write_text(f"int {folder}(void) {{ return {number}; }}\n")
    (project / "main.c").write_text("int a(void), b(void);\nint main(void) { return a() + b(); }\n")
    (project / "Makefile").write_text(
        "prog: main.o a/util.o b/util.o\n\trm -f libu.a\n"
        f"\tar {'qcT' if thin else 'qc'} libu.a a/util.o b/util.o && ranlib libu.a\n"
        f"\t$(CC) -fuse-ld={linker} main.o libu.a -o prog\n"
    )
    good(katana, project, "make", "CC=katana-cc gcc")
    good(katana, project, "katana-release", "v1")
    (project / "b" / "util.c").write_text("int b(void) { return 3; }\n")
    line = changed(good(katana, project, "make", "CC=katana-cc gcc"))
    assert b"1 function changed, safe" in line


# ---- 24: objects that move ----


def test_24_objects_renamed_and_moved_after_the_compile(katana: Installation, sources: Path) -> None:
    (sources / "objects").mkdir()
    for name in ("main", "g"):
        silent(katana, sources, katana.cc, "gcc", "-c", f"{name}.c", "-o", f"{name}.tmp")
        (sources / f"{name}.tmp").rename(sources / "objects" / f"{name}-final.o")
    silent(katana, sources, katana.cc, "gcc", "objects/main-final.o", "objects/g-final.o", "-o", "prog")
    good(katana, sources, "katana-release", "v1")
    # Elsewhere again, and unchanged: nothing to patch; changed: the function is found.
    (sources / "objects").rename(sources / "moved")
    silent(katana, sources, katana.cc, "gcc", "moved/main-final.o", "moved/g-final.o", "-o", "prog")
    (sources / "g.c").write_text(CHANGED)
    silent(katana, sources, katana.cc, "gcc", "-c", "g.c", "-o", "elsewhere.o")
    done = good(katana, sources, katana.cc, "gcc", "moved/main-final.o", "elsewhere.o", "-o", "prog")
    assert b"1 function changed, safe" in changed(done)


# ---- 25: libtool and assembler ----


@pytest.mark.rest
def test_25_libtool_programs_that_are_not_installed(katana: Installation, sources: Path) -> None:
    need("libtoolize", "automake", "autoconf")
    (sources / "configure.ac").write_text(
        "AC_INIT([p],[1])\nAM_INIT_AUTOMAKE([foreign])\nAC_PROG_CC\nAM_PROG_AR\nLT_INIT\n"
        "AC_CONFIG_FILES([Makefile])\nAC_OUTPUT\n"
    )
    (sources / "Makefile.am").write_text(
        "lib_LTLIBRARIES = libg.la\nlibg_la_SOURCES = g.c\nbin_PROGRAMS = prog\nprog_SOURCES = main.c\n"
        "prog_LDADD = libg.la\n"
    )
    good(katana, sources, "autoreconf", "-fi")
    good(katana, sources, "./configure", f"--prefix={sources}/installed", CC="katana-cc gcc")
    good(katana, sources, "make")
    found = {entry["output_key"]: entry for entry in links(sources / ".katana")}
    assert set(found) == {"prog", "libg.so.0"}
    assert found["prog"]["output"] == str(sources / ".libs" / "prog")
    assert b"not recorded" not in good(katana, sources, "katana-release", "v1").stderr
    (sources / "g.c").write_text(CHANGED)
    assert b"libg.so.0 (v1 " in changed(good(katana, sources, "make"))
    good(katana, sources, "make", "install")
    assert subprocess.run([sources / "installed" / "bin" / "prog"], check=False).returncode == 1


@pytest.mark.parametrize("suffix", ["s", "S"])
def test_25_assembler_inputs(katana: Installation, compiler: str, sources: Path, suffix: str) -> None:
    (sources / f"g.{suffix}").write_text(
        ".text\n.globl g\n.type g,@function\ng: movl $42, %eax\n ret\n.size g,.-g\n"
        '.section .note.GNU-stack,"",@progbits\n'
    )
    silent(katana, sources, katana.cc, compiler, "-Werror", "-c", f"g.{suffix}", "-o", "g.o")
    silent(katana, sources, katana.cc, compiler, "-Werror", "main.c", f"g.{suffix}", "-o", "prog")
    silent(katana, sources, katana.cc, compiler, "-Werror", "main.c", "g.o", "-o", "prog2")
    assert len(links(sources / ".katana")) == 2
    assert subprocess.run([sources / "prog"], check=False).returncode == 0


# ---- 26 and 27: what is there is not what one thinks ----


def test_26_a_rebuild_with_other_flags_says_so(katana: Installation, compiler: str, sources: Path) -> None:
    words = [katana.cc, compiler, "main.c", "g.c", "-o", "prog"]
    silent(katana, sources, *words, "-O2")
    good(katana, sources, "katana-release", "v1")
    first = only_link(sources / ".katana")["version"]
    done = good(katana, sources, *words, "-O0")
    assert only_link(sources / ".katana")["version"] != first
    line = changed(done)
    assert b"2 functions changed" in line
    if compiler.startswith("gcc"):  # clang keeps no flags in its objects
        assert b"compiled otherwise (-O2 -> -O0)" in line


def test_27_a_link_that_was_not_recorded_is_never_taken_for_the_last_one(katana: Installation, sources: Path) -> None:
    words = [katana.cc, "gcc", "main.c", "g.c", "-o", "prog"]
    silent(katana, sources, *words)
    good(katana, sources, "katana-release", "v1")
    (sources / "g.c").write_text(CHANGED)
    silent(katana, sources, *words, KATANA_DISABLE="1")
    done = katana.run("katana-release", "v2", cwd=sources)
    assert (done.returncode, done.stdout) == (6, b"")
    bundle = katana.run("katana-release", "--since", "v1", cwd=sources)
    assert bundle.returncode == 6
    assert b"is another build than the newest one recorded" in bundle.stdout + bundle.stderr


def test_27_a_patch_for_another_build_is_refused(katana: Installation, sources: Path) -> None:
    (sources / "main.c").write_text(
        "#include <unistd.h>\nint g(void);\nint main(void) { return read(0, &g, 0) + pause() + g(); }\n"
    )
    words = [katana.cc, "gcc", "main.c", "g.c", "-o", "prog"]
    silent(katana, sources, *words)
    good(katana, sources, "katana-release", "v1")
    (sources / "g.c").write_text(CHANGED)
    patch = sources / changed(good(katana, sources, *words)).rpartition(b": ")[2].decode()
    with subprocess.Popen([sources / "prog"], stdin=subprocess.PIPE) as target:  # of the new build already
        try:
            while Path(f"/proc/{target.pid}/exe").readlink() != sources / "prog":
                os.sched_yield()
            done = katana.run("katana", "apply", str(patch), "--pid", str(target.pid), cwd=sources)
        finally:
            target.kill()
    assert done.returncode in (3, 7)
    assert b"build" in done.stderr


# ---- 28: a build tree that was configured before ----


def test_28_cc_changed_in_an_existing_cmake_tree_is_detected(katana: Installation, sources: Path) -> None:
    need("cmake")
    (sources / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(p C)\nset(CMAKE_C_FLAGS -g)\nadd_executable(prog main.c g.c)\n"
    )
    configure = ["cmake", "-S", ".", "-B", "build"]
    good(katana, sources, *configure, CC="gcc")
    good(katana, sources, *configure, CC="katana-cc")
    good(katana, sources, "cmake", "--build", "build")
    done = katana.run("katana-release", "v1", cwd=sources)
    assert done.returncode == 6
    assert b"CMakeCache.txt was configured with" in done.stderr
    assert b"cmake --fresh" in done.stderr


# ---- Meson's own way ----


@pytest.mark.parametrize("language", ["c", "cpp"])
def test_a_native_file_of_mesons(katana: Installation, sources: Path, language: str) -> None:
    need("meson", "ninja", "g++")
    suffix = "c" if language == "c" else "cc"
    for name in ("main", "g"):
        (sources / f"{name}.c").rename(sources / f"{name}.{suffix}")
    (sources / "meson.build").write_text(
        f"project('p', '{language}')\nlibrary('g', 'g.{suffix}')\nexecutable('prog', 'main.{suffix}', 'g.{suffix}')\n"
    )
    (sources / "native").write_text("[binaries]\nc = ['katana-cc', 'gcc']\ncpp = ['katana-c++', 'g++']\n")
    good(katana, sources, "meson", "setup", "build", "--native-file", "native")
    good(katana, sources, "ninja", "-C", "build")
    assert {entry["output_key"] for entry in links(sources / ".katana")} == {"build/prog", "build/libg.so"}
    good(katana, sources, "katana-release", "v1")
    (sources / f"g.{suffix}").write_text(CHANGED)
    done = good(katana, sources, "ninja", "-C", "build")
    assert done.stdout.count(b"1 function changed, safe") == 2
