"""Abbreviation tables, compiled into plans for skipping DIEs quickly and for reading them.

Most DIEs of a unit are only stepped over.  Each abbreviation therefore knows its size when all its forms have one
(`size`), else a short list of steps in which neighbouring fixed forms are merged: a member with an inline name is
(STRING, 7).  Tables are cached by content: the old and the new version of an object nearly always share theirs.

Source: DWARF 5, sections 7.5.3, 7.5.5 and 7.5.6.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.leb128 import sleb, uleb
from katana_cc.errors import FormatError

# Steps that are no fixed number of bytes.
STRING: Final = -1
ULEB: Final = -2
BLOCK: Final = -3  # ULEB length, then that many bytes
BLOCK1: Final = -4
BLOCK2: Final = -5
BLOCK4: Final = -6
INDIRECT: Final = -7

_FIXED: Final = {
    d.DW_FORM_data1: 1, d.DW_FORM_data2: 2, d.DW_FORM_data4: 4, d.DW_FORM_data8: 8, d.DW_FORM_data16: 16,
    d.DW_FORM_flag: 1, d.DW_FORM_flag_present: 0, d.DW_FORM_implicit_const: 0,
    d.DW_FORM_ref1: 1, d.DW_FORM_ref2: 2, d.DW_FORM_ref4: 4, d.DW_FORM_ref8: 8, d.DW_FORM_ref_sig8: 8,
    d.DW_FORM_ref_sup4: 4, d.DW_FORM_ref_sup8: 8,
    d.DW_FORM_strx1: 1, d.DW_FORM_strx2: 2, d.DW_FORM_strx3: 3, d.DW_FORM_strx4: 4,
    d.DW_FORM_addrx1: 1, d.DW_FORM_addrx2: 2, d.DW_FORM_addrx3: 3, d.DW_FORM_addrx4: 4,
}  # fmt: skip
_OFFSET_SIZED: Final = frozenset(
    {d.DW_FORM_strp, d.DW_FORM_line_strp, d.DW_FORM_sec_offset, d.DW_FORM_ref_addr, d.DW_FORM_strp_sup}
)
_VARIABLE: Final = {
    d.DW_FORM_string: STRING,
    d.DW_FORM_sdata: ULEB, d.DW_FORM_udata: ULEB, d.DW_FORM_ref_udata: ULEB, d.DW_FORM_strx: ULEB,
    d.DW_FORM_addrx: ULEB, d.DW_FORM_loclistx: ULEB, d.DW_FORM_rnglistx: ULEB,
    d.DW_FORM_exprloc: BLOCK, d.DW_FORM_block: BLOCK, d.DW_FORM_block1: BLOCK1, d.DW_FORM_block2: BLOCK2,
    d.DW_FORM_block4: BLOCK4, d.DW_FORM_indirect: INDIRECT,
}  # fmt: skip


class Abbreviation(NamedTuple):
    """One abbreviation: how a kind of DIE is laid out.

    `attributes` are (attribute, form, value of DW_FORM_implicit_const).  `size` is that of all attribute values, or -1:
    then `steps` says how to pass them.  `sibling` is true when the last attribute is a DW_AT_sibling of form ref4, so
    that it can be read from the end backwards.
    """

    code: int
    tag: int
    children: bool
    attributes: tuple[tuple[int, int, int], ...]
    size: int
    steps: tuple[int, ...]
    sibling: bool


Table = dict[int, Abbreviation]


def step_of(form: int, address_size: int, offset_size: int) -> int:
    """How to pass a value of `form`: its size, or one of the negative step kinds.

    Raises:
        FormatError: the form is not known, so that nothing after it can be read.
    """
    if form in _FIXED:
        return _FIXED[form]
    if form in _OFFSET_SIZED:
        return offset_size
    if form == d.DW_FORM_addr:
        return address_size
    if form in _VARIABLE:
        return _VARIABLE[form]
    raise FormatError(f"DWARF form {form:#x} is not known")


@lru_cache(maxsize=64)
def abbreviations(section: bytes, offset: int, address_size: int, offset_size: int) -> Table:
    """The abbreviation table at `offset` of `.debug_abbrev`, by code.  Shared: callers must not change it.

    Raises:
        FormatError: it runs out of the section, or holds an unknown form.
    """
    table: Table = {}
    position = offset
    try:
        while True:
            code, position = uleb(section, position)
            if not code:
                return table
            tag, position = uleb(section, position)
            children = section[position] != 0
            position += 1
            attributes = []
            steps: list[int] = []
            while True:
                attribute, position = uleb(section, position)
                form, position = uleb(section, position)
                if not attribute and not form:
                    break
                constant = 0
                if form == d.DW_FORM_implicit_const:
                    constant, position = sleb(section, position)
                attributes.append((attribute, form, constant))
                step = step_of(form, address_size, offset_size)
                if step < 0 or not steps or steps[-1] < 0:
                    steps.append(step)
                else:
                    steps[-1] += step
            size = steps[0] if len(steps) == 1 and steps[0] >= 0 else -1 if steps else 0
            sibling = bool(attributes) and attributes[-1][:2] == (d.DW_AT_sibling, d.DW_FORM_ref4)
            table[code] = Abbreviation(code, tag, children, tuple(attributes), size, tuple(steps), sibling)
    except IndexError:
        raise FormatError("the abbreviation table is cut off") from None


def skip_steps(data: bytes, position: int, steps: tuple[int, ...], address_size: int, offset_size: int) -> int:
    """The position after the attribute values that `steps` describe."""
    for step in steps:
        if step >= 0:
            position += step
        elif step == STRING:
            end = data.find(b"\0", position)
            if end < 0:
                raise IndexError
            position = end + 1
        elif step == ULEB:
            while data[position] >= 0x80:
                position += 1
            position += 1
        elif step == BLOCK:
            size = data[position]
            if size < 0x80:
                position += size + 1
            else:
                size, position = uleb(data, position)
                position += size
        elif step == INDIRECT:
            form, position = uleb(data, position)
            position = skip_steps(
                data, position, (step_of(form, address_size, offset_size),), address_size, offset_size
            )
        else:
            width = 1 if step == BLOCK1 else 2 if step == BLOCK2 else 4
            position += width + int.from_bytes(data[position : position + width], "little")
    return position
