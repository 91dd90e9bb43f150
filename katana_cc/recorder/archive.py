"""Static archives: their members, by name and order.

Hand-written: sixty bytes a header, read at every link.  Source: ar(5); GNU long names (`//`, `/123`) and thin archives.
"""

from __future__ import annotations

from collections.abc import Iterator

from katana_cc.errors import FormatError

MAGIC = b"!<arch>\n"
THIN_MAGIC = b"!<thin>\n"


def is_archive(data: bytes) -> bool:
    """Whether `data` begins like an archive, ordinary or thin."""
    return data[:8] in (MAGIC, THIN_MAGIC)


def members(data: bytes, where: str = "archive") -> Iterator[tuple[str, bytes | None]]:
    """(name, contents) of each member in order; contents are None in a thin archive (they lie beside it).

    Raises:
        FormatError: not an archive, or cut off.
    """
    if not is_archive(data):
        raise FormatError("not an archive", where=where)
    thin = data[:8] == THIN_MAGIC
    long_names = b""
    position = 8
    while position + 60 <= len(data):
        header = data[position : position + 60]
        if header[58:60] != b"`\n":
            raise FormatError(f"damaged member header at {position}", where=where)
        raw = header[:16].rstrip()
        try:
            size = int(header[48:58])
        except ValueError:
            raise FormatError(f"damaged member size at {position}", where=where) from None
        body = position + 60
        special = raw in (b"/", b"//", b"/SYM64/") or raw.startswith(b"__.SYMDEF")
        stored = special or not thin
        if stored and body + size > len(data):
            raise FormatError("the last member is cut off", where=where)
        if raw == b"//":
            long_names = data[body : body + size]
        elif not special:
            yield _name(raw, long_names), data[body : body + size] if stored else None
        position = body + (size + (size & 1) if stored else 0)


def _name(raw: bytes, long_names: bytes) -> str:
    if raw.startswith(b"/") and raw[1:].isdigit():
        start = int(raw[1:])
        end = long_names.find(b"/\n", start)
        raw = long_names[start : end if end >= 0 else len(long_names)]
    return raw.removesuffix(b"/").decode("utf-8", "surrogateescape")
