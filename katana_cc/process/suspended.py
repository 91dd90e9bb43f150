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

The word may be stale: of a coroutine that has ended, or is elsewhere, on a stack that is kept.  Where glibc's contexts
are all that switches, these tell (`contexts`); else no look can, and a person is told.

A coroutine that goes on in the old code of a replaced function meets what a caller does that `--allow-active` allows:
its code is still there but for the first bytes, which it has left behind; what it calls is new.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from katana_cc.cpu.native import code
from katana_cc.cpu.native import system as cpu
from katana_cc.errors import BusyError, TargetError
from katana_cc.process.activity import Finder, Guard
from katana_cc.process.contexts import Contexts, Held, can_be_found
from katana_cc.process.copies import room
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader
from katana_cc.process.proc import list_threads, waiting_at
from katana_cc.process.standing import WithoutPatches
from katana_cc.process.switching import Coroutines, Switching, find_switching, is_used
from katana_cc.process.target import Target, read_map
from katana_cc.process.waiting import Waiting
from katana_cc.process.watch import Watch, merged
from katana_cc.process.words import BATCH, WORD, Pages, Seeker, Word, to_search

_ROUNDS: Final = 5  # over what changed, before each stop
_ASK_AGAIN: Final = 10  # as a multiple of how long it took
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


class Clue(NamedTuple):
    """A word at an address that leads back into a guarded function; or a context there that goes on in one (`held`)."""

    guard: Guard
    address: int
    value: int
    held: Held | None = None


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
        self._clues: list[Clue] = []  # as of the last stop
        self._early: list[Clue] | None = None  # as of the first look, before any stop
        self._search: _Search | None = None
        self._may_be_seen = wish is Coroutines.FIND_OUT
        self._switching = Switching((), is_plain=False)
        self._unused_until = 0.0  # when it has to be asked again whether there is any coroutine
        if wish is not Coroutines.IGNORE:
            switching = find_switching(target)
            if wish is Coroutines.SEARCH:
                switching = replace(switching, is_plain=False)  # there is more than we know of
            if wish is Coroutines.SEARCH:
                self._begin(switching)
            else:
                self._switching = switching

    def _begin(self, switching: Switching) -> None:
        self._may_be_seen = False
        search = _Search(self._target, self._guards, self._finder, switching)
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
        if self._search is None and self._switching.names and self._are_in_use():
            self._begin(self._switching)
        if self._search is None or self._are_still_there():
            return
        clues, is_sure = self._search.ahead()
        if self._early is None:
            self._early = clues if is_sure else []

    def _are_in_use(self) -> bool:
        """Whether there may be a coroutine at all, as far as is known from the last look.  A program that makes its
        first one between that and the stop is not seen to."""
        begun = time.monotonic()
        if begun < self._unused_until:
            return False
        found = is_used(self._target, self._switching)
        now = time.monotonic()
        self._unused_until = now + _ASK_AGAIN * (now - begun)
        return found

    def refuse_early(self, waiting: Waiting) -> None:
        """Raises SuspendedError where a stop would be in vain."""
        found = self._clues if self._are_still_there() else self._early
        self._early = []  # a stop knows better: it has the next word
        if found:
            raise self._error(found, waiting)

    def look(self, waiting: Waiting) -> None:
        """With every thread stopped, and none found inside.

        Raises:
            SuspendedError: something leads back into a guarded function.
            SwitchingSeenError: let go, `prepare`, and try again.
        """
        if self._search is None:
            if not (self._may_be_seen and self._finder.strange):
                return
            self._begin(replace(self._switching, is_plain=False))
            if self._search is None:
                return
            raise SwitchingSeenError("a thread is on a stack that is not its own", where=self._target.where)
        self._clues = self._search.in_stop()
        if self._clues:
            raise self._error(self._clues, waiting)

    def _are_still_there(self) -> bool:
        """Whether some of what kept the last stop from being of use is as it was."""
        search = self._search
        return search is not None and any(search.is_still_there(clue) for clue in self._clues)

    def _error(self, clues: Sequence[Clue], waiting: Waiting) -> SuspendedError:
        clue = next((x for x in clues if x.held is not None), clues[0])
        name = clue.guard.name
        region = read_map(self._target.pid).at(clue.address)
        where = f"at {clue.address:#x}, in {(region.path if region is not None else '') or 'anonymous memory'},"
        if clue.held is not None:
            what = f"the context {where} goes on in it, frame {clue.held.frame}"
            stale = "the context is of one that has ended"
        else:
            what = f"the word {where} leads back into it"
            stale = "the word is stale, on the stack of one that has left it or has ended"
        more = f" (and {len(clues) - 1} more)" if len(clues) > 1 else ""
        remedy = "nothing was touched; wait longer (--wait)"
        if any(g.name == name and g.allowable for g in self._guards):
            remedy += f", or let it be active: --allow-active {name}"
        return SuspendedError(
            f"no safe moment in {waiting.tries} tries over {waiting.limit:g} s: a coroutine that is switched out may "
            f"be in {name}: {what}{more}; or {stale}",
            where=self._target.where,
            remedy=f"{remedy}; if you know that none is inside: --coroutines ignore",
        )


