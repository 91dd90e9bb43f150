"""Finding objects on the heap: typed pointers followed from variables on, with the real sizes of malloc's blocks.

Theory of operation.  A pointer says what it leads to, the allocator says what is there.  Where both agree there is an
object, whose own pointers are followed in turn, each block once, so that lists, trees, cycles and objects that several
pointers lead to come out right.  Of a pointer with value a, to a type U:

    0, or inside a variable           nothing to find (pointers into variables are the affair of `follow.py`)
    the start of a block in use       an object; as many more as the block has room for
    inside a block                    put off: at the end another pointer has led to its start, or it is a problem
    a free block, no block at all     a problem

How many objects a block holds.  malloc rounds up, by 31 bytes at most, or a page in a mapping of the block's own.  So a
block with up to that much to spare holds one; with more it is an array, if what is left behind the last element is
rounding, and if each pointer in all its elements leads somewhere: data of a program's own behind a single struct would
be taken for further elements, and its bytes for pointers.  Of types that stay as they are nothing depends on that.

What is surely there comes first.  The elements beyond the first of a block may never have been used: a table grows
ahead of its entries, and memory is given out again with what it held.  Whatever pointers there lead to is looked at
when everything else is found, and leads nowhere if it does not fit; an object found only so is marked.

Two types for one block.  A pointer to a base or to a first field leads to the whole as well: the larger type wins.
Where only the smaller one was met, but the block could be of the larger, nobody can tell: a problem.

All this is done for each of perhaps a million pointers, so the loop below is plain: one `unpack` for an object, one
look-up for a pointer.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from katana_cc.process.reachable import Blocks, Found, Pieces, Problem, Reached, Root, Trouble, Unfollowed, WalkedType
from katana_cc.process.uncollected import uncollected
from katana_cc.transform.places import pointers

SLACK: Final = 31  # bytes of a block that nobody asked for: rounded up to 16, and a rest too small for a block
_EXACT: Final = 15  # the same without such a rest
_PAGE: Final = 4096
_HEADER: Final = 16  # bytes of a mapping before the block that it was made for
_OBJECTS: Final = ("struct ", "union ", "class ")
_TOLD: Final = 20  # problems that are put in words
_new = tuple.__new__  # of a named tuple: half the time that its own takes


def walk(types: Iterable[WalkedType], roots: Iterable[Root], blocks: Blocks, memory: Pieces) -> Reached:
    """All objects of some types that pointers lead to from some variables.

    Args:
        types: of which names differ; pointers to others are not followed.
        roots: the variables, those that pointers may lead into among them.
        blocks, memory: of the same moment.

    Raises:
        LookupError: memory of a block cannot be read.
    """
    found = _Walk(prepared(tuple(types)), tuple(roots), blocks, memory)
    with uncollected():  # looking for garbage would take as long as the walk
        found.run()
    return found.reached()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A type, prepared.  `places` are its pointers: (number of the type that it leads to, offset); `form` unpacks them.
    `most`: the size of a block that surely has no array of them.  `is_changed`: it is transformed; `leads`: it is, or
    pointers lead from it to one that is.  `starts`: the numbers of the types that it begins with; `is_object`: it is a
    struct, union or class, or an array of them; `wholes`: the numbers of those that are transformed and begin with it.
    """

    type: WalkedType
    size: int
    most: int
    places: tuple[tuple[int, int], ...]
    form: struct.Struct
    is_changed: bool
    leads: bool
    starts: frozenset[int]
    is_object: bool
    wholes: tuple[int, ...]

    @property
    def name(self) -> str:
        """The type's."""
        return self.type.transformation.name


