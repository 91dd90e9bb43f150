"""Strategies for programs and their parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from hypothesis import strategies as st

from tests.fuzz import program as p
from tests.fuzz.model import LIBRARY

Draw = st.DrawFn
T = TypeVar("T")

# A number near the line it stands on cannot be told from __LINE__ when both move: there are none.
NUMBERS = st.one_of(
    st.integers(0, 7), st.integers(1000, 1100), st.sampled_from([0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 65535, 65536])
)
WORDS = ("", "a", "ya", "alpha", "betaalpha", "gamma ray", "a rather long literal of more words", "percent", "x")
STATIC_VARIABLES = ("count", "total", "state")
STATIC_POINTERS = ("cursor", "at")
FIELDS, WIDTHS = ("x", "y", "z"), (4, 1, 2)
STATIC_FUNCTIONS = ("helper", "step", "twist")
STATIC_LOCALS = ("n", "m", "seen", "last")
OPERATORS = ("+", "-", "*", "^", "|", "&", "/", "%", "<<", ">>")
TEXTS = st.sampled_from(WORDS)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a function of a unit may use: the unit's own things, global ones of others, and functions below its rank."""

    program: p.Program
    unit: p.Unit
    rank: int

    def functions(self, *kinds: str) -> list[p.Function]:
        return [
            f for u in self.program.units for f in u.functions
            if f.kind in kinds and f.rank < self.rank and (u is self.unit or not f.static)
        ]  # fmt: skip

    def variables(self, *kinds: str) -> list[p.Variable]:
        return [
            v for u in self.program.units for v in u.variables if v.kind in kinds and (u is self.unit or not v.static)
        ]

    def tables(self) -> list[p.Table]:
        return [t for u in self.program.units for t in u.tables if u is self.unit or not t.static]

    def handlers(self, *, writable: bool = False) -> list[p.Handlers]:
        ranks = {k: f.rank for k, f in self.program.functions.items()}
        return [
            h for u in self.program.units for h in u.handlers
            if (u is self.unit or not h.static) and not (writable and h.const)
            and max(ranks[e] for e in h.entries) < self.rank
        ]  # fmt: skip


def fresh(program: p.Program, prefix: str) -> str:
    """A key that nothing in the program has."""
    taken = {getattr(n, "key", "") for n in p.walk(program)}
    return next(k for i in range(10_000) if (k := f"{prefix}{i}") not in taken)


POINTED = ("scalar", "array", "struct")
NUMERIC = ("scalar", "array", "struct", "thread", "flag")


@st.composite
def cells(draw: Draw, scope: Scope) -> p.Cell:
    """A cell of a variable there is."""
    v = draw(st.sampled_from(scope.variables(*NUMERIC)))
    return p.Cell(v.key, draw(st.integers(0, 3)), draw(st.booleans()))


def derefs(pointers: list[p.Variable]) -> st.SearchStrategy[p.Deref]:
    """What one of these points to."""
    return st.builds(p.Deref, st.sampled_from(pointers).map(lambda v: v.key), st.integers(0, 3))


@st.composite
def operands(draw: Draw, scope: Scope) -> p.Operand:
    """Something with a value."""
    makers: list[st.SearchStrategy[p.Operand]] = [
        NUMBERS.map(p.Const),
        st.just(p.Acc()),
        st.integers(0, 7).map(p.Arg),
        TEXTS.map(p.Text),
        st.builds(p.Real, st.integers(1, 40), st.integers(0, 40)),
        st.builds(p.LocalTable, st.lists(NUMBERS, min_size=2, max_size=9).map(tuple), st.booleans()),
    ]
    if scope.variables(*NUMERIC):
        makers += [cells(scope)] * 3
    if pointers := scope.variables("pointer"):
        makers.append(derefs(pointers))
    if texts := scope.variables("text"):
        makers.append(st.sampled_from(texts).map(lambda v: p.Cell(v.key)))
    if tables := scope.tables():
        makers += [st.sampled_from(tables).map(lambda t: p.Entry(t.key))] * 2
    return draw(st.one_of(makers))


OPS = st.sampled_from(OPERATORS)
SIMPLE = (
    "mix",
    "set",
    "through",
    "aim",
    "peek",
    "text",
    "select",
    "labels",
    "count",
    "print",
    "line",
    "library",
    "invoke",
    "jump",
)
CALLS = ("invoke", "handler", "store", "same", "sort", "sum", "recurse")
NESTED = ("if", "loop", "switch")


