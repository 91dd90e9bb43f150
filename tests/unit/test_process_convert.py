"""Objects on the heap made anew, in made-up memory: against the same done one by one."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest

from katana_cc.dwarf.forms import Encoding
from katana_cc.process.convert import Converted, ObjectLeads, convert
from katana_cc.process.follow import Edited
from katana_cc.process.moves import Kind
from katana_cc.process.places import Imagined, Placement, place
from katana_cc.process.reachable import Found, Reached
from katana_cc.transform.execute import apply
from katana_cc.transform.inverse import invert
from katana_cc.transform.model import Dropped, Initial, Integer, Pointer, Transformation

HEAP = 0x5581_0000_1010
NODE = Transformation(
    "struct node", 32, 48,
    (
        Initial(0, 64, "fresh"),
        Integer(64, 64, Encoding.SIGNED, 0, 32, Encoding.SIGNED, "key", "key"),
        Pointer(16, 8, "struct node", "next", "next"),
        Pointer(24, 16, "void", "data", "data"),
        Pointer(32, 24, "int", "number", "number"),
        Initial(320, 64, "more"),
    ),
)  # fmt: skip
TABLE = Transformation("struct node *", 8, 8, (Pointer(0, 0, "struct node"),))
SMALL = Transformation(
    "struct small", 16, 16,
    (
        Initial(0, 32, "fresh"),
        Integer(32, 32, Encoding.SIGNED, 0, 32, Encoding.SIGNED, "key", "key"),
        Pointer(8, 8, "struct small", "next", "next"),
        Dropped(32, 32, "gone"),
    ),
)  # fmt: skip


class Memory:
    """One piece."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def piece(self, address: int) -> tuple[int, memoryview]:
        """As of a heap."""
        if not HEAP <= address < HEAP + len(self.data):
            raise LookupError
        return HEAP, memoryview(self.data)

    def put(self, address: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", self.data, address - HEAP, *words)


def done(
    memory: Memory, objects: Sequence[Found], kinds: Sequence[Kind], spare: dict[int, list[int]]
) -> tuple[Placement, Converted]:
    """The objects placed and converted."""
    reached = Reached(tuple(k.transformation for k in kinds), (), tuple(objects), ())
    placement = place(reached, spare)
    leads = ObjectLeads((), kinds, placement)
    return placement, convert(reached, kinds, placement, leads, memory, Edited(()))


def found(address: int, type_: int, elements: int, size: int) -> Found:
    return Found(address, type_, elements, size, -1, 0, True)


@pytest.mark.parametrize("seed", range(20))
def test_all_at_once_is_as_one_by_one(seed: int) -> None:
    """Lists in random order of memory, and a table of some of their nodes."""
    random.seed(seed)
    count = random.randrange(1, 60)
    places = random.sample([HEAP + 48 * n for n in range(100)], count)
    table = HEAP + 48 * 100
    spare = [HEAP + 6000 + 64 * n for n in range(count)]
    memory = Memory(bytes(6000 + 64 * 60))
    for at in places:
        memory.put(at, random.randrange(1 << 32), random.choice((0, *places)), 0, random.choice((0, 0x1234)))
    entries = [random.choice((0, *places)) for _ in range(20)]
    memory.put(table, *entries)
    objects = [found(at, 0, 1, 40) for at in places] + [found(table, 1, 20, 168)]
    random.shuffle(objects)
    placement, converted = done(memory, objects, (Kind(NODE), Kind(TABLE)), {48: spare})
    assert placement.is_complete
    assert placement.wanted == {48: count}
    assert converted.findings == ()
    new_of = dict(zip((f.address for f in placement.objects), placement.news, strict=True))
    assert sorted(new_of) == sorted(places)
    after = Memory(bytes(memory.data))
    for address, before, data in converted.writes:
        at = address - HEAP
        assert bytes(memory.data[at : at + len(before)]) == before
        after.data[at : at + len(data)] = data
    for old, new in new_of.items():
        expected = bytearray(apply(NODE, bytes(memory.data[old - HEAP : old - HEAP + 32]), bytes(48)))
        (following,) = struct.unpack_from("<Q", expected, 16)
        struct.pack_into("<Q", expected, 16, new_of.get(following, following))
        assert after.data[new - HEAP : new - HEAP + 48] == expected
        assert after.data[old - HEAP : old - HEAP + 32] == memory.data[old - HEAP : old - HEAP + 32]
    there = struct.unpack_from("<20Q", after.data, table - HEAP)
    assert list(there) == [new_of.get(entry, entry) for entry in entries]


def test_pointers_to_other_things_and_into_the_middle_are_findings() -> None:
    memory = Memory(bytes(400))
    one, two, new_one, new_two = HEAP, HEAP + 48, HEAP + 96, HEAP + 160
    memory.put(one, 1, two, two, two)  # `data` may be anything; `number` leads to a key, which becomes wider
    memory.put(two, 2, 0, 0, one + 8)
    objects = [found(one, 0, 1, 40), found(two, 0, 1, 40)]
    _, converted = done(memory, objects, (Kind(NODE),), {48: [new_one, new_two]})
    data, number, inside = converted.findings
    assert (data.is_explained, data.new_address, data.lead.moved) == (True, new_one + 24, new_two)
    assert (number.is_explained, number.new_address, number.lead.moved) == (True, new_one + 32, None)
    assert (inside.is_explained, inside.new_address, inside.lead.moved) == (True, new_two + 32, new_one + 16)


def test_address_in_a_number_is_no_pointer() -> None:
    memory = Memory(bytes(400))
    memory.put(HEAP, HEAP + 48)
    number = Transformation("struct id", 8, 8, (Integer(0, 64, Encoding.SIGNED, 0, 64, Encoding.SIGNED, "n", "n"),))
    objects = [found(HEAP, 1, 1, 24), found(HEAP + 48, 0, 1, 40)]
    _, converted = done(memory, objects, (Kind(NODE), Kind(number)), {48: [HEAP + 96]})
    (finding,) = converted.findings
    assert (finding.is_explained, finding.word.address, finding.lead.moved) == (False, HEAP, HEAP + 96)


def test_object_stays_where_just_as_many_have_room() -> None:
    """Else the block would seem to hold more of them afterwards."""
    memory = Memory(bytes(400))
    memory.put(HEAP, 5, HEAP)
    placement, converted = done(memory, [found(HEAP, 0, 1, 24)], (Kind(SMALL),), {})
    assert placement.news == [HEAP]
    assert converted.writes == ((HEAP, bytes(memory.data[:16]), struct.pack("<IIQ", 0, 5, HEAP)),)
    placement, _ = done(memory, [found(HEAP, 0, 2, 56)], (Kind(SMALL),), {32: [HEAP + 100]})
    assert placement.news == [HEAP + 100]


def test_too_few_new_blocks_are_counted() -> None:
    reached = Reached((NODE,), (), tuple(found(HEAP + 48 * n, 0, 1, 40) for n in range(5)), ())
    placement = place(reached, {48: [1 << 20]})
    assert not placement.is_complete
    assert placement.wanted == {48: 5}
    assert place(reached, Imagined()).is_complete


def test_values_that_go_are_told_or_lost() -> None:
    memory = Memory(bytes(96))
    memory.put(HEAP, 5 | 7 << 32, 0)
    memory.put(HEAP + 32, 6, 0)
    objects = [found(HEAP, 0, 1, 24), found(HEAP + 32, 0, 1, 24)]
    _, converted = done(memory, objects, (Kind(SMALL),), {})
    assert converted.lost == ()
    assert converted.dropped == (("struct small", f"at {HEAP:#x}: `gone` is 7, and there is no such field"),)
    _, converted = done(memory, objects, (Kind(SMALL, may_drop=False),), {})
    assert converted.lost == (f"struct small at {HEAP:#x}: `gone` is 7, and there is no such field",)
    assert converted.discardable == ("struct small",)


def test_value_that_does_not_fit_is_lost() -> None:
    back = invert(NODE)
    memory = Memory(bytes(96))
    memory.put(HEAP, 0, 1 << 40, 0, 0, 0, 0)
    _, converted = done(memory, [found(HEAP, 0, 1, 56)], (Kind(back),), {32: [HEAP + 64]})
    assert converted.lost == (f"struct node at {HEAP:#x}: `key` is {1 << 40}, which 32 signed bits do not hold",)
    assert converted.discardable == ()
