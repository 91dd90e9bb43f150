"""Damaged, foreign and forged patch objects: always InvalidPatchError, never another exception."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katana_cc.elf.writer import write_relocatable
from katana_cc.errors import InvalidPatchError
from katana_cc.patch import codec
from katana_cc.patch.model import FORMAT_VERSION, PatchObject, Verdict
from tests.support.patches import IDENTITY, sample

DATA = codec.encode(sample())
SMALL = codec.encode(PatchObject(IDENTITY, Verdict.SAFE, sample().reasons[:1]))


def test_every_truncation_is_recognised() -> None:
    for size in range(len(DATA)):
        with pytest.raises(InvalidPatchError):
            codec.decode(DATA[:size], "x")


def test_every_flipped_bit_is_recognised() -> None:
    damaged = bytearray(DATA)
    for bit in range(len(DATA) * 8):
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidPatchError):
            codec.decode(bytes(damaged), "x")
        damaged[bit // 8] ^= 1 << bit % 8


def test_appended_bytes_are_recognised() -> None:
    with pytest.raises(InvalidPatchError):
        codec.decode(DATA + b"\0", "x")


def _decode_forged(data: bytes) -> None:
    """A forger computes the digest himself: the structure must still be checked, and only this error may come."""
    with contextlib.suppress(InvalidPatchError):
        codec.decode(codec.seal(data), "x")


@pytest.mark.parametrize(
    "mask", [pytest.param(0x01, marks=pytest.mark.rest), pytest.param(0x80, marks=pytest.mark.rest), 0xFF]
)
def test_every_forged_byte_is_decoded_or_refused(mask: int) -> None:
    forged = bytearray(DATA)
    for at in range(len(DATA)):
        forged[at] ^= mask
        _decode_forged(bytes(forged))
        forged[at] ^= mask


def test_every_forged_truncation_is_decoded_or_refused() -> None:
    for size in range(len(DATA)):
        _decode_forged(DATA[:size])


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(DATA) - 8), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_forged_words_are_decoded_or_refused(edits: list[tuple[int, bytes]]) -> None:
    forged = bytearray(DATA)
    for at, word in edits:
        forged[at : at + len(word)] = word
    _decode_forged(bytes(forged))


@pytest.mark.parametrize("words", [b"{}", b"[1]", b'[{"code":1}]', b"[" * 100_000, b"\xff", b'[{"line":1e999}]'])
def test_forged_reasons_are_refused(words: bytes) -> None:
    text = "x" * 100_000
    data = codec.encode(PatchObject(IDENTITY, Verdict.SAFE, (replace(sample().reasons[0], text=text),)))
    start = data.index(b'[{"code"')
    size = data.index(b"}]", start) + 2 - start
    with pytest.raises(InvalidPatchError):
        codec.decode(codec.seal(data[:start] + words.ljust(size) + data[start + size :]), "x")


def test_a_later_format_version_is_named_with_what_to_do() -> None:
    later = DATA.replace(b"Katana patch 8 ", b"Katana patch 9 ", 1)
    with pytest.raises(InvalidPatchError, match="version 9") as caught:
        codec.decode(codec.seal(later), "x.kpo")
    assert str(FORMAT_VERSION) in caught.value.what
    assert re.search("version 9", caught.value.remedy)


def test_a_version_of_two_digits_is_named() -> None:
    at = DATA.index(b"Katana patch 8 ")
    later = DATA[:at] + b"Katana patch 12 " + DATA[at + 16 :]
    with pytest.raises(InvalidPatchError, match="version 12"):
        codec.decode(later, "x.kpo")


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n", bytes(4096), write_relocatable(62, [], [])])
def test_what_is_no_patch_object_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidPatchError, match="not a patch object"):
        codec.decode(data, "x")


def test_a_rule_of_the_model_is_asked_of_a_file_too() -> None:
    """A forged file with a digest of its own whose function has no new symbol."""
    at = DATA.index(b".katana.functions")
    forged = DATA[:at] + b".katana.functionz" + DATA[at + 17 :]
    with pytest.raises(InvalidPatchError, match=r"unknown section|sections \.katana\.functions"):
        codec.decode(codec.seal(forged), "x")
