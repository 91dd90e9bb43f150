"""What any build may ask of a compiler that stands in for another: points 1 to 19, each against the plain compiler.

The plain compiler gets by hand the flags that katana-cc adds; everything else must be equal to the byte: status,
streams, the files that are there afterwards and what is in them.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.installation import Installation, clean_environment
from tests.support.staged import input_names, links, only_link
from tests.support.twice import FLAGS, both

IDENTIFIED = "-Wl,--build-id=sha1"


@pytest.fixture
def sources(project: Path) -> Path:
    """main.c, g.c and h.h."""
    (project / "main.c").write_text('#include "h.h"\nint main(void) { return g(); }\n')
    (project / "g.c").write_text('#include "h.h"\nint g(void) { return 0; }\n')
    (project / "h.h").write_text("int g(void);\n")
    return project


# ---- parsing ----


def test_01_response_files_nested_and_quoted(katana: Installation, compiler: str, sources: Path) -> None:
    # Passed on as it is: the real compiler reads it.  Understood when expanded: -c is inside, and so are only objects.
    (sources / "a b.c").write_text("const char *s = X;\n")
    (sources / "inner").write_text('-c \'a b.c\' "-DX=\\"a b\\""\n')
    (sources / "outer").write_text("-Wall\n@inner -o out\\ put.o\n")
    assert both(katana, sources, compiler, ["-Werror", "@outer"]).status == 0
    assert (sources / "out put.o").exists()
    for name in ("main.c", "g.c"):
        both(katana, sources, compiler, ["-c", name])
    (sources / "objects").write_text('main.o "g.o"\n')
    (sources / "link").write_text(f"@objects -o prog {IDENTIFIED}")
    # clang's -Werror would not have section flags on a link of objects.
    assert both(katana, sources, compiler, ["-Werror", "@link"], flags=()).status == 0
    assert input_names(only_link(sources / ".katana")) == {"main.o", "g.o"}


def test_01_a_question_in_a_response_file_is_answered_by_the_compiler_alone(
    katana: Installation, compiler: str, sources: Path
) -> None:
    (sources / "options").write_text("-E main.c")
    assert b"int main" in both(katana, sources, compiler, ["@options"], flags=()).stdout
    assert not (sources / ".katana").exists()


def test_02_output_to_nowhere_or_to_a_dash(katana: Installation, compiler: str, sources: Path) -> None:
    before = Path("/dev/null").stat()
    both(katana, sources, compiler, ["main.c", "g.c", "-o", "/dev/null"])
    assert Path("/dev/null").stat().st_rdev == before.st_rdev
    assert not (sources / ".katana").exists()
    both(katana, sources, compiler, ["-c", "main.c", "-o", "/dev/null"])
    both(katana, sources, compiler, ["-c", "main.c", "-o", "-"])
    both(katana, sources, compiler, ["main.c", "g.c", "-o", "-", IDENTIFIED])


@pytest.mark.parametrize(
    ("options", "output"),
    [
        (["-ofoo"], "foo"),
        (["--output=foo"], "foo"),
        (["--output", "foo"], "foo"),
        (["-o", "bar", "-o", "foo"], "foo"),
        ([], "a.out"),
        (["-o", "--sysroot"], "--sysroot"),
    ],
)
def test_03_every_way_to_name_the_output(
    katana: Installation, compiler: str, sources: Path, options: list[str], output: str
) -> None:
    done = both(katana, sources, compiler, ["main.c", "g.c", IDENTIFIED, *options])
    if done.status == 0:  # else the compiler does not take it, and says so itself
        assert output in done.files
        assert only_link(sources / ".katana")["output"] == str(sources / output)
    else:
        assert not (sources / ".katana").exists()


def test_03_several_sources_in_one_compile(katana: Installation, compiler: str, sources: Path) -> None:
    assert {"main.o", "g.o"} <= both(katana, sources, compiler, ["-c", "main.c", "g.c"]).files.keys()


def test_04_output_between_groups(katana: Installation, compiler: str, sources: Path) -> None:
    both(katana, sources, compiler, ["-c", "g.c"])
    subprocess.run(["ar", "rc", "libg.a", "g.o"], cwd=sources, check=True)
    group = ["-Wl,--start-group", "-L.", "-o", "prog", "-lg", "-Wl,--end-group"]
    both(katana, sources, compiler, ["main.c", *group, IDENTIFIED])
    assert only_link(sources / ".katana")["output_key"] == "prog"


def _separate_options() -> list[str]:
    """Options whose value is the next word, in gcc's own words."""
    text = subprocess.run(["gcc", "--help=separate"], capture_output=True, text=True, check=True).stdout
    found = sorted(set(re.findall(r"^  (-[-\w]+)\s", text, re.MULTILINE)))
    assert len(found) > 20
    # Those that also have a joined form are listed as "-x<...>" and "-D<macro>": gcc(1) has them.
    joined = [
        "-T",
        "-u",
        "-e",
        "-z",
        "-L",
        "-I",
        "-D",
        "-U",
        "-l",
        "-A",
        "-B",
        "-Xlinker",
        "-iquote",
        "-wrapper",
        "-MF",
    ]
    # cc1 has a name behind these, the driver has none: gcc(1), "-MD".
    return [*(set(found) - {"-MD", "-MMD", "--write-dependencies", "--write-user-dependencies"}), *joined]


