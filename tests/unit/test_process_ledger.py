"""The ledger's codec and its state machine."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from katana_cc.dwarf.forms import Encoding
from katana_cc.errors import RefusedError, TargetError
from katana_cc.patch.model import UNKNOWN, BroughtKind, HookKind, NewLayout
from katana_cc.process.ledger import (
    HEADER_SIZE,
    REGISTERED_OFFSET,
    STATE_OFFSET,
    CodeRange,
    HookEntry,
    Ledger,
    Listing,
    MemoryEdit,
    Registration,
    Resident,
    encode,
    encode_registered,
    encode_state,
    read_ledger,
)
from katana_cc.process.moves import Kind, Made, Move
from katana_cc.process.phases import TRANSITIONS, Bytes, Phase, Step, judge_bytes, step
from katana_cc.transform.model import Initial, Integer, Pointer, Repeat, Transformation

BASE = 0x7000_0000


GROWS = Transformation(
    "conn ü", 8, 16, (Initial(0, 64, "fresh"), Integer(64, 64, Encoding.SIGNED, 0, 32, Encoding.SIGNED, "n", "m"))
)
STAYS = Transformation("head", 24, 24, (Repeat(3, 0, 8, 0, 8, (Pointer(0, 0, "struct conn"),), "all[]", "all[]"),))
NODE = Transformation("struct node", 8, 16, (Initial(0, 64, "fresh"), Pointer(8, 0, "struct node", "next", "next")))
LINK = Transformation("struct link", 8, 8, (Pointer(0, 0, "struct node", "next", "next"),))


class FakeMemory:
    """Bytes at an address."""

    def __init__(self, base: int, data: bytes) -> None:
        self.base = base
        self.data = data

    def read(self, address: int, size: int) -> bytes:
        """As of a target."""
        start = address - self.base
        if start < 0 or start + size > len(self.data):
            raise TargetError("not mapped")
        return self.data[start : start + size]


MADE = (Made("renew", "recall", BASE + 0x1100, BASE + 0x1200, 4, 8, 3, 16, 24), Made("one", "", BASE, 0, 0, 0, 1, 8, 8))


def example(**changes: object) -> Ledger:
    """A ledger with one of everything."""
    ledger = Ledger(
        Phase.APPLIED, BASE, 0x3000, "ab" * 16, "11" * 20, "22" * 20, "v1", "v2 ü", "src/server", 0x5555_0000,
        (BASE + 0x800, 64), ((BASE, 0x1000, 1), (BASE + 0x1000, 0x1000, 5)),
        (MemoryEdit("f", 0x5555_1000, b"\x55" * 5, b"\xe9\1\2\3\4", True),
         MemoryEdit("table", 0x5555_9000, b"old bytes", b"new bytes", False)),
        (CodeRange("f", 0x5555_1000, 64),), (CodeRange("f", BASE + 0x1000, 80),),
        (CodeRange("count", BASE + 0x2000, 4),),
        (Registration(0x7F00_1000, 0x7F00_2000, 0x7F00_3000, BASE + 0x2100),), True,
        (Move(GROWS, 0x5555_9100, BASE + 0x2010, bytes(range(16)), True, MADE), Move(STAYS, 0x5555_9200, 0x5555_9200)),
        (Kind(NODE, "struct link", True, True, True, MADE[1:]), Kind(LINK)),
        (HookEntry(HookKind.BEFORE_REVERT, "drain", BASE + 0x1040), HookEntry(HookKind.AFTER, "fülle", BASE + 0x1080)),
        (Resident(BroughtKind.VARIABLE, "a.o: f()::count", BASE + 0x2000, 4, bytes(range(32))),
         Resident(BroughtKind.FUNCTION, "grün", 0x5554_1000, 80, UNKNOWN)),
        (NewLayout("struct conn", bytes(range(1, 33))),), True,
        (Listing(0x7E00_1000, 0x7E00_2000, 0x7E00_3000, 0x7E00_4000, 0x7E00_5000, BASE + 0x2200),),
    )  # fmt: skip
    return dataclasses.replace(ledger, **changes)  # type: ignore[arg-type]


def read_back(data: bytes) -> Ledger | None:
    """What a katana reads of these bytes in a process."""
    return read_ledger(FakeMemory(BASE, data), BASE)


def test_what_is_written_is_read() -> None:
    """A bug: a field is lost or takes another's place."""
    assert read_back(encode(example()) + bytes(100)) == example()


