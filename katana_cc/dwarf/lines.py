"""Line tables: which source line each instruction comes from, and the files a unit names.

A relocatable object has one sequence of rows for each code section, begun by DW_LNE_set_address with a relocation: that
names the section.  The relocations are thus an index of the sequences, and only those asked for are decoded: of a file
with 3,000 functions, the one that changed.  A sequence begins after the end of the one before it.

`line_pairs` serves one question of the diff: two builds of a function differ in immediates only; are those `__LINE__`?
An immediate is a line number that shifted when (old value, new value) is a pair of lines that the two line tables give
for one and the same offset.

Source: DWARF 5, section 6.2; version 4 likewise.
"""

from __future__ import annotations

import posixpath
import struct
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Final, NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.leb128 import sleb, uleb
from katana_cc.dwarf.units import Unit, initial_length
from katana_cc.errors import FormatError


class Row(NamedTuple):
    """From `offset` (bytes from the start of the section) on, code comes from `line` of `file`; line 0: from none.

    `statement`: a recommended place for a breakpoint (is_stmt).  Of several rows at one offset, debuggers show the last
    of those.
    """

    offset: int
    file: str
    line: int
    statement: bool = True


class LineHeader(NamedTuple):
    """One line program's header: file names by their number in the program (index 0 unused before version 5)."""

    files: tuple[str, ...]
    start: int
    end: int
    minimum: int
    line_base: int
    line_range: int
    opcode_base: int
    operand_counts: bytes
    address_size: int
    default_statement: bool = True


class LineTables:
    """The line programs of one object; each is read when first asked for."""

    def __init__(self, info: DebugInfo) -> None:
        self._info = info
        self._headers: dict[int, LineHeader] = {}
        self._rows: dict[int, tuple[Row, ...]] = {}

    def header(self, unit: Unit) -> LineHeader | None:
        """The header of the line program a unit refers to; None when it has none.

        Raises:
            FormatError: damaged, or of an unknown version.
        """
        at = unit.root.integer(d.DW_AT_stmt_list)
        if at is None:
            return None
        found = self._headers.get(at)
        if found is None:
            try:
                found = _header(self._info, at, self._root(at))
            except (IndexError, struct.error, ValueError):
                raise _damaged(self._info, "a header is cut off") from None
            self._headers[at] = found
        return found

    def _root(self, at: int) -> str:
        """The compilation directory; type units, which share the line program, do not name it."""
        roots = (u.root for u in self._info.units if u.root.integer(d.DW_AT_stmt_list) == at)
        return next((name for root in roots if (name := root.text(d.DW_AT_comp_dir))), "")

    def file(self, unit: Unit, number: int | None) -> str:
        """The name of file `number` of a unit ("" for none): relative to the compilation directory where it is below it
        or was given so, else absolute."""
        header = self.header(unit)
        if header is None or number is None or not 0 <= number < len(header.files):
            return ""
        return header.files[number]

    def rows(self, section: int) -> tuple[Row, ...]:
        """The rows of one code section, by rising offset.

        Raises:
            FormatError: a line program is damaged.
        """
        found = self._rows.get(section)
        if found is None:
            collected: list[Row] = []
            for at in self._sequences.get(section, ()):
                collected.extend(self._sequence(at))
            found = self._rows[section] = tuple(sorted(collected, key=_by_offset))
        return found

    @cached_property
    def _sequences(self) -> dict[int, list[int]]:
        """Section → positions of the operands of the DW_LNE_set_address that begin its sequences."""
        data, places = self._info.sections.line
        result: dict[int, list[int]] = {}
        for at in places.positions():
            place = places.get(at)
            if place is not None and data[at - 3 : at] == _SET_ADDRESS:
                result.setdefault(place.section, []).append(at)
        return result

    @cached_property
    def _programs(self) -> tuple[LineHeader, ...]:
        """All programs, each once: type units share that of their compilation unit."""
        found = {h.start: h for u in self._info.units if (h := self.header(u)) is not None}
        return tuple(found.values())

    def _sequence(self, at: int) -> list[Row]:
        """The rows of the sequence whose address is set at `at`."""
        header = next((h for h in self._programs if h.start <= at < h.end), None)
        if header is None:
            return []  # a program that no unit refers to
        data, _places = self._info.sections.line
        before = data.rfind(_END_SEQUENCE, header.start, at - 3)
        start = before + len(_END_SEQUENCE) if before >= 0 else header.start
        try:
            found = _run(self._info, header, start, at)
            # Operands may look like the end of a sequence.  Then what follows makes no sense: take the long way.
            return found if found is not None else _run(self._info, header, header.start, at, whole=True) or []
        except (IndexError, struct.error):
            raise _damaged(self._info, "a program is cut off") from None


def line_tables(info: DebugInfo) -> LineTables:
    """The line tables of an object; one instance an object, so that all who ask share what was read."""
    found = info.memo.get("lines")
    if not isinstance(found, LineTables):
        found = info.memo["lines"] = LineTables(info)
    return found


