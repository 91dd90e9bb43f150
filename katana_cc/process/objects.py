"""Objects on the heap of one process that get a new layout: found, placed and made anew, as of one moment.

    heap            the blocks of malloc, all of one moment
    walk            from the variables on, by typed pointers
    place           in its block, or in one that was had from malloc before
    convert         what to write, and which words nothing explains
    account         blocks of just the size of such a type that nothing led to: one may be an object of it

Types that lead to nothing that is made anew are walked as well: their objects may hold pointers to what moves, and a
block that is one of them is none of a type that changed.  That may be most of the heap, so it is found out while the
process runs; the stop does without where none of them holds such a pointer.

Asked like variables that move (`katana_cc.process.carry`): while the process runs, and in the stop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from katana_cc.errors import BusyError, RefusedError
from katana_cc.process.chunks import DamagedError
from katana_cc.process.convert import Converted, ObjectLeads, convert
from katana_cc.process.follow import Edited, Finding, Passage, elsewhere
from katana_cc.process.heap import Allocator, Heap, look
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import BulkReader
from katana_cc.process.moves import Kind
from katana_cc.process.places import Imagined, Placement, place
from katana_cc.process.proc import thread_name
from katana_cc.process.reachable import Reached, Root, WalkedType
from katana_cc.process.safepoint import SafePoint
from katana_cc.process.target import Target
from katana_cc.process.unreached import Unreached, sizes_of, unreached_among
from katana_cc.process.walk import walk
from katana_cc.transform.places import leading

_LOOKS: Final = 20  # at a heap that changes while it is read
_BETWEEN_LOOKS: Final = 0.005


class ShortageError(RefusedError):
    """More new blocks are needed: `wanted` tells how many of each size there must be.  Nothing was touched."""

    def __init__(self, wanted: dict[int, int], where: str) -> None:
        super().__init__("objects came faster than room for them", where=where, remedy="try again")
        self.wanted = wanted


class UnsteadyError(RefusedError):
    """The heap changes while it is read, or is damaged: only with every thread stopped can it be told."""


@dataclass(frozen=True, slots=True)
class Cargo:
    """What a look at the objects came to: as found, where they go, what is to be written.  `to_free`: their blocks
    that are no longer used afterwards."""

    reached: Reached
    placement: Placement
    converted: Converted
    unreached: tuple[Unreached, ...]

    @property
    def to_free(self) -> list[int]:
        """The old blocks of objects that get new ones."""
        pairs = zip(self.placement.objects, self.placement.news, strict=True)
        return [f.address for f, new in pairs if new != f.address]


@dataclass(slots=True)
class Aside:
    """What the last look at the running process told of types that lead to nothing that is made anew.

    `blocks` are those of their objects, None before there was a look: they are no objects of a type that changed.
    `is_needed`: one of them holds a pointer to what moves, so that the stop has to find them, too.
    """

    blocks: frozenset[int] | None = None
    is_needed: bool = False


@dataclass(frozen=True, slots=True)
class Objects:
    """The types of one process whose objects are walked, and where they are looked for.

    `safe` judges threads that may be inside malloc; `spare`: new blocks by size, which grow between tries;
    `aside`: what is known of types that the stop may do without.
    """

    target: Target
    allocator: Allocator
    kinds: tuple[Kind, ...]
    safe: SafePoint
    spare: dict[int, list[int]] = field(default_factory=dict)
    aside: Aside = field(default_factory=Aside)

    @property
    def apart(self) -> frozenset[str]:
        """Types of which no object goes to its own block: functions make them from what they were."""
        return frozenset(k.name for k in self.kinds if k.made)

    def look(
        self,
        passages: Sequence[Passage],
        contents: Sequence[bytes],
        bulk: BulkReader,
        regions: MemoryMap,
        edited: Edited,
        *,
        is_stopped: bool,
    ) -> Sight:
        """Find and convert all objects.

        Args:
            contents: what each variable holds.
            is_stopped: every thread is; else the new blocks need not be there yet.

        Raises:
            ShortageError: there are too few new blocks.
            BusyError: a thread is inside malloc.
            UnsteadyError: the heap changes while it is read.
            RefusedError: it is damaged.
        """
        heap = self.heap(regions, bulk, is_stopped=is_stopped)
        roots = [Root(p.transformation, p.source, c) for p, c in zip(passages, contents, strict=True)]
        leads_on = self._leading()
        types = self.walked(is_stopped=is_stopped)
        try:
            reached = walk(types, roots, heap, heap)
        except LookupError as error:
            raise self._unsteady(str(error), is_stopped) from None
        known = {k.name: k for k in self.kinds}
        kinds = [known[t.name] for t in reached.types]
        placement = place(reached, self.spare if is_stopped else Imagined(), self.apart)
        if not placement.is_complete:
            raise ShortageError(placement.wanted, self.target.where)
        leads = ObjectLeads(passages, kinds, placement)
        converted = convert(reached, kinds, placement, leads, heap, edited)
        if not is_stopped:
            beside = {n for n, t in enumerate(reached.types) if t.name not in leads_on}
            self.aside.blocks = frozenset(f.address for f in reached.objects if f.type in beside)
            held = (f.holder.name for f in converted.findings if f.holder is not None)
            self.aside.is_needed = any(name not in leads_on for name in held)
        cargo = Cargo(reached, placement, converted, tuple(self._unreached(heap, reached, regions)))
        return Sight(cargo, leads, heap, tuple(a for blocks in self.spare.values() for a in blocks))

    def walked(self, *, is_stopped: bool) -> list[WalkedType]:
        """The types to walk: in the stop without those that it may do without."""
        is_narrow = is_stopped and self.aside.blocks is not None and not self.aside.is_needed
        leads_on = self._leading()
        return [WalkedType(k.transformation, k.begins) for k in self.kinds if not is_narrow or k.name in leads_on]

    def _leading(self) -> frozenset[str]:
        return leading({k.name: k.transformation for k in self.kinds}, {k.name: k.begins for k in self.kinds})

    def refuse_inside(self, threads: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Raises BusyError when one of all threads (id, registers) that are stopped may be inside malloc.  That another
        takes a lock there, the heap itself tells; the only thread of a process takes none."""
        for tid, words in threads:
            if len(threads) == 1:
                why = self.safe.why_not(words)
            else:
                why = "is in the C library" if self.safe.may_allocate(words) else ""
            if why:
                raise BusyError(
                    f"thread {tid} ({thread_name(self.target.pid, tid)}) {why}: the heap may be half changed",
                    where=self.target.where,
                    remedy="nothing was touched; wait longer (--wait)",
                )

    def heap(self, regions: MemoryMap, bulk: BulkReader, *, is_stopped: bool) -> Heap:
        """The heap as it is now; read several times where it changes meanwhile.

        Raises:
            UnsteadyError, BusyError, RefusedError: as of `look`.
        """
        tries = 1 if is_stopped else _LOOKS
        while True:
            tries -= 1
            try:
                return look(self.target, self.allocator, regions, bulk, is_stopped=is_stopped)
            except DamagedError as error:
                if not tries:
                    raise self._unsteady(str(error), is_stopped) from None
            time.sleep(_BETWEEN_LOOKS)
            regions = self.target.read_map()

    def _unsteady(self, what: str, is_stopped: bool) -> RefusedError:
        return (RefusedError if is_stopped else UnsteadyError)(
            f"the heap of the process is not as malloc keeps it: {what}",
            where=self.target.where,
            remedy="it is damaged, or managed by the program itself; restart it with the new build",
        )

    def _unreached(self, heap: Heap, reached: Reached, regions: MemoryMap) -> Iterator[Unreached]:
        found = {f.address for f in reached.objects}
        found.update(a for blocks in self.spare.values() for a in blocks)
        found.update(self.aside.blocks or ())
        left: dict[int, list[int]] = {size: [] for size in sizes_of(self.kinds)}
        for address, size in heap.used.items():
            if size in left and address not in found:
                left[size].append(address)
        return unreached_among(left, self.kinds, heap, regions, reached.roots)


