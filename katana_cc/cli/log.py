"""`katana log`."""

from __future__ import annotations

import argparse
import json
from datetime import datetime

from katana_cc.errors import ExitStatus
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `katana log`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Print snapshots with the releases that hold them, and gaps, newest first."""
    store = Store(find_store())
    names: dict[int, list[str]] = {}
    for release in store.releases():
        for snapshot in release.snapshots:
            names.setdefault(snapshot, []).append(release.name + ("" if release.deployed else " (not deployed)"))
    rows = store.snapshot_rows()
    gaps = store.gaps()
    if arguments.json:
        print(
            json.dumps(
                {
                    "snapshots": [
                        {"id": r.id, "output": r.output, "path": r.path, "build_id": r.build_id, "time": r.time,
                         "releases": names.get(r.id, [])}
                        for r in rows
                    ],
                    "releases": [
                        {"name": r.name, "deployed": r.deployed, "time": r.time, "snapshots": list(r.snapshots)}
                        for r in store.releases()
                    ],
                    "gaps": [{"output": g.output, "path": g.path, "reason": g.reason, "time": g.time} for g in gaps],
                },
                indent=2,
            )
        )  # fmt: skip
        return ExitStatus.DONE
    lines = [
        (
            r.time,
            f"{r.id:>4}  {_when(r.time)}  {r.build_id[:12]}  {r.output}  {', '.join(names.get(r.id, []))}".rstrip(),
        )
        for r in rows
    ]
    lines += [(g.time, f" gap  {_when(g.time)}  {'-' * 12}  {g.output}: {g.reason}") for g in gaps]
    for _, line in sorted(lines, reverse=True):
        print(line)
    return ExitStatus.DONE


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
