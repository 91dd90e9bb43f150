"""Composition of patches made by hand: edits that meet, and what cannot be told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import pytest

from katana_cc.elf import constants as c
from katana_cc.errors import RefusedError
from katana_cc.patch.addresses import AddressMap, Altered, Lying, Named, Shape, Stretch
from katana_cc.patch.codec import decode, encode
from katana_cc.patch.compose import compose
from katana_cc.patch.model import (
    DataEdit,
    Hook,
    HookKind,
    Identity,
    PatchObject,
    PatchRelocation,
    PatchSection,
    PatchSymbol,
    Verdict,
)

IDS = ("aa" * 20, "bb" * 20, "cc" * 20)
MOVED = 0x100  # everything of v2 lies so much further than in v1
AT = 0x4000  # in v1
Made = tuple[DataEdit, bytes, bytes]  # an edit, the old and the new contents
TABLE = AddressMap((Stretch(AT + MOVED, 0x100, AT),))


def edit_of(at: int, before: bytes, after: bytes, *, offer: bool = False, taken: bool = False) -> Made:
    """An edit, and what it is about."""
    return DataEdit(f"at{at & 0xFF:x}", at, 0, 0, offer, taken), before, after


def patch(step: int, edits: Iterable[Made], addresses: AddressMap = TABLE) -> PatchObject:
    """The first (0) or the second step, of nothing but edits; of one that is before, after is the same: a condition."""
    sections: list[PatchSection] = []
    made = []
    for e, before, after in edits:
        kind = c.SHT_PROGBITS
        sections.append(PatchSection(".katold", kind, 0, 8, before, len(before)))
        if before != after:
            sections.append(PatchSection(".katnew", kind, 0, 8, after, len(after)))
        made.append(replace(e, expected=len(sections) - (1 if before == after else 2), replacement=len(sections) - 1))
    identity = Identity("prog", c.EM_X86_64, IDS[step], IDS[step + 1], f"v{step + 1}", f"v{step + 2}")
    return PatchObject(identity, Verdict.SAFE, (), tuple(sections), data_edits=tuple(made), addresses=addresses)


def told(po: PatchObject) -> list[tuple[int, bytes, bytes]]:
    """Address, old and new contents of each edit."""
    assert decode(encode(po), "composed") == po
    return sorted((e.address, po.sections[e.expected].data, po.sections[e.replacement].data) for e in po.data_edits)


def both(first: Iterable[Made], second: Iterable[Made]) -> PatchObject:
    return compose(patch(0, first), patch(1, second))


def test_edits_of_different_places_are_both_there() -> None:
    po = both([edit_of(AT, b"aa", b"AA")], [edit_of(AT + MOVED + 8, b"bb", b"BB")])
    assert told(po) == [(AT, b"aa", b"AA"), (AT + 8, b"bb", b"BB")]


def test_edits_of_one_place_lead_from_the_first_to_the_last() -> None:
    """A bug: what is expected is what no process of v1 has."""
    assert told(both([edit_of(AT, b"aa", b"bb")], [edit_of(AT + MOVED, b"bb", b"cc")])) == [(AT, b"aa", b"cc")]


def test_what_is_taken_back_is_no_edit() -> None:
    assert told(both([edit_of(AT, b"aa", b"bb")], [edit_of(AT + MOVED, b"bb", b"aa")])) == []


def test_a_part_of_the_first_changes_on() -> None:
    po = both([edit_of(AT, b"aaaa", b"bbbb")], [edit_of(AT + MOVED + 1, b"bb", b"cc")])
    assert told(po) == [(AT, b"aaaa", b"bccb")]


def test_the_second_edits_more_than_the_first() -> None:
    po = both([edit_of(AT + 1, b"aa", b"bb")], [edit_of(AT + MOVED, b"xbbx", b"yccy")])
    assert told(po) == [(AT, b"xaax", b"yccy")]


def test_parts_that_overlap_are_refused() -> None:
    with pytest.raises(RefusedError, match="both patches edit parts of it"):
        both([edit_of(AT, b"aaaa", b"bbbb")], [edit_of(AT + MOVED + 2, b"bbxx", b"cccc")])


def test_offers_meet_offers_and_edits_meet_edits() -> None:
    """A variable with a new initial value in both steps, one pointer in it rewritten by the second.  A bug: the pointer
    is an offer, or the initial value holds the old pointer."""
    first = [edit_of(AT, b"aaaa", b"bbbb", offer=True)]
    second = [edit_of(AT + MOVED, b"bbbb", b"ccPc", offer=True), edit_of(AT + MOVED + 2, b"b", b"P")]
    po = both(first, second)
    assert [(e.is_initialiser, len(po.sections[e.expected].data)) for e in po.data_edits] == [(True, 4), (False, 1)]
    assert told(po) == [(AT, b"aaaa", b"ccPc"), (AT + 2, b"a", b"P")]


def test_an_offer_of_the_first_holds_what_the_second_edits() -> None:
    po = both([edit_of(AT, b"aaaa", b"bbbb", offer=True)], [edit_of(AT + MOVED + 2, b"b", b"P")])
    assert told(po) == [(AT, b"aaaa", b"bbPb"), (AT + 2, b"a", b"P")]


def test_an_offer_of_the_second_expects_what_the_first_found() -> None:
    po = both([edit_of(AT + 2, b"a", b"P")], [edit_of(AT + MOVED, b"aaPa", b"xxPx", offer=True)])
    assert told(po) == [(AT, b"aaaa", b"xxPx"), (AT + 2, b"a", b"P")]


@pytest.mark.parametrize("first", [True, False])
def test_initial_values_asked_for_by_one_source_only_are_refused(first: bool) -> None:
    with pytest.raises(RefusedError, match="asks for its new initial value"):
        both(
            [edit_of(AT, b"aa", b"bb", offer=True, taken=first)],
            [edit_of(AT + MOVED, b"bb", b"cc", offer=True, taken=not first)],
        )


def test_an_initial_value_that_the_first_source_asks_for_stays_so() -> None:
    po = both([edit_of(AT, b"aa", b"bb", offer=True, taken=True)], [edit_of(AT + MOVED + 8, b"x", b"y")])
    assert [(e.address, e.is_taken) for e in po.data_edits] == [(AT, True), (AT + 8, False)]


def test_a_condition_stays_one() -> None:
    po = both([edit_of(AT, b"aa", b"aa")], [edit_of(AT + MOVED + 8, b"bb", b"bb")])
    assert [e.is_condition for e in po.data_edits] == [True, True]


def test_edits_of_places_that_are_not_told_are_refused() -> None:
    with pytest.raises(RefusedError, match="does not tell where it is"):
        both([edit_of(AT, b"aa", b"bb")], [edit_of(AT + MOVED + 0xFF, b"bb", b"cc")])
    altered = replace(TABLE, altered=(Altered(AT + MOVED + 4, Shape((), bytes(32))),))
    with pytest.raises(RefusedError, match="leaves it as it was"):
        compose(patch(0, [], altered), patch(1, [edit_of(AT + MOVED, b"bbbbbbbb", b"cccccccc")]))
    fixed = replace(TABLE, fixed=(0,))
    with pytest.raises(RefusedError, match="addresses of the build in between"):
        compose(patch(0, [edit_of(AT, b"a", b"b")]), patch(1, [edit_of(AT + MOVED + 8, b"b", b"c")], fixed))


def pointing(to: PatchSymbol) -> PatchObject:
    """A second step that has a pointer, which is to lead to something that exists."""
    po = patch(1, [edit_of(AT + MOVED, bytes(8), b"x" + bytes(7))])
    new = replace(po.sections[1], data=bytes(8), relocations=(PatchRelocation(0, 1, 0, 4),))
    return replace(po, sections=(po.sections[0], new), symbols=(to,))


def existing(name: str, value: int, kind: int = c.STT_OBJECT) -> PatchSymbol:
    return PatchSymbol(name, c.STB_GLOBAL, kind, None, value, 8)


def test_what_exists_is_where_the_old_build_has_it() -> None:
    po = compose(patch(0, []), pointing(existing("there", AT + MOVED + 0x20)))
    assert po.symbols == (existing("there", AT + 0x20),)
    po = compose(patch(0, []), pointing(existing(f"old.{AT + MOVED + 0x20:x}", AT + MOVED + 0x20)))
    assert po.symbols[0].name == f"old.{AT + 0x20:x}"


@pytest.mark.parametrize("name", ["there", "_end", ""])
def test_what_the_linker_made_is_known_by_name(name: str) -> None:
    """The end of one thing is where the next begins.  A bug: it is taken for the next."""
    at = AT + MOVED + 0x20
    m = replace(TABLE, named=(Named(name, at, 0x77 if name == "_end" else 0),))
    if name == "_end":
        assert compose(patch(0, [], m), pointing(existing("_end", at))).symbols[0].value == 0x77
        assert compose(patch(0, [], m), pointing(existing("other", at))).symbols[0].value == AT + 0x20
    else:
        with pytest.raises(RefusedError, match="does not tell where"):
            compose(patch(0, [], m), pointing(existing("there", at)))


def test_thread_locals_have_a_map_of_their_own() -> None:
    m = replace(TABLE, thread=(Stretch(16, 8, 0),))
    assert compose(patch(0, [], m), pointing(existing("mine", 16, c.STT_TLS))).symbols[0].value == 0
    with pytest.raises(RefusedError, match="thread-local mine"):
        compose(patch(0, [], m), pointing(existing("mine", 8, c.STT_TLS)))


def carrying() -> PatchObject:
    """A first step that brings a variable, of which v1 knows nothing, at AT + 0x1000 in v2."""
    m = replace(TABLE, carried=(Lying(0, AT + 0x1000, 0),))
    variable = PatchSection(".data.v", c.SHT_PROGBITS, c.SHF_ALLOC | c.SHF_WRITE, 8, b"initial!", 8)
    po = patch(0, [], m)
    return replace(po, sections=(variable,), symbols=(PatchSymbol("v", c.STB_LOCAL, c.STT_OBJECT, 0, 0, 8),))


def test_what_the_first_brought_is_the_section_that_brings_it() -> None:
    po = compose(carrying(), pointing(existing("v", AT + 0x1000)))
    (field,) = po.sections[po.data_edits[0].replacement].relocations
    assert field.addend == 4
    target = po.symbols[field.symbol]
    assert target.section is not None
    assert po.sections[target.section].data == b"initial!"


def test_an_edit_of_what_the_first_brought_is_made_at_once() -> None:
    po = compose(carrying(), patch(1, [edit_of(AT + 0x1002, b"itia", b"XXXX")]))
    assert po.data_edits == ()
    assert po.sections == ()  # nothing uses it
    used = pointing(existing("v", AT + 0x1000))
    more = patch(1, [edit_of(AT + 0x1002, b"itia", b"XXXX")])
    sections = (*used.sections, *more.sections)
    late = replace(more.data_edits[0], expected=2, replacement=3)
    po = compose(carrying(), replace(used, sections=sections, data_edits=(*used.data_edits, late)))
    assert [s.data for s in po.sections if s.name == ".data.v"] == [b"inXXXXl!"]


@pytest.mark.parametrize("side", ["both", "first", "second"])
def test_hooks_are_of_one_step(side: str) -> None:
    hook = Hook(HookKind.BEFORE, "fill", 0)
    code = PatchSection(".text.h", c.SHT_PROGBITS, c.SHF_ALLOC | c.SHF_EXECINSTR, 16, b"\xc3", 1)
    symbol = PatchSymbol("h", c.STB_LOCAL, c.STT_FUNC, 0, 0, 1)
    first, second = (
        replace(patch(n, []), sections=(code,), symbols=(symbol,), hooks=(hook,) if side in ("both", which) else ())
        for n, which in enumerate(("first", "second"))
    )
    if side == "both":
        with pytest.raises(RefusedError, match=r"functions of the user's to run \(fill"):
            compose(first, second)
        return
    po = compose(first, second)
    assert [(h.kind, h.name) for h in po.hooks] == [(HookKind.BEFORE, "fill")]
    assert po.symbols[po.hooks[0].symbol].name == "h"


def test_builds_that_do_not_meet_are_named() -> None:
    with pytest.raises(RefusedError) as caught:
        compose(patch(0, []), patch(0, []))
    assert f"leads to prog v2 ({IDS[1]})" in caught.value.what
    assert f"starts from prog v1 ({IDS[0]})" in caught.value.what


def test_releases_and_builds_are_those_of_both_ends() -> None:
    identity = both([edit_of(AT, b"a", b"b")], [edit_of(AT + MOVED + 8, b"b", b"c")]).identity
    assert (identity.from_build_id, identity.to_build_id) == (IDS[0], IDS[2])
    assert (identity.from_release, identity.to_release) == ("v1", "v3")


def test_the_digest_of_blanked_code_is_written_and_read() -> None:
    """As a file, with the rules of the format."""
    from tests.support.patches import sample

    po = sample()
    assert po.replacements[0].ranges[0][3] == ((1, 4), (12, 4))
    assert decode(encode(po), "x").replacements == po.replacements
    assert hashlib.sha256(encode(po)).digest() == hashlib.sha256(encode(decode(encode(po), "x"))).digest()