class _Search:
    """What leads back into guarded functions in the memory of one process."""

    def __init__(self, target: Target, guards: Sequence[Guard], finder: Finder, switching: Switching) -> None:
        self._target = target
        self._finder = finder
        self._returns = _returns(target, guards, finder)
        # One that is allowed to be active may still be where its first bytes are.
        self.can_be_met = bool(self._returns) or any(not g.allowed for g in guards)
        self._seeker = _Returning(guards, self._returns, finder)
        self._pages = Pages(target.pid)
        self._contexts = Contexts(target.memory, finder) if switching.is_plain and can_be_found() else None
        also = self._contexts.found_in if self._contexts is not None else None
        self._watch = Watch(BulkReader(target.memory, BATCH), room(), also)

    def close(self) -> None:
        """Release what is held of the process."""
        self._pages.close()

    def ahead(self) -> tuple[list[Clue], bool]:
        """Search all there is, while the process runs on.  What a stop would find now, and whether that is sure: not
        where a thread may be of which it is not known."""
        before = 0
        words: list[Word] = []
        for _ in range(_ROUNDS):
            regions = read_map(self._target.pid)
            words = self._watch.words(self._vectors(regions, ()), self._seeker)
            if self._watch.searched <= _LITTLE or 0 < before <= 2 * self._watch.searched:
                break
            before = self._watch.searched
        apart, stacks, is_sure = _apart(self._target.pid, words)
        return self._clues(apart, stacks), is_sure

    def in_stop(self) -> list[Clue]:
        """The same as of now, all threads being stopped."""
        regions, stacks = read_map(self._target.pid), self._finder.own_stacks
        # Live stacks too: contexts may be there.
        words = self._watch.words(self._vectors(regions, stacks), self._seeker)
        return self._clues(_outside(words, self._finder.decided), stacks)

    def is_still_there(self, clue: Clue) -> bool:
        """Whether what kept a stop from being of use is as it was."""
        if clue.held is not None:
            return self._contexts is not None and self._contexts.still_leads(clue.held)
        try:
            return int.from_bytes(self._target.memory.read(clue.address, WORD), "little") == clue.value
        except TargetError:
            return False  # its memory may be gone alone

    def _vectors(self, regions: MemoryMap, stacks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        # What several processes share holds no stack, and may be a file larger than memory.
        return to_search(regions.private(), (), stacks, self._pages.touched, self._pages.written)

    def _clues(self, words: Sequence[Word], stacks: Sequence[tuple[int, int]]) -> list[Clue]:
        """What counts of the words, and contexts; `stacks` as of `Finder.own_stacks`."""
        returning = [w for w in words if w.value in self._returns]
        counting = [w for w in words if w.value not in self._returns and self._was_interrupted(w)]
        result = []
        if self._contexts is not None:
            regions = read_map(self._target.pid)
            self._contexts.look(regions)
            result = [Clue(h.guard, h.address, 0, h) for h in self._contexts.held(_below(regions, stacks))]
            if all(map(self._contexts.explains, self._finder.strange)):
                returning = self._contexts.unknown(returning)
        for word in sorted((*returning, *counting)):
            guard = self._finder.guard_of_return(word.value) or self._finder.guard_of_pc(word.value)
            if guard is not None:
                result.append(Clue(guard, word.address, word.value))
        return result

    def _was_interrupted(self, word: Word) -> bool:
        """Whether a word is where a signal interrupted something, in a signal frame."""
        try:
            following = self._target.memory.read(word.address + WORD, cpu.PC_FOLLOWED_BY)
        except TargetError:
            return False
        return cpu.was_interrupted(following)


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


def _outside(words: Sequence[Word], ranges: Sequence[tuple[int, int]]) -> list[Word]:
    """The words that are in none of some (start, end)."""
    apart = merged(ranges)
    starts = [start for start, _ in apart]
    return [w for w in words if not ((i := bisect_right(starts, w.address)) and w.address < apart[i - 1][1])]


def _apart(pid: int, words: Sequence[Word]) -> tuple[list[Word], list[tuple[int, int]], bool]:
    """The words that are on no stack on which a thread waits; the (thread id, stack pointer) of these threads; and
    whether no thread is elsewhere."""
    regions = read_map(pid)
    stacks = []
    is_sure = True
    for tid in list_threads(pid):
        place = waiting_at(pid, tid)
        region = regions.at(place[0]) if place is not None else None
        if place is None or region is None or (tid == pid and region.path != "[stack]"):
            is_sure = False
        else:
            stacks.append((tid, place[0]))
    occupied = {region.start for _, pointer in stacks if (region := regions.at(pointer)) is not None}
    found = ((word, regions.at(word.address)) for word in words)
    apart = [w for w, r in found if r is not None and r.path != "[stack]" and r.start not in occupied]
    return apart, stacks, is_sure


def _below(regions: MemoryMap, stacks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, end) of what lies below the stack pointers of threads, where that is surely of their stacks."""
    result = []
    for _, pointer in stacks:
        region = regions.at(pointer)
        if region is not None and (region.path == "[stack]" or regions.is_guarded(region)):
            result.append((region.start, pointer - cpu.RED_ZONE))
    return result


def suspended(target: Target, guards: Sequence[Guard], finder: Finder, switching: Switching) -> tuple[Suspended, ...]:
    """What leads back into guarded functions from writable memory that is no stack of a thread; the process runs on.

    Raises:
        OSError: it is gone.
    """
    search = _Search(target, guards, finder, switching)
    try:
        clues, _ = search.ahead()
    finally:
        search.close()
    found: dict[str, list[int]] = {}
    for clue in clues:
        found.setdefault(clue.guard.name, []).append(clue.address)
    return tuple(Suspended(name, len(at), min(at)) for name, at in sorted(found.items()))
