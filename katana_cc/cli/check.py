"""`katana check [PO]`: verify the store, or one patch object."""

from __future__ import annotations

import argparse

from katana_cc.errors import ExitStatus

HELP = "verify the store, or one patch object"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("po", nargs="?", metavar="PO", help="a patch object; without it, the store is verified")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Prints `ok` with what was checked, or each problem on a line of its own."""
    return _store() if arguments.po is None else _patch(arguments.po)


def _patch(path: str) -> ExitStatus:
    from katana_cc.patch.checks import check_file
    from katana_cc.patch.codec import patch_id
    from katana_cc.patch.files import read_patch

    data, po = read_patch(path)
    found = check_file(path, data, po)
    for problem in found:
        print(f"{path}: {problem}")
    if found:
        return ExitStatus.INVALID_PATCH
    relocations = sum(len(s.relocations) for s in po.sections)
    print(
        f"{path}: ok: patch {patch_id(data)}, digest of {len(data)} bytes; by two readers: "
        f"{len(po.sections)} sections, {len(po.symbols)} symbols, {relocations} relocations; "
        f"{len(po.replacements)} replaced functions, "
        f"{len(po.data_edits)} data edits, {len(po.reasons)} reasons, verdict {po.verdict}"
    )
    return ExitStatus.DONE


def _store() -> ExitStatus:
    from katana_cc.snapshot.store import find_store
    from katana_cc.snapshot.verify import verify_store

    path = find_store()
    found = verify_store(path)
    for problem in found:
        print(problem)
    if found:
        return ExitStatus.STORE
    print(f"{path}: ok")
    return ExitStatus.DONE
