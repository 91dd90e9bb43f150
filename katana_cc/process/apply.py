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

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from katana_cc.errors import BusyError, KatanaError, RefusedError, TargetError
from katana_cc.patch.model import HookKind, PatchObject
from katana_cc.patch.needs import Grant
from katana_cc.process.carry import Cargo, Carry
from katana_cc.process.cfi import FrameTables
from katana_cc.process.commit import Commit, CommitReport, Outcome, run
from katana_cc.process.entries import entry_of
from katana_cc.process.finishing import finish_all, refuse_unfinished
from katana_cc.process.follow import forth
from katana_cc.process.forecast import SECONDS, Forecast, forecast
from katana_cc.process.handover import Handover
from katana_cc.process.hooks import DEFAULT_TIMEOUT, HookRun, refuse_failed, run_hooks, run_hooks_after
from katana_cc.process.identify import NotThisBuildError
from katana_cc.process.inject import inject, unmap
from katana_cc.process.ledger import Ledger
from katana_cc.process.objections import StrayWordsError, judge
from katana_cc.process.objects import Objects
from katana_cc.process.phases import Bytes, Phase, Step
from katana_cc.process.plan import Plan, prepare
from katana_cc.process.preview import preview, refuse_early
from katana_cc.process.registration import may_be_registered, register, withdraw
from katana_cc.process.revert import Wishes, revert_one
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
from katana_cc.process.unwinders import must_register
from katana_cc.telling import TellWait, silent

