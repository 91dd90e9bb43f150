"""What types are, as text: one canonical text and one size for each, equal in two builds when live data is.

The diff asks "is this the same type as before?", so a text must not depend on what means nothing for live data:

- typedefs are resolved through, qualifiers dropped, base types named by encoding and size: `size_t`, `const unsigned
  long` and `unsigned long long` are all `unsigned long`;
- named aggregates stand as their name (`struct request *`), which ends recursion: they have layouts of their own;
- so do anonymous ones that `naming` finds a name for; others are spelled out with offsets.

A type's text is built as (left, right) around the name that C would declare: ("int (*", ")[4]").
"""

from __future__ import annotations

import hashlib
from typing import Final

from katana_cc.dwarf import constants as d
from katana_cc.dwarf.dies import DebugInfo
from katana_cc.dwarf.naming import AGGREGATES, DEPTH_LIMIT, POINTERS, QUALIFIERS, naming
from katana_cc.dwarf.units import Die

_INTEGERS: Final = {1: "char", 2: "short", 4: "int", 8: "long", 16: "__int128"}
_FLOATS: Final = {2: "_Float16", 4: "float", 8: "double", 16: "long double"}
_TEXT_LIMIT: Final = 8192  # characters of a type's text


class Texts:
    """Texts, sizes and offsets of the types of one object.  Made by `texts`."""

    def __init__(self, info: DebugInfo) -> None:
        self._info = info
        self._names = naming(info)
        self._texts: dict[int, tuple[str, str]] = {}
        self._facts: dict[int, tuple[str, int, str]] = {}
        self._open: set[int] = set()
        self._sizes: dict[int, int] = {}

    def facts(self, die: Die | None) -> tuple[str, int, str]:
        """(canonical text, size in bytes, name of the aggregate it holds by value or "") of a type."""
        if die is None:
            return "void", 0, ""
        found = self._facts.get(die.offset)
        if found is None:
            inner = self._names.peeled(die, arrays=True)
            held = self._names.aggregate(inner) if inner is not None and inner.tag in AGGREGATES else ""
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
            if len(self._open) > DEPTH_LIMIT:
                raise self._names.endless(die)
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
        if tag == d.DW_TAG_typedef or tag in QUALIFIERS:
            return self._parts(self._names.target(die))
        if tag in POINTERS:
            return self._around(self._names.target(die), POINTERS[tag])
        if tag == d.DW_TAG_base_type:
            return _base(die), ""
        if tag in AGGREGATES:
            name = self._names.aggregate(die)
            return (f"{AGGREGATES[tag]} {name}" if name else self._spelled(die)), ""
        if tag == d.DW_TAG_array_type:
            left, right = self._parts(self._names.target(die))
            bounds = "".join(f"[{'' if n is None else n}]" for n in self.bounds(die))
            vector = " __vector" if d.DW_AT_GNU_vector in die.attributes else ""
            return left + vector, bounds + right
        if tag == d.DW_TAG_subroutine_type:
            left, right = self._parts(self._names.target(die))
            return left, f"({self.parameters(die)}){right}"
        if tag == d.DW_TAG_ptr_to_member_type:
            holder = self._names.target(die, d.DW_AT_containing_type)
            name = self._names.aggregate(holder) if holder is not None else "?"
            return self._around(self._names.target(die), f"{name}::*")
        return die.text(d.DW_AT_name) or f"(DWARF tag {tag:#x})", ""

    def _around(self, inner: Die | None, star: str) -> tuple[str, str]:
        left, right = self._parts(inner)
        space = "" if left.endswith(("*", "&")) else " "
        shape = self._names.peeled(inner)
        if shape is not None and shape.tag in (d.DW_TAG_array_type, d.DW_TAG_subroutine_type):
            return f"{left}{space}({star}", f"){right}"
        return f"{left}{space}{star}", right

    def parameters(self, die: Die) -> str:
        """The parameter list of a function type or function, as texts."""
        result = []
        for child in self._info.children(die):
            if child.tag == d.DW_TAG_formal_parameter:
                holder = next((x for x in self._names.chain(child) if d.DW_AT_type in x.attributes), child)
                result.append(self.text(self._names.target(holder)))
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
        for member, label in self._names.members(die):
            bit = self.bit_offset(member)
            width = member.integer(d.DW_AT_bit_size)
            where = f"{bit // 8}" if width is None else f"{bit // 8}.{bit % 8}:{width}"
            left, right = self._parts(self._names.target(member))
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
        die = self._names.peeled(die)
        if die is None:
            return 0
        found = self._sizes.get(die.offset)
        if found is None:
            self._sizes[die.offset] = 0  # what contains itself has no size
            found = die.integer(d.DW_AT_byte_size)
            if found is None:
                found = 8 if die.tag in POINTERS else 0
                if die.tag == d.DW_TAG_ptr_to_member_type:
                    member = self._names.peeled(self._names.target(die))
                    # Itanium C++ ABI 2.3: a pointer to member function is a pointer and an adjustment.
                    found = 16 if member is not None and member.tag == d.DW_TAG_subroutine_type else 8
                elif die.tag == d.DW_TAG_array_type:
                    found = self.size(self._names.target(die))
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
        storage = member.integer(d.DW_AT_byte_size) or self.size(self._names.target(member))
        return base + storage * 8 - (_signed(from_top) + width)


def texts(info: DebugInfo) -> Texts:
    """The texts of an object's types; one instance an object."""
    found = info.memo.get("texts")
    if not isinstance(found, Texts):
        found = info.memo["texts"] = Texts(info)
    return found


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
