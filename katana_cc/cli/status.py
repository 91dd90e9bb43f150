"""`katana status`: what runs, and what is applied to it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from katana_cc.cli.selection import passed_over_json, process_id, tell_passed_over
from katana_cc.errors import ExitStatus, KatanaError, LaterKatanaError, UsageError
from katana_cc.process import survey
from katana_cc.report.debugger import gdb_lines
from katana_cc.report.metrics import metrics
from katana_cc.report.moves import moved_line, moves_json
from katana_cc.report.summary import clean

HELP = "what runs, and what is applied to it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--pid", type=process_id, metavar="PID", help="one process, with the builds it runs")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--prometheus", action="store_true", help="as metrics, for a textfile collector")
    form.add_argument("--gdb", action="store_true", help="as commands for gdb, which then sees into new code")
    form.add_argument(
        "--symfs",
        type=Path,
        metavar="DIR",
        help="make a folder for `perf report --symfs DIR`, which then names new code",
    )


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Prints the processes that carry a patch, or all of one process."""
    if arguments.pid is None and (arguments.gdb or arguments.symfs is not None):
        raise UsageError("--gdb and --symfs are of one process", remedy="add --pid PID")
    if arguments.symfs is not None:
        for path in survey.write_images(arguments.pid, arguments.symfs):
            print(path)
        return ExitStatus.DONE
    later = 0
    if arguments.pid is not None:
        found = [survey.process_status(arguments.pid)]
        passed_over: tuple[int, ...] = ()
    else:
        found = []
        listed = survey.patched_pids(survey.all_pids())
        passed_over = listed.passed_over
        for pid in listed.pids:
            try:
                found.append(survey.process_status(pid))
            except LaterKatanaError as error:
                later += 1
                print(f"katana status: {clean(f'{error.where}: {error.what}')}", file=sys.stderr)
            except KatanaError:
                pass  # it ended meanwhile
    tell_passed_over("katana status", passed_over, "a patch is applied there")
    if arguments.json:
        processes = [_as_json(p) for p in found]
        print(json.dumps({"processes": processes, "passed_over": passed_over_json(passed_over)}, indent=2))
        return ExitStatus.DONE
    if arguments.prometheus:
        print(*metrics(found, len(passed_over)), sep="\n")
        return ExitStatus.DONE
    if arguments.gdb:
        print(*gdb_lines(found) or ["# no patch is applied"], sep="\n")
        return ExitStatus.DONE
    if not found:
        print(f"no process{' that could be read' if passed_over or later else ''} carries a patch")
    for process in found:
        print(f"pid {process.pid} ({process.name})")
        if arguments.pid is not None:
            for module in process.modules:
                print(f"  runs     {module.build_id or '(no build-id)':40}  {module.path}")
        for patch in process.patches:
            for line in _patch_lines(patch):
                print(f"  {line}")
        if not process.patches:
            print("  no patch")
    return ExitStatus.DONE


def _patch_lines(patch: survey.PatchStatus) -> list[str]:
    ledger = patch.ledger
    kept = f", {patch.size} bytes kept" if patch.state in ("reverted", "prepared", "unloaded") else ""
    kept += f" (in use by {', '.join(patch.used_by)})" if patch.used_by else ""
    if ledger is None:
        return [f"{patch.state:8} {patch.name}: a katana died before anything led to it ({patch.size} bytes)"]
    start = f"{ledger.from_release} ({ledger.from_build_id})" if ledger.from_release else ledger.from_build_id
    to = f"{ledger.to_release} ({ledger.to_build_id})" if ledger.to_release else ledger.to_build_id
    lines = [f"{patch.state:8} {ledger.patch_id}  {ledger.output}: {start} -> {to}{kept}"]
    for edit in ledger.edits:
        kind = "function" if edit.is_jump else edit.kind
        lines.append(f"         {kind:8} {edit.address:#x}  {edit.name}")
    if patch.state == "interrupted":
        lines.append("         a katana was killed while it moved live data, and the process stands still since:")
        lines.append("         katana apply or katana revert finishes that first")
    if patch.state == "applied":
        lines += [f"         {moved_line(m)}" for m in ledger.moves]
    return lines


def _as_json(process: survey.ProcessStatus) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "name": process.name,
        "modules": [{"path": m.path, "build_id": m.build_id, "address": m.start} for m in process.modules],
        "patches": [_patch_as_json(p) for p in process.patches],
    }


def _patch_as_json(patch: survey.PatchStatus) -> dict[str, Any]:
    result: dict[str, Any] = {"state": patch.state, "name": patch.name, "address": patch.base, "size": patch.size}
    ledger = patch.ledger
    if ledger is not None:
        result |= {
            "patch": ledger.patch_id,
            "output": ledger.output,
            "from_build_id": ledger.from_build_id,
            "to_build_id": ledger.to_build_id,
            "from_release": ledger.from_release,
            "to_release": ledger.to_release,
            "edits": [
                {"kind": e.kind, "name": e.name, "address": e.address, "size": len(e.expected)} for e in ledger.edits
            ],
            "frames_registered": ledger.is_registered,
            "functions": [{"name": r.name, "address": r.address, "size": r.size} for r in ledger.new],
            "moves": moves_json(ledger.moves),
            "image": patch.image,
            "used_by": list(patch.used_by),
            "variables": [{"name": r.name, "address": r.address, "size": r.size} for r in ledger.data],
        }
    return result
