"""Which processes a command works on: `--pid`, `--tree` or `--all`, the same for apply and revert."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from katana_cc.errors import ExitStatus, TargetError
from katana_cc.process import survey
from katana_cc.process.hooks import DEFAULT_TIMEOUT
from katana_cc.process.switching import Coroutines

_LARGEST_PID: Final = 2**31 - 1  # pid_t
_NOT_READABLE: Final = "may not be read"


def untangle(words: Sequence[str]) -> list[str]:
    """Command line words with what follows `--pid` but is no process id moved to the front.

    `--pid` takes several values, and would swallow a patch named after it: `revert --pid 12 ebb4aaaf`.
    """
    front: list[str] = []
    rest: list[str] = []
    values: list[str] | None = None  # those that follow `--pid`
    for word in (*words, "--"):
        if not word.startswith("-"):
            (rest if values is None else values).append(word)
            continue
        named = values or []
        if any(_is_process_id(v) for v in named):
            front += [v for v in named if not _is_process_id(v)]
            named = [v for v in named if _is_process_id(v)]
        rest += [*named, word]
        values = [] if word == "--pid" else None
    return [*front, *rest[:-1]]


def _is_process_id(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) <= len(str(_LARGEST_PID)) and int(word) <= _LARGEST_PID


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that name processes, and those every such command shares."""
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--pid", type=process_id, nargs="+", action="extend", metavar="PID", help="these processes")
    chosen.add_argument("--tree", type=process_id, metavar="PID", help="a process and all its descendants")
    chosen.add_argument("--all", action="store_true", help="every process the patch concerns")
    parser.add_argument("--wait", type=seconds, default=5.0, metavar="SECONDS", help="for a safe moment (default 5)")
    parser.add_argument(
        "--hook-timeout",
        type=seconds,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help=f"that each function which the program wants to run may take (default {DEFAULT_TIMEOUT:g})",
    )
    parser.add_argument(
        "--coroutines",
        choices=[c.value for c in Coroutines],
        default=Coroutines.FIND_OUT.value,
        help="whether a coroutine that is switched out may be inside of what is replaced: find out whether the program "
        "has any (default), search for them anyway, or ignore what is found, since you know that none is",
    )
    parser.add_argument("--json", action="store_true", help="report as JSON")


def process_id(text: str) -> int:
    """For argparse: a process id."""
    if not _is_process_id(text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a process id")
    return int(text)


def seconds(text: str) -> float:
    """For argparse: a time to wait."""
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
    return survey.all_parents_first


def again(
    listing: Callable[[], list[int]] | None, search: Callable[[Iterable[int]], survey.Found]
) -> Callable[[], survey.Found] | None:
    """How to search once more through the processes of --tree or --all; None for --pid."""
    if listing is None:
        return None

    def look() -> survey.Found:
        try:
            return search(listing())
        except TargetError:  # the tree has ended
            return survey.Found((), ())

    return look


def passed_over_json(passed_over: Sequence[int]) -> dict[str, Any]:
    """The processes nobody could look into, for a script; the same in every command."""
    return {"count": len(passed_over), "pids": list(passed_over), "why": _NOT_READABLE if passed_over else ""}


def tell_passed_over(program: str, passed_over: Sequence[int], what: str) -> None:
    """One line on stderr when processes were passed over: how many, why, and what is not known for it."""
    if passed_over:
        number = len(passed_over)
        processes, they = ("1 process was", "it") if number == 1 else (f"{number} processes were", "they")
        why = "of a namespace outside of this one" if survey.may_trace_all() else "run as root, or with CAP_SYS_PTRACE"
        print(
            f"{program}: {processes} passed over, since {they} {_NOT_READABLE} ({why}): whether {what} is not known",
            file=sys.stderr,
        )


def status_of(passed_over: Sequence[int]) -> ExitStatus:
    """What a command ends with that was to reach every process: done, or not all could be reached.

    A script asks whether the whole machine runs the fix; where an ordinary user could not even look into some
    processes, it must not take yes for an answer.  Name them with --pid or --tree for a definite one about one's own.
    What root may not read either is not part of the machine as seen from here (a container's outside): it is told, and
    changes nothing.
    """
    return ExitStatus.UNREACHABLE if passed_over and not survey.may_trace_all() else ExitStatus.DONE
