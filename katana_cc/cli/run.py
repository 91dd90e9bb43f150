"""`katana run --patch PO PROGRAM [ARGUMENT...]`: start a program with patches in it, from before its `main`."""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from typing import Final

from katana_cc.cli.grants import add_grants, grants_of
from katana_cc.cli.selection import seconds
from katana_cc.cli.signed import add_trust, policy_of, read_signed
from katana_cc.errors import ExitStatus, KatanaError, TargetError, UsageError
from katana_cc.patch.codec import patch_id
from katana_cc.patch.model import PatchObject
from katana_cc.patch.needs import Grant, Option, needs_of
from katana_cc.process.apply import apply_patch
from katana_cc.process.launch import become, launch
from katana_cc.process.permission import refuse_unless_ready
from katana_cc.process.target import Target
from katana_cc.report.summary import edited

_PROGRAM: Final = "katana run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--patch", action="append", default=[], metavar="PO", help="a patch object; may be repeated")
    parser.add_argument(
        "--or-unpatched", action="store_true", help="if a patch cannot be applied, say so and run the program without"
    )
    parser.add_argument("--wait", type=seconds, default=5.0, metavar="SECONDS", help="for a safe moment (default 5)")
    add_grants(parser)
    add_trust(parser)
    parser.add_argument("program", metavar="PROGRAM", help="what to start; it is looked for on PATH")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="its arguments")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Becomes the program; returns only by an error."""
    if not arguments.patch:
        raise UsageError("say --patch PO, once for each patch", remedy="`katana patches` lists them.")
    granted = grants_of(arguments)
    try:
        trust = policy_of(arguments)
        read = [read_signed(word, trust) for word in arguments.patch]
        # Hooks are for a process that has state already; the new build, started, runs none either.
        patches = [(patch_id(data), replace(po, hooks=())) for data, po in read]
        for _, po in patches:
            granted += _met_at_the_start(po)
            refuse_unless_ready(po, granted)
    except KatanaError as error:
        if not arguments.or_unpatched:
            raise
        _say_unpatched(error)
        patches = []
    program = shutil.which(arguments.program)
    if program is None:
        raise TargetError("there is no such program, or it may not be executed", where=arguments.program)

    def patcher(pid: int) -> None:
        for identity, po in patches:
            if _is_built_in(pid, po):
                print(f"{_PROGRAM}: {po.identity.output} is the build that the patch leads to", file=sys.stderr)
                continue
            (report,) = apply_patch(po, identity, [pid], wait=arguments.wait, granted=granted)
            if report.commit is not None:
                commit = report.commit
                said = edited(len(report.plan.ledger.edits), commit.threads, commit.pause_us)
                print(f"{_PROGRAM}: pid {pid} ({report.name}): {report.outcome}: {said}", file=sys.stderr)

    def tell(error: KatanaError) -> int:
        if arguments.or_unpatched:
            _say_unpatched(error)
            return 0
        print(f"{_PROGRAM}: not started: {error}", file=sys.stderr)
        return int(error.status)

    words = [arguments.program, *arguments.arguments]
    if not patches:
        become(program, words)
    launch(program, words, patcher, tell)


def _met_at_the_start(po: PatchObject) -> list[Grant]:
    """What needs no decision here: no function of the program is active before it begins."""
    return [n.grant for n in needs_of(po) if n.grant is not None and n.grant.option is Option.ALLOW_ACTIVE]


def _say_unpatched(error: KatanaError) -> None:
    print(f"{_PROGRAM}: the program runs without the patch: {error}", file=sys.stderr)


def _is_built_in(pid: int, po: PatchObject) -> bool:
    """Whether the process runs the very build that a patch leads to."""
    with Target(pid) as target:
        found = {module.build_id for module in target.modules}
    return po.identity.to_build_id in found and po.identity.from_build_id not in found