@st.composite
def statements(draw: Draw, scope: Scope, depth: int = 0) -> p.Statement:
    """A statement that may stand in a function of that scope."""
    kinds = SIMPLE + CALLS + (NESTED if depth < 2 else ())
    kind = draw(st.sampled_from(kinds))
    if kind in NESTED:
        return _nested(draw, scope, kind, depth)
    made = _call(draw, scope, kind) if kind in CALLS else _simple(draw, scope, kind)
    return made or p.Mix(draw(OPS), draw(operands(scope)))


def _nested(draw: Draw, scope: Scope, kind: str, depth: int) -> p.Statement:
    inner = bodies(scope, depth + 1)
    if kind == "if":
        compare = draw(st.sampled_from(["<", ">", "==", "!="]))
        other = draw(inner) if draw(st.booleans()) else ()
        return p.If(draw(operands(scope)), compare, draw(NUMBERS), draw(inner), other, draw(st.booleans()))
    if kind == "loop":
        return p.Loop(draw(st.integers(1, 5)), draw(inner))
    cases = draw(st.lists(st.one_of(st.just(()), inner), min_size=2, max_size=9))
    return p.Switch(draw(operands(scope)), tuple(cases))


def _simple(draw: Draw, scope: Scope, kind: str) -> p.Statement | None:
    numbers = st.lists(NUMBERS, min_size=3, max_size=10).map(tuple)
    match kind:
        case "set" if scope.variables(*NUMERIC):
            cell = draw(cells(scope))
            if scope.program.variables[cell.variable].kind == "flag":
                return p.Set(cell, "=", p.Const(1))
            return p.Set(cell, draw(st.sampled_from(("=", *OPERATORS))), draw(operands(scope)))
        case "through" if pointers := scope.variables("pointer"):
            to = draw(derefs(pointers))
            return p.SetThrough(to, draw(st.sampled_from(("=", *OPERATORS))), draw(operands(scope)))
        case "aim" if aimable := _aimable(scope):
            v = draw(st.sampled_from(aimable))
            return p.Aim(v.key, v.target, draw(st.integers(0, 3)))
        case "peek" if known := scope.variables(*NUMERIC):
            return p.Peek(draw(st.sampled_from(known)).key)
        case "text" if texts := scope.variables("text"):
            return p.SetText(draw(st.sampled_from(texts)).key, draw(TEXTS))
        case "select":
            return p.Select(draw(operands(scope)), draw(numbers))
        case "labels":
            return p.Labels(draw(operands(scope)), draw(numbers), draw(st.booleans()))
        case "count":
            return p.Count("", draw(st.sampled_from(STATIC_LOCALS)), draw(NUMBERS), draw(st.integers(1, 3)))
        case "print":
            return p.Print(draw(TEXTS), draw(operands(scope)))
        case "line":
            return p.Line("")
        case "library":
            return p.Library(draw(OPS), draw(st.sampled_from(sorted(LIBRARY))))
        case "jump":
            return p.Jump(draw(NUMBERS), draw(NUMBERS))
    return None


def _aimable(scope: Scope) -> list[p.Variable]:
    """The pointers whose targets can be named, too."""
    seen = {v.key for v in scope.variables(*POINTED)}
    return [v for v in scope.variables("pointer") if v.target in seen]


def _call(draw: Draw, scope: Scope, kind: str) -> p.Statement | None:
    callbacks = scope.functions("callback")
    match kind:
        case "invoke" if callees := scope.functions("plain", "callback"):
            arguments = tuple(draw(operands(scope)) for _ in range(draw(st.integers(1, 2))))
            return p.Invoke(draw(OPS), draw(st.sampled_from(callees)).key, arguments)
        case "handler" if tables := scope.handlers():
            return p.Through(draw(OPS), draw(st.sampled_from(tables)).key)
        case "store" if callbacks and (tables := scope.handlers(writable=True)):
            h = draw(st.sampled_from(tables))
            fitting = [f for f in callbacks if f.rank <= _rank(scope.program, h)]
            if fitting:
                return p.Store(h.key, draw(st.integers(0, 3)), draw(st.sampled_from(fitting)).key)
        case "same" if callbacks and (tables := scope.handlers()):
            f = draw(st.sampled_from(callbacks))
            return p.Same(draw(st.sampled_from(tables)).key, draw(st.integers(0, 3)), f.key, draw(NUMBERS))
        case "sort" if comparators := scope.functions("order"):
            return p.Sort(draw(st.sampled_from(comparators)).key)
        case "sum" if sums := scope.functions("sum"):
            three = draw(operands(scope)), draw(operands(scope)), draw(operands(scope))
            return p.Sum(draw(st.sampled_from(sums)).key, three)
        case "recurse":
            return p.Recurse(draw(OPS))
    return None


