"""What is foretold of a running process: which replaced functions are on stacks, without stopping it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from katana_cc.process.perf import Sampler
from tests.live.handmade import build, patch_from
from tests.live.programs import HEAD, INSIDE
from tests.live.server import code_of, katana, katana_json, serving, write_patch

NEW = "static int news; news++; return 10 * x + news;"
# A thread that computes all the time: half of it in `answer`, the other half elsewhere, both below `work`.
SPINNING = (
    HEAD
    + r"""
static NOINLINE void burn(int rounds) { for (int i = 0; i < rounds; i++) seen += i; }
NOINLINE int answer(int x) { burn(20000000); /*ANSWER*/ seen += x; return x + 1; }
NOINLINE int work(int x) { for (;;) { x = answer(x); burn(20000000); /*WORK*/ seen += x; } }
NOINLINE int unused(int x) { /*UNUSED*/ seen -= x; return x - 1; }
static void *spin(void *p) { work(unused(3)); return p; }
int main(int argc, char **argv) {
  pthread_t t;
  pthread_create(&t, 0, spin, 0);
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) say("alive");
  return argc > 99;
}
"""
)


def _functions(report: Any) -> dict[str, Any]:
    assert report["processes"][0]["outcome"] == "would apply"
    return {f["name"]: f for f in report["processes"][0]["forecast"]["functions"]}


@pytest.mark.parametrize("flags", [("-O0",), ("-O2",)])
def test_waiting_thread_is_foretold(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """A bug: a stack whose frame pointers are not known is not looked at; or the thread is stopped for it."""
    old = build(tmp_path / "old", "server", INSIDE, flags=flags)
    new = build(tmp_path / "new", "server", INSIDE.replace("/*ANSWER*/", NEW), flags=flags)
    patch = write_patch(tmp_path, patch_from(old, new, ("answer", "wait_inside")))
    with serving(old.output) as server:
        assert _functions(katana_json("apply", patch, "--pid", server.pid, "--dry-run")) == {}
        assert server.ask("i") == "inside"
        code = code_of(server.pid)
        tid = max(int(t) for t in os.listdir(f"/proc/{server.pid}/task"))  # noqa: PTH208
        found = _functions(katana_json("apply", patch, "--pid", server.pid, "--dry-run"))
        assert set(found) == {"answer", "wait_inside"}
        assert all(f["never_off"] and f["thread"] == tid for f in found.values())
        said = katana("apply", patch, "--pid", server.pid, "--dry-run").stdout
        assert f"answer was never off the stack of thread {tid} (server)" in said
        assert code_of(server.pid) == code
        server.tell("l")
        assert server.line() == "left -4"


def test_running_thread_is_sampled(tmp_path: Path) -> None:
    """A bug: a thread that computes is not looked at, or a function is constant that is left every 20 ms."""
    new = SPINNING.replace("/*ANSWER*/", "seen++;").replace("/*WORK*/", "seen++;").replace("/*UNUSED*/", "seen++;")
    old = build(tmp_path / "old", "server", SPINNING)
    patch = write_patch(tmp_path, patch_from(old, build(tmp_path / "new", "server", new), ("answer", "work", "unused")))
    with serving(old.output) as server:
        tid = max(int(t) for t in os.listdir(f"/proc/{server.pid}/task"))  # noqa: PTH208
        sampler = Sampler(0.005)
        may_sample = sampler.add(tid)
        sampler.close()
        report = katana_json("apply", patch, "--pid", server.pid, "--dry-run")
        if not may_sample:
            assert report["processes"][0]["forecast"]["unseen"] == 1
            pytest.skip("perf_event_open gives no samples here")
        found = _functions(report)
        assert set(found) == {"answer", "work"}
        assert found["work"]["never_off"]
        assert found["work"]["looks"] > 5
        assert 0 < found["answer"]["seen"] < found["answer"]["looks"]
        assert server.ask("x") == "alive"
