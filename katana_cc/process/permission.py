"""Whether a patch object may be applied at all: its verdict, what the user granted, what old code may go on."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from katana_cc.cpu.choice import SUPPORTED, of, unsupported
from katana_cc.cpu.native import code, cpu
from katana_cc.diff.reasons import REFUSED, relies
from katana_cc.errors import RefusedError
from katana_cc.patch.model import PatchObject, Reason, Verdict
from katana_cc.patch.needs import Grant, needs_of, unmet


def refuse_unless_ready(po: PatchObject, granted: Collection[Grant] = ()) -> None:
    """Raises RefusedError with the reasons when the patch is refused, needs what is not granted, or is for another
    machine."""
    restart = "restart the process with the new build"
    if po.verdict is Verdict.REFUSED:
        told = [r for r in po.reasons if r.severity == REFUSED] or list(po.reasons)
        raise RefusedError(
            "the patch was refused when it was made" + _listed(told),
            where=po.identity.output,
            remedy=f"{restart}, or change the source so that the reasons go away",
        )
    open_needs = unmet(po, granted)
    if open_needs:
        options = " ".join(str(n.grant) for n in open_needs if n.grant)
        known = all(n.grant for n in open_needs)
        raise RefusedError(
            "the patch needs a decision first" + _listed([n.reason for n in open_needs]),
            where=po.identity.output,
            remedy=f"if that is right, apply it with {options}" if known else f"use a later katana, or {restart}",
        )
    if po.verdict is Verdict.NEEDS and not needs_of(po):
        raise RefusedError("the patch needs a decision, and does not say which", where=po.identity.output)
    if po.identity.machine not in SUPPORTED:
        raise RefusedError(unsupported(po.identity.machine), where=po.identity.output)
    if po.identity.machine != cpu.machine:
        raise RefusedError(f"the patch is for {of(po.identity.machine).name}, not {cpu.name}", where=po.identity.output)


def _listed(reasons: Iterable[Reason]) -> str:
    return "".join(f"\n    {f'{r.file}:{r.line}: ' if r.file else ''}{r.subject}: {r.text}" for r in reasons)


def why_not_active(po: PatchObject, number: int, bias: int, originals: dict[int, tuple[bytes, bytes]]) -> str:
    """Why a function must not be active when it is replaced: its old code would meet the jump from within, or new code
    that it does not fit.  Empty when the user may allow it."""
    r = po.replacements[number]
    for address in (r.address, *(start for start, _, _ in r.parts)):
        low = r.address - address
        if code.branches_into(originals[bias + address][0], low, low + code.JUMP_SIZE):
            return (
                f"it may call itself or jump back into its first {code.JUMP_SIZE} bytes, where its new code is entered"
            )
    for x in po.reliances:
        if x.caller == number:
            return f"it would go on in its old code, which {relies(po.replacements[x.callee].name, x.basis, x.through)}"
    return ""


def refuse_if_not_allowable(po: PatchObject, name: str, why: str) -> None:
    """Raises RefusedError when there is a reason (`why_not_active`) against leaving a function active."""
    if why:
        raise RefusedError(
            f"{name} cannot be replaced while it is active: {why}",
            where=po.identity.output,
            remedy=f"apply it without --allow-active {name}, at a moment when it does not run (--wait), or restart "
            "the process with the new build",
        )
