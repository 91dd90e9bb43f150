"""/proc/PID/maps as frozen values.  Source: proc_pid_maps(5)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple


class Region(NamedTuple):
    """One line: a virtual memory area.  `path` is empty for anonymous memory, `[stack]` and so on for special."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str

    @property
    def size(self) -> int:
        """Bytes in the region."""
        return self.end - self.start


def parse_region(line: str) -> Region:
    """One line of the file."""
    fields = line.rstrip("\n").split(None, 5)
    start, end = fields[0].split("-")
    path = fields[5] if len(fields) > 5 else ""
    return Region(int(start, 16), int(end, 16), fields[1], int(fields[2], 16), fields[3], int(fields[4]), path)


BLOCKS: Final = "katana:blocks"
STACK: Final = "katana:stack"
JOURNAL: Final = "katana:journal"
_SCRATCH: Final = tuple(f"/memfd:{name} (deleted)" for name in (BLOCKS, STACK, JOURNAL))


def is_scratch(region: Region) -> bool:
    """Whether a katana mapped it for the length of a call in the target: left behind by one that was killed."""
    return region.path in _SCRATCH


def is_journal(region: Region) -> bool:
    """Whether a katana mapped it for its journal (`katana_cc.process.journal`)."""
    return region.path == _SCRATCH[-1]


@dataclass(frozen=True)
class MemoryMap:
    """All regions of a process at one moment, by address."""

    regions: tuple[Region, ...]

    @staticmethod
    def parse(text: str) -> MemoryMap:
        """From the text of the file."""
        return MemoryMap(tuple(parse_region(line) for line in text.splitlines()))

    @cached_property
    def _starts(self) -> list[int]:
        return [r.start for r in self.regions]

    def at(self, address: int) -> Region | None:
        """The region that holds `address`."""
        i = bisect_right(self._starts, address) - 1
        if i >= 0 and address < self.regions[i].end:
            return self.regions[i]
        return None

    def is_guarded(self, region: Region) -> bool:
        """Whether memory that nobody may touch lies straight before a region, as before the stack of a thread."""
        before = self.at(region.start - 1)
        return before is not None and before.permissions.startswith("---")

    def private(self) -> MemoryMap:
        """Those that no other process shares."""
        return MemoryMap(tuple(r for r in self.regions if r.permissions.endswith("p")))

    def gaps(self, low: int, high: int) -> Iterable[tuple[int, int]]:
        """Unmapped [start, end) ranges within [low, high), ascending."""
        position = low
        for region in self.regions:
            if region.start >= high:
                break
            if region.end <= position:
                continue
            if region.start > position:
                yield position, region.start
            position = max(position, region.end)
        if position < high:
            yield position, high
