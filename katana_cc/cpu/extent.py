"""Which bytes a linker may write around a relocation, and which of them are an address: all that a recorder asks of a
CPU, and so a module of its own."""

from typing import Final, NamedTuple

# Annotations are not postponed here: to make a named tuple of texts costs ten times as much, at every link.


class Extent(NamedTuple):
    """Bytes [r_offset - before, r_offset + after) may differ from the object's."""

    before: int
    after: int


# How a field that is whole bytes tells an address.  Numbers in records: append-only.
FROM_END: Final = 0  # four bytes, a distance from the end of the field
SHORT: Final = 1  # four bytes, the address
LONG: Final = 2  # eight bytes, the address