def test_05_values_of_options_are_never_taken_for_options_or_inputs(katana: Installation, tmp_path: Path) -> None:
    echo = tmp_path / "gcc"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    added = [*FLAGS, f"-idirafter{katana.libexec}/include"]
    wrong = []
    for option in (*_separate_options(), "-Xclang", "-aux-info", "-target", "-mllvm", "-x"):
        for value in ("-E", "b.c") if option != "-x" else ("c",):
            # As a compile it gains flags: were the value taken for an option, -E would make it a question.
            words = [option, value, "-c", "a.c"]
            done = katana.run(katana.cc, *words, cwd=tmp_path, KATANA_CC=str(echo))
            if done.stdout.decode().splitlines() != [*added, *words]:
                wrong.append((option, value, "compile"))
            # Alone with a value there is no input, so it is a question; were the value one, it would be a link.
            done = katana.run(katana.cc, option, value, cwd=tmp_path, KATANA_CC=str(echo))
            if done.stdout.decode().splitlines() != [option, value]:
                wrong.append((option, value, "alone"))
    assert wrong == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["-x", "c", "-c", "text", "-o", "o.o"],
        ["-xc", "-c", "text", "-o", "o.o"],
        ["-x", "c", "text", "-x", "none", "g.c", "-o", "prog", IDENTIFIED],
        ["-x", "c", "-c", "-", "-o", "o.o"],
        ["-c", "-xc", "/dev/null", "-o", "o.o"],
        ["-E", "-xc", "/dev/null", "-dM"],
        ["-xassembler", "-c", "/dev/null", "-o", "o.o"],
        ["-xc", "-fsyntax-only", "-"],
    ],
)
def test_06_languages_standard_input_and_dev_null(
    katana: Installation, compiler: str, sources: Path, arguments: list[str]
) -> None:
    (sources / "text").write_text('#include "h.h"\nint main(void) { return g(); }\n')
    adds = "-E" not in arguments and "-xassembler" not in arguments and "-fsyntax-only" not in arguments
    done = both(katana, sources, compiler, arguments, stdin=b"int x;\n", flags=FLAGS if adds else ())
    assert done.status == 0, done.words


def test_07_the_order_of_arguments_is_kept(katana: Installation, tmp_path: Path) -> None:
    echo = tmp_path / "gcc"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    words = ["-O2", "-Ia", "-DX=1", "a.c", "-UX", "-O0", "b.o", "-Ib", "-lm", "-Wl,-z,now", "c.a", "-o", "p", "-s"]
    done = katana.run(katana.cc, *words, cwd=tmp_path, KATANA_CC=str(echo))
    assert done.stdout.decode().splitlines()[-len(words) :] == words


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        (["-MD", "-c", "main.c", "-o", "dir/x.o"], FLAGS),
        (["-MMD", "-MP", "-MT", "a b", "-c", "main.c"], FLAGS),
        (["-Wp,-MD,dir/f", "-c", "main.c"], FLAGS),
        (["-MD", "-MF", "/dev/null", "-c", "main.c"], FLAGS),
        (["-MD", "main.c", "g.c", "-o", "prog", IDENTIFIED], FLAGS),
        (["-M", "main.c"], ()),
        (["-MM", "-MF", "deps", "main.c"], ()),
    ],
)
def test_08_dependency_files(
    katana: Installation, compiler: str, sources: Path, arguments: list[str], added: tuple[str, ...]
) -> None:
    (sources / "dir").mkdir()
    assert both(katana, sources, compiler, arguments, flags=added).status == 0


