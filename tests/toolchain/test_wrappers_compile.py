"""katana-cc on compiles: only flags are added, nothing else can be told from the plain compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.installation import Installation, clean_environment

C_FILE = "int f(int x) { return x + 1; }\n"
ADDED = ["-g", "-ffunction-sections", "-fdata-sections"]
STACK_NOTE = '.section .note.GNU-stack,"",@progbits\n'
# A "compiler" that prints how it was called, one word a line, then what it reads.
ECHO = '#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n'


def added(katana: Installation) -> list[str]:
    """What a compile gains."""
    return [*ADDED, f"-idirafter{katana.libexec}/include"]


@pytest.fixture
def echo(tmp_path: Path) -> str:
    script = tmp_path / "real tools" / "echo-cc"
    script.parent.mkdir()
    script.write_text(ECHO)
    script.chmod(0o755)
    return str(script)


def words(katana: Installation, echo: str, cwd: Path, *arguments: str) -> list[str]:
    """The words the real compiler gets for `arguments`, without its own name."""
    done = katana.run(katana.cc, *arguments, cwd=cwd, KATANA_CC=echo)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0] == echo
    return lines[1:]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "a.c"],
        ["-O2", "-Wall", "-c", "-o", "x.o", "a.c"],
        ["-c", "a.S"],
        ["-x", "c", "-c", "-"],
        ["-c", "-x", "c", "a.txt"],
        ["-MD", "-MF", "-E", "-c", "a.c"],  # -E is the name of a file here
        ["-c", "a.c", "-include", "-S"],
        ["-c", "@options"],
        ["-o", "-E", "-c", "a.c"],
        ["-dumpbase", "-S", "-c", "a.c"],
    ],
)
def test_a_compile_gains_flags_before_the_users_own(
    katana: Installation, echo: str, tmp_path: Path, arguments: list[str]
) -> None:
    assert words(katana, echo, tmp_path, *arguments) == [*added(katana), *arguments]


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.c", "-o", "prog"],
        ["a.c", "b.o", "-lm"],
        ["-shared", "-fPIC", "a.c", "-o", "libx.so"],
        ["-v", "a.c"],
        ["@options"],
        ["-T", "-c", "a.c"],  # -c is the name of a linker script here
        ["-Xlinker", "--version", "a.c"],
    ],
)
def test_a_compile_and_link_gains_flags_and_our_folder(
    katana: Installation, echo: str, tmp_path: Path, arguments: list[str]
) -> None:
    assert words(katana, echo, tmp_path, *arguments) == [f"-B{katana.libexec}/", *added(katana), *arguments]


@pytest.mark.parametrize("arguments", [["a.o", "-o", "prog"], ["-o", "prog", "x.a", "b.so.1", "c.lo"], ["a.s"]])
def test_a_link_of_objects_gains_only_our_folder(
    katana: Installation, echo: str, tmp_path: Path, arguments: list[str]
) -> None:
    assert words(katana, echo, tmp_path, *arguments) == [f"-B{katana.libexec}/", *arguments]


@pytest.mark.parametrize("arguments", [["conftest.c"], ["-o", "x", "sub/conftst1.c"]])
def test_a_probe_is_built_with_our_flags_but_not_linked_by_us(
    katana: Installation, echo: str, tmp_path: Path, arguments: list[str]
) -> None:
    assert words(katana, echo, tmp_path, *arguments) == [*added(katana), *arguments]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-v"],
        ["-Wl,--version"],
        ["--version"],
        ["--help=optimizers"],
        ["-E", "a.c"],
        ["-S", "a.c"],
        ["-c", "-E", "a.c"],
        ["-E", "-c", "a.c"],
        ["-M", "a.c"],
        ["-MM", "a.c"],
        ["-fsyntax-only", "a.c"],
        ["-###", "a.c"],
        ["-print-prog-name=ld"],
        ["-print-search-dirs"],
        ["-dumpversion"],
        ["-dumpmachine"],
        ["-dumpspecs"],
        ["-cc1", "-version", "a.c"],
        ["-c", "a.s"],  # clang's -Werror rejects section flags here
        ["-c", "-x", "assembler", "a.txt"],
    ],
)
def test_other_commands_gain_nothing(katana: Installation, echo: str, tmp_path: Path, arguments: list[str]) -> None:
    assert words(katana, echo, tmp_path, *arguments) == arguments


def test_arguments_arrive_byte_for_byte(katana: Installation, echo: str, tmp_path: Path) -> None:
    awkward = [
        b"",
        b" ",
        b"a b",
        b'"',
        b"'",
        b"\\",
        b"*",
        b"$HOME",
        b"`id`",
        b"\xff\xfe",
        b"-DX=\"a 'b'\"",
        b"%s",
        b"-n",
    ]
    done = katana.run(katana.cc, b"-c", *awkward, b"a.c", cwd=tmp_path, KATANA_CC=echo)
    assert done.stdout.split(b"\n")[1:-1] == [word.encode() for word in added(katana)] + [b"-c", *awkward, b"a.c"]


def test_disabled_passes_everything_through(katana: Installation, echo: str, tmp_path: Path) -> None:
    done = katana.run(katana.cc, "a.c", "-o", "prog", cwd=tmp_path, KATANA_CC=echo, KATANA_DISABLE="1")
    assert done.stdout.decode().splitlines() == [echo, "a.c", "-o", "prog"]


# ---- link-time optimisation ----


def test_lto_is_turned_off_behind_the_users_flags(katana: Installation, echo: str, tmp_path: Path) -> None:
    assert words(katana, echo, tmp_path, "-flto=auto", "-c", "a.c") == [
        *added(katana),
        "-flto=auto",
        "-c",
        "a.c",
        "-fno-lto",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "a.c"],
        ["-flto", "-fno-lto", "-c", "a.c"],
        ["-ffat-lto-objects", "-c", "a.c"],
        ["-flto", "-fwhole-program-vtables", "-c", "a.c"],  # clang refuses these two without LTO
        ["-flto=thin", "-fsanitize=cfi", "-c", "a.c"],
    ],
)
def test_lto_flags_stay_where_they_are_off_or_needed(
    katana: Installation, echo: str, tmp_path: Path, arguments: list[str]
) -> None:
    assert words(katana, echo, tmp_path, *arguments) == [*added(katana), *arguments]


def test_lto_is_kept_when_asked_for(katana: Installation, echo: str, tmp_path: Path) -> None:
    done = katana.run(katana.cc, "-flto", "-c", "a.c", cwd=tmp_path, KATANA_CC=echo, KATANA_LTO="keep")
    assert "-fno-lto" not in done.stdout.decode().splitlines()


def test_an_lto_link_of_objects_keeps_its_flag(katana: Installation, echo: str, tmp_path: Path) -> None:
    # Objects of an earlier, unwrapped build hold nothing but bytecode: -fno-lto would break their link.
    assert "-fno-lto" not in words(katana, echo, tmp_path, "-flto", "a.o", "-o", "prog")


# ---- which compiler ----


def fake_compiler(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    script = folder / name
    script.write_text(ECHO)
    script.chmod(0o755)
    return script


def test_launcher_form_takes_the_first_word(katana: Installation, tmp_path: Path) -> None:
    real = fake_compiler(tmp_path / "bin", "mycc-12")
    done = katana.run(katana.cc, "mycc-12", "-c", "a.c", cwd=tmp_path, PATH=f"{real.parent}:{os.environ['PATH']}")
    assert done.stdout.decode().splitlines() == [str(real), *added(katana), "-c", "a.c"]


def test_launcher_form_takes_any_program_by_absolute_path(katana: Installation, tmp_path: Path) -> None:
    real = fake_compiler(tmp_path / "b in", "strange")
    done = katana.run(katana.cc, real, "-c", "a.c", cwd=tmp_path)
    assert done.stdout.decode().splitlines() == [str(real), *added(katana), "-c", "a.c"]


def test_flags_go_behind_a_launcher_of_a_launcher(katana: Installation, tmp_path: Path) -> None:
    ccache = fake_compiler(tmp_path / "bin", "ccache")
    fake_compiler(tmp_path / "bin", "gcc-99")
    done = katana.run(
        katana.cc, "ccache", "gcc-99", "-c", "a.c", cwd=tmp_path, PATH=f"{ccache.parent}:{os.environ['PATH']}"
    )
    assert done.stdout.decode().splitlines() == [str(ccache), "gcc-99", *added(katana), "-c", "a.c"]


@pytest.mark.parametrize("name", ["lib.so", "foo.cc", "gcc", "./prog.o"])
def test_an_input_file_is_no_compiler(katana: Installation, echo: str, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    (tmp_path / name).chmod(0o755)
    assert words(katana, echo, tmp_path, name, "-c")[-2:] == [name, "-c"]


def test_katana_cc_may_hold_several_words(katana: Installation, tmp_path: Path) -> None:
    ccache = fake_compiler(tmp_path / "bin", "ccache")
    done = katana.run(
        katana.cc,
        "-c",
        "a.c",
        cwd=tmp_path,
        PATH=f"{ccache.parent}:{os.environ['PATH']}",
        KATANA_CC="ccache gcc -m64",
    )
    assert done.stdout.decode().splitlines() == [str(ccache), "gcc", "-m64", *added(katana), "-c", "a.c"]


def test_the_cxx_wrapper_runs_the_cxx_compiler(katana: Installation, echo: str, tmp_path: Path) -> None:
    done = katana.run(katana.cxx, "-c", "a.cc", cwd=tmp_path, KATANA_CXX=echo, KATANA_CC="/bin/false")
    assert done.stdout.decode().splitlines() == [echo, *added(katana), "-c", "a.cc"]


@pytest.mark.parametrize("copied", [False, True], ids=["link", "copy"])
def test_masquerading_finds_the_next_compiler_of_that_name(katana: Installation, tmp_path: Path, copied: bool) -> None:
    folder = tmp_path / "masquerade"
    folder.mkdir()
    if copied:
        shutil.copy2(katana.cc, folder / "gcc")
    else:
        (folder / "gcc").symlink_to(katana.cc)
    real = fake_compiler(tmp_path / "real", "gcc")
    path = f"{folder}:{real.parent}:{os.environ['PATH']}"
    done = katana.run("gcc", "-c", "a.c", cwd=tmp_path, PATH=path)
    gained = ADDED if copied else added(katana)  # a copy knows nothing of the installation
    assert done.stdout.decode().splitlines() == [str(real), *gained, "-c", "a.c"]


def test_two_copies_that_find_each_other_give_up(katana: Installation, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy2(katana.cc, tmp_path / name / "gcc")
    path = f"{tmp_path / 'one'}:{tmp_path / 'two'}:/nonexistent"
    done = subprocess.run(
        [tmp_path / "one" / "gcc", "-c", "a.c"], env={"PATH": path}, capture_output=True, check=False, timeout=20
    )
    assert done.returncode == 127
    assert b"copies of itself" in done.stderr


def test_naming_ourselves_as_the_compiler_is_refused(katana: Installation, tmp_path: Path) -> None:
    done = katana.run(katana.cc, "-c", "a.c", cwd=tmp_path, KATANA_CC=katana.cc)
    assert done.returncode == 127
    assert done.stdout == b""


def test_a_missing_compiler_is_named(katana: Installation, tmp_path: Path) -> None:
    done = katana.run(katana.cc, "-c", "a.c", cwd=tmp_path, KATANA_CC="gcc-none")
    assert done.returncode == 127
    assert done.stderr == b"katana-cc: the compiler 'gcc-none' (from KATANA_CC or KATANA_CXX) was not found\n"


def test_no_compiler_on_path_is_explained(katana: Installation, tmp_path: Path) -> None:
    done = subprocess.run([katana.cc, "-c", "a.c"], env={"PATH": str(tmp_path)}, capture_output=True, check=False)
    assert done.returncode == 127
    assert done.stderr.startswith(b"katana-cc: no compiler 'cc' on PATH")


# ---- transparency ----


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "good.c", "-Wall"],
        ["-c", "bad.c"],
        ["-c", "missing.c"],
        ["-c", "warns.c", "-Wall", "-fdiagnostics-color=always"],
        ["--no-such-option", "good.c"],
        ["-E", "good.c"],
        ["-print-search-dirs"],
        ["good.c", "-o", "prog"],  # links without main: the linker's words
        [],
    ],
    ids=" ".join,
)
def test_streams_and_status_are_the_compilers_own(
    katana: Installation, compiler: str, project: Path, arguments: list[str]
) -> None:
    (project / "good.c").write_text(C_FILE)
    (project / "bad.c").write_text("int f( { return 1; }\n")
    (project / "warns.c").write_text("int f(void) { int unused; }\n")
    plain = subprocess.run(
        [shutil.which(compiler) or "", *arguments],
        cwd=project,
        capture_output=True,
        check=False,
        env=clean_environment() | {"TMPDIR": "/tmp"},
    )
    wrapped = katana.run(katana.cc, compiler, *arguments, cwd=project)
    assert wrapped.returncode == plain.returncode
    assert wrapped.stdout == plain.stdout
    assert hide_temporaries(wrapped.stderr) == hide_temporaries(plain.stderr)


def hide_temporaries(text: bytes) -> bytes:
    """A compiler's stderr without what differs from run to run: the names of temporary objects."""
    return re.sub(rb"/tmp/[A-Za-z0-9_-]+\.o", b"TEMPORARY.o", text)


