"""Other processes that run in the memory of one: between vfork and exec, or made by clone(CLONE_VM)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from katana_cc.process.sharing import same_memory
from katana_cc.process.target import MEMFD_PREFIX, read_map


class Sharing:
    """Other processes that run in the same memory (vfork, clone).

    Args:
        address: where a mapping of katana's begins, which such a process has, too.
    """

    def __init__(self, pid: int, address: int) -> None:
        self._pid = pid
        region = read_map(pid).at(address)
        self._mark = f"{region.start:x}-{region.end:x} ".encode() if region is not None else b""
        self._others = {pid}  # that do not

    def found(self) -> int:
        """One of them; 0 for none."""
        for name in os.listdir("/proc"):  # noqa: PTH208  (quicker in the stop)
            if not name.isdigit() or int(name) in self._others:
                continue
            with contextlib.suppress(OSError):
                data = Path(f"/proc/{name}/maps").read_bytes()
                if self._mark in data and MEMFD_PREFIX.encode() in data and same_memory(self._pid, int(name)):
                    return int(name)
            self._others.add(int(name))
        return 0