@pytest.mark.parametrize(
    "arguments",
    [["-E", "main.c"], ["-S", "main.c", "-o", "-"], ["--version"], ["-print-search-dirs"], ["-dumpmachine"], ["-v"]],
)
def test_09_questions_are_answered_by_the_compiler_alone(
    katana: Installation, compiler: str, sources: Path, arguments: list[str]
) -> None:
    assert both(katana, sources, compiler, arguments, flags=()).status == 0
    assert not (sources / ".katana").exists()


def test_09_verbose_with_inputs_still_compiles(katana: Installation, compiler: str, sources: Path) -> None:
    done = katana.run(katana.cc, compiler, "-v", "main.c", "g.c", "-o", "prog", cwd=sources)
    assert done.returncode == 0
    assert input_names(only_link(sources / ".katana")) != set()
    assert subprocess.run([sources / "prog"], check=False).returncode == 0


@pytest.mark.parametrize("option", ["-save-temps", "--save-temps", "-save-temps=cwd", "-save-temps=obj"])
def test_10_saved_temporary_files(katana: Installation, compiler: str, sources: Path, option: str) -> None:
    (sources / "dir").mkdir()
    done = both(katana, sources, compiler, [option, "main.c", "g.c", "-o", "dir/prog", IDENTIFIED])
    assert sum(name.endswith(".s") for name in done.files) == 2
    assert only_link(sources / ".katana")["output_key"] == "dir/prog"


def test_10_split_debug_information(katana: Installation, compiler: str, sources: Path) -> None:
    done = both(katana, sources, compiler, ["-gsplit-dwarf", "-c", "main.c", "-o", "m.o"])
    assert {"m.o", "m.dwo"} <= done.files.keys()


def test_10_precompiled_headers(katana: Installation, compiler: str, sources: Path) -> None:
    # Made and used through us: a header made by other flags than its user's would be ignored or refused.
    suffix, use = (".gch", ["-Winvalid-pch"]) if compiler.startswith("gcc") else (".pch", ["-include-pch", "h.h.pch"])
    made = katana.run(katana.cc, compiler, "-Werror", "-x", "c-header", "h.h", "-o", f"h.h{suffix}", cwd=sources)
    assert (made.returncode, made.stdout, made.stderr) == (0, b"", b"")
    (sources / "h.h").write_text("#error read instead of what was precompiled\n")
    os.utime(sources / "h.h", (0, 0))
    if compiler.startswith("gcc"):  # clang compares the header with what it was
        used = katana.run(katana.cc, compiler, "-Werror", *use, "-c", "main.c", cwd=sources)
        assert (used.returncode, used.stderr) == (0, b"")
    assert not (sources / ".katana").exists()


def test_11_quotes_spaces_and_names_that_are_no_utf8(katana: Installation, compiler: str, sources: Path) -> None:
    odd = os.fsdecode(b"caf\xe9 \"'$x.c")
    (sources / odd).write_text("const char *text(void) { return X; }\n")
    both(katana, sources, compiler, ['-DX="a b"', "-c", os.fsencode(odd), "-o", os.fsencode("o\xe9.o")])
    done = both(
        katana, sources, compiler, ['-DX="a b"', os.fsencode(odd), "-shared", "-fPIC", "-o", "x.so", IDENTIFIED]
    )
    assert done.status == 0, done.words
    assert b"a b" in done.files["x.so"]


def test_11_a_very_long_command_line(katana: Installation, compiler: str, sources: Path) -> None:
    many = [f"-DMACRO_WITH_A_LONG_NAME_{number}={number}" for number in range(2500)]  # gcc itself cannot with more
    assert both(katana, sources, compiler, [*many, "-c", "main.c"]).status == 0
    both(katana, sources, compiler, ["-c", "g.c"])
    folders = [f"-L/a/folder/that/is/not/there/{number}" for number in range(1500)]
    assert both(katana, sources, compiler, [*folders, "main.o", "g.o", "-o", "p", IDENTIFIED], flags=()).status == 0
    assert input_names(only_link(sources / ".katana")) == {"main.o", "g.o"}


