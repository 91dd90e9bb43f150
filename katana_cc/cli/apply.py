"""`katana apply PO`: put a patch object into running processes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from katana_cc.cli.grants import add_grants, function_name, grants_of
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
from katana_cc.cli.signed import add_trust, policy_of, read_signed
from katana_cc.cli.stacked import add_on, put_on
from katana_cc.errors import ExitStatus, RefusedError
from katana_cc.outcomes import APPLYING, ProcessOutcome, count_line, counts_json
from katana_cc.patch.codec import patch_id
from katana_cc.process import survey
from katana_cc.process.apply import ApplyReport, apply_patch
from katana_cc.process.permission import refuse_unless_ready
from katana_cc.process.plan import Plan
from katana_cc.process.succession import left_behind
from katana_cc.process.switching import Coroutines
from katana_cc.report.forecast import forecast_json, forecast_lines
from katana_cc.report.hooks import failures, handed_lines, heap_handed_lines, hook_lines, hooks_json
from katana_cc.report.moves import moved_line, moves_json, preview_lines, words_json
from katana_cc.report.objects import object_lines, object_preview_lines, objects_json
from katana_cc.report.summary import clean, edited

HELP = "put a patch object into running processes"


prepare = untangle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("po", metavar="PO", help="a patch object (`katana patches` lists them)")
    add_selection(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the edits, stop nothing")
    parser.add_argument(
        "--all-objects",
        action="store_true",
        help="with --dry-run: tell of every object on the heap, not only of the first ones (--json always does)",
    )
    parser.add_argument(
        "--at",
        type=function_name,
        default=None,
        metavar="FUNCTION",
        help="apply it when a thread enters this function, which --wait is the time for",
    )
    add_on(parser)
    add_grants(parser)
    add_trust(parser)


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Applies, and says what was done to whom."""
    trust = policy_of(arguments)
    data, po = read_signed(arguments.po, trust)
    data, po = put_on(data, po, arguments.po, arguments.on, arguments.pid or (), trust)
    granted = grants_of(arguments)
    refuse_unless_ready(po, granted)
    identity = patch_id(data)
    build_id = po.identity.from_build_id
    listing = candidates(arguments)
    passed_over: set[int] = set()

    def search(pids: Iterable[int]) -> survey.Found:
        found = survey.pids_mapping(pids, build_id)
        passed_over.update(found.passed_over)
        return found

    pids = arguments.pid
    if listing is not None:
        pids = search(listing()).pids
        if not pids and not passed_over and arguments.tree is not None:
            raise RefusedError(
                f"no process of the tree runs {po.identity.output} with build-id {build_id}",
                where=f"pid {arguments.tree}",
                remedy="see `katana status --pid` for the builds it runs",
            )
    with progress("waiting", quiet=arguments.json) as shown:
        reports = apply_patch(
            po,
            identity,
            pids,
            wait=arguments.wait,
            granted=granted,
            dry_run=arguments.dry_run,
            hook_timeout=arguments.hook_timeout,
            must_match=listing is None,
            select=again(listing, search),
            at=arguments.at or "",
            tell=shown.waiting,
            coroutines=Coroutines(arguments.coroutines),
        )
    over = sorted(passed_over)
    tell_passed_over("katana apply", over, f"this build of {po.identity.output} runs there")
    if arguments.json:
        result = {
            "patch": identity,
            "processes": [_as_json(r) for r in reports],
            "counts": counts_json((r.outcome for r in reports), APPLYING),
            "passed_over": passed_over_json(over),
        }
        print(json.dumps(result, indent=2))
    elif not reports:
        print(
            f"nothing to do: no process{' that could be read' if over else ''} runs {po.identity.output} with "
            f"build-id {build_id}"
        )
    else:
        _print(reports, every=arguments.all_objects)
    if any(r.refusal for r in reports):
        return ExitStatus.REFUSED
    failed = [f"pid {r.pid} ({r.name}): {text}" for r in reports for text in failures(r.hooks)]
    for text in failed:
        print(f"katana apply: {clean(text)}; the patch is applied", file=sys.stderr)
    return ExitStatus.HOOK_AFTER if failed else status_of(over)


def _print(reports: Sequence[ApplyReport], *, every: bool) -> None:
    for report in reports:
        if report.outcome is ProcessOutcome.SKIPPED:
            continue  # where processes come and go there may be many: they are counted
        head = f"pid {report.pid} ({report.name}): {report.outcome}"
        if report.commit is not None:
            plan = report.plan
            tries = f" after {report.commit.tries} tries" if report.commit.tries > 1 else ""
            print(f"{head}{tries}: {edited(len(plan.ledger.edits), report.commit.threads, report.commit.pause_us)}")
            for line in (*_replaced_lines(plan), *_moved_lines(report), *map(clean, hook_lines(report.hooks))):
                print(f"  {line}")
        else:
            print(head)
        if report.outcome.startswith("would"):
            for line in _dry_run_lines(report, every=every):
                print(f"  {line}")
    if len(reports) > 1:
        print(count_line(r.outcome for r in reports))


