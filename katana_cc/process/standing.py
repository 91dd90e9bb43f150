"""How the patches of one build stand in a process, all of them together.

Theory of operation.  One patch by itself is judged by the bytes at its edits (`Ledger.found_bytes`).  With several that
does not do: where v1..v3 took the place of v1..v2, the bytes of a function that both replace belong to one of them, and
a patch whose edits are some of another's seems to be applied with it.

The state words decide who is asked.  A patch is *involved* from the first byte that is written for it to the last that
is taken back; any other is not applied, as long as an involved one is.  Two are involved together only while one takes
the place of the other, in one stop: `reverting` the one, `committing` the other.  A katana that was killed there left
one of these:

    every byte is as of one of them     that one is applied, the others are not
    every byte is the original          none is applied
    each byte is as of one of them,     half applied, all of them: the next katana finishes with one of them, or with
      or the original                   another, or puts the original back

What a byte is of one patch: its new byte where the patch has an edit, the original where only another one has.  Where
live data moved, it was written before the edits: only when all of these are there is all of that.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from katana_cc.errors import TargetError
from katana_cc.process.ledger import Ledger, MemoryEdit
from katana_cc.process.memory import Reader
from katana_cc.process.moves import same_moves
from katana_cc.process.phases import Bytes, Phase

_INVOLVED: Final = (Phase.COMMITTING, Phase.APPLIED, Phase.REVERTING)


def standings(memory: Reader, ledgers: Iterable[Ledger]) -> dict[int, Bytes | None]:
    """By the base of each ledger of a process, how its patch stands; None: its module was unloaded.

    Raises:
        TargetError: the process is gone.
    """
    groups: dict[tuple[str, int], list[Ledger]] = {}
    for ledger in ledgers:
        groups.setdefault((ledger.from_build_id, ledger.bias), []).append(ledger)
    result: dict[int, Bytes | None] = {}
    for group in groups.values():
        try:
            result.update(_judged(memory, group))
        except TargetError:
            memory.read(group[0].base, 1)  # is it the process, or the module that is gone?
            result.update(dict.fromkeys((x.base for x in group), None))
    return result


def _judged(memory: Reader, group: Sequence[Ledger]) -> Mapping[int, Bytes]:
    involved = [x for x in group if x.state in _INVOLVED]
    found = _of_several(memory, involved) if len(involved) > 1 else {x.base: x.found_bytes(memory) for x in involved}
    is_decided = any(f is not Bytes.OLD for f in found.values())
    for x in group:
        if x.base not in found:
            found[x.base] = Bytes.OLD if is_decided else x.found_bytes(memory)
    return found


def _of_several(memory: Reader, involved: Sequence[Ledger]) -> dict[int, Bytes]:
    """Of patches one of which takes the place of the others."""
    original = originals(involved)
    there = read_bytes(memory, original)
    entering = sorted(involved, key=lambda x: x.state is Phase.REVERTING)
    finals = {x.base: original | new_bytes(x.fixed) for x in entering}
    torn = dict.fromkeys((x.base for x in involved), Bytes.TORN)
    for base, final in finals.items():
        if there == final and final != original:
            is_whole = _is_data_whole(involved, base)
            return {x.base: Bytes.NEW if x.base == base else Bytes.OLD for x in involved} if is_whole else torn
    if there == original:
        if not _is_data_whole(involved, -1):
            return torn
        # No byte tells: of patches without edits the state does.
        silent = {x.base: x.found_bytes(memory) for x in involved if not x.fixed}
        return {x.base: silent.get(x.base, Bytes.OLD) for x in involved}
    known = all(b in (original[at], *(f[at] for f in finals.values())) for at, b in there.items())
    return torn if known else dict.fromkeys(torn, Bytes.FOREIGN)


def _is_data_whole(involved: Sequence[Ledger], base: int) -> bool:
    """Whether live data is as the patch at `base` (none: the original) has it, when all edits are: none of it was
    written, or all of it."""
    one = involved[0]
    if all(x.moves_data and same_moves(x.moves, x.kinds, one.moves, one.kinds) for x in involved):
        return True  # it stays as it is
    unsure = {True: Phase.REVERTING, False: Phase.COMMITTING}
    return not any(x.moves_data and x.state is unsure[x.base == base] for x in involved)


def originals(ledgers: Iterable[Ledger]) -> dict[int, int]:
    """Address → the byte that was there before any of these patches: no two disagree, since each was made for that."""
    return {e.address + i: b for x in ledgers for e in x.fixed for i, b in enumerate(e.expected)}


def new_bytes(edits: Iterable[MemoryEdit]) -> dict[int, int]:
    """Address → the byte that edits write there."""
    return {e.address + i: b for e in edits for i, b in enumerate(e.replacement)}


def read_bytes(memory: Reader, addresses: Iterable[int]) -> dict[int, int]:
    """Address → the byte there now."""
    result: dict[int, int] = {}
    for start, size in runs(addresses):
        result.update(enumerate(memory.read(start, size), start))
    return result


def runs(addresses: Iterable[int]) -> list[tuple[int, int]]:
    """(start, size) of the ranges that addresses make up, ascending."""
    result: list[tuple[int, int]] = []
    for at in sorted(addresses):
        if result and at == sum(result[-1]):
            result[-1] = result[-1][0], result[-1][1] + 1
        else:
            result.append((at, 1))
    return result


class WithoutPatches:
    """Memory as it would be without some patches: their original bytes over what is there."""

    def __init__(self, memory: Reader, ledgers: Iterable[Ledger]) -> None:
        self._memory = memory
        self._original = originals(ledgers)

    @functools.cached_property
    def _starts(self) -> list[int]:
        return sorted(self._original)

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes, or TargetError."""
        data = self._memory.read(address, size)
        if not self._original:
            return data
        result = bytearray(data)
        for at in self._within(address, address + size):
            result[at - address] = self._original[at]
        return bytes(result)

    def _within(self, start: int, end: int) -> Iterable[int]:
        return self._starts[bisect_left(self._starts, start) : bisect_left(self._starts, end)]
