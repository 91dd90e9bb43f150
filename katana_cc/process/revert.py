"""Taking a patch out of processes: the exact old bytes come back.

The mapping stays: pointers to new functions, literals and variables may have escaped into the heap.  Applying the same
patch again uses it again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from katana_cc.errors import KatanaError, RefusedError, TargetError
from katana_cc.patch.model import HookKind
from katana_cc.patch.needs import Option
from katana_cc.process.carry import Carry
from katana_cc.process.cfi import FrameTables
from katana_cc.process.commit import Commit, CommitReport, Outcome, run
from katana_cc.process.finishing import finish_all
from katana_cc.process.follow import back
from katana_cc.process.handover import Handover
from katana_cc.process.hooks import DEFAULT_TIMEOUT, HookRun, refuse_failed, run_hooks, run_hooks_after
from katana_cc.process.ledger import Ledger, MemoryEdit
from katana_cc.process.moves import DISCARD, kinds_back, refuse_unknown
from katana_cc.process.objections import half_moved
from katana_cc.process.phases import Bytes, Phase, Step
from katana_cc.process.preview import preview, refuse_early, wanted
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
from katana_cc.process.threads import is_dead
from katana_cc.telling import TellWait, silent


@dataclass(frozen=True, slots=True)
class RevertReport:
    """What came of one process.  `outcome`: "reverted", or "nothing to revert"; then `others` are the PO-IDs of what is
    applied there instead of the patch that was named.  `kept` are variables that had been given their new initial value
    and were written to since: they were left alone.  `leftover` is what became of the blocks of objects on the heap;
    `hooks` are those of the user's that ran: one after the revert may have failed."""

    pid: int
    name: str
    outcome: str
    ledger: Ledger | None
    commit: CommitReport | None
    others: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    leftover: Leftover = NOTHING_LEFT
    hooks: tuple[HookRun, ...] = ()


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
    tell: TellWait = silent,
    coroutines: Coroutines = Coroutines.FIND_OUT,
) -> tuple[RevertReport, ...]:
    """Revert a patch (any beginning of its identity; empty: the only one there) in every process, or in none.

    What is meant must be one patch, the same in all processes: with several, taking all of them out is never guessed.
    Without `must_match`, processes that end meanwhile are left out.  `tell` hears what is waited for.

    Processes are checked first; when one fails later, those already reverted stay so and the error says which: a patch
    cannot be applied again without its patch object.

    Raises:
        KatanaError: by its kind why it was not done.
    """
    targets: list[Target] = []
    pids = tuple(dict.fromkeys(pids))
    finish_all(pids)
    try:
        found: dict[str, list[tuple[Target, Ledger]]] = {}
        ready: list[Target] = []
        for pid in pids:
            try:
                target = Target(pid)
                targets.append(target)
                in_force = ledgers_in_force(target, patch_id)
                if in_force or must_match:
                    target.refuse_if_traced()
                    target.claim(wait)
                    in_force = ledgers_in_force(target, patch_id)  # another katana may have changed it meanwhile
            except TargetError:
                if must_match or Path(f"/proc/{pid}/exe").exists():
                    raise
                continue
            if in_force or must_match:
                ready.append(target)
            for ledger in in_force:
                found.setdefault(ledger.patch_id, []).append((target, ledger))
        _refuse_several(found)
        meant = next(iter(found), patch_id)
        # From here on it is fixed which patch is meant.
        for carriers in found.values():
            for target, ledger in carriers:
                carry = _explained(target, ledger, _carry(target, ledger, ledger.edits, wishes))
                if carry is not None:
                    refuse_early(target, carry)
        ran: dict[int, tuple[HookRun, ...]] = {}
        for target, ledger in (c for carriers in found.values() for c in carriers):
            if (
                standings(target.memory, [x.ledger for x in target.patches if x.ledger is not None])[ledger.base]
                is Bytes.NEW
            ):
                ran[target.pid] = run_hooks(target, ledger, HookKind.BEFORE_REVERT, wait, hook_timeout)
                refuse_failed(target, ran[target.pid], "nothing was reverted; the patch stays")
        reports: list[RevertReport] = []
        how = functools.partial(_prepared, tell=tell, coroutines=coroutines)
        reverts = []
        for target in ready:
            with _left_out_if_gone(target, must_match):
                reverts.append((target, how(target, meant, wait, wishes, hook_timeout)))
        # From here on only bytes are exchanged: while one process is done, others run the new code.
        for target, revert in reverts:
            report = None
            try:
                with _left_out_if_gone(target, must_match):
                    report = revert()
            except KatanaError as error:
                done = ", ".join(str(r.pid) for r in reports if r.outcome == "reverted")
                if done:
                    error.remedy = f"{error.remedy}; already reverted: {done}".lstrip("; ")
                raise
            if report is not None and (must_match or report.ledger is not None):
                reports.append(report)
        # From here on it is out, whatever the hooks say.
        return tuple(
            replace(report, hooks=ran.get(target.pid, ()) + _ran_after(target, report, wait, hook_timeout))
            for report in reports
            for target in ready
            if target.pid == report.pid
        )
    finally:
        for target in targets:
            target.close()


