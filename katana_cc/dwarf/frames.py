"""Call-frame information: .eh_frame records, their instructions, and the tables of rows they describe.

Hand-written for three reasons: it has to read target memory while threads are stopped (one function's table at a time,
by binary search in .eh_frame_hdr), it needs the raw byte ranges of records, since the patch builder copies FDEs, and
pyelftools' reader fails on DW_CFA_GNU_args_size, which libc's own tables hold.

    .eh_frame      CIE   how to read the FDEs that refer to it: augmentation, initial rules
                   FDE   pc range, then instructions: at which pc which rule changes
    .eh_frame_hdr  (pc, FDE) pairs sorted by pc, relative to its own address

Sources: LSB core 4.1 "Exception Frames" (10.6), DWARF 5 section 6.4, DW_CFA_GNU_* of gcc's dwarf2.h,
AADWARF64 for DW_CFA_AARCH64_negate_ra_state.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from katana_cc.errors import FormatError

_RETURN_COLUMN_AARCH64: Final = 30

DW_EH_PE_OMIT: Final = 0xFF
_APPLICATION = 0x70
_PCREL, _DATAREL, _INDIRECT = 0x10, 0x30, 0x80
_FIXED_FORMS: Final = {0x00: "<Q", 0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}


class Cie(NamedTuple):
    """A common information entry.  `offset` and `size` (length field included) are its raw range in the section;
    `personality_offset` is that of the personality pointer's field, 0 when there is none."""

    offset: int
    size: int
    version: int
    augmentation: str
    code_alignment: int
    data_alignment: int
    return_column: int
    fde_encoding: int
    lsda_encoding: int
    personality: int
    personality_offset: int
    is_signal_frame: bool
    instructions: bytes


class Fde(NamedTuple):
    """A frame description entry for [pc, pc + pc_size).  Raw range as in `Cie`; `pc_offset` and `lsda_offset` are the
    offsets of those fields in the section (lsda_offset 0: none)."""

    offset: int
    size: int
    cie: Cie
    pc: int
    pc_size: int
    pc_offset: int
    lsda: int
    lsda_offset: int
    instructions: bytes


class Rule(NamedTuple):
    """How a register of the caller is found.  `kind`: "offset" (saved at CFA + value), "val_offset" (is CFA + value),
    "register" (in register value), "expression" / "val_expression" (DWARF expression in `expression`), "undefined"."""

    kind: str
    value: int = 0
    expression: bytes = b""


class Row(NamedTuple):
    """The table row in force at a pc: the CFA as register + offset, or an expression, and the rules by DWARF register
    number; a register without a rule keeps its value.  `is_signed`: the return address is, with pointer
    authentication."""

    cfa_register: int
    cfa_offset: int
    cfa_expression: bytes
    rules: dict[int, Rule]
    is_signed: bool = False


class CfiReader:
    """A cursor over the bytes of a section that is at `address`."""

    def __init__(self, data: bytes | memoryview, position: int, address: int, end: int | None = None) -> None:
        self.data = data
        self.at = position
        self.address = address
        self.end = len(data) if end is None else end

    def fixed(self, form: str) -> int:
        size = struct.calcsize(form)
        if self.at + size > self.end:
            raise FormatError("call-frame information is cut off")
        value: int = struct.unpack_from(form, self.data, self.at)[0]
        self.at += size
        return value

    def u8(self) -> int:
        return self.fixed("<B")

    def uleb(self) -> int:
        result = shift = 0
        while True:
            byte = self.u8()
            result |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return result

    def sleb(self) -> int:
        result = shift = 0
        while True:
            byte = self.u8()
            result |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return result - (1 << shift) if byte & 0x40 else result

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > self.end:
            raise FormatError("call-frame information is cut off")
        self.at += size
        return bytes(self.data[self.at - size : self.at])

    def block(self) -> bytes:
        return self.take(self.uleb())

    def pointer(self, encoding: int, data_base: int = 0) -> int:
        """A DW_EH_PE encoded pointer; of an indirect one the address of the pointer."""
        if encoding == DW_EH_PE_OMIT:
            return 0
        place = self.address + self.at
        form = encoding & 0x0F
        if form == 0x01:
            value = self.uleb()
        elif form == 0x09:
            value = self.sleb()
        elif form in _FIXED_FORMS:
            value = self.fixed(_FIXED_FORMS[form])
        else:
            raise FormatError(f"pointer encoding {encoding:#x} is not known")
        if value and encoding & _APPLICATION == _PCREL:
            value += place
        elif value and encoding & _APPLICATION == _DATAREL:
            value += data_base
        return value & (2**64 - 1)


