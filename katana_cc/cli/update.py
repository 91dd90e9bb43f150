"""`katana update`: find what is newest for what runs here, and apply it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from katana_cc.cli.grants import add_grants, grants_of
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
from katana_cc.cli.signed import add_trust, policy_of
from katana_cc.errors import ExitStatus, KatanaError, UsageError
from katana_cc.outcomes import APPLYING, OfProcess, ProcessOutcome, count_line, counts_json, outcome_of
from katana_cc.patch.needs import Grant
from katana_cc.process import survey
from katana_cc.process.apply import ApplyReport, apply_patch
from katana_cc.process.permission import refuse_unless_ready
from katana_cc.process.proc import process_name
from katana_cc.process.switching import Coroutines
from katana_cc.release.places import place
from katana_cc.release.update import Found, Mirrors
from katana_cc.report.hooks import failures
from katana_cc.report.summary import clean, edited
from katana_cc.telling import TellWait

_PROGRAM = "katana update"

prepare = untangle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_selection(parser)
    parser.add_argument(
        "--url",
        action="append",
        default=[],
        metavar="URL",
        help="a mirror of patches, or its folder; may be repeated (default: KATANA_URLS, separated by blanks)",
    )
    parser.add_argument("--dry-run", action="store_true", help="find and check everything, stop nothing")
    add_grants(parser)
    add_trust(parser)


@dataclass(frozen=True, slots=True)
class _Done:
    """What came of one build: reports of its processes, or an error that kept them all as they were."""

    found: Found
    pids: tuple[int, ...]
    reports: tuple[ApplyReport, ...] = ()
    error: KatanaError | None = None


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Updates build by build, and goes on behind one that could not be."""
    urls = arguments.url or os.environ.get("KATANA_URLS", "").split()
    if not urls:
        raise UsageError("no mirror is known", remedy="say --url URL, or set KATANA_URLS")
    mirrors = Mirrors([place(url) for url in urls], policy_of(arguments))
    listing = candidates(arguments)
    running = survey.running_builds(arguments.pid if listing is None else listing(), must_match=listing is None)
    granted = grants_of(arguments)
    done = []
    failed: list[KatanaError] = []
    with progress("updating", quiet=arguments.json) as shown:
        for number, (build_id, pids) in enumerate(sorted(running.builds.items())):
            part = number, len(running.builds), f"build-id {build_id[:12]}"
            shown(*part)
            found = mirrors.newest(build_id)
            for error in found.errors:
                shown.end()
                print(f"{_PROGRAM}: {clean(str(error))}", file=sys.stderr)
            if found.entry is None:
                failed += found.errors[:1]
            else:
                done.append(_update(found, pids, granted, arguments, listing, shown.within(*part)))
    tell_passed_over(_PROGRAM, running.passed_over, "something newer is to be had")
    if arguments.json:
        result = {
            "builds": [_as_json(d) for d in done],
            "counts": counts_json((p.outcome for d in done for p in _told(d)), APPLYING),
            "errors": [_error(e) for e in failed],
            "unreachable": [str(e.where) for e in mirrors.unreachable],
            "passed_over": passed_over_json(running.passed_over),
        }
        print(json.dumps(result, indent=2))
    else:
        _print(done, is_sure=not failed and not mirrors.unreachable)
    errors = [d.error for d in done if d.error is not None] + failed
    return _status(done, errors, mirrors, running.passed_over)


def _update(
    found: Found,
    pids: tuple[int, ...],
    granted: Sequence[Grant],
    arguments: argparse.Namespace,
    listing: Callable[[], list[int]] | None,
    tell: TellWait,
) -> _Done:
    assert found.patch is not None
    assert found.entry is not None
    build_id = found.build_id

    try:
        refuse_unless_ready(found.patch, granted)
        reports = apply_patch(
            found.patch,
            found.entry.id,
            pids,
            wait=arguments.wait,
            granted=granted,
            dry_run=arguments.dry_run,
            hook_timeout=arguments.hook_timeout,
            must_match=listing is None,
            select=again(listing, lambda pids: survey.pids_mapping(pids, build_id)),
            tell=tell,
            coroutines=Coroutines(arguments.coroutines),
        )
    except KatanaError as error:
        return _Done(found, pids, error=error)
    return _Done(found, pids, reports)


def _status(
    done: Sequence[_Done], errors: Sequence[KatanaError], mirrors: Mirrors, passed_over: Sequence[int]
) -> ExitStatus:
    """The gravest thing that came of it.  A mirror that is down is only told of while another can be asked."""
    statuses = [e.status for e in errors if e not in mirrors.unreachable]
    statuses += [ExitStatus.REFUSED for d in done for r in d.reports if r.refusal]
    if statuses:
        return ExitStatus.PARTLY if ExitStatus.PARTLY in statuses else statuses[0]
    if mirrors.are_all_down:
        return ExitStatus.UNREACHABLE
    if any(failures(r.hooks) for d in done for r in d.reports):
        return ExitStatus.HOOK_AFTER
    return status_of(passed_over)


def _print(done: Sequence[_Done], *, is_sure: bool) -> None:
    for d in done:
        assert d.found.entry is not None
        entry = d.found.entry
        head = f"{entry.output}: {entry.from_release or d.found.build_id[:12]} -> {entry.to_release}"
        if d.error is not None:
            print(f"{_PROGRAM}: {clean(str(d.error))}", file=sys.stderr)
            for process in _told(d):
                print(f"{head}: {process.line}")
        for report in d.reports:
            if report.outcome is ProcessOutcome.SKIPPED:
                continue
            line = f"{head}: pid {report.pid} ({report.name}): {report.outcome}"
            if report.commit is not None:
                commit = report.commit
                line += f": {edited(len(report.plan.ledger.edits), commit.threads, commit.pause_us)}"
            print(line)
            for text in failures(report.hooks):
                print(f"{_PROGRAM}: pid {report.pid}: {clean(text)}; the patch is applied", file=sys.stderr)
    outcomes = [p.outcome for d in done for p in _told(d)]
    if len(outcomes) > 1:
        print(count_line(outcomes))
    if not done and is_sure:
        print("nothing to do: no mirror has a patch for what runs there")


def _as_json(d: _Done) -> dict[str, Any]:
    assert d.found.entry is not None
    entry, error = d.found.entry, d.error
    result: dict[str, Any] = {
        "build_id": d.found.build_id,
        "output": entry.output,
        "patch": entry.id,
        "from_release": entry.from_release,
        "to_release": entry.to_release,
        "to_build_id": entry.to_build_id,
        "verdict": entry.verdict,
        "processes": [
            {
                "pid": r.pid,
                "name": r.name,
                "outcome": r.outcome,
                "pause_us": round(r.commit.pause_us, 1) if r.commit else None,
            }
            for r in d.reports
        ],
    }
    if error is not None:
        result |= {"error": _error(error), "processes": [p.as_json() for p in _told(d)]}
    return result


def _told(d: _Done) -> tuple[OfProcess, ...]:
    """What came of each process of a build."""
    error = d.error
    if error is None:
        return tuple(OfProcess(r.pid, r.name, r.outcome) for r in d.reports)
    # What speaks against the patch speaks against it in all of them.
    return error.processes or tuple(
        OfProcess(pid, process_name(pid), outcome_of(error), error.what, error.remedy) for pid in d.pids
    )


def _error(error: KatanaError) -> dict[str, Any]:
    return {"what": error.what, "where": error.where, "remedy": error.remedy, "status": int(error.status)}
