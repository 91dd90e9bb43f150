"""Objects on the heap, found by typed pointers in made-up memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katana_cc.process.reachable import Reached, Root, Trouble, WalkedType
from katana_cc.process.walk import walk
from katana_cc.transform.model import Copy, Initial, Pointer, Repeat, Step, Transformation
from tests.support.heaps import FOREIGN, HEAP, FakeHeap

# struct node { long key; struct node *next; }, which gains a field;
# struct tree { struct node *one; struct tree *two[2]; }, which stays.
NODE = Transformation(
    "struct node", 16, 24, (Copy(0, 0, 8, "key", "key"), Pointer(8, 8, "struct node", "next", "next"), Initial(128, 64))
)
TABLE = Transformation("struct node *", 8, 8, (Pointer(0, 0, "struct node"),))
TREE = Transformation(
    "struct tree",
    24,
    24,
    (
        Pointer(0, 0, "struct node", "one", "one"),
        Repeat(2, 8, 8, 8, 8, (Pointer(0, 0, "struct tree"),), "two[]", "two[]"),
    ),
)
TYPES = [WalkedType(t) for t in (NODE, TABLE, TREE)]
VARIABLES = 0x404000


def root(name: str, pointee: str, *values: int, address: int = VARIABLES) -> Root:
    """A variable that is a pointer, or an array of them."""
    size = 8 * len(values)
    steps: tuple[Step, ...] = (Pointer(0, 0, pointee),)
    if len(values) > 1:
        steps = (Repeat(len(values), 0, 8, 0, 8, steps, "[]", "[]"),)
    t = Transformation(name, size, size, steps, pointee + " *")
    return Root(t, address, struct.pack(f"<{len(values)}Q", *values))


def node(heap: FakeHeap, key: int = 0, next_: int = 0) -> int:
    """A node of its own."""
    made = heap.malloc(16)
    heap.put(made, "QQ", key, next_)
    return made


def found(reached: Reached) -> dict[int, tuple[str, int]]:
    """Address → (type, elements)."""
    return {f.address: (reached.types[f.type].name, f.elements) for f in reached.objects}


def from_head(
    heap: FakeHeap, head: int, pointee: str = "struct node", types: list[WalkedType] | None = None
) -> Reached:
    """A walk from one variable."""
    return walk(types or TYPES, [root("head", pointee, head)], heap, heap)


def trouble(reached: Reached) -> list[tuple[Trouble, str]]:
    """What is wrong, and by which path."""
    return [(p.trouble, p.path) for p in reached.problems]


def test_list_is_found_to_its_end() -> None:
    heap, last = FakeHeap(), 0
    made = [last := node(heap, n, last) for n in range(50)]
    reached = from_head(heap, last)
    assert found(reached) == dict.fromkeys(made, ("struct node", 1))
    assert reached.problems == ()
    assert reached.path_to(1) == "head->next"
    assert reached.path_to(49) == "head->next (x 49)"


def test_cycle_and_second_pointer_are_one_object() -> None:
    heap = FakeHeap()
    one, two = node(heap), node(heap)
    heap.put(one, "QQ", 1, two)
    heap.put(two, "QQ", 2, one)
    reached = walk(TYPES, [root("heads", "struct node", one, two, one)], heap, heap)
    assert found(reached) == {one: ("struct node", 1), two: ("struct node", 1)}
    assert [reached.path_to(n) for n in range(2)] == ["heads[0]", "heads[1]"]


def test_tree_is_found() -> None:
    heap = FakeHeap()
    leaves = [heap.malloc(24) for _ in range(4)]
    inner = [heap.malloc(24) for _ in range(2)]
    top = heap.malloc(24)
    held = [node(heap) for _ in range(7)]
    for at, children, one in zip([top, *inner], [inner, leaves[:2], leaves[2:]], held, strict=False):
        heap.put(at, "QQQ", one, *children)
    for at, one in zip(leaves, held[3:], strict=True):
        heap.put(at, "QQQ", one, 0, 0)
    reached = from_head(heap, top, "struct tree")
    assert {a for a, (name, _) in found(reached).items() if name == "struct node"} == set(held)
    assert reached.path_to(len(reached.objects) - 1) == "head->two[1]->two[1]->one"
    assert reached.problems == ()


def test_table_of_pointers_takes_its_length_from_its_block() -> None:
    heap = FakeHeap()
    table = heap.malloc(8 * 100)
    made = [node(heap) for _ in range(100)]
    heap.put(table, "100Q", *made)
    reached = from_head(heap, table, "struct node *")
    assert {a for a, (name, _) in found(reached).items() if name == "struct node"} == set(made)
    assert reached.path_to(1) == "head[0]"
    assert {reached.path_to(n) for n in range(1, 101)} == {f"head[{n}]" for n in range(100)}
    assert [f.is_sure for f in reached.objects] == [True, True] + [False] * 99


def test_left_over_entries_of_a_table_lead_nowhere() -> None:
    """Memory is given out with what it held: pointers to what was freed since, and no pointers at all."""
    heap = FakeHeap()
    table, one, gone = heap.malloc(8 * 4), node(heap), node(heap)
    heap.free(gone)
    heap.put(table, "4Q", one, gone, 12345, one + 8)
    reached = from_head(heap, table, "struct node *")
    assert {a for a, (name, _) in found(reached).items() if name == "struct node"} == {one}
    assert reached.problems == ()


def test_array_of_objects_takes_its_length_from_its_block() -> None:
    heap = FakeHeap()
    array, one = heap.malloc(16 * 9), node(heap)
    heap.put(array + 16 * 8, "QQ", 1, one)
    reached = from_head(heap, array)
    assert found(reached) == {array: ("struct node", 9), one: ("struct node", 1)}
    assert reached.path_to(1) == "head[8].next"


def test_array_in_a_mapping_of_its_own() -> None:
    heap = FakeHeap()
    array = heap.mapped(16 * 20000)
    reached = from_head(heap, array)
    ((_, elements),) = found(reached).values()
    assert 20000 <= elements < 20000 + 4096 // 16
    assert reached.problems == ()


def test_pointer_into_an_object_finds_no_other() -> None:
    heap = FakeHeap()
    array = heap.malloc(16 * 4)
    two = [root("head", "struct node", array), root("third", "struct node", array + 32, address=VARIABLES + 8)]
    for roots in (two, two[::-1]):
        reached = walk(TYPES, roots, heap, heap)
        assert found(reached) == {array: ("struct node", 4)}
        assert reached.problems == ()


def test_pointer_into_a_variable_is_not_its_affair() -> None:
    heap = FakeHeap()
    other = root("other", "struct node", 0, 0, address=VARIABLES + 64)
    reached = walk(TYPES, [root("head", "struct node", VARIABLES + 72), other], heap, heap)
    assert (reached.objects, reached.problems) == ([], ())


def test_types_that_the_patch_does_not_name_are_not_followed() -> None:
    heap = FakeHeap()
    reached = walk(TYPES, [root("name", "char", heap.malloc(100), FOREIGN)], heap, heap)
    assert (reached.objects, reached.problems) == ([], ())


# -- what cannot be followed -------------------------------------------------------------------------------------------


def test_pointer_to_freed_memory() -> None:
    heap = FakeHeap()
    gone = node(heap)
    heap.free(gone)
    reached = from_head(heap, node(heap, 1, node(heap, 2, gone)))
    assert trouble(reached) == [(Trouble.FREE, "head->next->next")]
    assert reached.problems[0].text == f"head->next->next ({gone:#x}) leads to memory that is free"
    assert reached.problems[0].pointee == "struct node"


@pytest.mark.parametrize("value", [FOREIGN, 1, HEAP + 8, 2**64 - 1])
def test_pointer_to_what_is_no_block(value: int) -> None:
    """A pool of the program's own, a stack, a number, the head of a chunk."""
    heap = FakeHeap()
    heap.malloc(16)
    assert trouble(from_head(heap, value)) == [(Trouble.NO_BLOCK, "head")]


