"""What carried functions do when an exception passes, read back from a patch object's own tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from katana_cc.dwarf.frames import Fde, records
from katana_cc.dwarf.lsda import Lsda, read_lsda
from katana_cc.elf import constants as c
from katana_cc.errors import FormatError
from katana_cc.patch.model import PatchObject, PatchSection

_ANYTHING = "anything"


class HandlerRow(NamedTuple):
    """One function (or its .cold half): what it catches (type_info symbols, "anything" last), what alone it lets pass
    (an exception specification; empty: there is none), and whether it cleans up."""

    function: str
    catches: tuple[str, ...]
    allows: tuple[str, ...]
    cleans_up: bool


def handler_rows(po: PatchObject) -> tuple[HandlerRow, ...]:
    """A row for each function that does something when an exception passes, in the order of the frames."""
    rows: list[HandlerRow] = []
    for section in po.sections:
        if section.name == ".eh_frame" and section.flags & c.SHF_ALLOC:
            try:
                rows += (row for row in _rows(po, section) if row.catches or row.allows or row.cleans_up)
            except FormatError:
                continue  # `katana check` tells
    return tuple(rows)


def _rows(po: PatchObject, section: PatchSection) -> Iterator[HandlerRow]:
    fields = {r.offset: r for r in section.relocations}
    for fde in records(section.data):
        if not isinstance(fde, Fde) or not fde.lsda_offset:
            continue
        code, table = fields.get(fde.pc_offset), fields.get(fde.lsda_offset)
        if code is None or table is None:
            continue
        source = po.symbols[table.symbol].section
        if source is None:
            continue
        start = po.symbols[table.symbol].value + table.addend
        yield _row(po, _name(po, po.symbols[code.symbol].section), po.sections[source], start)


def _row(po: PatchObject, function: str, source: PatchSection, start: int) -> HandlerRow:
    lsda = read_lsda(source.data, start)
    names = _types(po, lsda, source)
    filters = [f for site in lsda.call_sites for f in site.filters]
    catches = dict.fromkeys(names[f[0]] for f in filters if isinstance(f, tuple) and f[0] >= 0)
    allows = dict.fromkeys(names[n] for f in filters if isinstance(f, tuple) and f[0] < 0 for n in f[1:])
    ordered = sorted(catches, key=lambda name: name == _ANYTHING)
    cleans = any(site.pad and (not site.filters or 0 in site.filters) for site in lsda.call_sites)
    return HandlerRow(function, tuple(ordered), tuple(allows), cleans)


def _types(po: PatchObject, lsda: Lsda, source: PatchSection) -> list[str]:
    fields = {r.offset: r for r in source.relocations}
    found = []
    for at in lsda.types:
        field = fields.get(at)
        pointer = None if field is None else po.symbols[field.symbol].section
        inside = () if pointer is None else po.sections[pointer].relocations
        meant = [po.symbols[r.symbol] for r in inside]
        found.append((meant[0].name or _name(po, meant[0].section)) if meant else _ANYTHING)
    return found


def _name(po: PatchObject, section: int | None) -> str:
    named = (y.name for y in po.symbols if y.section == section and y.name and section is not None)
    return next(named, "?")
