"""Words that lead into variables which move: which are pointers by their type, and which nothing explains.

    in a variable that moves    a pointer by its type    explained: the new object gets the new address
                                in a field that is gone  left behind with it
    in one that stays           a pointer by its type    explained: rewritten where it is
    in bytes that an edit of the patch replaces          the edit's
    anywhere else               a pointer, a number that looks like one, a value long dead: not explained

What is not explained is followed only where somebody says so (`--follow VARIABLE`): then every word that leads into
that variable is a pointer.  Pure: knows no process, only bytes and words found in it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from katana_cc.process.moves import Made, Move
from katana_cc.process.words import WORD, Seeker, Word
from katana_cc.transform.destinations import Destinations
from katana_cc.transform.inverse import invert
from katana_cc.transform.model import Transformation
from katana_cc.transform.places import field_at, pointer_at, word_at


@dataclass(frozen=True, slots=True)
class Passage:
    """A variable on its way, in either direction: from `source` to `destination`, addresses in the target, which are
    equal for one that stays.

    `transformation` is that of the direction.  `initial`: what the object begins as at its destination; None: what is
    there.  `usual`: what the object at its source began as; None: not known.  `may_drop`: a field without a successor
    may hold a value.  `made` are the parts that functions of the program's make at the destination: what becomes of a
    field there is theirs to decide.
    """

    transformation: Transformation
    source: int
    destination: int
    initial: bytes | None
    usual: bytes | None
    is_followed: bool
    may_drop: bool
    made: tuple[Made, ...] = ()

    @property
    def name(self) -> str:
        """The variable's name."""
        return self.transformation.name

    def named(self, field: str) -> str:
        """What to call a field of it."""
        return f"{self.name}{'' if field.startswith('[') or not field else '.'}{field}"

    @property
    def stays(self) -> bool:
        """Whether it keeps its place."""
        return self.source == self.destination

    @property
    def end(self) -> int:
        """Where the object ends at its source."""
        return self.source + self.transformation.old_size


def forth(moves: Iterable[Move]) -> tuple[Passage, ...]:
    """The passages of applying a patch."""
    return tuple(Passage(m.transformation, m.old, m.new, m.begun, None, m.is_followed, True, m.made) for m in moves)


def back(moves: Iterable[Move], followed: Iterable[str] = (), discarded: Iterable[str] = ()) -> tuple[Passage, ...]:
    """The passages of reverting it; `followed` are variables that are followed though they were not on the way forth,
    `discarded` those of which fields may be lost that only the new build has."""
    more, less = frozenset(followed), frozenset(discarded)
    return tuple(
        Passage(
            invert(m.transformation),
            m.new,
            m.old,
            None,
            m.begun,
            m.is_followed or m.name in more,
            m.name in less or (bool(m.made) and all(made.back for made in m.made)),
            tuple(made.reversed() for made in m.made if made.back),
        )
        for m in moves
    )


_WHOLE = ("struct ", "union ", "void")  # how a pointee is called that may be all of what a function makes


class Lead(NamedTuple):
    """Where a word leads: a variable that moves, the offset in it, and the address that the same thing will have; None:
    nothing of the new object is meant for sure."""

    passage: Passage
    offset: int
    moved: int | None

    @property
    def field(self) -> str:
        """The path of the field there."""
        return field_at(self.passage.transformation, self.offset)

    @property
    def depth(self) -> str:
        """How far into the variable, in words."""
        return f"{self.offset} bytes into {self.passage.name}"

    def __str__(self) -> str:
        if not self.offset:
            return self.passage.name
        field = self.field
        return self.passage.named(field) if field else f"{self.passage.name} + {self.offset}"


class Leads:
    """Finds where words lead."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self._moving = sorted((p for p in passages if not p.stays), key=lambda p: p.source)
        self._starts = [p.source for p in self._moving]
        self._destinations = [Destinations(p.transformation) for p in self._moving]
        self._known: dict[tuple[int, str], Lead] = {}
        self.seeker = Seeker((p.source, p.transformation.old_size) for p in self._moving)

    def of(self, value: int, pointee: str = "") -> Lead:
        """Where a word that leads into a moving variable leads; `pointee`: what it is known to point to."""
        lead = self._known.get((value, pointee))
        if lead is None:
            number = bisect_right(self._starts, value) - 1
            passage = self._moving[number]
            offset = value - passage.source
            at = self._destinations[number].of(offset, pointee)
            if at is None and pointee.startswith(_WHOLE):
                at = next((new for m in passage.made if (new := m.at(offset)) is not None), None)
            lead = Lead(passage, offset, None if at is None else passage.destination + at)
            self._known[value, pointee] = lead
        return lead


class Finding(NamedTuple):
    """A word that leads into a variable that moves.

    `holder` is the variable that holds it, None elsewhere.  `new_address` is where it will stand, None where it cannot
    be carried over; `is_explained`: its type says that it is a pointer.
    """

    word: Word
    lead: Lead
    holder: Passage | None
    new_address: int | None
    is_explained: bool

    @property
    def field(self) -> str:
        """The path of the field of `holder` that it is in."""
        return field_at(self.holder.transformation, self.word.address - self.holder.source) if self.holder else ""


def held_by(passage: Passage, content: bytes, leads: Leads, edited: Edited) -> Iterator[Finding]:
    """The findings in a variable that moves, or stays and is walked by its type; `content` is what it holds."""
    t = passage.transformation
    for word in leads.seeker.in_bytes(content, passage.source, aligned=False):
        if edited.covers(word.address):
            continue
        offset = word.address - passage.source
        pointer = pointer_at(t, offset)
        if pointer is not None:
            at = passage.destination + pointer.new
            yield Finding(word, leads.of(word.value, pointer.pointee), passage, at, True)
            continue
        place = word_at(t, offset)
        if word.address % WORD or not (place.carried or passage.stays):
            continue
        if passage.stays:
            new: int | None = word.address
        else:
            new = None if place.new is None else passage.destination + place.new
        yield Finding(word, leads.of(word.value), passage, new, False)


class Edited:
    """Bytes that the edits of the patch replace, as (start, end)."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._ranges = sorted(ranges)
        self._starts = [start for start, _ in self._ranges]

    def covers(self, address: int) -> bool:
        """Whether a word lies in them as a whole."""
        i = bisect_right(self._starts, address) - 1
        return i >= 0 and address + WORD <= self._ranges[i][1]


def elsewhere(words: Iterable[Word], leads: Leads, edited: Edited) -> Iterator[Finding]:
    """The findings among words of other memory."""
    for word in words:
        if not edited.covers(word.address):
            yield Finding(word, leads.of(word.value), None, word.address, False)


def spared(passages: Iterable[Passage]) -> list[tuple[int, int]]:
    """The (start, end) ranges that need no search: they are walked by type, or written over."""
    every = {
        (start, start + size)
        for p in passages
        for start, size in ((p.source, p.transformation.old_size), (p.destination, p.transformation.new_size))
    }
    return sorted(every)


def put(objects: Mapping[int, bytearray], sizes: Sequence[Passage], address: int, value: int) -> bool:
    """Write a word into whichever new object is at an address; whether one is."""
    for p in sizes:
        if not p.stays and p.destination <= address < p.destination + p.transformation.new_size:
            at = address - p.destination
            objects[p.destination][at : at + WORD] = value.to_bytes(WORD, "little")
            return True
    return False
