"""The one importer of pyelftools: location expressions taken apart into named operations.

Importing it costs some 80 ms, so it stays off the hot path: `variables` recognises the two or three expressions that
compilers write for a variable in static storage by their bytes, and asks here only about others (a global that was
split up, or merged into another with an offset).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from elftools.common.exceptions import DWARFError, ELFParseError  # noqa: TID251
from elftools.dwarf.dwarf_expr import DWARFExprParser  # noqa: TID251
from elftools.dwarf.structs import DWARFStructs  # noqa: TID251

from katana_cc.errors import FormatError


class Operation(NamedTuple):
    """One operation of a location expression: its number, its name (`DW_OP_addr`), its operands, where it begins."""

    code: int
    name: str
    operands: tuple[object, ...]
    offset: int


@lru_cache(maxsize=8)
def _parser(version: int, offset_size: int, address_size: int) -> Any:
    return DWARFExprParser(
        DWARFStructs(little_endian=True, dwarf_format=8 * offset_size, address_size=address_size, dwarf_version=version)
    )


def operations(
    expression: bytes, version: int = 5, offset_size: int = 4, address_size: int = 8
) -> tuple[Operation, ...]:
    """The operations of a location expression.

    Raises:
        FormatError: it is damaged, or uses operations that are not known.
    """
    try:
        found = _parser(version, offset_size, address_size).parse_expr(list(expression))
    except (DWARFError, ELFParseError, KeyError, IndexError, ValueError) as error:
        raise FormatError(f"damaged location expression: {expression.hex(' ')}") from error
    return tuple(Operation(op.op, op.op_name, tuple(op.args), op.offset) for op in found)
