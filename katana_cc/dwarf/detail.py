"""Whether an object's debug information tells of types, or was made for line numbers alone.

`-g1` (gcc) and `-g1`, `-gline-tables-only` (clang) leave units that are sound, name every function, and know no type:
a struct that grew would look as if nothing had changed.  A unit that knows a type tells of all.  One that knows none
may simply need none (`void f(void) { g(); }`), so its producer decides: gcc writes its options there
(-grecord-gcc-switches, on by default); clang does not, but leaves out where functions are declared when it writes
lines only.
"""

from __future__ import annotations

import re
from typing import Final

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.sections import DwarfProblem, ProblemKind
from katana_cc.dwarf.units import Unit

_TYPES: Final = frozenset(
    {
        d.DW_TAG_array_type, d.DW_TAG_class_type, d.DW_TAG_enumeration_type, d.DW_TAG_pointer_type,
        d.DW_TAG_reference_type, d.DW_TAG_structure_type, d.DW_TAG_subroutine_type, d.DW_TAG_typedef,
        d.DW_TAG_union_type, d.DW_TAG_base_type, d.DW_TAG_const_type, d.DW_TAG_volatile_type,
        d.DW_TAG_unspecified_type, d.DW_TAG_namespace,
    }
)  # fmt: skip
_ASSEMBLER: Final = 0x8001  # DW_LANG_Mips_Assembler, which all assemblers use
_LEVEL: Final = re.compile(r"-g(?:gdb|dwarf(?:-\d)?)?([0-3])?\Z")


def lines_only(info: DebugInfo) -> DwarfProblem | None:
    """The problem, if any unit knows lines and no types."""
    for unit in info.units:
        if unit.root.tag == d.DW_TAG_compile_unit and _knows_lines_only(info, unit):
            text = "the debug information was made for line numbers alone, and knows no types"
            return DwarfProblem(ProblemKind.LINES_ONLY, info.where, text, "compile with -g, and not with -g1 after it")
    return None


def _knows_lines_only(info: DebugInfo, unit: Unit) -> bool:
    root = unit.root.attributes
    if root.get(d.DW_AT_language) == _ASSEMBLER:
        return False
    declared: list[bool] = []
    for child in info.children(unit.root):
        if child.tag in _TYPES:
            return False
        if child.tag == d.DW_TAG_subprogram and d.DW_AT_specification not in child.attributes:
            declared.append(d.DW_AT_decl_line in child.attributes or d.DW_AT_abstract_origin in child.attributes)
    producer = root.get(d.DW_AT_producer)
    if isinstance(producer, str) and producer.startswith("GNU C"):
        return _gcc_level(producer) == 1
    has_code = d.DW_AT_ranges in root or bool(root.get(d.DW_AT_high_pc))
    return has_code and not (declared and all(declared))


def _gcc_level(producer: str) -> int:
    """The debug level that gcc's options come to: the last number wins, and a bare -g asks for at least 2."""
    level = 2
    for option in producer.split():
        if found := _LEVEL.match(option):
            level = int(found[1]) if found[1] else max(level, 2)
    return level
