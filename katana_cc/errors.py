"""The one error tree: what is wrong, where, and what to do next; each kind with its own exit status.

Raised anywhere, caught once in `katana_cc.cli`.  The statuses are the command line contract (README, "Exit status").
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # each link of a build imports this module, and patches no process
    from katana_cc.outcomes import OfProcess


class ExitStatus(IntEnum):
    """Exit statuses of every `katana` command."""

    DONE = 0
    USAGE = 2
    REFUSED = 3
    BUSY = 4
    UNREACHABLE = 5
    STORE = 6
    INVALID_PATCH = 7
    HOOK = 9  # 8 is taken: `katana diff --exit-code`, a decision is needed
    HOOK_AFTER = 10
    PARTLY = 11


class KatanaError(Exception):
    """Base of all errors a user can meet.  `remedy` says what to do next, `processes` what came of each process where
    several were to be patched."""

    status: ExitStatus = ExitStatus.USAGE

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy
        self.processes: tuple[OfProcess, ...] = ()

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  {self.remedy}" if self.remedy else head


class UsageError(KatanaError):
    """The command line makes no sense."""

    status = ExitStatus.USAGE


class RefusedError(KatanaError):
    """It could be done, but it would not be right; nothing was touched."""

    status = ExitStatus.REFUSED


class HookError(KatanaError):
    """A function of the user's that was to run before said no, faulted or took too long; nothing was changed."""

    status = ExitStatus.HOOK


class BusyError(KatanaError):
    """No safe point in time was found; nothing was touched."""

    status = ExitStatus.BUSY


class TargetError(KatanaError):
    """The target cannot be reached, or died."""

    status = ExitStatus.UNREACHABLE


class LaterKatanaError(TargetError):
    """A later katana wrote what has to be read in the target."""


class PartlyError(KatanaError):
    """It could not be done in all processes, nor undone in those where it was: they do not all run the same."""

    status = ExitStatus.PARTLY


class StoreError(KatanaError):
    """The store is missing, unreadable, of a later version, or has a gap where data is needed."""

    status = ExitStatus.STORE


class FormatError(KatanaError):
    """A file is not what it claims to be (ELF, link map, DWARF)."""

    status = ExitStatus.STORE


class InvalidPatchError(KatanaError):
    """A patch object is damaged, of a later format version, or no patch object at all."""

    status = ExitStatus.INVALID_PATCH
