"""Data transformations in a patch object: `.debug_frame` with `.katana.transforms` and `.katana.fields` beside it.

The call-frame tables say how the bytes are moved (`katana_cc.transform.tables`).  What DWARF has no words for stands in
tables: which object it is, where the old one is and which symbol the new one has, and what people call the fields.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from katana_cc.elf import constants as c
from katana_cc.elf.writer import NewRelocation, NewSection
from katana_cc.errors import FormatError
from katana_cc.patch.layout import ABSOLUTE_64, FIELD, PREFIX, TRANSFORM, TRANSFORM_NEW_AT
from katana_cc.patch.model import DataTransform, PatchObject
from katana_cc.transform.model import Transformation
from katana_cc.transform.table_reader import decode
from katana_cc.transform.tables import SECTION, Label, encode, labelled, labels

_VARIABLE, _TYPE, _STAYING = 1, 2, 3  # kinds on disk, append-only
_SHAPES: Final = {(_VARIABLE, True, True), (_TYPE, False, False), (_STAYING, False, True)}  # kind, symbol, address
NAMES: Final = PREFIX + "fields"
ENTRIES: Final = PREFIX + "transforms"


def written(po: PatchObject, name: Callable[[str], int]) -> list[NewSection]:
    """The sections; `name` gives a text's offset in `.katana.strings`.  A patch without transformations has no
    `.debug_frame`, and the two tables empty."""
    entries, fields, relocations = bytearray(), bytearray(), []
    for d in po.transforms:
        found = tuple(labels(d.transformation.steps))
        if d.symbol is not None:
            kind = ABSOLUTE_64[po.identity.machine]
            relocations.append(NewRelocation(len(entries) + TRANSFORM_NEW_AT, kind, d.symbol, 0))
        t = d.transformation
        number = _TYPE if d.address is None else _STAYING if d.symbol is None else _VARIABLE
        text = d.begins if d.is_type else t.type
        entries += TRANSFORM.pack(d.address or 0, 0, t.old_size, name(t.name), number, len(found), name(text))
        for label in found:
            fields += FIELD.pack(*(name(text) for text in label))
    sections = [
        NewSection(ENTRIES, c.SHT_PROGBITS, 0, 8, bytes(entries), 0, TRANSFORM.size, tuple(relocations)),
        NewSection(NAMES, c.SHT_PROGBITS, 0, 4, bytes(fields), 0, FIELD.size),
    ]
    if po.transforms:
        frames = encode([d.transformation for d in po.transforms])
        sections.append(NewSection(SECTION, c.SHT_PROGBITS, 0, 8, frames))
    return sections


def read(
    entries: bytes, fields: bytes, frames: bytes | None, name: Callable[[int], str], symbols: dict[int, int]
) -> tuple[DataTransform, ...]:
    """The transformations.

    Args:
        entries, fields, frames: contents of the three sections; None: there is no such section.
        name: the text at an offset of `.katana.strings`.
        symbols: offset in `.katana.transforms` → symbol of the patch that the relocation there names.

    Raises:
        FormatError: against the format; names section and offset.
    """
    if (frames is None) != (not entries):
        raise FormatError(f"{SECTION} and {ENTRIES}: only one of both is there")
    tables = decode(frames) if frames is not None else ()
    if len(tables) * TRANSFORM.size != len(entries):
        raise FormatError(f"{ENTRIES}: {len(entries)} bytes for {len(tables)} transformations")
    names = _labels(fields, name)
    result, at = [], 0
    for i, (address, new, old_size, title, kind, count, text) in enumerate(TRANSFORM.iter_unpack(entries)):
        place = f"{ENTRIES}: entry at {i * TRANSFORM.size:#x}"
        symbol = symbols.pop(i * TRANSFORM.size + TRANSFORM_NEW_AT, None)
        shape = kind, symbol is not None, bool(address)
        if new or shape not in _SHAPES:
            raise FormatError(f"{place} is neither a variable nor a type")
        mine = iter(names[at : at + count])
        at += count
        try:
            steps = labelled(tables[i].steps, mine)
        except FormatError as error:
            raise FormatError(f"{place}: {error.what}") from error
        if next(mine, None) is not None:
            raise FormatError(f"{place}: more names of fields than fields")
        of_type, begins = ("", name(text)) if kind == _TYPE else (name(text), "")
        transformation = Transformation(name(title), old_size, tables[i].new_size, steps, of_type)
        result.append(DataTransform(transformation, address or None, symbol, begins))
    if at != len(names) or symbols:
        raise FormatError(f"{NAMES} or relocations for a transformation that is not there")
    return tuple(result)


def _labels(fields: bytes, name: Callable[[int], str]) -> list[Label]:
    try:
        return [Label(*(name(offset) for offset in entry)) for entry in FIELD.iter_unpack(fields)]
    except struct.error as error:
        raise FormatError(f"{NAMES}: {error}") from error
