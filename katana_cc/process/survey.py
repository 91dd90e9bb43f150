"""Which processes there are, which belong to a tree, and what patches each carries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from katana_cc.errors import KatanaError, TargetError
from katana_cc.outcomes import OfProcess, ProcessOutcome, outcome_of
from katana_cc.process.finishing import left
from katana_cc.process.ledger import Ledger
from katana_cc.process.phases import Bytes, Phase
from katana_cc.process.proc import status_fields
from katana_cc.process.sharing import owner_of_memory
from katana_cc.process.standing import standings
from katana_cc.process.symfs import write_symfs
from katana_cc.process.target import MEMFD_PREFIX, Target

_CAP_SYS_PTRACE: Final = 19  # linux/capability.h


@dataclass(frozen=True, slots=True)
class PatchStatus:
    """One patch in one process.

    `state`: "applied", "reverted" (its memory is kept), "prepared" (code in place, nothing leads to it), "half applied"
    (a katana died), "altered" (someone wrote over it), "abandoned" (no whole ledger), "unloaded" (its module is gone),
    "interrupted" (a katana died while it moved live data; the process stands still until the next one finishes).
    `image` is where the mapping begins as an ELF image; None: it was made by a katana that made none.
    `used_by` are the PO-IDs of patches in force that took the place of this one, and whose variables, or addresses of
    functions, are in its memory.
    """

    state: str
    name: str
    base: int
    size: int
    ledger: Ledger | None
    image: int | None = None
    used_by: tuple[str, ...] = ()

    @property
    def may_run(self) -> bool:
        """Whether something leads to its code."""
        return self.state in ("applied", "half applied", "altered", "interrupted")


@dataclass(frozen=True, slots=True)
class ModuleStatus:
    """One mapped ELF file."""

    path: str
    build_id: str | None
    start: int


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process: what it runs, what is applied to it."""

    pid: int
    name: str
    modules: tuple[ModuleStatus, ...]
    patches: tuple[PatchStatus, ...]


def all_pids() -> list[int]:
    """Every process but this one, ascending."""
    own = os.getpid()
    return sorted(
        int(name) for name in (entry.name for entry in Path("/proc").iterdir()) if name.isdigit() and int(name) != own
    )


def tree_pids(root: int) -> list[int]:
    """A process and its descendants, parents first.

    Raises:
        TargetError: there is no such process.
    """
    children = _children(all_pids())
    if not Path(f"/proc/{root}").exists():
        raise TargetError(f"there is no process {root}", where=f"pid {root}")
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return [p for p in found if p != os.getpid()]


def all_parents_first() -> list[int]:
    """Every process but this one, parents first, which process ids do not tell: they begin anew some time."""
    pids = all_pids()
    children = _children(pids)
    descendants = {pid for each in children.values() for pid in each}
    found = [pid for pid in pids if pid not in descendants]
    found += [pid for parent in children.keys() - set(pids) for pid in children[parent]]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _children(pids: Iterable[int]) -> dict[int, list[int]]:
    """The children of each process that has any."""
    children: dict[int, list[int]] = {}
    for pid in pids:
        parent = _parent_of(pid)
        if parent is not None:
            children.setdefault(parent, []).append(pid)
    return children


def _parent_of(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[1])  # the name before it may hold anything


@dataclass(frozen=True, slots=True)
class Found:
    """The processes a search found, and those it could not look into, for want of permission; how many were gone before
    they were looked into."""

    pids: tuple[int, ...]
    passed_over: tuple[int, ...]
    vanished: int = 0


def pids_mapping(pids: Iterable[int], build_id: str) -> Found:
    """Those that map the ELF file of that build-id."""
    return _search(pids, lambda pid: _maps_build(pid, build_id))


@dataclass(frozen=True, slots=True)
class Running:
    """Which processes map which builds, by build-id; and those that nobody may look into."""

    builds: dict[str, tuple[int, ...]]
    passed_over: tuple[int, ...]


