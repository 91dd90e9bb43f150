"""The revert of one process: prepared while it runs, then done in a short stop.

What is written is exactly what the ledger recorded, but for a value that the program has written to since, which is
newer than both and stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from katana_cc.errors import RefusedError
from katana_cc.outcomes import ProcessOutcome
from katana_cc.patch.needs import Option
from katana_cc.process.carry import Carry
from katana_cc.process.cfi import FrameTables
from katana_cc.process.commit import Commit, CommitReport, Outcome, run
from katana_cc.process.follow import back
from katana_cc.process.handover import Handover
from katana_cc.process.hooks import DEFAULT_TIMEOUT, HookRun
from katana_cc.process.inforce import known_in_force, ledgers_in_force, torn_with
from katana_cc.process.ledger import Ledger, MemoryEdit
from katana_cc.process.moves import DISCARD, kinds_back, refuse_unknown
from katana_cc.process.objections import half_moved
from katana_cc.process.phases import Bytes, Step
from katana_cc.process.preview import preview, wanted
from katana_cc.process.succession import exchanged, guards_of, standing_bytes
from katana_cc.process.supply import (
    NOTHING_LEFT,
    Leftover,
    clear_up,
    explaining,
    give_back,
    objects_of,
    stock,
    supplied,
)
from katana_cc.process.switching import Coroutines
from katana_cc.process.target import Target
from katana_cc.telling import TellWait, silent


@dataclass(frozen=True, slots=True)
class RevertReport:
    """What came of one process.  With nothing to revert, `others` are the PO-IDs of what is applied there instead of
    the patch that was named.  `kept` are variables that had been given their new initial value and were written to
    since: they were left alone.  `leftover` is what became of the blocks of objects on the heap; `hooks` are those of
    the user's that ran: one after the revert may have failed.  `what` and `remedy` say why the process was left alone,
    and what to do about it."""

    pid: int
    name: str
    outcome: ProcessOutcome
    ledger: Ledger | None
    commit: CommitReport | None
    others: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    leftover: Leftover = NOTHING_LEFT
    hooks: tuple[HookRun, ...] = ()
    what: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person decided of variables that move back, by name: `followed`, of which every word that leads into them
    is a pointer; `discarded`, of which the values may be lost that only the new layout has room for (`discards_all`: of
    any).  `complete` are types of which pointers lead to all objects on the heap."""

    followed: Collection[str] = ()
    discarded: Collection[str] = ()
    complete: Collection[str] = ()
    discards_all: bool = False


NO_WISHES: Final = Wishes()


def revert_one(
    target: Target,
    patch_id: str,
    wait: float,
    wishes: Wishes = NO_WISHES,
    hook_timeout: float = DEFAULT_TIMEOUT,
    back_to: Ledger | None = None,
    coroutines: Coroutines = Coroutines.FIND_OUT,
) -> RevertReport:
    """Revert in one process: to the build it was started from, or to the patch whose place this one has taken."""
    ready = prepared(target, patch_id, wait, wishes, hook_timeout, back_to, coroutines=coroutines)
    if ready is None:
        carried = tuple(sorted(x.patch_id for x in known_in_force(target)))
        return RevertReport(target.pid, target.name, ProcessOutcome.NOTHING, None, None, carried)
    return ready.run(Outcome())


def prepared(
    target: Target,
    patch_id: str,
    wait: float,
    wishes: Wishes,
    hook_timeout: float,
    back_to: Ledger | None = None,
    tell: TellWait = silent,
    coroutines: Coroutines = Coroutines.FIND_OUT,
) -> Ready | None:
    """What reverts it, with all that can be known before; None when nothing is to be reverted."""
    in_force = ledgers_in_force(target, patch_id)
    refuse_several({ledger.patch_id: [(target, ledger)] for ledger in in_force})
    ledger = in_force[0] if in_force else None
    if ledger is None:
        return None
    others = torn_with(target, ledger)
    if others and any(x.moves_data for x in (ledger, *others)):
        raise RefusedError(
            f"patch {ledger.patch_id} was taking the place of another when a katana was killed, and live data has "
            "another layout with it",
            where=target.where,
            remedy="finish that first: katana apply one of the two patch objects; then revert",
        )
    there = {e: target.memory.read(e.address, len(e.replacement)) for e in ledger.edits}
    # A value that the program wrote since is newer than both: it stays.
    own = [e for e in ledger.edits if not e.is_value or there[e] == e.replacement]
    kept = tuple(e.name for e in ledger.edits if e.is_value and there[e] not in (e.replacement, e.expected))
    snapshot = tuple((e.address, there[e]) for e in own)
    guards = tuple(guards_of((ledger, *others)))
    edits = tuple(e.reversed() for e in reversed(own))
    if others or back_to is not None:
        given = {e.address: e.replacement for e in back_to.edits if e.is_value} if back_to is not None else {}
        edits = (
            *exchanged(target.memory, (ledger, *others), back_to.edits if back_to is not None else ()),
            *(replace(e, replacement=given.get(e.address, e.replacement)) for e in edits if e.is_value),
        )
        snapshot = tuple(standing_bytes(target.memory, (ledger, *others)))
    is_moved = ledger.moves_data and (back_to is None or not back_to.moves_data)
    carry = carry_back(target, ledger, edits, wishes) if is_moved else None
    steps = Step.BEGIN_REVERT, Step.END_REVERT
    kinds = {k.name: k.made for k in kinds_back(ledger.kinds)}
    is_made = any(kinds.values()) or any(made.back for m in ledger.moves for made in m.made)
    handover = Handover(target, ledger, kinds, hook_timeout) if is_made and is_moved else None
    commit = Commit(ledger.base, ledger.state, *steps, guards, snapshot, edits, carry=carry, handover=handover)
    leaving = tuple((x.base, x.state) for x in others)
    if back_to is not None:
        leaving = (*leaving, (ledger.base, ledger.state))
        steps = Step.BEGIN_COMMIT, Step.END_COMMIT
        commit = replace(commit, ledger_base=back_to.base, phase=back_to.state, begin=steps[0], end=steps[1])
    commit = replace(commit, leaving=leaving, coroutines=coroutines)
    ledgers = [m.ledger for m in target.patches if m.ledger is not None]
    tables = FrameTables(target.memory, target.modules, ledgers)
    tables.preload(target.modules)
    is_torn = bool(others) or any(there[e] != e.replacement for e in ledger.fixed)
    return Ready(target, ledger, commit, carry, tables, kept, wait, tell, target.memfd_at(ledger.base), is_torn)


