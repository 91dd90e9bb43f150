"""Location lists: where a variable is, by the place in code.

Source: DWARF 5, sections 2.6.2 and 7.29 (`.debug_loclists`); DWARF 4, section 2.6.2 (`.debug_loc`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.leb128 import uleb
from katana_cc.dwarf.operations import Source, expression_at
from katana_cc.dwarf.sections import Place
from katana_cc.dwarf.tree import Located, Locations
from katana_cc.dwarf.units import Unit
from katana_cc.errors import FormatError


def location_list(info: DebugInfo, unit: Unit, offset: int) -> Locations | None:
    """The list at `offset` of the unit's section of location lists, without what cannot be said elsewhere.

    Raises:
        FormatError: it is damaged.
    """
    try:
        entries = tuple(_list_5(info, unit, offset) if unit.version >= 5 else _list_4(info, unit, offset))
    except IndexError:
        raise FormatError("damaged debug information: a location list is cut off", where=info.where) from None
    return Locations(entries) if entries else None


def listed_at(info: DebugInfo, unit: Unit, index: int) -> int:
    """The offset of the list that a DW_FORM_loclistx of the unit means.

    Raises:
        FormatError: there is none.
    """
    at = unit.loclists_base + index * unit.offset_size
    raw = info.sections.loclists[0][at : at + unit.offset_size]
    if len(raw) < unit.offset_size:
        raise FormatError("damaged debug information: a location list that is not there", where=info.where)
    return unit.loclists_base + int.from_bytes(raw, "little")


def _indexed(info: DebugInfo, unit: Unit, index: int) -> Place | None:
    return info.place(info.address_field(unit, index))


def source_of(info: DebugInfo, unit: Unit, which: str = "info") -> Source:
    """The place of expressions: "info", or the section of lists."""
    indexed = partial(_indexed, info, unit)
    if which == "info":
        return Source(info.sections.space, info.sections.addresses, unit.start, indexed)
    data, places = info.sections.loclists if unit.version >= 5 else info.sections.loc
    return Source(data, places, unit.start, indexed)


def _list_5(info: DebugInfo, unit: Unit, position: int) -> Iterator[Located]:
    source = source_of(info, unit, "lists")
    data, places = source.data, source.addresses
    base = info.place(unit.root.attributes.get(d.DW_AT_low_pc))
    while True:
        kind = data[position]
        position += 1
        start: Place | None = None
        size = 0
        if kind == d.DW_LLE_end_of_list:
            return
        if kind == d.DW_LLE_base_address:
            base = places.get(position)
            position += 8
            continue
        if kind == d.DW_LLE_base_addressx:
            index, position = uleb(data, position)
            base = source.indexed(index)
            continue
        if kind == d.DW_LLE_GNU_view_pair:
            _, position = uleb(data, position)
            _, position = uleb(data, position)
            continue
        if kind == d.DW_LLE_offset_pair:
            low, position = uleb(data, position)
            high, position = uleb(data, position)
            start, size = None if base is None else base._replace(offset=base.offset + low), high - low
        elif kind == d.DW_LLE_start_length:
            start = places.get(position)
            size, position = uleb(data, position + 8)
        elif kind == d.DW_LLE_start_end:
            start, end = places.get(position), places.get(position + 8)
            size = end.offset - start.offset if start is not None and end is not None else 0
            position += 16
        elif kind == d.DW_LLE_startx_length:
            index, position = uleb(data, position)
            start = source.indexed(index)
            size, position = uleb(data, position)
        elif kind == d.DW_LLE_startx_endx:
            first, position = uleb(data, position)
            last, position = uleb(data, position)
            start, end = source.indexed(first), source.indexed(last)
            size = end.offset - start.offset if start is not None and end is not None else 0
        elif kind != d.DW_LLE_default_location:
            raise FormatError(f"damaged debug information: location list entry of kind {kind}", where=info.where)
        length, position = uleb(data, position)
        expression = expression_at(source, position, length) if length else None
        position += length
        if expression is not None and start is not None and size > 0:
            yield Located(start, size, expression)


def _list_4(info: DebugInfo, unit: Unit, position: int) -> Iterator[Located]:
    source = source_of(info, unit, "lists")
    data, places = source.data, source.addresses
    base = info.place(unit.root.attributes.get(d.DW_AT_low_pc))
    while True:
        if position + 16 > len(data):
            raise IndexError
        low, high = (int.from_bytes(data[position + n : position + n + 8], "little") for n in (0, 8))
        first, last = places.get(position), places.get(position + 8)
        position += 16
        if first is None and last is None and not low and not high:
            return
        if low == 0xFFFFFFFFFFFFFFFF:
            base = last
            continue
        length = int.from_bytes(data[position : position + 2], "little")
        expression = expression_at(source, position + 2, length) if length else None
        position += 2 + length
        if first is not None and last is not None:
            start, size = first, last.offset - first.offset
        elif base is not None:
            start, size = base._replace(offset=base.offset + low), high - low
        else:
            continue
        if expression is not None and size > 0:
            yield Located(start, size, expression)
