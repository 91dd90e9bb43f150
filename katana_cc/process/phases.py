"""What a patch in a target goes through: one table, and what the bytes at the edits say of it.

The ledger's state field is a hint of how far a katana that died had come; the truth is always the bytes.  An illegal
step changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, StrEnum

from katana_cc.errors import RefusedError


class Phase(IntEnum):
    """State field of the ledger; numbers on disk are append-only."""

    MAPPED = 0  # code is in place, nothing leads to it
    COMMITTING = 1
    APPLIED = 2
    REVERTING = 3
    REVERTED = 4


class Step(StrEnum):
    """What a katana does next."""

    BEGIN_COMMIT = "begin commit"
    END_COMMIT = "end commit"
    BEGIN_REVERT = "begin revert"
    END_REVERT = "end revert"


TRANSITIONS: dict[tuple[Phase, Step], Phase] = {
    (Phase.MAPPED, Step.BEGIN_COMMIT): Phase.COMMITTING,
    (Phase.COMMITTING, Step.END_COMMIT): Phase.APPLIED,
    (Phase.APPLIED, Step.BEGIN_REVERT): Phase.REVERTING,
    (Phase.REVERTING, Step.END_REVERT): Phase.REVERTED,
    (Phase.REVERTED, Step.BEGIN_COMMIT): Phase.COMMITTING,
    # A katana that died between begin and end: the same is begun again, or turned back.
    (Phase.COMMITTING, Step.BEGIN_COMMIT): Phase.COMMITTING,
    (Phase.COMMITTING, Step.BEGIN_REVERT): Phase.REVERTING,
    (Phase.REVERTING, Step.BEGIN_REVERT): Phase.REVERTING,
    (Phase.REVERTING, Step.BEGIN_COMMIT): Phase.COMMITTING,
    # One that died after the last byte and before the state: only the state is behind.
    (Phase.APPLIED, Step.BEGIN_COMMIT): Phase.COMMITTING,
    (Phase.MAPPED, Step.BEGIN_REVERT): Phase.REVERTING,
    (Phase.REVERTED, Step.BEGIN_REVERT): Phase.REVERTING,
}


def step(phase: Phase, taken: Step) -> Phase:
    """The phase after a step.

    Raises:
        RefusedError: the step does not follow from the phase.
    """
    following = TRANSITIONS.get((phase, taken))
    if following is None:
        raise RefusedError(f"cannot {taken.value} a patch that is {phase.name.lower()}")
    return following


class Bytes(StrEnum):
    """What stands at the edits of a patch."""

    NEW = "applied"
    OLD = "not applied"
    TORN = "half applied"  # every byte is an old or a new one: a katana died while it wrote
    FOREIGN = "altered"  # someone else has written there


def judge_bytes(edits: Iterable[tuple[bytes, bytes, bytes]]) -> Bytes:
    """From (old, new, found) of every edit.  No edits at all count as applied."""
    seen = set()
    for old, new, found in edits:
        if found == new:
            seen.add(Bytes.NEW)
        elif found == old:
            seen.add(Bytes.OLD)
        elif len(found) == len(old) and all(f in (o, n) for o, n, f in zip(old, new, found, strict=True)):
            seen.add(Bytes.TORN)
        else:
            return Bytes.FOREIGN
    if seen <= {Bytes.NEW}:
        return Bytes.NEW
    return Bytes.OLD if seen == {Bytes.OLD} else Bytes.TORN
