"""Unwinding a stack by call-frame information.  Pure: registers and memory come in as values and callables.

From a frame's registers the row at its pc gives the CFA (the stack pointer before the call) and where the caller's
registers are.  A return address points behind the call, so that the row to use is the one at pc - 1; the frame below a
signal handler was interrupted in between two instructions, and its own pc counts.

An unwind is *complete* when it ends where the program says that stacks end: a return address that is undefined or zero
(`_start`, `clone`).  Otherwise frames may be missing beyond its end, and the caller must assume the worst.

Where a call leaves the return address in a register (AArch64), a function without a rule for it has left it there.  It
may be signed there and on the stack (AADWARF64, "Call frame instructions"): then its signature is taken off.

Source: DWARF 5 sections 6.4.3, 6.4.4 and 2.5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from katana_cc.cpu.stopped import DwarfNumbers
from katana_cc.dwarf.frames import CfiReader, Fde, Row, Rule, row_at
from katana_cc.errors import FormatError, KatanaError

_MASK: Final = (1 << 64) - 1
_MAX_STEPS: Final = 1000

FindFde = Callable[[int], Fde | None]
ReadMemory = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: 0 is the innermost.  `is_exact`: pc is the next instruction to run, not a return address."""

    depth: int
    pc: int
    cfa: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Backtrace:
    """Frames from the innermost outwards, whether they are all, and if not, why."""

    frames: tuple[Frame, ...]
    is_complete: bool
    why: str = ""


class Unwinder:
    """Unwinds many stacks of one process; rows are kept by pc, since threads wait at the same places.

    Args:
        numbers: the CPU's registers.
        signature: the bits of a signed return address that are its signature (NT_ARM_PAC_MASK).
    """

    def __init__(
        self, find: FindFde, read: ReadMemory, numbers: DwarfNumbers, limit: int = 4096, signature: int = 0
    ) -> None:
        self._find = find
        self._read = read
        self._numbers = numbers
        self._signature = signature
        self._limit = limit
        self._rows: dict[int, tuple[Fde, Row] | None] = {}

    def unwind(self, registers: Mapping[int, int]) -> Backtrace:
        """Unwind from DWARF-numbered registers, the pc among them."""
        values = dict(registers)
        frames: list[Frame] = []
        exact = True
        while len(frames) < self._limit:
            pc = values[self._numbers.pc]
            if not pc:
                return Backtrace(tuple(frames), True)
            try:
                found = self._row(pc if exact else pc - 1)
                if found is None:
                    frames.append(Frame(len(frames), pc, 0, exact))
                    return Backtrace(tuple(frames), False, f"no call-frame information for {pc:#x}")
                fde, row = found
                cfa = self._cfa(row, values)
                frames.append(Frame(len(frames), pc, cfa, exact))
                following = self._caller(fde, row, cfa, values, exact)
            except KatanaError as error:
                return Backtrace(tuple(frames), False, error.what)
            if following is None:
                return Backtrace(tuple(frames), True)
            exact = fde.cie.is_signal_frame
            if (
                following[self._numbers.stack_pointer] <= values[self._numbers.stack_pointer]
                and not exact
                and len(frames) > 1
            ):
                return Backtrace(tuple(frames), False, "the stack does not grow outwards")
            values = following
        return Backtrace(tuple(frames), False, f"more than {self._limit} frames")

    def _row(self, pc: int) -> tuple[Fde, Row] | None:
        if pc not in self._rows:
            fde = self._find(pc)
            self._rows[pc] = None if fde is None else (fde, row_at(fde, pc))
        return self._rows[pc]

    def _cfa(self, row: Row, values: Mapping[int, int]) -> int:
        if row.cfa_expression:
            return self._evaluate(row.cfa_expression, values, [])
        return (_register(values, row.cfa_register) + row.cfa_offset) & _MASK

    def _caller(self, fde: Fde, row: Row, cfa: int, values: Mapping[int, int], exact: bool) -> dict[int, int] | None:
        result = dict(values)
        result[self._numbers.stack_pointer] = cfa
        for number, rule in row.rules.items():
            if rule.kind == "undefined":
                result.pop(number, None)
            else:
                result[number] = self._value(rule, cfa, values)
        column = fde.cie.return_column
        if column not in row.rules and self._numbers.is_return_in_register:
            if not exact:
                raise FormatError("the return address of a frame that has called is in no place")
        elif column not in row.rules or column not in result:
            return None  # undefined, or no rule for it: the outermost frame
        result[self._numbers.pc] = result[column] & ~self._signature if row.is_signed else result[column]
        return result

    def _value(self, rule: Rule, cfa: int, values: Mapping[int, int]) -> int:
        if rule.kind == "offset":
            return self._word((cfa + rule.value) & _MASK)
        if rule.kind == "val_offset":
            return (cfa + rule.value) & _MASK
        if rule.kind == "register":
            return _register(values, rule.value)
        result = self._evaluate(rule.expression, values, [cfa])
        return result if rule.kind == "val_expression" else self._word(result)

    def _word(self, address: int) -> int:
        return int.from_bytes(self._read(address, 8), "little")

    def _evaluate(self, expression: bytes, values: Mapping[int, int], stack: list[int]) -> int:
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
                stack.append(self._word(_pop(stack)))
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
