"""Linked images as the store keeps them, and what the image of the next build probably is.

The problem.  One function grows by 16 bytes, and every section behind it moves: each call and each address that leads
across the place changes, some ten thousand fields of a program of 150 objects.  To a compressor that knows the earlier
image they are ten thousand small surprises, of a tenth of the image's size.  But none of them is news: what lies where
in both builds is known from their link maps.

So the next image is *predicted* from the earlier one: the sections are copied to where they are now, and each field is
corrected by how far what it leads to moved, less how far it moved itself.

    old   1000 f: call g (at 1004: 0x1c8)         1200 g
    new   1000 f: call g (predicted: 0x1d8)       1210 g       g moved by 16, f by 0

What is kept is the image exclusive-or what was predicted, nearly all zero, which a compressor makes next to nothing of
(one that looks for what is alike in an image of some megabytes would take several times as long, and find less).  A
prediction may be wrong in any way: that costs room, and nothing else, since the bytes are restored exactly and checked
by their hash.  Prediction depends
on the earlier image and a list of what moved (`Moves`) alone, so a stored image needs its base and nothing else.

For it an image is kept with the places of its fields, since only objects tell them: the relocations.  They are written
as distances, a byte each, which do not change where sections only move.  In the store:

    b"KIM1", three sizes (4 bytes each), three lists of fields, the image

Out of scope: fields that are bits of instructions (AArch64), and what linkers make themselves (PLT, `.eh_frame_hdr`).
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, repeat
from typing import Final, NamedTuple

from katana_cc.cpu.extent import FROM_END, LONG, SHORT

FIELD_SORTS: Final = (FROM_END, SHORT, LONG)

_MAGIC: Final = b"KIM1"
_HEAD: Final = struct.Struct("<4s3I")
_FAR: Final = 255  # no field after so many bytes; the next distance counts from there
_COUNTS: Final = struct.Struct("<QII")
_COPY: Final = struct.Struct("<QQqQQ")
_SHIFT: Final = struct.Struct("<Qq")
_MOST_MOVES: Final = 1 << 16

Span = tuple[int, int, int]
"""A part of an image that is loaded: link-time address, offset in the file, size in bytes."""


class Copy(NamedTuple):
    """Bytes that moved together: their address and offset in the earlier image, how far the address and the offset of
    the later one are from there, and how many they are."""

    address: int
    offset: int
    shift: int
    to: int
    size: int


class Moves(NamedTuple):
    """What moved between two images: from which addresses on what lies there moved how far, in rising order; and which
    bytes to copy where.  `size` is the later image's, in bytes."""

    size: int
    shifts: tuple[tuple[int, int], ...]
    copies: tuple[Copy, ...]


def pack(fields: Sequence[Iterable[int]], image: bytes) -> bytes:
    """An image and the offsets of its fields, by their sort, as a blob holds them."""
    lists = [_distances(sorted(offsets)) for offsets in fields]
    return b"".join((_HEAD.pack(_MAGIC, *map(len, lists)), *lists, image))


def image_of(packed: bytes) -> bytes:
    """The image alone.

    Raises:
        ValueError: not made by `pack`.
    """
    return packed[_begin(packed) :]


def moves(old: Sequence[Span], new: Sequence[Span], size: int, pairs: Iterable[tuple[int, int]]) -> Moves | None:
    """What moved, from the old and new addresses of the sections that both images have; None if that is too much to
    tell."""
    shifts = [(0, 0)]  # what lies before them all, the headers and the loader's tables, mostly stays
    for before, after in sorted(pairs):
        if shifts[-1][1] != after - before:
            shifts.append((before, after - before))
    if len(shifts) > _MOST_MOVES:
        return None
    copies = []
    for number, (start, shift) in enumerate(shifts):
        end = shifts[number + 1][0] if number + 1 < len(shifts) else 1 << 64
        for address, offset, length in old:
            for new_address, new_offset, new_length in new:
                low = max(start, address, new_address - shift)
                high = min(end, address + length, new_address + new_length - shift)
                if low < high:
                    to = low + shift - new_address + new_offset
                    copies.append(Copy(low, low - address + offset, shift, to, high - low))
    return Moves(size, tuple(shifts), tuple(copies))


def moves_to_bytes(found: Moves) -> bytes:
    """`Moves` as the store keeps it."""
    parts = [_COUNTS.pack(found.size, len(found.shifts), len(found.copies))]
    parts += [_SHIFT.pack(*shift) for shift in found.shifts]
    parts += [_COPY.pack(*copy) for copy in found.copies]
    return b"".join(parts)


