"""The codec of patch objects: what goes in comes out, and what breaks a rule does not get in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katana_cc.elf import constants as c
from katana_cc.elf.reader import ElfFile
from katana_cc.errors import InvalidPatchError
from katana_cc.patch import codec
from katana_cc.patch.layout import is_ours
from katana_cc.patch.model import (
    DataEdit,
    DataTransform,
    Hook,
    HookKind,
    Identity,
    PatchObject,
    PatchRelocation,
    PatchSection,
    PatchSymbol,
    Reason,
    Replacement,
    Verdict,
)
from tests.support.patches import IDENTITY, refused, sample
from tests.support.transforms import transformations

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
NAMES = TEXT.filter(lambda t: not is_ours(t))
DIGESTS = st.binary(min_size=32, max_size=32)
SECTION_TYPES = st.sampled_from([c.SHT_PROGBITS, c.SHT_NOTE, c.SHT_INIT_ARRAY, c.SHT_X86_64_UNWIND])
FLAGS = st.sampled_from([0, 2, 3, 6, 0x12, 0x32, 0x403])


@st.composite
def _sections(draw: st.DrawFn, symbols: int) -> PatchSection:
    alignment = draw(st.sampled_from([0, 1, 2, 8, 64]))
    if draw(st.integers(0, 4)) == 0:
        return PatchSection(draw(NAMES), c.SHT_NOBITS, draw(FLAGS), alignment, b"", draw(U64))
    data = draw(st.binary(max_size=40))
    relocations: list[PatchRelocation] = []
    if data and symbols:
        offsets = st.integers(0, len(data) - 1)
        one = st.builds(PatchRelocation, offsets, U32, st.integers(0, symbols - 1), I64)
        relocations = draw(st.lists(one, max_size=4))
    entry_size = draw(U64)
    return PatchSection(
        draw(NAMES), draw(SECTION_TYPES), draw(FLAGS), alignment, data, len(data), entry_size, tuple(relocations)
    )


@st.composite
def patch_objects(draw: st.DrawFn) -> PatchObject:
    """Any patch object that the model allows."""
    identity = Identity(draw(TEXT), c.EM_X86_64, *(draw(TEXT) for _ in range(4)))
    reasons = tuple(draw(st.lists(st.builds(Reason, TEXT, TEXT, TEXT, TEXT, I64, TEXT), max_size=3)))
    verdict = draw(st.sampled_from(Verdict))
    if verdict is Verdict.REFUSED:
        return PatchObject(identity, verdict, reasons)
    symbol_count, section_count = draw(st.integers(0, 6)), draw(st.integers(0, 5))
    sections = tuple(draw(_sections(symbol_count)) for _ in range(section_count))
    kinds = st.integers(0, 10)
    undefined = st.builds(
        PatchSymbol, TEXT.filter(bool), st.sampled_from([c.STB_GLOBAL, c.STB_WEAK]), kinds, st.none(), U64, U64
    )
    some = undefined
    if sections:
        places = st.integers(0, section_count - 1)
        some = undefined | st.builds(PatchSymbol, TEXT, st.just(c.STB_LOCAL), kinds, places, U64, U64)
    symbols = tuple(draw(some) for _ in range(symbol_count))
    replacements: tuple[Replacement, ...] = ()
    edits: tuple[DataEdit, ...] = ()
    if symbols:
        parts = st.lists(st.tuples(U64, U64, DIGESTS), max_size=2).map(tuple)
        one = st.builds(Replacement, TEXT, U64, U64, DIGESTS, st.integers(0, symbol_count - 1), parts)
        replacements = tuple(draw(st.lists(one, max_size=3)))
    if sections:
        places = st.integers(0, section_count - 1)
        edits = tuple(draw(st.lists(st.builds(DataEdit, TEXT, U64, places, places, st.booleans()), max_size=3)))
    addresses, numbers = st.integers(1, 2**64 - 1), st.integers(0, max(0, symbol_count - 1))
    types = st.builds(DataTransform, transformations(), begins=TEXT)
    variables = st.builds(DataTransform, transformations(), addresses, numbers)
    staying = st.builds(DataTransform, transformations().filter(lambda t: t.is_identity), addresses)
    some_data = types | staying
    transforms = tuple(draw(st.lists(variables | some_data if symbols else some_data, max_size=2)))
    return PatchObject(
        identity, verdict, reasons, sections, symbols, replacements, edits, reliances=(), transforms=transforms
    )


@settings(max_examples=300)
@given(patch_objects())
def test_whatever_is_encoded_decodes_to_the_same(po: PatchObject) -> None:
    assert codec.decode(codec.encode(po), "x") == po


def test_the_sample_uses_every_field() -> None:
    po = sample()
    assert all(
        (po.reasons, po.sections, po.symbols, po.replacements, po.data_edits, po.replacements[0].parts, po.transforms)
    )


def test_encoding_is_deterministic() -> None:
    assert codec.encode(sample()) == codec.encode(sample())


def test_a_refused_change_carries_its_reasons() -> None:
    assert codec.decode(codec.encode(refused()), "x") == refused()


def test_names_that_are_not_utf8_survive() -> None:
    odd = "caf\udce9.c"
    reason = Reason("function-changed", "info", odd, odd, 1, odd)
    identity = replace(IDENTITY, output=odd)
    po = replace(sample(), identity=identity, reasons=(reason,))
    assert codec.decode(codec.encode(po), "x") == po


def test_group_and_link_order_flags_are_dropped() -> None:
    section = PatchSection(".text.f", 1, 6 | c.SHF_GROUP | c.SHF_LINK_ORDER, 1, b"\xc3", 1)
    po = PatchObject(IDENTITY, Verdict.SAFE, (), (section,))
    assert codec.decode(codec.encode(po), "x").sections[0].flags == 6


def test_the_identity_is_the_digest_without_the_names_of_releases() -> None:
    nameless = codec.encode(replace(sample(), identity=replace(IDENTITY, from_release="", to_release="")))
    assert len(codec.patch_id(nameless)) == 32
    assert codec.patch_id(nameless).encode() in nameless
    assert codec.patch_id(codec.encode(sample())) == codec.patch_id(nameless)


def test_our_own_sections_are_never_mapped() -> None:
    elf = ElfFile(codec.encode(sample()))
    own = [s for s in elf.sections if is_ours(s.name)]
    assert len(own) == 17
    assert not any(s.flags & c.SHF_ALLOC for s in own)


def _section(**fields: Any) -> Callable[[PatchObject], PatchObject]:
    return lambda po: replace(po, sections=(replace(po.sections[0], **fields), *po.sections[1:]))


def _symbol(number: int, **fields: Any) -> Callable[[PatchObject], PatchObject]:
    return lambda po: replace(
        po, symbols=tuple(replace(s, **fields) if i == number else s for i, s in enumerate(po.symbols))
    )


def _function(**fields: Any) -> Callable[[PatchObject], PatchObject]:
    return lambda po: replace(po, replacements=(replace(po.replacements[0], **fields),))


def _handed(**changes: int) -> Callable[[PatchObject], PatchObject]:
    def change(po: PatchObject) -> PatchObject:
        first, *others = po.transforms
        made = first.handed[0]._replace(**changes)
        return replace(po, transforms=(replace(first, handed=(made,)), *others))

    return change


BROKEN: dict[str, Callable[[PatchObject], PatchObject]] = {
    "refused, yet carrying": lambda po: replace(po, verdict=Verdict.REFUSED),
    "machine": lambda po: replace(po, identity=replace(IDENTITY, machine=3)),
    "NUL in a name": lambda po: replace(po, identity=replace(IDENTITY, output="a\0b")),
    "NUL in a symbol": _symbol(0, name="a\0b"),
    "lone surrogate": lambda po: replace(po, identity=replace(IDENTITY, output="\ud800")),
    "section named like ours": _section(name=".katana.functions"),
    "section of a linker's type": _section(type=c.SHT_SYMTAB),
    "size of another length": _section(size=3),
    "contents without space": _section(type=c.SHT_NOBITS),
    "alignment": _section(alignment=3),
    "alignment beyond reason": _section(alignment=1 << 62),
    "relocation outside": _section(relocations=(PatchRelocation(4096, 1, 0, 0),)),
    "relocation for no symbol": _section(relocations=(PatchRelocation(0, 1, 99, 0),)),
    "addend too large": _section(relocations=(PatchRelocation(0, 1, 0, 2**63),)),
    "defined and global": _symbol(1, binding=c.STB_GLOBAL),
    "undefined and local": _symbol(0, binding=c.STB_LOCAL),
    "undefined without a name": _symbol(0, name=""),
    "symbol in no section": _symbol(1, section=99),
    "function without a symbol": _function(symbol=99),
    "digest too short": _function(digest=b"x"),
    "address too large": _function(address=2**64),
    "handed to no hook": _handed(hook=9),
    "handed to another kind of hook": _handed(hook=0),
    "handed back to no hook": _handed(back=2),
    "handed beyond the end": _handed(number=2),
    "handed before the start": _handed(old=-1),
    "hook without a symbol": lambda po: replace(po, hooks=(Hook(HookKind.AFTER, "x", 99),)),
    "hook of the old program": lambda po: replace(po, hooks=(Hook(HookKind.AFTER, "x", 4),)),
    "hook without a name": lambda po: replace(po, hooks=(Hook(HookKind.AFTER, "", 3),)),
    "edit of no section": lambda po: replace(po, data_edits=(DataEdit("x", 0, 99, 0),)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_rule_is_not_encoded(name: str) -> None:
    with pytest.raises(InvalidPatchError):
        codec.encode(BROKEN[name](sample()))


def test_hook_of_a_kind_that_nobody_knows_is_not_read() -> None:
    """A later katana.h.  A bug: the patch goes in without running it."""
    data = codec.encode(sample())
    elf = ElfFile(data)
    section = next(s for s in elf.sections if s.name == ".katana.hooks")
    forged = data[: section.offset + 8] + b"\x63" + data[section.offset + 9 :]
    with pytest.raises(InvalidPatchError, match="99 is not a valid HookKind"):
        codec.decode(codec.seal(forged), "x")


def test_another_patch_object_has_another_identity() -> None:
    other = replace(sample(), identity=replace(IDENTITY, to_build_id="00" * 20))
    assert codec.patch_id(codec.encode(other)) != codec.patch_id(codec.encode(sample()))
