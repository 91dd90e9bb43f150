"""Instructions of the target that a thread can be sent to: what is mapped anyway, so that nothing has to be written.

`syscall` is all that is needed.  With the others a thread that was sent somewhere comes back by itself
(`cpu.interface.WayBack`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from katana_cc.cpu.native import system as cpu
from katana_cc.cpu.native import way_back
from katana_cc.errors import RefusedError, TargetError
from katana_cc.process.maps import MemoryMap
from katana_cc.process.memory import Reader

_CHUNK = 1 << 22
_OVERLAP = 32
_COMPARED = 2  # bytes of each: of a system call instruction, all


@dataclass(frozen=True, slots=True)
class Gadgets:
    """Addresses; 0 for what is not there.

    `syscall`: makes a system call.  `returning`: makes one and returns.  `restorer`: goes
    back by a signal frame, in `restorer_size` bytes.  `keeper`: keeps a function's result in memory, takes `kept_words`
    from the stack and returns.
    `regions` is the memory map they were found in; `code` what lies at each, as (address, bytes): after execve it is
    something else.
    """

    regions: MemoryMap
    syscall: int
    returning: int = 0
    restorer: int = 0
    restorer_size: int = 0
    keeper: int = 0
    kept_words: int = 0
    code: tuple[tuple[int, bytes], ...] = ()

    @property
    def lead_back(self) -> bool:
        """Whether a thread comes back by itself."""
        return bool(self.returning and self.restorer)


def find_gadgets(memory: Reader, regions: MemoryMap, where: str) -> Gadgets:
    """Look for them in the vDSO, the C library, and whatever else is executable.

    Raises:
        RefusedError: no `syscall` is mapped (then the process could make no system call at all).
        TargetError: nothing of it can be read.
    """
    executable = [r for r in regions.regions if "x" in r.permissions and r.path != "[vsyscall]"]
    syscall = returning = restorer = size = keeping = words = 0
    is_there = False
    for region in sorted(executable, key=lambda r: (r.path != "[vdso]", "libc" not in r.path)):
        for start in range(region.start, region.end, _CHUNK - _OVERLAP):
            code = b""
            with contextlib.suppress(TargetError):
                code = memory.read(start, min(_CHUNK, region.end - start))
                is_there = True
            if not syscall and (at := code.find(cpu.SYSCALL_INSTRUCTION)) >= 0:
                syscall = start + at
            if way_back is None:
                continue
            if not returning and (at := code.find(way_back.SYSCALL_AND_RETURN)) >= 0:
                returning = start + at
            for pattern in () if restorer else way_back.RESTORERS:
                if (at := code.find(pattern)) >= 0:
                    restorer, size = start + at, len(pattern)
                    break
            if not keeping and (keeper := way_back.keeper(code)):
                keeping, words = start + keeper[0], keeper[1]
            if syscall and returning and restorer and keeping:
                break
    if not is_there:
        raise TargetError("the process died", where=where)
    if not syscall:
        raise RefusedError(
            "no syscall instruction is mapped, with which katana could make system calls there",
            where=where,
            remedy="restart the process with the new build",
        )
    found = tuple((at, memory.read(at, _COMPARED)) for at in (syscall, returning, restorer, keeping) if at)
    return Gadgets(regions, syscall, returning, restorer, size, keeping, words, found)
