"""Rows of chunks as glibc's malloc lays them out, made up in memory and changed at random."""

from __future__ import annotations

import random
import struct

from katana_cc.process.chunks import CACHE_CHUNK, HEADER

START = 0x5555_5555_0000
PAGE = 4096


class FakeRow:
    """A main heap: chunks from its start to a top chunk.  The first is the cache of the first thread; it holds what
    `cache` puts there.

    Attributes:
        chunks: address of each chunk → [size, whether it is in use].
    """

    def __init__(self, size: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.data = bytearray(size)
        self.chunks: dict[int, tuple[int, bool]] = {START: (CACHE_CHUNK, True)}
        self.top = START + CACHE_CHUNK
        self.cached: dict[int, list[int]] = {}  # usable bytes → blocks in the cache, the next to be given out first
        self._seal()

    @property
    def limit(self) -> int:
        """Where its memory ends."""
        return START + len(self.data)

    def put(self, address: int, *words: int) -> None:
        """Write words."""
        struct.pack_into(f"<{len(words)}Q", self.data, address - START, *words)

    def get(self, address: int) -> int:
        """The word there."""
        value: int = struct.unpack_from("<Q", self.data, address - START)[0]
        return value

    def usable(self, block: int) -> int:
        """Of a block."""
        return self.chunks[block - HEADER][0] - 8

    def in_use(self) -> list[int]:
        """All blocks in use, without the cache."""
        cached = {b for blocks in self.cached.values() for b in blocks}
        used = (c + HEADER for c, (_, is_used) in self.chunks.items() if is_used and c != START)
        return sorted(b for b in used if b not in cached)

    def malloc(self, size: int) -> int:
        """A block; 0 when there is no more room."""
        wanted = max(32, (size + 8 + 15) & -16)
        if blocks := self.cached.get(wanted - 8):
            block = blocks.pop(0)
            self._links(wanted - 8)
            self.put(block + 8, 0)
            return block
        for at, (there, is_used) in sorted(self.chunks.items()):
            if not is_used and there >= wanted:
                rest = there - wanted
                if rest >= 32:
                    self.chunks[at] = wanted, True
                    self.chunks[at + wanted] = rest, False
                else:
                    self.chunks[at] = there, True
                self._seal(at)
                return at + HEADER
        if self.top + wanted + 64 > self.limit:
            return 0
        at = self.top
        self.chunks[at] = wanted, True
        self.top += wanted
        self._seal(at)
        return at + HEADER

    def free(self, block: int) -> None:
        """Take a block back: into the cache, or to be put together with its neighbours."""
        at = block - HEADER
        size = self.chunks[at][0]
        if size <= 1032 and self.random.random() < 0.5 and len(self.cached.get(size - 8, ())) < 7:
            self.cached.setdefault(size - 8, []).insert(0, block)
            self._links(size - 8)
            self.put(block + 8, self.random.getrandbits(64))
            return
        self.chunks[at] = size, False
        order = sorted(self.chunks)
        i = order.index(at)
        if i and not self.chunks[order[i - 1]][1]:
            before = order[i - 1]
            self.chunks[before] = self.chunks[before][0] + size, False
            del self.chunks[at]
            at = before
        after = at + self.chunks[at][0]
        if after in self.chunks and not self.chunks[after][1]:
            self.chunks[at] = self.chunks[at][0] + self.chunks.pop(after)[0], False
        if at + self.chunks[at][0] == self.top:
            self.top = at
            del self.chunks[at]
        self._seal(at)

    def grow(self, size: int) -> None:
        """More memory at its end, or less."""
        if size < 0:
            size = -min(-size, (self.limit - self.top - 64) // PAGE * PAGE)
            del self.data[len(self.data) + min(size, 0) :]
        else:
            self.data += bytes(size)
        self._seal()

    def _links(self, usable: int) -> None:
        """Write the list of one size, as a cache holds it (with safe linking)."""
        number = (usable - 24) // 16
        blocks = self.cached[usable]
        self.put(START + HEADER + 128 + 8 * number, blocks[0] if blocks else 0)
        for block, following in zip(blocks, [*blocks[1:], 0], strict=False):
            self.put(block, following ^ block >> 12)

    def _seal(self, *changed: int) -> None:
        """Write the heads of chunks that changed, of the two behind each, and of the top."""
        for at in (START, *changed):
            for _ in range(3):
                if at in self.chunks:
                    self._head(at)
                    at += self.chunks[at][0]
        self._head(self.top)

    def _head(self, at: int) -> None:
        before = max((c for c in self.chunks if c < at), default=None)
        is_used = before is None or self.chunks[before][1]
        size = self.limit - self.top if at == self.top else self.chunks[at][0]
        self.put(at + 8, size | is_used)
        if before is not None and not is_used:
            self.put(at, at - before)
