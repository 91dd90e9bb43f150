"""The search for active functions, on stacks made of bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest

from katana_cc.cpu.native import system as cpu
from katana_cc.dwarf.unwind import Backtrace, Frame, Unwinder
from katana_cc.process.activity import Activity, Finder, Guard
from katana_cc.process.maps import MemoryMap
from katana_cc.process.ptrace_binding import REGISTER_WORDS
from katana_cc.process.stacks import prefixes_of

PID, TID = 100, 101
STACK, STACK_END = 0x7FFD_0000_0000, 0x7FFD_0002_1000
THREAD, THREAD_END = 0x7F10_0000_0000, 0x7F10_0080_0000
HEAP = 0x5555_6000_0000
TEXT = """\
555560000000-555561000000 rw-p 00000000 00:00 0 [heap]
7f1000000000-7f1000800000 rw-p 00000000 00:00 0
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
"""
REGIONS = MemoryMap.parse(TEXT)
CODE = 0x5555_5555_51F0
GUARD = Guard("f", CODE, 0x40, True)
OUTSIDE = 0x5555_5555_0000


class FakeBulk:
    """Stands in for BulkReader: words at addresses, zero elsewhere."""

    def __init__(self, words: dict[int, int]) -> None:
        self.words = words
        self.data = b""

    def read(self, vectors: Sequence[tuple[int, int]]) -> memoryview:
        """As process_vm_readv."""
        out = bytearray()
        for address, size in vectors:
            data = bytearray(size)
            for at, value in self.words.items():
                if address <= at < address + size:
                    data[at - address : at - address + 8] = struct.pack("<Q", value)
            out += data
        self.data = bytes(out)
        return memoryview(out)

    def find(self, needle: bytes, start: int) -> int:
        """As in what was read last."""
        return self.data.find(needle, start)

    def word(self, at: int) -> int:
        """A word of that."""
        return int.from_bytes(self.data[at : at + 8], "little")

    def copy(self, start: int, size: int) -> bytes:
        """Some of that."""
        return self.data[start : start + size]


class FakeUnwinder:
    """Stands in for Unwinder: says what it is told, and counts."""

    def __init__(self, *traces: Backtrace) -> None:
        self.traces = list(traces)
        self.calls = 0

    def unwind(self, _registers: object, **_: object) -> Backtrace:
        """The next backtrace."""
        self.calls += 1
        return self.traces.pop(0)


def registers(*threads: tuple[int, int, int]) -> memoryview:
    """(rip, rsp, fs_base) of each thread as user_regs_struct words."""
    words = bytearray(8 * REGISTER_WORDS * len(threads))
    view = memoryview(words).cast("Q")
    for i, (pc, pointer, base) in enumerate(threads):
        view[i * REGISTER_WORDS + cpu.PC] = pc
        view[i * REGISTER_WORDS + cpu.SP] = pointer
        view[i * REGISTER_WORDS + cpu.THREAD_POINTER] = base
    return view


def find(
    words: dict[int, int], regs: memoryview, unwinder: FakeUnwinder, guard: Guard = GUARD,
    reread: Callable[[], MemoryMap] = lambda: REGIONS,
) -> Activity | None:  # fmt: skip
    """Run the finder over one or two threads."""
    order = [PID, TID][: len(regs) // REGISTER_WORDS]
    make: Callable[[], Unwinder] = lambda: unwinder  # type: ignore[assignment,return-value]  # noqa: E731
    return Finder([guard], FakeBulk(words), make).find(PID, order, regs, REGIONS, reread)  # type: ignore[arg-type]


def trace(*frames: tuple[int, int, bool], complete: bool = True) -> Backtrace:
    """A backtrace of (pc, cfa, exact)."""
    return Backtrace(tuple(Frame(i, *f) for i, f in enumerate(frames)), complete, "" if complete else "cut")


@pytest.mark.parametrize(
    ("pc", "is_inside"),
    [(CODE - 1, False), (CODE, False), (CODE + 1, True), (CODE + 0x3F, True), (CODE + 0x40, False)],
)
def test_instruction_pointer_inside(pc: int, is_inside: bool) -> None:
    """A bug: the entry, where the jump is met, counts; or the last byte does not."""
    found = find({}, registers((pc, STACK + 0x20000, 0)), FakeUnwinder())
    assert (found == Activity(PID, "f", pc, 0)) if is_inside else found is None


def test_part_without_a_jump_must_be_empty_from_its_first_byte() -> None:
    """A bug: a thread about to enter the cold part is overlooked."""
    assert find({}, registers((CODE, STACK + 0x20000, 0)), FakeUnwinder(), GUARD._replace(entry_is_free=False))


@pytest.mark.parametrize(
    ("address", "is_inside"), [(CODE, False), (CODE + 1, True), (CODE + 0x40, True), (CODE + 0x41, False)]
)
def test_return_address_inside(address: int, is_inside: bool) -> None:
    """A bug: a call as the last instruction is overlooked, or that of the function before counts."""
    unwinder = FakeUnwinder(trace((OUTSIDE, STACK + 0x20010, True), (address, STACK + 0x20100, False)))
    found = find({STACK + 0x20080: address}, registers((OUTSIDE, STACK + 0x20000, 0)), unwinder)
    assert (found == Activity(PID, "f", address, 1)) if is_inside else (found is None and unwinder.calls == 0)


def test_thread_without_a_hit_is_not_unwound() -> None:
    """A bug: every stop unwinds every thread."""
    unwinder = FakeUnwinder()
    assert find({STACK + 0x20080: OUTSIDE}, registers((OUTSIDE, STACK + 0x20000, 0)), unwinder) is None
    assert unwinder.calls == 0


def test_stale_word_is_no_activity() -> None:
    """A bug: what an earlier call left on the stack keeps a patch out for ever."""
    unwinder = FakeUnwinder(trace((OUTSIDE, STACK + 0x20100, True), (OUTSIDE + 9, STACK + 0x20200, False)))
    assert find({STACK + 0x20080: CODE + 9}, registers((OUTSIDE, STACK + 0x20000, 0)), unwinder) is None
    assert unwinder.calls == 1


def test_hit_beyond_a_broken_unwind_counts() -> None:
    """A bug: code without call-frame information hides the frames above it."""
    unwinder = FakeUnwinder(trace((OUTSIDE, STACK + 0x20010, True), complete=False))
    found = find({STACK + 0x20080: CODE + 9}, registers((OUTSIDE, STACK + 0x20000, 0)), unwinder)
    assert found == Activity(PID, "f", CODE + 9, -1, "cut")


def test_hit_of_the_second_thread_is_its_own() -> None:
    """A bug: the offset in the one buffer is taken for the first thread's."""
    unwinder = FakeUnwinder(trace((OUTSIDE, THREAD + 0x100, True), (CODE + 9, THREAD + 0x200, False)))
    regs = registers((OUTSIDE, STACK + 0x20000, 0), (OUTSIDE, THREAD + 0x7000, THREAD + 0x8000))
    found = find({THREAD + 0x7008: CODE + 9}, regs, unwinder)
    assert found is not None
    assert found.tid == TID


