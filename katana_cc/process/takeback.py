"""An apply under way in one process, and how it is taken back in all where another could not be patched.

    committed               reverted, to the build it was started from or to the patch that was there before
    the mapping only        unmapped
    a child forked since    carries what its parent had: found by looking again, and reverted too

What a child inherited is known by its mapping: it is of the same memfd as its parent's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from katana_cc.errors import KatanaError, RefusedError
from katana_cc.process.carry import Cargo
from katana_cc.process.commit import CommitReport, Outcome
from katana_cc.process.forecast import Forecast
from katana_cc.process.hooks import DEFAULT_TIMEOUT, HookRun
from katana_cc.process.inforce import ledgers_in_force
from katana_cc.process.inject import unmap
from katana_cc.process.ledger import Ledger
from katana_cc.process.looks import Select
from katana_cc.process.members import Member
from katana_cc.process.objects import Objects
from katana_cc.process.phases import Phase
from katana_cc.process.plan import Plan
from katana_cc.process.registration import may_be_registered, withdraw
from katana_cc.process.reverting import Wishes, revert_one
from katana_cc.process.supply import NOTHING_LEFT, Leftover, clear_up, give_back
from katana_cc.process.switching import Coroutines
from katana_cc.process.target import Target

_LOOKS = 10  # a parent that was reverted forks no more children with the patch


@dataclass(slots=True, kw_only=True)
class Work(Member):
    """One process under way.  `memfd` is the inode of its mapping, once there is one."""

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
    memfd: int = 0
    is_child: bool = False  # forked since: what it carries may be inherited

    @property
    def report(self) -> CommitReport | None:
        """How the commit went; None as long as it was not done."""
        return self.outcome.report


def clear_up_once(work: Work, wait: float) -> None:
    """Free, once, what a commit left of blocks."""
    if work.report is not None and not work.is_cleared:
        work.is_cleared = True
        work.leftover = clear_up(work.objects, work.report, wait)


def take_back(works: Sequence[Work], wait: float, select: Select | None) -> list[Member]:
    """Take back what was done, parents first; each process knows how that went.

    Args:
        select: gives the process ids once more; None: no other process belongs to it.

    Returns:
        Children that had inherited the patch, and were reverted too.
    """
    for work in works:
        if work.is_out:
            continue
        if work.report is None:
            _take_out(work, wait)
            continue
        with contextlib.suppress(KatanaError):
            clear_up_once(work, wait)
        _revert(work, work.target.pid, work, wait)
    committed = {w.memfd: w for w in works if w.report is not None and w.memfd}
    if select is None or not committed:
        return []
    known = {w.target.pid for w in works if not (w.is_child and w.before is not None)}
    children: list[Member] = []
    for _ in range(_LOOKS):
        found = [pid for pid in select().pids if pid not in known]
        known.update(found)
        fresh = [child for pid in found if (child := _reverted_child(pid, committed, wait)) is not None]
        if not fresh:
            break
        children += fresh
    return children


def _take_out(work: Work, wait: float) -> None:
    give_back(work.objects, wait)
    with contextlib.suppress(KatanaError):
        if work.is_injected and not work.may_have_escaped:
            with Target(work.target.pid) as again:
                _remove(again, work.plan, wait)


def _revert(member: Member, pid: int, work: Work, wait: float) -> None:
    """Revert in one process what was done in `work`'s."""
    try:
        with Target(pid) as again:
            wishes = Wishes(discards_all=True)
            before = _replaced_in(again, work.plan)
            revert_one(again, work.plan.patch_id, wait, wishes, back_to=before, coroutines=work.coroutines)
        member.is_undone = True
    except Exception as error:
        if not member.target.has_gone():
            member.stuck = f"the patch stays applied: {error.what if isinstance(error, KatanaError) else error}"


def _reverted_child(pid: int, committed: dict[int, Work], wait: float) -> Member | None:
    """A child that inherited the patch from one of these, reverted; None where it did not."""
    try:
        with Target(pid) as target:
            inodes = {r.inode for r in target.read_map().regions}
            work = next((w for memfd, w in committed.items() if memfd in inodes), None)
            if work is None or not ledgers_in_force(target, work.plan.patch_id):
                return None
            child = Member(target=target)
            _revert(child, pid, work, wait)
            return child
    except KatanaError:
        return None


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
