"""`katana explain PO`: what a patch object changes, whom it touches, whether it is safe, and why."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from katana_cc.errors import ExitStatus, UsageError
from katana_cc.patch.files import read_patch
from katana_cc.patch.model import PatchObject
from katana_cc.report.explanation import explain, to_json, to_text

HELP = "what a patch object changes, and whether it is safe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("po", metavar="PO", help="a patch object (`katana patches` lists them)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page for a change-approval board")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Prints the explanation, or writes the page."""
    data, po = read_patch(arguments.po)
    if arguments.html is not None:
        _write_page(Path(arguments.html), po, data)
    if arguments.json:
        print(json.dumps(to_json(explain(po, data)), indent=2))
    elif arguments.html is None:
        print(to_text(explain(po, data)), end="")
    return ExitStatus.DONE


def _write_page(path: Path, po: PatchObject, data: bytes) -> None:
    from katana_cc.report.html import page  # jinja2 is needed for a page only

    try:
        path.write_text(page(po, data), encoding="utf-8")
    except OSError as error:
        remedy = "name a file in a folder that exists and can be written to"
        raise UsageError(f"the page cannot be written: {error.strerror}", where=str(path), remedy=remedy) from error
