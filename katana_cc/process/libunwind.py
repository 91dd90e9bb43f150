"""Entering new code in the list that a libunwind keeps of code made at run time (libunwind-dynamic(3)).

An entry (`unw_dyn_info_t`) tells a range of code and where the table of its FDEs is: the .eh_frame_hdr of the patch's
own image, which is what libunwind reads of a shared library, too.

    record      the entry: `_U_dyn_register` links it in
    record+128  a trial entry, of one byte that is no code: is the entry laid out as this libunwind reads it?

Versions differ by a word before the table, and have no number to tell.  Of the trial entry, whose format no version
follows any pointer of, `unw_get_proc_info_by_ip` gives back a word by which they are told apart.

The list is the truth: it is read from outside, in a generation that did not change meanwhile, and what is in it is not
linked in again.  Whoever looks code up reads the list without a lock, so that an entry has to stay where it is.

Out of scope: names.  libunwind gives none for an entry that leads to a table.

Sources: libunwind-dynamic.h, src/mi/Gdyn-extract.c, src/mi/Gdyn-remote.c of libunwind 1.6.2.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from typing import Final

from katana_cc.elf.image import FRAME_TABLE_AT
from katana_cc.errors import BusyError, RefusedError, TargetError
from katana_cc.process.calling import Calls
from katana_cc.process.ledger import Listing
from katana_cc.process.link import RECORD_SIZE
from katana_cc.process.maps import is_scratch
from katana_cc.process.target import Target

_LIST: Final = struct.Struct("<IIQ")  # version, generation, first
_ENTRY: Final = struct.Struct("<QQQQQII")  # next, previous, start, end, gp, format, padding
_TABLE: Final = struct.Struct("<QQQQ")  # name, what its offsets count from, words, where
_DYNAMIC, _REMOTE_TABLE = 0, 2  # UNW_INFO_FORMAT_*
_HANDLER_AT: Final = 24  # in unw_proc_info_t
_HANDLERS: Final = (1, 2)  # what it tells of the trial entry: without the word before the table, and with it
_TRIAL_AT: Final = 128
_MOST_ENTRIES: Final = 1 << 16
_TRIES: Final = 10

assert _ENTRY.size + 8 + _TABLE.size <= _TRIAL_AT
assert RECORD_SIZE >= 2 * _TRIAL_AT


@dataclass(frozen=True, slots=True)
class CodeTable:
    """New code [start, end); its .eh_frame_hdr and how many FDEs that lists; the first of one of its functions."""

    start: int
    end: int
    index: int
    count: int
    function: int


def enter(target: Target, calls: Calls, listing: Listing, table: CodeTable) -> None:
    """Enter the code, unless it is in the list.

    Raises:
        BusyError: the list changes all the time, or a call of a katana that was killed may not have ended.
        RefusedError: this libunwind is not as those that are known.
    """
    memory = target.memory
    if sum(1 for r in target.read_map().regions if is_scratch(r)) > 1:
        raise BusyError("a call of a katana that was killed may still go on", where=target.where)
    head = calls.call(listing.head, "_U_dyn_info_list_addr")
    if not _is_listed(target, head, listing.record):
        front = bytes(8 * _words_before_table(target, calls, listing, head))
        entry = _ENTRY.pack(0, 0, table.start, table.end, 0, _REMOTE_TABLE, 0)
        entry += front + _TABLE.pack(0, table.index, table.count, table.index + FRAME_TABLE_AT)
        memory.write(listing.record, entry)
        calls.call(listing.register, "_U_dyn_register", listing.record)
    found = _ask(target, calls, listing, table.function) if _is_listed(target, head, listing.record) else b""
    if found[:8] != table.function.to_bytes(8, "little"):
        raise _unknown(target)


def _words_before_table(target: Target, calls: Calls, listing: Listing, head: int) -> int:
    """How many words of an entry lie between its padding and its table."""
    trial = listing.record + _TRIAL_AT
    if not _is_listed(target, head, trial):
        data = _ENTRY.pack(0, 0, trial, trial + 1, 0, _DYNAMIC, 0) + struct.pack("<5Q", 0, *_HANDLERS, 0, 0)
        target.memory.write(trial, data)
        calls.call(listing.register, "_U_dyn_register", trial)
    # Where it is not found in the list, libunwind looks elsewhere, for which it may not be ready.
    found = _ask(target, calls, listing, trial) if _is_listed(target, head, trial) else b""
    calls.call(listing.cancel, "_U_dyn_cancel", trial)
    handler = int.from_bytes(found[_HANDLER_AT : _HANDLER_AT + 8], "little")
    if handler not in _HANDLERS:
        raise _unknown(target)
    return _HANDLERS.index(handler)


def _ask(target: Target, calls: Calls, listing: Listing, pc: int) -> bytes:
    """What libunwind says of the code at an address that is in its list (`unw_proc_info_t`); b"" if nothing."""
    target.memory.write(calls.stack, bytes(128))
    space = int.from_bytes(target.memory.read(listing.space, 8), "little")
    failed = calls.call(listing.ask, "unw_get_proc_info_by_ip", space, pc, calls.stack, 0) & 0xFFFFFFFF
    return b"" if failed else target.memory.read(calls.stack, 128)


def _is_listed(target: Target, head: int, entry: int) -> bool:
    """Whether an entry is in the list."""
    for _ in range(_TRIES):
        _, generation, at = _LIST.unpack(target.memory.read(head, _LIST.size))
        with contextlib.suppress(TargetError):  # it was taken out and freed meanwhile
            for _ in range(_MOST_ENTRIES):
                if at in (0, entry):
                    break
                at = int.from_bytes(target.memory.read(at, 8), "little")
            if at in (0, entry) and generation == _LIST.unpack(target.memory.read(head, _LIST.size))[1]:
                return bool(at)
    raise BusyError("libunwind's list of code changes all the time", where=target.where)


def _unknown(target: Target) -> RefusedError:
    return RefusedError(
        "the libunwind of the process does not take new code as those that are known, and exceptions may have to pass "
        "through it",
        where=target.where,
        remedy="restart the process with the new build",
    )