def records(data: bytes | memoryview, address: int = 0) -> Iterator[Cie | Fde]:
    """All records of an .eh_frame section in order.

    Args:
        data: the section's bytes.  Of an ET_REL object they are unrelocated: then only raw ranges, field offsets,
            instructions and `pc_size` mean something, and `pc` is the field's addend.
        address: where the section is (0 for an object).

    Raises:
        FormatError: a record that is cut off, of an unknown version, or without its CIE.
    """
    cies: dict[int, Cie] = {}
    at = 0
    while at + 4 <= len(data):
        record = record_at(data, at, address, cies)
        if record is None:
            at += 4  # a terminator; ld -r and gold leave some in the middle
            continue
        yield record
        at += record.size


def record_at(data: bytes | memoryview, offset: int, address: int, cies: dict[int, Cie]) -> Cie | Fde | None:
    """The record at an offset of a section; None for a terminator.  CIEs are taken from and added to `cies`."""
    cursor = CfiReader(data, offset, address)
    length = cursor.fixed("<I")
    if not length:
        return None
    if length == 0xFFFFFFFF:
        length = cursor.fixed("<Q")
    body = cursor.at
    end = body + length
    if end > len(data):
        raise FormatError("call-frame information is cut off")
    cursor.end = end
    identity = cursor.fixed("<I")
    if identity == 0:
        if offset not in cies:
            cies[offset] = _cie(cursor, offset, end)
        return cies[offset]
    cie_at = body - identity
    if cie_at not in cies and (cie_at < 0 or not isinstance(record_at(data, cie_at, address, cies), Cie)):
        raise FormatError("an FDE refers to no CIE")
    return _fde(cursor, offset, end, cies[cie_at])


def _cie(cursor: CfiReader, offset: int, end: int) -> Cie:
    version = cursor.u8()
    if version not in (1, 3, 4):
        raise FormatError(f"CIE of version {version}")
    augmentation = bytearray()
    while byte := cursor.u8():
        augmentation.append(byte)
    text = augmentation.decode("latin-1")
    if version == 4:
        cursor.take(2)  # address and segment selector size
    code, data = cursor.uleb(), cursor.sleb()
    column = cursor.u8() if version == 1 else cursor.uleb()
    fde_encoding, lsda_encoding, personality, personality_offset, is_signal = 0, DW_EH_PE_OMIT, 0, 0, False
    if text.startswith("z"):
        size = cursor.uleb()
        after = cursor.at + size
        for letter in text[1:]:
            if letter == "R":
                fde_encoding = cursor.u8()
            elif letter == "L":
                lsda_encoding = cursor.u8()
            elif letter == "P":
                encoding = cursor.u8()
                personality_offset = cursor.at
                personality = cursor.pointer(encoding)
            elif letter == "S":
                is_signal = True
            elif letter != "B":
                break
        cursor.at = after
    elif text:
        raise FormatError(f"CIE augmentation {text!r} is not known")
    rest = cursor.take(end - cursor.at)
    return Cie(
        offset, end - offset, version, text, code, data, column, fde_encoding, lsda_encoding, personality,
        personality_offset, is_signal, rest,
    )  # fmt: skip


