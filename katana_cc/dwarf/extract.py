"""From the debug information of an object to that of a few of its functions: what a debugger needs of them, no more.

Theory of operation.  A unit tells of all its functions, and of every type of every header.  Wanted are the entries of
the functions that a patch carries (with parameters, variables, blocks and what was inlined into them), those of carried
variables, and what these refer to: types, declarations, abstract instances, transitively.

    functions, variables  ──►  whole entries  ──►  what they refer to  ──►  scopes around that: namespaces, classes
                                     ▲                    │
                                     └────────────────────┘

Of a class come its members, bases and template parameters; methods and nested types only if something refers to them.
What refers to the inside of a function brings all of it.  Addresses that the caller does not know are left out, and
with them the variable that lies there: a debugger then finds the program's own.  Of call sites, which tell what a
caller passed, those come of which the callee comes too: a debugger looks for the others by name, and would find the old
code.  Also left out: where types are declared.

Out of scope: macros, imported namespaces.

Source: DWARF 5, chapters 2 to 5.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.functions import Function, code_ranges
from katana_cc.dwarf.lines import line_tables
from katana_cc.dwarf.locations import listed_at, location_list, source_of
from katana_cc.dwarf.operations import expression_at
from katana_cc.dwarf.sections import Place
from katana_cc.dwarf.tree import (
    Address,
    Bytes,
    Expression,
    File,
    Flag,
    Locations,
    Number,
    Ranges,
    Reference,
    Text,
    TreeEntry,
    Value,
)
from katana_cc.dwarf.units import AddressField, Block, Die
from katana_cc.errors import FormatError

_TOLD: Final = frozenset(
    {
        d.DW_AT_location, d.DW_AT_name, d.DW_AT_byte_size, d.DW_AT_bit_size, d.DW_AT_bit_offset, d.DW_AT_low_pc,
        d.DW_AT_high_pc, d.DW_AT_const_value, d.DW_AT_containing_type, d.DW_AT_inline, d.DW_AT_prototyped,
        d.DW_AT_upper_bound, d.DW_AT_lower_bound, d.DW_AT_abstract_origin, d.DW_AT_artificial, d.DW_AT_count,
        d.DW_AT_data_member_location, d.DW_AT_declaration, d.DW_AT_encoding, d.DW_AT_external,
        d.DW_AT_specification, d.DW_AT_type, d.DW_AT_virtuality, d.DW_AT_ranges, d.DW_AT_object_pointer,
        d.DW_AT_data_bit_offset, d.DW_AT_linkage_name, d.DW_AT_MIPS_linkage_name, d.DW_AT_alignment,
        d.DW_AT_GNU_vector, d.DW_AT_frame_base, d.DW_AT_accessibility, d.DW_AT_enum_class, d.DW_AT_bit_stride,
        d.DW_AT_byte_stride, d.DW_AT_noreturn, d.DW_AT_call_line, d.DW_AT_call_file,
        d.DW_AT_reference, d.DW_AT_rvalue_reference, d.DW_AT_default_value, d.DW_AT_export_symbols,
        d.DW_AT_call_return_pc, d.DW_AT_call_value, d.DW_AT_call_origin, d.DW_AT_call_pc, d.DW_AT_call_tail_call,
        d.DW_AT_GNU_call_site_value, d.DW_AT_GNU_tail_call,
    }
)  # fmt: skip
_DECLARED: Final = frozenset({d.DW_AT_decl_file, d.DW_AT_decl_line})
_FILES: Final = frozenset({d.DW_AT_decl_file, d.DW_AT_call_file})
_LOCATIONS: Final = frozenset({d.DW_AT_location, d.DW_AT_frame_base, d.DW_AT_data_member_location})
_REFERENCES: Final = frozenset(
    {
        d.DW_FORM_ref1, d.DW_FORM_ref2, d.DW_FORM_ref4, d.DW_FORM_ref8, d.DW_FORM_ref_udata, d.DW_FORM_ref_addr,
        d.DW_FORM_ref_sig8,
    }
)  # fmt: skip
_FIXED: Final = frozenset({d.DW_FORM_data1, d.DW_FORM_data2, d.DW_FORM_data4, d.DW_FORM_data8, d.DW_FORM_data16})
_LEFT_OUT: Final = frozenset({d.DW_TAG_imported_declaration, d.DW_TAG_imported_module})
_CALL_SITES: Final = {
    d.DW_TAG_call_site: d.DW_AT_call_origin,
    d.DW_TAG_GNU_call_site: d.DW_AT_abstract_origin,
}
_CLASSES: Final = frozenset({d.DW_TAG_structure_type, d.DW_TAG_class_type, d.DW_TAG_union_type})
_OF_CLASSES: Final = frozenset(
    {
        d.DW_TAG_member, d.DW_TAG_inheritance, d.DW_TAG_variable, d.DW_TAG_template_type_parameter,
        d.DW_TAG_template_value_parameter,
    }
)  # fmt: skip


class _Elsewhere(Exception):
    """A variable lies where the caller knows no address."""


def entries_of(
    info: DebugInfo, functions: Iterable[Function], is_known: Callable[[Place], bool], is_carried: Callable[[int], bool]
) -> tuple[TreeEntry, ...]:
    """The entries of `functions`, of the variables outside of functions that lie in a carried section, and of what they
    refer to, below the unit.

    Args:
        is_known: whether an address of the object means something where the entries go.
        is_carried: whether a section of the object goes there.

    Raises:
        FormatError: damaged debug information.
    """
    wanted = [f.die for f in functions]
    extraction = _Extraction(info, is_known, wanted)
    try:
        for offset in wanted:
            extraction.place(offset)
        for entry in info.outline:
            if entry.tag == d.DW_TAG_variable and not extraction.is_in_function(entry.parent):
                address = extraction.stored_at(info.die(entry.offset, entry.unit))
                if address is not None and is_carried(address.section):
                    extraction.place(entry.offset)
    except IndexError:
        raise FormatError("damaged debug information: an expression is cut off", where=info.where) from None
    return extraction.finish()


class _Extraction:
    def __init__(self, info: DebugInfo, is_known: Callable[[Place], bool], asked: Iterable[int]) -> None:
        self._asked = frozenset(asked)
        self._info = info
        self._is_known = is_known
        self._offsets = [entry.offset for entry in info.outline]
        self._ends: dict[int, int] = {}
        self._kept: dict[int, TreeEntry] = {}
        self._below: dict[int, set[int]] = {}  # -1: below the unit
        self._seen: set[int] = set()
        self._queue: list[int] = []

    # Which entries

    def place(self, offset: int) -> None:
        """Keep an entry, and all that it needs."""
        self._queue.append(offset)
        while self._queue:
            self._place(self._queue.pop())

    def is_in_function(self, number: int) -> bool:
        """Whether the scope of the outline's entry `number` is, or is in, a function."""
        return self._function_around(number) is not None

    def _place(self, offset: int) -> None:
        if offset in self._seen:
            return
        around = self._scope_around(offset)
        function = self._function_around(around)
        if function is not None:
            self._place(function)
            if offset in self._seen:
                return
        self._seen.add(offset)
        die = self._info.die(offset)
        if not self._keep(die, self._scope(around)):
            return
        if die.tag == d.DW_TAG_namespace:
            return
        for child in self._info.children(die):
            if die.tag not in _CLASSES or child.tag in _OF_CLASSES:
                self._whole(child, offset)

    def _whole(self, top: Die, parent: int) -> None:
        """Keep an entry and everything in it."""
        pending = [(top, parent)]
        while pending:
            die, above = pending.pop()
            if die.tag in _LEFT_OUT or self._is_foreign_call(die):
                continue
            self._seen.add(die.offset)
            if self._keep(die, above):
                pending += [(child, die.offset) for child in self._info.children(die)]

    def _is_foreign_call(self, die: Die) -> bool:
        """Whether it is a call site, and not of a function that was asked for."""
        origin = _CALL_SITES.get(die.tag)
        return origin is not None and die.attributes.get(origin) not in self._asked

    def _scope(self, number: int) -> int:
        """The key of a scope, itself kept; -1 for the unit."""
        if number < 0 or self._info.outline[number].parent < 0:
            return -1
        offset = self._info.outline[number].offset
        self._place(offset)
        return offset if offset in self._kept else -1

    def _scope_around(self, offset: int) -> int:
        """The number of the innermost scope of the outline that holds an entry; -1: none."""
        number = bisect_left(self._offsets, offset) - 1
        while number >= 0 and not self._holds(number, offset):
            number = self._info.outline[number].parent
        return number

    def _holds(self, number: int, offset: int) -> bool:
        entry = self._info.outline[number]
        if entry.parent < 0:
            return entry.offset < offset < entry.unit.end
        end = self._ends.get(number)
        if end is None:
            end = self._ends[number] = self._info.end_of_tree(self._info.die(entry.offset, entry.unit))
        return offset < end

    def _function_around(self, number: int) -> int | None:
        """The outermost function among a scope and those around it."""
        found = None
        while number >= 0:
            entry = self._info.outline[number]
            if entry.tag == d.DW_TAG_subprogram:
                found = entry.offset
            number = entry.parent
        return found

    def _keep(self, die: Die, parent: int) -> bool:
        try:
            attributes = tuple(self._attributes(die))
        except _Elsewhere:
            return False
        self._kept[die.offset] = TreeEntry(die.offset, die.tag, attributes)
        self._below.setdefault(parent, set()).add(die.offset)
        for _, value in attributes:
            self._queue += [r.key for r in _references(value)]
        return True

    # What they say

    def _attributes(self, die: Die) -> Iterator[tuple[int, Value]]:
        forms = self._info.forms(die)
        has_low = False
        for attribute, raw in die.attributes.items():
            if attribute in _DECLARED:
                if die.tag not in (d.DW_TAG_subprogram, d.DW_TAG_variable):
                    continue
            elif attribute not in _TOLD:
                continue
            if attribute == d.DW_AT_high_pc:
                continue
            value = self._value(die, attribute, forms[attribute], raw)
            if value is None:
                continue
            has_low |= attribute == d.DW_AT_low_pc
            yield attribute, value
        if has_low and d.DW_AT_high_pc in die.attributes:
            for code in code_ranges(self._info, die)[:1]:
                yield d.DW_AT_high_pc, Number(d.DW_FORM_udata, code.size)

    def _value(self, die: Die, attribute: int, form: int, raw: Any) -> Value | None:
        if attribute in _FILES:
            name = line_tables(self._info).file(die.unit, raw if isinstance(raw, int) else None)
            return File(name) if name else None
        if attribute == d.DW_AT_ranges:
            pieces = [(Place(r.section, r.offset, ""), r.size) for r in code_ranges(self._info, die)]
            known = tuple(x for x in pieces if self._is_known(x[0]))
            return Ranges(known) if known else None
        if isinstance(raw, AddressField):
            found = self._info.place(raw)
            return Address(found) if found is not None and self._is_known(found) else None
        if form in _REFERENCES:
            return Reference(self._meant(raw))
        if isinstance(raw, str):
            return Text(raw)
        if raw is True:
            return Flag()
        if isinstance(raw, Block):
            return self._block(die, attribute, raw)
        if form in (d.DW_FORM_sec_offset, d.DW_FORM_loclistx):
            return self._list(die, form, raw) if attribute in _LOCATIONS else None
        if form in (d.DW_FORM_sdata, d.DW_FORM_implicit_const):
            return Number(d.DW_FORM_sdata, raw)
        if form == d.DW_FORM_udata or form in _FIXED:
            return Number(form, raw)
        return None

    def _meant(self, offset: int) -> int:
        """The entry a reference means: the definition, where a type unit has it."""
        signature = self._info.die(offset).attributes.get(d.DW_AT_signature)
        return signature if isinstance(signature, int) else offset

    def _block(self, die: Die, attribute: int, block: Block) -> Value | None:
        if attribute == d.DW_AT_const_value:
            return Bytes(self._info.sections.space[block.start : block.start + block.size])
        stored = self.stored_at(die) if attribute == d.DW_AT_location else None
        if stored is not None and not self._is_known(stored):
            raise _Elsewhere
        expression = expression_at(source_of(self._info, die.unit), block.start, block.size)
        return expression if expression is not None and self._is_sayable(expression) else None

    def _list(self, die: Die, form: int, raw: int) -> Value | None:
        at = listed_at(self._info, die.unit, raw) if form == d.DW_FORM_loclistx else raw
        found = location_list(self._info, die.unit, at)
        entries = [x for x in found.entries if self._is_known(x.start)] if found is not None else []
        sayable = tuple(x for x in entries if self._is_sayable(x.expression))
        return Locations(sayable) if sayable else None

    def stored_at(self, die: Die) -> Place | None:
        """Where a variable lies whose location is a single address."""
        block = die.attributes.get(d.DW_AT_location)
        if not isinstance(block, Block) or not block.size:
            return None
        if self._info.sections.space[block.start] not in (d.DW_OP_addr, d.DW_OP_addrx):
            return None
        expression = expression_at(source_of(self._info, die.unit), block.start, block.size)
        if expression is None or len(expression.pieces) != 2 or not isinstance(expression.pieces[1], Address):
            return None
        return expression.pieces[1].place

    def _is_sayable(self, expression: Expression) -> bool:
        return all(self._is_known(p.place) for p in expression.pieces if isinstance(p, Address))

    # The result

    def finish(self) -> tuple[TreeEntry, ...]:
        """The entries below the unit, in their order, without references to what was left out."""
        for entry in self._kept.values():
            entry.attributes = tuple(self._bound(entry.attributes))
        for parent, below in self._below.items():
            if parent in self._kept:
                self._kept[parent].children = [self._kept[offset] for offset in sorted(below)]
        return tuple(self._kept[offset] for offset in sorted(self._below.get(-1, ())))

    def _bound(self, attributes: Iterable[tuple[int, Value]]) -> Iterator[tuple[int, Value]]:
        for attribute, value in attributes:
            if isinstance(value, Locations):
                entries = tuple(x for x in value.entries if self._is_bound(x.expression))
                if entries:
                    yield attribute, Locations(entries)
            elif self._is_bound(value):
                yield attribute, value

    def _is_bound(self, value: Value) -> bool:
        return all(r.key in self._kept for r in _references(value))


def _references(value: Value) -> Iterator[Reference]:
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, Expression):
        yield from value.references
    elif isinstance(value, Locations):
        for entry in value.entries:
            yield from entry.expression.references
