"""Random layouts, without a compiler: each field of the new object has the old one's value, whatever moved."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from katana_cc.dwarf.forms import Encoding, Form
from katana_cc.dwarf.types import Member, TypeKind, TypeLayout
from katana_cc.transform.between import between_types
from katana_cc.transform.execute import apply
from katana_cc.transform.inverse import invert
from katana_cc.transform.losses import losses
from katana_cc.transform.model import Transformation
from katana_cc.transform.places import field_at, pointers

NAMES = tuple("abcdefgh")


@dataclass(frozen=True)
class Field:
    """A number, a pointer, or an array of them; `count` 0: no array."""

    encoding: Encoding
    size: int
    count: int

    @property
    def text(self) -> str:
        kind = "char *" if self.encoding is Encoding.POINTER else f"{self.encoding}{self.size}"
        return f"{kind}[{self.count}]" if self.count else kind


NUMBERS = st.builds(
    Field, st.sampled_from([Encoding.SIGNED, Encoding.UNSIGNED]), st.sampled_from([1, 2, 4, 8]), st.just(0)
)
FIELDS = st.builds(
    lambda f, count: replace(f, count=count),
    NUMBERS | st.just(Field(Encoding.POINTER, 8, 0)),
    st.just(0) | st.integers(1, 9),
)


def laid_out(fields: list[tuple[str, Field]]) -> TypeLayout:
    """As C lays out a struct: each field at the next multiple of its alignment."""
    at, members = 0, []
    for name, f in fields:
        at += -at % f.size
        size = f.size * (f.count or 1)
        bounds: tuple[int | None, ...] = (f.count,) if f.count else ()
        form = Form(f.encoding, f.size, bounds, "char" if f.encoding is Encoding.POINTER else "")
        members.append(Member(name, at * 8, None, size, f.text, "", 1, form))
        at += size
    return TypeLayout("s", TypeKind.STRUCT, at + -at % 8, tuple(members), (), (), "s.h", 1)


@st.composite
def changes(draw: st.DrawFn) -> tuple[dict[str, Field], dict[str, Field], list[str], list[str]]:
    """(old fields, new fields, their order in the old struct, in the new one)."""
    old = draw(st.dictionaries(st.sampled_from(NAMES), FIELDS, min_size=1))
    new = {}
    for name, f in old.items():
        if draw(st.integers(0, 5)):
            number = draw(NUMBERS) if f.encoding is not Encoding.POINTER and draw(st.booleans()) else f
            count = draw(st.integers(1, 9)) if f.count else 0
            new[name] = replace(f, encoding=number.encoding, size=number.size, count=count)
    new |= draw(st.dictionaries(st.sampled_from([n for n in NAMES if n not in old] or ["z"]), FIELDS, max_size=3))
    return old, new, draw(st.permutations(sorted(old))), draw(st.permutations(sorted(new)))


def values(layout: TypeLayout, data: bytes) -> dict[str, list[int]]:
    """The numbers in each field."""
    return {
        m.name: [
            int.from_bytes(
                data[at : at + m.form.element_size], "little", signed=m.form.encoding is Encoding.SIGNED
            )
            for at in range(m.offset, m.offset + m.size, m.form.element_size)
        ]
        for m in layout.members
    }  # fmt: skip


def converted(value: int, f: Field) -> int:
    """As C converts to a number of another type."""
    low = value & (1 << f.size * 8) - 1
    return low - (1 << f.size * 8) if f.encoding is Encoding.SIGNED and low >> f.size * 8 - 1 else low


@settings(max_examples=120)
@given(changes(), st.data())
def test_every_field_keeps_its_value_wherever_it_goes(
    change: tuple[dict[str, Field], dict[str, Field], list[str], list[str]], data: st.DataObject
) -> None:
    old_fields, new_fields, old_order, new_order = change
    old, new = laid_out([(n, old_fields[n]) for n in old_order]), laid_out([(n, new_fields[n]) for n in new_order])
    made = between_types("s", {"s": old}, "s", {"s": new}, {("s", n): "" for n in NAMES})
    assert isinstance(made, Transformation), made
    live = data.draw(st.binary(min_size=old.size, max_size=old.size))
    initial = data.draw(st.binary(min_size=new.size, max_size=new.size))
    there = apply(made, live, initial)
    before, after, fresh = values(old, live), values(new, there), values(new, initial)
    for name, f in new_fields.items():
        carried = [converted(v, f) for v in before.get(name, [])[: len(after[name])]]
        assert after[name] == carried + fresh[name][len(carried) :]
    # And back: what no loss is told of has its old value.
    told = {x.field.partition("[")[0] for x in losses(made, live, live)}
    again = values(old, apply(invert(made), there, live))
    assert {n for n in before if again[n] != before[n]} <= told
    kept = {n for n in old_fields if n in new_fields and old_fields[n].encoding is Encoding.POINTER}
    assert {p.path.partition("[")[0] for p in pointers(made)} == kept
    for m in new.members:
        assert field_at(made, m.offset, new=True).partition("[")[0] == m.name
