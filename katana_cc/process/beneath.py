"""Which patch made the build that another one starts from: it lies beneath, and both have to become one."""

from __future__ import annotations

from collections.abc import Iterable

from katana_cc.errors import KatanaError
from katana_cc.process.ledger import Ledger
from katana_cc.process.phases import Bytes
from katana_cc.process.standing import standings
from katana_cc.process.target import Target


def patch_beneath(pids: Iterable[int], build_id: str) -> Ledger | None:
    """The patch that is in force in each of these processes and leads to a build; None where one of them runs that
    build itself, or has another patch, or cannot be looked at."""
    found: dict[str, Ledger] = {}
    for pid in pids:
        try:
            ledger = _of(pid, build_id)
        except KatanaError:
            return None  # whoever applies says why
        if ledger is None:
            return None
        found[ledger.patch_id] = ledger
    return next(iter(found.values())) if len(found) == 1 else None


def _of(pid: int, build_id: str) -> Ledger | None:
    with Target(pid) as target:
        if any(m.build_id == build_id for m in target.modules):
            return None
        ledgers = [m.ledger for m in target.patches if m.ledger is not None]
        stands = standings(target.memory, ledgers)
        return next((x for x in ledgers if x.to_build_id == build_id and stands[x.base] is Bytes.NEW), None)
