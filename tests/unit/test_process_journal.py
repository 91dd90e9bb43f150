"""The journal's codec."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from katana_cc.errors import LaterKatanaError
from katana_cc.process.journal import (
    BODY_AT,
    HEADER_SIZE,
    PHASE_AT,
    Header,
    Mask,
    Progress,
    RegisterChange,
    ThreadId,
    encode_body,
    encode_header,
    encode_progress,
    read_body,
    read_header,
)

AT = 0x7000_0000
_WORDS = st.integers(0, (1 << 64) - 1)
_THREADS = st.builds(ThreadId, _WORDS, st.integers(1, 1 << 22))
_PIECES = st.lists(st.tuples(_WORDS, st.binary(max_size=40)), max_size=9)
_REGISTERS = st.lists(
    st.builds(RegisterChange, _THREADS, st.integers(0, 16000), st.booleans(), _WORDS, _WORDS), max_size=4
)
_MASKS = st.lists(st.builds(Mask, _THREADS, _WORDS), max_size=4)


class _Memory:
    """A mapping that holds a journal."""

    def __init__(self, header: bytes, body: bytes) -> None:
        self.data = bytearray(header.ljust(BODY_AT, b"\0") + body)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.data[address - AT : address - AT + size])


def _memory(body: bytes, progress: Progress = Progress.WRITING, *, was_halted: bool = False) -> _Memory:
    return _Memory(encode_header(progress, 5, body, was_halted=was_halted), body)


def _header(memory: _Memory) -> Header:
    found = read_header(memory, AT)
    assert found is not None
    return found


@given(_PIECES, _REGISTERS, _MASKS)
def test_what_was_told_is_read(
    pieces: list[tuple[int, bytes]], registers: list[RegisterChange], masks: list[Mask]
) -> None:
    """A bug: something else is written than what was about to be."""
    memory = _memory(encode_body(pieces, registers, masks))
    record = read_body(memory, AT, _header(memory))
    assert record == (tuple(pieces), tuple(registers), tuple(masks))


@pytest.mark.parametrize("was_halted", [False, True])
@pytest.mark.parametrize("progress", Progress)
def test_header_tells_how_far_it_has_come(progress: Progress, was_halted: bool) -> None:
    """A bug: what was done is begun again, or a process that was stopped goes on."""
    memory = _memory(b"abc", was_halted=was_halted)
    memory.data[PHASE_AT : PHASE_AT + 4] = encode_progress(progress)
    header = _header(memory)
    assert (header.progress, header.base, header.length, header.was_halted) == (progress, 5, 3, was_halted)


@given(st.data())
def test_altered_journal_is_none(data: st.DataObject) -> None:
    """A bug: what somebody scribbled there is written into the program."""
    body = encode_body([(1, b"one"), (2, b"two")], [], [])
    memory = _memory(body)
    at = data.draw(st.integers(0, len(body) - 1))
    memory.data[BODY_AT + at] ^= 1 << data.draw(st.integers(0, 7))
    assert read_body(memory, AT, _header(memory)) is None


def test_what_is_no_journal_is_none() -> None:
    """A bug: a mapping that a katana left before it wrote anything is taken for a journal."""
    assert read_header(_Memory(bytes(HEADER_SIZE), b""), AT) is None


def test_journal_of_a_later_katana_is_refused() -> None:
    """A bug: it is read as what it is not.  Or one that is idle, which forked children keep, is in the way for ever."""
    memory = _memory(b"")
    memory.data[8] = 99
    for progress in (Progress.HOLDING, Progress.WRITING, Progress.LETTING_GO, 77):
        memory.data[PHASE_AT] = progress
        with pytest.raises(LaterKatanaError, match="later katana"):
            read_header(memory, AT)
    memory.data[PHASE_AT] = Progress.IDLE
    header = read_header(memory, AT)
    assert header is not None
    assert header.progress is Progress.IDLE


def test_numbers_stay() -> None:
    """A bug: another katana reads something else."""
    body = encode_body([(0x10, b"\xaa")], [RegisterChange(ThreadId(1, 2), 3, True, 4, 5)], [Mask(ThreadId(6, 7), 8)])
    assert encode_header(Progress.WRITING, 9, body, was_halted=True).hex() == (
        "4b4154414e414a4e0100000002000000090000000000000051000000000000006520547001000000"
    )
    assert body.hex() == (
        "010000000100000001000000"
        "1000000000000000"
        "0100000000000000"
        "01000000000000000200000003000080" "0400000000000000" "0500000000000000"
        "0600000000000000" "07000000" "0800000000000000"
        "aa"
    )  # fmt: skip
    assert [(p.name, int(p)) for p in Progress] == [("IDLE", 0), ("HOLDING", 1), ("WRITING", 2), ("LETTING_GO", 3)]
