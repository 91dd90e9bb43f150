"""Blocks and memory of a heap that are kept up to date; and sequences that are made only when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

from katana_cc.process.mappings import Mappings
from katana_cc.process.reachable import Block
from katana_cc.process.table import Table

_T = TypeVar("_T")


class Live:
    """The blocks and the memory of a heap as of the last round."""

    def __init__(self, table: Table, mappings: Mappings) -> None:
        self.table, self.mappings = table, mappings
        self.held: dict[int, bytes] = {}  # blocks with mappings of their own that were looked at

    @property
    def used(self) -> dict[int, int]:
        """As of `Blocks`."""
        return self.table.used

    def at(self, address: int) -> Block | None:
        """The same."""
        return self.mappings.at(address) if self.table.row(address) is None else self.table.at(address)

    def is_told(self, address: int) -> bool:
        """As of `ToldBlocks`."""
        return self.table.row(address) is not None

    def piece(self, address: int) -> tuple[int, memoryview]:
        """As of `Pieces`."""
        row = self.table.row(address)
        if row is not None:
            return row.start, memoryview(row.data)[: row.limit - row.start]
        block = self.mappings.at(address)
        if block is None:
            return self.mappings.piece(address)
        if block.start not in self.held:
            self.held[block.start] = bytes(self.mappings.piece(address)[1])
        return block.start, memoryview(self.held[block.start])

    def read(self, address: int, size: int) -> bytes:
        """Bytes of a block, or as many as can be read."""
        start, view = self.piece(address)
        return bytes(view[address - start : address - start + size])

    def peek(self, address: int, size: int) -> bytes:
        """The same, faster, where there are as many."""
        row = self.table.row(address)
        return self.read(address, size) if row is None else row.read(address, size)


class Later(Sequence[_T]):
    """A sequence that is made when somebody asks for it."""

    def __init__(self, make_it: Callable[[], Sequence[_T]]) -> None:
        self._make = make_it
        self._made: Sequence[_T] | None = None

    def _all(self) -> Sequence[_T]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> _T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[_T]: ...

    def __getitem__(self, index: int | slice) -> _T | Sequence[_T]:
        return self._all()[index]

    def __iter__(self) -> Iterator[_T]:
        return iter(self._all())
