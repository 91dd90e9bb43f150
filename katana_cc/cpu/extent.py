"""Which bytes a linker may write around a relocation: all that a recorder asks of a CPU, and so a module of its own."""

from typing import NamedTuple

# Annotations are not postponed here: to make a named tuple of texts costs ten times as much, at every link.


class Extent(NamedTuple):
    """Bytes [r_offset - before, r_offset + after) may differ from the object's."""

    before: int
    after: int