def _fde(cursor: CfiReader, offset: int, end: int, cie: Cie) -> Fde:
    pc_offset = cursor.at
    pc = cursor.pointer(cie.fde_encoding)
    size = cursor.pointer(cie.fde_encoding & 0x0F)
    lsda = lsda_offset = 0
    if cie.augmentation.startswith("z"):
        length = cursor.uleb()
        after = cursor.at + length
        if length and cie.lsda_encoding != DW_EH_PE_OMIT:
            lsda_offset = cursor.at
            lsda = cursor.pointer(cie.lsda_encoding)
        cursor.at = after
    return Fde(offset, end - offset, cie, pc, size, pc_offset, lsda, lsda_offset, cursor.take(end - cursor.at))


def row_at(fde: Fde, pc: int) -> Row:
    """The row in force at `pc`.

    Raises:
        FormatError: an instruction that is not known.
    """
    cie = fde.cie
    initial = _execute(cie.instructions, cie, fde.pc, None, Row(0, 0, b"", {}), {})
    return _execute(fde.instructions, cie, fde.pc, pc, initial, initial.rules)


def _execute(code: bytes, cie: Cie, start: int, pc: int | None, row: Row, initial: dict[int, Rule]) -> Row:
    """Run instructions until the location passes `pc`."""
    cursor = CfiReader(code, 0, 0)
    register, offset, expression, rules = row.cfa_register, row.cfa_offset, row.cfa_expression, dict(row.rules)
    saved: list[tuple[int, int, bytes, dict[int, Rule], bool]] = []
    is_signed = row.is_signed
    location = start
    while cursor.at < cursor.end:
        byte = cursor.u8()
        high, low = byte & 0xC0, byte & 0x3F
        if high == 0x40:  # advance_loc
            location += low * cie.code_alignment
        elif high == 0x80:  # offset
            rules[low] = Rule("offset", cursor.uleb() * cie.data_alignment)
        elif high == 0xC0:  # restore
            _restore(rules, initial, low)
        elif byte == 0x00:  # nop
            continue
        elif byte == 0x01:  # set_loc
            location = cursor.pointer(cie.fde_encoding & 0x0F)
        elif byte in _ADVANCE:
            location += cursor.fixed(_ADVANCE[byte]) * cie.code_alignment
        elif byte in (0x05, 0x11):  # offset_extended, offset_extended_sf
            number = cursor.uleb()
            factored = cursor.uleb() if byte == 0x05 else cursor.sleb()
            rules[number] = Rule("offset", factored * cie.data_alignment)
        elif byte == 0x06:  # restore_extended
            _restore(rules, initial, cursor.uleb())
        elif byte == 0x07:  # undefined
            rules[cursor.uleb()] = Rule("undefined")
        elif byte == 0x08:  # same_value
            rules.pop(cursor.uleb(), None)
        elif byte == 0x09:  # register
            number = cursor.uleb()
            rules[number] = Rule("register", cursor.uleb())
        elif byte == 0x0A:  # remember_state
            saved.append((register, offset, expression, dict(rules), is_signed))
        elif byte == 0x0B:  # restore_state
            if not saved:
                raise FormatError("DW_CFA_restore_state without a remembered state")
            register, offset, expression, rules, is_signed = saved.pop()
        elif byte in (0x0C, 0x12):  # def_cfa, def_cfa_sf
            register = cursor.uleb()
            offset = cursor.uleb() if byte == 0x0C else cursor.sleb() * cie.data_alignment
            expression = b""
        elif byte == 0x0D:  # def_cfa_register
            register, expression = cursor.uleb(), b""
        elif byte in (0x0E, 0x13):  # def_cfa_offset, def_cfa_offset_sf
            offset = cursor.uleb() if byte == 0x0E else cursor.sleb() * cie.data_alignment
        elif byte == 0x0F:  # def_cfa_expression
            expression = cursor.block()
        elif byte in (0x10, 0x16):  # expression, val_expression
            number = cursor.uleb()
            rules[number] = Rule("expression" if byte == 0x10 else "val_expression", 0, cursor.block())
        elif byte in (0x14, 0x15):  # val_offset, val_offset_sf
            number = cursor.uleb()
            factored = cursor.uleb() if byte == 0x14 else cursor.sleb()
            rules[number] = Rule("val_offset", factored * cie.data_alignment)
        elif byte == 0x2D and cie.return_column == _RETURN_COLUMN_AARCH64:  # AARCH64_negate_ra_state
            is_signed = not is_signed
        elif byte == 0x2E:  # GNU_args_size: for landing pads only
            cursor.uleb()
        elif byte == 0x2F:  # GNU_negative_offset_extended
            number = cursor.uleb()
            rules[number] = Rule("offset", -cursor.uleb() * cie.data_alignment)
        else:
            raise FormatError(f"call-frame instruction {byte:#x} is not known")
        if pc is not None and location > pc:
            # The instruction was an advance past pc: it changed nothing but the location.
            break
    return Row(register, offset, expression, rules, is_signed)