def test_pointer_into_a_block_that_nothing_leads_to_the_start_of() -> None:
    heap = FakeHeap()
    pool = heap.malloc(400)
    reached = from_head(heap, pool + 32)
    assert trouble(reached) == [(Trouble.INSIDE, "head")]
    assert "32 bytes from its start" in reached.problems[0].text


def test_pointer_into_an_object_of_another_type() -> None:
    """What a transformed type lies in is transformed too, so it cannot be there."""
    heap = FakeHeap()
    tree = heap.malloc(24)
    roots = [root("head", "struct tree", tree), root("other", "struct node", tree + 8, address=VARIABLES + 8)]
    assert trouble(walk(TYPES, roots, heap, heap)) == [(Trouble.INSIDE, "other")]


def test_block_that_is_too_small() -> None:
    heap = FakeHeap()
    wide = Transformation("struct wide", 40, 48, (Copy(0, 0, 40, "all", "all"),))
    reached = from_head(heap, heap.malloc(16), "struct wide", [WalkedType(wide)])
    assert trouble(reached) == [(Trouble.CONTENTS, "head")]
    assert "a block of 24 bytes, too small for a struct wide (40 bytes)" in reached.problems[0].text


@pytest.mark.parametrize(("size", "more", "elements"), [(40, 0, 1), (40, 16, 1), (80, 0, 2), (200, 0, 5), (96, 0, 0)])
def test_block_with_room_for_more(size: int, more: int, elements: int) -> None:
    heap = FakeHeap()
    wide = Transformation("struct wide", 40, 48, (Copy(0, 0, 40, "all", "all"),))
    at = heap.malloc(size, more=more)
    reached = from_head(heap, at, "struct wide", [WalkedType(wide)])
    if elements:
        assert found(reached) == {at: ("struct wide", elements)}
        assert reached.problems == ()
    else:
        assert trouble(reached) == [(Trouble.CONTENTS, "head")]
        assert "which is more than one struct wide and no array of them" in reached.problems[0].text


