"""Link maps of GNU ld, gold, lld and mold: which input section went where.

All four are line formats meant for people.  Only contributions with an address and a size are read; debug sections
(address 0 or not allocated) and fill are left out.  The map is believed only as far as the final file's bytes confirm
it (`placement.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from katana_cc.errors import FormatError


class Contribution(NamedTuple):
    """`size` bytes of section `section` of `file` (its `member`, for archives) lie at link-time address `address`."""

    file: str
    member: str
    section: str
    address: int
    size: int


# ` .text.main  0x0000000000001060  0xb9 a.o`; a long name stands on a line of its own.
_GNU = re.compile(rb"^ (\.?[^\s*(][^\s]*|COMMON)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+) (\S[^\n]*)$", re.MULTILINE)
# `  1840  1840  b9  16         a.o:(.text.startup.main)`
_LLD = re.compile(rb"^ *([0-9a-f]+) +[0-9a-f]+ +([0-9a-f]+) +\d+ {9}(\S[^\n]*):\(([^\n()]+)\)$", re.MULTILINE)
# `  0x17f0  185  16         a.o:(.text.startup.main)`
_MOLD = re.compile(rb"^ *(?:0x)?([0-9a-f]+) +(\d+) +\d+ {9}(\S[^\n]*):\(([^\n()]+)\)$", re.MULTILINE)

_NOT_ALLOCATED: Final = (".debug_", ".comment", ".note.GNU-stack", ".gnu.build.attributes", ".stab", ".gnu.lto_")

_LINKERS_OWN: Final = ("<internal>", "linker stubs", "** merge strings", "** merge constants", "** eh_frame")


def parse(data: bytes, where: str = "link map") -> list[Contribution]:
    """All contributions in a link map, in its order; the format is recognised by its heading.

    Raises:
        FormatError: none of the four formats.
    """
    head = data[:200].lstrip()
    if head.startswith(b"VMA") and b"LMA" in head.split(b"\n", 1)[0]:
        found = _vma_style(_LLD, data, size_base=16)
    elif head.startswith(b"VMA"):
        found = _vma_style(_MOLD, data, size_base=10)
    else:
        start = data.find(b"\nLinker script and memory map")  # GNU ld
        if start < 0:
            start = data.find(b"\nMemory map")  # gold
        if start < 0 and not data.startswith(b"Memory map"):
            raise FormatError("not a link map of GNU ld, gold, lld or mold", where=where)
        found = _gnu_style(data, max(start, 0))
    return [x for x in found if x.size and x.file not in _LINKERS_OWN and not x.section.startswith(_NOT_ALLOCATED)]


def _gnu_style(data: bytes, start: int) -> Iterator[Contribution]:
    for match in _GNU.finditer(data, start):
        name, address, size, path = match.groups()
        where = int(address, 16)
        if where:
            yield _contribution(path, name, where, int(size, 16))


def _vma_style(pattern: re.Pattern[bytes], data: bytes, size_base: int) -> Iterator[Contribution]:
    for match in pattern.finditer(data):
        address, size, path, name = match.groups()
        where = int(address, 16)
        if where:
            name = {b".common": b"COMMON"}.get(name, name)
            yield _contribution(path, name.split(b"+0x")[0], where, int(size, size_base))


def _contribution(path: bytes, section: bytes, address: int, size: int) -> Contribution:
    file = path.decode("utf-8", "surrogateescape")
    member = ""
    if file.endswith(")") and "(" in file:
        file, _, member = file[:-1].rpartition("(")
    return Contribution(file, member, section.decode("utf-8", "surrogateescape"), address, size)
