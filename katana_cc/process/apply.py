"""Applying a patch object to processes: all of them, or none.

    every process:  open, plan            reads only; one refusal ends it all
    every process:  look at variables     those that move: whether they may, as things are now
    every process:  inject                the new code is there, nothing leads to it
    every process:  stock                 new blocks are there for objects that need more room
    every process:  register              its frames are known to the unwinders
    every process:  hooks                 what the user wants to run before
    every process:  commit                a short stop each
    every process:  clear up              blocks that are no longer used are freed
    every process:  hooks                 what the user wants to run after
    on failure:     revert what was committed, unmap what was not

A process that forks meanwhile hands on what it has; children that came before their parent's commit are found by
looking again (`select`), and patched too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from katana_cc.errors import BusyError, RefusedError
from katana_cc.outcomes import OfProcess, ProcessOutcome
from katana_cc.patch.model import HookKind, PatchObject
from katana_cc.patch.needs import Grant
from katana_cc.process.carry import Cargo, Carry
from katana_cc.process.cfi import FrameTables
from katana_cc.process.commit import Commit, CommitReport, run
from katana_cc.process.entries import entry_of
from katana_cc.process.finishing import finish_all, refuse_later, refuse_unfinished
from katana_cc.process.follow import forth
from katana_cc.process.forecast import SECONDS, Forecast, forecast
from katana_cc.process.handover import Handover
from katana_cc.process.hooks import DEFAULT_TIMEOUT, HookRun, refuse_failed, run_hooks, run_hooks_after
from katana_cc.process.inject import inject
from katana_cc.process.ledger import Ledger
from katana_cc.process.leftopen import close_left_open
from katana_cc.process.looks import Looks, Select
from katana_cc.process.members import failed, in_each, open_all
from katana_cc.process.objections import StrayWordsError, judge
from katana_cc.process.phases import Bytes, Phase, Step
from katana_cc.process.plan import Plan, prepare
from katana_cc.process.preview import preview, refuse_early
from katana_cc.process.registration import register
from katana_cc.process.supply import (
    NOTHING_LEFT,
    Leftover,
    explaining,
    objects_of,
    stock,
    supplied,
)
from katana_cc.process.switching import Coroutines
from katana_cc.process.takeback import Work, clear_up_once, take_back
from katana_cc.process.target import Target
from katana_cc.process.unwinders import must_register
from katana_cc.telling import TellWait, silent

DEFAULT_WAIT = 5.0


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What came of one process.  `planned` is None for one that was skipped, `commit` unless a stop was made; `seen` is
    what the variables that would move held in a dry run, and `refusal` what speaks against it; `map_pause_us` is how
    long one thread stood while the mapping was made, `register_pause_us` while the new frames were registered (0: no
    need, or done before); `leftover` is what became of the old blocks of objects on the heap; `hooks` are those of the
    user's that ran: one after the patch may have failed; `forecast` (dry run) tells which replaced functions are on
    stacks."""

    pid: int
    name: str
    outcome: ProcessOutcome
    planned: Plan | None
    commit: CommitReport | None = None
    map_pause_us: float = 0.0
    register_pause_us: float = 0.0
    seen: Cargo | None = None
    refusal: RefusedError | None = None
    leftover: Leftover = NOTHING_LEFT
    hooks: tuple[HookRun, ...] = ()
    forecast: Forecast | None = None

    @property
    def plan(self) -> Plan:
        """What was planned: there is a plan of every process that was not skipped."""
        assert self.planned is not None
        return self.planned


