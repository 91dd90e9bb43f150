"""`katana check [PO]`: verify the store, or one patch object."""

from __future__ import annotations

import argparse
import json

from katana_cc.errors import ExitStatus

HELP = "verify the store, or one patch object"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("po", nargs="?", metavar="PO", help="a patch object; without it, the store is verified")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Prints `ok` with what was checked, or each problem on a line of its own."""
    return _store(arguments.json) if arguments.po is None else _patch(arguments.po, arguments.json)


def _patch(path: str, as_json: bool) -> ExitStatus:
    from katana_cc.patch.checks import check_file
    from katana_cc.patch.codec import patch_id
    from katana_cc.patch.files import read_patch
    from katana_cc.release.proving import check_equivalence

    data, po = read_patch(path)
    found = check_file(path, data, po)
    different, unchecked = ([], "the patch object is not well-formed") if found else check_equivalence(po)
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
    from katana_cc.snapshot.store import find_store
    from katana_cc.snapshot.verify import verify_store

    path = find_store()
    found = verify_store(path)
    if as_json:
        print(json.dumps({"path": str(path), "ok": not found, "problems": [str(p) for p in found]}, indent=2))
    else:
        for problem in found or [f"{path}: ok"]:
            print(problem)
    return ExitStatus.STORE if found else ExitStatus.DONE