DEFAULT_WAIT = 5.0


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What came of one process.  `outcome`: "applied", "already applied", "would apply" or "would be refused" (dry
    run); `commit` is None unless a stop was made; `seen` is what the variables that would move held in a dry run, and
    `refusal` what speaks against it; `map_pause_us` is how long one thread stood while the mapping was made,
    `register_pause_us` while the new frames were registered (0: no need, or done before); `leftover` is what became of
    the old blocks of objects on the heap; `hooks` are those of the user's that ran: one after the patch may have
    failed; `forecast` (dry run) tells which replaced functions are on stacks."""

    pid: int
    name: str
    outcome: str
    plan: Plan
    commit: CommitReport | None = None
    map_pause_us: float = 0.0
    register_pause_us: float = 0.0
    seen: Cargo | None = None
    refusal: RefusedError | None = None
    leftover: Leftover = NOTHING_LEFT
    hooks: tuple[HookRun, ...] = ()
    forecast: Forecast | None = None


@dataclass(slots=True)
class _Work:
    """One process under way; the only mutable thing here, and it stays in this module."""

    target: Target
    plan: Plan
    is_injected: bool = False
    map_pause_us: float = 0.0
    register_pause_us: float = 0.0
    outcome: Outcome = field(default_factory=Outcome)
    seen: Cargo | None = None
    refusal: RefusedError | None = None
    objects: Objects | None = None
    wanted: dict[int, int] = field(default_factory=dict)
    leftover: Leftover = NOTHING_LEFT
    is_cleared: bool = False
    hooks: tuple[HookRun, ...] = ()
    may_have_escaped: bool = False  # a hook ran: something may lead into the mapping
    is_reset: bool = False
    hook_timeout: float = DEFAULT_TIMEOUT
    at: str = ""
    coroutines: Coroutines = Coroutines.FIND_OUT
    entries: tuple[int, ...] = ()
    forecast: Forecast | None = None

    @property
    def report(self) -> CommitReport | None:
        """How the commit went; None as long as it was not done."""
        return self.outcome.report


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
    select: Callable[[], Iterable[int]] | None = None,
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
    works: list[_Work] = []
    reports: list[ApplyReport] = []
    finish = refuse_unfinished if dry_run else finish_all
    try:
        try:
            todo = list(dict.fromkeys(pids))
            seen = set(todo)
            while todo:
                finish(todo)
                fresh = _plan_all(po, patch_id, todo, granted, must_match, None if dry_run else wait)
                works.extend(fresh)
                for work in fresh if at else ():
                    work.at, work.entries = at, (entry_of(work.target, work.plan.module, po, at),)
                for work in fresh:
                    work.coroutines = coroutines
                    _look(work, dry_run)
                    if dry_run and not work.plan.is_applied:
                        work.forecast = forecast(work.target, work.plan.guards, max(0.1, SECONDS / len(fresh)))
                if not dry_run:
                    _inject_and_commit(fresh, wait, hook_timeout, tell)
                todo = [] if select is None or dry_run else [p for p in select() if p not in seen]
                seen.update(todo)
                must_match = False
        except BaseException as error:
            stuck = _roll_back(works, wait)
            if stuck and isinstance(error, KatanaError):
                error.remedy = "; ".join(filter(None, (error.remedy, *stuck)))
            raise
        # From here on the patch is in, whatever the hooks say.
        for work in works:
            if work.report is not None:
                ledger = work.plan.ledger
                work.hooks += run_hooks_after(work.target, ledger, HookKind.AFTER, wait, hook_timeout)
    finally:
        for work in works:
            work.target.close()
    for work in works:
        would = "would be refused" if work.refusal else "would apply"
        outcome = "already applied" if work.plan.is_applied else would if dry_run else "applied"
        pauses = work.map_pause_us, work.register_pause_us
        found = work.seen, work.refusal
        head = work.target.pid, work.target.name, outcome, work.plan, work.report
        reports.append(ApplyReport(*head, *pauses, *found, work.leftover, work.hooks, work.forecast))
    return tuple(reports)


def _plan_all(
    po: PatchObject,
    patch_id: str,
    pids: Iterable[int],
    granted: Sequence[Grant],
    must_match: bool,
    wait: float | None,
) -> list[_Work]:
    """`wait`: for another katana that is at work there; None: nothing will be changed."""
    works = []
    try:
        for pid in pids:
            target = None
            try:
                target = Target(pid)
                target.refuse_if_traced()
                if wait is not None:
                    target.claim(wait)
                works.append(_Work(target, prepare(target, po, patch_id, granted)))
            except (NotThisBuildError, TargetError) as error:
                if target is not None:
                    target.close()
                # Of many processes some end, or are no business of ours; of named ones none may.
                if must_match or (isinstance(error, TargetError) and _is_there(pid)):
                    raise
            except BaseException:
                if target is not None:
                    target.close()
                raise
    except BaseException:
        for work in works:
            work.target.close()
        raise
    return works


def _carry(work: _Work) -> Carry | None:
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


def _look(work: _Work, dry_run: bool) -> None:
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


def _seen(work: _Work, carry: Carry, dry_run: bool) -> RefusedError | None:
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


def _is_there(pid: int) -> bool:
    with contextlib.suppress(KatanaError), Target(pid) as target:
        return bool(target.read_map().regions)
    return False


def _inject_and_commit(works: Sequence[_Work], wait: float, hook_timeout: float, tell: TellWait) -> None:
    for work in works:
        if work.plan.is_applied:
            continue
        if work.plan.existing is None:
            work.plan, work.map_pause_us = inject(work.target, work.plan)
            work.is_injected = True
    for work in works:
        if not work.plan.is_applied:
            _register(work, wait)
    for work in works:
        if not work.plan.is_applied:
            _run_before(work, wait, hook_timeout)
    for work in works:
        if work.objects is not None:
            stock(work.objects, work.wanted, wait)
    commits = []
    for work in works:
        if not work.plan.is_applied:
            work.hook_timeout = hook_timeout
            commits.append(_commit(work, wait, tell))
    # From here on only bytes of functions and data are exchanged: while one process is done, others run the old code.
    for commit in commits:
        commit()
    for work in works:
        _clear_up(work, wait)


def _clear_up(work: _Work, wait: float) -> None:
    """Free, once, what a commit left of blocks."""
    if work.report is not None and not work.is_cleared:
        work.is_cleared = True
        work.leftover = clear_up(work.objects, work.report, wait)


def _run_before(work: _Work, wait: float, timeout: float) -> None:
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


def _register(work: _Work, wait: float) -> None:
    """Register the new frames, unless an earlier katana did; where no exception has to pass, only if it can be done."""
    reused = None if work.is_injected or work.plan.existing is None else work.plan.existing.ledger
    ledger = work.plan.ledger if reused is None else reused
    if not ledger.registrations or ledger.is_registered:
        return
    required = must_register(work.plan.po)
    try:
        report = register(work.target, ledger, wait if required else 0.0)
        work.register_pause_us = report.pause_us
    except (BusyError, RefusedError):
        if required:
            raise


def _commit(work: _Work, wait: float, tell: TellWait) -> Callable[[], None]:
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


def _roll_back(works: Iterable[_Work], wait: float) -> list[str]:
    """Take back what was done; a sentence for each process in which the patch had to stay."""
    stuck = []
    for work in works:
        if work.report is not None:
            with contextlib.suppress(KatanaError):
                _clear_up(work, wait)
            try:
                with Target(work.target.pid) as again:
                    wishes = Wishes(discards_all=True)
                    before = _replaced_in(again, work.plan)
                    revert_one(again, work.plan.patch_id, wait, wishes, back_to=before, coroutines=work.coroutines)
            except KatanaError as error:
                if _is_there(work.target.pid):
                    stuck.append(f"the patch stays applied to pid {work.target.pid}: {error.what}")
            continue
        give_back(work.objects, wait)
        with contextlib.suppress(KatanaError):
            if work.is_injected and not work.may_have_escaped:
                with Target(work.target.pid) as again:
                    _remove(again, work.plan, wait)
    return stuck


def _replaced_in(target: Target, plan: Plan) -> Ledger | None:
    """The patch that was in force before, as it stands now."""
    bases = [g.base for g in plan.leaving]
    return next((m.ledger for m in target.patches if m.base in bases and m.ledger is not None), None)


def _remove(target: Target, plan: Plan, wait: float) -> None:
    """Take out a mapping that nothing led into.  Frames that an unwinder knows go first; if they cannot, all stays.

    The process may have called execve since, or be another of the same number: then it is not there.
    """
    ours = plan.patch_id, Phase.MAPPED
    at_base = [m for m in target.patches if m.base == plan.base and m.ledger is not None]
    found = [m for m in at_base if m.ledger is not None and (m.ledger.patch_id, m.ledger.state) == ours]
    if not found:
        return
    if may_be_registered(target, plan.ledger):
        withdraw(target, plan.ledger, wait)
    else:
        unmap(target, plan.base, plan.layout.size, found[0].inode)
