"""One process to be patched: whether it can be, what it has mapped, which patches it carries.

Everything here reads only; nothing is stopped or traced.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from katana_cc.errors import BusyError, LaterKatanaError, RefusedError, TargetError
from katana_cc.process.claim import claim
from katana_cc.process.frozen import is_frozen
from katana_cc.process.image import ledger_address
from katana_cc.process.ledger import Ledger, read_ledger
from katana_cc.process.maps import MemoryMap, is_scratch
from katana_cc.process.memory import ProcessMemory
from katana_cc.process.modules import Module, find_modules
from katana_cc.process.proc import has_ended, is_traced_by_us, status_fields
from katana_cc.process.sharing import owner_of_memory

AT_ENTRY: Final = 9  # where the program itself begins; elf.h
_AT_RANDOM: Final = 25  # where 16 random bytes are; getauxval(3)
MEMFD_PREFIX = "/memfd:katana:"


@dataclass(frozen=True, slots=True)
class PatchMapping:
    """A mapping a katana made: [start, end), with its ledger at `base`, before which there may be the head of an ELF
    image.  `ledger` is None when it died before the ledger was whole: nothing leads in."""

    start: int
    base: int
    end: int
    name: str
    ledger: Ledger | None
    inode: int = 0

    @property
    def size(self) -> int:
        """Bytes from the base on."""
        return self.end - self.base


class Target:
    """An open process.  `close` when done, or use as a context manager.

    Raises (on opening):
        TargetError: no such process, a zombie, a kernel thread, or not ours to read.
        RefusedError: a thread id, katana itself, or a child that has its parent's memory.
    """

    def __init__(self, pid: int) -> None:
        fields = status_fields(pid)
        where = f"pid {pid}"
        if pid <= 0 or not fields:
            raise TargetError(f"there is no process {pid}", where=where, remedy="see `katana status`, or ps")
        if pid == os.getpid():
            raise RefusedError("katana does not patch itself", where=where)
        if int(fields.get("Tgid", pid)) != pid:
            raise RefusedError(
                f"{pid} is a thread of process {fields['Tgid']}", where=where, remedy=f"use --pid {fields['Tgid']}"
            )
        self.name = fields.get("Name", "?")
        if fields.get("State", "").startswith(("Z", "X")) and "VmSize" not in fields and not self._has_threads(pid):
            raise TargetError(
                f"process {pid} ({self.name}) has exited (zombie)",
                where=f"{where} ({self.name})",
                remedy="there is nothing left to patch; its parent has not yet collected its status",
            )
        if fields.get("State", "").startswith(("Z", "X")):
            # Its memory cannot be reached by the process id any more.
            raise RefusedError(
                "its first thread has ended, and others go on",
                where=f"{where} ({self.name})",
                remedy="restart the process with the new build",
            )
        # Before its memory is opened: what is its own now stays so.
        if owner := owner_of_memory(pid):
            raise RefusedError(
                f"it has the memory of its parent, pid {owner}, until it begins a program of its own (vfork)",
                where=f"{where} ({self.name})",
                remedy=f"what is done to pid {owner} is done to it; name that one, or try again later",
            )
        self.pid = pid
        self.memory = ProcessMemory(pid)
        self._claim = -1

    @staticmethod
    def _has_threads(pid: int) -> bool:
        """Whether threads live on after their leader has exited."""
        try:
            return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
        except OSError:
            return False

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        self.memory.close()
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    def claim(self, wait: float) -> None:
        """Be the only katana at work on it until `close`: before it is read what is to be changed.

        Raises:
            BusyError: another is, for `wait` seconds.
        """
        if self._claim < 0:
            self._claim = claim(self.pid, self.where, wait)

    @property
    def where(self) -> str:
        """What to call it in errors."""
        return f"pid {self.pid} ({self.name})"

    def refuse_if_traced(self) -> None:
        """Raises TargetError that names the tracer, if there is one."""
        fields = status_fields(self.pid)
        tracer = int(fields.get("TracerPid", "0"))
        if tracer and not is_traced_by_us(fields):  # a thread that has not stopped in time is still
            name = status_fields(tracer).get("Name", "?")
            raise TargetError(
                f"already traced by {name} (pid {tracer})",
                where=self.where,
                remedy="end that debugger or tracer, then try again",
            )

    def refuse_if_frozen(self) -> None:
        """Raises BusyError if its control group is frozen."""
        if is_frozen(self.pid):
            raise BusyError(
                "its control group is frozen, and it can do nothing",
                where=self.where,
                remedy="nothing was touched; thaw it (docker unpause, systemctl thaw), then try again",
            )

    def has_gone(self) -> bool:
        """Whether what was opened is no more: the process has ended, or became another program."""
        return not self._has_memory() or has_ended(self.pid)

    def _has_memory(self) -> bool:
        """Whether the address space that was opened is still there."""
        try:
            starts = [r.start for r in self.regions.regions if r.permissions.startswith("r")]
        except TargetError:
            return False
        for start in starts:
            with contextlib.suppress(TargetError):
                self.memory.read(start, 1)
                return True
        return False

    def read_map(self) -> MemoryMap:
        """The memory map as it is now."""
        return read_map(self.pid)

    @cached_property
    def regions(self) -> MemoryMap:
        """The memory map as it was first seen."""
        regions = self.read_map()
        if not regions.regions:
            raise TargetError(
                "it has no memory (a kernel thread, or it has just exited)",
                where=self.where,
                remedy="name a process of a program; see `katana status`",
            )
        return regions

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        """All mapped ELF files."""
        try:
            return find_modules(self.memory, self.regions)
        except RefusedError as error:
            raise RefusedError(error.what, where=f"{self.where}: {error.where}", remedy=error.remedy) from None

    @property
    def patches(self) -> tuple[PatchMapping, ...]:
        """The mappings katana made, as they are now, in address order.

        Raises:
            LaterKatanaError: a later katana made one.
            TargetError: the process is gone.
        """
        return tuple(self._patches(self.read_map()))

    @property
    def known_patches(self) -> tuple[PatchMapping, ...]:
        """The same without those that a later katana made."""
        return tuple(self._patches(self.read_map(), without_later=True))

    def _patches(self, regions: MemoryMap, *, without_later: bool = False) -> Iterator[PatchMapping]:
        ours = [r for r in regions.regions if r.path.startswith(MEMFD_PREFIX) and not is_scratch(r)]
        for i, region in enumerate(ours):
            if region.offset:
                continue
            end = region.end
            for following in ours[i + 1 :]:
                if following.inode != region.inode or following.start != end or not following.offset:
                    break
                end = following.end
            name = region.path.removeprefix("/memfd:").removesuffix(" (deleted)")
            base = ledger_address(self.memory, region.start)
            try:
                ledger = read_ledger(self.memory, base)
            except TargetError as error:
                if without_later and isinstance(error, LaterKatanaError):
                    continue
                error.where = error.where or self.where
                raise
            yield PatchMapping(region.start, base, end, name, ledger, region.inode)

    def memfd_at(self, base: int) -> int:
        """The inode of the mapping of ours at `base`, which forks share; 0: there is none."""
        region = self.read_map().at(base)
        return region.inode if region is not None else 0

    def auxiliary(self, kind: int) -> int:
        """A value of the auxiliary vector (AT_*, elf.h); 0 when it is not there."""
        try:
            data = Path(f"/proc/{self.pid}/auxv").read_bytes()
        except OSError:
            return 0
        words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) - 7, 8)]
        return dict(zip(words[::2], words[1::2], strict=False)).get(kind, 0)

    @cached_property
    def start(self) -> bytes:
        """What tells the start of one program from every other, and is the same in all that it forks: the random bytes
        that the kernel gave it.  Empty where they cannot be read."""
        with contextlib.suppress(TargetError):
            return self.memory.read(self.auxiliary(_AT_RANDOM), 16)
        return b""

    def program_module(self) -> Module | None:
        """The program itself (not a library): the module that holds the entry point's program headers."""
        entry = self.auxiliary(AT_ENTRY)
        return next((m for m in self.modules if m.holds(entry)), None)


def extent(regions: MemoryMap, base: int, size: int) -> tuple[int, int]:
    """[start, end) of the mapping of ours of which `size` bytes lie at `base`: with what is mapped of the same memfd
    straight before."""
    start, at = base, regions.at(base)
    while at is not None and at.path.startswith(MEMFD_PREFIX):
        start = at.start
        before = regions.at(start - 1)
        at = before if before is not None and before.inode == at.inode and at.offset else None
    return start, base + size


def read_map(pid: int) -> MemoryMap:
    """The memory map of a process.

    Raises:
        TargetError: gone, or not ours to read.
    """
    try:
        text = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except PermissionError as error:
        raise TargetError(
            f"may not be read: {error.strerror}",
            where=f"pid {pid}",
            remedy="run katana as the user the process runs as, or as root (CAP_SYS_PTRACE)",
        ) from None
    except OSError:
        raise TargetError("the process is gone", where=f"pid {pid}") from None
    return MemoryMap.parse(text)