def test_standard_input_reaches_the_compiler(katana: Installation, compiler: str, tmp_path: Path) -> None:
    done = katana.run(katana.cc, compiler, "-x", "c", "-c", "-", "-o", "x.o", cwd=tmp_path, stdin=C_FILE.encode())
    assert done.returncode == 0, done.stderr
    assert "f" in subprocess.run(["nm", tmp_path / "x.o"], capture_output=True, text=True, check=True).stdout


def test_a_compiler_killed_by_a_signal_looks_killed(katana: Installation, tmp_path: Path) -> None:
    script = fake_compiler(tmp_path / "bin", "dying")
    script.write_text("#!/bin/sh\nkill -SEGV $$\n")
    done = katana.run(katana.cc, script, "-c", "a.c", cwd=tmp_path)
    assert done.returncode == -11


def test_clang_accepts_our_flags_under_werror(katana: Installation, tmp_path: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    (tmp_path / "a.c").write_text("int main(void) { return 0; }\n")
    (tmp_path / "b.s").write_text(STACK_NOTE + ".text\n.globl b\nb: ret\n")
    (tmp_path / "c.S").write_text(STACK_NOTE + ".text\n.globl c\nc: ret\n")
    (tmp_path / "options").write_text("-c a.c")
    for arguments in (["-c", "a.c"], ["-c", "b.s"], ["-c", "c.S"], ["a.o", "b.o", "c.o"], ["@options"], ["a.c", "b.s"]):
        done = katana.run(
            katana.cc, "clang", "-Werror", "-Wall", *arguments, cwd=tmp_path, KATANA_DIR=str(tmp_path / "s")
        )
        assert (done.returncode, done.stderr) == (0, b""), arguments


def test_the_users_flags_win(katana: Installation, compiler: str, tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text(C_FILE)
    done = katana.run(katana.cc, compiler, "-g0", "-fno-function-sections", "-c", "a.c", cwd=tmp_path)
    assert done.returncode == 0
    sections = subprocess.run(["readelf", "-SW", tmp_path / "a.o"], capture_output=True, text=True, check=True).stdout
    assert ".debug_info" not in sections
    assert ".text.f" not in sections


# ---- cost ----


def test_a_compile_starts_no_process_but_the_compiler(katana: Installation, echo: str, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    done = katana.run(
        "strace", "-f", "-e", "trace=process", "-o", trace, katana.cc, "-O2", "-c", "a.c", cwd=tmp_path, KATANA_CC=echo
    )
    if done.returncode != 0 and b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    text = trace.read_text()
    before = text[: text.index(f'execve("{echo}"')]
    assert before.count("execve(") == 1, before
    assert "fork(" not in before and "clone" not in before, before


def test_a_compile_works_without_python(katana: Installation, echo: str, tmp_path: Path) -> None:
    # A copy of the wrapper far from any installation, with nothing on PATH: whatever it needed would be missing.
    wrapper = tmp_path / "katana-cc"
    shutil.copy2(katana.cc, wrapper)
    done = subprocess.run(
        [wrapper, "-c", "a.c"], env={"PATH": "/nonexistent", "KATANA_CC": echo}, capture_output=True, check=False
    )
    assert done.stdout.decode().splitlines() == [echo, *ADDED, "-c", "a.c"]
