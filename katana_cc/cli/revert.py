"""`katana revert`: take a patch out of running processes."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from katana_cc.cli.giving_back import (
    add_giving_back,
    give_back_only,
    given_back,
    memory_json,
    print_given_back,
    worst,
)
from katana_cc.cli.grants import variable_name
from katana_cc.cli.progress import progress
from katana_cc.cli.selection import (
    add_selection,
    again,
    candidates,
    passed_over_json,
    status_of,
    tell_passed_over,
    untangle,
)
from katana_cc.errors import ExitStatus, UsageError
from katana_cc.outcomes import REVERTING, ProcessOutcome, count_line, counts_json
from katana_cc.patch.codec import patch_id
from katana_cc.patch.files import is_file, read_patch
from katana_cc.process import survey
from katana_cc.process.revert import revert_patch
from katana_cc.process.reverting import RevertReport, Wishes
from katana_cc.process.switching import Coroutines
from katana_cc.report.hooks import failures, hook_lines, hooks_json
from katana_cc.report.moves import moved_back_line, moves_json
from katana_cc.report.objects import object_lines, objects_json
from katana_cc.report.summary import clean, edited

_ID = re.compile(r"[0-9A-Fa-f]{1,32}")
HELP = "take a patch out of running processes"


prepare = untangle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "patch",
        metavar="PO-ID",
        nargs="?",
        default=None,
        help="the patch: its identity, the beginning of it, or its file; needed when there are several",
    )
    add_selection(parser)
    parser.add_argument(
        "--follow",
        action="append",
        type=variable_name,
        default=[],
        metavar="NAME",
        help="when this variable, or an object of this type, moves back, take every word that leads into it for a "
        "pointer, also where nothing says so",
    )
    parser.add_argument(
        "--only-reached",
        action="append",
        default=[],
        metavar="TYPE",
        help="state that no object of this type is on the heap but those that pointers by their types lead to",
    )
    parser.add_argument(
        "--discard",
        action="append",
        type=variable_name,
        default=[],
        metavar="NAME",
        help="when this variable, or an object of this type, moves back, lose the values of fields that the old layout "
        "has no room for",
    )
    add_giving_back(parser)


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Reverts, and says what was done to whom."""
    listing = candidates(arguments)
    found = survey.Found(tuple(arguments.pid), ()) if listing is None else survey.patched_pids(listing())
    if arguments.only_give_back:
        return give_back_only(arguments, found, _identity(arguments.patch), must_match=listing is None)
    with progress("waiting", quiet=arguments.json) as shown:
        reports = revert_patch(
            found.pids,
            _identity(arguments.patch),
            wait=arguments.wait,
            must_match=listing is None,
            wishes=Wishes(tuple(arguments.follow), tuple(arguments.discard), tuple(arguments.only_reached)),
            hook_timeout=arguments.hook_timeout,
            select=again(listing, survey.patched_pids),
            tell=shown.waiting,
            coroutines=Coroutines(arguments.coroutines),
        )
    failed = [f"pid {r.pid} ({r.name}): {text}" for r in reports for text in failures(r.hooks)]
    for text in failed:
        print(f"katana revert: {clean(text)}; the patch is reverted", file=sys.stderr)
    given = given_back(arguments, found, _identity(arguments.patch), must_match=listing is None)
    not_known = sum(r.outcome is ProcessOutcome.NOT_KNOWN for r in reports)
    status = ExitStatus.HOOK_AFTER if failed else worst(given) or _status(found, not_known)
    _tell_not_known(not_known)
    tell_passed_over("katana revert", found.passed_over, "a patch is applied there")
    if arguments.json:
        result = {
            "processes": [_as_json(r) for r in reports],
            "counts": counts_json((r.outcome for r in reports), REVERTING),
            "passed_over": passed_over_json(found.passed_over),
        }
        print(json.dumps(result | memory_json(arguments, given), indent=2))
        return status
    for report in reports:
        if report.outcome is ProcessOutcome.SKIPPED:
            continue  # where processes come and go there may be many: they are counted
        line = f"pid {report.pid} ({report.name}): {report.outcome}"
        if report.ledger is not None and report.commit is not None:
            done = edited(len(report.ledger.edits), report.commit.threads, report.commit.pause_us)
            line += f" {report.ledger.patch_id}: {done}"
        elif report.others:
            line += f": it carries {', '.join(report.others)}, and not {arguments.patch}"
        elif report.what:
            line += f": {report.what}"
        print(line)
        for move in report.ledger.moves if report.ledger is not None else ():
            if not move.stays:
                print(f"  {moved_back_line(move)}")
        cargo = report.commit.cargo if report.commit is not None else None
        for line in object_lines(cargo.heap, report.leftover) if cargo is not None and cargo.heap is not None else ():
            print(f"  {line}")
        for line in map(clean, hook_lines(report.hooks)):
            print(f"  {line}")
        for name in report.kept:
            print(f"  {name} was written to after it got its new initial value, and keeps what it holds")
    if len(reports) > 1:
        print(count_line(r.outcome for r in reports))
    if len(reports) == not_known:
        where = "no process that could be read" if found.passed_over or not_known else "no process"
        print(f"nothing to revert: {where} carries {'the' if arguments.patch else 'a'} patch")
    print_given_back(given)
    return status


def _status(found: survey.Found, not_known: int) -> ExitStatus:
    return ExitStatus.UNREACHABLE if not_known else status_of(found.passed_over)


def _tell_not_known(number: int) -> None:
    """One line on stderr when processes were left as they are."""
    if number:
        processes, them = ("1 process was", "it") if number == 1 else (f"{number} processes were", "them")
        print(
            f"katana revert: {processes} left alone, since a later katana patched {them}: whether the patch is applied "
            "there is not known (use that katana, or a later one)",
            file=sys.stderr,
        )


def _identity(word: str | None) -> str:
    """The identity that a word means: a patch object's file, or the beginning of a PO-ID; without a word, any."""
    if word is None:
        return ""
    if is_file(word):
        return patch_id(read_patch(word)[0])
    if not _ID.fullmatch(word):
        raise UsageError(
            f"{word!r} is neither a patch object nor the beginning of a PO-ID",
            remedy="`katana status` shows the identities of the patches that are applied: up to 32 hex digits",
        )
    return word.lower()


def _as_json(report: RevertReport) -> dict[str, Any]:
    ledger, commit = report.ledger, report.commit
    cargo = commit.cargo if commit else None
    return {
        "pid": report.pid,
        "name": report.name,
        "outcome": report.outcome,
        "what": report.what or None,
        "remedy": report.remedy or None,
        "patch": ledger.patch_id if ledger else None,
        "output": ledger.output if ledger else None,
        "threads": commit.threads if commit else None,
        "tries": commit.tries if commit else None,
        "pause_us": round(commit.pause_us, 1) if commit else None,
        "attach_us": round(commit.attach_us, 1) if commit else None,
        "restarted_system_calls": commit.repaired if commit else None,
        "others": list(report.others),
        "hooks": hooks_json(report.hooks),
        "kept": list(report.kept),
        "moves": moves_json(ledger.moves) if ledger else [],
        "objects": objects_json(cargo.heap if cargo else None, report.leftover),
    }
