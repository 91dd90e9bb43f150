"""Blocks that malloc made mappings of their own for, looked at only where a pointer leads there.

A chunk of such a block is at the start of a page, and says how far it reaches.  To the kernel several of them may be
one region, with other memory between them.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final

from katana_cc.errors import TargetError
from katana_cc.process import chunks
from katana_cc.process.chunks import HEADER
from katana_cc.process.maps import MemoryMap, Region
from katana_cc.process.memory import Reader
from katana_cc.process.reachable import Block

_PAGE: Final = 4096
_FAR: Final = 1 << 20  # to look for a chunk that was moved up for its alignment


@dataclass(slots=True)
class _Chunks:
    """The blocks with mappings of their own in a region, as far as it was gone through: up to `end`."""

    end: int
    starts: list[int] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


class Mappings:
    """The blocks of a process that malloc made mappings of their own for, and other memory, as it is when it is first
    asked for."""

    def __init__(self, memory: Reader, regions: MemoryMap) -> None:
        self._memory = memory
        self._regions = regions
        self._pieces: dict[int, tuple[int, memoryview]] = {}
        self._chunks: dict[int, _Chunks] = {}

    def piece(self, address: int) -> tuple[int, memoryview]:
        """As `Pieces`: a whole block, or a page.

        Raises:
            LookupError: nothing there can be read.
        """
        block = self.at(address)
        start, size = (block.start, block.size) if block is not None else (address & -_PAGE, _PAGE)
        found = self._pieces.get(start)
        if found is None:
            try:
                found = self._pieces[start] = start, memoryview(self._memory.read(start, size))
            except TargetError:
                raise LookupError(f"nothing can be read at {address:#x}") from None
        return found

    def at(self, address: int) -> Block | None:
        """A block with a mapping of its own: its chunk is at the start of a page (or, where an alignment was asked
        for, somewhere behind one), and says how far it reaches.

        Several may be one region to the kernel, with other memory between them: its pages are gone through once, from
        the first on, as far as somebody asks.
        """
        region = self._regions.at(address)
        if region is None or not may_be_mapped(region):
            return None
        known = self._chunks.setdefault(region.start, _Chunks(region.start))
        if address >= known.end and address % HEADER == 0:
            block = self._mapped_chunk(address - HEADER, region)
            if block is not None and block.start == address:
                return block
        while known.end <= address:
            block = self._mapped_chunk(known.end, region)
            if block is not None:
                known.starts.append(block.start)
                known.blocks.append(block)
            known.end = known.end + _PAGE if block is None else block.start + block.size
        i = bisect_right(known.starts, address) - 1
        return known.blocks[i] if i >= 0 and address < known.starts[i] + known.blocks[i].size else None

    def _mapped_chunk(self, chunk: int, region: Region) -> Block | None:
        if chunk < region.start:
            return None
        try:
            before, head = struct.unpack("<QQ", self._memory.read(chunk, HEADER))
        except TargetError:
            return None
        size = head & ~chunks.FLAGS
        is_one = (
            head & chunks.FLAGS == chunks.IS_MAPPED
            and size >= HEADER
            and (chunk - before) % _PAGE == 0
            and (size + before) % _PAGE == 0
            and chunk + size <= region.end
            and chunk - before >= region.start
        )
        if not is_one:
            return None
        aligned = 0 if before else self._moved_up(chunk, size)
        return Block(chunk + aligned + HEADER, size - aligned - HEADER, True)

    def _moved_up(self, chunk: int, size: int) -> int:
        """How far the chunk was moved up to align its block: the first head stays, and zeros behind it."""
        data = self._memory.read(chunk, min(size, _FAR))
        zeros = len(data) - HEADER - len(data[HEADER:].lstrip(b"\0"))
        at = HEADER + zeros & -HEADER
        if at + HEADER > len(data):
            return 0
        return at if struct.unpack_from("<QQ", data, at) == (at, size - at | chunks.IS_MAPPED) else 0


def may_be_mapped(region: Region) -> bool:
    """Whether a region may hold blocks with a mapping of their own."""
    return not region.inode and region.permissions == "rw-p" and not region.path
