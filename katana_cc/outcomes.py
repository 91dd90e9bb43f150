"""What comes of each process that a command is to patch: one table, of which text, JSON and exit statuses are made.

Several processes are patched all or none, so most of these say how the one stands that others depend on.  Words in JSON
are append-only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from katana_cc.errors import ExitStatus, KatanaError


class ProcessOutcome(StrEnum):
    """What came of one process."""

    APPLIED = "applied"
    ALREADY = "already applied"
    WOULD_APPLY = "would apply"
    WOULD_BE_REFUSED = "would be refused"
    REVERTED = "reverted"
    NOTHING = "nothing to revert"
    SKIPPED = "skipped"  # it ended meanwhile, and nobody had named it
    REFUSED = "refused"
    BUSY = "busy"
    FAILED = "failed"  # it cannot be reached, or died
    TAKEN_BACK = "taken back"  # it was done, and undone since another could not be
    NOT_TRIED = "not tried"  # it is as it was, since another could not be
    STUCK = "stuck"  # it was done, and could not be undone
    NOT_KNOWN = "not known"  # whether there is anything to be done, and nobody had named it

    @property
    def is_good(self) -> bool:
        """Whether nothing is left to be done about it."""
        return self in _GOOD


_GOOD: Final = frozenset(
    {
        ProcessOutcome.APPLIED,
        ProcessOutcome.ALREADY,
        ProcessOutcome.WOULD_APPLY,
        ProcessOutcome.REVERTED,
        ProcessOutcome.NOTHING,
        ProcessOutcome.SKIPPED,
    }
)
_NOT_DONE: Final = (
    ProcessOutcome.SKIPPED,
    ProcessOutcome.REFUSED,
    ProcessOutcome.BUSY,
    ProcessOutcome.FAILED,
    ProcessOutcome.TAKEN_BACK,
    ProcessOutcome.NOT_TRIED,
    ProcessOutcome.STUCK,
)
APPLYING: Final = (ProcessOutcome.APPLIED, ProcessOutcome.ALREADY, *_NOT_DONE)
REVERTING: Final = (ProcessOutcome.REVERTED, ProcessOutcome.NOTHING, *_NOT_DONE, ProcessOutcome.NOT_KNOWN)


_OF_STATUS: Final = {
    ExitStatus.REFUSED: ProcessOutcome.REFUSED,
    ExitStatus.HOOK: ProcessOutcome.REFUSED,
    ExitStatus.BUSY: ProcessOutcome.BUSY,
}


class OfProcess(NamedTuple):
    """What came of one process.  `what` says why it was not done, `remedy` what to do about it."""

    pid: int
    name: str
    outcome: ProcessOutcome
    what: str = ""
    remedy: str = ""

    @property
    def line(self) -> str:
        """The same in one line; no name drives the terminal."""
        why = f": {self.what.splitlines()[0]}" if self.what else ""
        text = f"pid {self.pid} ({self.name}): {self.outcome}{why}"
        return "".join(ch if ch.isprintable() else "?" for ch in text)

    def as_json(self) -> dict[str, Any]:
        """For a script."""
        return {
            "pid": self.pid,
            "name": self.name,
            "outcome": str(self.outcome),
            "what": self.what or None,
            "remedy": self.remedy or None,
        }


def outcome_of(error: KatanaError) -> ProcessOutcome:
    """What came of the process that an error is about."""
    return _OF_STATUS.get(error.status, ProcessOutcome.FAILED)


def counted(outcomes: Iterable[ProcessOutcome], always: Iterable[ProcessOutcome] = ()) -> Mapping[ProcessOutcome, int]:
    """How many there are of each, in the order of the table; those of `always` also where there are none."""
    counts = dict.fromkeys(always, 0)
    for outcome in outcomes:
        counts[outcome] = counts.get(outcome, 0) + 1
    return {outcome: counts[outcome] for outcome in ProcessOutcome if outcome in counts}


def counts_json(outcomes: Iterable[ProcessOutcome], always: Iterable[ProcessOutcome] = ()) -> dict[str, int]:
    """The same for a script."""
    return {str(outcome): count for outcome, count in counted(outcomes, always).items()}


def count_line(outcomes: Iterable[ProcessOutcome]) -> str:
    """The same in one line."""
    return ", ".join(f"{count} {outcome}" for outcome, count in counted(outcomes).items())