def running_builds(pids: Iterable[int], *, must_match: bool) -> Running:
    """The builds that processes run, with those who run each.

    Raises:
        TargetError: with `must_match`, when one cannot be looked into.
    """
    builds: dict[str, list[int]] = {}
    passed_over = []
    told: list[OfProcess] = []
    errors: list[KatanaError] = []
    for pid in pids:
        try:
            with Target(pid) as target:
                found = {m.build_id for m in target.modules if m.build_id}
                told.append(OfProcess(pid, target.name, ProcessOutcome.NOT_TRIED))
        except (OSError, KatanaError) as error:
            if must_match:
                if not isinstance(error, KatanaError):
                    raise
                errors.append(error)
                told.append(OfProcess(pid, "?", outcome_of(error), error.what, error.remedy))
            elif _is_forbidden(pid):
                passed_over.append(pid)
            continue
        for build_id in found:
            builds.setdefault(build_id, []).append(pid)
    if errors:
        errors[0].processes = tuple(told)
        raise errors[0]
    return Running({build_id: tuple(pids) for build_id, pids in builds.items()}, tuple(passed_over))


def patched_pids(pids: Iterable[int]) -> Found:
    """Those that hold a mapping katana made, in memory of their own; reads /proc only."""
    return _search(pids, _is_patched)


def _search(pids: Iterable[int], fits: Callable[[int], bool]) -> Found:
    found, passed_over, vanished = [], [], 0
    for pid in pids:
        try:
            if fits(pid):
                found.append(pid)
        except (OSError, KatanaError):
            # Most that cannot be read have ended, or are kernel threads: they run no build.
            if _is_forbidden(pid):
                passed_over.append(pid)
            elif not Path(f"/proc/{pid}").exists():
                vanished += 1
    return Found(tuple(found), tuple(passed_over), vanished)


def _is_patched(pid: int) -> bool:
    return MEMFD_PREFIX.encode() in Path(f"/proc/{pid}/maps").read_bytes() and not owner_of_memory(pid)


def _maps_build(pid: int, build_id: str) -> bool:
    with Target(pid) as target:
        return any(m.build_id == build_id for m in target.modules)


def _is_forbidden(pid: int) -> bool:
    """Whether there is such a process and it is not ours to read (ptrace(2), "Ptrace access mode checking")."""
    try:
        Path(f"/proc/{pid}/maps").read_bytes()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def may_trace_all() -> bool:
    """Whether this process holds CAP_SYS_PTRACE: what it may not read is then outside of its namespace."""
    effective = int(status_fields(os.getpid()).get("CapEff", "0"), 16)
    return bool(effective >> _CAP_SYS_PTRACE & 1)


def process_status(pid: int) -> ProcessStatus:
    """What one process runs and carries.

    Raises:
        TargetError: gone, or not ours to read.
    """
    with Target(pid) as target:
        modules = tuple(ModuleStatus(m.path, m.build_id, m.start) for m in target.modules)
        return ProcessStatus(pid, target.name, modules, _statuses(target))


def write_images(pid: int, folder: Path) -> tuple[Path, ...]:
    """Make a folder for `perf report --symfs`, with the images of the patches of a process that may run; their paths.

    Raises:
        KatanaError: by its kind why it was not done.
    """
    with Target(pid) as target:
        running = {s.base for s in _statuses(target) if s.may_run and s.image is not None}
        found = [m for m in target.patches if m.base in running]
        return write_symfs(target, found, folder)


def _statuses(target: Target) -> tuple[PatchStatus, ...]:
    """How each patch of a process stands."""
    mappings = target.patches
    found = standings(target.memory, (m.ledger for m in mappings if m.ledger is not None))
    begun = left(target.memory)
    interrupted = begun.header.base if begun is not None else -1
    in_force = [m.ledger for m in mappings if m.ledger is not None and found[m.base] in (Bytes.NEW, Bytes.TORN)]
    return tuple(
        PatchStatus(
            "interrupted" if m.base == interrupted else _state(m.ledger, found.get(m.base)),
            m.name,
            m.base,
            m.size,
            m.ledger,
            m.start if m.start != m.base else None,
            tuple(
                g.patch_id
                for g in in_force
                if any(m.start <= r.address < m.end for r in g.residents) and g is not m.ledger
            ),
        )
        for m in mappings
    )


def _state(ledger: Ledger | None, found: Bytes | None) -> str:
    if ledger is None:
        return "abandoned"
    if found is None:
        return "unloaded"  # dlclose took the module away
    if found is Bytes.OLD:
        return "reverted" if ledger.state in (Phase.REVERTED, Phase.REVERTING) else "prepared"
    return found.value
