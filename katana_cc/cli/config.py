"""`katana config`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from katana_cc.errors import ExitStatus, UsageError
from katana_cc.settings import SETTINGS, resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `katana config`."""
    names = ", ".join(setting.name for setting in SETTINGS)
    parser.description = (
        "Show the settings and what each comes from: `katana -c NAME=VALUE`, the environment, katana.conf in this "
        "folder or above it, katana/katana.conf in the user's configuration folder, or the default; the first that "
        "says something counts."
    )
    parser.add_argument("--show", action="store_true", help="show all (the default)")
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"print one value only: {names}")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Print the settings."""
    values, unknown = resolve(Path.cwd(), os.environ)
    for path, name in unknown:
        print(f"katana config: {path}: there is no setting {name!r}", file=sys.stderr)
    if arguments.name is not None:
        chosen = [value for value in values if value.setting.name == arguments.name]
        if not chosen:
            known = ", ".join(setting.name for setting in SETTINGS)
            raise UsageError(f"there is no setting {arguments.name!r}", remedy=f"There are {known}.")
        print(chosen[0].value)
        return ExitStatus.DONE
    if arguments.json:
        rows = [
            {"name": v.setting.name, "variable": v.setting.variable, "value": v.value, "origin": v.origin,
             "meaning": v.setting.meaning}
            for v in values
        ]  # fmt: skip
        print(json.dumps(rows, indent=2))
        return ExitStatus.DONE
    for value in values:
        print(f"{value.setting.name:8} = {value.value or '-':24} {value.setting.variable:16} ({value.origin})")
    return ExitStatus.DONE
