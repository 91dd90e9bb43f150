"""Unwinding a stack by call-frame information.  Pure: registers and memory come in as values and callables.

From a frame's registers the row at its pc gives the CFA (the stack pointer before the call) and where the caller's
registers are.  A return address points behind the call, so that the row to use is the one at pc - 1; the frame below a
signal handler was interrupted in between two instructions, and its own pc counts.

A call does not keep all registers: of those that it does not, a caller's frame knows none, unless a rule tells it.

An unwind is *complete* when it ends where the program says that stacks end: a return address that is undefined or zero
(`_start`, `clone`).  Otherwise frames may be missing beyond its end, and the caller must assume the worst.

From a state of all registers on, an unwind depends on these and on the memory beyond the stack pointer.  So one that
meets a state which an earlier one has met goes on as that did, as long as this memory is the same (`Walked`).

Where a call leaves the return address in a register (AArch64), a function without a rule for it has left it there.  It
may be signed there and on the stack (AADWARF64, "Call frame instructions"): then its signature is taken off.

Source: DWARF 5 sections 6.4.3, 6.4.4 and 2.5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from katana_cc.cpu.stopped import DwarfNumbers
from katana_cc.dwarf.frames import CfiReader, Fde, Row, Rule, row_at
from katana_cc.errors import FormatError, KatanaError

_MASK: Final = (1 << 64) - 1
_MAX_STEPS: Final = 1000

FindFde = Callable[[int], Fde | None]
ReadMemory = Callable[[int, int], bytes]


class Frame(NamedTuple):
    """One frame: 0 is the innermost.  `is_exact`: pc is the next instruction to run, not a return address."""

    depth: int
    pc: int
    cfa: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Backtrace:
    """Frames from the innermost outwards, whether they are all, and if not, why.  `is_cut`: more were not asked for;
    `goes_on`: those of `known` follow from this one on (-1: none)."""

    frames: tuple[Frame, ...]
    is_complete: bool
    why: str = ""
    is_cut: bool = False
    goes_on: int = -1


class _Plain(NamedTuple):
    """A row of the usual kind: the CFA is a register and an offset, and all that is saved lies at offsets from it."""

    cfa_register: int
    cfa_offset: int
    saved: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Walked:
    """An unwind that may be met again: the state of all registers before each frame, by the stack pointer, with the
    number of the frame; and what came of it."""

    states: dict[int, tuple[dict[int, int], int, bool]]
    trace: Backtrace


_SAFETY: Final = 1 << 20  # frames; no stack that grows outwards has more


class Unwinder:
    """Unwinds many stacks of one process; rows are kept by pc, since threads wait at the same places.

    Args:
        numbers: the CPU's registers.
        signature: the bits of a signed return address that are its signature (NT_ARM_PAC_MASK).
    """

    def __init__(self, find: FindFde, read: ReadMemory, numbers: DwarfNumbers, signature: int = 0) -> None:
        self._find = find
        self.read = read
        self._numbers = numbers
        self._signature = signature
        self._rows: dict[int, tuple[Fde, Row, _Plain | None] | None] = {}

    def unwind(
        self,
        registers: Mapping[int, int],
        *,
        limit: int = _SAFETY,
        read: ReadMemory | None = None,
        until: int = _MASK,
        known: Walked | None = None,
        valid: int = 0,
        states: dict[int, tuple[dict[int, int], int, bool]] | None = None,
    ) -> Backtrace:
        """Unwind from DWARF-numbered registers, the pc among them.

        Args:
            limit: so many frames at most.
            read: reads memory, if not what was given at first.
            until: no frame is of interest that is returned to from beyond this address.  Given up at a signal frame,
                since what it interrupted may have had another stack.
            known: an earlier unwind: where that is met, the rest is as of it, and not repeated.
            valid: from which stack pointer on the memory is still the same.
            states: gets the state before each frame.
        """
        values = dict(registers)
        frames: list[Frame] = []
        exact = True
        read = read or self.read
        pc_number, sp_number = self._numbers.pc, self._numbers.stack_pointer
        before = 0  # where the frame before begins: what it returns to is kept there, or beyond
        while len(frames) < limit:
            pc, pointer = values[pc_number], values[sp_number]
            if not pc or before > until:
                return Backtrace(tuple(frames), True)
            before = pointer
            met = known.states.get(pointer) if known is not None and pointer >= valid else None
            if known is not None and met is not None and met[::2] == (values, exact):
                return Backtrace(tuple(frames), known.trace.is_complete, known.trace.why, goes_on=met[1])
            if states is not None:
                states[pointer] = values, len(frames), exact
            try:
                found = self._row(pc if exact else pc - 1)
                if found is None:
                    frames.append(Frame(len(frames), pc, 0, exact))
                    return Backtrace(tuple(frames), False, f"no call-frame information for {pc:#x}")
                fde, row, plain = found
                if plain is not None:
                    cfa = (_register(values, plain.cfa_register) + plain.cfa_offset) & _MASK
                    frames.append(Frame(len(frames), pc, cfa, exact))
                    following: dict[int, int] | None = self._plain_caller(plain, cfa, values, read)
                else:
                    cfa = self._cfa(row, values, read)
                    frames.append(Frame(len(frames), pc, cfa, exact))
                    following = self._caller(fde, row, cfa, values, exact, read)
            except KatanaError as error:
                return Backtrace(tuple(frames), False, error.what)
            if following is None:
                return Backtrace(tuple(frames), True)
            exact = fde.cie.is_signal_frame
            if exact:
                until = _MASK
            if following[sp_number] <= pointer and not exact and len(frames) > 1:
                return Backtrace(tuple(frames), False, "the stack does not grow outwards")
            values = following
        return Backtrace(tuple(frames), False, f"more than {limit} frames", True)

    def _row(self, pc: int) -> tuple[Fde, Row, _Plain | None] | None:
        if pc not in self._rows:
            fde = self._find(pc)
            row = row_at(fde, pc) if fde is not None else None
            self._rows[pc] = None if fde is None or row is None else (fde, row, self._plain(fde, row))
        return self._rows[pc]

    def _plain(self, fde: Fde, row: Row) -> _Plain | None:
        """The row, if it is of the usual kind."""
        if row.cfa_expression or row.is_signed or fde.cie.return_column != self._numbers.pc:
            return None
        if self._numbers.pc not in row.rules or any(rule.kind != "offset" for rule in row.rules.values()):
            return None
        return _Plain(row.cfa_register, row.cfa_offset, tuple((n, rule.value) for n, rule in row.rules.items()))

    def _plain_caller(self, plain: _Plain, cfa: int, values: Mapping[int, int], read: ReadMemory) -> dict[int, int]:
        lost = self._numbers.lost
        result = {number: value for number, value in values.items() if number not in lost}
        result[self._numbers.stack_pointer] = cfa
        for number, offset in plain.saved:
            result[number] = int.from_bytes(read((cfa + offset) & _MASK, 8), "little")
        return result

    def _cfa(self, row: Row, values: Mapping[int, int], read: ReadMemory) -> int:
        if row.cfa_expression:
            return self._evaluate(row.cfa_expression, values, [], read)
        return (_register(values, row.cfa_register) + row.cfa_offset) & _MASK

    def _caller(
        self, fde: Fde, row: Row, cfa: int, values: Mapping[int, int], exact: bool, read: ReadMemory
    ) -> dict[int, int] | None:
        result = {number: value for number, value in values.items() if number not in self._numbers.lost}
        result[self._numbers.stack_pointer] = cfa
        for number, rule in row.rules.items():
            if rule.kind == "undefined":
                result.pop(number, None)
            else:
                result[number] = self._value(rule, cfa, values, read)
        column = fde.cie.return_column
        if column not in row.rules and self._numbers.is_return_in_register:
            if not exact:
                raise FormatError("the return address of a frame that has called is in no place")
        elif column not in row.rules or column not in result:
            return None  # undefined, or no rule for it: the outermost frame
        result[self._numbers.pc] = result[column] & ~self._signature if row.is_signed else result[column]
        return result

    def _value(self, rule: Rule, cfa: int, values: Mapping[int, int], read: ReadMemory) -> int:
        if rule.kind == "offset":
            return _word(read, (cfa + rule.value) & _MASK)
        if rule.kind == "val_offset":
            return (cfa + rule.value) & _MASK
        if rule.kind == "register":
            return _register(values, rule.value)
        result = self._evaluate(rule.expression, values, [cfa], read)
        return result if rule.kind == "val_expression" else _word(read, result)

    @staticmethod
    def _evaluate(expression: bytes, values: Mapping[int, int], stack: list[int], read: ReadMemory) -> int:
        """The DWARF expressions that occur in call-frame tables: PLT entries and signal frames."""
        cursor = CfiReader(expression, 0, 0)
        steps = 0
        while cursor.at < cursor.end:
            steps += 1
            if steps > _MAX_STEPS:
                raise FormatError("a DWARF expression does not end")
            op = cursor.u8()
            if 0x30 <= op <= 0x4F:  # lit0..lit31
                stack.append(op - 0x30)
            elif 0x70 <= op <= 0x8F:  # breg0..breg31
                stack.append((_register(values, op - 0x70) + cursor.sleb()) & _MASK)
            elif op == 0x92:  # bregx
                number = cursor.uleb()
                stack.append((_register(values, number) + cursor.sleb()) & _MASK)
            elif op in _CONSTANTS:
                stack.append(cursor.fixed(_CONSTANTS[op]) & _MASK)
            elif op == 0x10:  # constu
                stack.append(cursor.uleb() & _MASK)
            elif op == 0x11:  # consts
                stack.append(cursor.sleb() & _MASK)
            elif op == 0x23:  # plus_uconst
                stack.append((_pop(stack) + cursor.uleb()) & _MASK)
            elif op == 0x06:  # deref
                stack.append(_word(read, _pop(stack)))
            elif op == 0x12:  # dup
                stack.append(stack[-1] if stack else _pop(stack))
            elif op == 0x13:  # drop
                _pop(stack)
            elif op == 0x16:  # swap
                top, below = _pop(stack), _pop(stack)
                stack += [top, below]
            elif op in _BINARY:
                right, left = _pop(stack), _pop(stack)
                stack.append(_BINARY[op](left, right) & _MASK)
            elif op == 0x2F or op == 0x28:  # skip, bra
                distance = cursor.fixed("<h")
                if op == 0x2F or _pop(stack):
                    cursor.at += distance
            elif op == 0x96:  # nop
                continue
            else:
                raise FormatError(f"DWARF operation {op:#x} in call-frame information is not supported")
        return _pop(stack)


def _word(read: ReadMemory, address: int) -> int:
    return int.from_bytes(read(address, 8), "little")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_CONSTANTS: Final = {
    0x03: "<Q",
    0x08: "<B",
    0x09: "<b",
    0x0A: "<H",
    0x0B: "<h",
    0x0C: "<I",
    0x0D: "<i",
    0x0E: "<Q",
    0x0F: "<q",
}
_BINARY: Final[dict[int, Callable[[int, int], int]]] = {
    0x1A: lambda a, b: a & b,
    0x1C: lambda a, b: a - b,
    0x1E: lambda a, b: a * b,
    0x21: lambda a, b: a | b,
    0x22: lambda a, b: a + b,
    0x24: lambda a, b: a << min(b, 64),
    0x25: lambda a, b: a >> min(b, 64),
    0x26: lambda a, b: _signed(a) >> min(b, 64),
    0x27: lambda a, b: a ^ b,
    0x29: lambda a, b: int(_signed(a) == _signed(b)),
    0x2A: lambda a, b: int(_signed(a) >= _signed(b)),
    0x2B: lambda a, b: int(_signed(a) > _signed(b)),
    0x2C: lambda a, b: int(_signed(a) <= _signed(b)),
    0x2D: lambda a, b: int(_signed(a) < _signed(b)),
    0x2E: lambda a, b: int(a != b),
}


def _register(values: Mapping[int, int], number: int) -> int:
    if number not in values:
        raise FormatError(f"register {number} is not known here")
    return values[number]


def _pop(stack: list[int]) -> int:
    if not stack:
        raise FormatError("a DWARF expression takes more than it has")
    return stack.pop()
