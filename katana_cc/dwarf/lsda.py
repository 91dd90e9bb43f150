"""Language-specific data areas (LSDA): which calls of a function lead to which handlers and cleanups.

The format is that of gcc's and clang's C++, and of C with cleanups; the personality routine reads it while it unwinds:

    header        where landing pads count from, how types and call sites are encoded, where the types end
    call sites    (start, length, landing pad, first action), relative to the function's start; action 0: only a cleanup
    actions       (filter, distance to the next): 0 a cleanup, n > 0 "catch type n", n < 0 "an exception specification"
    types         pointers to type_info, counted backwards from the end of the table; a null one catches everything
    lists         of types, for exception specifications, forwards from the same place

Here it is taken apart without knowing addresses, so that two of them can be compared by meaning, and cut out of its
section: `types` are offsets of fields, whose relocations say which types they are.  Of what no call site leads to,
nothing is told.

Source: Itanium C++ ABI, Exception Handling, "LSDA" as gcc's except.c writes it and libstdc++'s eh_personality.cc reads.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from katana_cc.dwarf.frames import DW_EH_PE_OMIT, CfiReader
from katana_cc.errors import FormatError

INDIRECT: Final = 0x80
_SIZES: Final = {0x00: 8, 0x03: 4, 0x04: 8, 0x0B: 4, 0x0C: 8}  # form → bytes of a pointer
_MAX_CHAIN: Final = 4096


class CallSite(NamedTuple):
    """Calls in [start, start + length) of the function lead to `pad` (0: nowhere), by these filters in order.  A filter
    is 0 (a cleanup), (n,) "catch type n", or (-1, n, …) "anything but the types n, …" (an exception specification);
    numbers index `Lsda.types`."""

    start: int
    length: int
    pad: int
    filters: tuple[int | tuple[int, ...], ...]


class Lsda(NamedTuple):
    """One LSDA.  Offsets are of the bytes it was read from: [start, end) is the whole, `types` the fields of its types
    in the order of their first use, `table` the range of all type fields, `width` the size of one (0: there are none),
    `encoding_at` where the byte is that says how they are encoded, which is `encoding`."""

    start: int
    end: int
    call_sites: tuple[CallSite, ...]
    types: tuple[int, ...]
    encoding_at: int
    encoding: int
    table: tuple[int, int]
    width: int


def read_lsda(data: bytes, start: int) -> Lsda:
    """The LSDA at `start` of a section's bytes.

    Raises:
        FormatError: damaged, or in a form that no C or C++ compiler of today uses (a landing pad base of its own,
            pointers of odd size).
    """
    cursor = CfiReader(data, start, 0)
    if cursor.u8() != DW_EH_PE_OMIT:
        raise FormatError("an LSDA with a landing pad base of its own")
    at = cursor.at
    encoding = cursor.u8()
    base = width = 0
    if encoding != DW_EH_PE_OMIT:
        width = _SIZES.get(encoding & 0x0F, 0)
        if not width:
            raise FormatError(f"an LSDA with types encoded as {encoding:#x}")
        distance = cursor.uleb()
        base = cursor.at + distance
    site_encoding = cursor.u8()
    length = cursor.uleb()
    actions = cursor.at + length
    if actions > len(data) or base > len(data):
        raise FormatError("an LSDA is cut off")
    walk = _Walk(data, actions, base, width)
    sites = []
    while cursor.at < actions:
        begin, size, pad = (_number(cursor, site_encoding) for _ in range(3))
        sites.append(CallSite(begin, size, pad, walk.chain(cursor.uleb())))
    if cursor.at != actions:
        raise FormatError("the call sites of an LSDA do not end where they should")
    end = max(walk.end, base)
    table = (walk.last_action, base) if base else (end, end)
    return Lsda(start, end, tuple(sites), tuple(walk.types), at, encoding, table, width)


def _number(cursor: CfiReader, encoding: int) -> int:
    """A field of a call site: plain numbers, never relocated."""
    if encoding & 0xF0:
        raise FormatError(f"an LSDA with call sites encoded as {encoding:#x}")
    return cursor.pointer(encoding)


class _Walk:
    """Follows actions, and numbers the types by their first use."""

    def __init__(self, data: bytes, actions: int, base: int, width: int) -> None:
        self._data = data
        self._actions = actions
        self._base = base
        self._width = width
        self._known: dict[int, int] = {}
        self.types: list[int] = []
        self.last_action = actions
        self.end = actions

    def chain(self, action: int) -> tuple[int | tuple[int, ...], ...]:
        """The filters of a call site whose first action is `action` (0: none but a cleanup, if there is a pad)."""
        found: list[int | tuple[int, ...]] = []
        at = self._actions + action - 1
        while action:
            cursor = CfiReader(self._data, at, 0)
            filter_ = cursor.sleb()
            here = cursor.at
            distance = cursor.sleb()
            self.last_action = max(self.last_action, cursor.at)
            self.end = max(self.end, cursor.at)
            found.append(self._meaning(filter_))
            if not distance:
                break
            at = here + distance
            if len(found) > _MAX_CHAIN or at < self._actions:
                raise FormatError("the actions of an LSDA do not end")
        return tuple(found)

    def _meaning(self, filter_: int) -> int | tuple[int, ...]:
        if filter_ == 0:
            return 0
        if not self._base:
            raise FormatError("an LSDA with filters and without types")
        if filter_ > 0:
            return (self._type(filter_),)
        cursor = CfiReader(self._data, self._base - filter_ - 1, 0)
        found = [-1]
        while index := cursor.uleb():
            found.append(self._type(index))
        self.end = max(self.end, cursor.at)
        return tuple(found)

    def _type(self, index: int) -> int:
        at = self._base - index * self._width
        if at < self._actions:
            raise FormatError("an LSDA with more types than room for them")
        if at not in self._known:
            self._known[at] = len(self.types)
            self.types.append(at)
        return self._known[at]