def prepared(types: tuple[WalkedType, ...]) -> tuple[Prepared, ...]:
    """The types, in their order."""
    numbers = {t.transformation.name: n for n, t in enumerate(types)}
    places = [
        [(p.old, numbers[p.pointee]) for p in sorted(pointers(t.transformation)) if p.pointee in numbers] for t in types
    ]
    changed = {n for n, t in enumerate(types) if not t.transformation.is_identity}
    leads = set(changed)
    while more := {n for n, held in enumerate(places) if n not in leads and any(to in leads for _, to in held)}:
        leads |= more
    starts = [_starts(n, types, numbers, places) for n in range(len(types))]
    return tuple(
        Prepared(
            t,
            t.transformation.old_size,
            t.transformation.old_size + SLACK,
            tuple((to, at) for at, to in places[n]),
            _form([at for at, _ in places[n]]),
            n in changed,
            n in leads,
            starts[n],
            t.transformation.name.startswith(_OBJECTS) and not t.transformation.name.endswith("*"),
            tuple(sorted(w for w in changed if n in starts[w] and not types[w].transformation.name.endswith("]"))),
        )
        for n, t in enumerate(types)
    )


def _starts(
    number: int, types: Sequence[WalkedType], numbers: dict[str, int], places: Sequence[Sequence[tuple[int, int]]]
) -> frozenset[int]:
    """The types that one begins with: as the patch says, or since it has all their pointers where they have them."""
    found: set[int] = set()
    at = numbers.get(types[number].begins)
    while at is not None and at not in found:
        found.add(at)
        at = numbers.get(types[at].begins)
    mine, size = set(places[number]), types[number].transformation.old_size
    found |= {
        n for n, t in enumerate(types) if places[n] and mine.issuperset(places[n]) and t.transformation.old_size < size
    }
    return frozenset(found - {number})


def _form(offsets: Sequence[int]) -> struct.Struct:
    form, end = "<", 0
    for at in offsets:
        form += f"{at - end}xQ" if at > end else "Q"
        end = at + 8
    return struct.Struct(form)


class _Delayed(NamedTuple):
    """A pointer into the middle of a block: where it leads, and where it is as in `Found`."""

    value: int
    start: int
    target: int
    holder: int
    at: int


