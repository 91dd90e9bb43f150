"""`katana gc`."""

from __future__ import annotations

import argparse

from katana_cc.errors import ExitStatus
from katana_cc.report.summary import count
from katana_cc.snapshot.garbage import collect
from katana_cc.snapshot.store import Store, find_store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options: what a release, a patch or a present output needs always stays."""
    parser.description = "Drop snapshots that no release and no patch object needs, and blobs that nothing names."


def run(_arguments: argparse.Namespace) -> ExitStatus:
    """Collect, and say what went."""
    gone = collect(Store(find_store()))
    print(f"dropped {count(gone.snapshots, 'snapshot')} and {count(gone.blobs, 'blob')}, {gone.size / 1e6:.1f} MB")
    return ExitStatus.DONE
