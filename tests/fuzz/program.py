"""Small C programs as values: what the strategies draw, the edits change, the renderer writes and the model runs.

Everything is unsigned arithmetic of 32 bits and bounded, so a program means the same to every compiler and to the
model.  Each entity has a `key`, which is its identity through edits, and a `name`, which is what C calls it.  Two units
may have statics of one name.  A function calls only functions of lower `rank`, so nothing but `Recurse` recurs.

A function starts with an accumulator that holds its first argument, runs its body, and returns the accumulator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Node:
    """Anything that a program is made of."""


# Operands


@dataclass(frozen=True, slots=True)
class Const(Node):
    """A number."""

    value: int


@dataclass(frozen=True, slots=True)
class Acc(Node):
    """The accumulator."""


@dataclass(frozen=True, slots=True)
class Arg(Node):
    """An argument, counted modulo the number of parameters."""

    index: int


@dataclass(frozen=True, slots=True)
class Cell(Node):
    """A cell of a variable; `dynamic`: which one depends on the accumulator."""

    variable: str
    index: int = 0
    dynamic: bool = False


@dataclass(frozen=True, slots=True)
class Entry(Node):
    """An entry of a constant table, chosen by the accumulator."""

    table: str


@dataclass(frozen=True, slots=True)
class Text(Node):
    """The hash of a string literal."""

    text: str


@dataclass(frozen=True, slots=True)
class Real(Node):
    """The accumulator's low bits times a floating constant plus another, both in eighths."""

    factor: int
    offset: int


@dataclass(frozen=True, slots=True)
class LocalTable(Node):
    """An entry of an array that the function fills at each call; `fixed`: of a static const one in it."""

    values: tuple[int, ...]
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Deref(Node):
    """What a pointer points to; of a pointer to a whole struct, a field of it."""

    pointer: str
    index: int = 0


Operand = Const | Acc | Arg | Cell | Deref | Entry | Text | Real | LocalTable

# Statements


@dataclass(frozen=True, slots=True)
class Mix(Node):
    """acc = acc op operand"""

    op: str
    operand: Operand


@dataclass(frozen=True, slots=True)
class Set(Node):
    """cell = cell op operand; op may be "=" """

    cell: Cell
    op: str
    operand: Operand


@dataclass(frozen=True, slots=True)
class SetThrough(Node):
    """What a pointer points to = the same op operand"""

    to: Deref
    op: str
    operand: Operand


@dataclass(frozen=True, slots=True)
class Aim(Node):
    """A pointer is pointed at another cell of its `target`, which is named here since the code names it."""

    pointer: str
    target: str
    index: int


@dataclass(frozen=True, slots=True)
class SetText(Node):
    """A variable that holds a string is pointed at a literal."""

    variable: str
    text: str


@dataclass(frozen=True, slots=True)
class Peek(Node):
    """acc ^= what the driver reads at the variable's address: a compiler has to keep it as it is declared then."""

    variable: str


@dataclass(frozen=True, slots=True)
class If(Node):
    """A branch; `cold`: unlikely, and its first side ends in a call of a cold function."""

    operand: Operand
    compare: str
    limit: int
    then: tuple[Statement, ...]
    other: tuple[Statement, ...] = ()
    cold: bool = False


@dataclass(frozen=True, slots=True)
class Loop(Node):
    """A body run `times` times."""

    times: int
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Switch(Node):
    """Cases 0, 1, ... of an operand modulo one more than there are; falls to nothing."""

    operand: Operand
    cases: tuple[tuple[Statement, ...], ...]


@dataclass(frozen=True, slots=True)
class Select(Node):
    """A switch that only chooses a number: compilers make a table of it."""

    operand: Operand
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Labels(Node):
    """A computed goto over labels, each of which adds its number."""

    operand: Operand
    values: tuple[int, ...]
    const: bool


@dataclass(frozen=True, slots=True)
class Count(Node):
    """A static local: n = n * factor + 1; acc ^= n"""

    key: str
    name: str
    initial: int
    factor: int


@dataclass(frozen=True, slots=True)
class Invoke(Node):
    """acc = acc op function(arguments)"""

    op: str
    function: str
    arguments: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Through(Node):
    """acc = acc op handlers[acc % n](acc)"""

    op: str
    handlers: str


@dataclass(frozen=True, slots=True)
class Store(Node):
    """handlers[index] = function"""

    handlers: str
    index: int
    function: str