def test_data_behind_a_single_object_is_no_array() -> None:
    """Text that a program keeps in the same block, as long as further objects by chance."""
    heap = FakeHeap()
    at = heap.malloc(16 * 5, fill=ord("x"))
    heap.put(at, "QQ", 1, 0)
    reached = from_head(heap, at)
    assert trouble(reached) == [(Trouble.NO_BLOCK, f"head[{n}].next") for n in range(1, 5)]


def test_second_type_for_one_block() -> None:
    heap = FakeHeap()
    at = heap.malloc(24)
    other = Transformation("struct other", 24, 32, (Copy(0, 0, 24, "all", "all"),))
    types = [*TYPES, WalkedType(other)]
    roots = [root("head", "struct tree", at), root("other", "struct other", at, address=VARIABLES + 8)]
    (problem,) = walk(types, roots, heap, heap).problems
    assert (problem.trouble, problem.path) == (Trouble.CONFLICT, "other")
    assert "says that a struct other is there, and another pointer says that it is a struct tree" in problem.text


@pytest.mark.parametrize("order", [1, -1])
def test_other_type_for_a_block_of_one_that_changes(order: int) -> None:
    """Its memory was freed, and given out again: a pointer that was left behind leads to it."""
    heap = FakeHeap()
    at = node(heap)
    other = WalkedType(Transformation("struct other", 16, 16, (Copy(0, 0, 16),)))
    roots = [root("head", "struct node", at), root("other", "struct other", at, address=VARIABLES + 8)]
    (problem,) = walk([*TYPES, other], roots[::order], heap, heap).problems
    assert problem.trouble is Trouble.CONFLICT


@pytest.mark.parametrize("order", [1, -1])
def test_pointer_to_bytes_or_to_a_number_of_an_object(order: int) -> None:
    heap = FakeHeap()
    at = node(heap)
    scalars = [
        WalkedType(Transformation(name, size, size, (Copy(0, 0, size),))) for name, size in (("char", 1), ("long", 8))
    ]
    roots = [
        root("bytes", "char", at, address=VARIABLES + 8),
        root("head", "struct node", at),
        root("key", "long", at, address=VARIABLES + 16),
    ]
    reached = walk([*TYPES, *scalars], roots[::order], heap, heap)
    assert found(reached) == {at: ("struct node", 1)}
    assert reached.problems == ()


# -- what begins with another ------------------------------------------------------------------------------------------

LINK = Transformation("struct link", 8, 8, (Pointer(0, 0, "struct link", "next", "next"),))
ITEM = Transformation(
    "struct item",
    32,
    48,
    (Pointer(0, 0, "struct link", "in.next", "in.next"), Copy(8, 8, 24, "rest", "rest"), Initial(256, 128, "fresh")),
)
LINKED = [WalkedType(LINK), WalkedType(ITEM, "struct link")]


