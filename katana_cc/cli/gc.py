"""`katana gc`."""

from __future__ import annotations

import argparse
import re
import time
from contextlib import closing
from typing import Final

from katana_cc.cli.progress import progress
from katana_cc.errors import ExitStatus
from katana_cc.report.summary import count
from katana_cc.snapshot.garbage import Rule, collect
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which of the snapshots go that no release holds."""
    parser.description = (
        "Drop snapshots that no release and no patch object needs, and what nothing names. With a rule, patch objects"
        " go as well whose snapshots do. What a release holds and the newest of each output always stay."
    )
    parser.add_argument(
        "--keep-last", type=_count, metavar="N", help="drop all but the newest N of each output, and their patches"
    )
    parser.add_argument(
        "--older-than", type=_seconds, metavar="AGE", help="drop only what is older: 30d, 12h, 90m (with their patches)"
    )


_UNITS: Final = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 on")
    return int(text)


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is no age; say 90m, 12h, 30d or 8w")
    return int(match[1]) * _UNITS[match[2]]


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Collect, and say what went."""
    rule = None
    if arguments.keep_last is not None or arguments.older_than is not None:
        before = None if arguments.older_than is None else time.time() - arguments.older_than
        rule = Rule(arguments.keep_last or 1, before)
    with closing(Store(find_store())) as store, progress("collecting") as shown:
        gone = collect(store, rule, shown)
    parts = (count(gone.snapshots, "snapshot"), count(gone.patches, "patch object"), count(gone.blobs, "blob"))
    print(f"dropped {parts[0]}, {parts[1]} and {parts[2]}, {gone.size / 1e6:.1f} MB")
    return ExitStatus.DONE
