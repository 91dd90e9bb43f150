"""Exception handlers of functions that are not carried: their language-specific data (LSDA), compared.

Theory of operation.  A `catch` that catches another type leaves the code as it was; only the type table of the
function's LSDA in `.gcc_except_table` differs.  The FDE of a function leads to its LSDA.  Two LSDAs are the same when
their bytes are, up to where the next one begins, and their fields (the types), pointers followed, lead to the same; so
are two functions without any.

Source: LSB core, "Exception Frames"; the layout of LSDAs is not looked into.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator

from katana_cc.diff.program import Place
from katana_cc.diff.view import Kind, ObjectView
from katana_cc.dwarf.frames import Fde, records
from katana_cc.errors import FormatError
from katana_cc.proof.image import Image
from katana_cc.proof.judge import Judge
from katana_cc.proof.model import Field

_Start = tuple[int, int]  # section, offset


class Handlers:
    """The LSDAs of both outputs."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._known: dict[tuple[bool, int], dict[int, list[_Start]]] = {}

    def agree(self, place: Place, old: Place) -> bool:
        """Whether two functions have the same handlers and cleanups."""
        mine, theirs = self._starts(self.judge.new, place), self._starts(self.judge.old, old)
        if len(mine) != len(theirs):
            return False
        return all(self._same(place, m, old, t) for m, t in zip(mine, theirs, strict=True))

    def _same(self, place: Place, mine: _Start, old: Place, theirs: _Start) -> bool:
        now, after = self._piece(self.judge.new, place.unit, mine)
        was, before = self._piece(self.judge.old, old.unit, theirs)
        if [(f.offset, f.type) for f in after] != [(f.offset, f.type) for f in before]:
            return False
        masked = self.judge.new.known.masked
        if masked(now, after, relaxed=False) != masked(was, before, relaxed=False):
            return False
        return all(self.judge.agree(a, b) for a, b in zip(after, before, strict=True))

    def _starts(self, image: Image, place: Place) -> list[_Start]:
        return self._of_unit(image, place.unit).get(place.section, [])

    def _of_unit(self, image: Image, unit: int) -> dict[int, list[_Start]]:
        """Code section → where the LSDAs of its functions begin, in the order of the functions."""
        key = (image is self.judge.new, unit)
        if key not in self._known:
            self._known[key] = self._read(image, unit)
        return self._known[key]

    @staticmethod
    def _read(image: Image, unit: int) -> dict[int, list[_Start]]:
        view = image.view(Place(unit, 0))
        tables = {number for number, kind in view.kinds.items() if kind is Kind.EXCEPTIONS}
        if not tables:
            return {}
        try:
            found = sorted(_lsdas(view, tables))
        except FormatError:
            # Unreadable frames: each function has all tables as its own, so that any change counts.
            code = (n for n, kind in view.kinds.items() if kind in (Kind.FUNCTION, Kind.CODE))
            return {number: [(table, 0) for table in sorted(tables)] for number in code}
        several: dict[int, list[_Start]] = {}
        for section, _, start in found:
            several.setdefault(section, []).append(start)
        return several

    def _piece(self, image: Image, unit: int, start: _Start) -> tuple[bytes, list[Field]]:
        """The bytes of an LSDA, up to the next one of its section, and its fields."""
        section, at = start
        place = Place(unit, section)
        several = self._of_unit(image, unit).values()
        starts = sorted({offset for one in several for table, offset in one if table == section})
        following = bisect_right(starts, at)
        end = starts[following] if following < len(starts) else image.size(place)
        fields = [
            _followed(image, f)._replace(offset=f.offset - at) for f in image.fields(place) if at <= f.offset < end
        ]
        return image.data(place)[at:end], fields


def _followed(image: Image, field: Field) -> Field:
    """What a type is, where the table goes through a pointer of the compiler's own."""
    target = field.target
    if not isinstance(target, Place) or image.kind(target) is not Kind.INDIRECT:
        return field
    return next((f for f in image.fields(target) if f.offset == field.distance), field)


def _lsdas(view: ObjectView, tables: Collection[int]) -> Iterator[tuple[int, int, _Start]]:
    """(code section, offset in it, where its LSDA begins) of each function that has one, as its FDE says."""
    for section in view.elf.sections:
        if section.name != ".eh_frame" or not section.size:
            continue
        fields = {r.offset: r for r in view.elf.relocations(section.number)}
        for record in records(view.data(section.number)):
            if not isinstance(record, Fde) or not {record.pc_offset, record.lsda_offset} <= fields.keys():
                continue
            code, lsda = fields[record.pc_offset], fields[record.lsda_offset]
            function, table = view.elf.symbols[code.symbol], view.elf.symbols[lsda.symbol]
            if table.section in tables:
                start = (table.section, table.value + lsda.addend)
                yield function.section, function.value + code.addend, start
