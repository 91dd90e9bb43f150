"""`katana revert --give-back` and `--only-give-back`: the memory of patches that are not in force."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from katana_cc.cli.progress import progress
from katana_cc.cli.selection import passed_over_json, status_of, tell_passed_over
from katana_cc.errors import ExitStatus
from katana_cc.process.giving_back import GivingReport, give_memory_back
from katana_cc.process.survey import Found
from katana_cc.report.memory import memory_as_json, memory_lines


def add_giving_back(parser: argparse.ArgumentParser) -> None:
    """The options."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--give-back",
        action="store_true",
        help="then give back the memory of that patch, or without PO-ID of all that are not in force, if nothing is "
        "found that leads there",
    )
    either.add_argument(
        "--only-give-back",
        action="store_true",
        help="the same without taking out a patch: memory of what was reverted or replaced before",
    )


def given_back(
    arguments: argparse.Namespace, found: Found, patch_id: str, *, must_match: bool
) -> tuple[GivingReport, ...]:
    """What was given back; nothing where nobody asked for it."""
    if not arguments.give_back and not arguments.only_give_back:
        return ()
    with progress("waiting", quiet=arguments.json) as shown:
        return give_memory_back(found.pids, patch_id, wait=arguments.wait, must_match=must_match, tell=shown.waiting)


def give_back_only(arguments: argparse.Namespace, found: Found, patch_id: str, *, must_match: bool) -> ExitStatus:
    """The whole command with `--only-give-back`."""
    reports = given_back(arguments, found, patch_id, must_match=must_match)
    tell_passed_over("katana revert", found.passed_over, "memory of patches is kept there")
    if arguments.json:
        told = {"processes": [], "passed_over": passed_over_json(found.passed_over)}
        print(json.dumps(told | memory_json(arguments, reports), indent=2))
    else:
        print_given_back(reports)
        if not reports:
            print("nothing to give back: no process keeps memory of a patch that is not in force")
    return worst(reports) or status_of(found.passed_over)


def worst(reports: Sequence[GivingReport]) -> ExitStatus:
    """What the command ends with: DONE where all was given back."""
    statuses = {r.status for r in reports}
    order = ExitStatus.UNREACHABLE, ExitStatus.REFUSED, ExitStatus.BUSY
    return next((s for s in order if s in statuses), ExitStatus.DONE)


def memory_json(arguments: argparse.Namespace, reports: Sequence[GivingReport]) -> dict[str, Any]:
    """What a script is told besides."""
    if not arguments.give_back and not arguments.only_give_back:
        return {}
    return {"memory": memory_as_json(reports)}


def print_given_back(reports: Sequence[GivingReport]) -> None:
    """Say it."""
    for line in memory_lines(reports):
        print(line)
