"""What types are called: one canonical text for each type, and one name for each aggregate, equal in two builds.

The diff asks "is this the same type as before?", so a text must not depend on what means nothing for live data:

- typedefs are resolved through, qualifiers dropped, base types named by encoding and size: `size_t`, `const unsigned
  long` and `unsigned long long` are all `unsigned long`;
- named aggregates stand as their name (`struct request *`), which ends recursion: they have layouts of their own;
- anonymous ones are called after the typedef that names them, else after the member that holds them (`request.u`), so
  that a change inside is reported once, where it is; those that neither names are spelled out with offsets.

A type's text is built as (left, right) around the name that C would declare: ("int (*", ")[4]").

Qualified names: namespaces and classes with `::`; types local to a function below `function()`.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Final

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo, Entry
from katana_cc.dwarf.units import Die
from katana_cc.errors import FormatError

AGGREGATES: Final = {
    d.DW_TAG_structure_type: "struct",
    d.DW_TAG_class_type: "struct",  # the same thing to the machine
    d.DW_TAG_union_type: "union",
    d.DW_TAG_enumeration_type: "enum",
}
_QUALIFIERS: Final = frozenset(
    {
        d.DW_TAG_const_type, d.DW_TAG_volatile_type, d.DW_TAG_restrict_type, d.DW_TAG_atomic_type,
        d.DW_TAG_immutable_type,
    }
)  # fmt: skip
_POINTERS: Final = {
    d.DW_TAG_pointer_type: "*",
    d.DW_TAG_reference_type: "&",
    d.DW_TAG_rvalue_reference_type: "&&",
}
_INTEGERS: Final = {1: "char", 2: "short", 4: "int", 8: "long", 16: "__int128"}
_FLOATS: Final = {2: "_Float16", 4: "float", 8: "double", 16: "long double"}
_DEPTH_LIMIT: Final = 150  # of types in types: damaged input must end somewhere
_TEXT_LIMIT: Final = 8192  # characters of a type's text


class Naming:
    """Names and texts of the types of one object.  Made by `naming`."""

    def __init__(self, info: DebugInfo) -> None:
        self._info = info
        self._texts: dict[int, tuple[str, str]] = {}
        self._members: dict[int, list[tuple[Die, str]]] = {}
        self._facts: dict[int, tuple[str, int, str]] = {}
        self._open: set[int] = set()
        self._sizes: dict[int, int] = {}
        self._entered: list[int] = []
        self._scopes: dict[int, str] = {}
        self._names: dict[int, str] = {}

    # -- following references ------------------------------------------------------------------------------------------

    def target(self, die: Die, attribute: int = d.DW_AT_type) -> Die | None:
        """The DIE that an attribute refers to; a declaration that a type unit completes gives the definition."""
        offset = die.attributes.get(attribute)
        if offset is None:
            return None
        found = self._info.die(offset)
        signature = found.attributes.get(d.DW_AT_signature)
        return self._info.die(signature) if isinstance(signature, int) else found

    def origin(self, die: Die) -> Die | None:
        """The DIE that this one completes: its abstract instance or its declaration."""
        offset = die.attributes.get(d.DW_AT_abstract_origin, die.attributes.get(d.DW_AT_specification))
        return None if offset is None else self._info.die(offset)

    def chain(self, die: Die) -> tuple[Die, ...]:
        """A DIE and what it completes, the nearest first."""
        result = [die]
        while (following := self.origin(result[-1])) is not None:
            result.append(following)
            if len(result) > _DEPTH_LIMIT:
                raise self._endless(die)
        return tuple(result)

    def peeled(self, die: Die | None, arrays: bool = False, pointers: bool = False) -> Die | None:
        """The type below typedefs and qualifiers, and where asked below arrays and pointers.  None: void."""
        for _ in range(_DEPTH_LIMIT):
            if die is None or not (
                die.tag == d.DW_TAG_typedef
                or die.tag in _QUALIFIERS
                or (arrays and die.tag == d.DW_TAG_array_type)
                or (pointers and die.tag in _POINTERS)
            ):
                return die
            die = self.target(die)
        raise self._endless(die)

    def constant(self, die: Die | None) -> bool:
        """Whether a type is const, itself or the elements of the array that it is."""
        for _ in range(_DEPTH_LIMIT):
            if die is None or die.tag == d.DW_TAG_const_type:
                return die is not None
            if die.tag not in _QUALIFIERS and die.tag not in (d.DW_TAG_typedef, d.DW_TAG_array_type):
                return False
            die = self.target(die)
        return False

    def _endless(self, die: Die | None) -> FormatError:
        at = f" at {die.offset:#x}" if die is not None else ""
        return FormatError(f"damaged debug information: an endless chain of references{at}", where=self._info.where)

    # -- names ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {e.offset: i for i, e in enumerate(self._info.outline)}

    def scope(self, number: int) -> str:
        """The qualified name of the scope that outline entry `number` opens; "" for a unit."""
        if number < 0:
            return ""
        # From the outermost inwards, so that no nesting is too deep for the stack.
        missing = []
        outer = number
        while outer >= 0 and outer not in self._scopes:
            missing.append(outer)
            outer = self._info.outline[outer].parent
        for inner in reversed(missing):
            self._scopes[inner] = ""  # what damaged input that is inside itself finds on its way round
            if len(self._entered) > _DEPTH_LIMIT:
                raise self._endless(None)
            self._entered.append(inner)
            try:
                self._scopes[inner] = self._scope(self._info.outline[inner])
            finally:
                self._entered.pop()
        return self._scopes[number]

    def _scope(self, entry: Entry) -> str:
        if entry.parent < 0:
            return ""
        if entry.tag == d.DW_TAG_subprogram:
            return self.qualified(entry) + "()"
        die = self._info.die(entry.offset, entry.unit)
        if entry.tag == d.DW_TAG_namespace:
            return _join(self.scope(entry.parent), die.text(d.DW_AT_name) or "(anonymous namespace)")
        return self.aggregate(die) or _join(self.scope(entry.parent), "(anonymous)")

    def qualified(self, entry: Entry) -> str:
        """The qualified name of a function, variable or named type; "" when it has no name."""
        die = self._info.die(entry.offset, entry.unit)
        name, place = "", entry
        for link in self.chain(die):
            name = name or link.text(d.DW_AT_name)
            if (number := self._numbers.get(link.offset)) is not None:
                place = self._info.outline[number]  # the scope is where it was first declared
            elif link.tag == d.DW_TAG_member:
                return _join(self.scope(self._static_members.get(link.offset, -1)), name)
        return _join(self.scope(place.parent), name) if name else ""

    @cached_property
    def _static_members(self) -> dict[int, int]:
        """Declarations of static data members (a DW_TAG_member up to DWARF 4) → the outline entry of their class."""
        info = self._info
        return {
            child.offset: number
            for number, entry in enumerate(info.outline)
            if entry.tag in AGGREGATES
            for child in info.children(info.die(entry.offset, entry.unit))
            if child.tag == d.DW_TAG_member and d.DW_AT_declaration in child.attributes
        }

    def declared_at(self, entry: Entry) -> tuple[Die, int]:
        """(DIE whose unit and DW_AT_decl_file hold, line) of where something was declared.

        What has no place of its own (the body of a lambda) is where its scope is.  Line 0: the compiler made it.
        """
        while True:
            chain = self.chain(self._info.die(entry.offset, entry.unit))
            # A definition repeats of its declaration what differs, so the nearest wins.
            line = next((n for link in chain if (n := link.integer(d.DW_AT_decl_line)) is not None), 0)
            holder = next((link for link in chain if d.DW_AT_decl_file in link.attributes), chain[0])
            if line or entry.parent < 0 or d.DW_AT_decl_file in holder.attributes:
                return holder, line
            entry = self._info.outline[entry.parent]

    def aggregate(self, die: Die) -> str:
        """The name of a struct, union, class or enum, without the keyword; "" for one that nothing names."""
        offset = die.offset
        found = self._names.get(offset)
        if found is None:
            self._names[offset] = ""  # what a nameless type that holds itself finds on its way round
            signature = die.attributes.get(d.DW_AT_signature)
            if isinstance(signature, int):
                die = self._info.die(signature)  # clang leaves even the name to the type unit
            number = self._numbers.get(die.offset)
            entry = self._info.outline[number] if number is not None else Entry(die.offset, die.tag, -1, die.unit)
            found = self.qualified(entry) or self._given_name(die)
            self._names[entry.offset] = self._names[offset] = found
        return found

    def _given_name(self, die: Die) -> str:
        """The name of an anonymous aggregate: from a typedef, else from the member that holds it."""
        typedefs, holders = self._givers
        if (typedef := typedefs.get(die.offset)) is not None:
            entry, name = typedef
            return _join(self.scope(entry.parent), name)
        if (holder := holders.get(die.offset)) is not None:
            outer, label = holder
            name = self.aggregate(outer)
            return f"{name}.{label}" if name else ""
        return ""

    @cached_property
    def _givers(self) -> tuple[dict[int, tuple[Entry, str]], dict[int, tuple[Die, str]]]:
        """What names anonymous aggregates: the first typedef of each, the first member that holds or points at it, the
        first typedef of a pointer to it."""
        info = self._info
        typedefs: dict[int, tuple[Entry, str]] = {}
        indirect: dict[int, tuple[Entry, str]] = {}
        holders: dict[int, tuple[Die, str]] = {}
        anonymous: set[int] = set()
        aggregates: list[Die] = []
        for entry in info.outline:
            if entry.tag in AGGREGATES:
                die = info.die(entry.offset, entry.unit)
                if not any(link.text(d.DW_AT_name) for link in self.chain(die)):
                    anonymous.add(die.offset)
                if die.tag != d.DW_TAG_enumeration_type:
                    aggregates.append(die)
        for entry in info.outline:
            if entry.tag == d.DW_TAG_typedef:
                die = info.die(entry.offset, entry.unit)
                target, name = self.target(die), die.text(d.DW_AT_name)
                if target is not None and target.offset in anonymous:
                    typedefs.setdefault(target.offset, (entry, name))
                elif target is not None and target.tag in _POINTERS:  # typedef struct { ... } *handle;
                    inner = self.peeled(target, arrays=True, pointers=True)
                    if inner is not None and inner.offset in anonymous:
                        indirect.setdefault(inner.offset, (entry, f"(*{name})"))
        if anonymous - typedefs.keys():
            for die in aggregates:
                for member, label in self.members(die):
                    inner = self.peeled(self.target(member), arrays=True, pointers=True)
                    if inner is not None and inner.offset in anonymous:
                        holders.setdefault(inner.offset, (die, label))
        named = {offset: giver for offset, giver in indirect.items() if offset not in holders}
        return named | typedefs, holders

    def members(self, die: Die) -> list[tuple[Die, str]]:
        """The data members of an aggregate with their names; nameless ones are numbered, `(anonymous 1)`.  Static
        members are no part of an object, and left out."""
        found = self._members.get(die.offset)
        if found is None:
            found = self._members[die.offset] = []
            nameless = 0
            for child in self._info.children(die):
                held = child.attributes
                if child.tag != d.DW_TAG_member or d.DW_AT_external in held or d.DW_AT_declaration in held:
                    continue
                name = child.text(d.DW_AT_name)
                if not name:
                    nameless += 1
                    name = f"(anonymous {nameless})"
                found.append((child, name))
        return found

    # -- types ---------------------------------------------------------------------------------------------------------

    def facts(self, die: Die | None) -> tuple[str, int, str]:
        """(canonical text, size in bytes, name of the aggregate it holds by value or "") of a type."""
        if die is None:
            return "void", 0, ""
        found = self._facts.get(die.offset)
        if found is None:
            inner = self.peeled(die, arrays=True)
            held = self.aggregate(inner) if inner is not None and inner.tag in AGGREGATES else ""
            found = self._facts[die.offset] = self.text(die), self.size(die), held
        return found

    def text(self, die: Die | None) -> str:
        """The canonical text of a type; None is void."""
        left, right = self._parts(die)
        return left + right

    def _parts(self, die: Die | None) -> tuple[str, str]:
        if die is None:
            return "void", ""
        found = self._texts.get(die.offset)
        if found is None:
            if die.offset in self._open:
                return "...", ""  # only a nameless aggregate inside itself comes here
            if len(self._open) > _DEPTH_LIMIT:
                raise self._endless(die)
            self._open.add(die.offset)
            try:
                found = self._make(die)
                if len(found[0]) + len(found[1]) > _TEXT_LIMIT:
                    # Function types that take function types double at each level; what is compared stays exact.
                    digest = hashlib.sha256("\0".join(found).encode("utf-8", "surrogateescape")).hexdigest()
                    found = f"(type of {len(found[0]) + len(found[1])} characters, {digest[:32]})", ""
                self._texts[die.offset] = found
            finally:
                self._open.discard(die.offset)
        return found

    def _make(self, die: Die) -> tuple[str, str]:
        tag = die.tag
        if tag == d.DW_TAG_typedef or tag in _QUALIFIERS:
            return self._parts(self.target(die))
        if tag in _POINTERS:
            return self._around(self.target(die), _POINTERS[tag])
        if tag == d.DW_TAG_base_type:
            return _base(die), ""
        if tag in AGGREGATES:
            name = self.aggregate(die)
            return (f"{AGGREGATES[tag]} {name}" if name else self._spelled(die)), ""
        if tag == d.DW_TAG_array_type:
            left, right = self._parts(self.target(die))
            bounds = "".join(f"[{'' if n is None else n}]" for n in self.bounds(die))
            vector = " __vector" if d.DW_AT_GNU_vector in die.attributes else ""
            return left + vector, bounds + right
        if tag == d.DW_TAG_subroutine_type:
            left, right = self._parts(self.target(die))
            return left, f"({self.parameters(die)}){right}"
        if tag == d.DW_TAG_ptr_to_member_type:
            holder = self.target(die, d.DW_AT_containing_type)
            name = self.aggregate(holder) if holder is not None else "?"
            return self._around(self.target(die), f"{name}::*")
        return die.text(d.DW_AT_name) or f"(DWARF tag {tag:#x})", ""

    def _around(self, inner: Die | None, star: str) -> tuple[str, str]:
        left, right = self._parts(inner)
        space = "" if left.endswith(("*", "&")) else " "
        shape = self.peeled(inner)
        if shape is not None and shape.tag in (d.DW_TAG_array_type, d.DW_TAG_subroutine_type):
            return f"{left}{space}({star}", f"){right}"
        return f"{left}{space}{star}", right

    def parameters(self, die: Die) -> str:
        """The parameter list of a function type or function, as texts."""
        result = []
        for child in self._info.children(die):
            if child.tag == d.DW_TAG_formal_parameter:
                holder = next((x for x in self.chain(child) if d.DW_AT_type in x.attributes), child)
                result.append(self.text(self.target(holder)))
            elif child.tag == d.DW_TAG_unspecified_parameters:
                result.append("...")
        return ", ".join(result) or ("void" if d.DW_AT_prototyped in die.attributes else "")

    def _spelled(self, die: Die) -> str:
        keyword = AGGREGATES[die.tag]
        if die.tag == d.DW_TAG_enumeration_type:
            inside = ", ".join(
                f"{c.text(d.DW_AT_name)} = {c.integer(d.DW_AT_const_value)}" for c in self._info.children(die)
            )
            return f"{keyword} {{{inside}}}"
        fields = []
        for member, label in self.members(die):
            bit = self.bit_offset(member)
            width = member.integer(d.DW_AT_bit_size)
            where = f"{bit // 8}" if width is None else f"{bit // 8}.{bit % 8}:{width}"
            left, right = self._parts(self.target(member))
            fields.append(f"{left} {label}{right} @{where};")
        return f"{keyword} {{{' '.join(fields)}}}[{self.size(die)} bytes]"

    # -- numbers -------------------------------------------------------------------------------------------------------

    def bounds(self, die: Die) -> list[int | None]:
        """The element counts of an array, outermost first; None where it is open or known at run time only."""
        result: list[int | None] = []
        for child in self._info.children(die):
            if child.tag == d.DW_TAG_subrange_type:
                upper, count = child.integer(d.DW_AT_upper_bound), child.integer(d.DW_AT_count)
                # `[0]`: gcc gives no bound or -1, in a form as wide as the index.
                if count is None and upper is not None:
                    count = 0 if upper in (-1, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF) else upper + 1
                result.append(count)
        return result

    def size(self, die: Die | None) -> int:
        """The size of a type in bytes; 0 for void, functions, open arrays and what is only declared."""
        die = self.peeled(die)
        if die is None:
            return 0
        found = self._sizes.get(die.offset)
        if found is None:
            self._sizes[die.offset] = 0  # what contains itself has no size
            found = die.integer(d.DW_AT_byte_size)
            if found is None:
                found = 8 if die.tag in _POINTERS else 0
                if die.tag == d.DW_TAG_ptr_to_member_type:
                    member = self.peeled(self.target(die))
                    # Itanium C++ ABI 2.3: a pointer to member function is a pointer and an adjustment.
                    found = 16 if member is not None and member.tag == d.DW_TAG_subroutine_type else 8
                elif die.tag == d.DW_TAG_array_type:
                    found = self.size(self.target(die))
                    for count in self.bounds(die):
                        found *= count or 0
            self._sizes[die.offset] = found
        return found

    def bit_offset(self, member: Die) -> int:
        """Where a member begins, in bits from the start of what holds it (DWARF 5, 5.7.6; 4, 5.5.6)."""
        bits = member.integer(d.DW_AT_data_bit_offset)
        if bits is not None:
            return bits
        base = (member.integer(d.DW_AT_data_member_location) or 0) * 8
        from_top, width = member.integer(d.DW_AT_bit_offset), member.integer(d.DW_AT_bit_size)
        if from_top is None or width is None:
            return base
        # Version 2 style: counted from the most significant bit of the storage unit, which is little-endian here.
        storage = member.integer(d.DW_AT_byte_size) or self.size(self.target(member))
        return base + storage * 8 - (_signed(from_top) + width)


def naming(info: DebugInfo) -> Naming:
    """The naming of an object's types; one instance an object."""
    found = info.memo.get("naming")
    if not isinstance(found, Naming):
        found = info.memo["naming"] = Naming(info)
    return found


def _join(scope: str, name: str) -> str:
    return f"{scope}::{name}" if scope else name


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _base(die: Die) -> str:
    """A base type by encoding and size, so that `long`, `long long` and any typedef of them are one."""
    encoding, size = die.integer(d.DW_AT_encoding), die.integer(d.DW_AT_byte_size) or 0
    if encoding in (d.DW_ATE_signed, d.DW_ATE_signed_char) and size in _INTEGERS:
        return _INTEGERS[size]
    if encoding in (d.DW_ATE_unsigned, d.DW_ATE_unsigned_char) and size in _INTEGERS:
        return "unsigned " + _INTEGERS[size]
    if encoding == d.DW_ATE_boolean:
        return "bool" if size == 1 else f"bool{size * 8}"
    name = die.text(d.DW_AT_name)
    if encoding == d.DW_ATE_float and size in _FLOATS and name not in ("__float128", "_Float128"):
        return _FLOATS[size]
    return name or f"(encoding {encoding}, {size} bytes)"
