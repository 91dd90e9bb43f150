"""The map of addresses of a patch: put together, asked, joined with another, written and read."""

from __future__ import annotations

import random

import pytest

from katana_cc.errors import FormatError
from katana_cc.patch.addresses import (
    NO_ADDRESSES,
    AddressMap,
    Altered,
    Lookup,
    Lying,
    Named,
    Shape,
    Stretch,
    blanked,
    decode,
    encode,
    gathered,
    inverted,
    joined,
    shape_of,
    united,
)

MAP = AddressMap(
    (Stretch(0x1000, 0x40, 0x1000), Stretch(0x1050, 0x10, 0x1040), Stretch(0x4000, 8, 0x5000)),
    (Stretch(0, 4, 8),),
    (Lying(3, 0x1040, 0x1050), Lying(7, 0x2000, 0)),
    (Named("", 0x3000, 0), Named("_end\udcff", 0x9000, 0x8FF0)),
    (Altered(0x1010, shape_of(b"abcdefgh", [(2, 3)])),),
    ((shape_of(b"xy", []), shape_of(b"abcdefgh", [(0, 4), (6, 2)])), ()),
    (0, 300),
)


def test_what_is_written_is_read() -> None:
    assert decode(encode(MAP)) == MAP
    assert encode(NO_ADDRESSES) == b""
    assert decode(b"") == NO_ADDRESSES


def test_every_cut_and_every_addition_is_found() -> None:
    data = encode(MAP)
    for end in range(1, len(data)):
        with pytest.raises(FormatError):
            decode(data[:end])
    with pytest.raises(FormatError, match="behind it"):
        decode(data + b"\0")


def test_a_number_without_end_is_refused() -> None:
    with pytest.raises(FormatError, match="too large"):
        decode(b"\xff" * 40)


def test_neighbours_that_moved_alike_are_one_with_their_padding() -> None:
    found = gathered([Stretch(32, 7, 16), Stretch(16, 10, 0), Stretch(48, 4, 48)], (), 16)
    assert found == (Stretch(16, 23, 0), Stretch(48, 4, 48))


def test_nothing_goes_across_what_is_not_known() -> None:
    """A bug: an address of what lies between two things is taken for an old one."""
    two = [Stretch(0, 8, 0), Stretch(16, 8, 16)]
    assert gathered(two, (), 16) == (Stretch(0, 24, 0),)
    assert gathered(two, [8], 16) == gathered(two, [12], 16) == tuple(two)
    assert gathered(two, [16], 16) == (Stretch(0, 24, 0),)  # behind the padding
    assert gathered(two, (), 7) == tuple(two)


def test_of_what_two_disagree_about_nothing_is_known() -> None:
    """Functions that a linker folded into one in one build only.  A bug: the last one wins."""
    found = Lookup(gathered([Stretch(0, 16, 0), Stretch(8, 16, 100), Stretch(20, 8, 20), Stretch(40, 4, 40)], (), 0))
    assert [found.old(at) for at in (0, 7, 8, 15, 16, 23, 24, 40)] == [0, 7, None, None, None, None, None, 40]
    assert gathered([Stretch(0, 8, 0), Stretch(0, 8, 64)], (), 0) == ()
    assert gathered([Stretch(0, 8, 64), Stretch(0, 16, 64), Stretch(4, 4, 68)], (), 0) == (Stretch(0, 16, 64),)


def test_an_address_at_the_end_of_a_stretch_is_not_in_it() -> None:
    known = Lookup(MAP.stretches)
    assert known.old(0x103F) == 0x103F
    assert known.old(0x1040) is None
    assert known.old(0xFFF) is None
    assert known.old(0x1050, 0x10) == 0x1040
    assert known.old(0x1050, 0x11) is None
    assert Lookup(()).old(0) is None


def test_two_maps_joined_answer_as_one_after_the_other() -> None:
    """Checked address by address, with maps that have nothing in common but their middle."""
    chance = random.Random(5)
    for _ in range(200):
        first, second = _some(chance), _some(chance)
        one, other, both = Lookup(first), Lookup(second), Lookup(joined(first, second))
        for at in range(400):
            middle = other.old(at)
            assert both.old(at) == (None if middle is None else one.old(middle))


def test_a_map_turned_round_leads_back() -> None:
    chance, exact = random.Random(6), 0
    for n in range(400):
        stretches = _some(chance, may_collide=bool(n % 2))
        there, back = Lookup(stretches), Lookup(inverted(stretches))
        claimed = [(at, old) for at in range(400) if (old := there.old(at)) is not None]
        is_exact = len({old for _, old in claimed}) == len(claimed)
        exact += is_exact
        for at, old in claimed:
            assert back.old(old) == at or (back.old(old) is None and not is_exact)
    assert exact > 200


def _some(chance: random.Random, *, may_collide: bool = True) -> tuple[Stretch, ...]:
    result, at, shift = [], 0, 0
    while at < 300:
        at += chance.randint(0, 20)
        size = chance.randint(1, 40)
        shift += chance.choice((0, 0, 16, 3))
        anywhere = chance.choice((at, at + 16, chance.randint(0, 300)))
        result.append(Stretch(at, size, anywhere if may_collide else at + shift))
        at += size
    return gathered(result, (), 0)


def test_pieces_are_those_within() -> None:
    known = Lookup(MAP.stretches)
    assert list(known.pieces(0x1030, 0x28)) == [Stretch(0x1030, 0x10, 0x1030), Stretch(0x1050, 8, 0x1040)]
    assert list(known.pieces(0x1040, 0x10)) == []


def test_shapes_are_alike_where_only_blanks_differ() -> None:
    """A bug: code linked elsewhere is taken for other code, or other code for the same."""
    assert shape_of(b"call1234ret", [(4, 4)]) == shape_of(b"call5678ret", [(4, 4)])
    assert shape_of(b"call1234ret", [(4, 4)]) != shape_of(b"jump1234ret", [(4, 4)])
    assert shape_of(b"abc", [(-2, 3), (1, 1), (2, 9)]) == Shape(((0, 3),), shape_of(bytes(3), [(0, 3)]).digest)


def test_blanks_are_united_and_cut_off() -> None:
    assert united([(8, 4), (0, 2), (1, 3), (10, 20)], 16) == ((0, 4), (8, 8))
    assert united([(20, 4)], 16) == ()
    assert blanked(b"abcdef", ((1, 2), (5, 1))) == b"a\0\0de\0"
