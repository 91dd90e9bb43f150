"""The pieces that the ledger's data is put together from: numbers, blocks, texts, lists (docs/ledger.md)."""

from __future__ import annotations

import struct


def block(data: bytes) -> bytes:
    """A 32-bit length and the bytes."""
    return struct.pack("<I", len(data)) + data


def text(value: str) -> bytes:
    """A block of UTF-8."""
    return block(value.encode("utf-8", "surrogateescape"))


class Cursor:
    """Reads them one after the other; only after the checksum was found right."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, form: str) -> tuple[int, ...]:
        """Numbers, in a format of `struct`."""
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def count(self) -> int:
        """A 32-bit number: how much of something follows."""
        return self.take("<I")[0]

    def raw(self, size: int) -> bytes:
        """So many bytes."""
        self._at += size
        return self._data[self._at - size : self._at]

    def block(self) -> bytes:
        """Bytes with their length before them."""
        return self.raw(self.count())

    def text(self) -> str:
        """A block of UTF-8."""
        return self.block().decode("utf-8", "surrogateescape")