@pytest.mark.parametrize(("flag", "word"), [("-fno-function-sections", "function"), ("-g0", "debug information")])
@pytest.mark.parametrize("separately", [pytest.param(False, marks=pytest.mark.rest), True])
def test_12_a_flag_of_the_users_that_undoes_ours_wins_and_is_reported(
    katana: Installation, compiler: str, sources: Path, flag: str, word: str, separately: bool
) -> None:
    (sources / "g.c").write_text('#include "h.h"\nint f(void) { return 1; }\nint g(void) { return 0; }\n')
    both(katana, sources, compiler, [flag, "-c", "g.c"])
    sections = subprocess.run(["readelf", "-SW", "g.o"], cwd=sources, capture_output=True, text=True, check=True).stdout
    assert (".text.g" in sections, ".debug_info" in sections) == (flag == "-g0", flag != "-g0")
    inputs = ["g.o"] if separately else [flag, "g.c"]
    both(katana, sources, compiler, ["main.c", *inputs, "-o", "prog", IDENTIFIED])
    done = katana.run("katana-release", "v1", cwd=sources)
    assert done.returncode == 0
    shown = katana.run("katana", "show", "v1", cwd=sources)
    assert word in shown.stdout.decode() + done.stderr.decode()


# ---- behaviour ----


