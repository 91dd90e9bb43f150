"""Blobs: immutable bytes, zstd-compressed, named by the SHA-256 of what they hold.

A blob is written to a temporary file and renamed, so it is there whole or not at all; writing one twice is harmless,
which is what makes the store safe under `make -j` without locks.  They lie in sixteen folders, by their first digit: to
make 256 would take a first link as long as to write its blobs.  The only importer of `zstandard`.

Theory of operation.  Most blobs are nearly one that is there already: the object before the change, the image and the
manifest of the build before.  Such a blob is kept as what differs from its *base*: a zstd frame that may refer to the
base's bytes as if they stood before it; or, for an image, what differs from that which `images.predict` makes of the
base.  Its name is that of the bytes that
it holds all the same, so whoever reads cannot tell, and a wrong base shows as a wrong hash.

Were each based on the one before, the hundredth would be read through ninety-nine others.  So they are numbered, and
number n is based on the number that n without its lowest set bit is (skip deltas, as in Subversion):

    0 <- 1     0 <- 2 <- 3     0 <- 4 <- 5     4 <- 6 <- 7     0 <- 8

The way to any is as long as its number has bits, and half of them are still based on their neighbour.

A base is there before what is based on it, and neither is ever written anew in another form; the numbers fall on the
way to it.  So there is no circle, and whoever removes blobs from the highest number down never leaves one without its
base.  As a file:

    b"KTB1", CRC-32 of all that follows (4 bytes), number (4), blobs on the way to a whole one (1), SHA-256 of the base
    (32; zero: none), size of the moves (4), the moves (a zstd frame; nothing: the base is taken as it is), a zstd frame

The checksum is for bits that mean nothing to a decompressor, and for the number: the hash is only of what is held.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import zstandard  # noqa: TID251

from katana_cc.errors import FormatError, StoreError
from katana_cc.snapshot import images
from katana_cc.snapshot.words import plain
from katana_cc.telling import Tell, silent

_LEVEL = 1  # objects compress 4:1 at 400 MB/s; higher levels gain a tenth and cost the link's time
# Kept, since a first link has hundreds of rows, and to make a context takes longer than to compress one.
_TO_ROW = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
_FROM_ROW = zstandard.ZstdDecompressor()
_HEAD: Final = struct.Struct("<4sI")
_BASED: Final = struct.Struct("<IB32sI")
_MAGIC: Final = b"KTB1"
_NO_BASE: Final = bytes(32)
_DELTA_LEVEL: Final = 3  # the lowest that finds its way in a base of some megabytes
_WORTH: Final = 8  # what is not smaller than this part of the bytes is hardly smaller than they are by themselves
_LONGEST_WAY: Final = 12
_LARGEST: Final = 1 << 27  # zstd's window grows with it, in memory too
_KEPT_BASES: Final = 3


class Base(NamedTuple):
    """What a blob is based on, the blob's own number, and how many blobs it takes to read it."""

    digest: str
    number: int
    way: int


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
        self._bases: dict[str, bytes] = {}

    def path(self, digest: str) -> Path:
        """Where the blob is kept, whether it exists or not."""
        return self.folder / digest[:1] / digest[1:]

    def put(self, data: bytes, like: str = "") -> str:
        """Keep `data`; returns its digest.  `like` is a blob that is probably nearly the same.

        Raises:
            StoreError: the folder cannot be written or the disk is full; nothing is left behind.
        """
        digest = digest_of(data)
        if digest not in self:
            self.write(digest, data, like)
        return digest

    def write(self, digest: str, data: bytes, like: str = "") -> None:
        """Keep `data`, whose digest is known, whether it is there or not.

        Raises:
            StoreError: as `put`.
        """
        base = self.base_for(like) if like else None
        if base is None or not self.write_based(digest, data, base):
            self.write_file(digest, _file(_WHOLE, b"", self._compressor.compress(data)))

    def base_for(self, like: str, usable: Callable[[str], bool] = lambda _: True) -> Base | None:
        """What a new blob that is like another should be based on; None: on nothing, since there is none, or the way
        would be too long."""
        first = self.header(like)
        if first is None or not usable(like):
            return None
        number = first.number + 1
        found, at = Base(like, number, first.way + 1), first
        # The other's own bases are all that can be asked for: see the numbers above.
        while at.digest and at.number > number & number - 1:
            behind = self.header(at.digest)
            if behind is None:
                break
            if usable(at.digest):
                found = Base(at.digest, number, behind.way + 1)
            at = behind
        return found if found.way <= _LONGEST_WAY else None

    def write_based(self, digest: str, data: bytes, base: Base, moves: bytes = b"") -> bool:
        """Keep `data` as what differs from a base, if that is much less; whether it was."""
        try:
            prefix, rest = _split(self.read_base(base.digest), moves, data)
        except (StoreError, ValueError):
            return False  # a base that is damaged is told of by whoever needs it
        size = len(prefix) + len(rest)
        if size > _LARGEST:
            return False
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _DELTA_LEVEL, source_size=size, window_log=max(size.bit_length(), 10), write_content_size=True
        )
        dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        frame = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(rest)
        told = self._compressor.compress(moves) if moves else b""
        if (len(told) + len(frame)) * _WORTH > len(data):
            return False
        self.write_file(digest, _file(base, told, frame), is_based=True)
        return True

    def write_file(self, digest: str, encoded: bytes, *, is_based: bool = False) -> None:
        """Put the file of a blob in its place.  One that is based on another never takes the place of what is there.

        Raises:
            StoreError: as `put`.
        """
        folder = f"{self._root}/{digest[:1]}"
        temporary, final = f"{folder}/.new-{os.urandom(8).hex()}", f"{folder}/{digest[1:]}"
        try:
            try:
                file = open(temporary, "xb")
            except FileNotFoundError:
                self.path(digest).parent.mkdir(parents=True, exist_ok=True)
                file = open(temporary, "xb")
            try:
                with file:
                    file.write(encoded)
                if not is_based or not self._links(temporary, final):
                    os.replace(temporary, final)
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

    def _links(self, temporary: str, final: str) -> bool:
        """Give a file its name unless there is one of that name; False: rename it, after all."""
        try:
            os.link(temporary, final)
        except FileExistsError:
            if not os.path.getsize(final):
                return False
        except OSError:
            return False  # there are file systems without links
        os.unlink(temporary)
        return True

    def get(self, digest: str) -> bytes:
        """The bytes of a blob.

        Raises:
            StoreError: it, or what it is based on, is missing or does not hold what its name says.
        """
        if digest in self._bases:
            return self._bases[digest]
        header, encoded = self._read(digest)
        return self._decoded(digest, encoded, self.read_base(header.digest) if header.digest else b"")

    def read_base(self, digest: str) -> bytes:
        """What `get` reads, remembered: others are probably based on it too."""
        data = self.get(digest)
        self.remember(digest, data)
        return data

    def remember(self, digest: str, data: bytes) -> None:
        """Have the bytes of a blob ready, since they will be asked for."""
        self._bases.pop(digest, None)
        while len(self._bases) >= _KEPT_BASES:
            del self._bases[next(iter(self._bases))]
        self._bases[digest] = data

    def header(self, digest: str) -> Base | None:
        """What a blob is based on ("": nothing); None: it is not there, or its header is damaged."""
        try:
            with open(f"{self._root}/{digest[:1]}/{digest[1:]}", "rb") as file:
                return _header(file.read(_HEAD.size + _BASED.size))
        except (OSError, ValueError):
            return None

    def verify(self, tell: Tell = silent) -> Iterator[tuple[str, str]]:
        """What is wrong with which of the blobs that are there, each read once; those based on a damaged one too.

        `tell` hears how many are done, of how many, and the next.
        """
        based: dict[str, list[str]] = {}
        digests = list(self)
        for digest in digests:
            header = self.header(digest)
            based.setdefault(header.digest if header else "", []).append(digest)
        left = [(digest, b"") for digest in based.pop("", ())]
        done = itertools.count()
        while left:
            digest, base = left.pop()
            tell(next(done), len(digests), f"blob {digest[:12]}")
            try:
                data = self._decoded(digest, self._read(digest)[1], base)
            except StoreError as error:
                yield digest, f"{error.what} ({self.path(digest)})"
                continue
            left += [(child, data) for child in based.pop(digest, ())]
        for base_digest, children in based.items():
            for digest in children:
                yield (
                    digest,
                    (f"blob {digest[:12]} cannot be read without blob {base_digest[:12]}, which is missing or damaged"),
                )

    def take(self, digest: str, encoded: bytes) -> None:
        """Keep a blob by a file that another store made.

        Raises:
            ValueError: it is no file of that blob, or based on one that is not here.
            StoreError: as `put`, and when its base is damaged.
        """
        header = _header(encoded)
        try:
            data = self.decode(encoded, self.read_base(header.digest) if header.digest else b"")
        except (struct.error, zstandard.ZstdError, MemoryError) as error:
            raise ValueError("it is damaged") from error
        if digest_of(data) != digest:
            raise ValueError("it holds other bytes")
        base = self.header(header.digest) if header.digest else None
        if base is None:
            self.write_file(digest, encoded)
        elif base.way < _LONGEST_WAY:
            # The base may have another number here than there.
            own = Base(header.digest, max(header.number, base.number + 1), base.way + 1)
            told = _BASED.unpack_from(encoded, _HEAD.size)[3]
            at = _HEAD.size + _BASED.size + told
            self.write_file(digest, _file(own, encoded[at - told : at], encoded[at:]), is_based=True)
        else:
            self.write(digest, data)

    def read_file(self, digest: str) -> bytes:
        """The file of a blob, as it is.

        Raises:
            StoreError: it is missing or cannot be read.
        """
        return self._read(digest)[1]

    def _read(self, digest: str) -> tuple[Base, bytes]:
        path = self.path(digest)
        try:
            encoded = path.read_bytes()
            header = _header(encoded)
            if zlib.crc32(memoryview(encoded)[_HEAD.size :]) != _HEAD.unpack_from(encoded)[1]:
                raise ValueError("a wrong checksum")
            return header, encoded
        except FileNotFoundError:
            raise StoreError(
                f"blob {digest[:12]} is missing",
                where=str(self.folder),
                remedy="Run `katana check` to see what it breaks.",
            ) from None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"blob {digest[:12]} cannot be read: {plain(error) if isinstance(error, OSError) else 'it is damaged'}",
                where=str(path),
                remedy="Run `katana check`.",
            ) from error

    def _decoded(self, digest: str, encoded: bytes, base: bytes) -> bytes:
        try:
            data = self.decode(encoded, base)
        except (ValueError, struct.error, zstandard.ZstdError, MemoryError):
            data = None  # written wrong: the checksum is right
        if data is None or digest_of(data) != digest:
            where, remedy = str(self.path(digest)), "Run `katana check`."
            raise StoreError(f"blob {digest[:12]} is damaged", where=where, remedy=remedy)
        return data

    def decode(self, encoded: bytes, base: bytes) -> bytes:
        """What a file says, if it is based on nothing or on the bytes `base`.

        Raises:
            ValueError, struct.error, zstandard.ZstdError: it is damaged.
        """
        _, _, digest, told = _BASED.unpack_from(encoded, _HEAD.size)
        at = _HEAD.size + _BASED.size + told
        if digest == _NO_BASE:
            return self._decompressor.decompress(encoded[at:])
        moves = self._decompressor.decompress(encoded[at - told : at]) if told else b""
        prefix, predicted = _prediction(base, moves)
        dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        rest = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=2 * _LARGEST).decompress(encoded[at:])
        return rest if predicted is None else images.difference(rest, predicted)

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