def test_words_above_the_thread_pointer_are_not_its_stack() -> None:
    """A bug: thread-local data or the neighbour's stack counts."""
    unwinder = FakeUnwinder()
    regs = registers((OUTSIDE, STACK + 0x20000, 0), (OUTSIDE, THREAD + 0x7000, THREAD + 0x8000))
    assert find({THREAD + 0x8010: CODE + 9}, regs, unwinder) is None
    assert unwinder.calls == 0


def test_thread_on_an_odd_stack_is_always_unwound() -> None:
    """A bug: a signal handler's own stack hides the frames it interrupted."""
    unwinder = FakeUnwinder(trace((OUTSIDE, HEAP + 0x100, True), (CODE + 9, STACK + 0x20000, False)))
    found = find({}, registers((OUTSIDE, HEAP, 0)), unwinder)
    assert found == Activity(PID, "f", CODE + 9, 1)


def test_odd_stack_that_cannot_be_unwound_looks_at_the_home_stack() -> None:
    """A bug: a coroutine started from an active function is patched under it."""
    unwinder = FakeUnwinder(trace((OUTSIDE, 0, True), complete=False))
    found = find({STACK + 0x20080: CODE + 9}, registers((OUTSIDE, HEAP, 0)), unwinder)
    assert found is not None
    assert found.depth == -1


def test_stack_newer_than_the_map_makes_it_be_read_again() -> None:
    """A bug: a thread born after the map was read has no stack to look at."""
    newer = MemoryMap.parse(TEXT.replace("7ffd", "7f2000000000-7f2000800000 rw-p 00000000 00:00 0\n7ffd", 1))
    unwinder = FakeUnwinder(trace((OUTSIDE, 0x7F20_0000_7100, True), (CODE + 9, 0x7F20_0000_7200, False)))
    regs = registers((OUTSIDE, STACK + 0x20000, 0), (OUTSIDE, 0x7F20_0000_7000, 0x7F20_0000_8000))
    found = find({0x7F20_0000_7008: CODE + 9}, regs, unwinder, reread=lambda: newer)
    assert found is not None
    assert found.tid == TID


