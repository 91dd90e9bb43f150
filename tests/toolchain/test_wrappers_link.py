"""The linker's stand-in: the real linker runs as if called directly, and the link is staged."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.installation import Installation, clean_environment
from tests.support.staged import input_names, links, only_link

MAIN = "int g(void);\nint main(void) { return g(); }\n"
G = "int g(void) { return 0; }\n"


@pytest.fixture
def sources(project: Path) -> Path:
    (project / "main.c").write_text(MAIN)
    (project / "g.c").write_text(G)
    return project


def build(katana: Installation, cwd: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run katana-cc and expect silence and success."""
    done = katana.run(katana.cc, *arguments, cwd=cwd, stdin=None, **variables)
    assert (done.returncode, done.stderr) == (0, b"")
    return done


def oracle_linker(compiler: str, linker: str) -> str:
    """Which linker the plain compiler would run, in its own words."""
    words = subprocess.run(
        [compiler, f"-fuse-ld={linker}", f"-print-prog-name=ld.{linker}"], capture_output=True, text=True, check=True
    )
    return words.stdout.strip()


# ---- which linker ----


def test_the_linker_asked_for_is_the_one_that_runs(
    katana: Installation, compiler: str, linker: str, sources: Path
) -> None:
    build(katana, sources, compiler, f"-fuse-ld={linker}", "main.c", "g.c", "-o", "prog")
    entry = only_link(sources / ".katana")
    assert entry["linker_kind"] == linker
    assert os.path.realpath(entry["linker"]) == os.path.realpath(shutil.which(oracle_linker(compiler, linker)) or "")
    assert subprocess.run([sources / "prog"], check=False).returncode == 0


def test_the_default_linker_runs_when_none_is_named(katana: Installation, compiler: str, sources: Path) -> None:
    build(katana, sources, compiler, "main.c", "g.c", "-o", "prog")
    assert Path(only_link(sources / ".katana")["linker"]).name == "ld"


def test_the_output_is_what_the_plain_link_makes(
    katana: Installation, compiler: str, linker: str, sources: Path
) -> None:
    # Temporary objects have random names, which end up in the symbol table; so compile apart.
    for name in ("main", "g"):
        build(katana, sources, compiler, "-c", f"{name}.c")
    objects = ["main.o", "g.o", f"-fuse-ld={linker}", "-Wl,--build-id=sha1"]
    build(katana, sources, compiler, *objects, "-o", "prog")
    recorded = (sources / "prog").read_bytes()
    subprocess.run([compiler, *objects, "-o", "prog"], cwd=sources, check=True, env=clean_environment())
    assert recorded == (sources / "prog").read_bytes()


def test_katana_real_ld_names_the_linker(katana: Installation, sources: Path) -> None:
    if shutil.which("ld.gold") is None:
        pytest.skip("ld.gold is not installed")
    gold = shutil.which("ld.gold") or ""
    build(katana, sources, "gcc", "main.c", "g.c", "-o", "prog", KATANA_REAL_LD=gold)
    assert only_link(sources / ".katana")["linker"] == gold


def test_a_katana_real_ld_that_is_not_there_is_refused(katana: Installation, sources: Path) -> None:
    done = katana.run(katana.cc, "gcc", "main.c", "g.c", cwd=sources, KATANA_REAL_LD="/nonexistent/ld")
    assert done.returncode != 0
    assert b"KATANA_REAL_LD='/nonexistent/ld' is not a linker" in done.stderr


def test_katana_ld_stands_for_ld(katana: Installation, sources: Path) -> None:
    for name in ("main", "g"):
        build(katana, sources, "gcc", "-c", f"{name}.c")
    done = katana.run("katana-ld", "main.o", "g.o", "-e", "main", "-o", "prog", cwd=sources)
    assert (done.returncode, done.stderr) == (0, b"")
    assert input_names(only_link(sources / ".katana")) == {"main.o", "g.o"}


@pytest.mark.parametrize(
    "arguments", [["-v"], ["-V"], ["--version"], ["--help"], [], ["--print-sysroot"]], ids=" ".join
)
def test_questions_are_answered_by_the_real_linker(katana: Installation, tmp_path: Path, arguments: list[str]) -> None:
    real = shutil.which("ld") or ""
    plain = subprocess.run([real, *arguments], capture_output=True, check=False)
    wrapped = katana.run("katana-ld", *arguments, cwd=tmp_path)
    assert (wrapped.returncode, wrapped.stdout, wrapped.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["-r", "-i", "--relocatable", "-relocatable", "-Ur"])
