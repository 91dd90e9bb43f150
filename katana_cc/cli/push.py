"""`katana push`: send releases to a place that other stores pull from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict

from katana_cc.cli.names import find_snapshots
from katana_cc.errors import ExitStatus, UsageError
from katana_cc.release.exchange import Transfer, push
from katana_cc.release.places import place
from katana_cc.report.summary import count
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The place, and what goes there."""
    parser.description = (
        "Send snapshots to a place that `katana pull` reads: a folder, or whatever fsspec writes to. What is there is"
        " not sent again."
    )
    parser.add_argument("url", metavar="URL", help="the place")
    parser.add_argument("name", nargs="*", metavar="NAME", help="a release, or one build (default: all releases)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Send, and say of each name what it took."""
    with closing(Store(find_store())) as store:
        found = [find_snapshots(store, name) for name in arguments.name]
        releases = [release for release, _ in found if release] if found else store.releases()
        builds = [row for release, rows in found if not release for row in rows]
        if not releases and not builds:
            raise UsageError(
                "there is no release to send", remedy="Name one with `katana-release NAME`, or say a build."
            )
        tell(push(store, place(arguments.url), releases, builds), "sent", arguments.json)
    return ExitStatus.DONE


def tell(transfers: Iterable[Transfer], verb: str, as_json: bool) -> None:
    """Print what came of each name."""
    if as_json:
        print(json.dumps({"names": [asdict(transfer) for transfer in transfers]}, indent=2))
        return
    for done in transfers:
        files = count(done.files, "file")
        print(
            f"{done.name}: {count(done.snapshots, 'snapshot')}: {files} {verb}, {done.size / 1e6:.1f} MB;"
            f" {done.present} there already"
        )