@dataclass(frozen=True, slots=True)
class Sight:
    """A look at the objects, while it is searched for words that lead to them.  `spare`: blocks that hold nothing
    yet."""

    cargo: Cargo
    leads: ObjectLeads
    heap: Heap
    spare: tuple[int, ...]

    @property
    def holes(self) -> list[tuple[int, int]]:
        """The (start, end) ranges that `findings` looks at."""
        mapped = [f for f in self.cargo.reached.objects if f.address not in self.heap.used]
        return [*self.heap.holes, *((f.address, f.address + f.size) for f in mapped)]

    def findings(self, edited: Edited) -> Iterator[Finding]:
        """The words on the heap that lead into what moves and are not exchanged with the objects."""
        yield from self.cargo.converted.findings
        sizes = [t.old_size for t in self.cargo.reached.types]
        stays = [t.is_identity for t in self.cargo.reached.types]
        # Of a transformed object the whole block is its own; behind one that stays may be more.
        skipped = [
            (f.address, f.elements * sizes[f.type] if stays[f.type] else f.size) for f in self.cargo.reached.objects
        ]
        skipped += [(a, self.heap.used.get(a, 0)) for a in self.spare]
        for address, data in self.heap.searchable(skipped):
            yield from elsewhere(self.leads.seeker.in_bytes(data, address), self.leads, edited)