def _rank(program: p.Program, handlers: p.Handlers) -> int:
    functions = program.functions
    return max(functions[e].rank for e in handlers.entries)


def bodies(scope: Scope, depth: int = 0) -> st.SearchStrategy[tuple[p.Statement, ...]]:
    """A few statements."""
    return st.lists(statements(scope, depth), min_size=1, max_size=4 if not depth else 2).map(tuple)


def keyed(program: p.Program, body: tuple[p.Statement, ...]) -> tuple[p.Statement, ...]:
    """The body with keys for what needs one, and no two static locals of one name."""
    taken = {getattr(n, "key", "") for n in p.walk(program)}
    names: set[str] = set()

    def give(n: p.Node) -> p.Node | None:
        if isinstance(n, p.Count | p.Line) and not n.key:
            prefix = "c" if isinstance(n, p.Count) else "l"
            key = next(k for i in range(10_000) if (k := f"{prefix}{i}") not in taken)
            taken.add(key)
            n = replace(n, key=key)
        if isinstance(n, p.Count):
            if n.name in names:
                return None
            names.add(n.name)
        return n

    done: tuple[p.Statement, ...] = p.transform(body, give)
    return done


@st.composite
def variables(draw: Draw, program: p.Program) -> p.Variable:
    """A variable with a key of its own."""
    key = fresh(program, "v")
    kind = draw(st.sampled_from(["scalar", "scalar", "array", "struct", "thread", "text", "flag"]))
    size = {"array": draw(st.integers(2, 5)), "struct": 3, "text": 0}.get(kind, 1)
    static = draw(st.booleans())
    name = draw(st.sampled_from(STATIC_VARIABLES)) if static else f"g_{key}"
    zero = kind == "flag" or draw(st.booleans())
    initial = tuple(0 if zero else draw(NUMBERS) for _ in range(size))
    text = draw(TEXTS) if kind == "text" else ""
    poked = kind != "flag" and draw(st.integers(0, 3)) > 0
    names = FIELDS if kind == "struct" else ()
    widths = WIDTHS if kind == "struct" else (8,) if kind in POINTED and draw(st.integers(0, 3)) == 3 else ()
    return p.Variable(key, name, kind, static, initial, text, poked, widths, names)


@st.composite
def pointers(draw: Draw, program: p.Program, unit: p.Unit) -> p.Variable | None:
    """A pointer into a variable that a unit sees, if there is one."""
    known = Scope(program, unit, 0).variables(*POINTED)
    if not known:
        return None
    target = draw(st.sampled_from(known))
    key = fresh(program, "p")
    static = draw(st.booleans())
    name = draw(st.sampled_from(STATIC_POINTERS)) if static else f"g_{key}"
    whole = target.kind == "struct" and draw(st.booleans())
    initial = (draw(st.integers(0, len(target.aims) - 1)),)
    poked = draw(st.integers(0, 3)) > 0
    return p.Variable(key, name, "pointer", static, initial, poked=poked, target=target.key, whole=whole)


@st.composite
def tables(draw: Draw, program: p.Program) -> p.Table:
    """A constant table."""
    key = fresh(program, "t")
    static = draw(st.booleans())
    name = "table" if static else f"g_{key}"
    values = tuple(draw(st.lists(NUMBERS, min_size=2, max_size=8)))
    texts = tuple(draw(st.lists(TEXTS, min_size=2, max_size=4))) if draw(st.integers(0, 2)) == 0 else ()
    return p.Table(key, name, static, values, draw(st.sampled_from([1, 2, 4])), texts)


