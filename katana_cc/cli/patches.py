"""`katana patches`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from katana_cc.errors import ExitStatus
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.rows import PatchRow
from katana_cc.snapshot.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `katana patches`."""
    parser.add_argument("--json", action="store_true", help="print JSON: a list of objects")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Print the patch objects made, newest first."""
    rows = Store(find_store()).patches()
    if arguments.json:
        keys = ("output", "from", "to", "verdict", "size", "path")
        values = [(r.output, r.from_name, r.to_name, r.verdict, r.size, r.path) for r in rows]
        print(json.dumps([dict(zip(keys, v, strict=True)) for v in values], indent=2))
        return ExitStatus.DONE
    for r in rows:
        print(f"{r.output}  {r.from_name} -> {r.to_name}  {r.verdict}  {r.size} bytes  {r.path}{_state(r)}")
    return ExitStatus.DONE


def _state(row: PatchRow) -> str:
    try:
        state = "" if Path(row.path).stat().st_size == row.size else "damaged"
    except OSError:
        state = "gone"
    return f"  ({state}: `katana-release --since {row.from_name}` makes it again)" if state else ""