@dataclass(frozen=True, slots=True)
class Same(Node):
    """acc ^= handlers[index] == function ? number : 0"""

    handlers: str
    index: int
    function: str
    number: int


@dataclass(frozen=True, slots=True)
class Print(Node):
    """snprintf of a literal and a number; acc ^= the hash of it"""

    text: str
    operand: Operand


@dataclass(frozen=True, slots=True)
class Sort(Node):
    """qsort of four numbers with a comparator of the program; acc ^= their mixture"""

    comparator: str


@dataclass(frozen=True, slots=True)
class Sum(Node):
    """A call with variable arguments: acc += sum(3, a, b, c)"""

    function: str
    operands: tuple[Operand, Operand, Operand]


@dataclass(frozen=True, slots=True)
class Jump(Node):
    """setjmp, and a helper that jumps back when the accumulator is odd."""

    jumped: int
    returned: int


@dataclass(frozen=True, slots=True)
class Line(Node):
    """A use of __LINE__, which is reported beside the result."""

    key: str


@dataclass(frozen=True, slots=True)
class Library(Node):
    """acc = acc op a call of the C library (see `model.LIBRARY`)"""

    op: str
    name: str


@dataclass(frozen=True, slots=True)
class Recurse(Node):
    """if (a & 3) acc = acc op itself((a & 3) - 1)"""

    op: str


Statement = (
    Mix | Set | SetThrough | Aim | SetText | Peek | If | Loop | Switch | Select | Labels | Count | Invoke | Through
    | Store | Same | Print | Sort | Sum | Jump | Line | Library | Recurse
)  # fmt: skip

# Entities


@dataclass(frozen=True, slots=True)
class Variable(Node):
    """A writable variable.  `kind`: scalar, array, struct, thread, flag, text (a pointer to a literal) or pointer.

    A flag is 0 and nothing but 1 is ever written to it, which a compiler may keep in a byte.

    `initial` holds a value a cell (for text none); `poked`: a command can write it, so that every version writes it.
    `widths`: bytes of a cell; of an array and a scalar one for all, 4 where it is empty.  Of a struct, `names` are its
    fields, a cell each, and `order` is how it declares them.

    A pointer points into variable `target`, at the cell that `initial` names; or, when it is `whole`, to all of it.
    """

    key: str
    name: str
    kind: str
    static: bool
    initial: tuple[int, ...]
    text: str = ""
    poked: bool = True
    widths: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    target: str = ""
    whole: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """What tells a cell from the others, through edits."""
        return self.names or tuple(str(i) for i in range(len(self.initial)))

    def width(self, index: int) -> int:
        """Bytes of a cell."""
        return self.widths[index if self.names else 0] if self.widths else 4

    @property
    def aims(self) -> tuple[str, ...]:
        """The cells that a pointer into it may point to: those of one type."""
        return tuple(label for i, label in enumerate(self.labels) if self.width(i) == self.width(0))

    @property
    def shape(self) -> tuple[object, ...]:
        """What another layout differs in."""
        return self.labels, [self.width(i) for i in range(len(self.initial))], self.order or self.names


@dataclass(frozen=True, slots=True)
class Table(Node):
    """A constant table of numbers (of `width` bytes) or, when `texts` is not empty, of strings."""

    key: str
    name: str
    static: bool
    values: tuple[int, ...]
    width: int = 4
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Handlers(Node):
    """A table of pointers to callback functions."""

    key: str
    name: str
    static: bool
    const: bool
    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Function(Node):
    """A function.  `kind`: plain, callback (one parameter, its address may be taken), order (a comparator) or sum.

    `attribute`: "", noinline, inline, weak, alias (others call it by an alias), cold.  `blank`: empty lines before it.
    `constant` is what a comparator or a sum multiplies by.  `tail`: a function that the result is passed through.
    """

    key: str
    name: str
    kind: str
    rank: int
    static: bool
    params: int
    body: tuple[Statement, ...] = ()
    attribute: str = ""
    blank: int = 0
    constant: int = 1
    tail: str = ""


Entity = Variable | Table | Handlers | Function


@dataclass(frozen=True, slots=True)
class Unit(Node):
    """A source file."""

    name: str
    functions: tuple[Function, ...]
    variables: tuple[Variable, ...]
    tables: tuple[Table, ...]
    handlers: tuple[Handlers, ...]

    @property
    def entities(self) -> tuple[Entity, ...]:
        return (*self.functions, *self.variables, *self.tables, *self.handlers)


