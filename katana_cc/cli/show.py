"""`katana show`: one snapshot, release or patch object."""

from __future__ import annotations

import argparse
import json

from katana_cc.cli.names import find_snapshots
from katana_cc.errors import ExitStatus
from katana_cc.patch.files import is_file, read_patch
from katana_cc.report import patch_json, patch_text
from katana_cc.report.summary import count
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `katana show`."""
    parser.add_argument("what", metavar="X", help="a patch object's path, a release, a snapshot's number or build-id")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Print all that is known of one thing."""
    if is_file(arguments.what):
        return _show_patch(arguments.what, as_json=arguments.json)
    store = Store(find_store())
    release, rows = find_snapshots(store, arguments.what)
    snapshots = [store.snapshot(r.id) for r in rows]
    if arguments.json:
        described = [_described(s) for s in snapshots]
        value: object = described[0] if release is None else {"release": release.name, "deployed": release.deployed,
                                                      "snapshots": described}  # fmt: skip
        print(json.dumps(value, indent=2))
        return ExitStatus.DONE
    if release is not None:
        print(f"release {release.name}{'' if release.deployed else ' (not deployed)'}: {count(len(rows), 'output')}")
    for s in snapshots:
        print(f"snapshot {s.id}: {s.output}")
        for key, held in _described(s).items():
            if key not in ("id", "output"):
                text = " ".join(map(str, held)) if isinstance(held, list) else held
                print(f"  {key.replace('_', ' '):24} {text}")
    return ExitStatus.DONE


def _show_patch(path: str, *, as_json: bool) -> ExitStatus:
    data, patch = read_patch(path)
    print(json.dumps(patch_json.to_json(patch, data), indent=2) if as_json else patch_text.render(patch, data))
    return ExitStatus.DONE


def _described(s: Snapshot) -> dict[str, object]:
    return {
        "id": s.id,
        "output": s.output,
        "path": s.path,
        "build_id": s.build_id,
        "soname": s.soname,
        "linker": s.linker,
        "sources": s.sources,
        "objects": len(s.units),
        "sections_placed": len(s.placements),
        "sections_not_confirmed": len(s.unplaced),
        "notes": list(s.notes),
    }
