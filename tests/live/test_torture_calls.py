"""Katana killed while a thread of the target calls a function for it: between the steps of one call, each of them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.live.handmade import build
from tests.live.server import katana_json, serving
from tests.live.situations import situation
from tests.live.test_torture import BUSY, OLD
from tests.support.strike import Outcome, strike_program

_SYS_PTRACE: Final = 101
_SYS_GETPPID: Final = 110  # which katana makes nowhere else: the marks around the call
# One call of a function that makes a system call itself.
CALL: Final = """
import os, sys
from katana_cc.process.calling import Caller
from katana_cc.process.imports import Linker
from katana_cc.process.target import Target
with Target(int(sys.argv[1])) as target:
    function = Linker.of(target.memory, target.modules).first("getpid")
    def work(calls):
        os.getppid()
        found = calls.call(function, "getpid")
        os.getppid()
        assert found == target.pid, found
    Caller(target).run(5, work)
"""


def struck(pid: int, step: int) -> Outcome:
    """Call the function, katana being killed as it enters the ptrace call `step` of those for it, from 1 on (0:
    never)."""

    def when(calls: Sequence[int]) -> bool:
        if calls.count(_SYS_GETPPID) != 1 or calls[-1] != _SYS_PTRACE:
            return False
        return calls[calls.index(_SYS_GETPPID) :].count(_SYS_PTRACE) == step

    return strike_program([sys.executable, "-c", CALL, str(pid)], when, lambda katana: os.kill(katana, signal.SIGKILL))


@situation(49, "katana killed between any two steps of a call in the target")
def test_killed_between_any_two_steps_of_a_call(tmp_path: Path) -> None:
    """How often katana waits for the thread differs from run to run, what it does with it does not.

    A bug: a step after which the thread does not go back by itself, but on to whatever lies behind the code that it was
    sent to.
    """
    with serving(build(tmp_path, "server", BUSY).output) as server:
        whole = struck(server.pid, 0)
        assert whole.status == 0, whole.said
        begin, end = (i for i, number in enumerate(whole.calls) if number == _SYS_GETPPID)
        steps = whole.calls[begin:end].count(_SYS_PTRACE)
        assert steps > 10
        for step in range(1, steps + 1):
            outcome = struck(server.pid, step)
            assert outcome.status == -signal.SIGKILL, (step, outcome)
            assert server.ask("?") == OLD, f"killed at step {step} of {steps}: {server.ended}"


def test_stack_of_a_call_that_was_cut_off_is_taken_out_by_the_next(tmp_path: Path) -> None:
    """A bug: each katana that is killed leaves memory; and what malloc left there leads into objects, for good."""
    with serving(build(tmp_path, "server", BUSY).output) as server:
        whole = struck(server.pid, 0)
        begin, end = (i for i, number in enumerate(whole.calls) if number == _SYS_GETPPID)
        steps = whole.calls[begin:end].count(_SYS_PTRACE)
        assert struck(server.pid, steps // 2).status == -signal.SIGKILL
        assert _stacks(server.pid) == 1
        assert not katana_json("status", "--pid", server.pid)["processes"][0]["patches"]
        for _ in range(20):  # not while a thread runs: it may be on one
            assert struck(server.pid, 0).status == 0
            if not _stacks(server.pid):
                break
        assert _stacks(server.pid) == 0
        assert server.ask("?") == OLD


def _stacks(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:katana:stack")
