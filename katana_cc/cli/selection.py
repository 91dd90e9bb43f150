"""Which processes a command works on: `--pid`, `--tree` or `--all`, the same for apply and revert."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Final

from katana_cc.process import survey

_LARGEST_PID: Final = 2**31 - 1  # pid_t


def untangle(words: Sequence[str]) -> list[str]:
    """Command line words with what follows `--pid` but is no process id moved to the front.

    `--pid` takes several values, and would swallow a patch named after it: `revert --pid 12 ebb4aaaf`.
    """
    front, rest = [], []
    after_pid = False
    for word in words:
        if word.startswith("-"):
            after_pid = word == "--pid"
        if after_pid and not word.startswith("-") and not (word.isdecimal() and int(word) <= _LARGEST_PID):
            front.append(word)
        else:
            rest.append(word)
    return [*front, *rest]


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that name processes, and those every such command shares."""
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--pid", type=_process_id, nargs="+", action="extend", metavar="PID", help="these processes")
    chosen.add_argument("--tree", type=_process_id, metavar="PID", help="a process and all its descendants")
    chosen.add_argument("--all", action="store_true", help="every process the patch concerns")
    parser.add_argument("--wait", type=_seconds, default=5.0, metavar="SECONDS", help="for a safe moment (default 5)")
    parser.add_argument("--json", action="store_true", help="report as JSON")


def _process_id(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _LARGEST_PID:
        raise argparse.ArgumentTypeError(f"{text!r} is not a process id")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError("must be 0 or more seconds")
    return value


def candidates(arguments: argparse.Namespace) -> Callable[[], list[int]] | None:
    """How to list the processes of --tree or --all, now and again later; None for --pid."""
    if arguments.pid:
        return None
    if arguments.tree is not None:
        root: int = arguments.tree
        return lambda: survey.tree_pids(root)
    return survey.all_pids
