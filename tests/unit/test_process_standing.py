"""How patches of one build stand together, and what is written where one takes the place of another."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from katana_cc.process.ledger import Ledger, MemoryEdit
from katana_cc.process.phases import Bytes, Phase
from katana_cc.process.standing import WithoutPatches, runs, standings
from katana_cc.process.succession import exchanged
from tests.unit.test_process_ledger import example

ORIGINAL = b"aaaa....bbbb....cccc...."
FIRST, SECOND = 0x7000_0000, 0x7100_0000


class Memory:
    """Bytes from address 0x1000 on; any other address can be read, and holds nothing."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def read(self, address: int, size: int) -> bytes:
        """As of a target."""
        start = address - 0x1000
        return bytes(self.data[start : start + size]) if 0 <= start < len(self.data) else bytes(size)

    def write(self, edit: MemoryEdit) -> None:
        """Only over what is expected."""
        assert self.read(edit.address, len(edit.expected)) == edit.expected
        at = edit.address - 0x1000
        self.data[at : at + len(edit.replacement)] = edit.replacement


def patch(base: int, state: Phase, **edits: bytes) -> Ledger:
    """A patch that replaces runs of a letter."""
    made = [
        MemoryEdit(name, 0x1000 + ORIGINAL.index(name.encode()), name.encode() * len(new), new, True)
        for name, new in edits.items()
    ]
    return dataclasses.replace(
        example(), base=base, state=state, edits=tuple(made), moves=(), kinds=(), patch_id=f"{base:032x}"
    )


def first(state: Phase) -> Ledger:
    """It replaces a and b."""
    return patch(FIRST, state, a=b"1111", b=b"1111")


def second(state: Phase) -> Ledger:
    """It replaces b and c."""
    return patch(SECOND, state, b=b"2222", c=b"2222")


OLD_STATE = b"1111....1111....cccc...."
NEW_STATE = b"aaaa....2222....2222...."


def test_edits_are_written_as_a_whole() -> None:
    """Two jumps may share bytes.  A bug: between two writes a jump leads half to the one patch, half to the other."""
    one, other = patch(FIRST, Phase.APPLIED, b=b"1a1b"), patch(SECOND, Phase.MAPPED, b=b"2a2b")
    memory = Memory(ORIGINAL.replace(b"bbbb", b"1a1b"))
    (edit,) = exchanged(memory, [one], other.edits)
    assert (edit.expected, edit.replacement) == (b"1a1b", b"2a2b")
    assert exchanged(memory, [one], patch(SECOND, Phase.MAPPED, b=b"1a1b").edits) == ()


def test_exchange_makes_of_one_what_the_other_would_be_alone() -> None:
    """A bug: what only the old patch edits stays."""
    memory = Memory(OLD_STATE)
    for edit in exchanged(memory, [first(Phase.APPLIED)], second(Phase.MAPPED).edits):
        memory.write(edit)
    assert bytes(memory.data) == NEW_STATE
    for edit in exchanged(memory, [second(Phase.APPLIED)], first(Phase.REVERTED).edits):
        memory.write(edit)
    assert bytes(memory.data) == OLD_STATE


def test_every_moment_of_an_exchange_can_be_finished_both_ways_and_undone() -> None:
    """A katana may be killed after any write.  A bug: the bytes are taken for someone else's, or for all there."""
    edits = exchanged(Memory(OLD_STATE), [first(Phase.APPLIED)], second(Phase.MAPPED).edits)
    assert len(edits) == 3
    for count in range(len(edits) + 1):
        memory = Memory(OLD_STATE)
        for edit in edits[:count]:
            memory.write(edit)
        here = [first(Phase.REVERTING), second(Phase.COMMITTING)]
        found = standings(memory, here)
        expected = {0: (Bytes.NEW, Bytes.OLD), len(edits): (Bytes.OLD, Bytes.NEW)}.get(count, (Bytes.TORN, Bytes.TORN))
        assert (found[FIRST], found[SECOND]) == expected
        for wanted, final in (((), ORIGINAL), (here[0].edits, OLD_STATE), (here[1].edits, NEW_STATE)):
            again = Memory(bytes(memory.data))
            for edit in exchanged(again, here, wanted):
                again.write(edit)
            assert bytes(again.data) == final


