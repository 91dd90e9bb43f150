"""What a program must do: an interpreter of program values.

The state is kept apart from the program, so that a state can go on under another version: this is the oracle for a
patched process, whose variables keep their values while its code is the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fuzz import program as p

MASK = 0xFFFFFFFF
FUEL = 3000  # steps of one command
MARKS = 64  # line numbers that the driver keeps of one command


def hash_text(text: bytes, start: int = 5381) -> int:
    """The driver's hash_str."""
    for byte in text:
        start = (start * 33 + byte) & MASK
    return start


@dataclass(frozen=True, slots=True)
class LibraryCall:
    """A call of the C library: its declaration, the call in C, and what it gives."""

    declaration: str
    expression: str
    value: Callable[[int], int]


LIBRARY = {
    "toupper": LibraryCall(
        "int toupper(int);", "toupper((int)(acc & 127))", lambda a: ord(chr(a & 127).upper())
    ),
    "abs": LibraryCall("int abs(int);", "abs((int)(acc & 0xffff) - 1000)", lambda a: abs((a & 0xFFFF) - 1000)),
    "strtoul": LibraryCall(
        "unsigned long strtoul(const char *, char **, int);", 'strtoul("4711", (char **)0, 8 + (int)(acc & 3))',
        lambda a: int("4711", 8 + (a & 3)),
    ),
    "strspn": LibraryCall(
        "unsigned long strspn(const char *, const char *);", 'strspn("aabbccdd" + (acc & 3), "ab")',
        lambda a: 4 - (a & 3),
    ),
    "atoi": LibraryCall("int atoi(const char *);", 'atoi("0123456" + (acc & 3))', lambda a: int("0123456"[a & 3 :])),
    "strstr": LibraryCall(
        "char *strstr(const char *, const char *);", '(strstr("hystack" + (acc & 7), "st") != 0)',
        lambda a: int("st" in "hystack"[a & 7 :]),
    ),
    "getpagesize": LibraryCall("int getpagesize(void);", "getpagesize()", lambda _: 4096),
    "stderr": LibraryCall("extern void *stderr;", "(stderr != 0)", lambda _: 1),
    "environ": LibraryCall("extern char **environ;", "(environ != 0)", lambda _: 1),
    "memset": LibraryCall(
        "void *memset(void *, int, unsigned long);",
        "({ unsigned char b[16]; memset(b, (int)(acc & 255), ((acc >> 8) & 15) + 1); b[(acc >> 8) & 15]; })",
        lambda a: a & 255,
    ),
    "memcpy": LibraryCall(
        "void *memcpy(void *, const void *, unsigned long);",
        '({ char b[16] = ""; memcpy(b, "ninechars", acc & 7); hash_str(b); })',
        lambda a: hash_text(b"ninechars"[: a & 7]),
    ),
}  # fmt: skip

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "=": lambda _, b: b,
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "^": lambda a, b: a ^ b,
    "|": lambda a, b: a | b,
    "&": lambda a, b: a & b,
    "/": lambda a, b: a // (b | 1),
    "%": lambda a, b: a % (b | 1),
    "<<": lambda a, b: a << (b & 15),
    ">>": lambda a, b: a >> (b & 15),
}
COMPARES: dict[str, Callable[[int, int], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


class OutOfFuelError(Exception):
    """A command takes too long to be of use."""


@dataclass(slots=True)
class State:
    """The values of all variables: cells of numbers, strings, handlers by the keys of what they point at, and pointers
    by the labels of the cells."""

    cells: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    handlers: dict[str, list[str]] = field(default_factory=dict)
    pointers: dict[str, str] = field(default_factory=dict)

    def copy(self) -> State:
        return State(
            {k: list(v) for k, v in self.cells.items()},
            dict(self.texts),
            {k: list(v) for k, v in self.handlers.items()},
            dict(self.pointers),
        )


def masks(variable: p.Variable) -> tuple[int, ...]:
    """What each cell of a variable can hold."""
    return tuple((1 << 8 * variable.width(i)) - 1 for i in range(len(variable.initial)))


def aimed(program: p.Program, pointer: p.Variable, index: int) -> str:
    """The label of the cell that a pointer points to with an index; "" for the whole."""
    aims = program.variables[pointer.target].aims
    return "" if pointer.whole else aims[index % len(aims)]


def poke_value(value: int, index: int, width: int) -> int:
    """What `poke` writes to a cell: of a wide one, the high half too."""
    low = (value + index) & MASK
    return low | (value & 1) << 32 if width == 8 else low & ((1 << 8 * width) - 1)


def begin(program: p.Program, state: State | None = None) -> State:
    """The state at the start; what `state` holds already stays."""
    made = state.copy() if state else State()
    for v in program.variables.values():
        if v.kind == "text":
            made.texts.setdefault(v.key, v.text)
        elif v.kind == "pointer":
            made.pointers.setdefault(v.key, aimed(program, v, v.initial[0]))
        else:
            made.cells.setdefault(v.key, [x & m for x, m in zip(v.initial, masks(v), strict=True)])
    for f in program.functions.values():
        for n in p.counts(f):
            made.cells.setdefault(n.key, [n.initial])
    for h in program.handlers.values():
        if not h.const:
            made.handlers.setdefault(h.key, list(h.entries))
    return made


class Machine:
    """A program at work on a state.  `lines` collects the keys of the __LINE__ uses of one command."""

    def __init__(self, program: p.Program, state: State) -> None:
        self.program = program
        self.state = state
        self.lines: list[str] = []
        self.fuel = FUEL
        self.functions = program.functions
        self.variables = program.variables
        self.tables = program.tables
        self.handlers = program.handlers

    def call(self, key: str, arguments: list[int]) -> int:
        """The result of a function."""
        f = self.functions[key]
        acc = self._run(f.body, f, arguments, arguments[0])
        if f.tail:
            callee = self.functions[f.tail]
            acc = self.call(f.tail, [(acc + i) & MASK for i in range(callee.params)])
        return acc

    def _burn(self) -> None:
        self.fuel -= 1
        if self.fuel < 0:
            raise OutOfFuelError

    def _run(self, body: tuple[p.Statement, ...], f: p.Function, args: list[int], acc: int) -> int:
        for statement in body:
            self._burn()
            acc = self._step(statement, f, args, acc) & MASK
        return acc

    def _index(self, cell: p.Cell, acc: int) -> int:
        v = self.variables[cell.variable]
        if v.kind == "struct" or not cell.dynamic:
            return cell.index % len(v.initial)
        return acc % len(v.initial)

    def _led_to(self, deref: p.Deref) -> tuple[p.Variable, int]:
        """The variable, and which of its cells."""
        pointer = self.variables[deref.pointer]
        v = self.variables[pointer.target]
        at = deref.index % len(v.initial) if pointer.whole else v.labels.index(self.state.pointers[pointer.key])
        return v, at

    def value(self, operand: p.Operand, args: list[int], acc: int) -> int:
        """What an operand is worth."""
        match operand:
            case p.Const():
                return operand.value
            case p.Acc():
                return acc
            case p.Arg():
                return args[operand.index % len(args)]
            case p.Cell():
                if operand.variable in self.state.texts:
                    return hash_text(self.state.texts[operand.variable].encode())
                return self.state.cells[operand.variable][self._index(operand, acc)]
            case p.Deref():
                variable, at = self._led_to(operand)
                return self.state.cells[variable.key][at]
            case p.Entry():
                table = self.tables[operand.table]
                if table.texts:
                    return hash_text(table.texts[acc % len(table.texts)].encode())
                return table.values[acc % len(table.values)] & ((1 << 8 * table.width) - 1)
            case p.Text():
                return hash_text(operand.text.encode())
            case p.Real():
                return int((acc & 1023) * (operand.factor / 8) + operand.offset / 8) & MASK
            case p.LocalTable():
                return operand.values[acc % len(operand.values)]

    def _step(self, s: p.Statement, f: p.Function, args: list[int], acc: int) -> int:
        match s:
            case p.Mix():
                return OPERATORS[s.op](acc, self.value(s.operand, args, acc))
            case p.Set():
                cells, at = self.state.cells[s.cell.variable], self._index(s.cell, acc)
                mask = masks(self.variables[s.cell.variable])[at]
                cells[at] = OPERATORS[s.op](cells[at], self.value(s.operand, args, acc)) & mask
            case p.SetThrough():
                v, at = self._led_to(s.to)
                cells = self.state.cells[v.key]
                cells[at] = OPERATORS[s.op](cells[at], self.value(s.operand, args, acc)) & masks(v)[at]
            case p.Aim():
                self.state.pointers[s.pointer] = aimed(self.program, self.variables[s.pointer], s.index)
            case p.SetText():
                self.state.texts[s.variable] = s.text
            case p.If():
                holds = COMPARES[s.compare](self.value(s.operand, args, acc), s.limit)
                return self._run(s.then if holds else s.other, f, args, acc)
            case p.Loop():
                for _ in range(s.times):
                    acc = self._run(s.body, f, args, acc)
            case p.Switch():
                case_ = self.value(s.operand, args, acc) % (len(s.cases) + 1)
                return self._run(s.cases[case_], f, args, acc) if case_ < len(s.cases) else acc
            case p.Select():
                case_ = self.value(s.operand, args, acc) % (len(s.values) + 1)
                return acc ^ (s.values[case_] if case_ < len(s.values) else 77)
            case p.Labels():
                return acc + s.values[self.value(s.operand, args, acc) % len(s.values)]
            case p.Count():
                cell = self.state.cells[s.key]
                cell[0] = (cell[0] * s.factor + 1) & MASK
                return acc ^ cell[0]
            case p.Recurse():
                if not args[0] & 3:
                    return acc
                return OPERATORS[s.op](acc, self.call(f.key, [(args[0] & 3) - 1, *args[1:]]))
            case _:
                return self._reach(s, args, acc)
        return acc

    def _reach(self, s: p.Statement, args: list[int], acc: int) -> int:
        """The statements that call something."""
        match s:
            case p.Invoke():
                callee = self.functions[s.function]
                values = [self.value(s.arguments[i % len(s.arguments)], args, acc) & MASK for i in range(callee.params)]
                return OPERATORS[s.op](acc, self.call(s.function, values))
            case p.Through():
                entries = self.pointers(s.handlers)
                return OPERATORS[s.op](acc, self.call(entries[acc % len(entries)], [acc]))
            case p.Store():
                live = self.state.handlers[s.handlers]
                live[s.index % len(live)] = s.function
            case p.Same():
                entries = self.pointers(s.handlers)
                return acc ^ (s.number if entries[s.index % len(entries)] == s.function else 0)
            case p.Print():
                text = f"{s.text} {self.value(s.operand, args, acc) & MASK}"
                return acc ^ hash_text(text.encode()[:47])
            case p.Sort():
                factor = self.functions[s.comparator].constant | 1
                numbers = sorted(((acc * k + k) & 0xFFFF for k in (3, 5, 7, 11)), key=lambda x: x * factor & MASK)
                return acc ^ (numbers[0] * 3 + numbers[1] * 5 + numbers[2] * 7 + numbers[3])
            case p.Sum():
                factor, total = self.functions[s.function].constant, 0
                for operand in s.operands:
                    total = (total * factor + self.value(operand, args, acc)) & MASK
                return acc + total
            case p.Jump():
                return acc ^ s.jumped if acc & 1 else acc + s.returned
            case p.Peek():
                return acc ^ (self.state.cells[s.variable][0] & MASK)
            case p.Line():
                if len(self.lines) < MARKS:
                    self.lines.append(s.key)
            case p.Library():
                return OPERATORS[s.op](acc, LIBRARY[s.name].value(acc) & MASK)
        return acc

    def pointers(self, key: str) -> list[str]:
        """The live entries of a table of handlers."""
        table = self.handlers[key]
        return list(table.entries) if table.const else self.state.handlers[key]

    def dump(self) -> str:
        """All that the driver's `dump` says."""
        words = []
        for u in self.program.units:
            for v in u.variables:
                if v.kind == "pointer":
                    target, at = self._led_to(p.Deref(v.key))
                    words += [f"{v.key}={self.state.cells[target.key][at]}@{self.state.pointers[v.key]}"]
                    continue
                live = [self.state.texts[v.key]] if v.kind == "text" else self.state.cells[v.key]
                words += [f"{v.key}={x}" for x in live]
            for h in u.handlers:
                known = {f.key for f in candidates(self.program, u)}
                words += [f"{h.key}={k if k in known else '?'}" for k in self.pointers(h.key)]
        return " ".join(words)

    def poke(self, unit: p.Unit, number: int, value: int) -> int:
        """The driver's `poke`: write to the variable of a number."""
        poked = pokable(unit)
        if poked:
            v = poked[number % len(poked)]
            if v.kind == "pointer":
                self.state.pointers[v.key] = aimed(self.program, v, value)
                return value
            for i in range(len(v.initial)):
                self.state.cells[v.key][i] = poke_value(value, i, v.width(i))
        return value


def candidates(program: p.Program, unit: p.Unit) -> list[p.Function]:
    """The callbacks that a unit's dump can name: its own, and global ones."""
    return [f for u in program.units for f in u.functions if f.kind == "callback" and (u is unit or not f.static)]


def pokable(unit: p.Unit) -> list[p.Variable]:
    """The variables that `poke` writes."""
    return [v for v in unit.variables if v.poked and v.kind != "text"]


def written(program: p.Program) -> set[str]:
    """Keys of the variables that anything writes: of others a compiler may take the initial value for granted."""
    found = {v.key for u in program.units for v in pokable(u)}
    for n in p.walk(program):
        match n:
            case p.Set():
                found.add(n.cell.variable)
            case p.SetThrough(to=to):
                found.add(program.variables[to.pointer].target)
            case p.SetText(variable=key) | p.Store(handlers=key) | p.Count(key=key) | p.Aim(pointer=key):
                found.add(key)
            case _:
                pass
    return found


def shifted(old: p.Program, new: p.Program) -> set[str]:
    """Keys of the tables of another size that begin with other values: which live value is which, nobody knows, and so
    they become as the new build has them, unless something has written to them."""
    found = set()
    for key, v in new.variables.items():
        was = old.variables.get(key)
        if was is not None and v.kind == "array" and len(was.initial) != len(v.initial):
            pairs = zip(was.initial, v.initial, masks(was), masks(v), strict=False)
            if any(a & m & n != b & n for a, b, m, n in pairs):
                found.add(key)
    for key, h in new.handlers.items():
        before = old.handlers.get(key)
        if before is None or h.const or before.const or len(before.entries) == len(h.entries):
            continue
        if any(a != b for a, b in zip(before.entries, h.entries, strict=False)):
            found.add(key)
    return found


@dataclass(slots=True)
class Handover:
    """What a patch, or taking it out, makes of a state.

    It is refused when there is anything in `rewritten` (tables of handlers with an entry to rewrite that is not what it
    was initially), in `lost` (variables that hold a value which does not go over), or in `broken` (pointers to a cell
    that is no more, or of another type), and may be for what is in `stale` (the same of pointers that are gone in the
    new build): keys.
    """

    state: State
    rewritten: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    stale: set[str] = field(default_factory=set)


def take_over(old: p.Program, new: p.Program, state: State, left: State | None = None) -> Handover:
    """The state after a patch; or after it is taken out, when the old objects still hold what they did when they were
    `left`, and what the patch added must not hold a value of its own."""
    done = Handover(begin(new, state))
    begun = begin(old), begin(new)
    untouched = shifted(old, new)
    for key in untouched & begun[1].cells.keys():
        done.state.cells[key] = list((begun[1] if left is None else left).cells[key])
        if state.cells[key] != begun[0].cells[key]:
            done.lost.add(key)
    for key, v in new.variables.items():
        was = old.variables.get(key)
        if was is None or key not in begun[1].cells or was.shape == v.shape or key in untouched:
            continue
        live = dict(zip(was.labels, state.cells[key], strict=True))
        there = begun[1].cells[key] if left is None else left.cells[key]
        values = [live.pop(label, fresh) for label, fresh in zip(v.labels, there, strict=True)]
        fitting = [x & m for x, m in zip(values, masks(v), strict=True)]
        done.state.cells[key] = fitting
        if fitting != values:
            done.lost.add(key)
        first = dict(zip(was.labels, begun[0].cells[key], strict=True))
        if left is not None and any(first[label] != value for label, value in live.items()):
            done.lost.add(key)
    for key, v in old.variables.items():
        target = new.variables.get(v.target)
        if v.kind == "pointer" and not v.whole and target is not None:
            aims = target.aims[:1] if v.target in untouched else target.aims
            if state.pointers[key] not in aims:
                (done.broken if key in new.variables else done.stale).add(key)
    _take_over_handlers(old, new, done, left)
    return done


def _take_over_handlers(old: p.Program, new: p.Program, done: Handover, left: State | None) -> None:
    for key, h in new.handlers.items():
        before = old.handlers.get(key)
        if before is None or h.const or before.const:
            continue
        live = done.state.handlers[key]
        if len(before.entries) != len(h.entries):
            common = min(len(before.entries), len(h.entries))
            if before.entries[:common] != h.entries[:common]:
                if live != list(before.entries):
                    done.lost.add(key)
                done.state.handlers[key] = list(h.entries) if left is None else left.handlers[key]
                continue
            if left is not None and live[common:] != list(before.entries[common:]):
                done.lost.add(key)
            there = list(h.entries) if left is None else left.handlers[key]
            done.state.handlers[key] = [*live[:common], *there[common:]]
            continue
        for i, (a, b) in enumerate(zip(before.entries, h.entries, strict=True)):
            if a != b:
                if live[i] != a:
                    done.rewritten.add(key)
                live[i] = b
