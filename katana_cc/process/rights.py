"""What this katana lacks where a target may not be traced, as what to do about it.

Sources: ptrace(2) "Ptrace access mode checking" and "/proc/sys/kernel/yama/ptrace_scope", PTRACE_O_SUSPEND_SECCOMP;
capabilities(7); proc_pid_status(5) (CapEff, Seccomp).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_CAP_SYS_PTRACE: Final = 19
_CAP_SYS_ADMIN: Final = 21
_NOBODY, _ADMINISTRATOR, _CHILDREN = 3, 2, 1  # values of ptrace_scope


def tracing_remedy(proc: Path = Path("/proc")) -> str:
    """How katana comes to be permitted to trace a process that it was not permitted to."""
    scope = _number(proc / "sys/kernel/yama/ptrace_scope")
    if scope == _NOBODY:
        return (
            "kernel.yama.ptrace_scope is 3: nobody may trace anything until the next boot; restart the process with "
            "the new build"
        )
    if not _has(proc, _CAP_SYS_PTRACE):
        remedy = (
            "run katana as root or with CAP_SYS_PTRACE (in a container: --cap-add SYS_PTRACE; in a unit file: "
            "AmbientCapabilities=CAP_SYS_PTRACE)"
        )
        if scope == _CHILDREN:
            remedy += ", or as the user of the process after `sysctl kernel.yama.ptrace_scope=0`"
        elif scope == _ADMINISTRATOR:
            remedy += "; kernel.yama.ptrace_scope is 2, so that its own user may not"
        return remedy
    return (
        "a security module (SELinux, AppArmor) or a user namespace around katana forbids it: see the kernel's log, and "
        "run katana on the host, unconfined"
    )


def seccomp_remedy(proc: Path = Path("/proc")) -> str:
    """How katana comes to be permitted to suspend a target's seccomp filter for a moment."""
    if _field(proc, "Seccomp") not in ("", "0"):
        return (
            "katana runs under seccomp itself, and may then not suspend it: run it outside of its container, or "
            "without its filter (--security-opt seccomp=unconfined; in a unit file: no SystemCallFilter=)"
        )
    if not _has(proc, _CAP_SYS_ADMIN):
        return (
            "run katana as root or with CAP_SYS_ADMIN, which may suspend seccomp for a moment (in a container: "
            "--cap-add SYS_ADMIN), or let the process make these calls: SystemCallFilter=memfd_create mmap munmap close"
        )
    return "this kernel cannot suspend seccomp (CONFIG_CHECKPOINT_RESTORE); restart the process with the new build"


def _has(proc: Path, capability: int) -> bool:
    return bool(int(_field(proc, "CapEff") or "0", 16) >> capability & 1)


def _field(proc: Path, name: str) -> str:
    """Of our own status; "" where there is none."""
    try:
        lines = (proc / "self/status").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:")), "")


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
