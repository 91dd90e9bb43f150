"""Situations of processes and their surroundings (kinds 40 to 51): live tests that say which one they are.

`@situation(kind, text)` marks a test that shows a situation to work; with `REFUSED`, that it is refused at once, with
its reason, and the process unharmed.  `make matrix` writes what came of them into docs/support-matrix.md.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

WORKS: Final = "works"
REFUSED: Final = "refused"
NOT_RUN: Final = "not run"
FAILS: Final = "fails"
_WORST_FIRST: Final = (FAILS, NOT_RUN, REFUSED, WORKS)

MUST, JUDGE = "must", "judge"
KINDS: Mapping[int, tuple[str, str]] = {
    40: (
        "many threads; threads being created and exiting all the time; threads spinning in the changed function",
        MUST,
    ),
    41: ("changed function always on a stack: refused in bounded time by name; allowed by name", MUST),
    42: (
        "blocking system calls keep blocking: no EINTR; no signal is lost; cancellation, terminal and job control "
        "unaffected",
        MUST,
    ),
    43: ("prefork servers: the whole tree, or nothing; children forked meanwhile", MUST),
    44: (
        "shared library in several processes; loaded with dlopen; twice in namespaces (dlmopen)",
        "must / must / judge",
    ),
    45: ("static executable, static-PIE, non-PIE, PIE; stripped after the build; musl", "must, musl: judge"),
    46: (
        "seccomp, MemoryDenyWriteExecute, no_new_privs, chroot, PID and mount namespaces, other user, already traced, "
        "SIGSTOPped, zombie leader, vfork parent, io_uring workers",
        "must work or be refused at once",
    ),
    47: (
        "second patch on top of the first; the same again; an older one; cumulative over a single one; revert in any "
        "order",
        MUST,
    ),
    48: ("target is not the build the patch is for; memory of the function altered by someone else", "must be refused"),
    49: ("patcher killed at any moment; target dies; limits and full disks; patch truncated or bit-flipped", MUST),
    50: ("frames not on the thread's own stack: coroutines, alternate signal stacks", JUDGE),
    51: (
        "debugger or profiler afterwards: gdb shows function and line in new code, backtraces cross it; perf names it",
        MUST,
    ),
}


class Situation(NamedTuple):
    """One of them, what comes of it, and the test that shows it: `file::function`."""

    kind: int
    text: str
    outcome: str
    test: str


def situation(kind: int, text: str, outcome: str = WORKS) -> pytest.MarkDecorator:
    """Mark a test."""
    return pytest.mark.situation(kind, text, outcome)


def record(item: pytest.Item, state: str) -> None:
    """Append what came of a marked test to the log that KATANA_MATRIX_LOG names, if it does."""
    path = os.environ.get("KATANA_MATRIX_LOG")
    for mark in item.iter_markers("situation") if path else ():
        kind, text, outcome = mark.args
        line = {"situation": text, "kind": kind, "test": item.nodeid.partition("[")[0]}
        with Path(str(path)).open("a") as log:
            log.write(json.dumps(line | {"state": outcome if state == WORKS else state}) + "\n")


def merged(lines: Sequence[Mapping[str, object]], kept: list[list[str]]) -> list[list[str]]:
    """[kind, text, test, state] of each situation, sorted; of a test with several parameters the worst counts.  `kept`
    are those of before, for what `lines` do not tell of."""
    found: dict[tuple[str, str, str], str] = {}
    for line in lines:
        key = str(line["kind"]), str(line["situation"]), str(line["test"])
        found[key] = min(str(line["state"]), found.get(key, WORKS), key=_WORST_FIRST.index)
    for kind, text, test, state in kept:
        found.setdefault((kind, text, test), state)
    return sorted([*key, state] for key, state in found.items())


def written(folder: Path) -> Iterator[Situation]:
    """The situations that the tests of a folder are marked with."""
    for path in sorted(folder.glob("test_*.py")):
        functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        for function in functions:
            for mark in _marks(function):
                kind, text, *rest = mark.args
                refused = bool(rest) and isinstance(rest[0], ast.Name) and rest[0].id == "REFUSED"
                outcome = REFUSED if refused else WORKS
                test = f"tests/{folder.name}/{path.name}::{function.name}"
                yield Situation(ast.literal_eval(kind), ast.literal_eval(text), outcome, test)


def _marks(function: ast.FunctionDef) -> Iterator[ast.Call]:
    """Those of a test, and of its parameters."""
    for decorator in function.decorator_list:
        for node in ast.walk(decorator):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "situation":
                yield node
