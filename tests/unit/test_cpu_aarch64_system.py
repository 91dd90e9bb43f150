"""AArch64 registers and system calls, as far as they can be told without such a machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from katana_cc.cpu.aarch64 import code, system
from katana_cc.cpu.aarch64.system import LINK, NO_SYSCALL, PC, PSTATE, SP, SYSCALL, X8

# The kernel's own table of the numbers that all newer machines share (linux-libc-dev).
UNISTD = Path("/usr/include/asm-generic/unistd.h")
MINUS = 1 << 64
SVC = 0x40_0000


def read(address: int, size: int) -> bytes:
    """Memory with one `svc #0`."""
    return system.SYSCALL_INSTRUCTION if (address, size) == (SVC, 4) else bytes(size)


def thread(**words: int) -> list[int]:
    """A row of registers; of general ones all differ."""
    row = [0x1000 + n for n in range(system.REGISTER_WORDS)]
    row[SYSCALL], row[PSTATE], row[PC] = NO_SYSCALL, 0, SVC
    for name, value in words.items():
        row[getattr(system, name) if name.isupper() else int(name[1:])] = value % MINUS
    return row


def test_numbers_are_those_of_the_kernel() -> None:
    """A bug: another system call is made in the target."""
    text = UNISTD.read_text()
    numbers = {n: int(v) for n, v in re.findall(r"^#define __NR(?:3264)?_(\w+) (\d+)$", text, re.MULTILINE)}
    assert len(numbers) > 250
    ours = {name.lower(): value for name, value in vars(system).items() if name.startswith("SYS_")}
    assert {name: numbers[name.removeprefix("sys_")] for name in ours} == ours
    for table in (system.UNRESTARTED_SYSCALLS, system.WAITING_SYSCALLS, system.KEPT_SYSCALLS):
        assert {name: numbers[name] for name in table.values()} == {name: number for number, name in table.items()}


def test_row_holds_every_register_once() -> None:
    """A bug: two sets lie over each other, or a word comes from none."""
    covered = [s.word + i for s in system.REGISTER_SETS for i in range(-(-s.size // 8))]
    assert sorted(covered) == list(range(system.REGISTER_WORDS))
    numbers = system.DWARF
    assert len(numbers.order) == 33
    assert numbers.order[numbers.stack_pointer] == SP
    assert numbers.order[numbers.pc] == PC
    assert numbers.order[30] == LINK


def test_system_call_is_prepared() -> None:
    """A bug: the kernel restarts what was interrupted instead; or a branch type is left and `svc` faults."""
    row = thread(SYSCALL=63, PSTATE=0x60000C00)
    system.set_system_call(row, SVC, system.SYS_MMAP, (0, 4096, 3, 34, -1, 0))
    assert row[:6] == [0, 4096, 3, 34, MINUS - 1, 0]
    assert (row[X8], row[PC], row[SYSCALL], row[PSTATE]) == (222, SVC, NO_SYSCALL, 0x60000000)
    assert row[9:31] == thread()[9:31]


def test_call_returns_to_the_system_call() -> None:
    """A bug: the return address is looked for on the stack."""
    row = thread()
    assert system.set_call(row, 0x7000, 0x9000, SVC, (1, 2)) == (0x9000, b"")
    assert (row[0], row[1], row[PC], row[SP], row[LINK]) == (1, 2, 0x7000, 0x9000, SVC)
    row[PC] = SVC + 4
    assert system.has_returned(row, SVC, 0x9000)
    row[SP] -= 16
    assert not system.has_returned(row, SVC, 0x9000)
    row[0], row[SYSCALL] = 77, 5
    assert system.take_result(row) == 77
    assert row[SYSCALL] == NO_SYSCALL


@pytest.mark.parametrize(
    ("words", "waits"),
    [
        ({"x8": 73}, True),  # ppoll, about to be entered again
        ({"x8": 22, "x0": -4, "PC": SVC + 4}, True),  # epoll_pwait, which returned EINTR
        ({"x8": 22, "PC": SVC + 4}, False),  # it returned something else: the thread is on its way
        ({"x8": 73, "PC": SVC + 8}, False),  # x8 is a leftover
        ({"x8": 222}, False),  # mmap
        ({"x8": 98, "x1": 9 | 0x80}, True),  # a condition variable
        ({"x8": 98, "x1": 0 | 0x80}, False),  # a lock
    ],
)
def test_thread_that_waits_outside(words: dict[str, int], waits: bool) -> None:
    """A bug: a function is called in a thread that holds what the function needs."""
    assert system.waits_outside(thread(**words), read) is waits


def test_interrupted_call_is_not_entered_with_a_lost_argument() -> None:
    """A bug: the call is repeated with -EINTR for its first argument."""
    assert system.repaired(thread(x8=22, x0=-4, PC=SVC + 4)) is None


def test_wait_of_which_the_kernel_lost_how_to_go_on_is_entered_again() -> None:
    """A bug: restart_syscall goes on with another wait; or a call is made that the thread was not in."""
    restarted = thread(x8=system.SYS_RESTART_SYSCALL)
    for text in ("a80c80d2", "a80c8052"):  # mov x8, #101; mov w8, #101
        assert system.entered_again(restarted, bytes.fromhex(text)) == {X8: 101}
        assert system.entered_again(thread(x8=101), bytes.fromhex(text)) is None
    for other in ("a70c80d2", "a80ca0d2", "1f2003d5", ""):  # mov x7, #101; mov x8, #101 << 16; nop
        assert system.entered_again(restarted, bytes.fromhex(other)) is None


def test_arguments_that_the_kernel_may_keep() -> None:
    assert system.keeps_arguments(thread(x8=101))
    assert not system.keeps_arguments(thread(x8=63))


def test_32_bit_code_is_not_taken() -> None:
    assert system.runs_supported_code(thread())
    assert not system.runs_supported_code(thread(PSTATE=0x10))


def test_return_addresses_lie_behind_calls() -> None:
    """A bug: a coroutine is not seen, since it waits in a call of another form."""
    calls = ("00000094", "60023fd6", "3f093fd6", "650a3fd7")  # bl .; blr x19; blraaz x9; blraa x19, x5
    assert code.behind_calls(bytes.fromhex("1f2003d5".join(calls))) == {4, 12, 20, 28}
    assert code.behind_calls(bytes.fromhex("00000014 60021fd6 c0035fd6")) == frozenset(), "b .; br x19; ret"


def test_what_a_signal_interrupted_is_known_by_its_neighbour() -> None:
    """A bug: any word of a table counts."""
    assert system.was_interrupted((0x60000000).to_bytes(8, "little"))
    assert not system.was_interrupted((0x10).to_bytes(8, "little"))
    assert not system.was_interrupted((0xAAAA_5555_0000).to_bytes(8, "little"))