@pytest.mark.parametrize("types", [LINKED, [WalkedType(LINK), WalkedType(ITEM)]], ids=["told", "seen"])
@pytest.mark.parametrize("order", [1, -1])
def test_larger_type_has_the_block(types: list[WalkedType], order: int) -> None:
    heap = FakeHeap()
    second = heap.malloc(32)
    first = heap.malloc(32)
    heap.put(first, "Q", second)
    roots = [
        root("links", "struct link", first),
        root("items", "struct item", first, second, address=VARIABLES + 8),
    ]
    reached = walk(types, roots[::order], heap, heap)
    assert found(reached) == {first: ("struct item", 1), second: ("struct item", 1)}
    assert reached.problems == ()


def test_block_that_may_be_of_the_larger_type() -> None:
    """Only a pointer to the first field leads there."""
    heap = FakeHeap()
    second, small = heap.malloc(32), heap.malloc(8)
    heap.put(second, "Q", small)
    reached = walk(LINKED, [root("links", "struct link", second)], heap, heap)
    ((kind, path),) = trouble(reached)
    assert (kind, path) == (Trouble.CONTENTS, "links")
    assert "a struct link or to a struct item that begins with one" in reached.problems[0].text


def test_small_block_is_of_the_small_type() -> None:
    heap = FakeHeap()
    small = heap.malloc(8)
    reached = walk(LINKED, [root("links", "struct link", small)], heap, heap)
    assert found(reached) == {small: ("struct link", 3)}
    assert reached.problems == ()


def test_type_that_leads_to_nothing_that_changes_raises_no_problem() -> None:
    heap = FakeHeap()
    leaf = WalkedType(Transformation("struct leaf", 8, 8, (Copy(0, 0, 8, "n", "n"),)))
    gone = heap.malloc(8)
    heap.free(gone)
    roots = [root("leaves", "struct leaf", gone, FOREIGN, 1), root("head", "struct node", node(heap), address=0x405000)]
    reached = walk([*TYPES, leaf], roots, heap, heap)
    assert [reached.types[f.type].name for f in reached.objects] == ["struct node"]
    assert reached.problems == ()


def test_many_problems_are_counted() -> None:
    heap = FakeHeap()
    reached = walk(TYPES, [root("heads", "struct node", *[FOREIGN] * 50)], heap, heap)
    assert len(reached.problems) == 21
    assert reached.problems[-1].text == "and 30 more pointers"


# -- any graph ---------------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[tuple[str, int]], list[list[int]], list[int]]:
    """(kind and number of elements of each object, what each of its pointers leads to, what the roots lead to); -1 is
    nothing.  Pointers lead to objects of the type they say."""
    kinds = draw(st.lists(st.tuples(st.sampled_from("nta"), st.integers(2, 6)), min_size=1, max_size=30))

    def target(wanted: str) -> int:
        fitting = [i for i, (k, _) in enumerate(kinds) if k in wanted]
        return draw(st.sampled_from([-1, *fitting]))

    edges = []
    for kind, count in kinds:
        if kind == "n":
            edges.append([target("n")])
        elif kind == "t":
            edges.append([target("n"), target("t"), target("t")])
        else:
            edges.append([target("n") for _ in range(count)])
    return kinds, edges, [target("n"), target("t"), target("a")]


@settings(max_examples=200)
@given(graphs())
def test_whatever_pointers_lead_to_is_found(graph: tuple[list[tuple[str, int]], list[list[int]], list[int]]) -> None:
    kinds, edges, heads = graph
    heap = FakeHeap()
    sizes = {"n": 16, "t": 24}
    places = [heap.malloc(sizes.get(kind, 8 * count)) for kind, count in kinds]

    def at(i: int) -> int:
        return places[i] if i >= 0 else 0

    for (kind, _), place, targets in zip(kinds, places, edges, strict=True):
        heap.put(place + (8 if kind == "n" else 0), f"{len(targets)}Q", *map(at, targets))
    reachable, waiting = set(), [i for i in heads if i >= 0]
    while waiting:
        i = waiting.pop()
        if i not in reachable:
            reachable.add(i)
            waiting += [j for j in edges[i] if j >= 0]
    names = {"n": "struct node", "t": "struct tree", "a": "struct node *"}
    roots = [
        root(k, names[k], at(i), address=VARIABLES + 8 * n) for n, (k, i) in enumerate(zip("nta", heads, strict=True))
    ]
    reached = walk(TYPES, roots, heap, heap)
    assert reached.problems == ()
    assert {a: name for a, (name, _) in found(reached).items()} == {places[i]: names[kinds[i][0]] for i in reachable}