@contextlib.contextmanager
def _left_out_if_gone(target: Target, must_match: bool) -> Iterator[None]:
    """Pass over a process that ends meanwhile, unless it was asked for by its pid."""
    try:
        yield
    except TargetError:
        if must_match or not is_dead(target.pid):
            raise


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


def ledgers_in_force(target: Target, patch_id: str) -> list[Ledger]:
    """The ledgers of the patches in force whose identity begins so.

    Raises:
        RefusedError: the bytes at the edits of one were altered by someone else.
    """
    ledgers = [m.ledger for m in target.patches if m.ledger is not None]
    found = standings(target.memory, ledgers)
    meant = [x for x in ledgers if x.patch_id.startswith(patch_id.lower())]
    altered = next((x for x in meant if found[x.base] is Bytes.FOREIGN), None)
    if altered is not None:
        raise RefusedError(
            f"the jumps of patch {altered.patch_id} were altered by someone else",
            where=target.where,
            remedy="remove what altered them (a breakpoint, another patcher), or restart the process",
        )
    in_force = [x for x in meant if found[x.base] is Bytes.NEW]
    # Of those of which one was to take the place of the others, the one that came stands for all.
    torn: dict[tuple[str, int], Ledger] = {}
    for x in sorted((x for x in meant if found[x.base] is Bytes.TORN), key=lambda x: x.state is Phase.REVERTING):
        torn.setdefault((x.from_build_id, x.bias), x)
    return [*in_force, *torn.values()]


def _torn_with(target: Target, ledger: Ledger) -> list[Ledger]:
    """The patches that are half applied together with this one."""
    ledgers = [m.ledger for m in target.patches if m.ledger is not None]
    found = standings(target.memory, ledgers)
    here = ledger.from_build_id, ledger.bias
    return [
        x
        for x in ledgers
        if found[x.base] is found[ledger.base] is Bytes.TORN
        and (x.from_build_id, x.bias) == here
        and x.base != ledger.base
    ]


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
    return _prepared(target, patch_id, wait, wishes, hook_timeout, back_to, coroutines=coroutines)()


def _prepared(
    target: Target,
    patch_id: str,
    wait: float,
    wishes: Wishes,
    hook_timeout: float,
    back_to: Ledger | None = None,
    tell: TellWait = silent,
    coroutines: Coroutines = Coroutines.FIND_OUT,
) -> Callable[[], RevertReport]:
    """What reverts it, with all that can be known before."""
    in_force = ledgers_in_force(target, patch_id)
    _refuse_several({ledger.patch_id: [(target, ledger)] for ledger in in_force})
    ledger = in_force[0] if in_force else None
    if ledger is None:
        carried = tuple(sorted(x.patch_id for x in ledgers_in_force(target, "")))
        nothing = RevertReport(target.pid, target.name, "nothing to revert", None, None, carried)
        return lambda: nothing
    others = _torn_with(target, ledger)
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
    return functools.partial(_run, target, ledger, commit, carry, tables, kept, wait, tell)


def _run(
    target: Target,
    ledger: Ledger,
    commit: Commit,
    carry: Carry | None,
    tables: FrameTables,
    kept: tuple[str, ...],
    wait: float,
    tell: TellWait,
) -> RevertReport:
    objects = carry.objects if carry is not None else None
    outcome = Outcome()
    try:
        if carry is not None and objects is not None:
            stock(objects, wanted(target, carry), wait)
        supplied(objects, wait, lambda: run(target, commit, tables.unwinder, wait, outcome, tell))
    except BaseException:
        if outcome.report is not None:
            clear_up(objects, outcome.report, wait)
        else:
            give_back(objects, wait)
        raise
    assert outcome.report is not None
    report = outcome.report
    leftover = clear_up(objects, report, wait)
    return RevertReport(target.pid, target.name, "reverted", ledger, report, kept=kept, leftover=leftover)
