"""Which patches of a process are in force, by the bytes at their edits."""

from __future__ import annotations

from katana_cc.errors import RefusedError
from katana_cc.process.ledger import Ledger
from katana_cc.process.phases import Bytes, Phase
from katana_cc.process.standing import standings
from katana_cc.process.target import Target


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


def known_in_force(target: Target) -> list[Ledger]:
    """The ledgers of all patches that may be in force, altered ones too, but for those of a later katana."""
    ledgers = [m.ledger for m in target.known_patches if m.ledger is not None]
    found = standings(target.memory, ledgers)
    return [x for x in ledgers if found[x.base] in (Bytes.NEW, Bytes.TORN, Bytes.FOREIGN)]


def torn_with(target: Target, ledger: Ledger) -> list[Ledger]:
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
