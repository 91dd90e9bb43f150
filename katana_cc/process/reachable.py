"""Objects on the heap that typed pointers lead to: the values that a walk goes by, and what it finds.

The walk itself is in `katana_cc.process.walk`.  It is pure: memory and the allocator's blocks come through two small
protocols, so that tests put made-up ones in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Final, NamedTuple, Protocol

from katana_cc.transform.model import Transformation
from katana_cc.transform.places import field_at

_REPEATED: Final = 3  # of the same step in a path that are spelled out


class Block(NamedTuple):
    """A piece of memory that the allocator gave out, or could: `start` is what `malloc` returned, `size` what
    `malloc_usable_size` would say, in bytes."""

    start: int
    size: int
    is_used: bool


class Blocks(Protocol):
    """The blocks of a process's heap, as they were at one moment."""

    @property
    def used(self) -> Mapping[int, int]:
        """Start → usable size in bytes, of each block in use."""

    def at(self, address: int) -> Block | None:
        """The block, in use or free, that an address lies in (within its usable bytes); None where there is none."""


class Pieces(Protocol):
    """The memory of a process, in large pieces."""

    def piece(self, address: int) -> tuple[int, memoryview]:
        """(where it begins, its bytes) of a piece of readable memory that an address lies in: the larger, the better.

        Raises:
            LookupError: nothing there can be read.
        """


class PieceReader:
    """Small reads out of large pieces."""

    def __init__(self, memory: Pieces) -> None:
        self._memory = memory
        self._start = self._end = 0
        self._view = memoryview(b"")

    def join(self, ranges: Iterable[tuple[int, int]]) -> bytes:
        """The (address, size) ranges, one behind the other, each of which lies in one piece."""
        parts = []
        start = end = 0
        view = self._view
        for address, size in ranges:
            if not start <= address or address + size > end:
                start, view = self._memory.piece(address)
                end = start + len(view)
            parts.append(view[address - start : address - start + size])
        return b"".join(parts)

    def read(self, address: int, size: int) -> memoryview:
        """So many bytes, which lie in one piece."""
        if not self._start <= address or address + size > self._end:
            self._start, self._view = self._memory.piece(address)
            self._end = self._start + len(self._view)
        at = address - self._start
        return self._view[at : at + size]


class WalkedType(NamedTuple):
    """A type whose objects are looked for.  `transformation` is that of the direction of the patch, an identity where
    its objects stay; `begins` as in `katana_cc.patch.model.DataTransform`, where that is known of this direction."""

    transformation: Transformation
    begins: str = ""


class Root(NamedTuple):
    """A variable that the walk begins at, or that pointers may lead into: where it is now and what it holds.

    `transformation` is that of the direction of the patch; an identity where it stays.
    """

    transformation: Transformation
    address: int
    content: bytes

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.address + self.transformation.old_size


class Found(NamedTuple):
    """Objects found in one block: as many as `elements`, one behind the other, of type number `type` of
    `Reached.types`.

    `address` and `size` are those of the block.  `holder` tells what led here: an index in `Reached.objects`, or of a
    root its index in `Reached.roots` as -1 - index; `at` is the offset of that pointer from the start of the holder
    (of its first element).  `is_sure`: by pointers that surely exist; not so in the elements beyond the first of a
    block that may have been used before, which nothing says the end of.
    """

    address: int
    type: int
    elements: int
    size: int
    holder: int
    at: int
    is_sure: bool


class Trouble(StrEnum):
    """Why a pointer cannot be followed."""

    FREE = "free"  # to memory that the allocator has taken back
    NO_BLOCK = "no-block"  # to what is no block of the allocator and no variable
    INSIDE = "inside"  # into a block that no pointer leads to the start of, or that holds no such object
    CONTENTS = "contents"  # a block of which its size does not tell what it holds
    CONFLICT = "conflict"  # two pointers say different things of one block


class Problem(NamedTuple):
    """One pointer that cannot be followed: its `path` as people write it (`table[3]->next`), what it holds, the text of
    what it should lead to, and the whole as a sentence."""

    trouble: Trouble
    path: str
    value: int
    pointee: str
    text: str


class Unfollowed(NamedTuple):
    """The same for programs: `target` is the number of the type that it should lead to, `holder` and `at` as in
    `Found`."""

    trouble: Trouble
    value: int
    target: int
    holder: int
    at: int


@dataclass(frozen=True, slots=True)
class Reached:
    """What a walk found: `types` are those walked, by number, `roots` as given; `objects` are all blocks found, those
    from which others were found before these.  `problems` are the first pointers that cannot be followed, in words;
    `unfollowed` all of them."""

    types: tuple[Transformation, ...]
    roots: tuple[Root, ...]
    objects: Sequence[Found]
    problems: tuple[Problem, ...]
    unfollowed: tuple[Unfollowed, ...] = ()

    def path(self, holder: int, at: int) -> str:
        """What people write for a pointer, in order from a variable on; `holder` and `at` as in `Found`.

        What repeats more than a few times is counted: `head->next (x 41)->data`.
        """
        parts: list[str] = []
        while holder >= 0:
            f = self.objects[holder]
            t = self.types[f.type]
            element, inside = divmod(at, t.old_size)
            field = field_at(t, inside)
            if t.name.endswith(("*", "]")):
                parts.append(f"[{element}]{field}")
            else:
                parts.append(f"[{element}].{field}" if element else f"->{field}")
            holder, at = f.holder, f.at
        root = self.roots[-1 - holder]
        field = field_at(root.transformation, at)
        whole = root.transformation.name + ("" if field.startswith("[") or not field else ".") + field
        for part, run in groupby(reversed(parts)):
            times = len(list(run))
            whole += f"{part} (x {times})" if times > _REPEATED else part * times
        return whole

    def path_to(self, number: int) -> str:
        """The path of the pointer by which object `number` was found."""
        return self.path(self.objects[number].holder, self.objects[number].at)
