"""Threads thousands of frames deep: what their stacks hold is told exactly, and not in the stop."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from katana_cc.process import activity
from tests.live.handmade import build, patch_from
from tests.live.programs import HEAD
from tests.live.server import katana, katana_json, serving, write_patch

DEPTH = 6000
PROGRAM = (
    HEAD
    + r"""
static int never[2], gate[2], moving;
static volatile unsigned long inside = 4;
NOINLINE int answer(int x);
NOINLINE int descend(int left) {
  volatile int kept = left;
  if (left > 0) return descend(left - 1) + kept;
  if (left < 0) return kept;
  say("there");
  char byte;
  while (moving) { struct timespec t = {0, 100000}; nanosleep(&t, 0); seen += descend(-1 - (seen & 1)); }
  return (int)read(gate[0], &byte, 1) + kept;
}
NOINLINE int answer(int x) { /*ANSWER*/ seen += x; if (x == 77) return descend(DEPTH) + seen; return x + 1; }
// Looks as if answer() would be returned to, and is no return address.
static void *stale(void *unused) {
  volatile unsigned long word = (unsigned long)answer + inside;
  seen += descend(DEPTH) + (int)word;
  return unused;
}
static void *active(void *unused) { seen += answer(77); return unused; }
int main(void) {
  pthread_t t; pthread_attr_t a;
  if (pipe(never) || pipe(gate)) return 1;
  pthread_attr_init(&a); pthread_attr_setstacksize(&a, 8 << 20);
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    switch (line[0]) {
    case 'a': printf("%d\n", answer(atoi(line + 2))); break;
    case 's': pthread_create(&t, &a, stale, 0); break;
    case 'm': moving = 1; pthread_create(&t, &a, stale, 0); break;
    case 'i': pthread_create(&t, &a, active, 0); break;
    case 'l': if (write(gate[1], "x", 1) != 1) return 1; puts("left"); break;
    }
    fflush(stdout);
  }
  return 0;
}
"""
)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The program, and a patch that multiplies its answer."""
    folder = tmp_path_factory.mktemp("deep")
    source = PROGRAM.replace("DEPTH", str(DEPTH))
    flags = ("-O1", "-fno-ipa-ra", "-fno-optimize-sibling-calls")
    old = build(folder / "old", "server", source, flags=flags)
    new = build(folder / "new", "server", source.replace("/*ANSWER*/", "if (x != 77) return 10 * x;"), flags=flags)
    return old.output, write_patch(folder, patch_from(old, new, ("answer",)))


@pytest.mark.parametrize("command", ["s", "m"], ids=["waiting", "moving"])
def test_word_that_looks_like_a_return_address_below_thousands_of_frames(deep: tuple[Path, Path], command: str) -> None:
    """A bug: the walk gives up on the way, and the process can never be patched; or it is walked over in the stop."""
    program, patch = deep
    with serving(program) as server:
        assert server.ask(command) == "there"
        report = katana_json("apply", patch, "--pid", server.pid)["processes"][0]
        assert report["outcome"] == "applied"
        # It was walked over between two stops, and what was found was still so.
        assert 2 <= report["tries"] <= activity.DEEP_TRIES
        assert server.ask("a 4") == "40"
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("a 4") == "5"


def test_function_active_below_thousands_of_frames(deep: tuple[Path, Path]) -> None:
    """A bug: a walk that goes on where another one was does not see what that one saw."""
    program, patch = deep
    with serving(program) as server:
        assert server.ask("i") == "there"
        done = katana("apply", patch, "--pid", server.pid, "--wait", "0.2")
        assert done.returncode == 4
        found = re.search(r"is in answer: frame (\d+),", done.stderr)
        assert found, done.stderr
        assert int(found[1]) > DEPTH
        assert server.ask("a 4") == "5"
        assert server.ask("l") == "left"
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("a 4") == "40"
