"""Call-frame tables of transformations: what is written is read again, and nothing else is."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katana_cc.dwarf.forms import Encoding
from katana_cc.errors import FormatError
from katana_cc.transform.expressions import fetch, fetched
from katana_cc.transform.model import Copy, Dropped, Float, Initial, Integer, Pointer, Repeat, Transformation
from katana_cc.transform.rules import broken, ordered
from katana_cc.transform.table_reader import decode
from katana_cc.transform.tables import encode, labelled, labels
from tests.support.transforms import transformations

S, U, B = Encoding.SIGNED, Encoding.UNSIGNED, Encoding.BOOL
SAMPLE = Transformation(
    "struct s", 200, 300,
    ordered([
        Integer(0, 64, S, 0, 32, S, "fd", "fd"), Initial(64, 32, "flags"), Initial(99, 3, "bits"),
        Copy(14, 64, 8, "name", "name"), Integer(8 * 23 + 3, 5, S, 37, 61, S, "b", "b"),
        Integer(8 * 24, 8, B, 8 * 16, 32, S, "on", "on"),
        Float(32, 8, 20, 4, "d", "d"), Pointer(40, 24, "struct s", "next", "next"),
        Repeat(5, 56, 24, 72, 20, ordered(
            [Copy(0, 0, 4, "x", "x"), Pointer(8, 8, "char", "p", "p"), Dropped(130, 3, "z")]), "a[]", "a[]"),
        Dropped(1400, 200, "gone"),
    ]),
)  # fmt: skip


def read(data: bytes, given_: list[Transformation]) -> list[Transformation]:
    return [
        Transformation(t.name, t.old_size, f.new_size, labelled(f.steps, labels(t.steps)))
        for t, f in zip(given_, decode(data), strict=True)
    ]


def test_the_sample_keeps_the_rules() -> None:
    assert broken(SAMPLE) == []


@settings(max_examples=200)
@given(st.lists(transformations(), max_size=4))
def test_what_is_written_is_read_again(given_: list[Transformation]) -> None:
    assert read(encode(given_), given_) == given_


@pytest.mark.parametrize("signed", [False, True])
def test_every_number_has_one_expression_of_its_own(signed: bool) -> None:
    seen = set()
    for position in range(16):
        for bits in range(1, 65):
            made = fetch(position, bits, signed)
            assert fetched(made, signed) == (position, bits)
            seen.add(made)
    assert len(seen) == 16 * 64


def _forged(data: bytes) -> None:
    """Only this error may come, and what is accepted is what the writer would have written."""
    with contextlib.suppress(FormatError):
        assert encode([Transformation("", 0, f.new_size, f.steps) for f in decode(data)]) == data


def test_every_flipped_bit_is_read_or_refused() -> None:
    data = bytearray(encode([SAMPLE, SAMPLE]))
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        _forged(bytes(data))
        data[bit // 8] ^= 1 << bit % 8


def test_every_truncation_is_refused_with_section_and_offset() -> None:
    data = encode([SAMPLE])
    whole = len(encode([]))
    for size in range(len(data)):
        if size != whole:
            with pytest.raises(FormatError, match=r"^\.debug_frame: ") as caught:
                decode(data[:size])
            assert size < whole or "0x" in caught.value.what


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 150), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_forged_words_are_read_or_refused(edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(encode([SAMPLE]))
    for at, word in edits:
        data[at : at + len(word)] = word
    _forged(bytes(data))


def test_arrays_without_end_are_refused() -> None:
    """Nested deeper than any type is: no recursion error."""
    step = Copy(0, 0, 1)
    for _ in range(100):
        step = Repeat(1, 0, 1, 0, 1, (step,))  # type: ignore[assignment]
    with pytest.raises(FormatError, match="deep, at 0x"):
        decode(encode([Transformation("", 1, 1, (step,))]))


def test_too_few_names_are_refused() -> None:
    with pytest.raises(FormatError, match="fewer names"):
        labelled(SAMPLE.steps, iter([]))
