"""What a stop has to find out about data that moves, found out before it as far as that goes.

    before each stop    memory is searched (`katana_cc.process.watch`), objects on the heap are found and made anew
                        (`katana_cc.process.ahead`); then rounds over what changed meanwhile, until that gets no less
    in the stop         one more round

Where a round cannot tell in the stop, all is let go and done once more; after a few such tries, or where most of it
changed, everything is looked at in the stop, as long as that takes.  So nothing is decided here that a look at the
whole would not decide the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from katana_cc.errors import BusyError, RefusedError
from katana_cc.process.ahead import Ahead, OpenError, OverwhelmedError
from katana_cc.process.carry import Cargo, Carry, look, read_contents, search_ahead
from katana_cc.process.copies import room
from katana_cc.process.kernel import kept
from katana_cc.process.memory import BulkReader
from katana_cc.process.objects import ShortageError
from katana_cc.process.registers import RegisterWord
from katana_cc.process.repair import UnrepairableError
from katana_cc.process.target import Target, read_map
from katana_cc.process.uncollected import uncollected
from katana_cc.process.watch import Watch
from katana_cc.process.words import BATCH, Pages, Seeker

_ROUNDS: Final = 5  # over what changed, before each stop
_LITTLE: Final = 1 << 18  # bytes that another round is not worth
_TRIES: Final = 3  # of a stop, until everything is looked at in it


class UnevenError(BusyError):
    """What was found out before the stop did not come out even in it."""


class Rehearsal:
    """Looks at the data of one process that moves."""

    def __init__(self, target: Target, carry: Carry) -> None:
        self._target, self._carry = target, carry
        self._bulk = BulkReader(memory=target.memory, capacity=BATCH)
        self._pages = Pages(target.pid)
        self._watch = Watch(self._bulk, room())
        self._ahead: Ahead | None = None
        self._failures = 0

    def close(self) -> None:
        """Release what is held of the process."""
        self._pages.close()

    @property
    def is_whole(self) -> bool:
        """Whether the next stop looks at everything."""
        return self._carry.objects is None or self._failures >= _TRIES

    def look_at_the_whole(self) -> None:
        """Rest the next stop on nothing that was found out before."""
        self._failures, self._ahead = _TRIES, None

    def prepare(self) -> None:
        """Find out what can be before a stop.

        Raises:
            ShortageError: there are too few new blocks.
            TargetError: the process is gone.
        """
        with uncollected():
            before = 0
            for _ in range(_ROUNDS):
                changed = self._round()
                if changed <= _LITTLE or 0 < before <= 2 * changed:
                    break
                before = changed

    def _round(self) -> int:
        """One round; how many bytes had changed."""
        changed = 0
        if not self.is_whole:
            with contextlib.suppress(BusyError):
                changed = self._round_of_objects()
        if self._carry.objects is None or self._ahead is not None:
            search_ahead(self._carry, read_map(self._target.pid), self._pages, self._watch, self._ahead)
            changed += self._watch.searched
        return changed

    def _round_of_objects(self) -> int:
        carry = self._carry
        try:
            regions = read_map(self._target.pid)
            contents = read_contents(carry, self._bulk)
            if self._ahead is not None:
                return self._ahead.round(regions, contents)
            if carry.objects is not None:
                self._ahead = Ahead(carry.objects, carry.passages, carry.edited, self._bulk, regions, contents)
        except UnrepairableError:
            self._ahead = None
            self._failures += 1
        except ShortageError:
            raise
        except RefusedError:
            self.look_at_the_whole()
        return 2 * _LITTLE

    def look(
        self,
        stacks: Sequence[tuple[int, int]],
        registers: Callable[[Seeker], Iterable[RegisterWord]],
    ) -> Cargo:
        """What is to be written, with every thread stopped.

        Args:
            stacks, registers: as of `katana_cc.process.carry.look`.

        Raises:
            UnevenError: try again.
            TargetError, BusyError, RefusedError: as of `katana_cc.process.carry.look`.
        """
        pid = self._target.pid
        always = self._carry, self._bulk, read_map(pid), stacks, registers, list(kept(pid)), self._pages
        watch = self._watch if self._carry.objects is None or self._ahead is not None else None
        try:
            return look(*always, watch, self._ahead, is_stopped=True)
        except OverwhelmedError:
            self._ahead = None
            return look(*always, is_stopped=True)
        except UnrepairableError as error:
            self._failures += 1
            if not isinstance(error, OpenError) or self.is_whole:
                self._ahead = None
            raise UnevenError(
                f"the objects on its heap do not come out even: {error}",
                where=self._target.where,
                remedy="wait longer (--wait)",
            ) from None