def apply_patch(
    po: PatchObject,
    patch_id: str,
    pids: Iterable[int],
    *,
    wait: float = DEFAULT_WAIT,
    granted: Sequence[Grant] = (),
    dry_run: bool = False,
    hook_timeout: float = DEFAULT_TIMEOUT,
    must_match: bool = True,
    select: Select | None = None,
    at: str = "",
    tell: TellWait = silent,
    coroutines: Coroutines = Coroutines.FIND_OUT,
) -> tuple[ApplyReport, ...]:
    """Apply `po` to every process of `pids`, or to none.

    Args:
        patch_id: identity of the patch object (`codec.patch_id`), recorded in the ledger.
        wait: seconds to wait for a moment when no thread is inside a replaced function.
        granted: what the user decided (`patch/needs.py`); replaced functions that may be active go on in the old code.
        dry_run: check everything, stop and write nothing.
        hook_timeout: seconds that each of the user's hooks may take.
        must_match: a process of another build is an error; else it is left out.
        select: gives the pids once more, after the commit, to find children forked meanwhile.
        at: a function that a thread has to enter first; "": none.
        tell: hears what a commit waits for.
        coroutines: what the user says of them.

    Returns:
        One report a process, in the order of `pids`.

    Raises:
        KatanaError: by its kind why nothing was done (see errors.ExitStatus).
    """
    works: list[Work] = []
    skipped: list[OfProcess] = []
    looks = Looks(pids, None if dry_run else select, wait, "processes without the patch")
    finish = refuse_unfinished if dry_run else functools.partial(finish_all, wait=wait)
    try:
        try:
            for todo in looks:
                finish(todo)
                is_named = must_match and looks.is_first
                fresh = _plan_all(po, patch_id, todo, granted, skipped, None if dry_run else wait, is_named=is_named)
                works.extend(fresh)
                for work in fresh:
                    work.is_child = not looks.is_first
                    work.coroutines = coroutines
                    work.at = at
                in_each(fresh, _find_entry, may_end=not is_named)
                in_each(fresh, lambda work: _look(work, dry_run), may_end=not is_named)
                if dry_run:
                    seconds = max(0.1, SECONDS / max(1, len(fresh)))
                    in_each(fresh, functools.partial(_foretell, seconds=seconds), may_end=not is_named)
                else:
                    _inject_and_commit(fresh, wait, hook_timeout, tell, may_end=not is_named)
                looks.done(fresh, len(todo) - len(fresh))
        except BaseException as error:
            children = take_back(works, wait, select)
            told = {p.pid: p for p in (*skipped, *(m.told() for m in (*works, *children)))}
            told |= {p.pid: p for p in getattr(error, "processes", ())}
            raised = failed(error, list(told.values()))
            if raised is error:
                raise
            raise raised from error
        # From here on the patch is in, whatever the hooks say.
        for work in works:
            if work.report is not None:
                ledger = work.plan.ledger
                runs = run_hooks_after(work.target, ledger, HookKind.AFTER, wait, hook_timeout)
                if not (any(r.failure for r in runs) and not must_match and work.target.has_gone()):
                    work.hooks += runs
    finally:
        for work in works:
            work.target.close()
    reports = [_report(work, dry_run) for work in works if not work.is_out]
    skipped += [work.told() for work in works if work.is_out]
    return *reports, *(ApplyReport(p.pid, p.name, p.outcome, None) for p in skipped)


def _report(work: Work, dry_run: bool) -> ApplyReport:
    would = ProcessOutcome.WOULD_BE_REFUSED if work.refusal else ProcessOutcome.WOULD_APPLY
    outcome = work.before or (would if dry_run else ProcessOutcome.APPLIED)
    pauses = work.map_pause_us, work.register_pause_us
    found = work.seen, work.refusal
    head = work.target.pid, work.target.name, outcome, work.plan, work.report
    return ApplyReport(*head, *pauses, *found, work.leftover, work.hooks, work.forecast)


def _plan_all(
    po: PatchObject,
    patch_id: str,
    pids: Iterable[int],
    granted: Sequence[Grant],
    skipped: list[OfProcess],
    wait: float | None,
    *,
    is_named: bool,
) -> list[Work]:
    """Plan in all of them; `skipped` gets those that have ended.

    `wait`: for another katana that is at work there; None: nothing will be changed.
    """
    works: list[Work] = []

    def plan(target: Target) -> Work:
        if wait is not None:
            target.claim(wait)
        target.refuse_if_traced()
        target.refuse_if_frozen()
        refuse_later(target)
        plan = prepare(target, po, patch_id, granted)
        return Work(target=target, plan=plan, before=ProcessOutcome.ALREADY if plan.is_applied else None)

    open_all(pids, plan, works, skipped, is_named=is_named)
    return works


def _find_entry(work: Work) -> None:
    if work.at:
        work.entries = (entry_of(work.target, work.plan.module, work.plan.po, work.at),)


def _foretell(work: Work, seconds: float) -> None:
    work.forecast = forecast(work.target, work.plan.guards, seconds)


def _carry(work: Work) -> Carry | None:
    """The variables of a process that move; None when none does."""
    plan = work.plan
    if not plan.ledger.moves_data or plan.is_applied or plan.takes_over_moves:
        return None
    own = plan.base, plan.base + plan.layout.size
    module = plan.module.start, plan.module.end
    if work.objects is None:
        work.objects = objects_of(work.target, plan.ledger.kinds)
    passages = forth(plan.ledger.moves)
    # Where variables move too, what leads to them on the heap has to be found all the same.
    is_deniable = all(m.stays for m in plan.ledger.moves)
    deniable = tuple(k.name for k in plan.ledger.kinds if not k.stays) if is_deniable else ()
    return Carry(passages, plan.ledger.edits, own, module, work.target.where, "apply it with", work.objects, deniable)


