"""Functions that are active when they are replaced: only when allowed, and only when their old code may go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from katana_cc.patch.model import PatchObject, Reason, Verdict
from tests.live.programs import HEAD, INSIDE
from tests.live.server import code_of, katana, mappings, serving
from tests.live.situations import REFUSED, situation
from tests.support.project import Build, Project, Result, Variant

# gcc -O2 (-fipa-ra) keeps `seen` in a call-clobbered register across `tick`, which spares it; the new `tick` does not.
RELYING = (
    HEAD
    + r"""
static int gate[2];
NOINLINE void wait_inside(void) { char byte; say("inside"); while (read(gate[0], &byte, 1) < 0) {} }
static NOINLINE int tick(int x) { return /*TICK*/; }
NOINLINE int answer(int x) {
  if (x < 0) wait_inside();
  int a = seen, b = seen, c = seen, d = seen, e = seen;
  int t = tick(x);
  return a + 2 * b + 3 * c + 4 * d + 5 * e + t /*ANSWER*/;
}
static void *enter(void *unused) { printf("left %d\n", answer(-5)); fflush(stdout); return unused; }
int main(void) {
  if (pipe(gate)) return 1;
  seen = 1000;
  say("ready");
  char line[200];
  pthread_t t;
  while (fgets(line, sizeof line, stdin)) {
    switch (line[0]) {
    case 'a': printf("%d\n", answer(atoi(line + 2))); break;
    case 'i': pthread_create(&t, 0, enter, 0); break;
    case 'l': if (write(gate[1], "x", 1) != 1) return 1; break;
    }
    fflush(stdout);
  }
  return 0;
}
"""
)
OLD_TICK = "(x ^ seen) + 3"
NEW_TICK = "(int) ((unsigned) x * 0x9E3779B9u % 77 + (unsigned) (x ^ seen) % 1001 / (unsigned) (7 + (seen & 3)) * 13)"


@pytest.fixture(scope="module")
def relying(tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Result]:
    """The RELYING program, and the patch to a build with another `tick` and another `answer`."""
    project = Project(tmp_path_factory.mktemp("relying"), Variant("gcc", "-O2", "pie", link_flags=("-pthread",)))
    old = project.build({"a.c": RELYING.replace("/*TICK*/", OLD_TICK)})
    new = project.build({"a.c": RELYING.replace("/*TICK*/", NEW_TICK).replace("/*ANSWER*/", "+ 7")})
    return old, project.checked(old, new)


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / "patch.kpo"
    path.write_bytes(data)
    return path


@situation(41, "allowed by name, but its old code would break", REFUSED)
def test_old_code_that_goes_on_may_not_meet_a_new_callee(tmp_path: Path, relying: tuple[Build, Result]) -> None:
    """A bug: the old caller goes on with registers that the new callee has overwritten."""
    old, result = relying
    patch = file_of(tmp_path, result.data)
    old.path.chmod(0o755)
    with serving(old.path) as server:
        assert server.ask("i") == "inside"
        before = code_of(server.pid)
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0", "--allow-active", "answer")
        assert done.returncode == 3, done.stderr
        assert "answer cannot be replaced while it is active" in done.stderr
        assert "calls tick, which is replaced too" in done.stderr
        assert "apply it without --allow-active answer" in done.stderr
        assert code_of(server.pid) == before
        assert mappings(server.pid) == []
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0")
        assert done.returncode == 4
        assert "--allow-active" not in done.stderr, "advice that would be refused"
        server.tell("l")
        assert server.line() == f"left {15 * 1000 + (-5 ^ 1000) + 3}"
        assert katana("apply", patch, "--pid", server.pid).returncode == 0, "nobody is inside any more"


def test_the_danger_is_real(tmp_path: Path, relying: tuple[Build, Result]) -> None:
    """Without the refusal the call in progress returns what neither build returns."""
    from katana_cc.patch.codec import encode

    old, result = relying
    patch = file_of(tmp_path, encode(dataclasses.replace(result.patch, reliances=())))
    old.path.chmod(0o755)
    with serving(old.path) as server:
        assert server.ask("i") == "inside"
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0", "--allow-active", "answer")
        assert done.returncode == 0, done.stderr
        server.tell("l")
        left = int(server.line().split()[1])
    x, seen = -5, 1000
    tick = (x * 0x9E3779B9 & 0xFFFFFFFF) % 77 + ((x ^ seen) & 0xFFFFFFFF) % 1001 // (7 + (seen & 3)) * 13
    assert left != 15 * seen + tick, "gcc found other registers: the reproducer has to be made anew"


def test_allowed_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    """A bug: its old frames go on with results of the new code."""
    source = (
        HEAD
        + "NOINLINE int answer(int x) { seen++; return x <= 0 ? 1 : answer(x - 1) * x /*ANSWER*/; }\n"
        + 'int main(void) { char line[200]; say("ready");\n'
        + '  while (fgets(line, sizeof line, stdin)) { printf("%d\\n", answer(atoi(line + 2))); fflush(stdout); } }\n'
    )
    flags = ("-fno-optimize-sibling-calls", "-fno-inline")
    project = Project(tmp_path, Variant("gcc", "-O1", "nopie", compile_flags=flags))
    old = project.build({"a.c": source})
    result = project.checked(old, project.build({"a.c": source.replace("/*ANSWER*/", "+ 3")}))
    old.path.chmod(0o755)
    with serving(old.path) as server:
        done = katana(
            "apply", file_of(tmp_path, result.data), "--pid", server.pid, "--allow-active", "answer", "--dry-run"
        )
        assert done.returncode == 3
        assert "it may call itself or jump back" in done.stderr or "calls answer" in done.stderr


MAIN_CHANGED = INSIDE.replace("return 1;\n  say", "return 2;\n  say")


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Result]:
    """A server, and a patch of its `main` alone."""
    project = Project(tmp_path_factory.mktemp("main"), Variant("gcc", "-O2", "pie", link_flags=("-pthread",)))
    old = project.build({"a.c": INSIDE})
    result = project.checked(old, project.build({"a.c": MAIN_CHANGED}))
    assert result.replaced == ["main"]
    old.path.chmod(0o755)
    return old, result


@situation(41, "main, allowed by name")
def test_main_is_replaced_when_it_is_allowed(tmp_path: Path, waiting: tuple[Build, Result]) -> None:
    """A bug: the patch is called safe, and never finds a moment; or any permission will do."""
    patch = file_of(tmp_path, waiting[1].data)
    with serving(waiting[0].path) as server:
        code = code_of(server.pid)
        for words in ((), ("--dry-run",), ("--allow-active", "answer")):
            done = katana("apply", patch, "--pid", server.pid, *words)
            assert done.returncode == 3, words
            assert "if that is right, apply it with --allow-active main" in done.stderr
            assert "on the stack for the whole life" in done.stderr
        assert code_of(server.pid) == code
        done = katana("apply", patch, "--pid", server.pid, "--allow-active", "main")
        assert done.returncode == 0, done.stderr
        assert server.ask("a 3") == "4"
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert code_of(server.pid) == code


def test_need_that_this_version_does_not_know_is_never_met(tmp_path: Path, waiting: tuple[Build, Result]) -> None:
    """A bug: an option for something else meets it."""
    from katana_cc.patch.codec import encode

    reasons = (*waiting[1].patch.reasons, Reason("of-a-later-version", "needs", "main", "a.c", 3, "a thing to decide"))
    odd: PatchObject = dataclasses.replace(waiting[1].patch, reasons=reasons, verdict=Verdict.NEEDS)
    with serving(waiting[0].path) as server:
        done = katana("apply", file_of(tmp_path, encode(odd)), "--pid", server.pid, "--allow-active", "main")
        assert done.returncode == 3
        assert "a thing to decide" in done.stderr
        assert "use a later katana" in done.stderr
