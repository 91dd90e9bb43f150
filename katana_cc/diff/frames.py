"""Call frame information of an object, by the function it belongs to: its FDEs, and which handlers each names.

An FDE is as much of its function as the code: its CIE names a personality routine, the FDE itself an LSDA, which says
which calls lead to which handlers and cleanups.  Two functions of equal bytes are not the same when one catches another
type.  Types and routines are reached by 32-bit fields through pointers that the compiler lays down for them alone
(`DW.ref._ZTI5Error`; without -fPIC directly); here they are followed to what they point at, so that all forms of one
meaning are alike.

Source: LSB core, "Exception Frames" (10.6.1); DWARF 5, 6.4.1; `katana_cc.dwarf.lsda` for what an LSDA is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from katana_cc.dwarf.frames import Cie, Fde, records
from katana_cc.dwarf.lsda import INDIRECT, Lsda, read_lsda
from katana_cc.errors import FormatError

if TYPE_CHECKING:
    from katana_cc.diff.view import ObjectView, Reference

PERSONALITIES: Final = frozenset({"__gxx_personality_v0", "__gcc_personality_v0"})  # whose LSDAs are understood


class Handlers(NamedTuple):
    """The LSDA of one FDE: taken apart, in section `source`, with what its types mean in the order of `lsda.types`
    (None for the null type, which catches all)."""

    source: int
    lsda: Lsda
    types: tuple[Reference | None, ...]


class FrameEntry(NamedTuple):
    """One FDE: the code section and offset it describes, its bytes and its CIE's.

    `location_at`, `lsda_at` are offsets of fields in the FDE, `personality_at` in the CIE (0: there is none);
    `location`, `lsda` the references there; `personality` what the routine is, pointers followed.  `problem` says why
    its handlers cannot be told; then `handlers` is None although there are some.
    """

    section: int
    offset: int
    fde: bytes
    cie: bytes
    location_at: int
    location: Reference
    lsda_at: int
    lsda: Reference | None
    personality_at: int
    personality: Reference | None
    handlers: Handlers | None
    problem: str

    @property
    def takes_part(self) -> bool:
        """Whether an exception that passes does anything here but go on."""
        return self.personality is not None or bool(self.problem)


def read_frames(view: ObjectView) -> dict[int, tuple[FrameEntry, ...]]:
    """All FDEs of an object, by code section and in the order of their offsets.  What is damaged is left out."""
    found: dict[int, list[FrameEntry]] = {}
    for section in view.elf.sections:
        if section.name == ".eh_frame" and section.size:
            for entry in _entries(view, section.number):
                found.setdefault(entry.section, []).append(entry)
    return {number: tuple(sorted(several, key=lambda e: e.offset)) for number, several in found.items()}


def _entries(view: ObjectView, number: int) -> Iterator[FrameEntry]:
    data = view.data(number)
    fields = {r.relocation.offset: r for r in view.references(number)}
    try:
        for record in records(data):
            if isinstance(record, Cie):
                continue
            location = fields.get(record.pc_offset)
            if location is not None and location.section > 0:
                yield _entry(view, data, fields, record, location)
    except FormatError:
        return


def _entry(view: ObjectView, data: bytes, fields: Mapping[int, Reference], fde: Fde, location: Reference) -> FrameEntry:
    cie = fde.cie
    problem = ""
    lsda = fields.get(fde.lsda_offset) if fde.lsda_offset else None
    routine = fields.get(cie.personality_offset) if cie.personality_offset else None
    known = {fde.pc_offset, fde.lsda_offset, cie.personality_offset}
    inside = [*range(fde.offset, fde.offset + fde.size), *range(cie.offset, cie.offset + cie.size)]
    if any(at in fields and at not in known for at in inside):
        problem = "its call frame information refers to something unknown"
    if routine is not None and data[cie.personality_offset - 1] & INDIRECT:
        routine = view.pointee(routine)
    if cie.personality_offset and routine is None:
        problem = "its personality routine cannot be told"
    handlers = None
    if lsda is not None and not problem:
        try:
            handlers = _handlers(view, lsda, routine)
        except FormatError as error:
            problem = f"its exception table is not understood: {error.what}"
    return FrameEntry(
        location.section, location.base + location.addend,
        data[fde.offset : fde.offset + fde.size], data[cie.offset : cie.offset + cie.size],
        fde.pc_offset - fde.offset, location, fde.lsda_offset - fde.offset if lsda else 0, lsda,
        cie.personality_offset - cie.offset if routine else 0, routine, handlers, problem,
    )  # fmt: skip


def _handlers(view: ObjectView, reference: Reference, routine: Reference | None) -> Handlers:
    if routine is None or routine.name not in PERSONALITIES:
        raise FormatError(f"of the personality routine {routine.name if routine else '(none)'}")
    source = reference.section
    if source <= 0:
        raise FormatError("it lies in another object")
    lsda = read_lsda(view.data(source), reference.base + reference.addend)
    fields = {r.relocation.offset: r for r in view.references(source) if lsda.start <= r.relocation.offset < lsda.end}
    low, high = lsda.table
    if any(not low <= at < high or (high - at) % lsda.width for at in fields):
        raise FormatError("it holds addresses beside its types")
    return Handlers(source, lsda, tuple(_type(view, lsda, fields.get(at)) for at in lsda.types))


def _type(view: ObjectView, lsda: Lsda, field: Reference | None) -> Reference | None:
    if field is None or not lsda.encoding & INDIRECT:
        return field
    found = view.pointee(field)
    if found is None:
        raise FormatError(f"a type is reached through {field.name}")
    return found
