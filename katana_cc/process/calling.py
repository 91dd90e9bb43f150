"""Calling functions of the target: in one thread that is stopped alone where that is safe, on a stack of its own.

Which thread will do, `safepoint.py` judges.  All others run on; the one stands for as long as the calls take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from katana_cc.errors import BusyError
from katana_cc.process.borrowing import BorrowedThread
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.imports import Linker
from katana_cc.process.inject import call_stack, unmap_scratch
from katana_cc.process.priority import first_in_line
from katana_cc.process.remote import RemoteThread
from katana_cc.process.safepoint import SafePoint
from katana_cc.process.target import Target

MAP_PRIVATE: Final = 0x02
MAP_ANONYMOUS: Final = 0x20
_CALL_STACK: Final = 256 * 1024
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05


@dataclass(frozen=True, slots=True)
class CallReport:
    """How it went: how long the one thread stood, and how often it was tried."""

    pause_us: float
    tries: int


@dataclass(frozen=True, slots=True)
class Calls:
    """Function calls in the stopped thread, on a stack of `size` bytes mapped for them, whose lowest bytes are free for
    use."""

    remote: RemoteThread
    stack: int
    size: int = _CALL_STACK

    def call(self, function: int, name: str, *arguments: int) -> int:
        """The result of a function, which takes integers.

        Raises:
            RefusedError: it did not return.
        """
        return self.remote.call(function, name, self.stack + self.size, *arguments)


class Caller:
    """Where and how to call functions in one process.  Making it looks at a thread, so that the frames where that waits
    are known when it is stopped for a call.

    Args:
        unwinders: addresses of functions that hold the unwinders' locks, as of `SafePoint`.

    Raises:
        TargetError, BusyError: no thread could be looked at.
    """

    def __init__(self, target: Target, unwinders: Collection[int] = ()) -> None:
        self._target = target
        self._gadgets = find_gadgets(target.memory, target.regions, target.where)
        self._safe = SafePoint(target, Linker.of(target.memory, target.modules), unwinders)
        seen: list[Sequence[int]] = []

        def note(words: Sequence[int]) -> str:
            seen.append(list(words))
            return ""

        with first_in_line(), self._stopped(note):
            pass
        self._safe.why_not(seen[-1])

    def run(self, wait: float, work: Callable[[Calls], None], stack_size: int = _CALL_STACK) -> CallReport:
        """Do `work` in a thread at a safe point, waiting up to `wait` seconds for one to be there.

        Raises:
            BusyError: none was.  Nothing was called.
            RefusedError: a call did not return.
        """
        deadline = time.monotonic() + wait
        pause, tries = _FIRST_PAUSE, 0
        while True:
            tries += 1
            try:
                fit = self._stopped(self._safe.why_not)
                with first_in_line(), fit as remote:
                    unmap_scratch(remote, self._target)
                    with call_stack(remote, self._target, stack_size) as stack:
                        work(Calls(remote, stack, stack_size))
                return CallReport(remote.pause_us, tries)
            except BusyError:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _stopped(self, unfit: Callable[[Sequence[int]], str]) -> BorrowedThread:
        return BorrowedThread(self._target.memory, self._gadgets, unfit)
