"""The journal: what a commit that moves live data is about to write, told to whoever has to finish it.  Pure codec,
specified in docs/ledger.md.

Live data is moved by many writes, and a katana may be killed between any two of them.  So all of them lie, whole, in
the target's memory before the first is made, and a word says how far it has come:

    IDLE         nothing is under way
    HOLDING      threads are being held (`Threads.hold`); nothing was written
    WRITING      every thread is held; any of the writes may have been made, and each may be made again
    LETTING_GO   all was written; threads are being let go

Sources of how things are laid out: none; numbers are append-only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from katana_cc.errors import LaterKatanaError
from katana_cc.process.memory import Reader

MAGIC: Final = b"KATANAJN"
VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIQQII")  # magic, version, phase, base, length, checksum, flags
HEADER_SIZE: Final = _HEADER.size
PHASE_AT: Final = 12
BODY_AT: Final = 4096  # a page of its own: the header is written in the target, the rest through the memfd
_COUNTS: Final = struct.Struct("<III")
_REGISTER: Final = struct.Struct("<QIIQQ")
_MASK: Final = struct.Struct("<QIQ")
_IS_VECTOR: Final = 1 << 31
_WAS_HALTED: Final = 1

assert HEADER_SIZE == 40


class Progress(IntEnum):
    """How far a commit has come."""

    IDLE = 0
    HOLDING = 1
    WRITING = 2
    LETTING_GO = 3


class ThreadId(NamedTuple):
    """A thread: what its thread pointer holds, and its id as the katana saw it, which is another one in another
    namespace."""

    pointer: int
    tid: int


class RegisterChange(NamedTuple):
    """A register to be set; `place` as of a `RegisterWord`."""

    thread: ThreadId
    place: int
    is_vector: bool
    before: int
    after: int


class Mask(NamedTuple):
    """The signals that a thread blocks, which blocks all while its registers are changed: a handler that was begun
    meanwhile would have kept the old ones."""

    thread: ThreadId
    blocked: int


class Header(NamedTuple):
    """`base`: of the ledger of the patch that comes or goes; `was_halted`: the process was stopped by a signal
    before."""

    progress: Progress
    base: int
    length: int
    checksum: int
    was_halted: bool


class Record(NamedTuple):
    """`pieces` (address, bytes) are written in this order."""

    pieces: tuple[tuple[int, bytes], ...]
    registers: tuple[RegisterChange, ...]
    masks: tuple[Mask, ...]


def encode_body(
    pieces: Sequence[tuple[int, bytes]], registers: Sequence[RegisterChange], masks: Sequence[Mask]
) -> bytes:
    """What is written behind the header, at BODY_AT."""
    count = len(pieces)
    return b"".join(
        (
            _COUNTS.pack(count, len(registers), len(masks)),
            struct.pack(f"<{count}Q", *[address for address, _ in pieces]),
            struct.pack(f"<{count}Q", *[len(data) for _, data in pieces]),
            *(
                _REGISTER.pack(*r.thread, r.place | (_IS_VECTOR if r.is_vector else 0), r.before, r.after)
                for r in registers
            ),
            *(_MASK.pack(*m.thread, m.blocked) for m in masks),
            *[data for _, data in pieces],
        )
    )


def encode_header(progress: Progress, base: int, body: bytes, *, was_halted: bool) -> bytes:
    """What tells of a body."""
    flags = _WAS_HALTED if was_halted else 0
    return _HEADER.pack(MAGIC, VERSION, progress, base, len(body), zlib.crc32(body), flags)


def encode_progress(progress: Progress) -> bytes:
    """The word at PHASE_AT."""
    return struct.pack("<I", progress)


def read_header(memory: Reader, address: int) -> Header | None:
    """The header of a journal; None where there is none.

    Raises:
        LaterKatanaError: a later katana wrote it.
        TargetError: the process is gone.
    """
    magic, version, progress, base, length, checksum, flags = _HEADER.unpack(memory.read(address, HEADER_SIZE))
    if magic != MAGIC:
        return None
    # An idle one is idle in every version: children that were forked meanwhile keep it.
    if progress != Progress.IDLE and (version != VERSION or progress not in set(Progress)):
        raise LaterKatanaError(
            f"a later katana was killed while it moved live data (journal version {version})",
            remedy="use that katana, or a later one",
        )
    return Header(Progress(progress), base, length, checksum, bool(flags & _WAS_HALTED))


def read_body(memory: Reader, address: int, header: Header) -> Record | None:
    """What is to be written; None where it is not what the header tells of.

    Raises:
        TargetError: the process is gone.
    """
    data = memory.read(address + BODY_AT, header.length)
    if zlib.crc32(data) != header.checksum or len(data) < _COUNTS.size:
        return None
    count, registers, masks = _COUNTS.unpack_from(data)
    at = _COUNTS.size
    addresses = struct.unpack_from(f"<{count}Q", data, at)
    sizes = struct.unpack_from(f"<{count}Q", data, at + 8 * count)
    at += 16 * count
    changes = []
    for _ in range(registers):
        pointer, tid, place, before, after = _REGISTER.unpack_from(data, at)
        thread = ThreadId(pointer, tid)
        changes.append(RegisterChange(thread, place & ~_IS_VECTOR, bool(place & _IS_VECTOR), before, after))
        at += _REGISTER.size
    blocked = []
    for _ in range(masks):
        pointer, tid, mask = _MASK.unpack_from(data, at)
        blocked.append(Mask(ThreadId(pointer, tid), mask))
        at += _MASK.size
    pieces = []
    for address, size in zip(addresses, sizes, strict=True):
        pieces.append((address, data[at : at + size]))
        at += size
    return Record(tuple(pieces), tuple(changes), tuple(blocked))