def _prediction(base: bytes, moves: bytes) -> tuple[bytes, bytes | None]:
    """What a frame may refer to, and what its image was predicted to be, if it holds one."""
    if not moves:
        return base, None
    return images.fields_of(base), images.predict(base, images.moves_from_bytes(moves))


def _split(base: bytes, moves: bytes, data: bytes) -> tuple[bytes, bytes]:
    """What a frame may refer to, and what it has to hold."""
    prefix, predicted = _prediction(base, moves)
    return prefix, data if predicted is None else images.difference(data, predicted)


_WHOLE: Final = Base("", 0, 0)


def _file(base: Base, moves: bytes, frame: bytes) -> bytes:
    digest = bytes.fromhex(base.digest) if base.digest else _NO_BASE
    rest = b"".join((_BASED.pack(base.number, base.way, digest, len(moves)), moves, frame))
    return _HEAD.pack(_MAGIC, zlib.crc32(rest)) + rest


def _header(encoded: bytes) -> Base:
    """Raises ValueError: it is cut off, or the file of something else."""
    if not encoded.startswith(_MAGIC) or len(encoded) < _HEAD.size + _BASED.size:
        raise ValueError("no blob")
    number, way, base, _ = _BASED.unpack_from(encoded, _HEAD.size)
    return Base("" if base == _NO_BASE else base.hex(), number, way)
