"""What the references of a second patch mean where its target runs an older build with a first patch.

Theory of operation.  The second patch leads from v2 to v3 and names what exists by addresses of v2; the first one leads
from v1 to v2 and knows (`addresses.py`) what lies there:

    the same thing as in v1        the address that v1 has for it
    carried by the first patch     that section of it; of a function that v1 has too, as the target of a call only: its
                                   address goes on meaning the entry in v1, where a jump leads on (`references.py`)
    carried by both                the section of the second one

The first patch's own references stay, but for those to functions that the second one replaces: its calls go to the
newest code straight away, as they would in a patch that was made from v1 to v3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from katana_cc.cpu.choice import Cpu
from katana_cc.cpu.field import Form
from katana_cc.elf import constants as c
from katana_cc.errors import RefusedError
from katana_cc.patch.addresses import AddressMap, Lookup, Lying
from katana_cc.patch.model import PatchSymbol
from katana_cc.patch.pieces import Piece, PieceField, section_symbol


class NotComposableError(RefusedError):
    """Two patches that cannot become one; each of them is as good as before."""


def not_composable(what: str, subject: str = "") -> NotComposableError:
    """The refusal, with what to do."""
    return NotComposableError(
        f"the two patches cannot be put together: {what}",
        where=subject,
        remedy="make the patch from the first build to the last where they are recorded: `katana-release --since NAME` "
        "does, for a deployed release; `katana diff` tells what it would be",
    )


@dataclass(frozen=True, slots=True)
class Rebase:
    """References of both patches, in terms of v1 and of the pieces of both.

    Args:
        cpu: of the output.
        first: the first patch's map of addresses.
        pieces: those of both.
        successors: pieces of the first patch of which the second has another version, with the symbol of that.
        replaced: entry in v1 → symbol of the second patch's function, where the first one leaves it alone or replaces
            it too.
    """

    cpu: Cpu
    first: AddressMap
    pieces: Mapping[int, Piece]
    successors: Mapping[int, PatchSymbol]
    replaced: Mapping[int, PatchSymbol]
    memory: Lookup
    thread: Lookup
    lying: Lookup
    by_new: Mapping[int, Lying]

    def lying_at(self, address: int) -> tuple[Lying, int] | None:
        """What the first patch carries that is at an address of v2, and the offset in it."""
        found = self.lying.stretch(address)
        return None if found is None else (self.by_new[found.new], address - found.new)

    def of_second(self, piece: Piece, field: PieceField, subject: str) -> PieceField:
        """A field of the second patch.

        Raises:
            NotComposableError: it is not known what it leads to.
        """
        symbol = field.symbol
        if symbol.section is not None:
            return field
        if symbol.type == c.STT_TLS:
            at = self.thread.old(symbol.value, max(symbol.size, 1))
            if at is None:
                raise not_composable(f"it uses the thread-local {symbol.name}, which the first patch does not tell of",
                                     subject)  # fmt: skip
            return field._replace(symbol=replace(symbol, value=at))
        if not symbol.value:
            return field
        carried = self.lying_at(symbol.value)
        if carried is None:
            return field._replace(symbol=self.existing(symbol, subject))
        return self._into_first(piece, field, *carried, subject)

    def existing(self, symbol: PatchSymbol, subject: str) -> PatchSymbol:
        """A symbol of the second patch for what neither patch carries.

        Raises:
            NotComposableError: it is not known where it is in v1.
        """
        for y in self.first.named:
            if y.new == symbol.value and y.name in (symbol.name, ""):
                if not y.old:
                    break
                return replace(symbol, value=y.old)
        else:
            at = self.memory.old(symbol.value)
            if at is not None:
                name = f"old.{at:x}" if symbol.name == f"old.{symbol.value:x}" else symbol.name
                return replace(symbol, name=name, value=at)
        what = f"what lies at {symbol.value:#x}" if symbol.name.startswith("old.") else symbol.name
        raise not_composable(f"it refers to {what}, and the first patch does not tell where that is in the old build",
                             subject)  # fmt: skip

    def _into_first(self, piece: Piece, field: PieceField, lying: Lying, offset: int, subject: str) -> PieceField:
        target = self.pieces[lying.section]
        successor = self.successors.get(lying.section)
        entry = self.offset_meant(piece, field, offset)
        if target.is_code and lying.old and not entry and not self.is_branch(piece, field):
            there = PatchSymbol(field.symbol.name, c.STB_GLOBAL, field.symbol.type, None, lying.old, field.symbol.size)
            return field._replace(symbol=there)
        if field.symbol.type == c.STT_GNU_IFUNC:
            raise not_composable(f"{field.symbol.name} chooses its code when it is loaded, and changed", subject)
        if successor is not None:
            if entry or not target.is_code:
                raise not_composable(f"it leads into {field.symbol.name}, which both patches change", subject)
            return field._replace(symbol=successor)
        if offset and field.type in self.cpu.relocations.GOT_RELATIVE:  # the slot holds its symbol, and no more
            inside = PatchSymbol(field.symbol.name, c.STB_LOCAL, c.STT_NOTYPE, lying.section, offset, 0)
            return field._replace(symbol=inside)
        return field._replace(symbol=section_symbol(lying.section), addend=field.addend + offset)

    def of_first(self, piece: Piece, field: PieceField, subject: str) -> PieceField:
        """A field of the first patch.

        Raises:
            NotComposableError: it leads into what the second one has in another version.
        """
        symbol = field.symbol
        if symbol.section is None:
            successor = self.replaced.get(symbol.value) if symbol.value and symbol.type != c.STT_TLS else None
            is_call = successor is not None and self.is_branch(piece, field)
            if successor is None or not is_call or self.offset_meant(piece, field, 0):
                return field
            return field._replace(symbol=successor)
        successor = self.successors.get(symbol.section)
        if successor is None:
            return field
        # Code that uses a variable knows how it is laid out; a pointer to it as a whole does not.
        is_use = piece.is_code and not self.pieces[symbol.section].is_code
        if is_use or self.offset_meant(piece, field, symbol.value):
            name = successor.name or self.pieces[symbol.section].section.name
            raise not_composable(f"it leads into {name}, which both patches change", subject)
        return field._replace(symbol=successor)

    # Fields

    def is_branch(self, piece: Piece, field: PieceField) -> bool:
        """Whether a field is the target of a direct call or jump."""
        return piece.is_code and self.cpu.code.is_branch(piece.section.data, field.offset, field.type)

    def offset_meant(self, piece: Piece, field: PieceField, base: int) -> int:
        """The offset that a field means, its symbol being at `base`."""
        if field.type in self.cpu.relocations.GOT_RELATIVE:
            return base
        offset = base + field.addend
        if not piece.is_code:
            return offset
        kind = self.cpu.relocations.relocation_kind(field.type, field.symbol.name)
        if kind.form is not Form.RELATIVE:
            return offset
        end = self.cpu.code.field_ends(piece.section.data).get(field.offset, field.offset + 4)
        return offset + end - field.offset
