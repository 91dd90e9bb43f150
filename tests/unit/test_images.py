"""Predicted images: exact wherever the prediction is right, and only larger where it is wrong."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from katana_cc.cpu.extent import FROM_END, LONG
from katana_cc.snapshot.images import (
    Moves,
    difference,
    image_of,
    moves,
    moves_from_bytes,
    moves_to_bytes,
    pack,
    predict,
)

SIZE = 0x40  # of each section


@given(st.lists(st.lists(st.integers(0, 3000), unique=True), min_size=3, max_size=3), st.binary(max_size=4000))
def test_fields_and_image_are_read_as_they_were_packed(fields: list[list[int]], image: bytes) -> None:
    packed = pack(fields, image)
    assert image_of(packed) == image
    assert predict(packed, Moves(len(image), (), ())) == image
    assert difference(packed, image).endswith(bytes(len(image)))
    assert difference(difference(packed, image[::-1]), image[::-1]) == packed


def linked(places: dict[str, int], calls: dict[str, str]) -> tuple[bytes, list[list[int]]]:
    """An image at address 0x1000, offset 0: at the address of each section its name, a distance to another from the end
    of four bytes, and that one's address in eight; and where these fields are."""
    image = bytearray(max(places.values()) - 0x1000 + SIZE)
    fields: list[list[int]] = [[], [], []]
    for name, address in places.items():
        at = address - 0x1000
        image[at : at + 8] = name.encode().ljust(8)
        target = places[calls[name]]
        struct.pack_into("<iQ", image, at + 8, target - (address + 12), target)
        fields[FROM_END].append(at + 8)
        fields[LONG].append(at + 12)
    return bytes(image), fields


@pytest.mark.parametrize("seed", range(20))
def test_image_of_sections_that_moved_is_foretold_to_the_byte(seed: int) -> None:
    """A bug: a field corrected by the wrong distance, or a section copied to the wrong place."""
    chance = random.Random(seed)
    names = [f"f{n}" for n in range(chance.randrange(2, 40))]
    calls = {name: chance.choice(names) for name in names}
    old, new, before, after = {}, {}, 0x1000, 0x1000
    for name in names:
        old[name], new[name] = before, after
        before += SIZE
        after += SIZE + chance.choice([0, 0, 0, 16, 48])
    earlier, fields = linked(old, calls)
    later, _ = linked(new, calls)
    found = moves([(0x1000, 0, len(earlier))], [(0x1000, 0, len(later))], len(later), [(old[n], new[n]) for n in names])
    assert found is not None
    foretold = predict(pack(fields, earlier), found)
    for name in names:
        at = new[name] - 0x1000
        assert foretold[at : at + 20] == later[at : at + 20], name


@given(st.integers(0, 1 << 40), st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)), max_size=20))
def test_moves_are_read_as_they_were_written(size: int, pairs: list[tuple[int, int]]) -> None:
    found = moves([(0, 0, 1 << 40)], [(0, 0, 1 << 41)], size, pairs)
    assert found is not None
    assert moves_from_bytes(moves_to_bytes(found)) == found


@pytest.mark.parametrize("data", [b"", b"KIM1", b"KIM1" + b"\xff" * 12, b"ELF"])
def test_what_is_no_image_is_an_error_of_one_kind(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is"):
        image_of(data)


def test_moves_that_lead_outside_are_an_error() -> None:
    packed = pack([[], [], []], bytes(64))
    found = moves([(0, 0, 1 << 20)], [(0, 0, 1 << 20)], 64, [(0, 16)])
    assert found is not None
    with pytest.raises(ValueError, match="outside"):
        predict(packed, found)
    with pytest.raises(ValueError, match="size"):
        predict(packed, Moves(1 << 50, (), ()))