@dataclass(frozen=True, slots=True)
class Program(Node):
    """All source files but the driver's."""

    units: tuple[Unit, ...]

    @property
    def functions(self) -> dict[str, Function]:
        return {f.key: f for u in self.units for f in u.functions}

    @property
    def variables(self) -> dict[str, Variable]:
        return {v.key: v for u in self.units for v in u.variables}

    @property
    def tables(self) -> dict[str, Table]:
        return {t.key: t for u in self.units for t in u.tables}

    @property
    def handlers(self) -> dict[str, Handlers]:
        return {h.key: h for u in self.units for h in u.handlers}


def walk(value: Any) -> Iterator[Node]:
    """All nodes of a value, outer ones first."""
    if isinstance(value, tuple):
        for item in value:
            yield from walk(item)
    elif isinstance(value, Node):
        yield value
        for field in dataclasses.fields(value):
            yield from walk(getattr(value, field.name))


def transform(value: Any, change: Callable[[Node], Node | None]) -> Any:
    """The value with every node replaced by what `change` makes of it, inner ones first; None drops it from a tuple."""
    if isinstance(value, tuple):
        return tuple(new for item in value if (new := transform(item, change)) is not None)
    if not isinstance(value, Node):
        return value
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    made = {n: transform(v, change) if isinstance(v, tuple | Node) else v for n, v in fields.items()}
    if any(isinstance(fields[n], Node) and made[n] is None for n in made):
        return None
    return change(value if made == fields else type(value)(**made))


def counts(function: Function) -> tuple[Count, ...]:
    """The static locals of a function."""
    return tuple(n for n in walk(function.body) if isinstance(n, Count))


def uses(value: Any) -> set[str]:
    """Keys of all entities that statements refer to."""
    found: set[str] = set()
    for n in walk(value):
        match n:
            case Cell(variable=key) | SetText(variable=key) | Peek(variable=key) | Entry(table=key):
                found.add(key)
            case Deref(pointer=key):
                found.add(key)
            case Aim():
                found |= {n.pointer, n.target}
            case Variable(target=key) if key:
                found.add(key)
            case Invoke(function=key) | Sort(comparator=key) | Sum(function=key):
                found.add(key)
            case Through(handlers=key):
                found.add(key)
            case Store() | Same():
                found |= {n.handlers, n.function}
            case Function(tail=key) if key:
                found.add(key)
            case Handlers(entries=keys):
                found.update(keys)
            case _:
                pass
    return found


def problem(program: Program) -> str:
    """Why a program is no valid C, or not a program at all; "" when it is."""
    functions = program.functions
    everything: dict[str, tuple[str, Entity]] = {e.key: (u.name, e) for u in program.units for e in u.entities}
    for u in program.units:
        names: dict[str, str] = {}
        keys = {e.key for e in u.entities} | uses(u)
        if u.handlers:
            # The unit's dump names all callbacks it can see.
            keys |= {
                k
                for k, (_, e) in everything.items()
                if isinstance(e, Function) and e.kind == "callback" and not e.static
            }
        for key in sorted(keys):
            if key not in everything:
                return f"{key} is used and not there"
            home, entity = everything[key]
            if home != u.name and entity.static:
                return f"{u.name} uses the static {key} of {home}"
            if names.setdefault(entity.name, key) != key:
                return f"{u.name} has two {entity.name}"
        for f in u.functions:
            for key in uses(f) & functions.keys():
                callee = functions[key]
                if callee.rank >= f.rank:
                    return f"{f.key} calls {key}, which may call it"
            for key in uses(f) & program.handlers.keys():
                if any(functions[e].rank >= f.rank for e in program.handlers[key].entries if e in functions):
                    return f"{f.key} calls through {key}, which may call it"
            locals_of = [n.name for n in counts(f)]
            if len(locals_of) != len(set(locals_of)):
                return f"{f.key} has two static locals of one name"
        for h in u.handlers:
            if not h.entries or any(e in functions and functions[e].kind != "callback" for e in h.entries):
                return f"{h.key} holds what is no callback"
    exported = [e.name for _, e in everything.values() if not e.static]
    return "" if len(exported) == len(set(exported)) else "two globals of one name"
