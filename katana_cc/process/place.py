"""Choosing where in a target's address space the mapping of a patch goes.

Every byte of the mapping must reach every byte of the module with a jump, and back.  In a program linked for fixed
addresses it must also lie where code there can name it: on x86-64 below 2 GiB, in 32 bits.  Below the
module is preferred: above it the heap grows.
"""

from __future__ import annotations

from collections.abc import Iterator

from katana_cc.cpu.native import code, system
from katana_cc.errors import RefusedError
from katana_cc.process.link import PAGE, Layout
from katana_cc.process.maps import MemoryMap
from katana_cc.process.modules import Module

_REACH = code.JUMP_REACH - (1 << 16)
_LOWEST = 1 << 16  # vm.mmap_min_addr
_GAP = 16 * PAGE  # kept free on both sides, so that an overrun of a neighbour faults


def candidate_bases(regions: MemoryMap, module: Module, size: int) -> Iterator[int]:
    """Addresses for a mapping of `size` bytes, best first."""
    low = max(_LOWEST, module.end - _REACH)
    high = min(system.ADDRESS_LIMIT, module.start + _REACH)
    if module.is_fixed:
        low, high = _LOWEST, min(high, system.FIXED_LIMIT)
    below, above = [], []
    for start, end in regions.gaps(low, high):
        for guard in (_GAP, 0):
            first, last = _up(start + guard), (end - guard - size) & -PAGE
            if first <= last:
                if end <= module.start:
                    below.append(last)
                else:
                    # In the middle: away from the heap, which grows up from below, and from mmap, which grows down.
                    above.append(((first + last) // 2) & -PAGE)
                break
    yield from reversed(below)
    yield from above


def choose_base(regions: MemoryMap, module: Module, size: int, attempt: int = 0) -> int:
    """The best address not yet tried.

    Raises:
        RefusedError: nothing near enough is free.
    """
    for n, base in enumerate(candidate_bases(regions, module, size)):
        if n == attempt:
            return base
    raise RefusedError(
        f"no free address range of {size} bytes within {code.JUMP_REACH >> 20} MiB of {module.path}",
        remedy="restart the process with the new build",
    )


def base_for(regions: MemoryMap, module: Module, layout: Layout) -> int:
    """The best base for a layout, with room for its head before it.

    Raises:
        RefusedError: nothing near enough is free.
    """
    return choose_base(regions, module, len(layout.head) + layout.size) + len(layout.head)


def _up(value: int) -> int:
    return (value + PAGE - 1) & -PAGE
