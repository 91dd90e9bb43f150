"""Writing to the memory of a process: here our own, which the kernel treats as any other."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest

from katana_cc.errors import TargetError
from katana_cc.process import ptrace_binding
from katana_cc.process.memory import ProcessMemory

_PIECES = 3000  # more than one system call takes


@pytest.fixture
def memory() -> Iterator[ProcessMemory]:
    opened = ProcessMemory(os.getpid())
    yield opened
    opened.close()


def _address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def _area(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_many_pieces_are_written_where_they_belong(memory: ProcessMemory) -> None:
    area = _area(1 << 20)
    start = _address(area)
    pieces = [(start + 300 * i, bytes([i % 251]) * (1 + i % 40)) for i in range(_PIECES)]
    expected = bytearray(len(area))
    for at, data in pieces:
        expected[at - start : at - start + len(data)] = data
    memory.write_many([*pieces, (start + 5, b"")])
    assert area[:] == bytes(expected)


def test_a_thousand_pieces_are_one_system_call(memory: ProcessMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: between any two of them a katana may be killed."""
    calls: list[int] = []
    write = ptrace_binding.write_vectors

    def counting(pid: int, pieces: list[tuple[int, bytes]]) -> int:
        calls.append(len(pieces))
        return write(pid, pieces)

    monkeypatch.setattr(ptrace_binding, "write_vectors", counting)
    area = _area(1 << 16)
    memory.write_many([(_address(area) + 16 * i, b"x") for i in range(1024)])
    assert calls == [1024]


def test_read_only_pages_among_them_are_written_as_well(memory: ProcessMemory) -> None:
    """As relocated pointers are, which the loader has made read-only."""
    area = _area(3 * mmap.PAGESIZE)
    start = _address(area)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, mmap.PROT_READ) == 0
    pieces = [(start + 1000 * i, b"%08d" % i) for i in range(12)]
    memory.write_many(pieces)
    for at, data in pieces:
        assert memory.read(at, len(data)) == data


def test_memory_that_is_not_there_is_told(memory: ProcessMemory) -> None:
    area = _area(mmap.PAGESIZE)
    start = _address(area)
    with pytest.raises(TargetError, match="cannot be reached"):
        memory.write_many([(start, b"a"), (0x10, b"b"), (start + 8, b"c")])
