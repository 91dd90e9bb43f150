"""Taking a patch out of processes: the exact old bytes come back.

The mapping stays: pointers to new functions, literals and variables may have escaped into the heap.  Applying the same
patch again uses it again; `giving_back` takes it out when nothing leads there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from katana_cc.errors import KatanaError, LaterKatanaError, RefusedError
from katana_cc.outcomes import OfProcess, ProcessOutcome
from katana_cc.patch.model import HookKind
from katana_cc.patch.needs import Option
from katana_cc.process.carry import Carry
from katana_cc.process.cfi import FrameTables
from katana_cc.process.commit import Commit, CommitReport, Outcome, run
from katana_cc.process.finishing import finish_all, refuse_later
from katana_cc.process.follow import back
from katana_cc.process.handover import Handover
from katana_cc.process.hooks import DEFAULT_TIMEOUT, HookRun, refuse_failed, run_hooks, run_hooks_after
from katana_cc.process.inforce import known_in_force, ledgers_in_force, torn_with
from katana_cc.process.ledger import Ledger, MemoryEdit
from katana_cc.process.looks import Looks, Select
from katana_cc.process.members import Member, NotKnownError, failed, in_each, open_all
from katana_cc.process.moves import DISCARD, kinds_back, refuse_unknown
from katana_cc.process.objections import half_moved
from katana_cc.process.phases import Bytes, Step
from katana_cc.process.preview import preview, refuse_early, wanted
from katana_cc.process.putback import Reverted, put_back
from katana_cc.process.standing import standings
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


def revert_patch(
    pids: Iterable[int],
    patch_id: str = "",
    *,
    wait: float = 5.0,
    must_match: bool = True,
    wishes: Wishes = NO_WISHES,
    hook_timeout: float = DEFAULT_TIMEOUT,
    select: Select | None = None,
    tell: TellWait = silent,
    coroutines: Coroutines = Coroutines.FIND_OUT,
) -> tuple[RevertReport, ...]:
    """Revert a patch (any beginning of its identity; empty: the only one there) in every process, or in none.

        every process:  open                  which patch is meant: one, the same in all
        every process:  look at variables     those that move back: whether they may, as things are now
        every process:  hooks                 what the user wants to run before
        every process:  trial                 a short stop each: whether there is a moment when no thread is inside
        every process:  revert                a short stop each
        every process:  hooks                 what the user wants to run after
        on failure:     put the patch back where it was taken out (`putback`)

    With several patches, taking all of them out is never guessed.  Without `must_match`, processes that end meanwhile
    are left out, and those that a later katana patched, where that hides whether they carry the patch that is named.
    `select` gives the pids once more, to find children that were forked before their parent's revert.  `tell` hears
    what is waited for.

    Raises:
        KatanaError: by its kind why it was not done.
    """
    works: list[_Work] = []
    skipped: list[OfProcess] = []
    looks = Looks(pids, select, wait, "processes with the patch")
    how = functools.partial(_prepared, wait=wait, hook_timeout=hook_timeout, tell=tell, coroutines=coroutines)
    meant = patch_id
    try:
        try:
            for todo in looks:
                is_named = must_match and looks.is_first
                finish_all(todo, wait, "" if is_named else meant)
                known = len(skipped)
                fresh = _open_all(todo, meant, skipped, wait, is_named=is_named)
                works += fresh
                if looks.is_first:
                    meant = _the_one(fresh, patch_id)
                # From here on it is fixed which patch is meant.
                each = functools.partial(in_each, fresh, may_end=not is_named)
                each(lambda work: _look(work, wishes))
                each(lambda work: _run_before(work, wait, hook_timeout))
                each(functools.partial(_make_ready, patch_id=meant, wishes=wishes, how=how))
                if len([w for w in fresh if w.before is None]) > 1:
                    each(lambda work: _try(work, wait, tell))
                # From here on only bytes are exchanged: while one process is done, others run the new code.
                each(_revert)
                looks.done(fresh, sum(p.outcome is ProcessOutcome.SKIPPED for p in skipped[known:]))
        except BaseException as error:
            done = [w.reverted() for w in works if w.report is not None]
            # Interrupted behind the last write, with nothing more to be looked for.
            is_whole = select is None and not isinstance(error, KatanaError)
            is_whole = is_whole and len(done) == sum(w.before is None and not w.is_out for w in works)
            children = [] if is_whole else put_back(done, (w.target.pid for w in works), wait, select)
            told = {p.pid: p for p in (*skipped, *(m.told() for m in (*works, *children)))}
            told |= {p.pid: p for p in getattr(error, "processes", ())}
            # Of many processes most carry nothing.
            of_these = [p for p in told.values() if must_match or p.outcome is not ProcessOutcome.NOTHING]
            raised = failed(error, of_these)
            if raised is error:
                raise
            raise raised from error
        # From here on it is out, whatever the hooks say.
        told_of = [w for w in works if not w.is_out and (must_match or w.before is None)]
        reports = [_report(work, wait, hook_timeout) for work in told_of]
        skipped += [work.told() for work in works if work.is_out]
        return *reports, *(
            RevertReport(p.pid, p.name, p.outcome, None, None, what=p.what, remedy=p.remedy) for p in skipped
        )
    finally:
        for work in works:
            work.target.close()


@dataclass(slots=True, kw_only=True)
class _Work(Member):
    """One process under way.  `ledgers` are those of the patch that is meant; none: it does not carry it."""

    ledgers: tuple[Ledger, ...]
    others: tuple[str, ...]
    ran: tuple[HookRun, ...] = ()
    ready: _Ready | None = None
    report: RevertReport | None = None

    def reverted(self) -> Reverted:
        """What is needed to put the patch back."""
        assert self.ready is not None
        is_whole = not self.ready.is_torn
        edits = self.ready.commit.edits if is_whole else ()
        return Reverted(self, self.ready.ledger, edits, self.ready.memfd)

    def told(self) -> OfProcess:
        """What came of it, where not all could be done."""
        if self.report is not None and not (self.is_undone or self.stuck or self.is_out):
            return OfProcess(self.target.pid, self.target.name, ProcessOutcome.REVERTED)
        return Member.told(self)


def _open_all(
    pids: Iterable[int], patch_id: str, skipped: list[OfProcess], wait: float, *, is_named: bool
) -> list[_Work]:
    """Find the patch in all of them, so that of each is told what is in the way.

    Args:
        skipped: gets those that have ended, and those of which it is not known; of processes that were named none may.
    """
    works: list[_Work] = []

    def look(target: Target) -> _Work:
        try:
            refuse_later(target)
            in_force = tuple(ledgers_in_force(target, patch_id))
        except LaterKatanaError as error:
            if not is_named:
                _pass_over(target, patch_id, error)
            raise
        if in_force or is_named:
            target.claim(wait)
            target.refuse_if_traced()
            target.refuse_if_frozen()
            in_force = tuple(ledgers_in_force(target, patch_id))  # another katana may have changed it meanwhile
        before = None if in_force else ProcessOutcome.NOTHING
        others = () if in_force else tuple(sorted(x.patch_id for x in known_in_force(target)))
        return _Work(target=target, before=before, ledgers=in_force, others=others)

    open_all(pids, look, works, skipped, is_named=is_named)
    return works


def _pass_over(target: Target, patch_id: str, error: LaterKatanaError) -> None:
    """Raises NotKnownError where nothing tells that a process carries the patch that is named; else the error says how
    to go on."""
    if not patch_id:
        error.remedy += "; or name the patch to take out (PO-ID) of the others"
    elif not any(x.patch_id.startswith(patch_id.lower()) for x in known_in_force(target)):
        raise NotKnownError(error.what, where=error.where, remedy=error.remedy)


def _the_one(works: Iterable[_Work], patch_id: str) -> str:
    """The patch that is meant; raises RefusedError that lists them, when there are several."""
    found: dict[str, list[tuple[Target, Ledger]]] = {}
    for work in works:
        for ledger in work.ledgers:
            found.setdefault(ledger.patch_id, []).append((work.target, ledger))
    _refuse_several(found)
    return next(iter(found), patch_id)


def _look(work: _Work, wishes: Wishes) -> None:
    for ledger in work.ledgers:
        carry = _explained(work.target, ledger, _carry(work.target, ledger, ledger.edits, wishes))
        if carry is not None:
            refuse_early(work.target, carry)


def _run_before(work: _Work, wait: float, timeout: float) -> None:
    for ledger in work.ledgers:
        every = [x.ledger for x in work.target.patches if x.ledger is not None]
        if standings(work.target.memory, every).get(ledger.base) is Bytes.NEW:
            work.ran = run_hooks(work.target, ledger, HookKind.BEFORE_REVERT, wait, timeout)
            refuse_failed(work.target, work.ran, "nothing was reverted; the patch stays")


def _make_ready(work: _Work, patch_id: str, wishes: Wishes, how: Callable[..., _Ready | None]) -> None:
    work.ready = how(work.target, patch_id, wishes=wishes)
    if work.ready is None:  # somebody else was quicker
        work.before = ProcessOutcome.NOTHING


def _try(work: _Work, wait: float, tell: TellWait) -> None:
    """Find out whether there is a moment when it may be reverted, before the first process is."""
    assert work.ready is not None
    trial = replace(work.ready.commit, carry=None, handover=None, is_trial=True)
    run(work.target, trial, work.ready.tables.unwinder, wait, Outcome(), tell)


def _revert(work: _Work) -> None:
    assert work.ready is not None
    outcome = Outcome()
    try:
        work.report = work.ready.run(outcome)
    except BaseException:
        if outcome.report is not None:  # whatever failed, it did so behind the last write
            work.report = work.ready.report(outcome.report, NOTHING_LEFT)
        raise


def _report(work: _Work, wait: float, timeout: float) -> RevertReport:
    if work.report is None:
        head = work.target.pid, work.target.name, ProcessOutcome.NOTHING
        return RevertReport(*head, None, None, work.others)
    return replace(work.report, hooks=work.ran + _ran_after(work.target, work.report, wait, timeout))


def _ran_after(target: Target, report: RevertReport, wait: float, timeout: float) -> tuple[HookRun, ...]:
    if report.ledger is None:
        return ()
    return run_hooks_after(target, report.ledger, HookKind.AFTER_REVERT, wait, timeout)


def _refuse_several(found: Mapping[str, Sequence[tuple[Target, Ledger]]]) -> None:
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


def _carry(target: Target, ledger: Ledger, edits: Iterable[MemoryEdit], wishes: Wishes) -> Carry | None:
    """The variables that move back; None when none does.

    Raises:
        RefusedError: a wish names one that does not, or a katana died while it moved them.
    """
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


def _explained(target: Target, ledger: Ledger, carry: Carry | None) -> Carry | None:
    """The same with a look at objects on the heap, where one may explain a word that is in the way."""
    if carry is None or carry.objects is not None or not ledger.kinds:
        return carry
    if not any(s.address is not None and not s.is_passing for s in preview(target, carry).strays):
        return carry
    return replace(carry, objects=explaining(target, kinds_back(ledger.kinds)))


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
    ready = _prepared(target, patch_id, wait, wishes, hook_timeout, back_to, coroutines=coroutines)
    if ready is None:
        carried = tuple(sorted(x.patch_id for x in known_in_force(target)))
        return RevertReport(target.pid, target.name, ProcessOutcome.NOTHING, None, None, carried)
    return ready.run(Outcome())


def _prepared(
    target: Target,
    patch_id: str,
    wait: float,
    wishes: Wishes,
    hook_timeout: float,
    back_to: Ledger | None = None,
    tell: TellWait = silent,
    coroutines: Coroutines = Coroutines.FIND_OUT,
) -> _Ready | None:
    """What reverts it, with all that can be known before; None when nothing is to be reverted."""
    in_force = ledgers_in_force(target, patch_id)
    _refuse_several({ledger.patch_id: [(target, ledger)] for ledger in in_force})
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
    carry = _explained(target, ledger, _carry(target, ledger, edits, wishes)) if is_moved else None
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
    return _Ready(target, ledger, commit, carry, tables, kept, wait, tell, target.memfd_at(ledger.base), is_torn)


@dataclass(frozen=True, slots=True)
class _Ready:
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
