"""What lies where: from the addresses of the build that a patch leads to, to those of the build it starts from.

Theory of operation.  A patch v2..v3 names what exists in its target by the addresses of v2.  In a process that runs v1
with a patch v1..v2 these things lie where v1 has them, or where that patch put them; v1..v2 alone knows which is which,
so it carries a map:

    stretches   [new, new + size) of the new output is [old, old + size) of the old one.  Neighbours that moved by the
                same distance are one stretch: in an output of which one function grew there are few.
    thread      the same of offsets in the segment of thread-local variables
    carried     what lies at `new` in the new output is a section of the patch; `old` is where the old build has a thing
                of that name (0: nowhere)
    named       symbols that linkers make: they lead to borders, of which addresses alone do not tell whose they are
    altered     what the patch leaves as it is although its bytes differ (line numbers, the date of the build)
    shapes      the replaced functions as they are in any build that has the same code: with blanks where a linker
                writes, since what they refer to lies elsewhere there
    fixed       data edits that hold addresses of the old output for which there is no relocation

What the map does not know is answered by None, never by what lies nearby.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from katana_cc.errors import FormatError

DIGEST_SIZE: Final = 32
_T = TypeVar("_T")
Blanks = tuple[tuple[int, int], ...]  # (offset, size), ascending and apart


class Stretch(NamedTuple):
    """[new, new + size) of the new output is [old, old + size) of the old one."""

    new: int
    size: int
    old: int


class Lying(NamedTuple):
    """A carried section that is at `new` in the new output; `old`: a thing of that name in the old one, 0: none."""

    section: int
    new: int
    old: int


class Named(NamedTuple):
    """A symbol that the linker made, in the new output and in the old one (0: not there)."""

    name: str
    new: int
    old: int


class Shape(NamedTuple):
    """Code without what a linker writes into it: the SHA-256 of its bytes, zeros in the blanks."""

    blanks: Blanks
    digest: bytes


class Altered(NamedTuple):
    """What is at `new` in the new output has other bytes in the old one, `shape` tells which, and stays so."""

    new: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class AddressMap:
    """The map; stretches ascend by `new` and do not overlap.  `shapes[n]` are those of `PatchObject.replacements[n]`:
    of the function, then of its parts; `fixed` indexes `PatchObject.data_edits`."""

    stretches: tuple[Stretch, ...] = ()
    thread: tuple[Stretch, ...] = ()
    carried: tuple[Lying, ...] = ()
    named: tuple[Named, ...] = ()
    altered: tuple[Altered, ...] = ()
    shapes: tuple[tuple[Shape, ...], ...] = ()
    fixed: tuple[int, ...] = ()


NO_ADDRESSES: Final = AddressMap()


def shape_of(code: bytes, blanks: Iterable[tuple[int, int]]) -> Shape:
    """The shape of code with such blanks, which may overlap or reach beyond its end."""
    known = united(blanks, len(code))
    return Shape(known, hashlib.sha256(blanked(code, known)).digest())


def blanked(code: bytes, blanks: Iterable[tuple[int, int]]) -> bytes:
    """`code` with zeros in the blanks."""
    result = bytearray(code)
    for at, size in blanks:
        result[at : at + size] = bytes(size)
    return bytes(result)


def united(ranges: Iterable[tuple[int, int]], end: int) -> Blanks:
    """(offset, size) of the same bytes, ascending and apart, cut off at 0 and `end`."""
    result: list[tuple[int, int]] = []
    for at, size in sorted(ranges):
        start, stop = max(at, 0), min(at + size, end)
        if result and start <= sum(result[-1]):
            start, stop = result[-1][0], max(stop, sum(result.pop()))
        if start < stop:
            result.append((start, stop - start))
    return tuple(result)


# Stretches


def gathered(stretches: Iterable[Stretch], barriers: Iterable[int], gap: int) -> tuple[Stretch, ...]:
    """Ascending stretches; neighbours that moved alike are one, padding between them with it.

    Args:
        stretches: in any order; of those that overlap none is kept where they disagree.
        barriers: addresses of the new output at which something lies that no stretch tells of: none goes across.
        gap: the largest padding, in bytes.
    """
    result: list[Stretch] = []
    stops = sorted(set(barriers))
    spoilt = 0  # below this address two disagree
    for s in sorted(set(stretches)):
        end = s.new + s.size
        if not s.size:
            continue
        if s.new < spoilt:
            spoilt = max(spoilt, end)
            continue
        if not result:
            result.append(s)
            continue
        last = result[-1]
        last_end = last.new + last.size
        alike = s.new - s.old == last.new - last.old
        if s.new < last_end and not alike:
            spoilt = max(end, last_end)
            result[-1:] = [last._replace(size=s.new - last.new)] if s.new > last.new else []
        elif alike and s.new - last_end <= gap and not _between(stops, last_end, s.new):
            result[-1] = last._replace(size=max(end, last_end) - last.new)
        else:
            result.append(s)
    return tuple(result)


def _between(ascending: Sequence[int], start: int, end: int) -> bool:
    """Whether one of these is in [start, end)."""
    n = bisect_left(ascending, start)
    return n < len(ascending) and ascending[n] < end


class Lookup:
    """Finds what lies at an address."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self._stretches = stretches
        self._starts = [s.new for s in stretches]

    def stretch(self, address: int) -> Stretch | None:
        """The stretch that an address of the new output is in."""
        n = bisect_right(self._starts, address) - 1
        found = self._stretches[n] if n >= 0 else None
        return found if found is not None and address < found.new + found.size else None

    def old(self, address: int, size: int = 1) -> int | None:
        """Where the old output has what [address, address + size) of the new one is; None when that is not known of
        all of it."""
        found = self.stretch(address)
        if found is None or address + size > found.new + found.size:
            return None
        return address - found.new + found.old

    def pieces(self, start: int, size: int) -> Iterator[Stretch]:
        """What is known of [start, start + size), as stretches within it."""
        n = max(bisect_right(self._starts, start) - 1, 0)
        while n < len(self._stretches) and self._stretches[n].new < start + size:
            s = self._stretches[n]
            low, high = max(s.new, start), min(s.new + s.size, start + size)
            if low < high:
                yield Stretch(low, high - low, s.old + low - s.new)
            n += 1


