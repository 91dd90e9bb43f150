"""What a patch takes over from the one whose place it takes, and what it refuses to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katana_cc.errors import RefusedError
from katana_cc.patch.model import UNKNOWN, BroughtKind, NewLayout, PatchObject
from katana_cc.process.ledger import CodeRange, Ledger, Resident
from katana_cc.process.link import Heritage
from katana_cc.process.moves import Kind, Move
from katana_cc.process.succession import heritage, left_behind, refuse_other_moves, residents_of
from katana_cc.transform.model import Copy, Initial, Transformation
from tests.support.patches import sample
from tests.unit.test_process_ledger import example

BASE, EARLIER = 0x7200_0000, 0x7100_0000
SECTIONS = {1: 0x1000, 2: 0x2000, 3: 0x2040}


def patch() -> PatchObject:
    """It brings the function `parse.o: helper` and the variables `fresh` and `zeroes`."""
    po = sample()
    return replace(po, brought=(*po.brought[:2], po.brought[2]._replace(digest=b"z" * 32)))


def ledger(**changes: object) -> Ledger:
    """Of an earlier patch that brought the same."""
    residents = residents_of(patch(), EARLIER, SECTIONS)
    data = tuple(CodeRange(r.name, r.address, r.size) for r in residents if r.kind is BroughtKind.VARIABLE)
    known = {"residents": residents, "data": data, "moves": (), "kinds": (), "layouts": (), "edits": ()}
    return replace(example(), **{**known, **changes})  # type: ignore[arg-type]


def test_what_both_bring_keeps_its_place() -> None:
    found = heritage(patch(), [ledger()], "pid 1")
    assert found == Heritage({2: EARLIER + 0x2000, 3: EARLIER + 0x2040}, {1: EARLIER + 0x1000})
    again = residents_of(patch(), BASE, SECTIONS, found)
    assert again == ledger().residents
    assert heritage(patch(), [], "pid 1") == Heritage()


def other(index: int, **fields: object) -> tuple[Resident, ...]:
    """The residents, one of them otherwise."""
    residents = list(ledger().residents)
    residents[index] = residents[index]._replace(**fields)  # type: ignore[arg-type]
    return tuple(residents)


BAD: dict[str, tuple[dict[str, object], str]] = {
    "earlier katana": ({"is_named": False}, "an earlier katana applied it"),
    "variable without a name": ({"residents": ()}, "it brought the variable fresh, and does not tell which"),
    "type": (
        {"residents": other(1, digest=b"y" * 32)},
        "fresh, which that patch brought, is of another type",
    ),
    "size": ({"residents": other(1, size=4)}, "is of another type"),
    "unknown": ({"residents": other(1, digest=UNKNOWN)}, "it cannot be told whether the variable fresh is the one"),
    "kind": ({"residents": other(0, kind=BroughtKind.CONSTANT)}, "was a constant and is a function now"),
    "place": ({"residents": other(0, name="other.o: helper")}, "it cannot be told whether parse.o: helper is other.o"),
    "alignment": ({"residents": other(2, address=EARLIER + 8), "data": ()}, "has another alignment now"),
    "layout": ({"layouts": (NewLayout("struct conn", b"c" * 32),)}, "struct conn is laid out otherwise"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_taken_over_is_refused(name: str) -> None:
    """A bug: a live value is lost, or read as something else."""
    changes, why = BAD[name]
    with pytest.raises(RefusedError) as caught:
        heritage(patch(), [ledger(**changes)], "pid 1")
    assert why in caught.value.what
    assert "take that patch out first" in caught.value.remedy


def test_constant_of_another_size_is_made_anew() -> None:
    po = replace(patch(), brought=(patch().brought[1]._replace(kind=BroughtKind.CONSTANT),))
    there = ledger().residents[1]._replace(kind=BroughtKind.CONSTANT)
    assert heritage(po, [ledger(residents=(there,), data=())], "p").places == {2: EARLIER + 0x2000}
    assert heritage(po, [ledger(residents=(there._replace(size=16),), data=())], "p").places == {}


def test_what_only_the_earlier_one_brought_is_told() -> None:
    lone = ledger().residents[1]._replace(name="lone")
    assert left_behind([ledger(residents=(*ledger().residents, lone))], ledger()) == ["lone"]


GROWS = Transformation("head", 4, 8, (Copy(0, 0, 4, "n", "n"), Initial(32, 32, "more")))
MOVE = Move(GROWS, 0x1000, 0x2000)


def test_layouts_of_live_data_are_the_same_or_refused() -> None:
    """A bug: an object is made anew from a layout that it has not."""
    bare = ledger(residents=(), data=())
    refuse_other_moves(patch(), [replace(bare, moves=(MOVE,))], [replace(MOVE, new=0x3000)], [], "p")
    refuse_other_moves(patch(), [bare], [MOVE], [], "p")
    refuse_other_moves(patch(), [ledger()], [], [], "p")
    refused: list[tuple[Ledger, list[Move], str]] = [
        (replace(bare, moves=(MOVE,)), [], "it gave head another layout"),
        (replace(bare, moves=(MOVE,)), [replace(MOVE, old=0x1008)], "it gave head another layout"),
        (replace(bare, kinds=(Kind(GROWS),)), [MOVE], "it gave head another layout"),
        (ledger(), [MOVE], "the variable fresh of that patch may lead there"),
        (replace(bare, edits=example().edits), [MOVE], "what it was before that patch edited table may lead there"),
    ]
    for leaving, moves, why in refused:
        with pytest.raises(RefusedError) as caught:
            refuse_other_moves(patch(), [leaving], moves, [], "p")
        assert why in caught.value.what
