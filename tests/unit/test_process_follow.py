"""Which words are pointers by their type, which nothing explains: on made-up objects."""

from __future__ import annotations

import struct

from katana_cc.dwarf.forms import Encoding
from katana_cc.process.follow import Edited, Finding, Leads, Passage, back, elsewhere, forth, held_by, spared
from katana_cc.process.moves import Move
from katana_cc.process.words import Word
from katana_cc.transform.model import Copy, Dropped, Initial, Integer, Pointer, Repeat, Transformation

U = Encoding.UNSIGNED
ITEM = Transformation(
    "item", 40, 48,
    (
        Integer(0, 64, U, 0, 32, U, "count", "count"),
        Pointer(8, 8, "struct item", "next", "next"),
        Integer(16 * 8, 64, U, 16 * 8, 64, U, "number", "number"),
        Initial(24 * 8, 64, "fresh"),
        Copy(32, 24, 8, "either", "either"),
        Dropped(32 * 8, 64, "gone"),
    ),
)  # fmt: skip
ODD = Transformation("odd", 9, 9, (Copy(0, 0, 1, "c", "c"), Pointer(1, 1, "struct item", "p", "p")))
SHELF = Transformation(
    "shelf", 24, 24, (Repeat(2, 0, 8, 0, 8, (Pointer(0, 0, "void"),), "all[]", "all[]"), Copy(16, 16, 8, "n", "n"))
)
OLD, NEW, ODD_AT, SHELF_AT = 0x5555_5000_1000, 0x5555_4000_2000, 0x5555_5000_2001, 0x5555_5000_3000
MOVES = (
    Move(ITEM, OLD, NEW, bytes(48), True),
    Move(ODD, ODD_AT, ODD_AT),
    Move(SHELF, SHELF_AT, SHELF_AT),
)
NOTHING = Edited(())


def told(found: list[Finding]) -> list[tuple[str, str, int | None, int | None, bool]]:
    """(field, where it leads, what it becomes, where that is written, whether it is explained)."""
    return [(f.field, str(f.lead), f.lead.moved, f.new_address, f.is_explained) for f in found]


def test_words_in_an_object_that_moves() -> None:
    """A pointer goes to its new place; a number and a union may hold one; what is gone is left behind."""
    item, *_ = passages = forth(MOVES)
    content = struct.pack("<iiQQQQ", 1, 0, OLD, OLD + 8, OLD + 16, OLD)
    assert sorted(told(list(held_by(item, content, Leads(passages), NOTHING)))) == [
        ("either", "item.number", NEW + 16, NEW + 32, False),
        ("next", "item", NEW, NEW + 8, True),
        ("number", "item.next", NEW + 8, NEW + 16, False),
    ]


def test_a_word_across_fields_cannot_be_carried() -> None:
    item, *_ = passages = forth(MOVES)
    content = bytearray(40)
    struct.pack_into("<Q", content, 20, OLD)
    assert told(list(held_by(item, bytes(content), Leads(passages), NOTHING))) == []
    shifted = Passage(ITEM, OLD + 4, NEW, bytes(48), None, False, True)
    (found,) = held_by(shifted, bytes(content), Leads(passages), NOTHING)
    assert (found.new_address, found.is_explained) == (None, False)


def test_pointers_of_a_packed_struct_are_seen_where_they_are() -> None:
    _, odd, _ = passages = forth(MOVES)
    (found,) = held_by(odd, b"x" + struct.pack("<Q", OLD + 4), Leads(passages), NOTHING)
    assert (found.word, found.is_explained) == (Word(ODD_AT + 1, OLD + 4), True)
    assert found.lead.moved is None, "the padding after `count` is nowhere"


def test_words_in_an_object_that_stays() -> None:
    _, _, shelf = passages = forth(MOVES)
    content = struct.pack("<QQQ", OLD + 40, OLD + 24, OLD + 32)
    assert told(list(held_by(shelf, content, Leads(passages), NOTHING))) == [
        ("all[1]", "item.either", NEW + 32, SHELF_AT + 8, True),
        ("n", "item.gone", None, SHELF_AT + 16, False),
    ]


def test_what_an_edit_replaces_is_the_edits() -> None:
    _, _, shelf = passages = forth(MOVES)
    content = struct.pack("<QQQ", OLD, OLD, OLD)
    edited = Edited([(SHELF_AT + 8, SHELF_AT + 16), (SHELF_AT + 20, SHELF_AT + 24)])
    fields = [f.field for f in held_by(shelf, content, Leads(passages), edited)]
    assert fields == ["all[0]", "n"]
    words = [Word(SHELF_AT + 8, OLD), Word(0x1000, OLD)]
    assert [f.word.address for f in elsewhere(words, Leads(passages), edited)] == [0x1000]


def test_the_way_back_leads_from_the_new_objects() -> None:
    item, _, shelf = passages = back(MOVES)
    assert (item.source, item.destination, item.may_drop, item.is_followed) == (NEW, OLD, False, True)
    content = struct.pack("<QQQ", NEW + 32, OLD, NEW + 24)
    assert told(list(held_by(shelf, content, Leads(passages), NOTHING))) == [
        ("all[0]", "item.either", OLD + 24, SHELF_AT, True),
        ("n", "item.fresh", None, SHELF_AT + 16, False),
    ]


def test_both_places_of_an_object_need_no_search() -> None:
    assert spared(forth(MOVES)) == spared(back(MOVES))
    assert (NEW, NEW + 48) in spared(forth(MOVES))
