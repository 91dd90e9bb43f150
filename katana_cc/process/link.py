"""Linking a patch object into one target: where each section goes, what each relocation comes to.

The image of a patch is one mapping of three parts, each with its final protection from the start, so that no page is
ever writable and later executable:

    r--  the ledger, constants, .eh_frame, GOT slots
    r-x  functions, import stubs, veneers
    rw-  new variables, then what unwinders record of the new frames

Placement comes first and depends on no address (`lay_out`); then a base near the module is chosen; then `link` computes
every field.  A call to an import goes through a stub, since libraries are farther than 2 GiB; an instruction that uses
a library's variable as if it were in reach (a copy relocation would have brought it there) goes through a veneer.

Pure: knows no process.  Out of scope: TLS sections, and the TLS models of shared libraries (refused by name).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from katana_cc.cpu import field as fields
from katana_cc.cpu.choice import Cpu, of
from katana_cc.cpu.field import Form
from katana_cc.cpu.interface import Span
from katana_cc.elf import constants as c
from katana_cc.errors import InvalidPatchError, RefusedError
from katana_cc.patch.model import PatchObject, PatchRelocation, PatchSection, PatchSymbol

PAGE: Final = 4096
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4

READ_ONLY, CODE, DATA = 0, 1, 2
RECORD_SIZE: Final = 256  # of an unwinder: `struct object` of libgcc, six words, has room to grow
PROTECTIONS: Final = (PROT_READ, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE)


@dataclass(frozen=True, slots=True)
class Part:
    """One of the three parts: offset from the base, and size, whole pages; `protection` as in mmap(2)."""

    offset: int
    size: int
    protection: int


@dataclass(frozen=True, slots=True)
class Heritage:
    """What a patch takes over from one whose place it takes, by section index → address in the target: `places` of
    variables and constants, all uses of which lead there; `entries` of functions, which is what their address means
    (the code is the patch's own, and a jump leads to it)."""

    places: Mapping[int, int] = field(default_factory=dict)
    entries: Mapping[int, int] = field(default_factory=dict)


NOTHING_INHERITED: Final = Heritage()


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets from the base of the mapping.  Symbol indices are keys of `got`, `tls_got`, `stubs`; `veneers` is keyed
    by (section, offset of the field).  `eh_frame` is (offset, size) of all carried .eh_frame sections together;
    `sections_start` is where the ledger's room ends; `records` are what unwinders write of the frames.  `head` are
    whole pages that lie before the base (`image.py`).  `heritage` tells what lives with an earlier patch."""

    parts: tuple[Part, ...]
    sections: Mapping[int, int]
    got: Mapping[int, int]
    tls_got: Mapping[int, int]
    stubs: Mapping[int, int]
    veneers: Mapping[tuple[int, int], int]
    eh_frame: tuple[int, int]
    size: int
    sections_start: int
    records: tuple[int, ...] = ()
    head: bytes = b""
    heritage: Heritage = NOTHING_INHERITED


@dataclass(frozen=True, slots=True)
class Linked:
    """The relocated bytes: of the whole image from its base (the ledger's room zero), and of the sections that are not
    in it by section index: of data edits, and of constants that keep an inherited place."""

    image: bytes
    loose: Mapping[int, bytes]


def is_import(symbol: PatchSymbol) -> bool:
    """Whether the symbol has to be found in the target's modules by name."""
    return symbol.section is None and symbol.value == 0 and symbol.type != c.STT_TLS


def group_of(section: PatchSection) -> int:
    """The part a carried section belongs to.

    Raises:
        RefusedError: thread-local, or writable and executable.
    """
    if section.flags & c.SHF_TLS:
        raise RefusedError(
            "a new or changed thread-local variable cannot be added to running threads",
            where=section.name,
            remedy="restart the process with the new build, or keep the variable out of thread-local storage",
        )
    if section.flags & c.SHF_EXECINSTR:
        if section.flags & c.SHF_WRITE:
            raise RefusedError("a section both writable and executable", where=section.name)
        return CODE
    return DATA if section.flags & c.SHF_WRITE else READ_ONLY


def lay_out(po: PatchObject, ledger_size: int, unwinders: int = 0) -> Layout:
    """Place every SHF_ALLOC section, GOT slot, stub and veneer of a patch, the ledger first, and the records of that
    many unwinders.

    Raises:
        RefusedError: a section or relocation that a patch cannot carry.
    """
    positions = [ledger_size, 0, 0]
    placed: dict[int, tuple[int, int]] = {}
    order = sorted(range(len(po.sections)), key=lambda i: po.sections[i].name == ".eh_frame")
    frames: list[tuple[int, int]] = []
    for i in order:
        section = po.sections[i]
        if not section.flags & c.SHF_ALLOC:
            continue
        group = group_of(section)
        is_frame = section.name == ".eh_frame"
        alignment = max(section.alignment, 1, 16 if group == CODE else 8)
        if alignment > PAGE:
            raise RefusedError(f"alignment of {section.alignment} is beyond a page", where=section.name)
        at = _up(positions[group], alignment)
        placed[i] = (group, at)
        positions[group] = at + section.size
        if is_frame:
            frames.append((at, section.size))

    got: dict[int, int] = {}
    tls_got: dict[int, int] = {}
    stubs: dict[int, int] = {}
    veneers: dict[tuple[int, int], int] = {}

    def take(group: int, size: int) -> int:
        at = _up(positions[group], 8)
        positions[group] = at + size
        return at

    cpu = of(po.identity.machine)
    for i in placed:
        section = po.sections[i]
        for r in section.relocations:
            symbol = po.symbols[r.symbol]
            kind = cpu.relocations.relocation_kind(r.type, f"{section.name}, {symbol.name}")
            if kind.form in fields.TLS_GOT_FORMS and r.symbol not in tls_got:
                tls_got[r.symbol] = take(READ_ONLY, cpu.code.GOT_SLOT_SIZE)
            needs_stub = kind.form is Form.RELATIVE and _may_need_stub(cpu, symbol, r)
            if (kind.form in fields.GOT_FORMS or needs_stub) and r.symbol not in got:
                got[r.symbol] = take(READ_ONLY, cpu.code.GOT_SLOT_SIZE)
            if needs_stub and r.symbol not in stubs:
                stubs[r.symbol] = take(CODE, cpu.code.STUB_SIZE)
            if _may_need_veneer(cpu, section, symbol, r):
                veneers[i, r.offset] = take(CODE, cpu.code.VENEER_SIZE)

    positions[DATA] = _up(positions[DATA], 16)
    records = [positions[DATA] + n * RECORD_SIZE for n in range(unwinders)]
    positions[DATA] += unwinders * RECORD_SIZE
    parts = []
    offset = 0
    for group, used in enumerate(positions):
        size = _up(used, PAGE)
        parts.append(Part(offset, size, PROTECTIONS[group]))
        offset += size
    bases = [p.offset for p in parts]
    eh_start = min((at for at, _ in frames), default=0)
    eh_end = max((at + size for at, size in frames), default=0)
    return Layout(
        tuple(parts),
        {i: bases[group] + at for i, (group, at) in placed.items()},
        got,
        tls_got,
        {s: bases[CODE] + at for s, at in stubs.items()},
        {k: bases[CODE] + at for k, at in veneers.items()},
        (eh_start, eh_end - eh_start),
        offset,
        ledger_size,
        tuple(bases[DATA] + at for at in records),
    )


def _may_need_stub(cpu: Cpu, symbol: PatchSymbol, relocation: PatchRelocation) -> bool:
    """Calls and jumps to imports; also to a function known to be an IFUNC, whose address only the target knows."""
    called = relocation.type in cpu.relocations.CALLS or symbol.type in (c.STT_FUNC, c.STT_GNU_IFUNC)
    return called and (is_import(symbol) or symbol.type == c.STT_GNU_IFUNC)


def _may_need_veneer(cpu: Cpu, section: PatchSection, symbol: PatchSymbol, relocation: PatchRelocation) -> bool:
    direct = relocation.type in cpu.relocations.DIRECT and is_import(symbol) and section.flags & c.SHF_EXECINSTR
    return bool(direct) and _use(cpu, section, relocation) is not None


def _use(cpu: Cpu, section: PatchSection, relocation: PatchRelocation) -> Span | None:
    return cpu.code.far_use(section.data, relocation.offset, (r.offset for r in section.relocations))


def link(
    po: PatchObject, layout: Layout, base: int, bias: int, addresses: Mapping[int, int], tls_offset: int | None
) -> Linked:
    """Relocate a patch for a mapping at `base`.

    Args:
        bias: load bias of the patched module.
        addresses: import or IFUNC symbol index → address in the target.
        tls_offset: what to add to an offset in the module's TLS segment to get one from the thread pointer; None when
            the module's thread-local variables have no fixed place (a library opened later).

    Raises:
        RefusedError: a value that its field cannot hold, naming symbol and section.
    """
    cpu = of(po.identity.machine)
    image = bytearray(layout.size)
    for i, offset in layout.sections.items():
        image[offset : offset + len(po.sections[i].data)] = po.sections[i].data
    values = [_value(s, i, layout, base, bias, addresses) for i, s in enumerate(po.symbols)]
    for symbol, at in layout.got.items():
        value = _known(values, symbol, po) + _to_entry(layout, base, po.symbols[symbol], po.symbols[symbol].value)
        image[at : at + 8] = (value & (2**64 - 1)).to_bytes(8, "little")
    for symbol, at in layout.tls_got.items():
        offset = po.symbols[symbol].value + _need_tls(tls_offset, po.symbols[symbol])
        image[at : at + 8] = (offset & (2**64 - 1)).to_bytes(8, "little")
    for symbol, at in layout.stubs.items():
        image[at : at + cpu.code.STUB_SIZE] = cpu.code.stub(base + at, base + layout.got[symbol])
    context = _Context(cpu, po, layout, base, values, tls_offset)
    for i, offset in layout.sections.items():
        _relocate(context, i, image, offset, base + offset)
    loose = {}
    for edit in po.data_edits:
        for i in (edit.expected, edit.replacement):
            section = po.sections[i]
            data = bytearray(section.data.ljust(section.size, b"\0"))
            _relocate(context, i, data, 0, bias + edit.address)
            loose[i] = bytes(data)
    for i, address in layout.heritage.places.items():
        if not po.sections[i].flags & c.SHF_WRITE:
            data = bytearray(po.sections[i].data.ljust(po.sections[i].size, b"\0"))
            _relocate(context, i, data, 0, address)
            loose[i] = bytes(data)
    return Linked(bytes(image), loose)


@dataclass(frozen=True, slots=True)
class _Context:
    cpu: Cpu
    po: PatchObject
    layout: Layout
    base: int
    values: Sequence[int | None]
    tls_offset: int | None
    ends: dict[int, Mapping[int, int]] = field(default_factory=dict)


def _relocate(context: _Context, index: int, data: bytearray, start: int, address: int) -> None:
    """Apply the relocations of section `index`, which begins at data[start] and will be at `address`."""
    cpu, po, layout, base = context.cpu, context.po, context.layout, context.base
    section = po.sections[index]
    for r in section.relocations:
        symbol = po.symbols[r.symbol]
        kind = cpu.relocations.relocation_kind(r.type, f"{section.name}, {symbol.name}")
        if kind.form is Form.NOTHING:
            continue
        if r.offset + kind.width > section.size:
            raise InvalidPatchError(f"{kind.name} lies outside its section", where=section.name)
        place = address + r.offset
        if kind.form in fields.GOT_FORMS:
            target = base + layout.got[r.symbol] + r.addend
        elif kind.form in fields.TLS_GOT_FORMS:
            target = base + layout.tls_got[r.symbol] + r.addend
        elif kind.form is Form.TLS_OFFSET:
            target = symbol.value + _need_tls(context.tls_offset, symbol) + r.addend
        elif kind.form is Form.SIZE:
            target = symbol.size + r.addend
        else:
            target = _known(context.values, r.symbol, po) + r.addend
            if layout.heritage.entries:
                meant = _meant(context, section, r, kind.form is Form.RELATIVE)
                target += _to_entry(layout, base, symbol, meant)
            if r.symbol in layout.stubs and kind.form is Form.RELATIVE:
                is_far = not fields.fits(kind, target - place)
                if symbol.type == c.STT_GNU_IFUNC or is_far:
                    target = base + layout.stubs[r.symbol] + r.addend
        value = fields.from_place(kind, target, place)
        if not fields.fits(kind, value):
            at = layout.veneers.get((index, r.offset))
            if at is not None:
                use = _use(cpu, section, r)
                assert use is not None
                variable = _known(context.values, r.symbol, po) + r.addend
                if kind.form is Form.RELATIVE:
                    variable += use.origin - r.offset
                code = cpu.code.veneer(section.data, r.offset, variable, base + at, address + use.end)
                data[start + use.start : start + use.end] = code[0]
                data[at : at + cpu.code.VENEER_SIZE] = code[1]
                continue
            raise RefusedError(
                f"{kind.name} against {symbol.name}: {value & (2**64 - 1):#x} does not fit {kind.bits} bits",
                where=f"{section.name}+{r.offset:#x}",
                remedy="build the program with -fPIC or -mno-direct-extern-access, or restart it with the new build",
            )
        fields.write(kind, data, start + r.offset, value)


def _meant(context: _Context, section: PatchSection, r: PatchRelocation, is_relative: bool) -> int:
    """The offset in the symbol's section that a field leads to; -1 where that is no use of a function's address: a
    call, a distance in a table."""
    offset = context.po.symbols[r.symbol].value + r.addend
    if not is_relative:
        return offset
    if not section.flags & c.SHF_EXECINSTR or context.cpu.code.is_branch(section.data, r.offset, r.type):
        return -1
    ends = context.ends.get(id(section))
    if ends is None:
        ends = context.ends[id(section)] = context.cpu.code.field_ends(section.data)
    return offset + ends.get(r.offset, r.offset + 4) - r.offset


def _to_entry(layout: Layout, base: int, symbol: PatchSymbol, offset: int) -> int:
    """What to add to an address at an offset of the symbol's section: the way to the entry that an earlier patch gave
    the function, if it is the function's address."""
    if symbol.section is None or offset or symbol.section not in layout.heritage.entries:
        return 0
    return layout.heritage.entries[symbol.section] - (base + layout.sections[symbol.section])


def _value(
    symbol: PatchSymbol, index: int, layout: Layout, base: int, bias: int, addresses: Mapping[int, int]
) -> int | None:
    if symbol.section is not None:
        if symbol.section in layout.heritage.places:
            return layout.heritage.places[symbol.section] + symbol.value
        offset = layout.sections.get(symbol.section)
        return None if offset is None else base + offset + symbol.value
    if index in addresses:
        return addresses[index]
    if is_import(symbol):
        return None
    return symbol.value if symbol.type == c.STT_TLS else bias + symbol.value


def _known(values: Sequence[int | None], index: int, po: PatchObject) -> int:
    value = values[index]
    if value is None:
        raise InvalidPatchError(f"a relocation refers to {po.symbols[index].name or 'a symbol'}, which has no address")
    return value


def _need_tls(offset: int | None, symbol: PatchSymbol) -> int:
    if offset is None:
        raise RefusedError(
            f"the thread-local variable {symbol.name} has no fixed place in this process",
            remedy="compile the library with -ftls-model=initial-exec, or restart the process with the new build",
        )
    return offset


def _up(value: int, alignment: int) -> int:
    return (value + alignment - 1) & -alignment
