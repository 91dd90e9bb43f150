"""Which processes a command works on: `--pid`, `--tree` or `--all`, the same for apply and revert."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from katana_cc.process import survey


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that name processes, and those every such command shares."""
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--pid", type=int, nargs="+", action="extend", metavar="PID", help="these processes")
    chosen.add_argument("--tree", type=int, metavar="PID", help="a process and all its descendants")
    chosen.add_argument("--all", action="store_true", help="every process the patch concerns")
    parser.add_argument("--wait", type=_seconds, default=5.0, metavar="SECONDS", help="for a safe moment (default 5)")
    parser.add_argument("--json", action="store_true", help="report as JSON")


def _seconds(text: str) -> float:
    value = float(text)
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