def inverted(stretches: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """From old addresses to new ones; of old ones that several stretches claim, nothing is known."""
    return gathered((Stretch(s.old, s.size, s.new) for s in stretches), (), 0)


def joined(first: Sequence[Stretch], second: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """From v3 to v1, where `first` leads from v2 to v1 and `second` from v3 to v2."""
    known = Lookup(first)
    pieces = (
        Stretch(s.new + piece.new - s.old, piece.size, piece.old)
        for s in second
        for piece in known.pieces(s.old, s.size)
    )
    return gathered(pieces, (), 0)


# In a file: numbers as LEB128 (DWARF 5, 7.6), stretches by what is new to the one before.


def encode(m: AddressMap) -> bytes:
    """The bytes of a map; empty for one that knows nothing."""
    if m == NO_ADDRESSES:
        return b""
    out = bytearray()
    for stretches in (m.stretches, m.thread):
        _unsigned(out, len(stretches))
        end = shift = 0
        for s in stretches:
            _unsigned(out, s.new - end)
            _unsigned(out, s.size)
            _signed(out, s.old - s.new - shift)
            end, shift = s.new + s.size, s.old - s.new
    _unsigned(out, len(m.carried))
    for x in m.carried:
        for number in x:
            _unsigned(out, number)
    _unsigned(out, len(m.named))
    for y in m.named:
        name = y.name.encode("utf-8", "surrogateescape")
        _unsigned(out, len(name))
        out += name
        _unsigned(out, y.new)
        _unsigned(out, y.old)
    _unsigned(out, len(m.altered))
    for a in m.altered:
        _unsigned(out, a.new)
        _shape(out, a.shape)
    _unsigned(out, len(m.shapes))
    for shapes in m.shapes:
        _unsigned(out, len(shapes))
        for shape in shapes:
            _shape(out, shape)
    _unsigned(out, len(m.fixed))
    for number in m.fixed:
        _unsigned(out, number)
    return bytes(out)


def _shape(out: bytearray, shape: Shape) -> None:
    out += shape.digest
    _unsigned(out, len(shape.blanks))
    end = 0
    for at, size in shape.blanks:
        _unsigned(out, at - end)
        _unsigned(out, size)
        end = at + size


def _unsigned(out: bytearray, number: int) -> None:
    if number < 0:
        raise FormatError(f"a number below 0 in a map of addresses: {number}")
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _signed(out: bytearray, number: int) -> None:
    _unsigned(out, number << 1 if number >= 0 else -number << 1 | 1)


def decode(data: bytes) -> AddressMap:
    """The map in `data`.

    Raises:
        FormatError: cut off, or with something behind it.
    """
    if not data:
        return NO_ADDRESSES
    reader = _Reader(data)
    stretches, thread = reader.stretches(), reader.stretches()
    carried = reader.several(lambda: Lying(reader.unsigned(), reader.unsigned(), reader.unsigned()))
    named = reader.several(lambda: Named(reader.text(), reader.unsigned(), reader.unsigned()))
    altered = reader.several(lambda: Altered(reader.unsigned(), reader.shape()))
    shapes = reader.several(lambda: reader.several(reader.shape))
    fixed = reader.several(reader.unsigned)
    if reader.at != len(data):
        raise FormatError("the map of addresses has something behind it")
    return AddressMap(stretches, thread, carried, named, altered, shapes, fixed)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def unsigned(self) -> int:
        result = shift = 0
        while shift < 70:
            (byte,) = self.raw(1)
            result |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return result
        raise FormatError("a number in the map of addresses is too large")

    def signed(self) -> int:
        number = self.unsigned()
        return -(number >> 1) if number & 1 else number >> 1

    def raw(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise FormatError("the map of addresses is cut off")
        self.at += size
        return self.data[self.at - size : self.at]

    def text(self) -> str:
        return self.raw(self.unsigned()).decode("utf-8", "surrogateescape")

    def several(self, one: Callable[[], _T]) -> tuple[_T, ...]:
        count = self.unsigned()
        if count > len(self.data):
            raise FormatError("the map of addresses is cut off")
        return tuple(one() for _ in range(count))

    def shape(self) -> Shape:
        digest = self.raw(DIGEST_SIZE)
        end = 0

        def blank() -> tuple[int, int]:
            nonlocal end
            at, size = end + self.unsigned(), self.unsigned()
            end = at + size
            return at, size

        return Shape(self.several(blank), digest)

    def stretches(self) -> tuple[Stretch, ...]:
        end = shift = 0

        def one() -> Stretch:
            nonlocal end, shift
            new, size = end + self.unsigned(), self.unsigned()
            shift += self.signed()
            end = new + size
            return Stretch(new, size, new + shift)

        return self.several(one)
