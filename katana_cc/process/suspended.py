"""Code on stacks that no thread runs on: coroutines that are switched out.

Theory of operation.  Nothing tells where such a stack is.  But a coroutine that is inside a function has left a word
that leads back into it: the return address of the call that it is in.  So where a program switches stacks by itself
(`switching`), all memory that it can write to is searched for words that lead behind a call in a replaced function; but
for the live parts of stacks of threads, which are unwound (`activity`), and what is below them.  A function that a
signal interrupted, whose handler switched, is met anywhere, not only behind a call: there the word stands in a signal
frame, which its neighbours show.

    before a stop   all of it is searched, and copied (`watch`)
    in the stop     it is read and compared; pages that changed are searched
    a word found    counts as activity: all is let go, and no other stop is made while the word is there

The word may be stale: of a coroutine that has ended, or is elsewhere, on a stack that is kept.  That no look can tell,
and a person is told.

A coroutine that goes on in the old code of a replaced function meets what a caller does that `--allow-active` allows:
its code is still there but for the first bytes, which it has left behind; what it calls is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from katana_cc.cpu.native import code
from katana_cc.cpu.native import system as cpu
from katana_cc.errors import BusyError, TargetError
from katana_cc.process.activity import Finder, Guard
from katana_cc.process.copies import room
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader
from katana_cc.process.standing import WithoutPatches
from katana_cc.process.switching import Coroutines, switchers
from katana_cc.process.target import Target, read_map
from katana_cc.process.threads import list_threads, waiting_at
from katana_cc.process.waiting import Waiting
from katana_cc.process.watch import Watch
from katana_cc.process.words import BATCH, WORD, Pages, Seeker, Word, merged, to_search

_ROUNDS: Final = 5  # over what changed, before each stop
_LITTLE: Final = 1 << 18  # bytes that another round is not worth


class SuspendedError(BusyError):
    """A word leads back into a guarded function, and no thread runs on the stack where it is, if it is one."""


class SwitchingSeenError(BusyError):
    """A program that was not known to switch stacks does: memory has to be searched first."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """A replaced function into which `words` lead back, the first of them at `address`."""

    function: str
    words: int
    address: int


class Suspects:
    """Looks for coroutines of one process that are inside guarded functions.

    Args:
        finder: looks at the stacks of its threads, in each stop before this does.
        wish: what the user said.
    """

    def __init__(self, target: Target, guards: Sequence[Guard], finder: Finder, wish: Coroutines) -> None:
        self._target = target
        self._guards = guards
        self._finder = finder
        self._held: list[Word] = []  # as of the last stop
        self._early: list[Word] | None = None  # as of the first look, before any stop
        self._search: _Search | None = None
        self._may_be_seen = wish is Coroutines.FIND_OUT
        if wish is Coroutines.SEARCH or (wish is Coroutines.FIND_OUT and switchers(target)):
            self._begin()

    def _begin(self) -> None:
        self._may_be_seen = False
        search = _Search(self._target, self._guards, self._finder)
        if search.can_be_met:
            self._search = search
        else:
            search.close()

    def close(self) -> None:
        """Release what is held of the process."""
        if self._search is not None:
            self._search.close()

    @property
    def is_on(self) -> bool:
        """Whether memory is searched."""
        return self._search is not None

    def prepare(self) -> None:
        """Find out what can be before a stop.

        Raises:
            OSError: the process is gone.
        """
        if self._search is None or self._still_held():
            return
        self._held = []
        words, is_sure = self._search.ahead()
        if self._early is None:
            self._early = words if is_sure else []

    def refuse_early(self, waiting: Waiting) -> None:
        """Raises SuspendedError where a stop would be in vain."""
        found = self._held or self._early
        self._early = []  # a stop knows better: it has the next word
        if found:
            raise self._error(found, waiting)

    def look(self, waiting: Waiting) -> None:
        """With every thread stopped, and none found inside.

        Raises:
            SuspendedError: a word leads back into a guarded function.
            SwitchingSeenError: let go, `prepare`, and try again.
        """
        if self._search is None:
            if not (self._may_be_seen and self._finder.is_switching):
                return
            self._begin()
            if self._search is None:
                return
            raise SwitchingSeenError("a thread is on a stack that is not its own", where=self._target.where)
        self._held = self._search.in_stop()
        if self._held:
            raise self._error(self._held, waiting)

    def _still_held(self) -> bool:
        """Whether a word that kept a stop from being of use is still there."""
        for word in self._held:
            try:
                if int.from_bytes(self._target.memory.read(word.address, WORD), "little") == word.value:
                    return True
            except TargetError:
                continue  # its memory may be gone alone
        return False

    def _error(self, words: Sequence[Word], waiting: Waiting) -> SuspendedError:
        first = words[0]
        guard = self._finder.guard_of_return(first.value) or self._finder.guard_of_pc(first.value)
        assert guard is not None
        region = read_map(self._target.pid).at(first.address)
        what = (region.path if region is not None else "") or "anonymous memory"
        more = f" (and {len(words) - 1} more)" if len(words) > 1 else ""
        remedy = "nothing was touched; wait longer (--wait)"
        if any(g.name == guard.name and g.allowable for g in self._guards):
            remedy += f", or let it be active: --allow-active {guard.name}"
        return SuspendedError(
            f"no safe moment in {waiting.tries} tries over {waiting.limit:g} s: a coroutine that is switched out may "
            f"be in {guard.name}: the word at {first.address:#x}, in {what}, leads back into it{more}; or it is a "
            "stale one, on the stack of a coroutine that has left it or has ended",
            where=self._target.where,
            remedy=f"{remedy}; if you know that none is inside: --coroutines ignore",
        )


class _Search:
    """The words of one process that lead back into guarded functions."""

    def __init__(self, target: Target, guards: Sequence[Guard], finder: Finder) -> None:
        self._target = target
        self._finder = finder
        self._returns = _returns(target, guards, finder)
        # One that is allowed to be active may still be where its first bytes are.
        self.can_be_met = bool(self._returns) or any(not g.allowed for g in guards)
        self._seeker = _Returning(guards, self._returns, finder)
        self._pages = Pages(target.pid)
        self._watch = Watch(BulkReader(target.memory, BATCH), room())

    def close(self) -> None:
        """Release what is held of the process."""
        self._pages.close()

    def ahead(self) -> tuple[list[Word], bool]:
        """Search all there is, while the process runs on.  The words that a stop would find now, and whether that is
        sure: not where a thread may be of which it is not known."""
        before = 0
        words: list[Word] = []
        for _ in range(_ROUNDS):
            regions = read_map(self._target.pid)
            words = self._watch.words(self._vectors(regions, (), ()), self._seeker)
            if self._watch.searched <= _LITTLE or 0 < before <= 2 * self._watch.searched:
                break
            before = self._watch.searched
        apart, is_sure = _apart(self._target.pid, words)
        return list(self._counting(apart)), is_sure

    def in_stop(self) -> list[Word]:
        """The words as of now, all threads being stopped."""
        vectors = self._vectors(read_map(self._target.pid), self._finder.decided, self._finder.own_stacks)
        return list(self._counting(self._watch.words(vectors, self._seeker)))

    def _vectors(
        self, regions: MemoryMap, spared: Sequence[tuple[int, int]], stacks: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        return to_search(regions, spared, stacks, self._pages.touched, self._pages.written)

    def _counting(self, words: Sequence[Word]) -> Iterator[Word]:
        """Those that are return addresses, or of a signal frame."""
        for word in words:
            if word.value in self._returns:
                yield word
                continue
            try:
                following = self._target.memory.read(word.address + WORD, cpu.PC_FOLLOWED_BY)
            except TargetError:
                continue
            if cpu.was_interrupted(following):
                yield word


class _Returning(Seeker):
    """Words that lead into guarded functions, to where something may go on."""

    def __init__(self, guards: Sequence[Guard], returns: frozenset[int], finder: Finder) -> None:
        ranges = merged((g.start + 1, g.start + 1 + g.size) for g in guards)
        super().__init__((start, end - start) for start, end in ranges)
        self._returns = returns
        self._finder = finder

    def leads(self, value: int) -> bool:
        """The same without the entries."""
        return value in self._returns or self._finder.guard_of_pc(value) is not None


def _returns(target: Target, guards: Sequence[Guard], finder: Finder) -> frozenset[int]:
    """The addresses behind calls in guarded functions, as they are and as they were before any patch."""
    unpatched = WithoutPatches(target.memory, (m.ledger for m in target.patches if m.ledger is not None))
    found: set[int] = set()
    for guard in guards:
        for reader in (target.memory, unpatched):
            found.update(guard.start + end for end in code.behind_calls(reader.read(guard.start, guard.size)))
    return frozenset(address for address in found if finder.guard_of_return(address) is not None)


def _apart(pid: int, words: Sequence[Word]) -> tuple[list[Word], bool]:
    """The words that are on no stack on which a thread waits; and whether no thread is elsewhere."""
    regions = read_map(pid)
    occupied: set[int] = set()
    is_sure = True
    for tid in list_threads(pid):
        place = waiting_at(pid, tid)
        region = regions.at(place[0]) if place is not None else None
        if region is None or (tid == pid and region.path != "[stack]"):
            is_sure = False
        else:
            occupied.add(region.start)
    found = ((word, regions.at(word.address)) for word in words)
    return [w for w, r in found if r is not None and r.path != "[stack]" and r.start not in occupied], is_sure


def suspended(target: Target, guards: Sequence[Guard], finder: Finder) -> tuple[Suspended, ...]:
    """What leads back into guarded functions from writable memory that is no stack of a thread; the process runs on.

    Raises:
        OSError: it is gone.
    """
    search = _Search(target, guards, finder)
    try:
        found: dict[str, list[int]] = {}
        for word in search.ahead()[0]:
            guard = finder.guard_of_return(word.value) or finder.guard_of_pc(word.value)
            if guard is not None:
                found.setdefault(guard.name, []).append(word.address)
    finally:
        search.close()
    return tuple(Suspended(name, len(at), min(at)) for name, at in sorted(found.items()))
