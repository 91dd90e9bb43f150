"""What a target lacks that a patch needs, as remedies: commands that widen its limits while it runs.

Sources: prlimit(2), getrlimit(2) (RLIMIT_NOFILE, RLIMIT_AS, RLIMIT_DATA), prlimit(1), mmap(2) (ENOMEM).
"""

from __future__ import annotations

import resource
from typing import Final

_FILES: Final = 8
_MEMORY: Final = (("as", resource.RLIMIT_AS), ("data", resource.RLIMIT_DATA))
# Beside what is asked for: the stack of a call, and that malloc asks for a mebibyte where the heap cannot grow.
_BESIDE: Final = 2 << 20


def descriptor_remedy(pid: int) -> str:
    """How a process gets one more descriptor."""
    command = _widen(pid, "nofile", resource.RLIMIT_NOFILE, _FILES)
    what = "the process has no file descriptor left (ulimit -n, LimitNOFILE=)"
    return f"{what}: `{command}`, then again" if command else what


def memory_remedy(pid: int, size: int) -> str:
    """How a process gets `size` bytes more."""
    commands = [_widen(pid, name, limit, size + _BESIDE) for name, limit in _MEMORY]
    if any(commands):
        both = " && ".join(filter(None, commands))
        return f"a limit (ulimit -v, -d; LimitAS=, LimitDATA=) forbids it: `{both}`, then again"
    return "the system or the process's cgroup (memory.max) has no memory left, or sysctl vm.max_map_count is reached"


def _widen(pid: int, name: str, limit: int, by: int) -> str:
    """The command that adds to a limit; "" where there is none."""
    try:
        soft, hard = resource.prlimit(pid, limit)
    except OSError:
        return ""
    if soft == resource.RLIM_INFINITY:
        return ""
    wanted = soft + by
    # With a colon the hard limit stays: that needs no right.
    only_soft = hard == resource.RLIM_INFINITY or wanted <= hard
    return f"prlimit --pid {pid} --{name}={wanted}{':' if only_soft else ''}"
