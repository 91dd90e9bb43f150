"""`katana stats`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from katana_cc.errors import ExitStatus
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.store import Store

_PARTS = ("blobs", "staged", "patches")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `katana stats`."""
    parser.description = "Tell how much the store holds, and how large its parts are."
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Count and measure."""
    store = Store(find_store())
    rows = store.snapshot_rows()
    counts = {
        "outputs": len({row.output for row in rows}),
        "snapshots": len(rows),
        "releases": len(store.releases()),
        "patches": len(store.patches()),
        "gaps": len(store.gaps()),
        "staged_links": len(list(store.folder.glob("staged/links/*/link.json"))),
    }
    sizes = {part: _size(store.folder / part) for part in _PARTS}
    sizes["index"] = sum(path.stat().st_size for path in store.folder.glob("index*"))
    if arguments.json:
        print(json.dumps({"store": str(store.folder), "counts": counts, "bytes": sizes}, indent=2))
        return ExitStatus.DONE
    print(f"store         {store.folder}")
    for name, number in counts.items():
        print(f"{name.replace('_', ' '):12} {number:>9}")
    for name, number in sizes.items():
        print(f"{name:12} {number / 1e6:>9.1f} MB")
    return ExitStatus.DONE


def _size(folder: Path) -> int:
    """Bytes of all files below; what goes meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
        except OSError:
            continue
    return total
