"""Is a stopped thread where a function may be called in it?

Registering frames takes a lock of the unwinder and may allocate memory, and a thread that holds a lock of the
allocator, of the loader or of the unwinder would wait for itself.  All other threads run on meanwhile, so locks that
they hold are no trouble.  A thread will do when

1. its whole stack can be read, and none of its frames is a signal handler's (what it interrupted may hold anything), in
   the dynamic loader, in an unwinder, or in an allocator that is a library of its own;
2. it is not in the C library, nor in a module with an allocator in it (a static program), except in a system call that
   waits for the world outside (`poll`, `read`, a condition variable): no allocator makes one while it holds a lock.

So a server's thread that waits will do, and so will one that computes in the program itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.dwarf.unwind import Frame, Unwinder
from katana_cc.process.activity import backtrace_of
from katana_cc.process.cfi import FrameTables
from katana_cc.process.imports import Linker
from katana_cc.process.modules import Module
from katana_cc.process.target import Target

_AT_BASE: Final = 7  # address of the dynamic loader; elf.h


class SafePoint:
    """Judges threads of one process.  Made before any is stopped.

    Args:
        unwinders: addresses of functions that hold the unwinders' locks.
    """

    def __init__(self, target: Target, linker: Linker, unwinders: Collection[int]) -> None:
        ledgers = [m.ledger for m in target.patches if m.ledger is not None]
        self._tables = FrameTables(target.memory, target.modules, ledgers)
        self._tables.preload(target.modules)
        self._unwinder: Unwinder = self._tables.unwinder()
        self._memory = target.memory
        self._modules = target.modules
        self._program = target.program_module()
        self._unwinders = frozenset(unwinders)
        libc = self._module_of(linker.first("__libc_start_main"))
        allocator = self._module_of(linker.first("malloc")) or self._program
        loader = self._module_of(target.auxiliary(_AT_BASE) or None)
        self._careful = [m for m in (libc, allocator) if m is not None]
        never = [(loader, "is in the dynamic loader")] if loader is not libc else []
        never += [(allocator, "is in the memory allocator")] if allocator not in (libc, self._program) else []
        throwing = (self._module_of(a) for a in unwinders)
        never += [(m, "is throwing an exception") for m in throwing if m not in (libc, self._program)]
        self._never = [(m, why) for m, why in never if m is not None]

    def why_not(self, words: Sequence[int]) -> str:
        """Why no function may be called in a thread with these registers; "" when one may."""
        trace = backtrace_of(self._unwinder, words)
        if not trace.is_complete:
            return f"has a stack that cannot be read: {trace.why}"
        for frame in trace.frames:
            if why := self._why_not_in(frame):
                return why
        here = self._module_of(words[cpu.PC])
        if (here is None or here in self._careful) and not cpu.waits_outside(words, self._memory.read):
            return "is in the C library"
        return ""

    def may_allocate(self, words: Sequence[int]) -> bool:
        """Whether a stopped thread may be inside the allocator on a path that takes no lock, as through a thread's own
        cache of free blocks: on such a path it makes no system call."""
        if cpu.in_system_call(words):
            return False
        here = self._module_of(words[cpu.PC])
        return here is not None and (here in self._careful or any(here is module for module, _ in self._never))

    def _why_not_in(self, frame: Frame) -> str:
        if frame.depth and frame.is_exact:
            return "is in a signal handler"
        pc = frame.pc if frame.is_exact else frame.pc - 1
        module = self._module_of(pc)
        for other, why in self._never:
            if module is other:
                return why
        function = self._tables.find(pc)
        return "is throwing an exception" if function is not None and function.pc in self._unwinders else ""

    def _module_of(self, address: int | None) -> Module | None:
        return None if address is None else next((m for m in self._modules if m.holds(address)), None)