def refuse_several(found: Mapping[str, Sequence[tuple[Target, Ledger]]]) -> None:
    """Raises RefusedError that lists the patches, when more than one is meant."""
    if len(found) <= 1:
        return
    lines = []
    for patch_id, carriers in sorted(found.items()):
        ledger = carriers[0][1]
        start = ledger.from_release or ledger.from_build_id[:12]
        end = ledger.to_release or ledger.to_build_id[:12]
        pids = ", ".join(str(target.pid) for target, _ in carriers)
        lines.append(f"\n    {patch_id}  {ledger.output}: {start} -> {end}  (pid {pids})")
    raise RefusedError(
        f"{len(found)} different patches are meant, and nothing was reverted:{''.join(lines)}",
        remedy="name the one to take out: add its PO-ID (the beginning is enough), or the file of the patch object",
    )


def carry_back(target: Target, ledger: Ledger, edits: Iterable[MemoryEdit], wishes: Wishes) -> Carry | None:
    """The variables that move back, with a look at objects on the heap where the patch knows of some that may explain
    what is in the way; None when none does.

    Raises:
        RefusedError: a wish names one that does not, or a katana died while it moved them.
    """
    carry = _carry(target, ledger, edits, wishes)
    if carry is None or carry.objects is not None or not ledger.kinds:
        return carry
    if not any(s.address is not None and not s.is_passing for s in preview(target, carry).strays):
        return carry
    return replace(carry, objects=explaining(target, kinds_back(ledger.kinds)))


def _carry(target: Target, ledger: Ledger, edits: Iterable[MemoryEdit], wishes: Wishes) -> Carry | None:
    known = {m.name for m in ledger.moves if not m.stays} | {k.name for k in ledger.kinds if not k.stays}
    refuse_unknown(wishes.followed, known, target.where)
    refuse_unknown(wishes.discarded, known, target.where, DISCARD)
    types = {k.name for k in ledger.kinds if not k.stays}
    refuse_unknown(wishes.complete, types, target.where, Option.ONLY_REACHED)
    if not ledger.moves and not ledger.kinds:
        return None
    if ledger.found_bytes(target.memory) is Bytes.TORN:
        raise half_moved(target.where, ledger)
    own = ledger.base, ledger.base + ledger.size
    module = next(
        ((m.start, m.end) for m in target.modules if m.build_id == ledger.from_build_id and m.bias == ledger.bias),
        (0, 0),
    )
    discarded, complete = (known, known) if wishes.discards_all else (wishes.discarded, wishes.complete)
    return Carry(
        back(ledger.moves, wishes.followed, discarded),
        tuple(edits),
        own,
        module,
        target.where,
        "revert it with",
        objects_of(target, kinds_back(ledger.kinds, wishes.followed, discarded, complete)),
    )


@dataclass(frozen=True, slots=True)
class Ready:
    """A revert of one process that is prepared; `is_torn`: its patch is half applied."""

    target: Target
    ledger: Ledger
    commit: Commit
    carry: Carry | None
    tables: FrameTables
    kept: tuple[str, ...]
    wait: float
    tell: TellWait
    memfd: int
    is_torn: bool

    def try_out(self) -> None:
        """Find out whether there is a moment when it may be done, before any process is reverted."""
        trial = replace(self.commit, carry=None, handover=None, is_trial=True)
        run(self.target, trial, self.tables.unwinder, self.wait, Outcome(), self.tell)

    def run(self, outcome: Outcome) -> RevertReport:
        """Do it; `outcome` knows whether it was done, whatever fails."""
        target, wait = self.target, self.wait
        objects = self.carry.objects if self.carry is not None else None
        try:
            if self.carry is not None and objects is not None:
                stock(objects, wanted(target, self.carry), wait)
            supplied(objects, wait, lambda: run(target, self.commit, self.tables.unwinder, wait, outcome, self.tell))
        except BaseException:
            if outcome.report is not None:
                clear_up(objects, outcome.report, wait)
            else:
                give_back(objects, wait)
            raise
        assert outcome.report is not None
        return self.report(outcome.report, clear_up(objects, outcome.report, wait))

    def report(self, report: CommitReport, leftover: Leftover) -> RevertReport:
        """What came of it."""
        head = self.target.pid, self.target.name, ProcessOutcome.REVERTED, self.ledger, report
        return RevertReport(*head, kept=self.kept, leftover=leftover)
