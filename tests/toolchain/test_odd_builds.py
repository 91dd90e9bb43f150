"""Builds that do what no manual says: outputs renamed after their link, one object's name for three, a folder gone.

Each is a makefile somebody has; what matters is that nothing is lost unseen, and nothing taken for what it is not.
"""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.installation import Installation, clean_environment
from tests.support.staged import input_names, links, only_link

MAIN = "int g(void);\nint main(void) { return g() - 42; }\n"
G = "int g(void) { return 42; }\n"


@pytest.fixture
def sources(project: Path) -> Path:
    (project / "main.c").write_text(MAIN)
    (project / "g.c").write_text(G)
    return project


def make(katana: Installation, sources: Path, *words: str) -> bytes:
    """Run make, which must succeed; what it printed on stderr."""
    done = katana.run("make", "-s", "CC=katana-cc gcc", *words, cwd=sources)
    assert done.returncode == 0, done.stderr
    return done.stderr


def release(katana: Installation, sources: Path, *words: str) -> str:
    """Run katana-release, which must succeed and warn of nothing; what it printed."""
    done = katana.run("katana-release", *words, cwd=sources)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


# ---- outputs that are renamed ----


def test_outputs_renamed_after_their_link_are_recorded_and_patched(katana: Installation, sources: Path) -> None:
    # As many makefiles do, so that an interrupted link leaves no half output.  The second link sweeps what is staged.
    (sources / "Makefile").write_text(
        "all: prog other\n%: %.tmp.o main.o\n\t$(CC) $^ -o $@.tmp\n\tmv $@.tmp $@\n"
        "prog.tmp.o other.tmp.o: g.c\n\t$(CC) -c $< -o $@\n.PRECIOUS: %.tmp.o\n"
    )
    assert make(katana, sources) == b""
    told = release(katana, sources, "v1")
    assert told.count("prog.tmp (") == told.count("other.tmp (") == 1
    shown = katana.run("katana", "show", "v1", cwd=sources).stdout.decode()
    assert f"{sources}/prog\n" in shown
    (sources / "g.c").write_text(G.replace("42", "43"))
    assert make(katana, sources).count(b"1 function changed, safe") == 2
    release(katana, sources, "v2")
    (sources / "g.c").write_text(G.replace("42", "44"))
    make(katana, sources)
    assert release(katana, sources, "--since", "v1").count(": safe: ") == 4


def test_an_output_that_is_removed_and_one_that_takes_its_place_are_not_taken_for_renamed(
    katana: Installation, sources: Path
) -> None:
    # The new file often has the old one's inode; it is something else all the same.
    words = [katana.cc, "gcc", "main.c", "g.c", "-o"]
    assert katana.run(*words, "probe", cwd=sources).returncode == 0
    (sources / "probe").unlink()
    (sources / "data").write_bytes(b"\x7fELF" + bytes(100))
    assert katana.run(*words, "prog", cwd=sources).returncode == 0
    assert only_link(sources / ".katana")["output_key"] == "prog"


def test_an_unrecorded_build_under_the_final_name_is_not_taken_for_the_recorded_one(
    katana: Installation, sources: Path
) -> None:
    (sources / "Makefile").write_text("prog: main.c g.c\n\t$(CC) $^ -o $@.tmp\n\tmv $@.tmp $@\n")
    make(katana, sources)
    release(katana, sources, "v1")
    (sources / "g.c").write_text(G.replace("42", "43"))
    make(katana, sources)
    (sources / "g.c").write_text(G.replace("42", "44"))
    done = katana.run("make", "-s", "CC=katana-cc gcc", cwd=sources, KATANA_DISABLE="1")
    assert done.returncode == 0
    done = katana.run("katana-release", "--since", "v1", cwd=sources)
    assert (done.returncode, b"prog.tmp is gone" in done.stdout + done.stderr) == (6, True)


# ---- linkers and outputs that are named by a path ----


