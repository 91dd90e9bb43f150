"""The processes of one transaction, and what it means for the others when one cannot be patched.

A process that ends meanwhile has nothing left to be patched: unless it was named by its process id, it is left out and
the others go on.  Any other failure ends it for all; what came of each is then told with the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from katana_cc.errors import KatanaError, PartlyError, TargetError
from katana_cc.outcomes import OfProcess, ProcessOutcome, outcome_of
from katana_cc.process.identify import NotThisBuildError
from katana_cc.process.proc import has_ended, process_name
from katana_cc.process.target import Target

_ENDED = "it ended meanwhile, or became another program"


class NotKnownError(TargetError):
    """Whether a process, which nobody named, is one of those that are meant."""


@dataclass(slots=True, kw_only=True)
class Member:
    """One process under way.

    `before` is how it stood when it was first looked at, if nothing is to be done to it; `error` is what kept it from
    being done, `is_out` says that it was left out, `is_undone` that it was done and taken back, `stuck` why that could
    not be.
    """

    target: Target
    before: ProcessOutcome | None = None
    error: KatanaError | None = None
    is_out: bool = False
    is_undone: bool = False
    stuck: str = ""

    def told(self) -> OfProcess:
        """What came of it, where not all could be done."""
        head = self.target.pid, self.target.name
        if self.stuck:
            return OfProcess(*head, ProcessOutcome.STUCK, self.stuck, "restart the process, or run katana again")
        if self.is_out:
            return OfProcess(*head, ProcessOutcome.SKIPPED, _ENDED)
        if self.error is not None:
            return of_error(*head, self.error)
        if self.is_undone:
            return OfProcess(*head, ProcessOutcome.TAKEN_BACK)
        return OfProcess(*head, self.before or ProcessOutcome.NOT_TRIED)


SomeMember = TypeVar("SomeMember", bound=Member)


def of_error(pid: int, name: str, error: KatanaError) -> OfProcess:
    """What an error says of the process that it is about."""
    return OfProcess(pid, name, outcome_of(error), error.what, error.remedy)


def ended(pid: int) -> OfProcess:
    """One that ended before it was looked at."""
    return OfProcess(pid, process_name(pid), ProcessOutcome.SKIPPED, _ENDED)


def open_all(
    pids: Iterable[int],
    look: Callable[[Target], SomeMember],
    members: list[SomeMember],
    skipped: list[OfProcess],
    *,
    is_named: bool,
) -> None:
    """Open all of them and look at each, so that of each is told what is in the way.

    Args:
        members: gets them.
        skipped: gets those that have ended, or became another program, and those that are not known to be meant; of
            processes that were named none may.

    Raises:
        KatanaError: the first that was in the way; nothing is open then.
    """
    told: list[OfProcess] = []
    errors: list[KatanaError] = []
    try:
        for pid in pids:
            target = None
            try:
                target = Target(pid)
                target.start  # noqa: B018  (while it can be read)
                members.append(look(target))
                told.append(members[-1].told())
            except Exception as error:
                is_gone = target.has_gone() if target is not None else isinstance(error, TargetError) and has_ended(pid)
                name = target.name if target is not None else "?"
                if target is not None:
                    target.close()
                # Of many processes some end, or are no business of ours.
                if not is_named and (is_gone or isinstance(error, NotThisBuildError)):
                    skipped.append(ended(pid))
                elif not is_named and isinstance(error, NotKnownError):
                    skipped.append(OfProcess(pid, name, ProcessOutcome.NOT_KNOWN, error.what, error.remedy))
                elif isinstance(error, KatanaError):
                    errors.append(error)
                    told.append(of_error(pid, name, error))
                else:
                    raise
            except BaseException:
                if target is not None:
                    target.close()
                raise
        if errors:
            errors[0].processes = tuple(told)
            raise errors[0]
    except BaseException:
        for member in members:
            member.target.close()
        raise


def in_each(members: Iterable[SomeMember], step: Callable[[SomeMember], None], *, may_end: bool) -> None:
    """Do a step in each that has something to be done.

    Args:
        may_end: one that has ended is left out.

    Raises:
        KatanaError: it cannot be done in one, which knows it (`error`).
    """
    for member in members:
        if member.is_out or member.before is not None:
            continue
        try:
            step(member)
        except Exception as error:
            # Whatever was in the way, it is no more; of one that is ending, memory and /proc are half there.
            if may_end and member.target.has_gone():
                member.is_out = True
                continue
            if isinstance(error, KatanaError):
                member.error = error
            raise


def failed(error: BaseException, told: Sequence[OfProcess]) -> BaseException:
    """The error that ends the transaction, which tells what came of each process: another one where not all of them
    could be put back."""
    stuck = [p for p in told if p.outcome is ProcessOutcome.STUCK]
    if not stuck:
        if isinstance(error, KatanaError):
            error.processes = tuple(told)
        return error
    known = error if isinstance(error, KatanaError) else None
    what = known.what if known is not None else f"interrupted ({type(error).__name__})"
    stays = [f"pid {p.pid} ({p.name}): {p.what}" for p in stuck]
    partly = PartlyError(
        f"{what}\n  and not all could be put back as it was: {'; '.join(stays)}",
        where=known.where if known is not None else "",
        remedy=known.remedy.replace("nothing was touched; ", "") if known is not None else "",
    )
    partly.processes = tuple(told)
    return partly
