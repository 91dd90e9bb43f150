"""What a stop compares and writes, made up before it: few ranges instead of many small ones.

A patch of 5,000 functions has 5,000 jumps, most of them within a few pages.  One system call for each, and one
comparison for each function, makes the stop twenty times as long as that of a patch of one.  So before the stop the
code around jumps that lie close to each other is read, and the jumps are put into it.  In the stop each such *span* is
compared as a whole and, when it is still the same, written as a whole: between the jumps it gets what it has.

    jump ──── code ──── jump ──── jump        before    compared, and put back where it has to be undone
    5 bytes             5         5           after     written by one call

Spans never cross a page: the kernel copies page by page, and a katana may be killed in between.  Only jumps are put
together, since code of a stopped process changes by nobody's hand; data may be written to by other processes and by
devices.  Where a span is not the same any more, each edit is judged and written by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from katana_cc.process.ledger import MemoryEdit
from katana_cc.process.memory import Reader

_PAGE: Final = 4096
_GAP: Final = 512  # bytes that are cheaper to write again than one more call


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes to be written: at `address`, where `before` is."""

    address: int
    before: bytes
    after: bytes


@dataclass(frozen=True, slots=True)
class Script:
    """`ranges` are (address, size) that hold, one behind the other, `expected`; then `writes` are right."""

    ranges: tuple[tuple[int, int], ...]
    expected: bytes
    writes: tuple[Write, ...]


def script(memory: Reader, snapshot: Iterable[tuple[int, bytes]], edits: Sequence[MemoryEdit]) -> Script:
    """What is compared and written for some edits.

    Args:
        snapshot: (address, bytes) that must still be there.

    Raises:
        TargetError: it cannot be read.
    """
    groups = _groups(edits)
    writes = tuple(_write(memory, group) for group in groups)
    spans = [(w.address, w.before) for w, group in zip(writes, groups, strict=True) if len(group) > 1]
    checked = _images(memory, [*snapshot, *spans])
    return Script(tuple((at, len(data)) for at, data in checked), b"".join(data for _, data in checked), writes)


def _groups(edits: Sequence[MemoryEdit]) -> list[list[MemoryEdit]]:
    """Edits in the order of their addresses, those together that one call may write."""
    result: list[list[MemoryEdit]] = []
    end = 0
    for edit in sorted(edits, key=lambda e: e.address):
        last = edit.address + len(edit.replacement) - 1
        if (
            result
            and result[-1][0].is_jump
            and edit.is_jump
            and end <= edit.address <= end + _GAP
            and result[-1][0].address // _PAGE == last // _PAGE
        ):
            result[-1].append(edit)
        else:
            result.append([edit])
        end = max(end, last + 1)
    return result


def _write(memory: Reader, group: Sequence[MemoryEdit]) -> Write:
    first, last = group[0], group[-1]
    if len(group) == 1:
        return Write(first.address, first.expected, first.replacement)
    before = memory.read(first.address, last.address + len(last.replacement) - first.address)
    after = bytearray(before)
    for edit in group:
        at = edit.address - first.address
        after[at : at + len(edit.replacement)] = edit.replacement
    return Write(first.address, before, bytes(after))


def _images(memory: Reader, wanted: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The same bytes in fewer ranges, with what is between them now; as they are where something else is there now."""
    groups: list[list[tuple[int, bytes]]] = []
    end = 0
    for address, data in sorted(wanted):
        if groups and address <= end + _GAP:
            groups[-1].append((address, data))
        else:
            groups.append([(address, data)])
        end = max(end, address + len(data)) if len(groups[-1]) > 1 else address + len(data)
    result: list[tuple[int, bytes]] = []
    for group in groups:
        start = group[0][0]
        there = memory.read(start, max(address + len(data) for address, data in group) - start)
        is_so = all(there[address - start : address - start + len(data)] == data for address, data in group)
        result += [(start, there)] if is_so else group
    return result