def test_header_is_the_specified_one() -> None:
    """A bug: the layout in docs/ledger.md is no longer true."""
    data = encode(example())
    assert data[:8] == b"KATANALG"
    assert data[8:16] == bytes([9, 0, 0, 0, 2, 0, 0, 0])
    assert int.from_bytes(data[16:24], "little") == len(data) - HEADER_SIZE
    assert int.from_bytes(data[40:48], "little") == BASE


def test_whether_frames_are_registered_is_outside_the_checksum() -> None:
    """A bug: noting it makes the ledger unreadable."""
    data = bytearray(encode(example()))
    data[REGISTERED_OFFSET : REGISTERED_OFFSET + 8] = encode_registered(False)
    assert read_back(bytes(data)) == example(is_registered=False)


def test_ledger_of_version_1_is_read() -> None:
    """It ends before the registrations, and its last header field means nothing.  A bug: what an earlier katana patched
    can be neither asked nor reverted."""
    ledger = nameless(registrations=(), is_registered=False, moves=(), kinds=(), hooks=())
    old = earlier(encode(ledger), 1, 36)
    old[56:64] = bytes([9]) * 8
    assert read_back(bytes(old) + bytes(100)) == ledger


@pytest.mark.parametrize("version", [2, 3])
def test_ledger_before_variables_moved_is_read(version: int) -> None:
    """It ends before the moves."""
    ledger = nameless(moves=(), kinds=(), hooks=())
    assert read_back(bytes(earlier(encode(ledger), version, 32)) + bytes(100)) == ledger


def test_ledger_before_types_were_walked_is_read() -> None:
    """It ends before the types."""
    ledger = nameless(kinds=(), hooks=(), moves=unmade(example().moves))
    assert read_back(bytes(earlier(encode(ledger), 4, 28)) + bytes(100)) == ledger


def test_ledger_before_there_were_hooks_is_read() -> None:
    """It ends before the hooks."""
    ledger = nameless(hooks=(), moves=unmade(example().moves), kinds=unmade(example().kinds))
    assert read_back(bytes(earlier(encode(ledger), 5, 24)) + bytes(100)) == ledger


def test_ledger_before_functions_made_objects_is_read() -> None:
    """It ends before them."""
    ledger = nameless(moves=unmade(example().moves), kinds=unmade(example().kinds))
    assert read_back(bytes(earlier(encode(ledger), 6, 20)) + bytes(100)) == ledger


def test_ledger_before_things_had_names_is_read() -> None:
    """It ends before them.  A bug: another patch takes its place as if nothing had come with it."""
    ledger = nameless()
    assert read_back(bytes(earlier(encode(ledger), 7, 12)) + bytes(100)) == ledger


def test_ledger_before_libunwind_was_told_is_read() -> None:
    """It ends before it."""
    ledger = example(listings=())
    assert read_back(bytes(earlier(encode(ledger), 8, 4)) + bytes(100)) == ledger


def nameless(**changes: object) -> Ledger:
    """What is read of a ledger that does not tell what came."""
    return example(**{"residents": (), "layouts": (), "is_named": False, "listings": (), **changes})


