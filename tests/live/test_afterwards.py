"""What is done to an output after its link: the process that runs it is recognised, or told why it is not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.installation import Installation, install

SERVER = """#include <stdio.h>
int g(void);
int main(void)
{
    char line[80];
    while (fgets(line, sizeof line, stdin)) {
        printf("%d\\n", g());
        fflush(stdout);
    }
    return 0;
}
"""
TOOLS = {
    "nothing": [],
    "strip": [["strip", "FILE"]],
    "install -s": [["install", "-s", "FILE", "FILE.installed"], ["mv", "FILE.installed", "FILE"]],
    "separate debug file": [
        ["objcopy", "--only-keep-debug", "FILE", "FILE.debug"],
        ["objcopy", "--strip-debug", "--add-gnu-debuglink=FILE.debug", "FILE"],
    ],
    "dwz": [["dwz", "FILE"]],
    "patchelf --set-rpath": [["patchelf", "--set-rpath", "/a/long/path/to/libraries/that/are/not/there", "FILE"]],
    "patchelf --set-interpreter": [["patchelf", "--set-interpreter", "/lib64/ld-linux-x86-64.so.2", "FILE"]],
    "patchelf --remove-rpath": [["patchelf", "--remove-rpath", "FILE"]],
    "patchelf --add-needed": [["patchelf", "--add-needed", "libm.so.6", "FILE"]],
    "chrpath": [["chrpath", "-d", "FILE"]],
}  # fmt: skip


@pytest.fixture(scope="session")
def katana(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return install(tmp_path_factory.mktemp("installed") / "with space")


@pytest.fixture
def deployed(katana: Installation, tmp_path: Path) -> Path:
    """A project with a release; `out/prog` is the copy that is deployed."""
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / "out").mkdir()
    (project / "main.c").write_text(SERVER)
    link(katana, project, 42)
    shutil.copy(project / "prog", project / "out" / "prog")
    done = katana.run("katana-release", "v1", cwd=project)
    assert done.returncode == 0, done.stderr
    return project


def link(katana: Installation, project: Path, number: int) -> str:
    """Build it; what it printed."""
    (project / "g.c").write_text(f"int g(void) {{ return {number}; }}\n")
    done = katana.run(katana.cc, "gcc", "-O1", "-Wl,-rpath,/some/where", "main.c", "g.c", "-o", "prog", cwd=project)
    assert done.returncode == 0, done.stderr
    return done.stderr.decode()


@contextmanager
def running(program: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as target:
        try:
            assert ask(target) == "42"
            yield target
        finally:
            target.kill()


def ask(target: subprocess.Popen[str]) -> str:
    assert target.stdin is not None
    assert target.stdout is not None
    target.stdin.write("\n")
    target.stdin.flush()
    return target.stdout.readline().strip()


SAMPLE = ("strip", "separate debug file", "dwz", "patchelf --set-rpath")


@pytest.mark.parametrize(
    "tool", [pytest.param(tool, marks=() if tool in SAMPLE else pytest.mark.rest) for tool in TOOLS]
)
def test_a_file_that_was_worked_on_is_recognised_and_patched(katana: Installation, deployed: Path, tool: str) -> None:
    file = deployed / "out" / "prog"
    for words in TOOLS[tool]:
        if shutil.which(words[0]) is None:
            pytest.skip(f"{words[0]} is not installed")
        subprocess.run([word.replace("FILE", str(file)) for word in words], check=True)
    with running(file) as target:
        patch = link(katana, deployed, 43).strip().rpartition(": ")[2]
        done = katana.run("katana", "apply", patch, "--pid", str(target.pid), cwd=deployed)
        assert done.returncode == 0, done.stderr
        assert ask(target) == "43"
        done = katana.run("katana", "revert", "--pid", str(target.pid), cwd=deployed)
        assert done.returncode == 0, done.stderr
        assert ask(target) == "42"


REWRITTEN = {
    "debugedit": (["debugedit", "-b", "/src", "-d", "/usr/src/debug", "-i", "-s", "a seed", "FILE"], "has build-id "),
    "objcopy -R": (["objcopy", "-R", ".note.gnu.build-id", "FILE"], "has no build-id any more"),
}


@pytest.mark.parametrize("tool", REWRITTEN)
def test_a_file_with_another_build_id_is_refused_and_told_of(katana: Installation, deployed: Path, tool: str) -> None:
    words, told = REWRITTEN[tool]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    file = deployed / "out" / "prog"
    subprocess.run([word.replace("FILE", str(file)) for word in words], check=True)
    with running(file) as target:
        patch = link(katana, deployed, 43).strip().rpartition(": ")[2]
        done = katana.run("katana", "apply", patch, "--pid", str(target.pid), cwd=deployed)
        assert done.returncode == 3
        assert b"does not run prog with build-id" in done.stderr
        assert f"{file} has what the patch replaces as that build has it, and {told}" in done.stderr.decode()
        assert b"rewritten after the link" in done.stderr
        assert ask(target) == "42"


def test_another_build_of_the_same_program_is_told_of(katana: Installation, deployed: Path) -> None:
    file = deployed / "out" / "prog"
    patch = link(katana, deployed, 43).strip().rpartition(": ")[2]
    (deployed / "g.c").write_text("int g(void) { volatile int n = 42; return n; }\n")
    done = katana.run(katana.cc, "gcc", "-O1", "main.c", "g.c", "-o", "prog", cwd=deployed)
    assert done.returncode == 0
    shutil.copy(deployed / "prog", file)
    with running(file) as target:
        done = katana.run("katana", "apply", patch, "--pid", str(target.pid), cwd=deployed)
        assert done.returncode == 3
        assert f"{file} is another build, build-id " in done.stderr.decode()
        assert ask(target) == "42"
