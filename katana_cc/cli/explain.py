"""`katana explain PO`: what a patch object changes, whom it touches, whether it is safe, and why."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from katana_cc.errors import ExitStatus, UsageError
from katana_cc.patch.codec import patch_id
from katana_cc.patch.files import read_patch
from katana_cc.patch.model import PatchObject
from katana_cc.patch.needs import needs_of
from katana_cc.report.explanation import explain, to_json, to_text

HELP = "what a patch object changes, and whether it is safe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("po", metavar="PO", help="a patch object (`katana patches` lists them)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--pid", type=int, metavar="PID", help="also look at this process: what is on its stacks (nothing is stopped)"
    )
    parser.add_argument("--html", metavar="FILE", help="write a page for a change-approval board")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Prints the explanation, or writes the page."""
    data, po = read_patch(arguments.po)
    if arguments.html is not None:
        _write_page(Path(arguments.html), po, data)
    looked = _look(arguments.pid, po, data) if arguments.pid is not None else None
    if arguments.json:
        answer = to_json(explain(po, data))
        if looked is not None:
            answer["forecast"] = looked[0]
        print(json.dumps(answer, indent=2))
    elif arguments.html is None:
        print(to_text(explain(po, data)), end="")
    if looked is not None and not arguments.json:
        print("\n".join(looked[1]))
    return ExitStatus.DONE


def _look(pid: int, po: PatchObject, data: bytes) -> tuple[dict[str, Any], list[str]]:
    """What is on the stacks of a process, as it runs: for a script, and for a person.  Whatever the patch needs counts
    as granted, since nothing is done.

    Raises:
        KatanaError: it could not be applied there, and why.
    """
    # What reaches into processes needs to know the CPU of this machine; an explanation does not.
    from katana_cc.process.forecast import forecast
    from katana_cc.process.plan import prepare as plan
    from katana_cc.process.target import Target
    from katana_cc.report.forecast import forecast_json, forecast_lines
    from katana_cc.report.summary import clean

    grants = [need.grant for need in needs_of(po) if need.grant is not None]
    with Target(pid) as target:
        seen = forecast(target, plan(target, po, patch_id(data), grants).guards)
    return {"pid": pid, **(forecast_json(seen) or {})}, [clean(line) for line in forecast_lines(seen)]


def _write_page(path: Path, po: PatchObject, data: bytes) -> None:
    from katana_cc.report.html import page  # jinja2 is needed for a page only

    try:
        path.write_text(page(po, data), encoding="utf-8")
    except OSError as error:
        remedy = "name a file in a folder that exists and can be written to"
        raise UsageError(f"the page cannot be written: {error.strerror}", where=str(path), remedy=remedy) from error
