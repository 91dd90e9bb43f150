"""Bringing the mapping of a patch into a process, and taking it out again when nothing came of it.

One thread is stopped for some 100 us: memfd_create, mmap for each part, close.  The contents are written afterwards
through our own handle of the memfd, while the target runs: nothing leads there yet.  The mappings are private, so that
what the target, or a child it forks, changes later stays with that process.

Sources: memfd_create(2), mmap(2) (MAP_FIXED_NOREPLACE, Linux 4.17).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from katana_cc.cpu.native import system as cpu
from katana_cc.errors import RefusedError, TargetError
from katana_cc.process.borrowing import BorrowedThread
from katana_cc.process.gadgets import find_gadgets
from katana_cc.process.limits import descriptor_remedy, memory_remedy
from katana_cc.process.link import PAGE, PROT_READ, PROT_WRITE
from katana_cc.process.maps import STACK, is_scratch
from katana_cc.process.place import base_for
from katana_cc.process.plan import Plan, relink
from katana_cc.process.priority import first_in_line
from katana_cc.process.proc import list_threads, waiting_at
from katana_cc.process.remote import RemoteThread
from katana_cc.process.target import Target, extent

_MAP_PRIVATE: Final = 0x02
_MAP_FIXED_NOREPLACE: Final = 0x100000
_MFD_CLOEXEC: Final = 0x1
_MFD_EXEC: Final = 0x10
_ATTEMPTS: Final = 8
_CALL_STACK: Final = 64 * 1024


def inject(target: Target, plan: Plan) -> tuple[Plan, float]:
    """Map the patch and write its contents; the plan as it came to be (its base may have moved), and for how many
    microseconds one thread was stopped.

    Raises:
        RefusedError: the kernel or the target's limits forbid it.  Nothing is left behind.
    """
    gadgets = find_gadgets(target.memory, target.regions, target.where)
    handle = -1
    base = 0
    try:
        with first_in_line(), BorrowedThread(target.memory, gadgets) as remote:
            resolved = _call_resolvers(remote, target, plan)
            _unmap_leftovers(remote, target)
            number = make_memfd(remote, target, plan.name)
            try:
                handle = open_memfd(target, number)
                with _own_limits(target):
                    os.ftruncate(handle, len(plan.layout.head) + plan.layout.size)
                base = _map_parts(remote, target, plan, number)
            finally:
                remote.syscall(cpu.SYS_CLOSE, number)
        plan = relink(plan, base, resolved)
        head, image = plan.layout.head, plan.image
        with _own_limits(target):
            write_all(handle, head + image)
        if target.memory.read(base - len(head), len(head) + len(image)) != head + image:
            raise TargetError("the patch did not arrive in the target's memory", where=target.where)
        _keep_in_core_files(target, plan)
    except BaseException:
        if base:
            unmap(target, base, plan.layout.size, os.fstat(handle).st_ino)
        raise
    finally:
        if handle >= 0:
            os.close(handle)
    return plan, remote.pause_us


@contextlib.contextmanager
def _own_limits(target: Target) -> Iterator[None]:
    """What the system refuses to this process, and not to the target, in words."""
    try:
        yield
    except OSError as error:
        raise RefusedError(
            f"the memory of the patch cannot be written: {error.strerror}",
            where=target.where,
            remedy="a limit of katana's own (ulimit -f), or of memory (cgroup), forbids it; nothing was changed",
        ) from error


def unmap(target: Target, base: int, size: int, inode: int) -> None:
    """Take the mapping with that base out of the target, its head too, if it is still that of the memfd `inode`.  Only
    for one that nothing ever led into.

    Raises:
        TargetError: the process is gone (then so is the mapping), or the kernel refuses.
    """
    gadgets = find_gadgets(target.memory, target.regions, target.where)
    regions = target.read_map()
    at = regions.at(base)
    if at is None or at.inode != inode:
        return  # another's, or the process has called execve
    start, end = extent(regions, base, size)
    with first_in_line(), BorrowedThread(target.memory, gadgets) as remote:
        result = remote.syscall(cpu.SYS_MUNMAP, start, end - start)
    if result < 0:
        raise TargetError(
            f"munmap of {base:#x} failed: {os.strerror(-result)}",
            where=target.where,
            remedy="a mapping stays that nothing leads to; the next katana takes it out",
        )


def _call_resolvers(remote: RemoteThread, target: Target, plan: Plan) -> dict[int, int]:
    if not plan.resolution.pending:
        return {}
    with call_stack(remote, target, _CALL_STACK) as stack:
        return {
            p.index: remote.call(p.resolver, f"the resolver of {p.name}", stack + _CALL_STACK)
            for p in plan.resolution.pending
        }


@contextlib.contextmanager
def call_stack(remote: RemoteThread, target: Target, size: int) -> Iterator[int]:
    """A stack of its own for calls, by its lowest address: the thread may be on a small one.

    It has a name, by which it is known if we are killed: nobody takes what is on it for the program's, and the next
    katana takes it out (`unmap_scratch`).

    Raises:
        RefusedError: a limit or a policy forbids it.
    """
    number = make_memfd(remote, target, STACK)
    try:
        handle = open_memfd(target, number)
        try:
            with _own_limits(target):
                os.ftruncate(handle, size)
        finally:
            os.close(handle)
        stack = remote.syscall(cpu.SYS_MMAP, 0, size, PROT_READ | PROT_WRITE, _MAP_PRIVATE, number, 0)
    finally:
        remote.syscall(cpu.SYS_CLOSE, number)
    if -PAGE < stack < 0:
        raise _no_mapping(target, stack, size)
    try:
        yield stack
    finally:
        remote.syscall(cpu.SYS_MUNMAP, stack, size)


def unmap_scratch(remote: RemoteThread, target: Target) -> None:
    """Take out what a katana that was killed had mapped for calls, if surely no thread is on it any more."""
    regions = target.read_map()
    left = [r for r in regions.regions if is_scratch(r)]
    if not left:
        return
    places = [waiting_at(target.pid, tid) for tid in list_threads(target.pid) if tid != remote.tid]
    on = [p for place in (*places, remote.place) if place is not None for p in place]
    if None not in places and not any(r.start <= p < r.end for r in left for p in on):
        for region in left:
            remote.syscall(cpu.SYS_MUNMAP, region.start, region.end - region.start)


def _unmap_leftovers(remote: RemoteThread, target: Target) -> None:
    """What a katana left that died before its ledger was whole: nothing can lead there."""
    for mapping in target.patches:
        if mapping.ledger is None:
            remote.syscall(cpu.SYS_MUNMAP, mapping.start, mapping.end - mapping.start)


def make_memfd(remote: RemoteThread, target: Target, name: str) -> int:
    """The descriptor, in the target, of a new memfd.

    Raises:
        RefusedError: a limit or a policy forbids it.
    """
    encoded = name.encode("utf-8", "surrogateescape")[:240] + b"\0"
    with remote.scratch(encoded) as address:
        number = remote.syscall(cpu.SYS_MEMFD_CREATE, address, _MFD_CLOEXEC | _MFD_EXEC)
        if number == -errno.EINVAL:  # before Linux 6.3
            number = remote.syscall(cpu.SYS_MEMFD_CREATE, address, _MFD_CLOEXEC)
    if number < 0:
        remedies = {
            errno.EMFILE: descriptor_remedy(target.pid),
            errno.ENFILE: "the system has no file left to open (sysctl fs.file-max)",
            errno.EACCES: "sysctl vm.memfd_noexec=2 forbids executable memfds: `sysctl vm.memfd_noexec=1`, then again",
        }
        raise RefusedError(
            f"memfd_create in the target failed: {os.strerror(-number)}",
            where=target.where,
            remedy=remedies.get(-number, "a sandbox (seccomp, LSM) may forbid it; restart with the new build"),
        )
    return number


def open_memfd(target: Target, number: int) -> int:
    """A descriptor of our own of a memfd of the target."""
    try:
        return os.open(f"/proc/{target.pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise TargetError(
            f"the memfd cannot be opened: {error.strerror}",
            where=target.where,
            remedy="katana has to be let open /proc/PID/fd (by hidepid, by a security module); nothing was changed",
        ) from None


def _map_parts(remote: RemoteThread, target: Target, plan: Plan, number: int) -> int:
    base, head = plan.base, len(plan.layout.head)
    parts = [(head + p.offset, p.size, p.protection) for p in plan.layout.parts if p.size]
    # The head is part of the first: (offset in the memfd, size, protection).
    pieces = [(0, head + parts[0][1], parts[0][2]), *parts[1:]]
    for attempt in range(_ATTEMPTS):
        if attempt:
            # Something was mapped there since we looked.
            base = base_for(target.read_map(), plan.module, plan.layout)
        done: list[tuple[int, int]] = []
        result = 0
        for offset, size, protection in pieces:
            flags = _MAP_PRIVATE | _MAP_FIXED_NOREPLACE
            wanted = base - head + offset
            result = remote.syscall(cpu.SYS_MMAP, wanted, size, protection, flags, number, offset)
            if -PAGE < result < 0:
                break
            done.append((wanted, size))
            if result != wanted:  # a kernel that takes the address for a hint
                remote.syscall(cpu.SYS_MUNMAP, result, size)
                done.pop()
                result = -errno.EEXIST
                break
        else:
            return base
        for address, size in done:
            remote.syscall(cpu.SYS_MUNMAP, address, size)
        if result != -errno.EEXIST:
            raise _no_mapping(target, result, head + plan.layout.size)
    raise RefusedError(
        "the address range near the module is taken again and again",
        where=target.where,
        remedy="the process maps memory all the time; try again",
    )


def _no_mapping(target: Target, result: int, size: int) -> RefusedError:
    remedy = "a policy (SELinux's execmem, MemoryDenyWriteExecute=) forbids it; restart with the new build"
    if result == -errno.ENOMEM:
        remedy = memory_remedy(target.pid, size)
    return RefusedError(f"mmap in the target failed: {os.strerror(-result)}", where=target.where, remedy=remedy)


def _keep_in_core_files(target: Target, plan: Plan) -> None:
    """Write the first byte of each part over itself.

    Of a private mapping of a file, a core file holds what was written to only (core(5)), and counts by mapping: one
    page of its own brings all of it.  A kernel that forbids such writes makes core files that tell less.
    """
    for part in plan.layout.parts:
        if part.size:
            with contextlib.suppress(TargetError):
                target.memory.write(plan.base + part.offset, plan.image[part.offset : part.offset + 1])


def write_all(handle: int, data: bytes, at: int = 0) -> None:
    """Write all of it, from an offset on."""
    view = memoryview(data)
    while view:
        count = os.pwrite(handle, view, at)
        view, at = view[count:], at + count
