"""`katana diff`: what differs between two snapshots, and the verdict."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from katana_cc.cli.names import find_snapshots
from katana_cc.errors import ExitStatus, StoreError
from katana_cc.patch.model import PatchObject
from katana_cc.release.emit import make_patch, release_label
from katana_cc.release.naming import current_snapshots, ingest_staged, unrecorded
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.store import Store, find_store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `katana diff`."""
    parser.add_argument("old", nargs="?", metavar="A", help="release, snapshot or build-id (default: newest release)")
    parser.add_argument("new", nargs="?", metavar="B", help="the same (default: the current build)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 if anything differs, 3 if refused")


def run(arguments: argparse.Namespace) -> ExitStatus | int:
    """Print the differences of every output that both sides have."""
    store = Store(find_store())
    old = _side(store, arguments.old)
    if arguments.new is None:
        ingest_staged(store)  # what fails is a gap, and unrecorded() tells
        missing = {output: reason for output, reason in unrecorded(store).items() if output in old}
        new = {s.output: s for s in current_snapshots(store)}
    else:
        missing = {}
        new = _side(store, arguments.new)
    results: list[dict[str, Any]] = []
    for output in sorted(old.keys() & new.keys()):
        a, b = old[output], new[output]
        labels = release_label(store, a), release_label(store, b)
        patch = None if a.build_id == b.build_id else make_patch(store, a, b, *labels)[0]
        results.append(_result(output, labels, patch))
        if not arguments.json:
            _print(output, labels, patch)
    for output, reason in missing.items():
        results.append({"output": output, "verdict": "unknown", "reasons": [], "gap": reason})
        print(f"katana diff: the present build of {output} is not recorded: {reason}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(results, indent=2))
    if missing:
        return ExitStatus.STORE
    if not arguments.exit_code:
        return ExitStatus.DONE
    if any(r["verdict"] == "refused" for r in results):
        return ExitStatus.REFUSED
    return 1 if any(r["verdict"] != "same" for r in results) else ExitStatus.DONE


def _side(store: Store, word: str | None) -> dict[str, Snapshot]:
    if word is None:
        releases = store.releases()
        if not releases:
            raise StoreError("there is no release", where=str(store.folder), remedy="Name one: `katana-release NAME`.")
        word = releases[-1].name
    return {r.output: store.snapshot(r.id) for r in find_snapshots(store, word)[1]}


def _result(output: str, labels: tuple[str, str], patch: PatchObject | None) -> dict[str, Any]:
    reasons = patch.reasons if patch else ()
    return {
        "output": output,
        "from": labels[0],
        "to": labels[1],
        "verdict": patch.verdict.value if patch else "same",
        "reasons": [asdict(r) for r in reasons],
    }


def _print(output: str, labels: tuple[str, str], patch: PatchObject | None) -> None:
    if patch is None:
        print(f"{output}: {labels[0]} is the same build")
        return
    print(f"{output}: {labels[0]} -> {labels[1]}: {patch.verdict.value}")
    for r in patch.reasons:
        where = f"{r.file}:{r.line}" if r.line else r.file
        print(f"  {r.severity:8}{r.subject or '-'}{f' ({where})' if where else ''}: {r.text}  [{r.code}]")