def test_allowed_function_may_be_active_but_not_in_its_first_bytes() -> None:
    """A bug: the jump is written over an instruction that a thread is about to finish."""
    allowed = GUARD._replace(allowed=True)
    assert find({}, registers((CODE + 9, STACK + 0x20000, 0)), FakeUnwinder(), allowed) is None
    assert find({}, registers((CODE + 3, STACK + 0x20000, 0)), FakeUnwinder(), allowed) is not None


@pytest.mark.parametrize("count", [1, 10, 300, 3000])
def test_every_return_address_has_a_searched_prefix(count: int) -> None:
    """A bug: with many functions the coarse search leaves some out."""
    ranges = [(CODE + 0x1237 * i, 0x130) for i in range(count)]
    prefixes, width = prefixes_of(ranges)
    for start, size in ranges:
        for word in (start + 1, start + size // 2, start + size):
            high = struct.pack("<Q", word)[8 - width :]
            assert any(high.startswith(p) for p in prefixes)
    assert len(prefixes) <= 64


MARK = int.from_bytes(cpu.signal_frame_mark(), "little")
LIVE = STACK + 0x20000


def test_rehearsal_leaves_nothing_behind() -> None:
    """A bug: what was seen of a running process is taken for what is so in the stop, or ends what is to come."""
    cut = Backtrace((), False, "", True)
    unwinder = FakeUnwinder(cut, trace((OUTSIDE, STACK_END, True)))
    make: Callable[[], Unwinder] = lambda: unwinder  # type: ignore[assignment,return-value]  # noqa: E731
    finder = Finder([GUARD], FakeBulk({STACK_END - 64: CODE + 8}), make)  # type: ignore[arg-type]
    finder.rehearse(PID, [(PID, STACK_END - 0x100, OUTSIDE)], REGIONS)
    assert unwinder.calls == 1
    finder.study()  # nothing
    assert unwinder.calls == 1
    regs = registers((OUTSIDE, STACK_END - 0x100, 0))
    assert finder.find(PID, [PID], regs, REGIONS, lambda: REGIONS) is None
    assert unwinder.calls == 2


def test_thread_with_a_signal_frame_is_unwound() -> None:
    """A bug: what a handler interrupted is below its stack, which is part of the same, and is not looked at."""
    unwinder = FakeUnwinder(trace((OUTSIDE, LIVE + 0x20, True), (CODE + 9, STACK + 0x100, False)))
    found = find({LIVE + 0x80: MARK}, registers((OUTSIDE, LIVE, 0)), unwinder)
    assert found == Activity(PID, "f", CODE + 9, 1)


@pytest.mark.parametrize(("seen", "is_inside"), [(LIVE + 0x40, True), (LIVE + 0x90, False)], ids=["beyond", "before"])
def test_signal_frame_beyond_a_broken_unwind_makes_the_whole_stack_count(seen: int, is_inside: bool) -> None:
    """A bug: words below the stack pointer never count; or they do, though the mark was left behind by a handler that
    has returned."""
    unwinder = FakeUnwinder(trace((OUTSIDE, seen, True), complete=False))
    found = find({LIVE + 0x80: MARK, STACK + 0x100: CODE + 9}, registers((OUTSIDE, LIVE, 0)), unwinder)
    assert (found is not None) == is_inside


def test_how_low_a_stack_reaches_is_not_told_of_one_that_could_not_be_unwound() -> None:
    """A bug: live words of it are taken for dead."""
    unwinder = FakeUnwinder(trace((OUTSIDE, LIVE + 0x40, True), complete=False))
    regs = registers((OUTSIDE, LIVE, 0), (OUTSIDE, THREAD + 0x7000, THREAD + 0x8000))
    make: Callable[[], Unwinder] = lambda: unwinder  # type: ignore[assignment,return-value]  # noqa: E731
    finder = Finder([GUARD], FakeBulk({LIVE + 0x80: MARK}), make)  # type: ignore[arg-type]
    assert finder.find(PID, [PID, TID], regs, REGIONS, lambda: REGIONS) is None
    assert sorted(finder.lowest) == [(PID, STACK), (TID, THREAD + 0x7000)]
    assert finder.own_stacks == [(TID, THREAD + 0x7000)]
