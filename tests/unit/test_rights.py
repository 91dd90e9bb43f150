"""What katana lacks where a target may not be traced: by its capabilities, its filter, and the system's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.process.rights import seccomp_remedy, tracing_remedy

ALL = f"{(1 << 41) - 1:016x}"
NONE = "0" * 16


def proc(folder: Path, capabilities: str, seccomp: int = 0, scope: int | None = None) -> Path:
    (folder / "self").mkdir()
    (folder / "self/status").write_text(f"Name:\tkatana\nCapEff:\t{capabilities}\nSeccomp:\t{seccomp}\n")
    if scope is not None:
        (folder / "sys/kernel/yama").mkdir(parents=True)
        (folder / "sys/kernel/yama/ptrace_scope").write_text(f"{scope}\n")
    return folder


@pytest.mark.parametrize(
    ("capabilities", "scope", "said", "not_said"),
    [
        (NONE, None, "AmbientCapabilities=CAP_SYS_PTRACE", "yama"),
        (NONE, 0, "--cap-add SYS_PTRACE", "yama"),
        (NONE, 1, "sysctl kernel.yama.ptrace_scope=0", "next boot"),
        (NONE, 2, "ptrace_scope is 2", "sysctl"),
        (NONE, 3, "next boot", "root"),
        (ALL, 3, "next boot", "root"),
        (ALL, 1, "SELinux", "CAP_SYS_PTRACE"),
    ],
)
def test_what_forbids_tracing_is_named(
    tmp_path: Path, capabilities: str, scope: int | None, said: str, not_said: str
) -> None:
    """A bug: root is told to be root, or a sysctl is named that would not help."""
    words = tracing_remedy(proc(tmp_path, capabilities, scope=scope))
    assert said in words
    assert not_said not in words


@pytest.mark.parametrize(
    ("capabilities", "seccomp", "said"),
    [
        (ALL, 2, "seccomp=unconfined"),
        (NONE, 2, "seccomp=unconfined"),
        (NONE, 0, "SystemCallFilter=memfd_create mmap munmap close"),
        (ALL, 0, "CONFIG_CHECKPOINT_RESTORE"),
    ],
)
def test_what_forbids_to_suspend_a_filter_is_named(tmp_path: Path, capabilities: str, seccomp: int, said: str) -> None:
    assert said in seccomp_remedy(proc(tmp_path, capabilities, seccomp))


def test_without_proc_there_are_words_too(tmp_path: Path) -> None:
    assert "root" in tracing_remedy(tmp_path)
    assert "root" in seccomp_remedy(tmp_path)
