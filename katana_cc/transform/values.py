"""One value of the old object and one of the new, and the step that turns the one into the other.

C decides what is converted: numbers of any width and enums, by value; float and double.  Everything else is copied when
its type is the same, and refused when it is not: what a pointer turned into a number means, only a person can say.

Source: C11 6.3.1 (arithmetic conversions); DWARF 5, 5.7.6 (bit-fields).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from katana_cc.dwarf.forms import Encoding, Form
from katana_cc.dwarf.types import Member, TypeKind, TypeLayout
from katana_cc.transform.model import Copy, Float, Integer, Pointer, Step, joined
from katana_cc.transform.problems import Problem, ProblemKind
from katana_cc.transform.rules import BITS_LIMIT

Layouts = Mapping[str, TypeLayout]


@dataclass(frozen=True, slots=True)
class Value:
    """One side of a field.

    `path` from the whole (of an element: from the element), `bit` where it begins in what the steps count from, `owner`
    the aggregate that declares it, in words.  The rest is as in `katana_cc.dwarf.types.Member`.
    """

    path: str
    bit: int
    bit_size: int | None
    size: int
    type: str
    aggregate: str
    form: Form
    owner: str
    file: str
    line: int
    name: str = ""  # of the field itself, the last part of its path
    array: str = ""  # of an element: the path of its array, for sentences

    @property
    def label(self) -> str:
        """What to call it in a sentence."""
        return self.path or self.array

    @property
    def width(self) -> int:
        """Bits."""
        return self.size * 8 if self.bit_size is None else self.bit_size

    @property
    def in_words(self) -> str:
        """The type, for a sentence."""
        return self.type if self.bit_size is None else f"{self.type}:{self.bit_size}"

    @property
    def element(self) -> Value:
        """The first element of the array it is, positions counted from that element."""
        count = self.form.bounds[0] or 1
        inner = replace(self.form, bounds=self.form.bounds[1:])
        # "struct s[3][4]" -> "struct s[4]"; what is around the bounds ("int (*[3])[4]") stays as it is.
        text = self.type.replace(f"[{self.form.bounds[0]}]", "", 1)
        return replace(self, path="", bit=0, size=self.size // count, type=text, form=inner, array=f"{self.label}[]")


def member_value(member: Member, layout: TypeLayout, prefix: str, base: int) -> Value:
    """The value of a member of an aggregate that begins at bit `base`."""
    return Value(
        path=joined(prefix, member.name),
        bit=base + member.bit_offset,
        bit_size=member.bit_size,
        size=member.size,
        type=member.type,
        aggregate=member.aggregate,
        form=member.form,
        owner=f"{layout.kind} {layout.name}",
        file=layout.file,
        line=member.line or layout.line,
        name=member.name,
    )


def problem(kind: ProblemKind, at: Value, text: str) -> Problem:
    """A problem with a field."""
    return Problem(kind, at.owner, at.label, text, at.file, at.line)


def scalar(old: Value, new: Value, before: Layouts, after: Layouts) -> Step | Problem:
    """The step for a field that is neither array, struct nor union on either side."""
    kinds = old.form.encoding, new.form.encoding
    if kinds == (Encoding.POINTER, Encoding.POINTER):
        return _pointer(old, new)
    if old.form.is_integer and new.form.is_integer:
        return _enumerators(old, new, before, after) or _integer(old, new)
    if kinds == (Encoding.FLOAT, Encoding.FLOAT) and old.size != new.size:
        return Float(new.bit // 8, new.size, old.bit // 8, old.size, new.path, old.path)
    if old.type == new.type and old.size == new.size and old.bit_size == new.bit_size is None:
        return _copy(old, new)
    return changed(old, new)


def changed(old: Value, new: Value) -> Problem:
    """The refusal of a type that became another one."""
    text = f"{_field(new)} was {old.in_words}, is {new.in_words}: what the one means as the other is not known"
    return problem(ProblemKind.TYPE_CHANGED, new, text)


def _field(value: Value) -> str:
    return f"field `{value.label}` of {value.owner}" if value.label else value.owner


def _copy(old: Value, new: Value) -> Copy:
    return Copy(new.bit // 8, old.bit // 8, new.size, new.path, old.path)


def _pointer(old: Value, new: Value) -> Step | Problem:
    was, now = old.form.pointee, new.form.pointee
    opaque = "void" in (was, now) and not any(text.endswith(")") for text in (was, now))
    if was != now and not opaque:
        text = f"{_field(new)} pointed to {was}, points to {now}: what is there now is something else"
        return problem(ProblemKind.POINTEE_CHANGED, new, text)
    return Pointer(new.bit // 8, old.bit // 8, was, new.path, old.path)


def _integer(old: Value, new: Value) -> Step | Problem:
    truth = new.form.encoding is Encoding.BOOL and old.form.encoding is not Encoding.BOOL
    bytes_only = old.bit_size is None and new.bit_size is None
    if bytes_only and old.size == new.size and not truth:
        return _copy(old, new)
    if max(old.width, new.width) > BITS_LIMIT:
        text = f"{_field(new)} was {old.in_words}, is {new.in_words}: numbers beyond {BITS_LIMIT} bits are only copied"
        return problem(ProblemKind.NOT_SUPPORTED, new, text)
    return Integer(
        new=new.bit,
        new_bits=new.width,
        new_encoding=new.form.encoding,
        old=old.bit,
        old_bits=old.width,
        old_encoding=old.form.encoding,
        field=new.path,
        source=old.path,
    )


def _enumerators(old: Value, new: Value, before: Layouts, after: Layouts) -> Problem | None:
    """Where a live value of an enum would mean something else to the new program.

    An enumerator that came or went changes no value; one of the old that the new enum of another name does not know
    leaves open whether both mean the same.
    """
    if not (old.type.startswith("enum ") and new.type.startswith("enum ")):
        return None  # to and from numbers the value stands
    was, now = _enum(old, before), _enum(new, after)
    if was is None or now is None:
        if old.type == new.type:
            return None  # spelled out, with all its values
        text = f"{_field(new)} is an enum without a name, and not the same as before"
        return problem(ProblemKind.NO_LAYOUT, new, text)
    values = {e.name: e.value for e in now.enumerators}
    for e in was.enumerators:
        if e.name in values and values[e.name] != e.value:
            text = f"{_field(new)}: enumerator `{e.name}` of {new.type} was {e.value}, is {values[e.name]}"
            return problem(ProblemKind.ENUMERATORS_CHANGED, new, text)
        if e.name not in values and was.name != now.name:
            text = f"{_field(new)} was {old.type}, is {new.type}, which has no `{e.name}`"
            return problem(ProblemKind.ENUMERATORS_CHANGED, new, text)
    return None


def _enum(value: Value, layouts: Layouts) -> TypeLayout | None:
    found = layouts.get(value.aggregate)
    return found if found is not None and found.kind is TypeKind.ENUM else None