@pytest.mark.parametrize("option", ["-fuse-ld=/usr/bin/ld.lld", "--ld-path=/usr/bin/ld.mold", "--ld-path=ld.lld"])
def test_a_linker_named_by_its_path_runs_and_its_link_is_recorded(
    katana: Installation, sources: Path, option: str
) -> None:
    linker = shutil.which(option.rpartition("=")[2])
    if shutil.which("clang") is None or linker is None:
        pytest.skip("clang or the linker is not installed")
    done = katana.run(katana.cc, "clang", option, "main.c", "g.c", "-o", "prog", cwd=sources)
    words = ["clang", option, "main.c", "g.c", "-o", "plain"]
    plain = subprocess.run(words, cwd=sources, capture_output=True, env=clean_environment(), check=False)
    assert (done.returncode, done.stderr) == (0, plain.stderr)
    entry = only_link(sources / ".katana")
    assert (entry["linker"], entry["linker_kind"]) == (linker, "mold" if "mold" in option else "lld")


def test_a_linker_by_path_that_gcc_does_not_take_is_refused_in_its_own_words(
    katana: Installation, sources: Path
) -> None:
    done = katana.run(katana.cc, "gcc", "-fuse-ld=/usr/bin/ld.bfd", "main.c", "g.c", "-o", "prog", cwd=sources)
    assert done.returncode == 1
    assert b"unrecognized command-line option" in done.stderr


@pytest.mark.parametrize("output", ["stdout", "/dev/fd/1"])
def test_a_link_to_a_stream_is_the_linkers_alone(katana: Installation, sources: Path, output: str) -> None:
    """`stdout` stands for /dev/stdout, which ld run by root puts a file in place of."""
    words = ["main.c", "g.c", "-o", output]
    (sources / "stdout").symlink_to("/proc/self/fd/1")
    done = katana.run(katana.cc, "gcc", *words, cwd=sources)
    (sources / "stdout").unlink(missing_ok=True)
    (sources / "stdout").symlink_to("/proc/self/fd/1")
    plain = subprocess.run(["gcc", *words], cwd=sources, capture_output=True, env=clean_environment(), check=False)
    assert (done.returncode, done.stderr) == (plain.returncode, plain.stderr)
    assert not (sources / ".katana").exists()


def test_a_folder_that_is_gone_is_one_reason(katana: Installation, sources: Path) -> None:
    gone = f"mkdir d && cd d && rmdir ../d && exec '{katana.cc}' gcc ../main.c -o ../prog"
    words = gone.replace("../", f"{sources}/").replace("main.c", f"main.c {sources}/g.c")
    done = katana.run("sh", "-c", words, cwd=sources)
    assert (done.returncode, (sources / "prog").exists()) == (0, True)
    assert b"the folder of the link is gone" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [pytest.param(">&-", marks=pytest.mark.rest), "2>&-", "<&- >&- 2>&-"])
def test_a_link_with_closed_streams_succeeds_and_is_recorded(katana: Installation, sources: Path, closed: str) -> None:
    build = f"exec '{katana.cc}' gcc main.c g.c -o prog {closed}"
    assert katana.run("sh", "-c", build, cwd=sources).returncode == 0
    assert subprocess.run([sources / "prog"], check=False).returncode == 0
    release(katana, sources, "v1")
    (sources / "g.c").write_text(G.replace("42", "43"))
    assert katana.run("sh", "-c", build, cwd=sources).returncode == 0
    assert len(list((sources / ".katana" / "patches").rglob("*.kpo"))) == 1


# ---- names that mean several things ----


def test_one_source_compiled_three_times_to_one_name(katana: Installation, project: Path) -> None:
    (project / "t.c").write_text("int NAME(void) { return VALUE; }\n")
    (project / "main.c").write_text("int a(void), b(void), c(void);\nint main(void) { return a() + b() + c(); }\n")
    (project / "Makefile").write_text(
        "prog: main.c t.c\n\trm -f lib.a\n"
        "\tfor i in a b c; do $(CC) -DNAME=$$i -DVALUE=__LINE__ -c t.c -o t.o && ar q lib.a t.o; done\n"
        "\tranlib lib.a && $(CC) main.c lib.a -o prog\n"
    )
    make(katana, project)
    release(katana, project, "v1")
    (project / "t.c").write_text("int NAME(void) { return 7 + VALUE; }\n")
    assert b"3 functions changed, safe" in make(katana, project)


