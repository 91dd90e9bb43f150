"""Symbol versions of a module: which version an entry of .dynsym has, as DT_VERNEED and DT_VERDEF name them.

An object asks for a version with `.symver`, in the form `name@VERSION`; the dynamic symbol table keeps name and version
apart, the version as an index in DT_VERSYM.

Source: LSB core, "Symbol Versioning".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

DT_VERSYM: Final = 0x6FFFFFF0
DT_VERDEF: Final = 0x6FFFFFFC
DT_VERNEED: Final = 0x6FFFFFFE
HIDDEN: Final = 0x8000  # not the default version
_FIRST: Final = 2  # 0 and 1 are no versions: local, and global without one
_LIMIT: Final = 65536

Read = Callable[[int, int], bytes]


def split(name: str) -> tuple[str, str]:
    """(name, version) of a symbol as an object names it; the version is "" when it asks for none."""
    base, _, version = name.partition("@")
    return base, version.lstrip("@")


def version_names(read: Read, text: Callable[[int], str], needed: int, defined: int) -> dict[int, str]:
    """Version index → name.

    Args:
        read: bytes at an address.
        text: the string at an offset of .dynstr.
        needed, defined: addresses of the two tables, 0 for none.
    """
    found: dict[int, str] = {}
    entry = needed
    while entry and len(found) < _LIMIT:
        _, count, _, first, after = struct.unpack("<HHIII", read(entry, 16))
        at = entry + first
        for _ in range(count):
            _, _, index, name, step = struct.unpack("<IHHII", read(at, 16))
            found[index & ~HIDDEN] = text(name)
            at += step
        entry = entry + after if after else 0
    entry = defined
    while entry and len(found) < _LIMIT:
        _, _, index, _, _, first, after = struct.unpack("<HHHHIII", read(entry, 20))
        (name,) = struct.unpack("<I", read(entry + first, 4))
        found[index & ~HIDDEN] = text(name)
        entry = entry + after if after else 0
    return {index: name for index, name in found.items() if index >= _FIRST}
