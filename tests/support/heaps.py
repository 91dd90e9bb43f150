"""A heap made up in memory: blocks as malloc gives them out, for tests of what walks through them."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Mapping

from katana_cc.process.reachable import Block

HEAP = 0x5555_5555_0000
MAPPED = 0x7F00_0000_0000
FOREIGN = 0x7FFF_0000_0000  # nothing is there


def usable(size: int) -> int:
    """What glibc's malloc makes of a request: `malloc_usable_size(malloc(size))` of a fresh heap."""
    return max(24, (size + 8 + 15 & ~15) - 8)


class FakeHeap:
    """Blocks and memory at once; addresses grow with each allocation."""

    def __init__(self) -> None:
        self._data = bytearray(16)
        self._blocks: dict[int, tuple[int, bool]] = {}
        self._mapped: dict[int, bytearray] = {}

    def malloc(self, size: int, *, more: int = 0, fill: int = 0) -> int:
        """A block for `size` bytes, with `more` that malloc did not split off; its address."""
        start, room = HEAP + len(self._data), usable(size) + more
        self._data += bytes([fill]) * room + bytes(8)
        self._blocks[start] = room, True
        return start

    def mapped(self, size: int) -> int:
        """A block with a mapping of its own."""
        start = MAPPED + sum(len(m) + 0x10000 & -0x1000 for m in self._mapped.values()) + 16
        self._mapped[start] = bytearray((size + 16 + 4095 & -4096) - 16)
        return start

    def free(self, address: int) -> None:
        """Take a block back; what it held stays there."""
        self._blocks[address] = self._blocks[address][0], False

    def put(self, address: int, form: str, *values: int) -> None:
        """Write values, packed as `struct` does it."""
        packed = struct.pack("<" + form, *values)
        start = max((s for s in self._mapped if s <= address), default=None)
        if address >= MAPPED and start is not None:
            self._mapped[start][address - start : address - start + len(packed)] = packed
        else:
            self._data[address - HEAP : address - HEAP + len(packed)] = packed

    # What a walk asks for

    @property
    def used(self) -> Mapping[int, int]:
        return {start: size for start, (size, is_used) in self._blocks.items() if is_used}

    def at(self, address: int) -> Block | None:
        for start, data in self._mapped.items():
            if start <= address < start + len(data):
                return Block(start, len(data), True)
        starts = sorted(self._blocks)
        i = bisect_right(starts, address) - 1
        if i < 0 or address >= starts[i] + self._blocks[starts[i]][0]:
            return None
        size, is_used = self._blocks[starts[i]]
        return Block(starts[i], size, is_used)

    def piece(self, address: int) -> tuple[int, memoryview]:
        if HEAP <= address < HEAP + len(self._data):
            return HEAP, memoryview(self._data)
        for start, data in self._mapped.items():
            if start <= address < start + len(data):
                return start, memoryview(data)
        raise LookupError(hex(address))