def _replaced_lines(plan: Plan) -> list[str]:
    """Whose place the patch takes, and what it has no use for."""
    lines = [f"in the place of {g.patch_id} (to {g.to_release or g.to_build_id[:12]})" for g in plan.leaving]
    left = left_behind(plan.leaving, plan.ledger)
    return [*lines, clean(f"left behind with it, since the new build has none: {', '.join(left)}")] if left else lines


def _moved_lines(report: ApplyReport) -> list[str]:
    """What became of the variables that moved."""
    lines = [moved_line(m) for m in report.plan.ledger.moves if not m.stays]
    cargo = report.commit.cargo if report.commit else None
    if cargo is not None and cargo.heap is not None:
        lines += object_lines(cargo.heap, report.leftover)
    if cargo is not None:
        lines += [clean(f"left behind with the old {name}: {text}") for name, text in cargo.dropped]
    return lines


def _dry_run_lines(report: ApplyReport, *, every: bool) -> list[str]:
    plan = report.plan
    where = "the earlier mapping is used again" if plan.existing else "new mapping"
    lines = [f"{where}: {plan.base:#x}, {plan.layout.size} bytes, {plan.name}", *_replaced_lines(plan)]
    lines += [f"code      {r.address:#x}  {r.size:6}  {r.name}" for r in plan.ledger.new]
    lines += [f"variable  {r.address:#x}  {r.size:6}  {r.name}" for r in plan.ledger.data]
    for edit in plan.ledger.edits:
        lines.append(f"{edit.kind:9} {edit.address:#x}  {len(edit.expected):6}  {edit.name}")
    lines += [
        clean(f"hook      {h.address:#x}  would run {h.kind.words}: {h.name}")
        for h in plan.ledger.hooks
        if not h.kind.makes_objects
    ]
    lines += map(clean, handed_lines(plan.ledger.moves))
    lines += [f"the resolver of {p.name} would be called (not now)" for p in plan.resolution.pending]
    if report.seen is not None:
        lines += preview_lines(plan.ledger.moves, report.seen)
        if report.seen.heap is not None:
            lines += object_preview_lines(report.seen.heap, every=every)
            lines += map(clean, heap_handed_lines(plan.ledger.kinds, report.seen.heap))
    if report.forecast is not None:
        lines += map(clean, forecast_lines(report.forecast))
    if report.refusal is not None:
        lines += f"refused: {report.refusal.what}".split("\n")
        lines.append(report.refusal.remedy)
    return lines


def _as_json(report: ApplyReport) -> dict[str, Any]:
    if report.outcome is ProcessOutcome.SKIPPED:
        return {"pid": report.pid, "name": report.name, "outcome": report.outcome}
    plan, commit = report.plan, report.commit
    cargo = commit.cargo if commit else None
    seen = cargo or report.seen
    return {
        "pid": report.pid,
        "name": report.name,
        "outcome": report.outcome,
        "output": plan.po.identity.output,
        "module": plan.module.path,
        "mapping": {"address": plan.base, "size": plan.layout.size, "name": plan.name},
        "edits": [
            {"kind": e.kind, "name": e.name, "address": e.address, "size": len(e.expected)} for e in plan.ledger.edits
        ],
        "replaces": [g.patch_id for g in plan.leaving],
        "left_behind": left_behind(plan.leaving, plan.ledger),
        "hooks": hooks_json(report.hooks),
        "moves": moves_json(plan.ledger.moves, report.seen),
        "objects": objects_json(seen.heap if seen else None, report.leftover, every=report.seen is not None),
        "words": words_json(report.seen) if report.seen is not None else [],
        "refusal": report.refusal.what if report.refusal is not None else None,
        "forecast": forecast_json(report.forecast),
        "dropped": [{"variable": name, "text": text} for name, text in cargo.dropped] if cargo else [],
        "unresolved": [p.name for p in plan.resolution.pending] if report.outcome.startswith("would") else [],
        "threads": commit.threads if commit else None,
        "tries": commit.tries if commit else None,
        "pause_us": round(commit.pause_us, 1) if commit else None,
        "attach_us": round(commit.attach_us, 1) if commit else None,
        "map_pause_us": round(report.map_pause_us, 1) if commit else None,
        "register_pause_us": round(report.register_pause_us, 1) if commit else None,
        "restarted_system_calls": commit.repaired if commit else None,
    }
