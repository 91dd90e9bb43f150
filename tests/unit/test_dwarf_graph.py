"""Which types lead to which."""

from __future__ import annotations

from katana_cc.dwarf.forms import Encoding, Form
from katana_cc.dwarf.graph import TypeGraph
from katana_cc.dwarf.pointees import Pointee
from katana_cc.dwarf.types import Base, Member, TypeKind, TypeLayout


def member(
    name: str, offset: int, pointee: str = "", aggregate: str = "", bounds: tuple[int | None, ...] = ()
) -> Member:
    """A pointer, an aggregate, or a number."""
    encoding = Encoding.POINTER if pointee else Encoding.AGGREGATE if aggregate else Encoding.SIGNED
    text = f"{pointee} *" if pointee else f"struct {aggregate}" if aggregate else "long"
    return Member(name, offset * 8, None, 8, text, aggregate, 1, Form(encoding, 8, bounds, pointee))


def layout(name: str, *members: Member, kind: TypeKind = TypeKind.STRUCT, bases: tuple[Base, ...] = ()) -> TypeLayout:
    """A type, with as many bytes as matter."""
    return TypeLayout(name, kind, 8 * (len(members) + len(bases)), members, (), bases, "a.h", 1)


def graph(*layouts: TypeLayout, pointers: tuple[str, ...] = ()) -> TypeGraph:
    """Of one object; `pointers` are the texts of what its pointer types lead to."""
    known = {}
    for text in pointers:
        is_pointer = text.endswith("*")
        to = text.removesuffix(" *") if is_pointer else ""
        known[text] = Pointee(text, (), "" if is_pointer else text.partition(" ")[2], to, 8)
    return TypeGraph([({x.name: x for x in layouts}, known)])


NODE = layout("node", member("key", 0), member("next", 8, "struct node"))
LIST = layout("list", member("in", 0, aggregate="part"))
PART = layout("part", member("slots", 0, "struct node *"))
POINTERS = ("struct node", "struct node *", "struct list", "struct other")


def test_ways_lead_through_nested_structs_and_pointers_to_pointers() -> None:
    g = graph(NODE, LIST, PART, layout("other", member("name", 0, "char")), pointers=POINTERS)
    assert g.leading_to({"node"}) == {"struct node", "struct node *", "struct list"}
    assert g.held("list") == {"struct node *"}
    assert g.inside("list") == {"part"}


def test_bases_lead_as_fields_do() -> None:
    derived = layout("derived", member("n", 8), bases=(Base("struct part", 0),))
    g = graph(NODE, PART, derived, pointers=("struct node", "struct node *", "struct derived"))
    assert "struct derived" in g.leading_to({"node"})
    assert next(iter(g.beginning("struct derived"))) == "struct part"


def test_pointers_in_unions_and_open_arrays_are_hidden() -> None:
    either = layout("either", member("as", 0, "struct node"), member("n", 0), kind=TypeKind.UNION)
    tree = layout("tree", member("n", 0), member("of", 8, "struct node", bounds=(None,)))
    holder = layout("holder", member("u", 0, aggregate="either"))
    g = graph(NODE, either, tree, holder, pointers=("struct node", "struct holder", "struct tree"))
    assert g.leading_to({"node"}) == {"struct node"}
    assert [(h.text, h.is_value) for h in g.hidden("holder")] == [("struct node", False)]
    assert "`of` of struct tree" in g.hidden("tree")[0].where
    assert g.unions_first("holder") == ["either"]


def test_struct_that_holds_itself_ends() -> None:
    """Damaged debug information."""
    knot = layout("knot", member("in", 0, aggregate="knot"), member("p", 8, "struct knot"))
    g = graph(knot, pointers=("struct knot",))
    assert g.held("knot") == {"struct knot"}
    assert g.inside("knot") == {"knot"}
    assert "struct knot" in g.leading_to({"knot"})
    assert len(list(g.beginning("struct knot"))) < 5


def test_name_of_two_layouts_is_told() -> None:
    other = layout("node", member("key", 0))
    g = TypeGraph([({"node": NODE}, {}), ({"node": other}, {})])
    assert g.ambiguous == {"node"}
    g = TypeGraph([({"node": NODE, "node#2": other}, {})])
    assert g.ambiguous == {"node", "node#2"}
