"""Registers of a stopped thread, read and written in both ways that CPUs have."""

from __future__ import annotations

import ctypes
import subprocess
import time

from katana_cc.cpu.native import system
from katana_cc.cpu.stopped import RegisterSet
from katana_cc.process import ptrace_binding as pt


def test_register_sets_are_what_one_request_gives() -> None:
    """CPUs without PTRACE_GETREGS have a row of several sets.  A bug: a set is put at the wrong word, or cut off."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        pt.seize(child.pid, 0)
        pt.interrupt(child.pid)
        deadline = time.monotonic() + 10
        while pt.wait(child.pid) is None:
            assert time.monotonic() < deadline
        whole = pt.read_registers(child.pid)
        row = (ctypes.c_uint64 * (pt.REGISTER_WORDS + 4))()
        moved = tuple(RegisterSet(note, word + 2, size) for note, word, size in system.REGISTER_SETS)
        pt.read_sets_into(child.pid, ctypes.addressof(row), moved)
        assert list(row) == [0, 0, *whole, 0, 0]

        general = next(iter(system.GENERAL_REGISTERS))
        row[general + 2] ^= 0x1234
        pt.write_sets_from(child.pid, ctypes.addressof(row), moved)
        assert pt.read_registers(child.pid)[general] == whole[general] ^ 0x1234
        pt.write_registers(child.pid, whole)
        pt.detach(child.pid)
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(10) == 0