def _look(work: Work, dry_run: bool) -> None:
    """Look at the variables that move: refuse at once what would be refused later; in a dry run, remember it."""
    carry = _carry(work)
    if carry is None:
        return
    error = _seen(work, carry, dry_run)
    if isinstance(error, StrayWordsError) and carry.objects is None:
        # Those on the heap may be pointers in objects that types tell of.
        work.objects = explaining(work.target, work.plan.ledger.kinds)
        carry = _carry(work)
        if carry is not None and carry.objects is not None:
            error = _seen(work, carry, dry_run)
    if error is not None and not dry_run:
        raise error
    work.refusal = error


def _seen(work: Work, carry: Carry, dry_run: bool) -> RefusedError | None:
    """What speaks against it, as of now."""
    try:
        if dry_run:
            work.seen = preview(work.target, carry)
            judge(carry, work.seen)
        else:
            seen = refuse_early(work.target, carry)
            work.wanted = seen.heap.placement.wanted if seen is not None and seen.heap is not None else {}
    except RefusedError as error:
        return error
    return None


def _inject_and_commit(
    works: Sequence[Work], wait: float, hook_timeout: float, tell: TellWait, *, may_end: bool
) -> None:
    each = functools.partial(in_each, works, may_end=may_end)
    each(_inject)
    each(lambda work: _register(work, wait))
    each(lambda work: _run_before(work, wait, hook_timeout))
    each(lambda work: _stock(work, wait))
    commits: dict[int, Callable[[], None]] = {}

    def make_ready(work: Work) -> None:
        work.hook_timeout = hook_timeout
        commits[work.target.pid] = _commit(work, wait, tell)

    each(make_ready)
    # From here on only bytes of functions and data are exchanged: while one process is done, others run the old code.
    each(lambda work: commits[work.target.pid]())
    for work in works:
        clear_up_once(work, wait)


def _inject(work: Work) -> None:
    close_left_open(work.target)
    if work.plan.existing is None:
        work.plan, work.map_pause_us = inject(work.target, work.plan)
        work.is_injected = True
    work.memfd = work.target.memfd_at(work.plan.base)


def _stock(work: Work, wait: float) -> None:
    if work.objects is not None:
        stock(work.objects, work.wanted, wait)


def _run_before(work: Work, wait: float, timeout: float) -> None:
    """Run what the user wants to run before, unless a katana died when it had begun to write: then it has run."""
    plan, target = work.plan, work.target
    if plan.found is Bytes.TORN or not any(h.kind is HookKind.BEFORE for h in plan.ledger.hooks):
        return
    if not work.is_injected:
        for address, data in plan.resets():
            target.memory.write(address, data)  # now, since the hooks may write to these variables
        work.is_reset = True
    work.may_have_escaped = True
    work.hooks = run_hooks(target, plan.ledger, HookKind.BEFORE, wait, timeout)
    refuse_failed(target, work.hooks, "nothing was changed, except by what hooks did themselves")


def _register(work: Work, wait: float) -> None:
    """Register the new frames, unless an earlier katana did; where no exception has to pass, only if it can be done."""
    reused = None if work.is_injected or work.plan.existing is None else work.plan.existing.ledger
    ledger = work.plan.ledger if reused is None else reused
    if not ledger.records or ledger.is_registered:
        return
    required = must_register(work.plan.po)
    try:
        report = register(work.target, ledger, wait if required else 0.0)
        work.register_pause_us = report.pause_us
    except (BusyError, RefusedError):
        if required:
            raise


def _commit(work: Work, wait: float, tell: TellWait) -> Callable[[], None]:
    """What commits it, with all that can be known before."""
    plan, target = work.plan, work.target
    reused = None if work.is_injected else plan.existing
    phase, edits = Phase.MAPPED, plan.ledger.edits
    resets: tuple[tuple[int, bytes], ...] = ()
    if reused is not None and reused.ledger is not None:
        phase = reused.ledger.state
        if plan.found is Bytes.TORN:
            edits = reused.ledger.edits
        elif not work.is_reset:
            resets = plan.resets()
    if plan.leaving:
        edits = plan.writes(target)
    steps = Step.BEGIN_COMMIT, Step.END_COMMIT
    handover = None
    kinds = {k.name: k.made for k in plan.ledger.kinds}
    is_made = any(m.made for m in plan.ledger.moves) or any(kinds.values())
    if is_made and not plan.takes_over_moves:
        handover = Handover(target, plan.ledger, kinds, work.hook_timeout)
        work.may_have_escaped = True
    leaving = tuple((g.base, g.state) for g in plan.leaving)
    commit = Commit(plan.base, phase, *steps, plan.guards, plan.snapshot, edits, resets, _carry(work), handover,
                    work.entries, work.at, leaving, work.coroutines)  # fmt: skip
    ledgers: list[Ledger] = [m.ledger for m in target.patches if m.ledger is not None]
    tables = FrameTables(target.memory, target.modules, ledgers)
    tables.preload(target.modules)
    return lambda: supplied(work.objects, wait, lambda: run(target, commit, tables.unwinder, wait, work.outcome, tell))