class _Walk:
    def __init__(self, kinds: tuple[Prepared, ...], roots: tuple[Root, ...], blocks: Blocks, memory: Pieces) -> None:
        self._kinds, self._roots, self._blocks, self._memory = kinds, roots, blocks, memory
        self._used = blocks.used
        self._variables = sorted((r.address, r.end) for r in roots)
        self._begins = [start for start, _ in self._variables]
        self._objects: list[Found] = []
        self._numbers: dict[int, int] = {}  # start of a block → the object there
        self._queue: deque[int] = deque()
        self._more: deque[int] = deque()  # objects whose elements beyond the first are to be looked at
        self._arrays: set[int] = set()  # those of them that must be what they are taken for
        self._gone_through: set[int] = set()  # those of them that were
        self._delayed: list[_Delayed] = []
        self._troubles: list[tuple[Trouble, int, int, int, int, str]] = []
        self._is_sure = True

    def run(self) -> None:
        """Everything, in the order of how sure it is."""
        numbers = {kind.name: n for n, kind in enumerate(self._kinds)}
        for n, root in enumerate(self._roots):
            for p in pointers(root.transformation):
                target = numbers.get(p.pointee)
                if target is not None:
                    value = int.from_bytes(root.content[p.old : p.old + 8], "little")
                    self._follow(value, target, -1 - n, p.old, False)
        self._drain()
        self._is_sure = False
        while self._more:
            self._rest_of(self._more.popleft())
            self._drain()
        self._settle()

    def reached(self) -> Reached:
        """The result."""
        types = tuple(kind.type.transformation for kind in self._kinds)
        bare = Reached(types, self._roots, self._objects, ())
        told = []
        for trouble, value, target, holder, at, text in self._troubles[:_TOLD]:
            path = bare.path(holder, at)
            told.append(Problem(trouble, path, value, self._kinds[target].name, f"{path} ({value:#x}) {text}"))
        if more := len(self._troubles) - len(told):
            trouble, value, target, *_ = self._troubles[_TOLD]
            told.append(Problem(trouble, "", value, self._kinds[target].name, f"and {more} more pointers"))
        unfollowed = tuple(Unfollowed(*trouble[:5]) for trouble in self._troubles)
        return Reached(types, self._roots, self._objects, tuple(told), unfollowed)

    # -- objects -------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Follow the pointers of the first element of each object found."""
        objects, numbers, kinds, queue, used = self._objects, self._numbers, self._kinds, self._queue, self._used
        is_sure, start, end, piece = self._is_sure, 0, 0, memoryview(b"")
        while queue:
            number = queue.popleft()
            f = objects[number]
            address, kind = f[0], kinds[f[1]]
            if not start <= address <= end - kind.size:
                start, end, piece = self._fetch(address, kind.size)
            for value, (target, at) in zip(kind.form.unpack_from(piece, address - start), kind.places, strict=True):
                if not value:
                    continue
                known = numbers.get(value)
                if known is not None and objects[known][1] == target:
                    continue
                there = kinds[target]
                size = used.get(value)
                if known is not None or size is None or not there.size <= size <= there.most:
                    self._follow(value, target, number, at, False)
                    continue
                # As in `_follow`, for what is plain.
                made = numbers[value] = len(objects)
                elements = size // there.size
                objects.append(_new(Found, (value, target, elements, size, number, at, is_sure)))
                if there.places:
                    queue.append(made)
                    if elements > 1:
                        self._more.append(made)

    def _rest_of(self, number: int) -> None:
        """Follow the pointers of the elements beyond the first, as far as they lead anywhere."""
        objects, numbers = self._objects, self._numbers
        self._gone_through.add(number)
        f = objects[number]
        kind = self._kinds[f.type]
        start, _, piece = self._fetch(f.address, f.elements * kind.size)
        is_loose = number not in self._arrays
        for element in range(1, f.elements):
            shift = element * kind.size
            values = kind.form.unpack_from(piece, f.address + shift - start)
            for value, (target, at) in zip(values, kind.places, strict=True):
                if value:
                    known = numbers.get(value)
                    if known is None or objects[known].type != target:
                        self._follow(value, target, number, shift + at, is_loose)

    def _fetch(self, address: int, size: int) -> tuple[int, int, memoryview]:
        """(start, end, bytes) of a piece of memory that holds so much; put together where no single one does."""
        start, view = self._memory.piece(address)
        end = start + len(view)
        if address + size > end:
            parts = [bytes(view[address - start :])]
            while end < address + size:
                begin, more = self._memory.piece(end)
                parts.append(bytes(more[end - begin :]))
                end += len(parts[-1])
            start, view = address, memoryview(b"".join(parts))
        return start, end, view

    # -- pointers ------------------------------------------------------------------------------------------------------

    def _follow(self, value: int, target: int, holder: int, at: int, is_loose: bool) -> None:
        """Look at one pointer.  `is_loose`: it may be no pointer at all, and is none if it leads nowhere."""
        if not value:
            return
        known = self._numbers.get(value)
        if known is not None:
            if self._objects[known].type != target:
                self._meet(known, target, value, holder, at, is_loose)
            return
        size = self._used.get(value)
        if size is None:
            block = self._blocks.at(value)
            if block is None:
                if not self._in_variable(value):
                    self._object_to(Trouble.NO_BLOCK, value, target, holder, at, is_loose, _NO_BLOCK)
                return
            if not block.is_used:
                self._object_to(Trouble.FREE, value, target, holder, at, is_loose, "leads to memory that is free")
                return
            if block.start != value:
                if not is_loose:
                    self._delayed.append(_Delayed(value, block.start, target, holder, at))
                return
            size = block.size
        elements, why = self._elements(value, size, target)
        if why:
            self._object_to(Trouble.CONTENTS, value, target, holder, at, is_loose, why)
            return
        number = self._numbers[value] = len(self._objects)
        self._objects.append(Found(value, target, elements, size, holder, at, self._is_sure))
        self._note(number)

    def _note(self, number: int) -> None:
        f = self._objects[number]
        kind = self._kinds[f.type]
        if kind.places:
            self._queue.append(number)
            if f.elements > 1:
                self._more.append(number)
                if kind.is_changed and f.size - kind.size > slack(f.address, f.size):
                    self._arrays.add(number)

    def _elements(self, start: int, size: int, target: int) -> tuple[int, str]:
        """How many objects of a type a block holds; or why that is not known."""
        kind = self._kinds[target]
        count, rest = divmod(size, kind.size)
        if not count:
            return 0, f"leads to a block of {size} bytes, too small for a {kind.name} ({kind.size} bytes)"
        spare = slack(start, size)
        if not kind.is_changed or size - kind.size <= spare:
            return count, ""
        # Pointers tell further elements from other data; without any, the size alone has to.
        if rest > (spare if kind.places or spare > SLACK else _EXACT):
            return 0, f"leads to a block of {size} bytes, which is more than one {kind.name} and no array of them"
        return count, ""

    def _meet(self, number: int, target: int, value: int, holder: int, at: int, is_loose: bool) -> None:
        """A pointer says something else of a block than another did before."""
        before = self._objects[number]
        was, now = self._kinds[before.type], self._kinds[target]
        if target in was.starts or not (was.leads or now.leads):
            return
        if not now.leads and (not now.is_object or is_loose or not self._is_sure):
            return  # bytes or a number of it; or a pointer that may be none
        is_part = before.type in now.starts or not (was.leads or was.is_object)
        is_doubtful = not was.leads and not before.is_sure
        if (is_part or is_doubtful) and number not in self._gone_through:
            elements, why = self._elements(value, before.size, target)
            if why:
                self._object_to(Trouble.CONTENTS, value, target, holder, at, is_loose, why)
                return
            # What both have in common was followed already.  The way here stays the one it was first found by.
            self._objects[number] = before._replace(type=target, elements=elements)
            self._arrays.discard(number)
            self._note(number)
        elif not is_loose and (was.leads or now.leads):
            text = f"says that a {now.name} is there, and another pointer says that it is a {was.name}"
            self._troubles.append((Trouble.CONFLICT, value, target, holder, at, text))

    def _in_variable(self, value: int) -> bool:
        i = bisect_right(self._begins, value) - 1
        return i >= 0 and value < self._variables[i][1]

    def _object_to(
        self, trouble: Trouble, value: int, target: int, holder: int, at: int, is_loose: bool, text: str
    ) -> None:
        """Note a problem, unless nothing is lost if the pointer is not followed."""
        if not is_loose and self._kinds[target].leads:
            self._troubles.append((trouble, value, target, holder, at, text))

    # -- the end -------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """What can be said only when everything is found."""
        for d in self._delayed:
            number = self._numbers.get(d.start)
            wanted = self._kinds[d.target]
            if number is None:
                text = f"leads into a block that is not known otherwise, {d.value - d.start} bytes from its start"
                self._object_to(Trouble.INSIDE, d.value, d.target, d.holder, d.at, False, text)
            elif wanted.is_changed and not (there := self._kinds[self._objects[number].type]).is_changed:
                text = f"leads into a block of {there.name}, which holds no {wanted.name}"
                self._object_to(Trouble.INSIDE, d.value, d.target, d.holder, d.at, False, text)
        if not any(kind.wholes for kind in self._kinds):
            return
        for f in self._objects:
            kind = self._kinds[f.type]
            for whole in kind.wholes:
                if not kind.name.endswith("*") and could_be(f.size, kind.size, self._kinds[whole].size):
                    name = self._kinds[whole].name
                    text = f"leads to a {kind.name} or to a {name} that begins with one: the block has room for either"
                    self._object_to(Trouble.CONTENTS, f.address, whole, f.holder, f.at, False, text)


_NO_BLOCK: Final = "leads to what is neither a block of the heap nor a variable that the patch knows"


def slack(start: int, size: int) -> int:
    """How many bytes of a block malloc may have added."""
    is_mapped = start % _PAGE == _HEADER and (size + _HEADER) % _PAGE == 0
    return _PAGE + SLACK if is_mapped else SLACK


def could_be(size: int, part: int, whole: int) -> bool:
    """Whether a block taken for parts may be of wholes."""
    return size >= whole and (size - whole <= SLACK or (size % whole <= SLACK and size - part > SLACK))
