"""`katana compose A B`: two patches, the second of which starts where the first one leads, put together to one."""

from __future__ import annotations

import argparse
import functools
import json
import re
from pathlib import Path

from katana_cc.cli.signed import add_trust, policy_of, read_signed
from katana_cc.errors import ExitStatus, UsageError
from katana_cc.patch.codec import encode, patch_id
from katana_cc.patch.compose import compose
from katana_cc.patch.model import PatchObject
from katana_cc.report.summary import from_name, one_line

HELP = "two patches that follow each other, put together to one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("first", metavar="A", help="a patch object, from v1 to v2")
    parser.add_argument("second", metavar="B", nargs="+", help="one from v2 to v3; further ones follow on from there")
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write (else FROM..TO.kpo, in this folder)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Writes the patch object, and says what it is."""
    trust = policy_of(arguments)
    po = functools.reduce(compose, [read_signed(p, trust)[1] for p in (arguments.first, *arguments.second)])
    data = encode(po)
    path = Path(arguments.output or _name(po))
    _write(path, data)
    if arguments.json:
        values = {"path": str(path), "patch": patch_id(data), "size": len(data), "verdict": po.verdict.value}
        print(json.dumps(values, indent=2))
    else:
        print(one_line(po, str(path)))
    return ExitStatus.DONE


def _name(po: PatchObject) -> str:
    """As patches are called in a store (`katana_cc.release.emit`)."""
    return re.sub(r"[^\w.+-]+", "_", f"{from_name(po.identity)}..{po.identity.to_build_id[:12]}") + ".kpo"


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no file can have that name"
        remedy = "name a file in a folder that exists and can be written to (-o FILE)"
        raise UsageError(f"the patch object cannot be written: {why}", where=repr(str(path)), remedy=remedy) from error
