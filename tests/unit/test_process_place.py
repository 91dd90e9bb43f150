"""Memory maps, and where a patch goes in them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from katana_cc.elf import constants as c
from katana_cc.errors import RefusedError
from katana_cc.process.maps import MemoryMap, parse_region
from katana_cc.process.modules import Module
from katana_cc.process.place import choose_base

TEXT = """\
555555554000-555555556000 r-xp 00000000 fe:00 42                         /srv/with space (deleted)
555555600000-555555700000 rw-p 00000000 00:00 0                          [heap]
7ffff7a00000-7ffff7c00000 r-xp 00001000 fe:00 43                         /lib/libc.so.6
"""


def module(start: int, end: int, kind: int = c.ET_DYN) -> Module:
    """A module at [start, end)."""
    return Module("x", kind, 62, start, start, end, (), None)


def test_region_with_a_space_in_its_path() -> None:
    """A bug: the path is cut at a space."""
    region = parse_region(TEXT.splitlines()[0])
    assert (region.path, region.inode, region.size) == ("/srv/with space (deleted)", 42, 0x2000)


def test_region_is_found_by_address() -> None:
    """A bug: an end address counts as inside, or a gap as a region."""
    regions = MemoryMap.parse(TEXT)
    assert regions.at(0x555555600000) is regions.regions[1]
    assert regions.at(0x5555556FFFFF) is regions.regions[1]
    assert regions.at(0x555555700000) is None
    assert regions.at(0x1000) is None


def test_own_map_is_read_whole() -> None:
    """A bug: a line of a real map is not understood."""
    text = Path("/proc/self/maps").read_text()
    assert len(MemoryMap.parse(text).regions) == len(text.splitlines())


def test_gaps_and_regions_cover_everything_once() -> None:
    """A bug: a gap overlaps a region."""
    regions = MemoryMap.parse(TEXT)
    low, high = 0x10000, 1 << 47
    pieces = sorted([*regions.gaps(low, high), *((r.start, r.end) for r in regions.regions)])
    assert pieces[0][0] == low
    assert pieces[-1][1] == high
    assert all(a[1] == b[0] for a, b in pairwise(pieces))


def test_below_the_module_is_preferred() -> None:
    """A bug: the heap, above, has no room to grow."""
    base = choose_base(MemoryMap.parse(TEXT), module(0x555555554000, 0x555555556000), 0x3000)
    assert base + 0x3000 <= 0x555555554000
    assert 0x555555556000 - base < 1 << 31


def test_fixed_program_gets_the_low_two_gigabytes() -> None:
    """A bug: absolute 32-bit addresses in its code cannot hold the place."""
    regions = MemoryMap.parse("00400000-00500000 r-xp 00000000 fe:00 42 /srv/fixed\n")
    base = choose_base(regions, module(0x400000, 0x500000, c.ET_EXEC), 1 << 20)
    assert base + (1 << 20) <= 0x400000
    larger = choose_base(regions, module(0x400000, 0x500000, c.ET_EXEC), 1 << 24)
    assert 0x500000 <= larger < (1 << 31) - (1 << 24)


def test_full_neighbourhood_is_refused() -> None:
    """A bug: a place out of reach is taken."""
    start = 0x555555554000
    lines = f"{start - (1 << 32):x}-{start:x} rw-p 0 00:00 0\n{start:x}-{start + (1 << 32):x} rw-p 0 00:00 0\n"
    with pytest.raises(RefusedError):
        choose_base(MemoryMap.parse(lines), module(start, start + 0x1000), 0x1000)