_ADVANCE: Final = {0x02: "<B", 0x03: "<H", 0x04: "<I"}


def _restore(rules: dict[int, Rule], initial: dict[int, Rule], number: int) -> None:
    if number in initial:
        rules[number] = initial[number]
    else:
        rules.pop(number, None)


class SectionTable:
    """FDEs of a whole .eh_frame section at its final address, by pc."""

    def __init__(self, data: bytes, address: int) -> None:
        found = [r for r in records(data, address) if isinstance(r, Fde) and r.pc_size]
        self._fdes = sorted(found, key=lambda f: f.pc)

    def find(self, pc: int) -> Fde | None:
        """The FDE that covers `pc`."""
        low, high = 0, len(self._fdes)
        while low < high:
            middle = (low + high) // 2
            if self._fdes[middle].pc <= pc:
                low = middle + 1
            else:
                high = middle
        if low and pc < self._fdes[low - 1].pc + self._fdes[low - 1].pc_size:
            return self._fdes[low - 1]
        return None


class HeaderTable:
    """FDEs of a loaded module through its .eh_frame_hdr, reading from memory only what a look-up touches.

    Args:
        read: exactly the bytes asked for, or raises.
        address: of .eh_frame_hdr in memory.

    Raises:
        FormatError: no sorted table of the usual encoding (then the section has to be read whole).
    """

    def __init__(self, read: Callable[[int, int], bytes], address: int) -> None:
        self._read = read
        head = read(address, 24)
        version, frame_encoding, count_encoding, table_encoding = head[:4]
        if version != 1 or count_encoding == DW_EH_PE_OMIT or table_encoding != (_DATAREL | 0x0B):
            raise FormatError("an .eh_frame_hdr without a sorted table")
        cursor = CfiReader(head, 4, address)
        cursor.pointer(frame_encoding, address)
        count = cursor.pointer(count_encoding, address)
        self._address = address
        self._table = memoryview(read(address + cursor.at, 8 * count)).cast("i")
        self._count = count
        self._cache: dict[int, Fde | None] = {}

    def find(self, pc: int) -> Fde | None:
        """The FDE that covers `pc`."""
        relative = pc - self._address
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._table[2 * middle] <= relative:
                low = middle + 1
            else:
                high = middle
        if not low:
            return None
        if low not in self._cache:
            self._cache[low] = self._fde(self._address + self._table[2 * low - 1])
        fde = self._cache[low]
        return fde if fde is not None and fde.pc <= pc < fde.pc + fde.pc_size else None

    def _fde(self, address: int) -> Fde | None:
        length, identity = struct.unpack("<II", self._read(address, 8))
        if length in (0, 0xFFFFFFFF):
            return None
        cie_address = address + 4 - identity
        cie_length = struct.unpack("<I", self._read(cie_address, 4))[0] + 4
        cie = record_at(self._read(cie_address, cie_length), 0, cie_address, {})
        if not isinstance(cie, Cie):
            return None
        data = self._read(address, length + 4)
        return _fde(CfiReader(data, 8, address), 0, len(data), cie)
