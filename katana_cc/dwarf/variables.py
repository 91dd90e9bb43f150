"""The variables of an object that keep their value between calls: globals, file statics, statics of functions.

A static of a function is named by that function, since the compiler's own name for it (`count.3`) is renumbered by any
change before it.  In an optimised object it may be described several times (abstract instance, concrete instance,
clang's inlined ones): what lies at one place is one variable.

Source: DWARF 5, sections 4.1 (data objects) and 2.6 (location descriptions).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo, Entry
from katana_cc.dwarf.forms import NO_FORM, Form, forms
from katana_cc.dwarf.leb128 import uleb
from katana_cc.dwarf.lines import line_tables
from katana_cc.dwarf.naming import naming
from katana_cc.dwarf.sections import Place
from katana_cc.dwarf.texts import texts
from katana_cc.dwarf.units import Block, Die
from katana_cc.elf import constants as c

if TYPE_CHECKING:
    from katana_cc.dwarf.elftools_reader import Operation

_EXPRESSIONS = frozenset({d.DW_FORM_exprloc, d.DW_FORM_block, d.DW_FORM_block1, d.DW_FORM_block2, d.DW_FORM_block4})
TAKEN_APART = "the compiler took it apart"
CHANGED = "the compiler changed how it is kept: "
INLINED = "(inlined function)"  # the scope of a variable of which nothing tells the function
_ADDRESSES = frozenset({d.DW_OP_addr, d.DW_OP_addrx, d.DW_OP_const4u, d.DW_OP_const8u, d.DW_OP_constx})
_TLS = frozenset({d.DW_OP_form_tls_address, d.DW_OP_GNU_push_tls_address})


class Variable(NamedTuple):
    """One variable.

    `name` is as declared, `scope` what it is in: a namespace, a class, a function (`serve()`), "" for the file.
    `type` is canonical (`katana_cc.dwarf.texts`), `size` in bytes; `aggregate` is the key in `layouts` of what it
    holds by value, `form` says what kind of value it is.
    `place` is None for one that is only declared here, or that the compiler took apart or away (`why` says so);
    `pieces` are then the parts that are left of it, by their offset in the whole.
    """

    name: str
    scope: str
    linkage_name: str
    type: str
    size: int
    aggregate: str
    place: Place | None
    external: bool
    declaration: bool
    thread_local: bool
    constant: bool
    file: str
    line: int
    why: str
    pieces: tuple[tuple[int, Place], ...] = ()
    form: Form = NO_FORM

    @property
    def qualified(self) -> str:
        """The name with its scope: `serve()::count`."""
        return f"{self.scope}::{self.name}" if self.scope else self.name

    @property
    def is_stored(self) -> bool:
        """Whether it begins a section, which may be its own."""
        return self.place is not None and 0 < self.place.section < c.SHN_LORESERVE and self.place.offset == 0


def variables(info: DebugInfo) -> tuple[Variable, ...]:
    """All variables that are not automatic, in the order of the debug information.

    Raises:
        FormatError: damaged debug information.
    """
    found = info.memo.get("variables")
    if not isinstance(found, tuple):
        found = info.memo["variables"] = _variables(info)
    return found


def _variables(info: DebugInfo) -> tuple[Variable, ...]:
    result: list[Variable] = []
    seen: dict[tuple[str, Place], int] = {}
    completed: set[int] = set()
    for entry in info.outline:
        if entry.tag != d.DW_TAG_variable:
            continue
        local = entry.parent >= 0 and info.outline[entry.parent].tag == d.DW_TAG_subprogram
        if local and not _may_be_static(info, entry):
            continue
        found = _variable(info, entry, local)
        if found is None:
            continue
        variable, chain = found
        if variable.place is not None:
            key = (variable.name, variable.place)
            if key in seen:
                continue
            seen[key] = len(result)
            completed.update(link.offset for link in chain[1:])
        result.append(variable)
        if chain[0].offset in completed:
            result.pop()
    declared = {(v.qualified, v.type) for v in result if not v.declaration}
    # A declaration says nothing beside its definition.
    return tuple(v for v in result if not v.declaration or (v.qualified, v.type) not in declared)


def _may_be_static(info: DebugInfo, entry: Entry) -> bool:
    """Whether an entry inside a function has a location expression; most automatic ones have lists or nothing."""
    code, _position = uleb(info.sections.space, entry.offset)
    attributes = entry.unit.abbreviations[code].attributes
    return any(at == d.DW_AT_location and form in _EXPRESSIONS for at, form, _ in attributes)


def _variable(info: DebugInfo, entry: Entry, local: bool) -> tuple[Variable, tuple[Die, ...]] | None:
    names = naming(info)
    die = info.die(entry.offset, entry.unit)
    chain = names.chain(die)
    place, thread_local, why = location(info, die)
    if local and place is None and not why:
        return None
    name = next((t for link in chain if (t := link.text(d.DW_AT_name))), "")
    if not name:
        return None
    holder = next((link for link in chain if d.DW_AT_type in link.attributes), die)
    target = names.target(holder)
    text, size, aggregate = texts(info).facts(target)
    at, line = names.declared_at(entry)
    qualified = names.qualified(entry)
    scope = qualified[: -len(name)].removesuffix("::")
    declaration = place is None and d.DW_AT_declaration in die.attributes
    if place is None and not declaration and not why:
        why = "the compiler kept no storage for it"
    variable = Variable(
        name=name,
        scope=_inlined_scope(info, name, place) if scope == "()" else scope,
        linkage_name=next(
            (t for x in chain if (t := x.text(d.DW_AT_linkage_name) or x.text(d.DW_AT_MIPS_linkage_name))), ""
        ),
        type=text,
        size=size,
        aggregate=aggregate,
        place=place,
        external=any(d.DW_AT_external in link.attributes for link in chain),
        declaration=declaration,
        thread_local=thread_local,
        constant=names.constant(target),
        file=line_tables(info).file(at.unit, at.integer(d.DW_AT_decl_file)),
        line=line,
        why=why,
        pieces=_pieces(info, die) if why == TAKEN_APART else (),
        form=forms(info).form(target),
    )
    return variable, chain


def _inlined_scope(info: DebugInfo, name: str, place: Place | None) -> str:
    """The function of a variable for which clang, having inlined all of it, gives no name: its symbol is `f.name`."""
    for symbol in info.elf.symbols:
        if place is not None and (symbol.section, symbol.value) == place[:2] and symbol.name.endswith(f".{name}"):
            return symbol.name.removesuffix(f".{name}") + "()"
    return INLINED


class Unstored(NamedTuple):
    """A variable that is declared here and lies nowhere: where it is declared, and whether it is const."""

    file: str
    line: int
    constant: bool


def unstored(info: DebugInfo) -> Mapping[str, Unstored]:
    """The variables without storage that may be static ones, by qualified name.

    Debug information does not tell an automatic variable that was optimised away from a static one.

    Raises:
        FormatError: damaged debug information.
    """
    found = info.memo.get("unstored")
    if not isinstance(found, dict):
        found = info.memo["unstored"] = dict(_unstored(info))
    return found


def _unstored(info: DebugInfo) -> Iterator[tuple[str, Unstored]]:
    names = naming(info)
    bare: list[tuple[Entry, tuple[Die, ...]]] = []
    located: set[int] = set()
    for entry in info.outline:
        if entry.tag != d.DW_TAG_variable:
            continue
        chain = names.chain(info.die(entry.offset, entry.unit))
        local = entry.parent >= 0 and info.outline[entry.parent].tag == d.DW_TAG_subprogram
        place, _thread_local, why = location(info, chain[0])
        # A location without a place is an automatic variable's; at file level it is a value the compiler folded.
        if place is not None or why or (local and d.DW_AT_location in chain[0].attributes):
            located.update(link.offset for link in chain)
        elif d.DW_AT_declaration not in chain[0].attributes:
            bare.append((entry, chain))
    for entry, chain in bare:
        if any(link.offset in located for link in chain) or not any(link.text(d.DW_AT_name) for link in chain):
            continue
        qualified = names.qualified(entry)
        at, line = names.declared_at(entry)
        target = names.target(next((link for link in chain if d.DW_AT_type in link.attributes), chain[0]))
        file = line_tables(info).file(at.unit, at.integer(d.DW_AT_decl_file))
        if qualified.startswith("()::"):
            qualified = INLINED + qualified[2:]
        yield qualified, Unstored(file, line, names.constant(target))


def location(info: DebugInfo, die: Die) -> tuple[Place | None, bool, str]:
    """(place, whether thread-local, why there is none) of a variable.  No place, no reason: not in static storage."""
    block = die.attributes.get(d.DW_AT_location)
    if not isinstance(block, Block) or not block.size:
        return None, False, ""
    data, start, end = info.sections.space, block.start, block.start + block.size
    first = data[start]
    if first in (d.DW_OP_addr, d.DW_OP_const8u):
        place, rest = info.sections.addresses.get(start + 1), start + 9
    elif first == d.DW_OP_const4u:
        place, rest = info.sections.addresses.get(start + 1), start + 5
    elif first in (d.DW_OP_addrx, d.DW_OP_constx):
        index, rest = uleb(data, start + 1)
        place = info.place(info.address_field(die.unit, index))
    elif first == d.DW_OP_piece and (d.DW_OP_addr in data[start:end] or d.DW_OP_addrx in data[start:end]):
        return None, False, TAKEN_APART if _pieces(info, die) else ""
    else:
        return None, False, ""
    if place is None:
        return None, False, ""
    if rest == end:
        return (place, False, "") if first in (d.DW_OP_addr, d.DW_OP_addrx) else (None, False, "")
    if rest + 1 == end:
        if data[rest] in _TLS:
            return place, True, ""
        if data[rest] == d.DW_OP_stack_value:
            return None, False, ""  # an automatic pointer whose value is this address
    return _unusual(info, die, place)


def _operations(info: DebugInfo, die: Die) -> tuple[Operation, ...]:
    # Not needed for one variable in a thousand, and slow to import.
    from katana_cc.dwarf.elftools_reader import operations

    block = die.attributes[d.DW_AT_location]
    assert isinstance(block, Block)
    expression = info.sections.space[block.start : block.start + block.size]
    return operations(expression, die.unit.version, die.unit.offset_size, die.unit.address_size)


def _unusual(info: DebugInfo, die: Die, place: Place) -> tuple[Place | None, bool, str]:
    found = _operations(info, die)
    if found[-1].code == d.DW_OP_piece:
        return None, False, TAKEN_APART if _pieces(info, die) else ""
    if len(found) == 2 and found[1].code == d.DW_OP_plus_uconst and isinstance(added := found[1].operands[0], int):
        return replace_offset(place, added), False, ""  # clang merges globals: base of the merged one, plus an offset
    if found[-1].code == d.DW_OP_stack_value and not any(op.name.startswith("DW_OP_deref") for op in found):
        return None, False, ""  # again a value computed from an address, not something that lies there
    return None, False, CHANGED + "; ".join(map(_words, found))


def _words(op: Operation) -> str:
    """An operation in words, without the addresses."""
    if op.code in _ADDRESSES:
        return op.name
    return " ".join([op.name, *map(str, op.operands)])


def _pieces(info: DebugInfo, die: Die) -> tuple[tuple[int, Place], ...]:
    """(offset in the variable, place) of the pieces that lie somewhere, of a variable that was taken apart."""
    block = die.attributes[d.DW_AT_location]
    assert isinstance(block, Block)
    pieces: list[tuple[int, Place]] = []
    offset = 0
    run: list[Operation] = []
    for op in _operations(info, die):
        if op.code != d.DW_OP_piece:
            run.append(op)
            continue
        place = _place_of(info, die, block.start, run)
        if place is not None:
            pieces.append((offset, place))
        size = op.operands[0]
        offset += size if isinstance(size, int) else 0
        run = []
    return tuple(pieces)


def _place_of(info: DebugInfo, die: Die, start: int, run: list[Operation]) -> Place | None:
    """Where one piece lies, by the operations that describe it; None when it is a value, or gone."""
    place = None
    for op in run:
        operand = op.operands[0] if op.operands else None
        if op.code == d.DW_OP_addr:
            place = info.sections.addresses.get(start + op.offset + 1)
        elif op.code == d.DW_OP_addrx and isinstance(operand, int):
            place = info.place(info.address_field(die.unit, operand))
        elif op.code == d.DW_OP_plus_uconst and place is not None and isinstance(operand, int):
            place = replace_offset(place, operand)
    is_value = run and run[-1].code == d.DW_OP_stack_value
    return None if is_value and not any(op.name.startswith("DW_OP_deref") for op in run) else place


def replace_offset(place: Place, added: int) -> Place:
    """A place `added` bytes further on."""
    return place._replace(offset=place.offset + added)
