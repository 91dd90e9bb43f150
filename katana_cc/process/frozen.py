"""Processes whose control group is frozen (`docker pause`, `systemctl freeze`): they can be stopped, and do nothing.

A thread of such a process makes no system call for katana, nor does one that is held come to its SIGSTOP, before
somebody thaws the group.

Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst (cgroup.events), cgroup-v1/freezer-subsystem.rst;
proc_pid_mountinfo(5).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_UNIFIED, _FREEZER = "cgroup2", "freezer"


def is_frozen(pid: int) -> bool:
    """Whether a process is, as far as can be told: where its group is not to be seen, False."""
    for kind, path in _groups(pid):
        for folder in _folders(kind, path):
            try:
                if kind == _UNIFIED:
                    is_so = "frozen 1" in (folder / "cgroup.events").read_text().splitlines()
                else:
                    is_so = (folder / "freezer.state").read_text().strip() != "THAWED"
            except OSError:
                continue
            if is_so:
                return True
    return False


def _groups(pid: int) -> Iterator[tuple[str, str]]:
    """(kind of hierarchy, path of the group in it) of those that can freeze."""
    for line in _lines(Path(f"/proc/{pid}/cgroup")):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield _UNIFIED, path
        elif _FREEZER in controllers.split(","):
            yield _FREEZER, path


def _folders(kind: str, path: str) -> Iterator[Path]:
    """Where a group of a hierarchy is to be seen."""
    for line in _lines(Path("/proc/self/mountinfo")):
        # ID PARENT DEVICE ROOT MOUNT-POINT OPTIONS [OPTIONAL ...] - TYPE SOURCE SUPER-OPTIONS
        mount, _, system = line.partition(" - ")
        _, _, _, root, point, *_ = mount.split()
        found, _, options = system.split(" ", 2)
        if found != _UNIFIED and not (found == "cgroup" and _FREEZER in options.split(",")):
            continue
        is_below = path == root or path.startswith(root.rstrip("/") + "/")
        if (found == _UNIFIED) == (kind == _UNIFIED) and is_below:
            yield Path(point) / path[len(root.rstrip("/")) :].lstrip("/")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