def line_rows(info: DebugInfo, section: int, start: int = 0, size: int | None = None) -> tuple[Row, ...]:
    """The rows of [start, start + size) of a code section (all of it by default), the one in force at `start` included.

    Raises:
        FormatError: the line program is damaged.
    """
    rows = line_tables(info).rows(section)
    if not start and size is None:
        return rows
    end = start + size if size is not None else None
    # The rows in force at `start`: those of the last offset not after it.
    before = [r.offset for r in rows if r.offset <= start]
    first = before[-1] if before else start
    return tuple(r for r in rows if r.offset >= first and (end is None or r.offset < end))


def line_pairs(
    old: Sequence[Row], new: Sequence[Row], old_start: int = 0, new_start: int = 0
) -> frozenset[tuple[str, int, int]]:
    """(file, old line, new line) at equal offsets of two builds of one function with the same code layout.

    Args:
        old, new: rows of the function as `line_rows` gives them.
        old_start, new_start: where the function begins in its section.

    Where an offset has several rows (a statement that generated no code of its own), they are paired in order when both
    sides have as many, else each with each: `__LINE__` may belong to any of them.  Rows of different files make no
    pair.
    """
    left, right = _by_start(old, old_start), _by_start(new, new_start)
    left_offsets, right_offsets = sorted(left), sorted(right)
    pairs: set[tuple[str, int, int]] = set()
    for offset in sorted(set(left) | set(right)):
        a = _in_force(left, left_offsets, offset)
        b = _in_force(right, right_offsets, offset)
        candidates = zip(a, b, strict=True) if len(a) == len(b) else ((x, y) for x in a for y in b)
        pairs.update((x.file, x.line, y.line) for x, y in candidates if x.file == y.file and x.line and y.line)
    return frozenset(pairs)


def _by_start(rows: Iterable[Row], start: int) -> Mapping[int, list[Row]]:
    result: dict[int, list[Row]] = {}
    for row in rows:
        result.setdefault(max(0, row.offset - start), []).append(row)
    return result


def _in_force(rows: Mapping[int, list[Row]], offsets: Sequence[int], at: int) -> list[Row]:
    index = bisect_right(offsets, at)
    return rows[offsets[index - 1]] if index else []


def _by_offset(row: Row) -> int:
    return row.offset


def _damaged(info: DebugInfo, what: str) -> FormatError:
    return FormatError(f"damaged line table: {what}", where=info.where, remedy="rebuild the object")


# -- header ------------------------------------------------------------------------------------------------------------


def _header(info: DebugInfo, at: int, compilation_directory: str) -> LineHeader:
    data, _places = info.sections.line
    length, offset_size, position = initial_length(data, at)
    end = position + length
    if end > len(data):
        raise _damaged(info, "a program is longer than its section")
    (version,) = struct.unpack_from("<H", data, position)
    position += 2
    if not 2 <= version <= 5:
        raise _damaged(info, f"version {version} is not known")
    address_size = 8
    if version == 5:
        address_size = data[position]
        position += 2
    start = position + offset_size + int.from_bytes(data[position : position + offset_size], "little")
    position += offset_size
    minimum = data[position]
    position += 2 if version >= 4 else 1  # + maximum operations per instruction: 1 but on VLIW machines
    line_base, line_range, opcode_base = struct.unpack_from("<xbBB", data, position)
    default_statement = bool(data[position])
    position += 4
    counts = data[position : position + opcode_base - 1]
    position += opcode_base - 1
    if version == 5:
        directories, position = _entries(info, data, position, offset_size)
        files, position = _entries(info, data, position, offset_size)
        folders = [name for name, _ in directories]
    else:
        folders, position = [""], position
        while data[position]:
            name, position = _inline(data, position)
            folders.append(name)
        position += 1
        files = [("", 0)]
        while data[position]:
            name, position = _inline(data, position)
            folder, position = uleb(data, position)
            position = uleb(data, uleb(data, position)[1])[1]  # time, length
            files.append((name, folder))
    root = compilation_directory.rstrip("/") + "/" if compilation_directory else ""
    names = tuple(_path(name, folders[folder] if 0 <= folder < len(folders) else "", root) for name, folder in files)
    if not line_range:
        raise _damaged(info, "a line range of 0")
    sizes = (minimum, line_base, line_range, opcode_base, counts, address_size)
    return LineHeader(names, start, end, *sizes, default_statement)


def _entries(info: DebugInfo, data: bytes, position: int, offset_size: int) -> tuple[list[tuple[str, int]], int]:
    """A version 5 directory or file table: (name, directory number) each."""
    formats = []
    count = data[position]
    position += 1
    for _ in range(count):
        content, position = uleb(data, position)
        form, position = uleb(data, position)
        formats.append((content, form))
    total, position = uleb(data, position)
    if total > len(data):
        raise _damaged(info, "more files than bytes")
    result = []
    for _ in range(total):
        name, folder = "", 0
        for content, form in formats:
            text, number, position = _form(info, data, position, form, offset_size)
            if content == d.DW_LNCT_path:
                name = text
            elif content == d.DW_LNCT_directory_index:
                folder = number
        result.append((name, folder))
    return result, position


