"""Which files contributed to a link, read from the names in its link map.

Nothing else of the map is read here; the ingester parses it.
"""

from __future__ import annotations

from _collections_abc import Iterator  # which `os` has imported; `collections.abc` would cost a millisecond

from katana_cc.recorder.staging.failure import StagingError

# Data statements of a linker script stand in GNU maps where file names do: ld(1) "Output Section Data".
_SPACE, _STAR = b" *"
DATA_STATEMENTS = (b"BYTE ", b"SHORT ", b"LONG ", b"QUAD ", b"SQUAD ", b"ASCIZ ", b"load address ")


def contributing_files(text: bytes) -> tuple[str, list[bytes]]:
    """The kind of linker that wrote this map, and the inputs it names, as spelled there ("lib.a(member.o)" too).

    Raises StagingError for a map of no known kind.  Sources: the maps of binutils 2.40, gold 1.16, lld 14, mold 1.10.
    All four are tables with fixed columns, which is what makes reading 60,000 lines in a few milliseconds possible.
    """
    header = text[: text.find(b"\n")]
    if header.split()[:2] in ([b"VMA", b"LMA"], [b"VMA", b"Size"]):
        kind = "lld" if b"LMA" in header else "mold"
        column = header.find(b"Out") + 8  # input sections are indented by eight, symbols by sixteen
        names = {
            line[column : line.rfind(b":(")]
            for block in _blocks(text[len(header) + 1 :])
            for line in block.split(b"\n")
            if len(line) > column and line[column - 1] == _SPACE and line[column] != _SPACE
        }
        return kind, sorted(names - {b"<internal>", b""})
    if b"\nMemory map\n" in text:
        kind = "gold"
    elif b"\nLinker script and memory map\n" in text:
        kind = "bfd"
    else:
        raise StagingError("its link map is of no known kind (bfd, gold, lld, mold)")
    # " .text.main     0x0000000000001139       0x1d main.o": name to column 16, address to 34, size to 45.
    end = text.find(b"\nCross Reference Table\n")
    names = {
        line[46:]
        for block in _blocks(text if end < 0 else text[:end])
        for line in block.split(b"\n")
        # Cheapest test first: most lines are symbols, and have nothing in the size column.
        if len(line) > 46
        and line[44] > _SPACE
        and line[45] == _SPACE
        and line[16:18] == b"0x"
        and line[0] == _SPACE
        and line[1] != _STAR
    }
    names.discard(b"")
    return kind, sorted(name for name in names if not name.startswith(DATA_STATEMENTS) and name != b"linker stubs")


def _blocks(text: bytes) -> Iterator[bytes]:
    """The text in pieces of whole lines: splitting it at once would take a third longer, for fresh memory."""
    at = 0
    while at < len(text):
        end = text.find(b"\n", at + 65536)
        if end < 0:
            end = len(text)
        yield text[at:end]
        at = end + 1
