"""`katana run`: a program that is patched before its `main`, and does not notice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.handmade import Built, build, patch_from
from tests.live.programs import HEAD
from tests.live.server import write_patch

# What a program can see of how it was started; the library's constructor comes before it.
STARTED = (
    HEAD
    + r"""
#include <dirent.h>
#include <sys/prctl.h>
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; return x + 1; }
static int early;
__attribute__((constructor)) static void begin(void) { early = answer(1); }
int main(int argc, char **argv) {
  struct sigaction broken; sigset_t blocked; int files = 0, signals = 0;
  DIR *folder = opendir("/proc/self/fd");
  while (readdir(folder)) files++;
  closedir(folder);
  sigaction(SIGPIPE, NULL, &broken);
  sigprocmask(SIG_SETMASK, NULL, &blocked);
  for (int n = 1; n < 64; n++) signals += sigismember(&blocked, n);
  printf("answers %d %d\n", early, answer(1));
  printf("%s %s, parent %d, ", argv[0], argc > 1 ? argv[1] : "-", getppid());
  printf("children %s, files %d, SIGPIPE %s, blocked %d\n", wait(NULL) < 0 && errno == ECHILD ? "none" : "some", files,
         broken.sa_handler == SIG_DFL ? "default" : "ignored", signals);
  return 9;
}
"""
)
KINDS = {"pie": ((), ("-O2",)), "no-pie": (("-no-pie",), ("-O2", "-fno-pie")), "static": (("-static",), ("-O2",))}


def pair(folder: Path, link: tuple[str, ...] = (), flags: tuple[str, ...] = ("-O2",)) -> tuple[Built, Path]:
    """The program, and a patch by which it answers 100 more."""
    old = build(folder / "old", "server", STARTED, flags=flags, link=link)
    changed = STARTED.replace("/*ANSWER*/", "x += 100;")
    new = build(folder / "new", "server", changed, flags=flags, link=link)
    return old, write_patch(folder, patch_from(old, new, ("answer",)))


def katana_run(*words: str | Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """`katana run`, in a process whose parent is this one."""
    program = f"import sys\n{before}\nfrom katana_cc.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "run", *(str(w) for w in words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("kind", KINDS)
def test_program_is_patched_before_its_first_function_and_notices_nothing(tmp_path: Path, kind: str) -> None:
    """A bug: old code runs first, or the program has another parent, a child, a descriptor or a signal more."""
    old, patch = pair(tmp_path, *KINDS[kind])
    plain = subprocess.run([old.output, "word"], capture_output=True, text=True, check=False)
    done = katana_run("--patch", patch, old.output, "word")
    assert f"parent {os.getpid()}" in done.stdout
    assert plain.stdout.startswith("answers 2 2\n")
    assert done.stdout.splitlines() == ["answers 102 102", plain.stdout.splitlines()[1]]
    assert (plain.returncode, done.returncode) == (9, 9)
    assert ": applied: 1 edit" in done.stderr


def test_arguments_that_look_like_options_are_the_programs(tmp_path: Path) -> None:
    """A bug: --wait of the program is taken for one of katana's."""
    old, patch = pair(tmp_path)
    assert "server --patch, parent" in katana_run("--patch", patch, old.output, "--patch", "--wait").stdout


def test_program_that_the_patch_is_not_for_does_not_start(tmp_path: Path) -> None:
    """A bug: it runs unpatched, and nobody is told."""
    other = build(tmp_path / "other", "server", STARTED.replace("return 9", "return 8"))
    _, patch = pair(tmp_path)
    done = katana_run("--patch", patch, other.output)
    assert (done.returncode, done.stdout) == (3, "")
    assert "not started: " in done.stderr
    assert "does not run server" in done.stderr


def test_it_starts_all_the_same_where_that_is_wanted(tmp_path: Path) -> None:
    """A bug: a database stays down since a patch does not fit."""
    other = build(tmp_path / "other", "server", STARTED.replace("return 9", "return 8"))
    _, patch = pair(tmp_path)
    done = katana_run("--or-unpatched", "--patch", patch, other.output)
    assert done.returncode == 8
    assert done.stdout.startswith("answers 2 2\n")
    assert "runs without the patch" in done.stderr
    missing = katana_run("--or-unpatched", "--patch", tmp_path / "none.kpo", other.output)
    assert missing.stdout == done.stdout
    assert "SIGPIPE default" in missing.stdout


def test_build_that_the_patch_leads_to_needs_none(tmp_path: Path) -> None:
    """A bug: a unit file that still names the patch keeps the next version from starting."""
    _, patch = pair(tmp_path)
    done = katana_run("--patch", patch, tmp_path / "new" / "server")
    assert done.returncode == 9
    assert done.stdout.startswith("answers 102 102\n")


def test_static_program_that_relocates_itself_is_refused(tmp_path: Path) -> None:
    """A bug: what it relocates after it has begun is taken for relocated."""
    old, patch = pair(tmp_path, ("-static-pie",), ("-O2", "-fPIE"))
    done = katana_run("--patch", patch, old.output)
    assert done.stdout == ""
    assert "relocates itself" in done.stderr
    assert done.returncode != 0


def test_file_that_is_no_program(tmp_path: Path) -> None:
    """A bug: a traceback, or a process that is left behind."""
    _, patch = pair(tmp_path)
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    done = katana_run("--patch", patch, tmp_path / "text")
    assert done.returncode == 5
    assert done.stderr.splitlines() == [f"katana run: {tmp_path}/text: it cannot be started: Exec format error"]
    assert katana_run("--patch", patch, "no-such-program").returncode == 5
    assert katana_run(tmp_path / "text").returncode == 2


@pytest.mark.parametrize("moment", ["the patch", "the way to the entry point"])
def test_program_goes_on_when_the_patcher_is_killed(tmp_path: Path, moment: str) -> None:
    """A bug: it waits for ever, or is killed too."""
    old, patch = pair(tmp_path)
    module, name = {
        "the patch": ("katana_cc.cli.run", "apply_patch"),
        "the way to the entry point": ("katana_cc.process.launch", "_comes_to"),
    }[moment]
    kill = f"import os, {module} as m\nm.{name} = lambda *_, **__: os.kill(os.getpid(), 9)"
    done = katana_run("--patch", patch, old.output, before=kill)
    assert done.returncode == 9
    assert done.stdout.startswith("answers 2 2\n")
    assert "the patcher was killed" in done.stderr