def _form(info: DebugInfo, data: bytes, position: int, form: int, offset_size: int) -> tuple[str, int, int]:
    """(text, number, position after) of one entry field."""
    if form == d.DW_FORM_string:
        text, position = _inline(data, position)
        return text, 0, position
    if form in (d.DW_FORM_line_strp, d.DW_FORM_strp):
        end = position + offset_size
        table = info.sections.line_strings if form == d.DW_FORM_line_strp else info.sections.strings
        at = int.from_bytes(data[position:end], "little")
        return _inline(table, at)[0], 0, end
    if form == d.DW_FORM_udata:
        number, position = uleb(data, position)
        return "", number, position
    if form == d.DW_FORM_block:
        size, position = uleb(data, position)
        return "", 0, position + size
    widths = {d.DW_FORM_data1: 1, d.DW_FORM_data2: 2, d.DW_FORM_data4: 4, d.DW_FORM_data8: 8, d.DW_FORM_data16: 16}
    width = widths.get(form)
    if width is None:
        raise _damaged(info, f"form {form:#x} in a file table")
    return "", int.from_bytes(data[position : position + width], "little"), position + width


def _inline(data: bytes, position: int) -> tuple[str, int]:
    end = data.index(b"\0", position)
    return data[position:end].decode("utf-8", "surrogateescape"), end + 1


def _path(name: str, folder: str, root: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, name)) if name else ""
    return path.removeprefix(root)


# -- program -----------------------------------------------------------------------------------------------------------

_END_SEQUENCE: Final = bytes([0, 1, d.DW_LNE_end_sequence])
_SET_ADDRESS: Final = bytes([0, 9, d.DW_LNE_set_address])


def _run(info: DebugInfo, header: LineHeader, position: int, at: int, whole: bool = False) -> list[Row] | None:
    """The rows of the sequence whose DW_LNE_set_address operand is at `at` (DWARF 5, 6.2.5), running the program from
    `position` to the end of that sequence.

    `whole`: the sequences before it are run too, their rows dropped.  Otherwise None when `position` is no beginning
    of the sequence: a row, or an end of sequence, before the address is set.
    """
    data, places = info.sections.line
    files, counts, end = header.files, header.operand_counts, header.end
    minimum, line_base, line_range, opcode_base = (
        header.minimum, header.line_base, header.line_range, header.opcode_base,
    )  # fmt: skip
    constant = (255 - opcode_base) // line_range * minimum
    address, line, label, statement = 0, 1, _name(files, 1), header.default_statement
    section = 0
    wanted = False
    current: list[Row] = []
    while position < end:
        opcode = data[position]
        position += 1
        if opcode >= opcode_base:
            opcode -= opcode_base
            address += opcode // line_range * minimum
            line += line_base + opcode % line_range
            current.append(Row(address, label, line, statement))
        elif opcode == d.DW_LNS_copy:
            current.append(Row(address, label, line, statement))
        elif opcode == d.DW_LNS_advance_pc:
            delta, position = uleb(data, position)
            address += delta * minimum
        elif opcode == d.DW_LNS_advance_line:
            delta, position = sleb(data, position)
            line += delta
        elif opcode == d.DW_LNS_set_file:
            file, position = uleb(data, position)
            label = _name(files, file)
        elif opcode == d.DW_LNS_negate_stmt:
            statement = not statement
        elif opcode == d.DW_LNS_const_add_pc:
            address += constant
        elif opcode == d.DW_LNS_fixed_advance_pc:
            address += data[position] | data[position + 1] << 8
            position += 2
        elif opcode == 0:
            size, position = uleb(data, position)
            extended = data[position]
            if extended == d.DW_LNE_end_sequence:
                if wanted:
                    return current
                if not whole:
                    return None
                current.clear()
                address, line, label, statement = 0, 1, _name(files, 1), header.default_statement
            elif extended == d.DW_LNE_set_address:
                place = places.get(position + 1)
                if position + 1 == at:
                    if current and not whole:
                        return None
                    wanted = True
                    current.clear()
                    section = place.section if place is not None else 0
                elif wanted and (place is None or place.section != section):
                    return current  # a sequence that goes on in another section: that part is found by its own address
                address = place.offset if place is not None else 0
            elif extended == d.DW_LNE_define_file:
                raise _damaged(info, "a file defined inside the program")
            position += size
        else:
            # Opcodes that set what is not kept here (column, ISA), and ones yet to be invented.
            for _ in range(counts[opcode - 1]):
                position = uleb(data, position)[1]
    return current if wanted else None


def _name(files: tuple[str, ...], number: int) -> str:
    return files[number] if number < len(files) else ""