def test_a_partial_link_is_left_alone(katana: Installation, sources: Path, option: str) -> None:
    # A build-id in an object would be one too many in the final link.
    build(katana, sources, "gcc", "-c", "g.c")
    done = katana.run("katana-ld", option, "g.o", "-o", "part.o", cwd=sources)
    assert (done.returncode, done.stderr) == (0, b"")
    sections = subprocess.run(["readelf", "-SW", sources / "part.o"], capture_output=True, text=True, check=True).stdout
    assert "build-id" not in sections
    assert not (sources / ".katana").exists()


def test_a_raw_image_is_left_alone(katana: Installation, sources: Path) -> None:
    build(katana, sources, "gcc", "-c", "g.c")
    for image, program in (("plain", "ld"), ("wrapped", "katana-ld")):
        done = katana.run(program, "--oformat", "binary", "-e", "g", "g.o", "-o", image, cwd=sources)
        assert done.returncode == 0
    assert (sources / "plain").read_bytes() == (sources / "wrapped").read_bytes()
    assert not (sources / ".katana").exists()


# ---- transparency ----


def test_a_failed_link_has_the_linkers_own_status_and_words(
    katana: Installation, compiler: str, linker: str, sources: Path
) -> None:
    build(katana, sources, compiler, "-c", "main.c")
    arguments = [f"-fuse-ld={linker}", "main.o", "-o", "prog"]
    plain = subprocess.run(
        [shutil.which(compiler) or "", *arguments],
        cwd=sources,
        capture_output=True,
        check=False,
        env=clean_environment(),
    )
    wrapped = katana.run(katana.cc, compiler, *arguments, cwd=sources)
    assert plain.returncode != 0
    assert (wrapped.returncode, wrapped.stdout, wrapped.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    assert not (sources / ".katana").exists()


def fake_linker(folder: Path, text: str) -> str:
    script = folder / "fake-ld"
    script.write_text("#!/bin/sh\n" + text)
    script.chmod(0o755)
    return str(script)


def test_the_recorders_pipe_has_no_name_while_the_linker_runs(
    katana: Installation, sources: Path, tmp_path: Path
) -> None:
    """A bug: a recorder that comes to open it by name when a link has failed already complains into the build."""
    script = fake_linker(tmp_path, 'ls "$TMPDIR"; exit 1\n')
    (tmp_path / "tmp").mkdir()
    done = katana.run("katana-ld", "a.o", "-o", "x", cwd=sources, KATANA_REAL_LD=script, TMPDIR=str(tmp_path / "tmp"))
    assert (done.returncode, done.stderr) == (1, b"")
    assert [Path(name).suffix for name in done.stdout.decode().split()] == [".map"]


def test_a_linker_killed_by_a_signal_looks_killed(katana: Installation, sources: Path, tmp_path: Path) -> None:
    script = fake_linker(tmp_path, "kill -SEGV $$\n")
    (tmp_path / "tmp").mkdir()
    done = katana.run("katana-ld", "a.o", "-o", "x", cwd=sources, KATANA_REAL_LD=script, TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == -11
    assert done.stderr == b""
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_terminated_link_leaves_no_temporary_file(katana: Installation, sources: Path, tmp_path: Path) -> None:
    # The linker says it runs by opening a pipe, and then waits for us on another: no sleeping.
    (tmp_path / "tmp").mkdir()
    os.mkfifo(tmp_path / "started")
    script = fake_linker(tmp_path, f'echo ready >"{tmp_path}/started"\nkill -TERM $PPID\nexit 0\n')
    environment = clean_environment() | {"KATANA_REAL_LD": script, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen([katana.libexec / "ld", "a.o", "-o", "x"], cwd=sources, env=environment) as link:
        assert (tmp_path / "started").read_text() == "ready\n"
        assert link.wait(20) == -15
    assert list((tmp_path / "tmp").iterdir()) == []


def test_every_argument_reaches_the_linker_byte_for_byte(katana: Installation, sources: Path, tmp_path: Path) -> None:
    script = fake_linker(tmp_path, 'printf "%s\\n" "$@"\n')
    awkward = [b"", b" ", b"a b", b'"', b"'", b"\\", b"*", b"$HOME", b"\xff\xfe", b"%s", b"@missing", b"-z", b"-r"]
    done = katana.run(
        b"katana-ld", *awkward, b"a.o", b"--build-id=none", b"-o", b"no\xffname", cwd=sources, KATANA_REAL_LD=script
    )
    got = done.stdout.split(b"\n")[:-1]
    assert got[:-1] == [*awkward, b"a.o", b"--build-id=none", b"-o", b"no\xffname"]
    assert got[-1].startswith(b"-Map=")


def test_the_jobserver_reaches_the_linker(katana: Installation, sources: Path, tmp_path: Path) -> None:
    # make passes its jobserver as descriptors 3 and 4, and lto-wrapper's make uses them.
    script = fake_linker(tmp_path, "cat <&3\n")
    reading, writing = os.pipe()
    os.write(writing, b"token")
    os.close(writing)
    environment = clean_environment() | {"KATANA_REAL_LD": script}
    done = subprocess.run(
        [katana.libexec / "ld", "a.o", "-o", "x"],
        cwd=sources,
        env=environment,
        preexec_fn=lambda: os.dup2(reading, 3),
        pass_fds=(3,),
        capture_output=True,
        check=False,
    )
    os.close(reading)
    assert done.stdout == b"token"


# ---- the user's own map and build-id ----


@pytest.mark.parametrize("form", ["-Wl,-Map=user.map", "-Wl,-Map,user.map", "-Wl,--Map=user.map"])
def test_the_user_gets_his_map(katana: Installation, linker: str, sources: Path, form: str) -> None:
    build(katana, sources, "gcc", f"-fuse-ld={linker}", "main.c", "g.c", form, "-o", "prog")
    entry = only_link(sources / ".katana")
    assert (sources / "user.map").read_bytes() == (entry["folder"] / entry["map"]).read_bytes()


@pytest.mark.parametrize(
    ("form", "name"), [("maps", "maps/prog.map"), ("maps/%", "maps/prog.map"), ("maps/%.txt", "maps/prog.txt")]
)
def test_the_users_map_in_a_folder_is_named_as_bfd_does(
    katana: Installation, sources: Path, form: str, name: str
) -> None:
    (sources / "maps").mkdir()
    build(katana, sources, "gcc", "main.c", "g.c", f"-Wl,-Map={form}", "-o", "prog")
    wrapped = {str(path.relative_to(sources)) for path in (sources / "maps").iterdir()}
    shutil.rmtree(sources / "maps")
    (sources / "maps").mkdir()
    subprocess.run(["gcc", "main.c", "g.c", f"-Wl,-Map={form}", "-o", "prog"], cwd=sources, check=True)
    assert wrapped == {str(path.relative_to(sources)) for path in (sources / "maps").iterdir()} == {name}


@pytest.mark.parametrize("option", ["-M", "--print-map", "--cref"])
def test_a_map_on_standard_output_stays_there(katana: Installation, linker: str, sources: Path, option: str) -> None:
    if linker == "mold" and option == "--cref":
        pytest.skip("mold has no --cref")
    for name in ("main", "g"):
        build(katana, sources, "gcc", "-c", f"{name}.c")
    arguments = [f"-fuse-ld={linker}", "main.o", "g.o", f"-Wl,{option}", "-Wl,--build-id=sha1", "-o", "prog"]
    plain = subprocess.run(["gcc", *arguments], cwd=sources, capture_output=True, check=True)
    wrapped = build(katana, sources, "gcc", *arguments)
    assert wrapped.stdout == plain.stdout != b""
    assert len(links(sources / ".katana")) == 1


def build_id(path: Path) -> str:
    text = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=True).stdout
    ids = [line.split()[-1] for line in text.splitlines() if "Build ID" in line]
    return ids[0] if ids else ""


def test_a_build_id_is_added_where_the_link_would_make_none(katana: Installation, linker: str, sources: Path) -> None:
    for name in ("main", "g"):
        build(katana, sources, "gcc", "-c", f"{name}.c")
    done = katana.run(katana.libexec / f"ld.{linker}", "main.o", "g.o", "-e", "main", "-o", "prog", cwd=sources)
    assert done.returncode == 0, done.stderr
    assert len(build_id(sources / "prog")) == 40
    assert only_link(sources / ".katana")["build_id_added"] is True


@pytest.mark.parametrize("kind", ["none", "uuid", "0x1234567890abcdef"])
def test_the_users_build_id_is_left_as_he_says(katana: Installation, sources: Path, kind: str) -> None:
    build(katana, sources, "gcc", "main.c", "g.c", f"-Wl,--build-id={kind}", "-o", "prog")
    entry = only_link(sources / ".katana")
    assert entry["build_id_added"] is False
    assert any("build-id" in note for note in entry["notes"]) == (kind in ("none", "uuid"))
    if kind.startswith("0x"):
        assert build_id(sources / "prog") == kind[2:]


def test_a_linker_script_of_the_users_gets_no_new_section(katana: Installation, sources: Path) -> None:
    script = subprocess.run(["ld", "--verbose"], capture_output=True, text=True, check=True).stdout
    (sources / "own.ld").write_text(script.split("=" * 50)[1].replace("*(.note.gnu.build-id)", ""))
    for name in ("main", "g"):
        build(katana, sources, "gcc", "-c", f"{name}.c")
    done = katana.run("katana-ld", "-T", "own.ld", "main.o", "g.o", "-e", "main", "-o", "prog", cwd=sources)
    assert done.returncode == 0, done.stderr
    assert build_id(sources / "prog") == ""
    assert any("linker script" in note for note in only_link(sources / ".katana")["notes"])


# ---- response files ----


@pytest.mark.parametrize("compiler_name", ["gcc", "clang"])
def test_a_link_by_response_file_is_recorded(katana: Installation, sources: Path, compiler_name: str) -> None:
    if shutil.which(compiler_name) is None:
        pytest.skip(f"{compiler_name} is not installed")
    (sources / "a dir").mkdir()
    (sources / "g.c").rename(sources / "a dir" / "g.c")
    for name in ("main.c", "a dir/g.c"):
        build(katana, sources, compiler_name, "-c", name)
    (sources / "g.o").rename(sources / "a dir" / "g.o")
    (sources / "objects.rsp").write_text('main.o "a dir/g.o"\n-o prog -Wl,-Map=user.map\n')
    build(katana, sources, compiler_name, "@objects.rsp")
    entry = only_link(sources / ".katana")
    assert entry["output_key"] == "prog"
    assert input_names(entry) == {"main.o", "g.o"}
    assert not any(word.startswith("@") for word in entry["argv"])
    assert (sources / "user.map").exists()


def test_a_partial_link_by_response_file_is_left_alone(katana: Installation, sources: Path) -> None:
    build(katana, sources, "gcc", "-c", "g.c")
    (sources / "arguments").write_text("-r g.o -o part.o")
    done = katana.run("katana-ld", "@arguments", cwd=sources)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not (sources / ".katana").exists()


# ---- what is no part of the project ----


@pytest.mark.parametrize(
    "output",
    [
        "conftest",
        "conftest.exe",
        "cmTC_1a2b3",
        "CMakeFiles/CMakeScratch/TryCompile-x/prog",
        "CMakeFiles/CMakeTmp/prog",
        "meson-private/tmpx/output.exe",
        "/dev/null",
    ],
)
def test_a_probes_output_is_never_staged(katana: Installation, sources: Path, output: str) -> None:
    (sources / output).parent.mkdir(parents=True, exist_ok=True)
    build(katana, sources, "gcc", "main.c", "g.c", "-o", output)
    assert not (sources / ".katana").exists()


def test_a_link_made_inside_a_probes_folder_is_never_staged(katana: Installation, sources: Path) -> None:
    (sources / "meson-private").mkdir()
    build(katana, sources / "meson-private", "gcc", "../main.c", "../g.c", "-o", "sanitycheckc.exe")
    assert not (sources / ".katana").exists()


def test_a_configure_like_run_leaves_at_most_its_last_probe(katana: Installation, project: Path) -> None:
    for number in range(5):
        (project / f"ztest{number}.c").write_text("int main(void) { return 0; }\n")
        build(katana, project, "gcc", f"ztest{number}.c", "-o", f"ztest{number}")
        (project / f"ztest{number}").unlink()
    assert [entry["output_key"] for entry in links(project / ".katana")] == ["ztest4"]


def test_probes_do_not_start_python(katana: Installation, sources: Path) -> None:
    python = katana.prefix / "bin" / "python3"
    hidden = python.with_name("python3.hidden")
    python.rename(hidden)
    try:
        build(katana, sources, "gcc", "main.c", "g.c", "-o", "conftest")
        broken = katana.run(katana.cc, "gcc", "main.c", "g.c", "-o", "prog", cwd=sources)
    finally:
        hidden.rename(python)
    # The counter-proof: a real link misses it, says so in one line, and still links.
    assert broken.returncode == 0
    assert broken.stderr.count(b"\n") == 1
    assert b"is not recorded: there is no" in broken.stderr
    assert (sources / "prog").exists()


# ---- link-time optimisation ----


def test_the_lto_notice_comes_once_for_a_store(katana: Installation, sources: Path) -> None:
    for number in range(3):
        done = katana.run(katana.cc, "gcc", "-flto", "main.c", "g.c", "-o", f"prog{number}", cwd=sources)
        assert done.returncode == 0
        assert done.stderr.count(b"\n") == (1 if number == 0 else 0)
    assert all(entry["lto"] is False for entry in links(sources / ".katana"))


@pytest.mark.parametrize("form", ["one command", "objects"])
def test_lto_that_is_kept_is_a_gap_to_be(katana: Installation, compiler: str, sources: Path, form: str) -> None:
    fuse = ["-fuse-ld=lld"] if compiler.startswith("clang") else []
    if fuse and shutil.which("ld.lld") is None:
        pytest.skip("ld.lld is not installed")
    inputs = ["main.c", "g.c"]
    plain = [compiler, "-flto", *fuse, *inputs, "-o", "prog"]
    if subprocess.run(plain, cwd=sources, capture_output=True, env=clean_environment(), check=False).returncode:
        pytest.skip(f"the linker does not read what {compiler} writes")
    if form == "objects":
        for name in inputs:
            build(katana, sources, compiler, "-flto", "-c", name, KATANA_LTO="keep")
        inputs = ["main.o", "g.o"]
    build(katana, sources, compiler, "-flto", *fuse, *inputs, "-o", "prog", KATANA_LTO="keep")
    assert only_link(sources / ".katana")["lto"] is True


# ---- failures to record ----


def test_a_store_that_cannot_be_written_is_one_warning(katana: Installation, sources: Path) -> None:
    (sources / ".katana").mkdir()
    (sources / ".katana" / "staged").write_text("a file where a folder should be")
    done = katana.run(katana.cc, "gcc", "main.c", "g.c", "-o", "prog", cwd=sources)
    assert done.returncode == 0
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"katana: prog is not recorded: ")
    assert (sources / "prog").exists()


def test_strict_makes_the_same_fail_the_link(katana: Installation, sources: Path) -> None:
    (sources / ".katana").mkdir()
    (sources / ".katana" / "staged").write_text("a file where a folder should be")
    done = katana.run(katana.cc, "gcc", "main.c", "g.c", "-o", "prog", cwd=sources, KATANA_STRICT="1")
    assert done.returncode == 1
    assert b"katana: prog is not recorded: " in done.stderr


def test_readonly_records_nothing_and_says_so(katana: Installation, sources: Path) -> None:
    done = katana.run(katana.cc, "gcc", "main.c", "g.c", "-o", "prog", cwd=sources, KATANA_READONLY="1")
    assert (done.returncode, done.stderr) == (0, b"katana: prog is not recorded: KATANA_READONLY is set\n")
    assert not (sources / ".katana").exists()


def test_a_masquerading_link_finds_the_installation(katana: Installation, sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masquerade"
    folder.mkdir()
    (folder / "gcc").symlink_to(katana.cc)
    done = katana.run("gcc", "main.c", "g.c", "-o", "prog", cwd=sources, PATH=f"{folder}:{clean_environment()['PATH']}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert only_link(sources / ".katana")["output_key"] == "prog"
