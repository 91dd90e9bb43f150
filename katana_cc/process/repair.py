"""A walk kept up to date: what it found, repaired where memory changed.  Pure, like the walk itself.

Theory of operation.  A walk (`katana_cc.process.walk`) leaves a tree: each object was found by one pointer, its *way*,
and objects nearer to the variables were found earlier.  Its result stays right as long as

    each object's way is still there            so it is reached
    each pointer in an object leads to one, or leads nowhere in a way that the walk accepts
                                                so nothing else is reached

so only pointers that changed, and those that lead to blocks that changed, have to be looked at.  Where an object lost
its way it needs another (`katana_cc.process.ways`).

All pointers are counted by where they lead.  An object to which none leads any more is no longer found, nor is what
only it led to.  Objects that lead to each other and that nothing else leads to keep their numbers and find no way: that
is one of the cases in which the repair is given up, as wherever the walk would have to judge by more than one pointer
(two types for a block).  Giving up costs time, and nothing else: then the walk itself decides.

Memory that was read while the process ran is of no one moment: a pointer may lead to a block that is not there yet, an
object may be unlinked here and not yet linked there.  What is open in that way stays open until the next round; only of
a moment at which every thread was stopped (`is_exact`) all has to come out even.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple, Protocol

from katana_cc.process.columns import columns
from katana_cc.process.dangling import Dangling
from katana_cc.process.reachable import Blocks, Found, Pieces, Reached, Trouble, WalkedType
from katana_cc.process.walk import could_be, slack
from katana_cc.process.ways import Read, Slot, Ways

_OPEN: Final = frozenset((Trouble.FREE, Trouble.NO_BLOCK, Trouble.INSIDE))  # may be of a moment only


class ToldBlocks(Blocks, Protocol):
    """Blocks that are kept up to date."""

    def is_told(self, address: int) -> bool:
        """Whether it is told when a block there is given out or taken back; else it has to be asked for."""


class UnrepairableError(Exception):
    """Only the walk itself can tell.  What was known of it is of no use any more."""


class Repaired(NamedTuple):
    """What changed: numbers of objects that were found anew, and that are found no more; `former`: objects as they were
    whose blocks have another size by now; what is still open, in words, "" where nothing is."""

    added: list[int]
    dropped: list[int]
    former: list[Found]
    open: str


class Repair(Ways):
    """What a walk found, and is kept up to date.

    Args:
        types, reached: as of `Ways`.
        blocks, memory: as the walk was given them.

    Raises:
        UnrepairableError: the walk met what it had to judge by more than one pointer.
    """

    def __init__(self, types: Sequence[WalkedType], reached: Reached, blocks: ToldBlocks, memory: Pieces) -> None:
        super().__init__(types, reached)
        self._blocks, self._memory = blocks, memory
        self._count: Counter[int] = Counter()  # where a pointer leads → how many do
        self._special: set[int] = set()  # blocks of which pointers say different things
        self._lost: set[int] = set()  # objects to which some pointer no longer leads
        self._clashes: dict[int, dict[Slot, int]] = {}  # of objects, pointers that take them for something else
        self._added: list[int] = []
        self._replaced: list[int] = []
        self._former: list[Found] = []
        self._queue: dict[Slot, tuple[int, int]] = {}  # pointers to be judged: where they lead, and their type
        for u in reached.unfollowed:
            if u.trouble not in _OPEN:
                raise UnrepairableError(u.trouble.value)
        self._dangling = Dangling(self._survey(), ((u.holder, u.at) for u in reached.unfollowed))

    def follow(
        self,
        touched: Iterable[int],
        gone: Mapping[int, int],
        came: Mapping[int, int],
        before: Read,
        now: Read,
        roots: Sequence[bytes],
        *,
        is_exact: bool,
    ) -> Repaired:
        """Take over what changed.

        Args:
            touched: the numbers of the objects in which a byte may have changed.
            gone, came: blocks in use, as of `katana_cc.process.table.Difference`.
            before, now: memory as it was at the last round, and as it is.
            roots: what the variables hold now.
            is_exact: `now` is of one moment.

        Raises:
            UnrepairableError: make the walk anew.
        """
        if not self.begin_round():
            raise UnrepairableError("too many rounds")
        self._added = []
        self._replaced = []
        self._former = []
        self._queue = {}
        self._blocks_changed(gone, came, before, now)
        revived = set(self._added)
        for number in touched:
            f = self.objects[number]
            is_there = number not in self._freed and self.numbers.get(f.address) == number
            if is_there and number not in revived:
                size = f.elements * self._kinds[f.type].size
                self._compare(number, before(f.address, size), now(f.address, size))
        self._compare_roots(roots)
        self._look_again(v for v in self._dangling.values if not self._blocks.is_told(v))
        for _ in range(2):  # the second time for pointers into the middle of what was found the first time
            self._discover(now)
            if self._dangling.is_pending:
                self._look_again(self._dangling.pending())
        self._discover(now)
        dropped = []
        while is_exact and self._lost:
            dropped += self._drop(now)
            self._discover(now)
        self.place(now)
        if self._unplaced:
            self._find_ways()
            self.place(now)
        added = [n for n in self._added if self.numbers.get(self.objects[n].address) == n]
        return Repaired(added, [*self._replaced, *dropped], self._former, self._what_is_open() if is_exact else "")

    # -- what the walk found -------------------------------------------------------------------------------------------

    def _survey(self) -> dict[int, dict[Slot, int]]:
        """Count all pointers, and see which are not plain; those that lead to no object, as of `Dangling`."""
        dangling: dict[int, dict[Slot, int]] = {}
        for f in self.objects:
            if self._target_of(f.holder, f.at) != f.type:
                self._special.add(f.address)
        for column in columns(self._kinds, self.objects, range(len(self.objects)), self._memory):
            self._count.update(column.values)
            odd = self._odd_among(set(column.values), column.target)
            for value, slot in column.leading_to(odd):
                dangling.setdefault(value, {})[slot] = column.target
        for n, root in enumerate(self.roots):
            for value, target, at in self._root_slots(n, root.content):
                self._count[value] += 1
                if value in self._odd_among({value}, target):
                    dangling.setdefault(value, {})[-1 - n, at] = target
        del self._count[0]
        return dangling

    def _find_ways(self) -> None:
        """Of objects without a way, find all pointers that may be one: also those that did not change."""
        wanted = {self.objects[n].address for n in self._unplaced}
        there = (n for n in self.numbers.values() if n not in self._freed)
        for column in columns(self._kinds, self.objects, there, self._memory):
            for value, slot in column.leading_to(wanted):
                number = self.numbers.get(value)
                if number is not None and self.objects[number].type == column.target:
                    self._ways.setdefault(number, set()).add(slot)
        for n, root in enumerate(self.roots):
            for value, target, at in self._root_slots(n, root.content):
                number = self.numbers.get(value)
                if number in self._unplaced and self.objects[number].type == target:
                    self._ways.setdefault(number, set()).add((-1 - n, at))

    def _odd_among(self, values: Iterable[int], target: int) -> set[int]:
        """Those that lead to no object and no variable; notes the blocks of which they say what others do not."""
        odd = set()
        for value in values:
            number = self.numbers.get(value)
            if number is None:
                if value and not self._in_variable(value):
                    odd.add(value)
            elif (there := self.objects[number].type) != target and target not in self._kinds[there].starts:
                self._special.add(value)
        return odd

    # -- pointers that changed -----------------------------------------------------------------------------------------

    def _blocks_changed(self, gone: Mapping[int, int], came: Mapping[int, int], before: Read, now: Read) -> None:
        for start in gone:
            number = self.numbers.get(start)
            if number is not None and number not in self._freed:
                size = self.objects[number].elements * self._kinds[self.objects[number].type].size
                for value, _, at in list(self._slots(number, before(start, size))):
                    self._lose(value, number, at)
                self._freed.add(number)
                self._lost.add(number)
        for start, size in came.items():
            number = self.numbers.get(start)
            if number is not None and number in self._freed:
                self._revive(number, size, now)
        if self._dangling.values:
            for start, size in chain(gone.items(), came.items()):
                self._look_again_within(start, size)

    def _compare(self, number: int, before: bytes, now: bytes) -> None:
        if before == now:
            return
        was = {at: (value, target) for value, target, at in self._slots(number, before)}
        for value, target, at in self._slots(number, now):
            there = was.pop(at, None)
            if there is None or there[0] != value:
                if there is not None:
                    self._lose(there[0], number, at)
                self._gain(value, target, number, at)
        for at, (value, _) in was.items():
            self._lose(value, number, at)

    def _compare_roots(self, contents: Sequence[bytes]) -> None:
        roots = []
        for n, (root, content) in enumerate(zip(self.roots, contents, strict=True)):
            if content != root.content:
                was = {at: value for value, _, at in self._root_slots(n, root.content)}
                for value, target, at in self._root_slots(n, content):
                    there = was.pop(at, 0)
                    if there != value:
                        self._lose(there, -1 - n, at)
                        self._gain(value, target, -1 - n, at)
                for at, value in was.items():
                    self._lose(value, -1 - n, at)
            roots.append(root._replace(content=content))
        self.roots = tuple(roots)

    def _enter(self, number: int, now: Read) -> None:
        """All pointers of an object are new."""
        for value, target, at in self._slots_now(number, now):
            self._gain(value, target, number, at)

    def _gain(self, value: int, target: int, holder: int, at: int) -> None:
        self._count[value] += 1
        self._queue[holder, at] = value, target

    def _lose(self, value: int, holder: int, at: int) -> None:
        if not value:
            return
        if value in self._special:
            raise UnrepairableError("a pointer to what others take for something else")
        self._count[value] -= 1
        slot = holder, at
        self._queue.pop(slot, None)
        self._dangling.remove(value, slot)
        number = self.numbers.get(value)
        if number is not None:
            self._lost.add(number)
            self._ways.get(number, set()).discard(slot)
            self._clashes.get(number, {}).pop(slot, None)
            f = self.objects[number]
            if (f.holder, f.at) == slot:
                self._unplaced.add(number)

    def _look_again(self, values: Iterable[int]) -> None:
        """Judge pointers anew that lead to no object."""
        for value, slot, target in self._dangling.take(values):
            self._queue[slot] = value, target

    def _look_again_within(self, start: int, size: int) -> None:
        self._look_again(self._dangling.within(start, size))

    # -- where they lead -----------------------------------------------------------------------------------------------

    def _discover(self, now: Read) -> None:
        """Judge all new pointers, and those of the objects that they lead to.  As `walk` does it."""
        self._judge(now)
        while self._replace(now):
            self._judge(now)

    def _replace(self, now: Read) -> bool:
        """Take out objects whose blocks were given out again for something else: nothing leads there that means them.
        Whether there was one."""
        found = False
        for number, slots in list(self._clashes.items()):
            f = self.objects[number]
            if not slots or self.numbers.get(f.address) != number:
                del self._clashes[number]
            elif self._count[f.address] == len(slots):
                for value, _, at in self._slots_now(number, now):
                    self._lose(value, number, at)
                self._forget(number)
                self._replaced.append(number)
                self._queue.update({slot: (f.address, target) for slot, target in slots.items()})
                found = True
        return found

    def _forget(self, number: int) -> None:
        del self.numbers[self.objects[number].address]
        self._freed.discard(number)
        self._unplaced.discard(number)
        self._ways.pop(number, None)
        self._clashes.pop(number, None)

    def _judge(self, now: Read) -> None:
        while self._queue:
            (holder, at), (value, target) = self._queue.popitem()
            if value in self._special:
                raise UnrepairableError("a pointer to what others take for something else")
            number = self.numbers.get(value)
            if number in self._freed and not self._blocks.is_told(value):
                block = self._blocks.at(value)
                if block is not None and block.is_used and block.start == value:
                    self._revive(number, block.size, now)
            if number is not None:
                self._meet(number, target, value, holder, at)
            elif not self._in_variable(value):
                self._find(value, target, holder, at, now)

    def _revive(self, number: int, size: int, now: Read) -> None:
        """The block of an object was free, or is of another size by now."""
        f = self.objects[number]
        elements = self._elements(size, f.type)
        if elements:
            if size != f.size:
                self._former.append(f)
            self.objects[number] = f._replace(elements=elements, size=size)
            self._freed.discard(number)
            self._added.append(number)
            self._enter(number, now)

    def _meet(self, number: int, target: int, value: int, holder: int, at: int) -> None:
        """A pointer to an object that is known."""
        there = self.objects[number].type
        if there == target:
            self._ways.setdefault(number, set()).add((holder, at))
            return
        was, meant = self._kinds[there], self._kinds[target]
        if target in was.starts:
            return
        if was.leads or meant.leads:
            self._clashes.setdefault(number, {})[holder, at] = target
        else:
            self._special.add(value)

    def _find(self, value: int, target: int, holder: int, at: int, now: Read) -> None:
        """A pointer to what is no object yet."""
        block = self._blocks.at(value)
        kind = self._kinds[target]
        is_loose = self._is_loose(holder, at)
        if block is None or not block.is_used:
            self._leads_nowhere(value, target, holder, at, is_loose)
            return
        if block.start != value:
            number = self.numbers.get(block.start)
            is_known = number is not None and number not in self._freed
            there = self._kinds[self.objects[number].type] if number is not None and is_known else None
            is_fine = there is not None and not (kind.is_changed and not there.is_changed)
            self._leads_nowhere(value, target, holder, at, is_loose or is_fine)
            return
        elements = self._elements(block.size, target)
        if not elements:
            self._leads_nowhere(value, target, holder, at, is_loose)
            return
        whole = any(could_be(block.size, kind.size, self._kinds[w].size) for w in kind.wholes)
        if whole and not kind.name.endswith("*"):
            raise UnrepairableError("a block has room for either of two types")
        number = len(self.objects)
        self.objects.append(Found(value, target, elements, block.size, holder, at, True))
        self.numbers[value] = number
        self._added.append(number)
        self._unplaced.add(number)
        self._ways[number] = {(holder, at)}
        self._look_again_within(value, block.size)
        self._enter(number, now)

    def _elements(self, size: int, target: int) -> int:
        """How many objects a block holds; 0 where that is not plain."""
        kind = self._kinds[target]
        is_plain = kind.size <= size <= kind.most if kind.is_changed else kind.size <= size
        return size // kind.size if is_plain else 0

    def _is_loose(self, holder: int, at: int) -> bool:
        """Whether a pointer may be left over from something else: beyond the first element of a block that need not be
        an array."""
        if holder < 0:
            return False
        f = self.objects[holder]
        kind = self._kinds[f.type]
        is_array = kind.is_changed and f.size - kind.size > slack(f.address, f.size)
        return at >= kind.size and not is_array

    def _leads_nowhere(self, value: int, target: int, holder: int, at: int, is_fine: bool) -> None:
        is_pending = not is_fine and self._kinds[target].leads
        self._dangling.add(value, (holder, at), target, is_pending=is_pending)

    # -- what is found no more, and by which way the rest --------------------------------------------------------------

    def _drop(self, now: Read) -> list[int]:
        """Take out the objects to which nothing leads."""
        dropped = []
        waiting = list(self._lost)
        self._lost.clear()
        while waiting:
            number = waiting.pop()
            f = self.objects[number]
            if self.numbers.get(f.address) != number or self._count[f.address] > 0:
                continue
            slots = self._slots_now(number, now)
            self._forget(number)
            dropped.append(number)
            for value, _, at in slots:
                self._lose(value, number, at)
            self._look_again_within(f.address, f.size)
            waiting += self._lost
            self._lost.clear()
        return dropped

    def _what_is_open(self) -> str:
        if self._freed:
            return f"a pointer leads to {self.objects[min(self._freed)].address:#x}, which is free"
        if self._dangling.is_pending:
            value = next(self._dangling.pending())
            return f"a pointer leads to {value:#x}, which is no object"
        if any(self._clashes.values()):
            number = next(n for n, slots in self._clashes.items() if slots)
            return f"pointers say different things of what is at {self.objects[number].address:#x}"
        if self._unplaced:
            return f"nothing tells by which way {self.objects[min(self._unplaced)].address:#x} is reached"
        return ""
