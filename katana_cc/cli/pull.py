"""`katana pull`: take releases that were pushed to a place into this store."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from katana_cc.cli.push import tell
from katana_cc.errors import ExitStatus, StoreError
from katana_cc.release.exchange import names, pull
from katana_cc.release.places import place
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The place, and what is wanted of it."""
    parser.description = (
        "Take snapshots that `katana push` sent to a place into the store, which is made in the current folder if there"
        " is none. Each file is checked; what is here already is not fetched."
    )
    parser.add_argument("url", metavar="URL", help="the place; a web server that serves it will do")
    parser.add_argument(
        "name", nargs="*", metavar="NAME", help="a release, or a build-id that was pushed (default: all that is there)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Take, and say of each name what it took."""
    source = place(arguments.url)
    wanted = arguments.name or names(source)
    if not wanted:
        raise StoreError("nothing was pushed there", where=arguments.url, remedy="Send it with `katana push URL`.")
    try:
        folder = find_store()
    except StoreError:
        folder = Path.cwd() / ".katana"
    with closing(Store(folder, create=True)) as store:
        tell(pull(store, source, wanted), "fetched", arguments.json)
    return ExitStatus.DONE
