"""`katana diff`: what differs between two snapshots, and the verdict.

With --exit-code the status is the gravest verdict of all outputs: 0 nothing to patch, 1 a safe patch, 8 a patch that
needs a decision first, 3 refused; 6 stays what it is, a gap in the store.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from katana_cc.cli.names import find_snapshots
from katana_cc.cli.progress import progress
from katana_cc.errors import ExitStatus, StoreError
from katana_cc.patch.model import PatchObject, Verdict
from katana_cc.release.emit import make_patch, release_label
from katana_cc.release.naming import current_snapshots, ingest_staged, unrecorded
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.store import Store

_SAFE, _NEEDS = 1, 8
_HELP = (
    f"exit with 0 if there is nothing to patch, {_SAFE} if the patch is safe, {_NEEDS} if it needs a decision first, "
    f"{ExitStatus.REFUSED.value} if it is refused"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `katana diff`."""
    parser.add_argument("old", nargs="?", metavar="A", help="release, snapshot or build-id (default: newest release)")
    parser.add_argument("new", nargs="?", metavar="B", help="the same (default: the current build)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--exit-code", action="store_true", help=_HELP)


def run(arguments: argparse.Namespace) -> ExitStatus | int:
    """Print the differences of every output that both sides have."""
    store = Store(find_store())
    old = _side(store, arguments.old)
    if arguments.new is None:
        with progress("recording", quiet=arguments.json) as shown:
            ingest_staged(store, shown)  # what fails is a gap, and unrecorded() tells
        unseen = unrecorded(store)
        missing = {output: reason for output, reason in unseen.items() if output in old}
        new = {s.output: s for s in current_snapshots(store, unseen)}
    else:
        missing = {}
        new = _side(store, arguments.new)
    results: list[dict[str, Any]] = []
    outputs = sorted(old.keys() & new.keys())
    with progress("comparing", quiet=arguments.json) as shown:
        for number, output in enumerate(outputs):
            shown(number, len(outputs), output)
            a, b = old[output], new[output]
            labels = release_label(store, a), release_label(store, b)
            patch, needed = None, False
            if a.build_id != b.build_id:
                patch, changes = make_patch(store, a, b, *labels)
                needed = not changes.empty
            results.append(_result(output, labels, patch, needed))
            if not arguments.json:
                shown.end()
                _print(output, labels, patch, needed)
    for output, reason in missing.items():
        results.append({"output": output, "verdict": "unknown", "needed": False, "reasons": [], "gap": reason})
        print(f"katana diff: the present build of {output} is not recorded: {reason}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(results, indent=2))
    if missing:
        return ExitStatus.STORE
    if not arguments.exit_code:
        return ExitStatus.DONE
    return status_of(results)


def status_of(results: Iterable[dict[str, Any]]) -> ExitStatus | int:
    """The gravest verdict as an exit status."""
    verdicts = {r["verdict"] for r in results if r["needed"]}
    if Verdict.REFUSED.value in verdicts:
        return ExitStatus.REFUSED
    if Verdict.NEEDS.value in verdicts:
        return _NEEDS
    return _SAFE if verdicts else ExitStatus.DONE


def _side(store: Store, word: str | None) -> dict[str, Snapshot]:
    if word is None:
        releases = store.releases()
        if not releases:
            raise StoreError("there is no release", where=str(store.folder), remedy="Name one: `katana-release NAME`.")
        word = releases[-1].name
    return {r.output: store.snapshot(r.id) for r in find_snapshots(store, word)[1]}


def _result(output: str, labels: tuple[str, str], patch: PatchObject | None, needed: bool) -> dict[str, Any]:
    reasons = patch.reasons if patch else ()
    return {
        "output": output,
        "from": labels[0],
        "to": labels[1],
        "verdict": patch.verdict.value if patch else "same",
        "needed": needed,
        "reasons": [asdict(r) for r in reasons],
    }


def _print(output: str, labels: tuple[str, str], patch: PatchObject | None, needed: bool) -> None:
    if patch is None:
        print(f"{output}: {labels[0]} is the same build")
        return
    print(f"{output}: {labels[0]} -> {labels[1]}: {patch.verdict.value if needed else 'nothing to patch'}")
    for r in patch.reasons:
        where = f"{r.file}:{r.line}" if r.line else r.file
        print(f"  {r.severity:8}{r.subject or '-'}{f' ({where})' if where else ''}: {r.text}  [{r.code}]")
