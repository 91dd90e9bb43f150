"""The functions an object has code for: where each was declared, and where its code lies.

Source: DWARF 5, section 3.3 (subprograms, abstract and concrete instances), 2.17 (ranges).
"""

from __future__ import annotations

from typing import NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.leb128 import uleb
from katana_cc.dwarf.lines import line_tables
from katana_cc.dwarf.naming import naming
from katana_cc.dwarf.sections import Place
from katana_cc.dwarf.texts import texts
from katana_cc.dwarf.units import Die, Unit
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError


class CodeRange(NamedTuple):
    """[offset, offset + size) of a section."""

    section: int
    offset: int
    size: int


class Function(NamedTuple):
    """One concrete function.

    `name` is qualified (`ns::Class::method`); `linkage_name` is what its symbol is called where DWARF says so (C++, or
    an asm label), else "".  `code` holds its entry; `parts` are the rest, gcc's `.cold` half.  `file` and `line` are
    where it was declared: for a C++ method its out-of-class definition.  `die` names its entry for `prototype`.
    """

    name: str
    linkage_name: str
    code: CodeRange
    parts: tuple[CodeRange, ...]
    file: str
    line: int
    external: bool
    die: int


def functions(info: DebugInfo) -> tuple[Function, ...]:
    """Every function the object has code for, in the order of the debug information.  Reads no types.

    Raises:
        FormatError: damaged debug information.
    """
    found = info.memo.get("functions")
    if not isinstance(found, tuple):
        found = info.memo["functions"] = _functions(info)
    return found


def _functions(info: DebugInfo) -> tuple[Function, ...]:
    names, lines = naming(info), line_tables(info)
    entries = {s.name: (s.section, s.value) for s in info.elf.symbols if s.type == c.STT_FUNC}
    result = []
    for entry in info.outline:
        if entry.tag != d.DW_TAG_subprogram:
            continue
        die = info.die(entry.offset, entry.unit)
        ranges = code_ranges(info, die)
        if not ranges:
            continue  # a declaration, or an abstract instance
        chain = names.chain(die)
        linkage = next((t for link in chain if (t := _linkage_name(link))), "")
        name = names.qualified(entry) or linkage  # clang's thunks and start-up functions have no other
        at = entries.get(linkage or name)
        main = next((r for r in ranges if (r.section, r.offset) == at), ranges[0])
        holder, line = names.declared_at(entry)
        result.append(
            Function(
                name=name,
                linkage_name=linkage,
                code=main,
                parts=tuple(r for r in ranges if r is not main),
                file=lines.file(holder.unit, holder.integer(d.DW_AT_decl_file)),
                line=line,
                external=any(d.DW_AT_external in link.attributes for link in chain),
                die=die.offset,
            )
        )
    return tuple(result)


def prototype(info: DebugInfo, function: Function) -> str:
    """A function's type as canonical text: `int (struct request *, unsigned long)`."""
    names, types = naming(info), texts(info)
    chain = names.chain(info.die(function.die))
    result = next((types.text(names.target(x)) for x in chain if d.DW_AT_type in x.attributes), "void")
    # The parameters of a concrete instance may be in part optimised away: the first to declare them has them all.
    return f"{result} ({types.parameters(chain[-1])})"


def _linkage_name(die: Die) -> str:
    return die.text(d.DW_AT_linkage_name) or die.text(d.DW_AT_MIPS_linkage_name)


def code_ranges(info: DebugInfo, die: Die) -> tuple[CodeRange, ...]:
    """The code of a DIE, from DW_AT_low_pc and DW_AT_high_pc or from DW_AT_ranges; empty when it has none.

    Raises:
        FormatError: a range list is damaged.
    """
    low = info.place(die.attributes.get(d.DW_AT_low_pc))
    high = die.attributes.get(d.DW_AT_high_pc)
    if low is not None and high is not None:
        end = info.place(high)
        size = end.offset - low.offset if end is not None else int(high)
        return (CodeRange(low.section, low.offset, size),)
    at = die.integer(d.DW_AT_ranges)
    if at is None:
        return ()
    try:
        found = _range_list(info, die.unit, at) if die.unit.version >= 5 else _ranges_4(info, die.unit, at)
    except IndexError:
        raise FormatError("damaged debug information: a range list is cut off", where=info.where) from None
    return tuple(r for r in found if r.size > 0)


def _range_list(info: DebugInfo, unit: Unit, position: int) -> list[CodeRange]:
    """A list of `.debug_rnglists` (DWARF 5, 2.17.3 and 7.25)."""
    data, places = info.sections.rnglists
    base = info.place(unit.root.attributes.get(d.DW_AT_low_pc))
    result: list[CodeRange] = []

    def indexed(index: int) -> Place | None:
        return info.place(info.address_field(unit, index))

    while True:
        kind = data[position]
        position += 1
        start: Place | None = None
        size = 0
        if kind == d.DW_RLE_end_of_list:
            return result
        if kind == d.DW_RLE_base_address:
            base = places.get(position)
            position += 8
            continue
        if kind == d.DW_RLE_base_addressx:
            index, position = uleb(data, position)
            base = indexed(index)
            continue
        if kind == d.DW_RLE_offset_pair:
            low, position = uleb(data, position)
            high, position = uleb(data, position)
            start, size = _after(base, low), high - low
        elif kind == d.DW_RLE_start_length:
            start = places.get(position)
            size, position = uleb(data, position + 8)
        elif kind == d.DW_RLE_start_end:
            start, size = _between(places.get(position), places.get(position + 8))
            position += 16
        elif kind == d.DW_RLE_startx_length:
            index, position = uleb(data, position)
            start = indexed(index)
            size, position = uleb(data, position)
        elif kind == d.DW_RLE_startx_endx:
            first, position = uleb(data, position)
            last, position = uleb(data, position)
            start, size = _between(indexed(first), indexed(last))
        else:
            raise FormatError(f"damaged debug information: range list entry of kind {kind}", where=info.where)
        if start is not None:
            result.append(CodeRange(start.section, start.offset, size))


def _ranges_4(info: DebugInfo, unit: Unit, position: int) -> list[CodeRange]:
    """A list of `.debug_ranges` (DWARF 4, 2.17.3)."""
    data, places = info.sections.ranges
    base = info.place(unit.root.attributes.get(d.DW_AT_low_pc))
    result: list[CodeRange] = []
    while True:
        if position + 16 > len(data):
            raise IndexError
        low, high = (int.from_bytes(data[position + n : position + n + 8], "little") for n in (0, 8))
        first, last = places.get(position), places.get(position + 8)
        position += 16
        if first is None and last is None and not low and not high:
            return result
        if low == 0xFFFFFFFFFFFFFFFF:
            base = last
            continue
        start, size = (_after(base, low), high - low) if first is None else _between(first, last)
        if start is not None:
            result.append(CodeRange(start.section, start.offset, size))


def _after(base: Place | None, offset: int) -> Place | None:
    return None if base is None else base._replace(offset=base.offset + offset)


def _between(start: Place | None, end: Place | None) -> tuple[Place | None, int]:
    if start is None or end is None or start.section != end.section:
        return None, 0
    return start, end.offset - start.offset
