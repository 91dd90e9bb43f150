"""What a stop compares and writes, against each edit by itself."""

from __future__ import annotations

import random

import pytest

from katana_cc.process.ledger import MemoryEdit
from katana_cc.process.script import Script, script

PAGE = 4096
BASE = 0x5555_0000_0000


class Memory:
    """Some pages of code."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def read(self, address: int, size: int) -> bytes:
        """As of a process."""
        return bytes(self.data[address - BASE : address - BASE + size])

    def write(self, address: int, data: bytes) -> None:
        """As of a process."""
        self.data[address - BASE : address - BASE + len(data)] = data


def holds(memory: Memory, made: Script) -> bool:
    """Whether the ranges hold what is expected."""
    return b"".join(memory.read(*r) for r in made.ranges) == made.expected


def jump(memory: Memory, at: int, size: int = 5) -> MemoryEdit:
    """A jump over what is there."""
    return MemoryEdit(f"f{at}", BASE + at, memory.read(BASE + at, size), b"\xe9" + bytes(size - 1), True)


@pytest.mark.parametrize("seed", range(20))
def test_same_bytes_as_one_edit_after_the_other(seed: int) -> None:
    """A bug: a byte between two jumps changes, or one is left out."""
    chance = random.Random(seed)
    memory = Memory(chance.randbytes(8 * PAGE))
    places = sorted(chance.sample(range(0, 8 * PAGE - 16, 16), chance.choice([1, 5, 300])))
    edits = []
    for at in places:
        edit = jump(memory, at + chance.randrange(11))
        is_data = not chance.randrange(4)
        edits.append(MemoryEdit("d", edit.address, edit.expected, b"datum", False) if is_data else edit)
    snapshot = [(e.address, e.expected) for e in edits]
    chance.shuffle(edits)
    made = script(memory, snapshot, edits)
    assert holds(memory, made)
    wanted = Memory(bytes(memory.data))
    for edit in edits:
        wanted.write(edit.address, edit.replacement)
    for write in made.writes:
        assert memory.read(write.address, len(write.before)) == write.before
        memory.write(write.address, write.after)
    assert memory.data == wanted.data
    for write in reversed(made.writes):
        memory.write(write.address, write.before)
    assert all(memory.read(e.address, len(e.expected)) == e.expected for e in edits)


def test_jumps_that_lie_close_are_one_write_for_each_page() -> None:
    """A bug: five thousand functions take five thousand system calls in the stop."""
    memory = Memory(bytes(range(256)) * 16 * 4)
    edits = [jump(memory, at) for at in range(0, 4 * PAGE, 32)]
    made = script(memory, [(e.address, e.expected) for e in edits], edits)
    assert len(made.writes) == 4
    assert len(made.ranges) == 1
    assert all(w.address // PAGE == (w.address + len(w.after) - 1) // PAGE for w in made.writes)


def test_jump_over_two_pages_is_written_by_itself() -> None:
    """A bug: a katana that is killed between two pages leaves the jumps before it, and a half of this one."""
    memory = Memory(bytes(2 * PAGE))
    edits = [jump(memory, at) for at in (PAGE - 40, PAGE - 2, PAGE + 20)]
    made = script(memory, [], edits)
    assert [(w.address - BASE, len(w.after)) for w in made.writes] == [(PAGE - 40, 5), (PAGE - 2, 5), (PAGE + 20, 5)]


def test_data_between_jumps_is_never_written_along() -> None:
    """A bug: what another process or a device writes there at that moment is lost."""
    memory = Memory(bytes(PAGE))
    data = MemoryEdit("d", BASE + 64, bytes(4), b"data", False)
    value = MemoryEdit("v", BASE + 128, bytes(4), b"valu", False, True)
    made = script(memory, [], [jump(memory, 32), data, jump(memory, 96), value])
    assert [len(w.after) for w in made.writes] == [5, 4, 5, 4]


@pytest.mark.parametrize("at", [0x100, 0x105, 0x130, 0x134])
def test_a_changed_byte_is_seen(at: int) -> None:
    """A bug: a span is written over what somebody else has written meanwhile."""
    memory = Memory(bytes(PAGE))
    edits = [jump(memory, 0x100), jump(memory, 0x130)]
    made = script(memory, [(e.address, e.expected) for e in edits], edits)
    assert holds(memory, made)
    memory.data[at] ^= 1
    assert not holds(memory, made)


def test_bytes_that_are_not_those_of_the_snapshot_are_expected_as_the_snapshot_says() -> None:
    """A bug: what changed between planning and the stop's preparation is taken for right."""
    memory = Memory(bytes(PAGE))
    snapshot = [(BASE + 0x100, b"12345"), (BASE + 0x110, bytes(5))]
    assert not holds(memory, script(memory, snapshot, []))