def test_objects_linked_together_before_the_link(katana: Installation, sources: Path) -> None:
    (sources / "Makefile").write_text(
        "prog: main.c g.c\n\t$(CC) -c $^\n\t$(CC) -r main.o g.o -o all.o\n\trm main.o g.o\n\t$(CC) all.o -o $@\n"
    )
    make(katana, sources)
    release(katana, sources, "v1")
    (sources / "g.c").write_text(G.replace("42", "43"))
    assert b"1 function changed, safe" in make(katana, sources)


def test_sources_from_a_pipe(katana: Installation, sources: Path) -> None:
    (sources / "Makefile").write_text("prog: main.c g.c\n\tcat $^ | $(CC) -x c - -o $@\n")
    make(katana, sources)
    release(katana, sources, "v1")
    (sources / "g.c").write_text(G.replace("42", "43"))
    assert b"1 function changed, safe" in make(katana, sources)


def test_links_of_one_output_at_once_leave_one_that_is_whole(katana: Installation, sources: Path) -> None:
    words = [katana.cc, "gcc", "main.c", "g.c", "-o", "prog"]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: katana.run(*words, cwd=sources), range(6)))
    assert [d.stderr for d in done] == [b""] * 6
    release(katana, sources, "v1")
    assert katana.run("katana", "check", cwd=sources).returncode == 0


def test_a_build_with_errors_goes_on_and_records_what_was_linked(katana: Installation, sources: Path) -> None:
    (sources / "bad.c").write_text("int x(\n")
    (sources / "Makefile").write_text(
        "all: a b c\na: main.o g.o\nb: main.o bad.o\nc: main.o\na b c:\n\t$(CC) $^ -o $@\n"
    )
    done = katana.run("make", "-k", "-s", "-j3", "CC=katana-cc gcc", cwd=sources)
    assert done.returncode == 2
    assert b"katana" not in done.stderr.replace(b"katana-cc", b"")
    assert [entry["output_key"] for entry in links(sources / ".katana")] == ["a"]


def test_a_forest_of_links_to_sources_that_nobody_may_write(katana: Installation, sources: Path) -> None:
    # As bazel and others do: each build has a new forest, which is gone afterwards.
    for name in ("main.c", "g.c"):
        (sources / name).chmod(0o444)
    (sources / "Makefile").write_text(
        "prog: main.c g.c\n\trm -rf forest && mkdir forest && ln -s $(CURDIR)/main.c $(CURDIR)/g.c forest\n"
        "\tcd forest && $(CC) -c main.c && $(CC) -c g.c && $(CC) main.o g.o -o ../prog\n\trm -rf forest\n"
    )
    make(katana, sources)
    assert input_names(only_link(sources / ".katana")) == {"main.o", "g.o"}
    release(katana, sources, "v1")
    (sources / "g.c").unlink()
    (sources / "g.c").write_text(G.replace("42", "43"))
    assert b"1 function changed, safe" in make(katana, sources)


def test_what_was_moved_to_another_folder_is_told_of(katana: Installation, compiler: str, sources: Path) -> None:
    # clang keeps no flags in what it compiles: nothing tells whether its objects went through us.
    (sources / "out").mkdir()
    words = [katana.cc, compiler, "main.c", "g.c", "-o"]
    assert katana.run(*words, "prog", cwd=sources).returncode == 0
    (sources / "prog").rename(sources / "out" / "prog")
    (sources / "g.c").write_text(G.replace("42", "43"))
    assert katana.run(*words, "other", cwd=sources).returncode == 0
    done = katana.run("katana-release", "v1", cwd=sources)
    assert (done.returncode, b"or moved here" in done.stderr) == (0, True), done.stderr