def unmade(of: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same without what functions make."""
    return tuple(dataclasses.replace(each, made=()) for each in of)


def earlier(data: bytes, version: int, shorter: int) -> bytearray:
    """A ledger of an earlier version, whose data ends `shorter` bytes before, all zero."""
    assert data.endswith(bytes(shorter))
    body = data[HEADER_SIZE:-shorter]
    old = bytearray(data[:HEADER_SIZE])
    old[8:12] = version.to_bytes(4, "little")
    old[16:24] = len(body).to_bytes(8, "little")
    old[24:40] = hashlib.sha256(body).digest()[:16]
    return old + body


def test_what_is_half_moved_is_told_from_the_edits() -> None:
    """Variables and words are written before the edits: a katana that died there left every edit as it was."""
    ledger = example(registrations=())
    old, new = ({e.address: getattr(e, side) for e in ledger.edits} for side in ("expected", "replacement"))
    found = {
        (state, which): dataclasses.replace(ledger, state=state).found_bytes(Edits(at))
        for state in Phase
        for which, at in (("old", old), ("new", new))
    }
    assert found == {
        (Phase.MAPPED, "old"): Bytes.OLD,
        (Phase.MAPPED, "new"): Bytes.NEW,
        (Phase.COMMITTING, "old"): Bytes.TORN,
        (Phase.COMMITTING, "new"): Bytes.NEW,
        (Phase.APPLIED, "old"): Bytes.OLD,
        (Phase.APPLIED, "new"): Bytes.NEW,
        (Phase.REVERTING, "old"): Bytes.OLD,
        (Phase.REVERTING, "new"): Bytes.TORN,
        (Phase.REVERTED, "old"): Bytes.OLD,
        (Phase.REVERTED, "new"): Bytes.NEW,
    }


def test_a_patch_that_moves_only_is_judged_by_its_state() -> None:
    judged = {s: dataclasses.replace(example(edits=()), state=s).found_bytes(Edits({})) for s in Phase}
    assert judged == {
        Phase.MAPPED: Bytes.OLD,
        Phase.COMMITTING: Bytes.TORN,
        Phase.APPLIED: Bytes.NEW,
        Phase.REVERTING: Bytes.TORN,
        Phase.REVERTED: Bytes.OLD,
    }


class Edits:
    """Bytes at the places of edits."""

    def __init__(self, at: dict[int, bytes]) -> None:
        self.at = at

    def read(self, address: int, size: int) -> bytes:
        """As of a target."""
        assert len(self.at[address]) == size
        return self.at[address]


def test_state_is_outside_the_checksum() -> None:
    """A bug: changing the state makes the ledger unreadable."""
    data = bytearray(encode(example()))
    data[STATE_OFFSET : STATE_OFFSET + 4] = encode_state(Phase.REVERTED)
    assert read_back(bytes(data)) == example(state=Phase.REVERTED)


@pytest.mark.parametrize("offset", [0, 20, 30, 41, HEADER_SIZE + 3, -1])
def test_damaged_ledger_is_none(offset: int) -> None:
    """A bug: edits of a half-written ledger are believed."""
    data = bytearray(encode(example()))
    data[offset] ^= 0x40
    with_rest = bytes(data) + bytes(1 << 16)
    try:
        assert read_back(with_rest) is None
    except TargetError:
        assert offset == 20, "only a length beyond the mapping may end otherwise"


def test_later_version_is_refused_by_name() -> None:
    """A bug: a later ledger is misread, and the process with it."""
    data = bytearray(encode(example()))
    data[8] = 10
    with pytest.raises(TargetError, match="ledger version 10"):
        read_back(bytes(data))


@given(st.text(max_size=40), st.lists(st.tuples(st.text(max_size=9), st.binary(min_size=5, max_size=40)), max_size=5))
def test_any_names_and_bytes_survive(name: str, edits: list[tuple[str, bytes]]) -> None:
    """A bug: odd names (empty, non-ASCII) shift what follows."""
    name = name.encode("utf-8", "replace").decode()
    made = tuple(
        MemoryEdit(n.encode("utf-8", "replace").decode(), 7 * i, b, b[::-1], bool(i % 2))
        for i, (n, b) in enumerate(edits)
    )
    ledger = example(output=name, edits=made)
    assert read_back(encode(ledger)) == ledger


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ((b"NNNNN", b"NNN"), Bytes.NEW),
        ((b"ooooo", b"ooo"), Bytes.OLD),
        ((b"NNNNN", b"ooo"), Bytes.TORN),
        ((b"NNooo", b"ooo"), Bytes.TORN),
        ((b"NNNNN", b"xNN"), Bytes.FOREIGN),
    ],
)
def test_bytes_are_the_truth(found: tuple[bytes, bytes], verdict: Bytes) -> None:
    """A bug: a torn or foreign edit is taken for a whole one."""
    assert judge_bytes([(b"ooooo", b"NNNNN", found[0]), (b"ooo", b"NNN", found[1])]) is verdict


def test_illegal_step_is_refused() -> None:
    """A bug: a commit ends that never began."""
    for phase in (Phase.MAPPED, Phase.APPLIED, Phase.REVERTED):
        with pytest.raises(RefusedError):
            step(phase, Step.END_COMMIT)


def test_every_phase_can_be_left_for_applied_and_for_reverted() -> None:
    """A bug: a katana that died leaves a state that no later one can leave."""
    for phase in Phase:
        if phase is not Phase.APPLIED:
            assert step(step(phase, Step.BEGIN_COMMIT), Step.END_COMMIT) is Phase.APPLIED
        if (phase, Step.BEGIN_REVERT) in TRANSITIONS:
            assert step(step(phase, Step.BEGIN_REVERT), Step.END_REVERT) is Phase.REVERTED
