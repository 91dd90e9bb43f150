"""New blocks for objects that need more room: had before the stop, counted in it, and the rest given back.

    how many        as a look at the running process says, and some more
    the stop        finds all objects once more; if there are too few blocks, everything is let go, more are had, again
    afterwards      old blocks of objects that have new ones are freed, and new ones that were not needed

Whatever cannot be freed, since no thread is where that is safe, stays with the program and does no harm.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from katana_cc.errors import KatanaError, RefusedError
from katana_cc.process.allocation import Blocks
from katana_cc.process.commit import CommitReport
from katana_cc.process.heap import find_allocator
from katana_cc.process.imports import Linker
from katana_cc.process.moves import Kind
from katana_cc.process.objects import Objects, ShortageError
from katana_cc.process.safepoint import SafePoint
from katana_cc.process.target import Target

_TRIES: Final = 3  # at least, however long they take
_MARGIN: Final = 16  # one more for so many, and so many more at least


@dataclass(frozen=True, slots=True)
class Leftover:
    """What became of old blocks: how many were freed, and how many stay since they could not be."""

    freed: int = 0
    kept: int = 0


NOTHING_LEFT: Final = Leftover()


def objects_of(target: Target, kinds: tuple[Kind, ...]) -> Objects | None:
    """The objects of these types in a process; None where none of them is made anew.

    Raises:
        RefusedError: its allocator is not glibc's.
    """
    return _objects(target, kinds) if any(not k.stays for k in kinds) else None


def explaining(target: Target, kinds: tuple[Kind, ...]) -> Objects | None:
    """The objects of these types, though none is made anew: for the pointers that they hold.  None where there are no
    types, or nobody knows the allocator."""
    try:
        return _objects(target, kinds) if kinds else None
    except RefusedError:
        return None


def _objects(target: Target, kinds: tuple[Kind, ...]) -> Objects:
    linker = Linker.of(target.memory, target.modules)
    return Objects(target, find_allocator(target, linker), kinds, SafePoint(target, linker, ()))


def stock(objects: Objects, wanted: Mapping[int, int], wait: float) -> None:
    """Have as many new blocks of each size as are wanted, and some more.

    Raises:
        BusyError, RefusedError: as of `Blocks.allocate`.
    """
    blocks = Blocks(objects.target, objects.allocator, wait) if any(wanted.values()) else None
    for size, count in wanted.items():
        there = objects.spare.setdefault(size, [])
        more = count + count // _MARGIN + _MARGIN - len(there)
        if blocks is not None and count and more > 0:
            there += blocks.allocate(size, more)


def supplied(objects: Objects | None, wait: float, commit: Callable[[], None]) -> None:
    """Do a commit; where it lacks new blocks, have more and do it again.

    Raises:
        KatanaError: as `commit` does; then nothing was written, and the caller gives all new blocks back.
    """
    deadline = time.monotonic() + wait
    tries = 0
    while True:
        tries += 1
        try:
            commit()
            return
        except ShortageError as error:
            if objects is None or (tries > _TRIES and time.monotonic() > deadline):
                raise
            stock(objects, error.wanted, wait)


def clear_up(objects: Objects | None, report: CommitReport, wait: float) -> Leftover:
    """Free the old blocks after a commit, and the new ones that were not needed."""
    found = report.cargo.heap if report.cargo is not None else None
    if objects is None or found is None:
        return NOTHING_LEFT
    old = found.to_free
    used = set(found.placement.used)
    spare = [a for blocks in objects.spare.values() for a in blocks if a not in used]
    objects.spare.clear()
    if not old and not spare:
        return NOTHING_LEFT
    try:
        Blocks(objects.target, objects.allocator, wait).release([*old, *spare])
    except KatanaError:  # the patch is in: nothing depends on them
        return Leftover(0, len(old) + len(spare))
    return Leftover(len(old), 0)


def give_back(objects: Objects | None, wait: float) -> None:
    """Free all new blocks, of which none was used."""
    if objects is not None and objects.spare:
        every = [a for blocks in objects.spare.values() for a in blocks]
        objects.spare.clear()
        with contextlib.suppress(KatanaError):
            Blocks(objects.target, objects.allocator, wait).release(every)
