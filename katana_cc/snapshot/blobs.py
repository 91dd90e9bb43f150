"""Blobs: immutable bytes, zstd-compressed, named by the SHA-256 of what they hold.

A blob is written to a temporary file and renamed, so it is there whole or not at all; writing one twice is harmless,
which is what makes the store safe under `make -j` without locks.  They lie in sixteen folders, by their first digit: to
make 256 would take a first link as long as to write its blobs.  The only importer of `zstandard`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import zstandard  # noqa: TID251

from katana_cc.errors import FormatError, StoreError
from katana_cc.snapshot.words import plain

_LEVEL = 1  # objects compress 4:1 at 400 MB/s; higher levels gain a tenth and cost the link's time
# Kept, since a first link has hundreds of rows, and to make a context takes longer than to compress one.
_TO_ROW = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
_FROM_ROW = zstandard.ZstdDecompressor()


def digest_of(data: bytes) -> str:
    """The name of a blob: SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def expand_zstd(data: bytes, size: int) -> bytes:
    """Expand a zstd frame of a compressed ELF section to `size` bytes.

    Raises:
        FormatError: it is damaged.
    """
    try:
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise FormatError(f"damaged zstd data: {error}") from error


def compress_row(data: bytes) -> bytes:
    """`data` as a row of the index holds it: zstd with a checksum, since no name tells what it should be."""
    return _TO_ROW.compress(data)


def expand_row(data: bytes) -> bytes | None:
    """The inverse of `compress_row`; None when it is damaged."""
    try:
        return _FROM_ROW.decompress(data)
    except zstandard.ZstdError:
        return None


class BlobStore:
    """The `blobs/` folder of a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = os.fspath(folder)
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._decompressor = zstandard.ZstdDecompressor()

    def path(self, digest: str) -> Path:
        """Where the blob is kept, whether it exists or not."""
        return self.folder / digest[:1] / digest[1:]

    def put(self, data: bytes) -> str:
        """Keep `data`; returns its digest.

        Raises:
            StoreError: the folder cannot be written or the disk is full; nothing is left behind.
        """
        digest = digest_of(data)
        if digest not in self:
            self.write(digest, data)
        return digest

    def write(self, digest: str, data: bytes) -> None:
        """Keep `data`, whose digest is known, whether it is there or not.

        Raises:
            StoreError: as `put`.
        """
        folder = f"{self._root}/{digest[:1]}"
        temporary = f"{folder}/.new-{os.urandom(8).hex()}"
        try:
            try:
                file = open(temporary, "xb")
            except FileNotFoundError:
                self.path(digest).parent.mkdir(parents=True, exist_ok=True)
                file = open(temporary, "xb")
            try:
                with file:
                    file.write(self._compressor.compress(data))
                os.replace(temporary, f"{folder}/{digest[1:]}")
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise StoreError(
                f"a blob cannot be written: {plain(error)}",
                where=str(self.folder),
                remedy="Free space, or set KATANA_DIR.",
            ) from error

    def get(self, digest: str) -> bytes:
        """The bytes of a blob.

        Raises:
            StoreError: it is missing or does not hold what its name says.
        """
        path = self.path(digest)
        try:
            data = self._decompressor.decompress(path.read_bytes())
        except FileNotFoundError:
            raise StoreError(
                f"blob {digest[:12]} is missing",
                where=str(self.folder),
                remedy="Run `katana check` to see what it breaks.",
            ) from None
        except (OSError, zstandard.ZstdError) as error:
            raise StoreError(
                f"blob {digest[:12]} cannot be read: {plain(error) if isinstance(error, OSError) else 'it is damaged'}",
                where=str(path),
                remedy="Run `katana check`.",
            ) from error
        if digest_of(data) != digest:
            raise StoreError(f"blob {digest[:12]} is damaged", where=str(path), remedy="Run `katana check`.")
        return data

    def __contains__(self, digest: str) -> bool:
        try:
            # An empty one is what a power failure left.
            return os.stat(f"{self._root}/{digest[:1]}/{digest[1:]}").st_size > 0
        except FileNotFoundError:
            return False

    def unfinished(self) -> Iterator[Path]:
        """What writers that were killed left behind."""
        yield from self.folder.glob("?/.new-*")

    def __iter__(self) -> Iterator[str]:
        for path in sorted(self.folder.glob("?/*")):
            if not path.name.startswith("."):
                yield path.parent.name + path.name
