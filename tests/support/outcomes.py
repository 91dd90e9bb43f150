"""What a look at objects on the heap comes to, in a form in which two looks can be compared: nothing depends on which
new block an object gets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

from katana_cc.process.follow import Finding
from katana_cc.process.moves import Kind
from katana_cc.process.objects import Cargo
from katana_cc.transform.places import pointers

Content = dict[int, tuple[str, bool, bytes]]


def contents(cargo: Cargo, kinds: Iterable[Kind], read: Callable[[int, int], bytes]) -> Content:
    """Old address → (type, whether it stays there, what it will hold) of all objects that are made anew, where pointers
    to them are written as they were before.

    Args:
        read: memory as it is when everything is stopped.
    """
    known = {k.name: k for k in kinds}
    placed = list(zip(cargo.placement.objects, cargo.placement.news, strict=True))
    back = {new: f.address for f, new in placed}
    written = {address: after for address, _, after in cargo.converted.writes}
    starts = sorted(written)

    def after(address: int, size: int) -> bytes:
        data = bytearray(read(address, size))
        first = max(bisect_right(starts, address) - 1, 0)
        for start in starts[first : bisect_right(starts, address + size)]:
            low, high = max(start, address), min(start + len(written[start]), address + size)
            if low < high:
                data[low - address : high - address] = written[start][low - start : high - start]
        return bytes(data)

    result: Content = {}
    for f, new in placed:
        t = known[cargo.reached.types[f.type].name].transformation
        data = bytearray(after(new, f.elements * t.new_size))
        for element in range(f.elements):
            for p in pointers(t):
                at = element * t.new_size + p.new
                value = int.from_bytes(data[at : at + 8], "little")
                data[at : at + 8] = back.get(value, value).to_bytes(8, "little")
        result[f.address] = t.name, new == f.address, bytes(data)
    # Objects that stay hold pointers, too.
    for f in cargo.reached.objects:
        kind = known[cargo.reached.types[f.type].name]
        if kind.stays:
            t = kind.transformation
            data = bytearray(after(f.address, f.elements * t.old_size))
            for element in range(f.elements):
                for p in pointers(t):
                    at = element * t.new_size + p.new
                    value = int.from_bytes(data[at : at + 8], "little")
                    data[at : at + 8] = back.get(value, value).to_bytes(8, "little")
            result[f.address] = t.name, True, bytes(data)
    return result


def undone(cargo: Cargo, read: Callable[[int, int], bytes]) -> bool:
    """Whether what is written in place is known to be undone: what was there is."""
    return all(not before or before == read(address, len(before)) for address, before, _ in cargo.converted.writes)


def is_only_objects(cargo: Cargo, kinds: Iterable[Kind], read: Callable[[int, int], bytes]) -> bool:
    """Whether what is written beside objects, into the heads of chunks between them, is what is there."""
    known = {k.name: k for k in kinds}
    goes = dict(zip((f.address for f in cargo.placement.objects), cargo.placement.news, strict=True))
    used = set(cargo.placement.used)
    ours: set[int] = set()
    for f in cargo.reached.objects:
        new = goes.get(f.address, f.address)
        size = known[cargo.reached.types[f.type].name].transformation.new_size
        ours.update(range(new, new + f.elements * size))
    for address, _, after in cargo.converted.writes:
        there = read(address, len(after)) if address not in used else after
        if any(after[i] != there[i] and address + i not in ours for i in range(len(after))):
            return False
    return True


def words(findings: Iterable[Finding]) -> list[tuple[object, ...]]:
    """The words that lead to what moves, and where."""
    return sorted(
        (f.word.address, f.word.value, f.lead.passage.source, f.lead.offset, f.is_explained, f.holder is not None)
        for f in findings
    )
