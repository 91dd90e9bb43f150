"""A patch on top of another one: the two put together, as `katana compose` does, before it is applied.

A patch leads from the build that a process was started from.  Where that build is there by a patch only, the patch
beneath is needed: named with `--on`, or found, by its identity, beside the file that is to be applied (in the folder of
a bundle, too) or in the store at hand.  Nothing else is tried: a mirror has patches to the newest build only.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from katana_cc.cli.signed import read_signed
from katana_cc.errors import KatanaError, RefusedError
from katana_cc.patch.codec import encode, patch_id
from katana_cc.patch.model import PatchObject
from katana_cc.process.beneath import patch_beneath
from katana_cc.process.ledger import Ledger
from katana_cc.trust.policy import Policy


def add_on(parser: argparse.ArgumentParser) -> None:
    """The option."""
    parser.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="PO",
        help="the patch that made the build which this one starts from: both are put together first, as by `katana "
        "compose`; again for each one more, in their order (one beside PO is found by itself)",
    )


def put_on(
    data: bytes, po: PatchObject, path: str, on: Sequence[str], pids: Sequence[int], trust: Policy
) -> tuple[bytes, PatchObject]:
    """The patch to apply, its bytes and what they hold: `po`, or `po` put together with what lies beneath it.

    Args:
        path: the file that `po` is from.
        on: files that the user named.
        pids: processes that the user named; with others it is not looked what lies beneath.

    Raises:
        KatanaError: the patches cannot be put together, or the one beneath is not at hand.
    """
    beneath = [read_signed(p, trust)[1] for p in on]
    if not beneath and (ledger := patch_beneath(pids, po.identity.from_build_id)) is not None:
        beneath = [_found(ledger, po, path, trust)]
    if not beneath:
        return data, po
    from katana_cc.patch.compose import compose  # it reads debug information, which nothing else here does

    whole = functools.reduce(compose, (*beneath, po))
    return encode(whole), whole


def _found(ledger: Ledger, on_top: PatchObject, path: str, trust: Policy) -> PatchObject:
    for candidate in _candidates(path):
        try:
            data, po = read_signed(str(candidate), trust)
        except KatanaError:
            continue  # no patch object, or not one that is trusted
        if patch_id(data) == ledger.patch_id:
            return po
    start = ledger.from_release or ledger.from_build_id[:12]
    end = on_top.identity.to_release or on_top.identity.to_build_id[:12]
    raise RefusedError(
        f"the processes run {ledger.output} of {start} with patch {ledger.patch_id}, to the build that this one starts "
        "from, and that patch is not at hand",
        where=path,
        remedy="name its file with --on (of one that was put together, those it was made of, in their order), or apply "
        f"the patch from {start} to {end}, which takes the place of that one (`katana patches`; `katana-release "
        f"--since {start}` makes it where {start} is deployed)",
    )


def _candidates(path: str) -> Iterator[Path]:
    """Files that may be the patch beneath: beside the other, in the folders of its bundle, in the store."""
    folder = Path(path).resolve().parent
    yield from sorted(folder.glob("*.kpo"))
    if (folder.parent / "manifest.json").is_file():
        yield from sorted(folder.parent.glob("*/*.kpo"))
    from katana_cc.snapshot.place import find_store
    from katana_cc.snapshot.store import Store  # SQLite: only where something is looked for

    try:
        paths = [Path(row.path) for row in Store(find_store()).patches()]
    except KatanaError:
        return
    yield from (p for p in paths if p.is_file())
