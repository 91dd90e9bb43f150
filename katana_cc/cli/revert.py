"""`katana revert`: take a patch out of running processes."""

from __future__ import annotations

import argparse
import json
from typing import Any

from katana_cc.cli.selection import add_selection, candidates, untangle
from katana_cc.errors import ExitStatus
from katana_cc.process import survey
from katana_cc.process.revert import RevertReport, revert_patch

HELP = "take a patch out of running processes"


prepare = untangle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("patch", metavar="PO-ID", nargs="?", default="", help="identity of the patch, or its beginning")
    add_selection(parser)


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Reverts, and says what was done to whom."""
    listing = candidates(arguments)
    pids = arguments.pid if listing is None else list(survey.patched_pids(listing()))
    reports = revert_patch(pids, arguments.patch, wait=arguments.wait, must_match=listing is None)
    if arguments.json:
        print(json.dumps({"processes": [_as_json(r) for r in reports]}, indent=2))
        return ExitStatus.DONE
    for report in reports:
        line = f"pid {report.pid} ({report.name}): {report.outcome}"
        if report.ledger is not None and report.commit is not None:
            line += (
                f" {report.ledger.patch_id}: {len(report.ledger.edits)} edits, {report.commit.threads} threads stopped "
                f"for {report.commit.pause_us / 1000:.2f} ms"
            )
        print(line)
    if not reports:
        print("nothing to revert: no process carries the patch")
    return ExitStatus.DONE


def _as_json(report: RevertReport) -> dict[str, Any]:
    ledger, commit = report.ledger, report.commit
    return {
        "pid": report.pid,
        "name": report.name,
        "outcome": report.outcome,
        "patch": ledger.patch_id if ledger else None,
        "output": ledger.output if ledger else None,
        "threads": commit.threads if commit else None,
        "tries": commit.tries if commit else None,
        "pause_us": round(commit.pause_us, 1) if commit else None,
        "attach_us": round(commit.attach_us, 1) if commit else None,
        "restarted_system_calls": commit.repaired if commit else None,
    }
