"""Link maps of GNU ld, gold, lld and mold: which input section went where.

All four are line formats meant for people.  Only contributions with an address and a size are read; debug sections
(address 0 or not allocated) and fill are left out.  The map is believed only as far as the final file's bytes confirm
it (`placement.py`).
"""

import re
from collections.abc import Iterable
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
_GNU = re.compile(rb"^ (\.?[^\s*(][^\s]*|COMMON)\s+0x0*([1-9a-f][0-9a-f]*)\s+0x([0-9a-f]+) (\S[^\n]*)$", re.MULTILINE)
# `  1840  1840  b9  16         a.o:(.text.startup.main)`
_LLD = re.compile(rb"^ *([0-9a-f]+) +[0-9a-f]+ +([0-9a-f]+) +\d+ {9}(\S[^\n]*):\(([^\n()]+)\)$", re.MULTILINE)
# `  0x17f0  185  16         a.o:(.text.startup.main)`
_MOLD = re.compile(rb"^ *(?:0x)?([0-9a-f]+) +(\d+) +\d+ {9}(\S[^\n]*):\(([^\n()]+)\)$", re.MULTILINE)

_NOT_ALLOCATED: Final = (
    b".debug_", b".comment", b".note.GNU-stack", b".gnu.build.attributes", b".stab", b".gnu.lto_"
)  # fmt: skip

_LINKERS_OWN: Final = ("<internal>", "linker stubs", "** merge strings", "** merge constants", "** eh_frame")


def parse(data: bytes, where: str = "link map") -> list[Contribution]:
    """All contributions in a link map, in its order; the format is recognised by its heading.

    Raises:
        FormatError: none of the four formats.
    """
    head = data[:200].lstrip()
    if head.startswith(b"VMA") and b"LMA" in head.split(b"\n", 1)[0]:
        rows, base = _vma_style(_LLD, data), 16
    elif head.startswith(b"VMA"):
        rows, base = _vma_style(_MOLD, data), 10
    else:
        start = data.find(b"\nLinker script and memory map")  # GNU ld
        if start < 0:
            start = data.find(b"\nMemory map")  # gold
        if start < 0 and not data.startswith(b"Memory map"):
            raise FormatError("not a link map of GNU ld, gold, lld or mold", where=where)
        rows, base = _GNU.findall(data, max(start, 0)), 16
    return _contributions(rows, base)


_Row = tuple[bytes, bytes, bytes, bytes]  # section, address, size, path: as the map spells them


def _vma_style(pattern: re.Pattern[bytes], data: bytes) -> list[_Row]:
    return [
        ({b".common": b"COMMON"}.get(name, name).split(b"+0x")[0], address, size, path)
        for address, size, path, name in pattern.findall(data)
    ]


def _contributions(rows: Iterable[_Row], size_base: int) -> list[Contribution]:
    # Thousands of rows name a few hundred files: each path is read once.
    files: dict[bytes, tuple[str, str]] = {}
    result = []
    for name, address, size, path in rows:
        if name.startswith(_NOT_ALLOCATED):
            continue
        known = files.get(path)
        if known is None:
            known = files[path] = _file_and_member(path)
        place, length = int(address, 16), int(size, size_base)
        if place and length and known[0] not in _LINKERS_OWN:
            section = name.decode("utf-8", "surrogateescape")
            result.append(tuple.__new__(Contribution, (*known, section, place, length)))
    return result


def _file_and_member(path: bytes) -> tuple[str, str]:
    file = path.decode("utf-8", "surrogateescape")
    if file.endswith(")") and "(" in file:
        file, _, member = file[:-1].rpartition("(")
        return file, member
    return file, ""
