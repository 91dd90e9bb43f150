"""Contexts of coroutines, found in pages that changed."""

from __future__ import annotations

from typing import cast

from katana_cc.cpu.native import contexts as cpu
from katana_cc.process.activity import Finder
from katana_cc.process.contexts import Contexts, can_be_found
from katana_cc.process.copies import PAGE
from katana_cc.process.memory import ProcessMemory

MARK = bytes.fromhex("7f03ffff 0000ffff ffffffff")
START = 0x5555_5555_0000


class Memory:
    """Stands in for ProcessMemory, and counts what it is asked for."""

    pid = 0

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked = 0

    def read(self, address: int, size: int) -> bytes:
        """Some of it."""
        self.asked += 1
        return self.data[address - START : address - START + size]


def test_own_context_is_found() -> None:
    """A bug: no context is known here, and nobody hears of it."""
    assert cpu is None or can_be_found()


def test_page_beside_one_that_changed_is_not_read_without_need() -> None:
    """A bug: each look at a process makes pages of memory that it has never touched."""
    data = bytearray(3 * PAGE)
    data[PAGE + 8 : PAGE + 8 + len(MARK)] = MARK
    data[2 * PAGE - 8 : 2 * PAGE - 8 + len(MARK)] = MARK
    memory = Memory(bytes(data))
    found = Contexts(cast(ProcessMemory, memory), cast(Finder, None))
    found.found_in(START, memoryview(data)[:PAGE])
    assert memory.asked == 0
    found.found_in(START + PAGE, memoryview(data)[PAGE : 2 * PAGE])
    assert memory.asked == 1, "there may be one across the end"
    assert found.marks == [START + PAGE + 8, START + 2 * PAGE - 8]
    found.found_in(START + PAGE, memoryview(bytes(PAGE)))
    assert found.marks == []
