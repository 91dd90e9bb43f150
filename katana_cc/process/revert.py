"""Taking a patch out of processes: the exact old bytes come back.

The mapping stays: pointers to new functions, literals and variables may have escaped into the heap.  Applying the same
patch again uses it again; `giving_back` takes it out when nothing leads there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from katana_cc.errors import KatanaError, LaterKatanaError
from katana_cc.outcomes import OfProcess, ProcessOutcome
from katana_cc.patch.model import HookKind
from katana_cc.process.commit import Outcome
from katana_cc.process.finishing import finish_all, refuse_later
from katana_cc.process.hooks import DEFAULT_TIMEOUT, HookRun, refuse_failed, run_hooks, run_hooks_after
from katana_cc.process.inforce import known_in_force, ledgers_in_force
from katana_cc.process.ledger import Ledger
from katana_cc.process.leftopen import close_left_open
from katana_cc.process.looks import Looks, Select
from katana_cc.process.members import Member, NotKnownError, failed, in_each, open_all
from katana_cc.process.phases import Bytes
from katana_cc.process.preview import refuse_early
from katana_cc.process.putback import Reverted, put_back
from katana_cc.process.reverting import NO_WISHES, Ready, RevertReport, Wishes, carry_back, prepared, refuse_several
from katana_cc.process.standing import standings
from katana_cc.process.supply import NOTHING_LEFT
from katana_cc.process.switching import Coroutines
from katana_cc.process.target import Target
from katana_cc.telling import TellWait, silent


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
    how = functools.partial(prepared, wait=wait, hook_timeout=hook_timeout, tell=tell, coroutines=coroutines)
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
                    each(_try)
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
    ready: Ready | None = None
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
    refuse_several(found)
    return next(iter(found), patch_id)


def _look(work: _Work, wishes: Wishes) -> None:
    for ledger in work.ledgers:
        carry = carry_back(work.target, ledger, ledger.edits, wishes)
        if carry is not None:
            refuse_early(work.target, carry)


def _run_before(work: _Work, wait: float, timeout: float) -> None:
    for ledger in work.ledgers:
        every = [x.ledger for x in work.target.patches if x.ledger is not None]
        if standings(work.target.memory, every).get(ledger.base) is Bytes.NEW:
            work.ran = run_hooks(work.target, ledger, HookKind.BEFORE_REVERT, wait, timeout)
            refuse_failed(work.target, work.ran, "nothing was reverted; the patch stays")


def _make_ready(work: _Work, patch_id: str, wishes: Wishes, how: Callable[..., Ready | None]) -> None:
    work.ready = how(work.target, patch_id, wishes=wishes)
    if work.ready is None:  # somebody else was quicker
        work.before = ProcessOutcome.NOTHING
    else:
        close_left_open(work.target)


def _try(work: _Work) -> None:
    assert work.ready is not None
    work.ready.try_out()


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
