"""What was inlined into a function: the callee, where it was declared, and which of the function's bytes are its own.

A call that was inlined is a DW_TAG_inlined_subroutine below its caller, possibly inside lexical blocks and other
inlined calls.  The bytes of an inlined call are those of its ranges without the ranges of calls inlined into it in
turn.

Source: DWARF 5, section 3.3.8.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.functions import CodeRange, code_ranges, functions
from katana_cc.dwarf.lines import line_tables
from katana_cc.dwarf.naming import DEPTH_LIMIT, naming
from katana_cc.dwarf.units import Die

_INSIDE = (d.DW_TAG_lexical_block, d.DW_TAG_inlined_subroutine)


class InlinedCall(NamedTuple):
    """One inlined call: the callee's name, file and line, and the code that is the callee's own."""

    callee: str
    file: str
    line: int
    code: tuple[CodeRange, ...]


def inlined_calls(info: DebugInfo, section: int) -> tuple[InlinedCall, ...]:
    """Every call inlined into the functions of a code section.

    Raises:
        FormatError: damaged debug information.
    """
    found: list[InlinedCall] = []
    for function in functions(info):
        if function.code.section == section:
            found += _below(info, info.die(function.die), 0)
    return tuple(found)


def _below(info: DebugInfo, die: Die, depth: int) -> Iterator[InlinedCall]:
    if depth > DEPTH_LIMIT:
        return
    for child in info.children(die):
        if child.tag in _INSIDE:
            if child.tag == d.DW_TAG_inlined_subroutine:
                yield from _call(info, child)
            yield from _below(info, child, depth + 1)


def _call(info: DebugInfo, die: Die) -> Iterator[InlinedCall]:
    chain = naming(info).chain(die)
    name = next((text for link in chain if (text := link.text(d.DW_AT_name))), "")
    holder = next((link for link in chain if d.DW_AT_decl_line in link.attributes), None)
    if name and holder is not None:
        file = line_tables(info).file(holder.unit, holder.integer(d.DW_AT_decl_file))
        own = [*code_ranges(info, die)]
        for inner in _inner_ranges(info, die, 0):
            own = [piece for r in own for piece in _without(r, inner)]
        yield InlinedCall(name, file, holder.integer(d.DW_AT_decl_line) or 0, tuple(own))


def _inner_ranges(info: DebugInfo, die: Die, depth: int) -> Iterator[CodeRange]:
    for child in info.children(die):
        if child.tag == d.DW_TAG_inlined_subroutine:
            yield from code_ranges(info, child)
        elif child.tag in _INSIDE and depth < DEPTH_LIMIT:
            yield from _inner_ranges(info, child, depth + 1)


def _without(whole: CodeRange, hole: CodeRange) -> Iterator[CodeRange]:
    """`whole` without what `hole` covers."""
    start, end = whole.offset, whole.offset + whole.size
    low, high = max(start, hole.offset), min(end, hole.offset + hole.size)
    if whole.section != hole.section or low >= high:
        yield whole
        return
    if start < low:
        yield CodeRange(whole.section, start, low - start)
    if high < end:
        yield CodeRange(whole.section, high, end - high)
