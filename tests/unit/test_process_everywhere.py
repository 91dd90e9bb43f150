"""Words that lead into ranges, at any address, as glibc hides them too, across pages and as pages change."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from katana_cc.cpu.aarch64 import system as aarch64
from katana_cc.cpu.x86_64 import system as x86_64
from katana_cc.process import everywhere
from katana_cc.process.copies import BLOCK, PAGE
from katana_cc.process.everywhere import Hunt, Needles, Trace
from katana_cc.process.maps import MemoryMap, Region

START = 0x5555_5555_0000 & -BLOCK
SIZE = 2 * BLOCK + 3 * PAGE
RANGES = [(0x5555_4000_0000, 0x5555_4000_8000), (0x5555_4100_3000, 0x5555_4100_5000)]
GUARD = 0x1B2C_3D4E_5F60_7182
ANYWHERE = st.integers(0, SIZE - 8)
INSIDE = st.sampled_from(RANGES).flatmap(lambda r: st.integers(r[0], r[1] - 1))


class Memory:
    """Stands in for a target's memory and BulkReader."""

    def __init__(self) -> None:
        self.data = bytearray(SIZE)

    def read(self, vectors: Sequence[tuple[int, int]]) -> memoryview:
        """As process_vm_readv; zeros where nothing is."""
        whole = bytes(PAGE) + bytes(self.data) + bytes(PAGE)
        return memoryview(b"".join(whole[a - START + PAGE : a - START + PAGE + size] for a, size in vectors))

    def put(self, at: int, value: int) -> None:
        """Write a word."""
        struct.pack_into("<Q", self.data, at, value)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """What hunts read."""
    made = Memory()
    pages = SimpleNamespace(are_known=True, touched=lambda s, e: ((s, e),), written=lambda *_: (), close=lambda: None)
    monkeypatch.setattr(everywhere, "BulkReader", lambda *_: made)
    monkeypatch.setattr(everywhere, "Pages", lambda _: pages)
    monkeypatch.setattr(everywhere, "first_guard", lambda _: [GUARD])
    return made


def hunt() -> Hunt:
    """One over that memory."""
    target: Any = SimpleNamespace(pid=1, memory=None)
    return Hunt(target, Needles(RANGES), RANGES)


MAP = MemoryMap((Region(START, START + SIZE, "rw-p", 0, "00:00", 0, ""),))


def test_words_at_any_address_are_found_and_lost_again(memory: Memory) -> None:
    """A bug: one across the end of a page or of what is searched at once, one that came later, or one that is gone."""
    it = hunt()
    places = (0, 3, PAGE - 4, PAGE, BLOCK - 1, BLOCK + 2 * PAGE - 7, 2 * BLOCK - 3, SIZE - 8)
    assert it.look(MAP, ()) == []
    for at in places:
        memory.put(at, RANGES[0][0] + at % 99)
        assert it.look(MAP, ()) == [Trace(START + at, RANGES[0][0] + at % 99)], at
        memory.put(at, 0)
        assert it.look(MAP, ()) == [], at


def test_what_is_found_is_always_what_a_whole_search_finds(memory: Memory) -> None:
    """Words come and go.  A bug: a page that changed beside another keeps an old word, or loses one."""
    chance = random.Random(7)
    it = hunt()
    for _ in range(60):
        for _ in range(chance.randrange(4)):
            at = chance.choice(
                (chance.randrange(SIZE - 8), PAGE * chance.randrange(1, SIZE // PAGE) - chance.randrange(9))
            )
            start, end = chance.choice(RANGES)
            value = chance.choice((0, chance.randrange(start, end)))
            memory.put(at, value)
        assert it.look(MAP, ()) == hunt().look(MAP, ())


@given(INSIDE, ANYWHERE)
def test_hidden_addresses_are_found(value: int, at: int) -> None:
    """A bug: a jmp_buf is not seen."""
    needles = Needles(RANGES)
    assert needles.learn([GUARD])
    assert not needles.learn([GUARD])
    data = bytearray(64)
    struct.pack_into("<Q", data, 8 * (at % 8), x86_64.mangled(value, GUARD))
    assert list(needles.found(bytes(data), START)) == [Trace(START + 8 * (at % 8), value, True)]
    assert [t.value for t in needles.of(x86_64.mangled(value, GUARD))] == [value]


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_hiding_has_an_inverse(address: int, guard: int) -> None:
    for system in (x86_64, aarch64):
        assert system.unmangled(system.mangled(address, guard), guard) == address


LOW, HIGH = 0x40_0000, 0x40_8000


@pytest.mark.parametrize(
    ("code", "field", "leads"),
    [
        ("e8{}", 1, 5),  # call
        ("e9{}", 1, 5),  # jmp
        ("0f84{}", 2, 6),  # je
        ("488d05{}", 3, 7),  # lea
        ("c605{}01", 2, 7),  # movb $1
        ("66c705{}0100", 3, 9),  # movw $1
        ("c705{}01000000", 2, 10),  # movl $1
    ],
)
def test_distances_of_x86_64(code: str, field: int, leads: int) -> None:
    """A bug: code of a patch that stays uses what was given back."""
    for shift in range(5):
        at = 0x41_0000
        distance = struct.pack("<i", LOW + 0x123 - at - shift - leads).hex()
        data = bytes(shift) + bytes.fromhex(code.format(distance)) + bytes(9)
        assert (at + shift + field, LOW + 0x123) in set(x86_64.displaced(data, at, LOW, HIGH))
        assert list(x86_64.displaced(data, at, HIGH, HIGH + 0x100)) == []


@pytest.mark.parametrize(
    ("word", "leads"),
    [
        (0x94000000 | 0x3FF8000, 0x41_0000 - 0x20000),  # bl back
        (0x54000001 | (0x7F000 << 5), 0x41_0000 - 0x4000),  # b.ne back
        (0x10000000, 0x41_0000),  # adr of itself
        (0x90000000, 0x41_0000),  # adrp of its page
        (0xF0FFFFE0, 0x40_F000),  # adrp of the page before
    ],
)
def test_distances_of_aarch64(word: int, leads: int) -> None:
    found = list(aarch64.displaced(struct.pack("<I", word), 0x41_0000, leads, leads + 4))
    assert found == [(0x41_0000, leads)]
    assert list(aarch64.displaced(struct.pack("<I", word), 0x41_0000, leads + 0x2000, leads + 0x3000)) == []