@pytest.mark.parametrize("arguments", [["-c", "bad.c"], ["-c", "none.c"], ["main.c"], ["--no-such-option"], ["-c"]])
def test_13_exit_codes_are_the_compilers(
    katana: Installation, compiler: str, sources: Path, arguments: list[str]
) -> None:
    (sources / "bad.c").write_text("int f( {\n")
    done = katana.run(katana.cc, compiler, *arguments, cwd=sources)
    plain = subprocess.run([compiler, *arguments], cwd=sources, capture_output=True, check=False)
    assert (done.returncode, plain.returncode != 0) == (plain.returncode, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_13_a_signal_that_ends_the_compiler_ends_us(katana: Installation, tmp_path: Path, number: int) -> None:
    script = tmp_path / "gcc"
    script.write_text(f"#!/bin/sh\nulimit -c 0\nkill -{int(number)} $$\n")
    script.chmod(0o755)
    done = katana.run(katana.cc, "-c", "x.c", cwd=tmp_path, KATANA_CC=str(script))
    assert done.returncode == -number


def test_14_streams_are_the_compilers_to_the_byte(katana: Installation, compiler: str, sources: Path) -> None:
    (sources / "bad.c").write_text("#warning \xe9\nint f(void) { return x; }\nint h(void) { char *p = 1; }\n")
    done = both(katana, sources, compiler, ["-Wall", "-c", "bad.c"])
    assert done.stderr
    both(katana, sources, compiler, ["-E", "bad.c"], flags=())
    # What the linker says is said once, in its own words, but for the names of temporary objects.
    (sources / "main.o").unlink(missing_ok=True)
    both(katana, sources, compiler, ["-c", "main.c"])
    assert b"undefined reference" in both(katana, sources, compiler, ["main.o", "-o", "p"], flags=()).stderr


def test_14_colours_appear_on_a_terminal(katana: Installation, compiler: str, sources: Path) -> None:
    (sources / "bad.c").write_text("int f(void) { return x; }\n")

    def on_terminal(*command: str) -> bytes:
        parent, child = pty.openpty()
        environment = clean_environment() | {"TERM": "xterm-256color"}
        with subprocess.Popen(command, cwd=sources, stdin=child, stdout=child, stderr=child, env=environment):
            os.close(child)
            text = b""
            while True:
                try:
                    part = os.read(parent, 65536)
                except OSError:  # EIO: nobody has the other end open
                    break
                if not part:
                    break
                text += part
        os.close(parent)
        return text

    plain = on_terminal(compiler, "-c", "bad.c")
    assert b"\x1b[" in plain
    assert on_terminal(katana.cc, compiler, "-c", "bad.c") == plain


@pytest.mark.parametrize("numbers", [(3, 4), (7, 8), (8, 9), (7, 9), (3, 4, 5, 6, 7, 8, 9)])
def test_15_the_jobserver_is_inherited(katana: Installation, tmp_path: Path, numbers: tuple[int, ...]) -> None:
    # make names its pipe by whatever descriptors were free; the linker (gcc's LTO, mold) and its children read it.
    linker = tmp_path / "fake-ld"
    shows = "\n".join(f"readlink /proc/self/fd/{number} || echo closed" for number in numbers)
    linker.write_text(f"#!/bin/sh\n{shows}\n")
    linker.chmod(0o755)
    file = tmp_path / "jobserver"
    file.write_text("")
    # From a shell, since Python's own descriptors would be in the way.
    opening = " ".join(f"{number}<>jobserver" for number in numbers)
    done = katana.run(
        "sh", "-c", f'exec "$0" a.o -o x {opening}', katana.libexec / "ld", cwd=tmp_path, KATANA_REAL_LD=str(linker)
    )
    assert done.stdout.decode().splitlines() == [str(file)] * len(numbers)
    assert done.stderr == b""


def test_15_make_runs_jobs_at_once_through_us(katana: Installation, compiler: str, sources: Path) -> None:
    (sources / "Makefile").write_text(
        "all: sub\nsub:\n\t+@$(MAKE) -s prog\nprog: main.o g.o\n\t+$(CC) main.o g.o -o prog\n"
    )
    done = katana.run("make", "-j3", f"CC=katana-cc {compiler}", cwd=sources)
    assert done.returncode == 0, done.stderr
    assert b"jobserver" not in done.stderr
    assert input_names(only_link(sources / ".katana")) == {"main.o", "g.o"}


def test_16_masquerade_folders_on_path_do_not_recurse(katana: Installation, sources: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "gcc").symlink_to(katana.cc)
    path = f"{first}:{second}:{clean_environment()['PATH']}"
    done = katana.run("gcc", "main.c", "g.c", "-o", "prog", cwd=sources, PATH=path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert only_link(sources / ".katana")["compiler"] == shutil.which("gcc", path=clean_environment()["PATH"])


@pytest.mark.parametrize("where", ["no home", "read-only", "full"])
def test_17_the_build_succeeds_whatever_the_store_is_like(
    katana: Installation, compiler: str, sources: Path, where: str
) -> None:
    store = sources / ".katana"
    words = [katana.cc, compiler, "main.c", "g.c", "-o", "prog"]
    if where == "no home":
        done = katana.run("env", "-u", "HOME", *words, cwd=sources)
        assert (done.returncode, done.stderr) == (0, b"")
        assert only_link(store)["output_key"] == "prog"
        return
    if where == "read-only":  # also for root: a folder that cannot be made, since a file is in its place
        store.write_text("")
        done = katana.run(*words, cwd=sources)
    else:
        done = katana.run(*words, cwd=sources, KATANA_DIR="/dev/full/store")
    assert done.returncode == 0
    assert done.stderr.count(b"\n") == 1
    assert subprocess.run([sources / "prog"], check=False).returncode == 0


def test_18_the_users_objects_are_neither_changed_nor_linked(
    katana: Installation, compiler: str, sources: Path
) -> None:
    for name in ("main.c", "g.c"):
        both(katana, sources, compiler, ["-c", name])
    subprocess.run(["ar", "rcD", "libg.a", "g.o"], cwd=sources, check=True)
    files = [sources / "main.o", sources / "libg.a"]
    before = [(file.read_bytes(), file.stat()) for file in files]
    assert katana.run(katana.cc, compiler, "main.o", "libg.a", "-o", "prog", cwd=sources).returncode == 0
    assert katana.run("katana-release", "v1", cwd=sources).returncode == 0
    for file, (content, status) in zip(files, before, strict=True):
        now = file.stat()
        assert file.read_bytes() == content
        assert (now.st_mtime_ns, now.st_ino, now.st_nlink, now.st_mode) == (
            status.st_mtime_ns, status.st_ino, 1, status.st_mode,
        )  # fmt: skip
    assert (sources / "prog").stat().st_nlink == 1


@pytest.mark.parametrize("command", ["compile", "link", "failing link", "question"])
def test_19_no_stray_files(katana: Installation, compiler: str, sources: Path, tmp_path: Path, command: str) -> None:
    temporary, home = tmp_path / "tmp", tmp_path / "home"
    temporary.mkdir()
    home.mkdir()
    words = {
        "compile": ["-c", "main.c"], "link": ["main.c", "g.c", "-o", "prog"], "failing link": ["main.c", "-o", "prog"],
        "question": ["--version"],
    }[command]  # fmt: skip
    katana.run(katana.cc, compiler, *words, cwd=sources, TMPDIR=str(temporary), HOME=str(home))
    assert list(temporary.iterdir()) + list(home.iterdir()) == []
    made = {"compile": {"main.o"}, "link": {"prog", ".katana"}}.get(command, set())
    assert {path.name for path in sources.iterdir()} - {"main.c", "g.c", "h.h", ".git"} == made
    assert len(links(sources / ".katana")) == (command == "link")
