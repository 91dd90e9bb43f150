"""The call frame information of two patch objects as that of one: the FDEs of the code that is kept, each CIE once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from katana_cc.dwarf.frames import Cie, Fde, records
from katana_cc.elf import constants as c
from katana_cc.patch.model import PatchObject, PatchSection, PatchSymbol
from katana_cc.patch.pieces import Piece, PieceField

NAME = ".eh_frame"


@dataclass(frozen=True, slots=True)
class Frames:
    """The FDE of a piece of code, with its CIE: bytes, and fields at offsets from where each begins."""

    code: int
    cie: bytes
    cie_fields: tuple[PieceField, ...]
    fde: bytes
    fde_fields: tuple[PieceField, ...]

    @property
    def needs(self) -> Iterator[PatchSymbol]:
        """What unwinding through the code takes: personality routine and exception table."""
        return (f.symbol for f in (*self.cie_fields, *self.fde_fields))


def frames_of(po: PatchObject, pieces: Mapping[int, Piece], first: int) -> Iterator[Frames]:
    """The FDEs of a patch object, whose pieces are numbered from `first` on."""
    for n, section in enumerate(po.sections, first):
        if section.name != NAME:
            continue
        fields = pieces[n].fields

        def within(record: Cie | Fde, fields: list[PieceField] = fields) -> tuple[PieceField, ...]:
            start, end = record.offset, record.offset + record.size
            return tuple(f._replace(offset=f.offset - start) for f in fields if start <= f.offset < end)

        for record in records(section.data):
            if isinstance(record, Fde):
                own = within(record)
                code = next((f.symbol.section for f in own if f.offset == record.pc_offset - record.offset), None)
                if code is not None:
                    cie = record.cie
                    yield Frames(
                        code,
                        section.data[cie.offset : cie.offset + cie.size],
                        within(cie),
                        section.data[record.offset : record.offset + record.size],
                        own,
                    )


def joined_frames(frames: Iterable[Frames], kept: Collection[int]) -> Piece | None:
    """The section, with the terminator that `__register_frame_info` wants; None when no code is kept."""
    data = bytearray()
    fields: list[PieceField] = []
    cies: dict[tuple[bytes, tuple[PieceField, ...]], int] = {}
    for x in frames:
        if x.code not in kept:
            continue
        key = x.cie, x.cie_fields
        if key not in cies:
            cies[key] = len(data)
            fields += [f._replace(offset=f.offset + len(data)) for f in x.cie_fields]
            data += x.cie
        start = len(data)
        fde = bytearray(x.fde)
        fde[4:8] = (start + 4 - cies[key]).to_bytes(4, "little")
        fields += [f._replace(offset=f.offset + start) for f in x.fde_fields]
        data += fde
    if not data:
        return None
    data += bytes(4)
    return Piece(PatchSection(NAME, c.SHT_PROGBITS, c.SHF_ALLOC, 8, bytes(data), len(data)), fields)
