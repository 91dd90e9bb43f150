"""Objects on the heap that a walk found, made anew: what is to be written, and which words nothing explains.

Theory of operation.  Objects come by the hundred thousand, so nothing is done for one of them that can be done for all
of a type at once.  Those of a type are put one behind the other, as an array, and

    the array is transformed       (`katana_cc.transform.execute`, which works on columns)
    a column of pointers           whose pointee is transformed: each value that is the start of a block is exchanged
    what is left                   the array once more, without those pointers, is searched for words that lead into
                                   what moves: pointers into the middle of objects, to variables, and what no type tells

The last are few, and looked at one by one.  Objects of types that stay are put through the same, since they hold
pointers, too.

Objects stay in their block where just as many of the new layout have room in it, so that its size goes on telling how
many there are; others get a new one, which the program's own malloc gave out before (`katana_cc.process.allocation`).
Writes to neighbouring blocks are put together to one: what lies between them are heads of chunks.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import Final, NamedTuple

from katana_cc.process.chunks import chunk_size
from katana_cc.process.follow import Edited, Finding, Lead, Leads, Passage
from katana_cc.process.losing import Losses
from katana_cc.process.moves import Kind
from katana_cc.process.places import Placement
from katana_cc.process.reachable import Found, PieceReader, Pieces, Reached
from katana_cc.process.words import WORD, Seeker, Word
from katana_cc.transform.destinations import Destinations
from katana_cc.transform.execute import apply_all
from katana_cc.transform.model import Transformation
from katana_cc.transform.places import pointer_at, pointers, word_at

_BETWEEN: Final = 32  # bytes between two writes that are put together: less than a block and its head take
_ADDRESS: Final = itemgetter(0)  # of a Found


class ObjectLeads(Leads):
    """Finds where words lead that may lead into objects on the heap as well as into variables."""

    def __init__(self, passages: Iterable[Passage], kinds: Sequence[Kind], placement: Placement) -> None:
        passages = tuple(passages)
        super().__init__(passages)
        self._kinds = kinds
        self._objects, self._news = placement.objects, placement.news
        self._addresses = [f.address for f in self._objects]
        self._places = [Destinations(k.transformation) for k in kinds]
        ranges = [(p.source, p.transformation.old_size) for p in passages if not p.stays]
        sizes = [k.transformation.old_size for k in kinds]
        self.seeker = Seeker([*ranges, *((f.address, f.elements * sizes[f.type]) for f in self._objects)])

    def of(self, value: int, pointee: str = "") -> Lead:
        """As in `Leads`."""
        i = bisect_right(self._addresses, value) - 1
        if i < 0:
            return super().of(value, pointee)
        f = self._objects[i]
        kind = self._kinds[f.type]
        if value - f.address >= f.elements * kind.transformation.old_size:
            return super().of(value, pointee)
        return lead_into(f, self._news[i], kind, self._places[f.type], value, pointee)


def lead_into(f: Found, new: int, kind: Kind, places: Destinations, value: int, pointee: str) -> Lead:
    """Where an address in a block of objects leads, which go to `new`; `pointee` as in `Leads`."""
    t = kind.transformation
    element, offset = divmod(value - f.address, t.old_size)
    there = new + element * t.new_size
    passage = Passage(t, f.address + element * t.old_size, there, None, None, kind.is_followed, kind.may_drop)
    at = places.of(offset, pointee)
    return Lead(passage, offset, None if at is None else there + at)


class Group(NamedTuple):
    """The objects of one type: their blocks, where each goes, and what they hold, one behind the other."""

    kind: Kind
    objects: Sequence[Found]
    news: Sequence[int]
    old: bytes
    new: bytes


@dataclass(frozen=True, slots=True)
class Converted:
    """What comes of the objects on the heap.

    `groups` are those of types that are transformed.  `writes`: (address, what is there, what is to be written), none
    of which overlap.  `findings`: words in objects that lead into what moves, and are not in `writes` yet.  `lost`,
    `dropped`, `discardable`: as of a `Cargo`.
    """

    groups: Sequence[Group]
    writes: tuple[tuple[int, bytes, bytes], ...]
    findings: tuple[Finding, ...]
    lost: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    discardable: tuple[str, ...]


class Made(NamedTuple):
    """What comes of some objects, as of `Converted`; `writes` are (address, what is to be written).  `losing`: the
    types of which values are lost, and whether these may be discarded."""

    groups: list[Group]
    writes: list[tuple[int, bytes]]
    findings: list[Finding]
    lost: list[str]
    dropped: list[tuple[str, str]]
    losing: list[tuple[str, bool]]


Starts = Mapping[str, Mapping[int, int]]  # type that is transformed -> start of a block -> where its objects go


def convert(
    reached: Reached, kinds: Sequence[Kind], placement: Placement, leads: Leads, memory: Pieces, edited: Edited
) -> Converted:
    """Make the objects anew.

    Args:
        kinds: of `reached.types`, in their order.
        memory: as it was when the walk was made.
    """
    starts: dict[str, dict[int, int]] = {}
    for f, new in zip(placement.objects, placement.news, strict=True):
        starts.setdefault(kinds[f.type].name, {})[f.address] = new
    made = make(reached.objects, kinds, starts, leads, memory, edited)
    merged = tuple(with_before(made.writes, memory)) if placement.is_real else ()
    discardable = tuple(name for name, _ in made.losing) if all(may_be for _, may_be in made.losing) else ()
    tuples = tuple(made.groups), merged, tuple(made.findings), tuple(made.lost), tuple(made.dropped)
    return Converted(*tuples, discardable)


def make(
    objects: Iterable[Found],
    kinds: Sequence[Kind],
    starts: Starts,
    leads: Leads,
    memory: Pieces,
    edited: Edited,
    others: list[Word] | None = None,
) -> Made:
    """Make some objects anew.

    Args:
        starts: of all objects, also of others.
        others: gets the words in them that `leads.seeker` looked at, and that do not lead into what moves.
    """
    members: list[list[Found]] = [[] for _ in kinds]
    for f in sorted(objects, key=_ADDRESS):
        members[f.type].append(f)
    made = Made([], [], [], [], [], [])
    reader = PieceReader(memory)
    for kind, found in zip(kinds, members, strict=True):
        if not found:
            continue
        t = kind.transformation
        moved = starts.get(kind.name, {})
        news = [moved.get(f.address, f.address) for f in found]
        old = reader.join((f.address, f.elements * t.old_size) for f in found)
        count = len(old) // t.old_size
        plain = old if kind.stays else apply_all(t, count, old, bytes(count * t.new_size))
        new, rest = bytearray(plain), bytearray(old)
        _exchange(t, count, old, new, rest, starts)
        made.findings.extend(_left(kind, found, news, rest, leads, edited, others))
        made.writes.extend(_writes(kind, found, news, old, new))
        if not kind.stays:
            made.groups.append(Group(kind, found, news, old, bytes(new)))
            losing = Losses(kind, found, old)
            made.lost.extend(losing.lost)
            made.dropped.extend(() if kind.made else losing.dropped)
            if losing.lost:
                made.losing.append((losing.name, losing.is_discardable))
    return made


def _exchange(
    t: Transformation, count: int, old: bytes, new: bytearray, rest: bytearray, starts: Mapping[str, Mapping[int, int]]
) -> None:
    """Exchange, in `new`, all pointers to the starts of blocks; in `rest` they become zeros."""
    places = [p for p in pointers(t) if p.pointee in starts]
    if len(places) > count:  # few objects with many pointers
        for i in range(count):
            for p in places:
                at = i * t.old_size + p.old
                (value,) = struct.unpack_from("<Q", old, at)
                found = starts[p.pointee].get(value) if value else None
                if found is not None:
                    struct.pack_into("<Q", new, i * t.new_size + p.new, found)
                    rest[at : at + WORD] = bytes(WORD)
        return
    for p in places:
        known = starts[p.pointee]
        form = struct.Struct(f"<{p.old}xQ{t.old_size - p.old - WORD}x")
        values = [value for (value,) in form.iter_unpack(old)]
        _put_column(new, p.new, t.new_size, [known.get(v, v) for v in values])
        _put_column(rest, p.old, t.old_size, [0 if v in known else v for v in values])


def _put_column(data: bytearray, at: int, stride: int, values: Sequence[int]) -> None:
    packed = struct.pack(f"<{len(values)}Q", *values)
    for i in range(WORD):
        data[at + i :: stride] = packed[i::WORD]


def _left(
    kind: Kind,
    objects: Sequence[Found],
    news: Sequence[int],
    rest: bytearray,
    leads: Leads,
    edited: Edited,
    others: list[Word] | None,
) -> Iterator[Finding]:
    """The words in objects that lead into what moves and were not exchanged."""
    t = kind.transformation
    ends = list(accumulate(f.elements for f in objects))
    seeker = leads.seeker
    for word in seeker.in_bytes(rest, 0, aligned=False) if others is None else seeker.near(rest, 0, aligned=False):
        element, offset = divmod(word.address, t.old_size)
        i = bisect_right(ends, element)
        inside = element - (ends[i] - objects[i].elements)
        here = Word(objects[i].address + inside * t.old_size + offset, word.value)
        if others is not None and not seeker.leads(word.value):
            others.append(here)
            continue
        if edited.covers(here.address) or offset + WORD > t.old_size:
            continue
        there = news[i] + inside * t.new_size
        holder = Passage(t, here.address - offset, there, None, None, kind.is_followed, kind.may_drop)
        pointer = pointer_at(t, offset)
        if pointer is not None:
            yield Finding(here, leads.of(word.value, pointer.pointee), holder, there + pointer.new, True)
            continue
        place_of = word_at(t, offset)
        if here.address % WORD or not (place_of.carried or kind.stays):
            continue
        at = offset if kind.stays else place_of.new
        yield Finding(here, leads.of(word.value), holder, None if at is None else there + at, False)


def _writes(
    kind: Kind, objects: Sequence[Found], news: Sequence[int], old: bytes, new: bytearray
) -> Iterator[tuple[int, bytes]]:
    size, at = kind.transformation.new_size, 0
    single = chunk_size(size)
    for f, address in zip(objects, news, strict=True):
        end = at + f.elements * size
        if address != f.address:
            # What malloc adds may have room for one more, which must not be what the block held before.
            room = single if f.elements == 1 else chunk_size(end - at)
            yield address, bytes(new[at:end]).ljust(room, b"\0")
        elif not kind.stays or new[at:end] != old[at:end]:
            yield address, bytes(new[at:end])
        at = end


def with_before(writes: Iterable[tuple[int, bytes]], memory: Pieces) -> Iterator[tuple[int, bytes, bytes]]:
    """Neighbouring writes as one, each with what is there: (address, what is there, what is to be written)."""
    reader = PieceReader(memory)
    start = end = 0
    parts: list[bytes] = []
    for address, content in sorted(writes):
        if parts and 0 <= address - end <= _BETWEEN:
            parts.append(bytes(reader.read(end, address - end)))
        else:
            if parts:
                yield _with_before(start, parts, reader)
            parts, start = [], address
        parts.append(content)
        end = address + len(content)
    if parts:
        yield _with_before(start, parts, reader)


def _with_before(start: int, parts: Sequence[bytes], reader: PieceReader) -> tuple[int, bytes, bytes]:
    after = b"".join(parts)
    return start, bytes(reader.read(start, len(after))), after