@pytest.mark.parametrize("at", [0, 8, 16])
def test_a_strange_byte_is_told_in_every_place(at: int) -> None:
    """A bug: a breakpoint that a debugger set meanwhile is written over."""
    memory = Memory(b"1111....2222....cccc....")
    memory.data[at] = 0xCC
    found = standings(memory, [first(Phase.REVERTING), second(Phase.COMMITTING)])
    assert set(found.values()) == {Bytes.FOREIGN}


@pytest.mark.parametrize(("there", "applied"), [(OLD_STATE, FIRST), (NEW_STATE, SECOND)])
def test_states_that_were_not_written_do_no_harm(there: bytes, applied: int) -> None:
    """The state words are the first and the last that is written: any of them may be behind."""
    states = (Phase.APPLIED, Phase.REVERTING, Phase.REVERTED), (Phase.MAPPED, Phase.COMMITTING, Phase.APPLIED)
    for one, other in itertools.product(*states):
        is_possible = (
            (one is not Phase.REVERTED and other is not Phase.APPLIED)
            if applied == FIRST
            else (one is not Phase.APPLIED and other is not Phase.MAPPED)
        )
        if not is_possible:
            continue
        found = standings(Memory(there), [first(one), second(other)])
        assert {base for base, how in found.items() if how is Bytes.NEW} == {applied}, (one, other)
        assert set(found.values()) == {Bytes.NEW, Bytes.OLD}


def test_patch_whose_edits_are_part_of_anothers_is_not_applied_with_it() -> None:
    """A bug: both are said to be applied, and a revert takes back one of them."""
    small, large = patch(FIRST, Phase.REVERTED, b=b"2222"), second(Phase.APPLIED)
    assert standings(Memory(NEW_STATE), [small, large]) == {FIRST: Bytes.OLD, SECOND: Bytes.NEW}
    small, large = patch(FIRST, Phase.APPLIED, b=b"2222"), second(Phase.MAPPED)
    there = b"aaaa....2222....cccc...."
    assert standings(Memory(there), [small, large]) == {FIRST: Bytes.NEW, SECOND: Bytes.OLD}


def test_data_that_moves_is_written_before_the_edits() -> None:
    """A bug: the edits are as before, and so nobody looks at variables that are half moved."""
    moves = example().moves
    going, coming = first(Phase.REVERTING), second(Phase.COMMITTING)
    moving = dataclasses.replace(coming, moves=moves)
    assert set(standings(Memory(OLD_STATE), [going, moving]).values()) == {Bytes.TORN}
    assert standings(Memory(NEW_STATE), [going, moving]) == {FIRST: Bytes.OLD, SECOND: Bytes.NEW}
    # It stays where it is if both have the same layout for it.
    both = [dataclasses.replace(going, moves=moves), moving]
    assert standings(Memory(OLD_STATE), both) == {FIRST: Bytes.NEW, SECOND: Bytes.OLD}
    # On the way back.
    back = [first(Phase.COMMITTING), dataclasses.replace(second(Phase.REVERTING), moves=moves)]
    assert set(standings(Memory(NEW_STATE), back).values()) == {Bytes.TORN}
    assert standings(Memory(OLD_STATE), back) == {FIRST: Bytes.NEW, SECOND: Bytes.OLD}


def test_memory_is_seen_as_it_would_be_without_a_patch() -> None:
    """A bug: a range that begins in the midst of an edit shows new bytes."""
    view = WithoutPatches(Memory(OLD_STATE), [first(Phase.APPLIED)])
    assert view.read(0x1000, len(ORIGINAL)) == ORIGINAL
    assert view.read(0x1002, 8) == ORIGINAL[2:10]
    assert WithoutPatches(Memory(OLD_STATE), []).read(0x1000, 4) == b"1111"


def test_addresses_make_up_ranges() -> None:
    assert runs([7, 3, 4, 9, 8]) == [(3, 2), (7, 3)]
    assert runs([]) == []
