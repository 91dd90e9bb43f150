"""What is to be written over objects that stay in their blocks: long runs, changed here and there.  Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator


class Runs:
    """Bytes to write, by address.

    Args:
        runs: (address, bytes), which do not overlap.
        read: memory as it is now.
    """

    def __init__(self, runs: Iterable[tuple[int, bytes]], read: Callable[[int, int], bytes]) -> None:
        self._runs = sorted((start, bytearray(data)) for start, data in runs)
        self._starts = [start for start, _ in self._runs]
        self._extra: dict[int, bytes] = {}  # what is in no run
        self._read = read

    def restore(self, address: int, size: int) -> None:
        """Over these bytes is written what is there."""
        i = max(bisect_right(self._starts, address) - 1, 0)
        while i < len(self._runs) and self._runs[i][0] < address + size:
            start, data = self._runs[i]
            low, high = max(start, address), min(start + len(data), address + size)
            if low < high:
                data[low - start : high - start] = self._read(low, high - low)
            i += 1

    def drop(self, address: int) -> None:
        """What was put there in no run is not written."""
        self._extra.pop(address, None)

    def put(self, address: int, data: bytes) -> None:
        """Write these bytes."""
        i = bisect_right(self._starts, address) - 1
        if i >= 0:
            start, run = self._runs[i]
            if address + len(data) <= start + len(run):
                run[address - start : address - start + len(data)] = data
                return
        self._extra[address] = data

    def writes(self) -> Iterator[tuple[int, bytes, bytes]]:
        """(address, what is there, what is to be written)."""
        for address, data in (*self._runs, *self._extra.items()):
            yield address, self._read(address, len(data)), bytes(data)
