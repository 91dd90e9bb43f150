"""Putting a patch back that was reverted in some processes, since it could not be in another: all of them, or none.

No patch object is needed: the mapping is still there, and its ledger holds the bytes before and after of every edit.
Variables that came with the patch keep what they hold.  Where live data went back to its old layout that is not enough,
and the process is told of.

A child that was forked since is as its parent was: it is known by its mapping, which is of the same memfd.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from katana_cc.errors import KatanaError, RefusedError
from katana_cc.process.activity import Guard
from katana_cc.process.cfi import FrameTables
from katana_cc.process.commit import Commit, Outcome, run
from katana_cc.process.ledger import Ledger, MemoryEdit
from katana_cc.process.looks import Select
from katana_cc.process.members import Member
from katana_cc.process.phases import Bytes, Step
from katana_cc.process.standing import standings
from katana_cc.process.target import Target

_LOOKS: Final = 10  # a parent that has its patch again forks no more children without


@dataclass(frozen=True, slots=True)
class Reverted:
    """A process that was reverted: which patch, by which edits (none: the patch was not whole), and the inode of its
    mapping."""

    member: Member
    ledger: Ledger
    edits: tuple[MemoryEdit, ...]
    memfd: int


def put_back(reverted: Sequence[Reverted], known: Iterable[int], wait: float, select: Select | None) -> list[Member]:
    """Put the patch back into all of them, parents first; each process knows how that went.

    Args:
        known: the processes that were there before.
        select: gives the process ids once more; None: no other process belongs to it.

    Returns:
        Children that had been forked without the patch, and have it now.
    """
    for each in reverted:
        _put_back_in(each.member, each, wait)
    if select is None or not reverted:
        return []
    children: list[Member] = []
    seen = set(known)
    by_memfd = {r.memfd: r for r in reverted if r.memfd}
    for _ in range(_LOOKS):
        found = [pid for pid in select().pids if pid not in seen]
        seen.update(found)
        fresh = [child for pid in found if (child := _child(pid, by_memfd, wait)) is not None]
        if not fresh:
            break
        children += fresh
    return children


def _child(pid: int, by_memfd: dict[int, Reverted], wait: float) -> Member | None:
    try:
        with Target(pid) as target:
            inodes = {r.inode for r in target.read_map().regions}
            reverted = next((r for memfd, r in by_memfd.items() if memfd in inodes), None)
            if reverted is None or _standing(target, reverted.ledger) is not Bytes.OLD:
                return None
            child = Member(target=target)
            _put_back_in(child, reverted, wait)
            return child
    except KatanaError:
        return None


def _put_back_in(member: Member, reverted: Reverted, wait: float) -> None:
    """Put the patch back into one process."""
    try:
        with Target(member.target.pid) as target:
            _apply_again(target, reverted, wait)
        member.is_undone = True
    except Exception as error:
        if not member.target.has_gone():
            member.stuck = f"the patch stays reverted: {error.what if isinstance(error, KatanaError) else error}"


def _standing(target: Target, ledger: Ledger) -> Bytes | None:
    ledgers = [m.ledger for m in target.patches if m.ledger is not None]
    return standings(target.memory, ledgers).get(ledger.base)


def _apply_again(target: Target, reverted: Reverted, wait: float) -> None:
    mapping = next((m for m in target.patches if m.base == reverted.ledger.base), None)
    ledger = mapping.ledger if mapping is not None else None
    if ledger is None or ledger.patch_id != reverted.ledger.patch_id:
        raise RefusedError("its mapping is gone", where=target.where)
    if not reverted.edits:
        raise RefusedError("it was half applied, by a katana that was killed", where=target.where)
    if ledger.moves_data:
        raise RefusedError("live data has its old layout again", where=target.where)
    edits = []
    for edit in reversed(reverted.edits):
        again = edit.reversed()
        # A value that the program wrote since is newer than both: it stays.
        if not again.is_value or target.memory.read(again.address, len(again.expected)) == again.expected:
            edits.append(again)
    snapshot = tuple((e.address, e.expected) for e in edits)
    jumps = {e.address: e for e in edits if e.is_jump}
    guards = [Guard(r.name, r.address, r.size, r.address in jumps) for r in ledger.old if r.size]
    guards += [Guard(e.name, e.address, len(e.replacement) - 1, True) for e in jumps.values()]
    steps = Step.BEGIN_COMMIT, Step.END_COMMIT
    commit = Commit(ledger.base, ledger.state, *steps, tuple(guards), snapshot, tuple(edits))
    ledgers = [m.ledger for m in target.patches if m.ledger is not None]
    tables = FrameTables(target.memory, target.modules, ledgers)
    tables.preload(target.modules)
    run(target, commit, tables.unwinder, wait, Outcome())
