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
    """`size` bytes of a section of that name lie at link-time address `address`."""

    section: str
    address: int
    size: int


Input = tuple[str, str]  # a file, and its member where it is an archive

# Each begins with the end of the line before, so that it is looked for at line ends only.  One is compiled a link: it
# takes a millisecond.
_SHOWN: Final = r"(?!\.debug_|\.comment|\.note\.GNU-stack|\.gnu\.build\.attributes|\.stab|\.gnu\.lto_)"  # allocated
# ` .text.main  0x0000000000001060  0xb9 a.o`; a long name stands on a line of its own.
_GNU: Final = rf"\n ({_SHOWN}[^\s*(]\S*)\s+0x0*([1-9a-f][0-9a-f]*)\s+0x0*([1-9a-f][0-9a-f]*) (\S.*)"
# `  1840  1840  b9  16         a.o:(.text.startup.main)`
_LLD: Final = (
    rf"\n *0*([1-9a-f][0-9a-f]*) +[0-9a-f]+ +0*([1-9a-f][0-9a-f]*) +\d+ {{9}}(\S.*):\(({_SHOWN}[^\n()]+)\)(?=\n)"
)
# `  0x17f0  185  16         a.o:(.text.startup.main)`
_MOLD: Final = rf"\n *(?:0x)?0*([1-9a-f][0-9a-f]*) +0*([1-9]\d*) +\d+ {{9}}(\S.*):\(({_SHOWN}[^\n()]+)\)(?=\n)"

_LINKERS_OWN: Final = ("<internal>", "linker stubs", "** merge strings", "** merge constants", "** eh_frame")


def parse(data: bytes, where: str = "link map") -> dict[Input, list[Contribution]]:
    """What each input contributes, inputs and contributions in the map's order; its heading tells the format.

    Raises:
        FormatError: none of the four formats.
    """
    text = data.decode("utf-8", "surrogateescape")
    head = text[:200].lstrip()
    if head.startswith("VMA") and "LMA" in head.split("\n", 1)[0]:
        rows, base = _vma_style(_LLD, text), 16
    elif head.startswith("VMA"):
        rows, base = _vma_style(_MOLD, text), 10
    else:
        start = text.find("\nLinker script and memory map")  # GNU ld
        if start < 0:
            start = text.find("\nMemory map")  # gold
        if start < 0 and not text.startswith("Memory map"):
            raise FormatError("not a link map of GNU ld, gold, lld or mold", where=where)
        rows, base = re.compile(_GNU, re.ASCII).findall(text, max(start, 0)), 16
    return _by_input(rows, base)


def with_debug_information(data: bytes) -> set[Input]:
    """The inputs that contribute to `.debug_info`, of which `parse` tells nothing."""
    text = data.decode("utf-8", "surrogateescape")
    gnu = re.findall(r"\n \.debug_info\s+0x[0-9a-f]+\s+0x[0-9a-f]+ (\S.*)", text, re.ASCII)
    others = re.findall(r"\n[ 0-9a-fx]+ {9}(\S.*):\(\.debug_info\)", text, re.ASCII)
    return {_file_and_member(path) for path in gnu + others}


_Row = tuple[str, str, str, str]  # section, address, size, path: as the map spells them


def _vma_style(pattern: str, text: str) -> list[_Row]:
    return [
        ({".common": "COMMON"}.get(name, name).split("+0x")[0], address, size, path)
        for address, size, path, name in re.findall(pattern, text + "\n", re.ASCII)
    ]


def _by_input(rows: Iterable[_Row], size_base: int) -> dict[Input, list[Contribution]]:
    # Thousands of rows name a few hundred files: each path is read once.
    files: dict[str, list[Contribution]] = {path: [] for path in _LINKERS_OWN}
    found: dict[Input, list[Contribution]] = {}
    new = tuple.__new__  # a named tuple's own constructor takes twice as long
    for name, address, size, path in rows:
        its = files.get(path)
        if its is None:
            its = files[path] = found.setdefault(_file_and_member(path), [])
        its.append(new(Contribution, (name, int(address, 16), int(size, size_base))))
    return found


def _file_and_member(path: str) -> Input:
    if path.endswith(")") and "(" in path:
        file, _, member = path[:-1].rpartition("(")
        return file, member
    return path, ""