def moves_from_bytes(data: bytes) -> Moves:
    """The inverse of `moves_to_bytes`.

    Raises:
        ValueError, struct.error: not written by it.
    """
    size, shifts, copies = _COUNTS.unpack_from(data)
    at = _COUNTS.size
    middle = at + shifts * _SHIFT.size
    if middle + copies * _COPY.size != len(data):
        raise ValueError("it is cut off")
    pairs = tuple([(start, shift) for start, shift in _SHIFT.iter_unpack(data[at:middle])])
    return Moves(size, pairs, tuple([Copy(*row) for row in _COPY.iter_unpack(data[middle:])]))


def fields_of(packed: bytes) -> bytes:
    """The lists of fields, as they are packed."""
    return packed[_HEAD.size : _begin(packed)]


def difference(packed: bytes, predicted: bytes) -> bytes:
    """A packed image with all that was predicted right as zeros.

    Raises:
        ValueError: not made by `pack`, or of another size than was predicted.
    """
    begin = _begin(packed)
    if len(packed) - begin != len(predicted):
        raise ValueError("it is of another size")
    both = int.from_bytes(packed[begin:], "little") ^ int.from_bytes(predicted, "little")
    return packed[:begin] + both.to_bytes(len(predicted), "little")


def predict(packed: bytes, found: Moves) -> bytes:
    """What the later image probably is.

    Raises:
        ValueError: `packed` was not made by `pack`, or `found` does not fit it.
    """
    begin = _begin(packed)
    old = memoryview(packed)[begin:]
    if found.size > 8 * len(packed) + (1 << 24):
        raise ValueError("no such size")
    image = bytearray(found.size)
    kept = min(len(old), found.size)
    image[:kept] = old[:kept]
    for copy in found.copies:
        if copy.offset + copy.size > len(old) or copy.to + copy.size > found.size:
            raise ValueError("bytes outside the image")
        image[copy.to : copy.to + copy.size] = old[copy.offset : copy.offset + copy.size]
    if any(shift for _, shift in found.shifts):
        for sort, offsets in zip(FIELD_SORTS, _fields(packed), strict=True):
            for copy in found.copies:
                width = 8 if sort == LONG else 4
                first = bisect_left(offsets, copy.offset)
                last = bisect_left(offsets, copy.offset + copy.size - width + 1)
                _correct(image, copy, offsets[first:last], found.shifts, sort)
    return bytes(image)


def _correct(
    image: bytearray, copy: Copy, offsets: Sequence[int], shifts: Sequence[tuple[int, int]], sort: int
) -> None:
    """Correct the fields of what was copied."""
    starts = [start for start, _ in shifts]
    by = [0, *(shift for _, shift in shifts)]
    moved, base = copy.to - copy.offset, copy.address - copy.offset
    field = struct.Struct({FROM_END: "<i", SHORT: "<I", LONG: "<Q"}[sort])
    places = [offset + moved for offset in offsets]
    values = map(field.unpack_from, repeat(image), places)
    if sort == FROM_END:
        own = copy.shift
        run = bisect_right(starts, copy.address)
        # What leads to where it moved along with its target, most of them, is right: in distances from `moved`.
        low = (starts[run - 1] if run else 0) - base - 4 + moved
        high = (starts[run] if run < len(starts) else 1 << 64) - base - 4 + moved
        for at, (value,) in zip(places, values, strict=True):
            if low <= at + value < high:
                continue
            difference = by[bisect_right(starts, at - moved + base + value + 4)] - own
            if difference and -(1 << 31) <= value + difference < 1 << 31:
                field.pack_into(image, at, value + difference)
    else:
        for at, (value,) in zip(places, values, strict=True):
            difference = by[bisect_right(starts, value)]
            if difference and 0 <= value + difference < 1 << 8 * field.size:
                field.pack_into(image, at, value + difference)


def _begin(packed: bytes) -> int:
    """Where the image begins."""
    if len(packed) < _HEAD.size or packed[:4] != _MAGIC:
        raise ValueError("it is no image")
    begin: int = _HEAD.size + sum(_HEAD.unpack_from(packed)[1:])
    if begin > len(packed):
        raise ValueError("it is cut off")
    return begin


def _fields(packed: bytes) -> list[list[int]]:
    at, found = _HEAD.size, []
    for size in _HEAD.unpack_from(packed)[1:]:
        part = packed[at : at + size]
        found.append([offset for offset, step in zip(accumulate(part), part, strict=True) if step != _FAR])
        at += size
    return found


def _distances(offsets: Sequence[int]) -> bytes:
    """The distances between offsets in rising order, the first from 0."""
    steps = list(map(int.__sub__, offsets, [0, *offsets]))
    if not steps or max(steps) < _FAR:
        return bytes(steps)
    result = bytearray()
    for step in steps:
        if step >= _FAR:
            far, step = divmod(step, _FAR)
            result += b"\xff" * far
        result.append(step)
    return bytes(result)