@st.composite
def functions(draw: Draw, program: p.Program, unit: p.Unit, rank: int, kind: str = "") -> p.Function:
    """A function for a unit of the program."""
    key = fresh(program, "f")
    kind = kind or draw(st.sampled_from(["plain", "plain", "plain", "callback", "order", "sum"]))
    static = draw(st.booleans())
    name = draw(st.sampled_from(STATIC_FUNCTIONS)) if static else f"g_{key}"
    attribute = draw(st.sampled_from(["", "", "noinline", "inline", "cold"] + ["weak", "alias"] * (not static)))
    params = draw(st.sampled_from([1, 1, 2, 3, 8])) if kind == "plain" else 1
    body: tuple[p.Statement, ...] = ()
    tail = ""
    if kind in ("plain", "callback"):
        scope = Scope(program, unit, rank)
        body = keyed(program, draw(bodies(scope)))
        if (callees := scope.functions("plain", "callback")) and draw(st.integers(0, 3)) == 0:
            tail = draw(st.sampled_from(callees)).key
    return p.Function(
        key, name, kind, rank, static, params, body, attribute, draw(st.integers(0, 1)), draw(NUMBERS), tail
    )


def put(program: p.Program, unit: str, **more: tuple[p.Node, ...]) -> p.Program:
    """The program with things added to a unit."""
    units = tuple(
        replace(u, **{k: getattr(u, k) + v for k, v in more.items()}) if u.name == unit else u for u in program.units
    )
    return p.Program(units)


def put_if_valid(program: p.Program, unit: str, **more: tuple[p.Node, ...]) -> p.Program:
    """The same, unless a name is taken."""
    made = put(program, unit, **more)
    return program if p.problem(made) else made


@st.composite
def programs(draw: Draw) -> p.Program:
    """A program of two units."""
    program = p.Program(tuple(p.Unit(name, (), (), (), ()) for name in ("a", "b")))
    for unit in ("a", "b"):
        for _ in range(draw(st.integers(1, 3))):
            program = put_if_valid(program, unit, variables=(draw(variables(program)),))
        for _ in range(draw(st.integers(0, 2))):
            program = put_if_valid(program, unit, tables=(draw(tables(program)),))
    for n in range(draw(st.integers(0, 2))):
        pointer = draw(pointers(program, program.units[n]))
        if pointer is not None:
            program = put_if_valid(program, program.units[n].name, variables=(pointer,))
    rank = 0
    for round_ in range(draw(st.integers(2, 4))):
        for n, unit in enumerate(("a", "b")):
            rank += 10
            kind = "callback" if not round_ else ""
            f = draw(functions(program, program.units[n], rank, kind))
            program = put_if_valid(program, unit, functions=(f,))
            if not round_ and draw(st.booleans()):
                program = _with_handlers(draw, program, n)
    for u in program.units:
        program = put_if_valid(program, u.name, functions=(_hub(u, rank + 10),))
    return program


def _hub(unit: p.Unit, rank: int) -> p.Function:
    """A function that uses all of a unit, since compilers drop what nothing uses."""
    body: list[p.Statement] = [p.Mix("+", p.Entry(t.key)) for t in unit.tables]
    for v in unit.variables:
        if v.kind == "pointer":
            body.append(p.Mix("+", p.Deref(v.key)))
        else:
            body += [p.Mix("^", p.Cell(v.key, i)) for i in range(max(1, len(v.initial)))]
    body += [p.Through("+", h.key) for h in unit.handlers]
    for f in unit.functions:
        if f.kind == "order":
            body.append(p.Sort(f.key))
        elif f.kind == "sum":
            body.append(p.Sum(f.key, (p.Acc(), p.Arg(0), p.Const(3))))
        else:
            body.append(p.Invoke("^", f.key, (p.Acc(), p.Arg(0))))
    return p.Function(f"hub_{unit.name}", f"hub_{unit.name}", "plain", rank, False, 1, tuple(body))


def _with_handlers(draw: Draw, program: p.Program, number: int) -> p.Program:
    unit = program.units[number]
    known = Scope(program, unit, 1 << 30).functions("callback")
    if not known:
        return program
    key = fresh(program, "h")
    static = draw(st.booleans())
    size = draw(st.integers(1, 3))
    picked = tuple(draw(st.sampled_from(known)).key for _ in range(size))
    made = p.Handlers(key, "hooks" if static else f"g_{key}", static, draw(st.booleans()), picked)
    return put_if_valid(program, unit.name, handlers=(made,))
