"""`katana check [PO | BUNDLE]`: verify the store, one patch object, or a bundle of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from katana_cc.cli.progress import progress
from katana_cc.cli.signed import add_trust, policy_of, read_signed
from katana_cc.errors import ExitStatus
from katana_cc.patch.files import is_folder
from katana_cc.report.summary import clean
from katana_cc.trust.policy import Policy

HELP = "verify the store, one patch object, or a bundle of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "po",
        nargs="?",
        metavar="PO",
        help="a patch object, or the folder of a bundle; without it, the store is verified",
    )
    add_trust(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Prints `ok` with what was checked, or each problem on a line of its own."""
    if arguments.po is None:
        return _store(arguments.json)
    if is_folder(arguments.po):
        return _bundle(Path(arguments.po), policy_of(arguments), arguments.json)
    return _patch(arguments.po, policy_of(arguments), arguments.json)


def _bundle(folder: Path, trust: Policy, as_json: bool) -> ExitStatus:
    from katana_cc.release.checking import check_bundle

    with progress("checking", quiet=as_json) as shown:
        found = check_bundle(folder, trust, shown)
    if as_json:
        print(json.dumps({"path": str(folder), "ok": not found, "problems": found}, indent=2))
    else:
        for problem in found:
            print(f"{folder}: {clean(problem)}")
        if not found:
            print(f"{folder}: ok" + (", signed" if trust.keys else ""))
    return ExitStatus.INVALID_PATCH if found else ExitStatus.DONE


def _patch(path: str, trust: Policy, as_json: bool) -> ExitStatus:
    from katana_cc.patch.checks import check_file
    from katana_cc.patch.codec import patch_id
    from katana_cc.release.proving import check_equivalence

    data, po = read_signed(path, trust)
    different, unchecked = list[str](), "the patch object is not well-formed"
    with progress("checking", quiet=as_json) as shown:
        shown(0, 2, "by two readers")
        found = check_file(path, data, po)
        if not found:
            shown(1, 2, "against the new build")
            different, unchecked = check_equivalence(po)
    found += different
    status = ExitStatus.INVALID_PATCH if found else ExitStatus.DONE
    if as_json:
        told = {"checked": not unchecked, "why_not": unchecked}
        values = {"path": path, "patch": patch_id(data), "ok": not found, "problems": found, "equivalence": told}
        print(json.dumps(values, indent=2))
        return status
    for problem in found:
        print(f"{path}: {problem}")
    if found:
        return status
    relocations = sum(len(s.relocations) for s in po.sections)
    print(
        f"{path}: ok: patch {patch_id(data)}, digest of {len(data)} bytes; by two readers: "
        f"{len(po.sections)} sections, {len(po.symbols)} symbols, {relocations} relocations; "
        f"{len(po.replacements)} replaced functions, "
        f"{len(po.data_edits)} data edits, {len(po.reasons)} reasons, verdict {po.verdict}"
    )
    if unchecked:
        print(f"{path}: equivalence not checked: {unchecked}")
    else:
        print(f"{path}: equivalent: what it carries, relocated, is what the new build has")
    return status


def _store(as_json: bool) -> ExitStatus:
    from katana_cc.snapshot.place import find_store
    from katana_cc.snapshot.verify import verify_store

    path = find_store()
    with progress("checking", quiet=as_json) as shown:
        found = verify_store(path, shown)
    if as_json:
        print(json.dumps({"path": str(path), "ok": not found, "problems": [str(p) for p in found]}, indent=2))
    else:
        for problem in found or [f"{path}: ok"]:
            print(problem)
    return ExitStatus.STORE if found else ExitStatus.DONE
