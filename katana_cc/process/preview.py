"""A look at the variables that would move while the target runs on: to refuse before anything is stopped, and to tell a
person what would happen.

What is seen may have changed by the time of the stop, which asks again.  Registers are not known, and the stack
pointers only of threads that wait: what is found on other stacks may be long dead, and is told but refuses nothing.

Source: proc_pid_syscall(5).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from katana_cc.errors import RefusedError
from katana_cc.process.carry import Cargo, Carry, look
from katana_cc.process.kernel import kept
from katana_cc.process.memory import BulkReader
from katana_cc.process.objections import judge
from katana_cc.process.objects import UnsteadyError
from katana_cc.process.proc import list_threads
from katana_cc.process.registers import RegisterWord
from katana_cc.process.target import Target
from katana_cc.process.uncollected import uncollected
from katana_cc.process.words import BATCH, Pages, Seeker

_LOOKS: Final = 4  # that must find the same wrong with objects on the heap


def preview(target: Target, carry: Carry) -> Cargo:
    """What would be written, as of now.

    Raises:
        TargetError: the process is gone.
    """
    with uncollected(), contextlib.closing(Pages(target.pid)) as pages:
        bulk = BulkReader(target.memory, BATCH)
        stacks = list(_stacks(target.pid))
        return look(carry, bulk, target.read_map(), stacks, _unknown, kept(target.pid), pages, is_stopped=False)


def wanted(target: Target, carry: Carry) -> dict[int, int]:
    """How many new blocks of each size objects on the heap would need, as of now; none where that cannot be told."""
    try:
        found = preview(target, carry).heap
    except RefusedError:
        return {}
    return found.placement.wanted if found is not None else {}


def refuse_early(target: Target, carry: Carry) -> Cargo | None:
    """Raises RefusedError for what the stop would refuse, too, unless it goes away by itself.  What would be written,
    where a look could tell."""
    refusals = []
    for _ in range(_LOOKS if carry.objects is not None else 1):
        try:
            cargo = preview(target, carry)
            lasting = tuple(s for s in cargo.strays if not s.is_passing)
            judge(carry, dataclasses.replace(cargo, strays=lasting))
        except UnsteadyError:
            return None
        except RefusedError as error:
            # Variables and heap are not read at one moment: what changes between is no reason.
            refusals.append(error)
        else:
            return cargo
    if len({str(error) for error in refusals}) == 1:
        raise refusals[0]
    return None


def _unknown(_seeker: Seeker) -> tuple[RegisterWord, ...]:
    """The registers of threads that run."""
    return ()


def _stacks(pid: int) -> Iterator[tuple[int, int]]:
    """(thread id, stack pointer) of the threads that wait."""
    for tid in list_threads(pid):
        try:
            fields = Path(f"/proc/{pid}/task/{tid}/syscall").read_text(encoding="utf-8").split()
        except OSError:
            continue
        if len(fields) > 2:
            yield tid, int(fields[-2], 16)
