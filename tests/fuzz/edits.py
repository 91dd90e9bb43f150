"""Strategies for edits: each takes a program and gives another, or None where it does not fit.

`EDITS` names them; those in `MUST` may not be refused by gcc and clang at -O2, those in `MUST_WHOLE` not by gcc.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from hypothesis import strategies as st

from tests.fuzz import generate as g
from tests.fuzz import program as p
from tests.fuzz.model import LIBRARY

Edit = Callable[[st.DrawFn, p.Program], "p.Program | None"]


def _pick(draw: st.DrawFn, items: list[g.T]) -> g.T | None:
    return draw(st.sampled_from(items)) if items else None


def _exchange(program: p.Program, old: p.Node, new: p.Node | None) -> p.Program:
    """The program with one entity replaced, or taken out."""
    made: p.Program = p.transform(program, lambda n: new if n is old else n)
    return made


def _change_one(draw: st.DrawFn, program: p.Program, kind: type, change: Callable[[Any], p.Node]) -> p.Program | None:
    """Change one of all nodes of a class inside functions."""
    total = sum(isinstance(n, kind) for f in program.functions.values() for n in p.walk(f.body))
    if not total:
        return None
    target, seen = draw(st.integers(0, total - 1)), -1

    def visit(n: p.Node) -> p.Node:
        nonlocal seen
        if isinstance(n, kind):
            seen += 1
            if seen == target:
                return change(n)
        return n

    units = tuple(
        replace(u, functions=tuple(replace(f, body=p.transform(f.body, visit)) for f in u.functions))
        for u in program.units
    )
    return p.Program(units)


def _plain(program: p.Program) -> list[tuple[p.Unit, p.Function]]:
    return [(u, f) for u in program.units for f in u.functions if f.kind in ("plain", "callback")]


def _with_body(program: p.Program, f: p.Function, body: tuple[p.Statement, ...]) -> p.Program:
    return _exchange(program, f, replace(f, body=body))


def change_constant(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    return _change_one(draw, program, p.Const, lambda n: p.Const(n.value ^ draw(st.sampled_from([1, 4096, 1 << 31]))))


def change_operator(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    return _change_one(draw, program, p.Mix, lambda n: replace(n, op=draw(g.OPS)))


def change_flag(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """Another value is written somewhere; of a flag, it is then none any more."""
    return _change_one(draw, program, p.Set, lambda n: replace(n, op="=", operand=p.Const(draw(g.NUMBERS))))


def change_literal(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    kind = draw(st.sampled_from([p.Text, p.Print]))
    return _change_one(draw, program, kind, lambda n: replace(n, text=draw(g.TEXTS)))


def change_real(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    return _change_one(draw, program, p.Real, lambda n: replace(n, factor=n.factor + 1))


def change_numbers(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """The numbers of a switch that chooses one, of labels, or of a local table; one more or one less too."""
    kind = draw(st.sampled_from([p.Select, p.Labels, p.LocalTable]))

    def change(n: Any) -> p.Node:
        values = list(n.values)
        at = draw(st.integers(0, len(values) - 1))
        match draw(st.sampled_from(["value", "add", "drop"])):
            case "value":
                values[at] ^= 1
            case "add":
                values.insert(at, draw(g.NUMBERS))
            case _ if len(values) > 3:
                del values[at]
        changed: p.Node = replace(n, values=tuple(values))
        return changed

    return _change_one(draw, program, kind, change)


def add_case(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    extra = (p.Mix("^", p.Const(draw(st.integers(2000, 2100)))),)
    return _change_one(draw, program, p.Switch, lambda n: replace(n, cases=(*n.cases, extra)))


def change_factor(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """What a comparator or a function of variable arguments does."""
    f = _pick(draw, [f for f in program.functions.values() if f.kind in ("order", "sum")])
    return _exchange(program, f, replace(f, constant=f.constant + 2)) if f else None


def _insert(draw: st.DrawFn, program: p.Program, make: Callable[[g.Scope], p.Statement]) -> p.Program | None:
    chosen = _pick(draw, _plain(program))
    if chosen is None:
        return None
    unit, f = chosen
    at = draw(st.integers(0, len(f.body)))
    new = make(g.Scope(program, unit, f.rank))
    marked = g.keyed(program, (new,))
    taken = {n.name for n in p.counts(f)}
    if any(isinstance(n, p.Count) and n.name in taken for n in p.walk(marked)):
        return None
    return _with_body(program, f, f.body[:at] + marked + f.body[at:])


def add_statement(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    return _insert(draw, program, lambda scope: draw(g.statements(scope)))


def add_static_local(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    name = draw(st.sampled_from(g.STATIC_LOCALS))
    return _insert(draw, program, lambda _: p.Count("", name, draw(g.NUMBERS), draw(st.integers(1, 3))))


def add_library_call(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    name = draw(st.sampled_from(sorted(LIBRARY)))
    return _insert(draw, program, lambda _: p.Library("+", name))


def remove_statement(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    chosen = _pick(draw, [(u, f) for u, f in _plain(program) if f.body])
    if chosen is None:
        return None
    _, f = chosen
    at = draw(st.integers(0, len(f.body) - 1))
    return _with_body(program, f, f.body[:at] + f.body[at + 1 :])


def swap_statements(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    chosen = _pick(draw, [(u, f) for u, f in _plain(program) if len(f.body) > 1])
    if chosen is None:
        return None
    _, f = chosen
    at = draw(st.integers(0, len(f.body) - 2))
    return _with_body(program, f, (*f.body[:at], f.body[at + 1], f.body[at], *f.body[at + 2 :]))


def add_function(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A new function, and a call of it from one that is there."""
    chosen = _pick(draw, _plain(program))
    if chosen is None:
        return None
    unit, caller = chosen
    f = draw(g.functions(program, unit, caller.rank - 1, draw(st.sampled_from(["plain", "callback"]))))
    called = replace(caller, body=(*caller.body, p.Invoke(draw(g.OPS), f.key, (p.Acc(),))))
    return g.put(_exchange(program, caller, called), unit.name, functions=(f,))


def remove_function(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A function goes, with all that uses it."""
    f = _pick(draw, [f for f in program.functions.values() if f.kind == "plain"])
    if f is None:
        return None
    key = f.key

    def drop(n: p.Node) -> p.Node | None:
        if n is f or (isinstance(n, p.Invoke) and n.function == key):
            return None
        if isinstance(n, p.Function) and n.tail == key:
            return replace(n, tail="")
        return n

    made: p.Program = p.transform(program, drop)
    return made


def add_variable(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A new variable that a function writes and reads."""
    chosen = _pick(draw, _plain(program))
    if chosen is None:
        return None
    unit, f = chosen
    v = draw(g.variables(program))
    if v.kind in ("text", "thread"):
        v = replace(v, kind="scalar", initial=(draw(g.NUMBERS),), text="")
    v = replace(v, name=f"new_{v.key}" if v.static else v.name)
    cell = p.Cell(v.key, 0, True)
    body = (*f.body, p.Set(cell, "+", p.Acc()), p.Mix("^", cell))
    return g.put(_with_body(program, f, body), unit.name, variables=(v,))


def remove_variable(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    targets = {v.target for v in program.variables.values()}
    v = _pick(draw, [v for v in program.variables.values() if v.kind != "text" and v.key not in targets])
    if v is None:
        return None
    gone = v

    def drop(n: p.Node) -> p.Node | None:
        if n is gone or (isinstance(n, p.Peek) and n.variable == gone.key):
            return None
        if isinstance(n, p.Cell | p.Deref) and gone.key in p.uses(n):
            return p.Const(5)
        return n

    def drop_assignments(n: p.Node) -> p.Node | None:
        to = n.cell if isinstance(n, p.Set) else n.to if isinstance(n, p.SetThrough) else n
        return None if isinstance(n, p.Set | p.SetThrough | p.Aim) and gone.key in p.uses(to) else n

    # Assignments first: their cells are no operands.
    made: p.Program = p.transform(p.transform(program, drop_assignments), drop)
    return made


def rename_variable(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A static gets another name: it is another variable then."""
    v = _pick(draw, [v for v in program.variables.values() if v.static])
    if v is None:
        return None
    key = g.fresh(program, "v")
    renamed = replace(v, key=key, name=f"renamed_{key}")

    def rename(n: p.Node) -> p.Node:
        if n is v:
            return renamed
        if isinstance(n, p.Cell | p.SetText | p.Peek) and n.variable == v.key:
            return replace(n, variable=key)
        if isinstance(n, p.Deref | p.Aim) and n.pointer == v.key:
            return replace(n, pointer=key)
        return replace(n, target=key) if isinstance(n, p.Variable | p.Aim) and n.target == v.key else n

    made: p.Program = p.transform(program, rename)
    return made


def rename_function(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    f = _pick(draw, [f for f in program.functions.values() if f.static and f.kind == "plain" and not p.counts(f)])
    return _exchange(program, f, replace(f, name=f"renamed_{f.key}")) if f else None


def change_initial(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    v = _pick(draw, [v for v in program.variables.values() if v.kind != "thread"])
    if v is None:
        return None
    if v.kind == "text":
        return _exchange(program, v, replace(v, text=draw(g.TEXTS)))
    return _exchange(program, v, replace(v, initial=tuple(x ^ draw(st.integers(0, 3)) for x in v.initial)))


def toggle_static(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A variable or function becomes static, or global."""
    entities: list[p.Variable | p.Function] = [*program.variables.values(), *program.functions.values()]
    e = _pick(draw, [e for e in entities if not (isinstance(e, p.Function) and e.attribute in ("weak", "alias"))])
    return _exchange(program, e, replace(e, static=not e.static)) if e else None


def toggle_inline(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    f = _pick(draw, [f for f in program.functions.values() if f.attribute in ("", "noinline", "inline", "cold")])
    if f is None:
        return None
    return _exchange(program, f, replace(f, attribute=draw(st.sampled_from(["", "noinline", "inline", "cold"]))))


def change_linkage(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A global function becomes weak, or is called by an alias, or neither any more."""
    f = _pick(draw, [f for f in program.functions.values() if not f.static and f.kind in ("plain", "callback")])
    return _exchange(program, f, replace(f, attribute=draw(st.sampled_from(["", "weak", "alias"])))) if f else None


def add_table(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A new constant table that a function reads."""
    chosen = _pick(draw, _plain(program))
    if chosen is None:
        return None
    unit, f = chosen
    t = draw(g.tables(program))
    t = replace(t, name=f"new_{t.key}" if t.static else t.name)
    return g.put(_with_body(program, f, (*f.body, p.Mix("^", p.Entry(t.key)))), unit.name, tables=(t,))


def change_signature(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    f = _pick(draw, [f for f in program.functions.values() if f.kind == "plain"])
    return _exchange(program, f, replace(f, params=draw(st.sampled_from([1, 2, 3, 7, 8])))) if f else None


def change_tail(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    chosen = _pick(draw, _plain(program))
    if chosen is None:
        return None
    unit, f = chosen
    callees = g.Scope(program, unit, f.rank).functions("plain", "callback")
    tail = "" if f.tail or not callees else draw(st.sampled_from(callees)).key
    return _exchange(program, f, replace(f, tail=tail))


def insert_lines(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    f = _pick(draw, list(program.functions.values()))
    return _exchange(program, f, replace(f, blank=f.blank + draw(st.integers(1, 3)))) if f else None


def reorder(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """Functions and variables of a unit stand in another order."""
    u = _pick(draw, list(program.units))
    if u is None:
        return None
    functions = tuple(draw(st.permutations(u.functions)))
    return _exchange(program, u, replace(u, functions=functions, variables=tuple(reversed(u.variables))))


def move_function(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A function goes to the other unit (where what it uses can be seen from there)."""
    n = draw(st.integers(0, 1))
    f = _pick(draw, list(program.units[n].functions))
    if f is None:
        return None
    return g.put(_exchange(program, f, None), program.units[1 - n].name, functions=(f,))


def change_table(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A constant table has another value, one more, one less, or another order."""
    t = _pick(draw, list(program.tables.values()))
    if t is None:
        return None
    items: list[Any] = list(t.texts or t.values)
    at = draw(st.integers(0, len(items) - 1))
    match draw(st.sampled_from(["value", "add", "drop", "order", "width"])):
        case "value":
            items[at] = draw(g.TEXTS) if t.texts else items[at] ^ 1
        case "add":
            items.insert(at, draw(g.TEXTS) if t.texts else draw(g.NUMBERS))
        case "drop" if len(items) > 1:
            del items[at]
        case "width" if not t.texts:
            return _exchange(program, t, replace(t, width={1: 2, 2: 4, 4: 1}[t.width]))
        case _:
            items.reverse()
    return _exchange(program, t, replace(t, texts=tuple(items)) if t.texts else replace(t, values=tuple(items)))


def change_handlers(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A table of handlers has another entry, or one more."""
    chosen = _pick(draw, [(u, h) for u in program.units for h in u.handlers])
    if chosen is None:
        return None
    unit, h = chosen
    f = _pick(draw, g.Scope(program, unit, 1 << 30).functions("callback"))
    if f is None:
        return None
    at = draw(st.integers(0, len(h.entries)))
    return _exchange(program, h, replace(h, entries=(*h.entries[:at], f.key, *h.entries[at + 1 :])))


def grow_array(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    v = _pick(draw, [v for v in program.variables.values() if v.kind == "array"])
    more = draw(st.sampled_from([(0,), (7,), (0, 0)]))
    return _exchange(program, v, replace(v, initial=(*v.initial, *more))) if v else None


def insert_element(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """An array or a table of handlers has one more element, which is not the last."""
    arrays = [v for v in program.variables.values() if v.kind == "array"]
    chosen = _pick(draw, [*((None, v) for v in arrays), *((u, h) for u in program.units for h in u.handlers)])
    if chosen is None:
        return None
    match chosen:
        case None, p.Variable() as v:
            at = draw(st.integers(0, len(v.initial) - 1))
            more = draw(st.sampled_from([0, 7, 9]))
            return _exchange(program, v, replace(v, initial=(*v.initial[:at], more, *v.initial[at:])))
        case p.Unit() as unit, p.Handlers() as h:
            f = _pick(draw, g.Scope(program, unit, 1 << 30).functions("callback"))
            at = draw(st.integers(0, len(h.entries)))
            return _exchange(program, h, replace(h, entries=(*h.entries[:at], f.key, *h.entries[at:]))) if f else None
    raise AssertionError("unreachable")


def shrink_array(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    v = _pick(draw, [v for v in program.variables.values() if v.kind == "array" and len(v.initial) > 1])
    return _exchange(program, v, replace(v, initial=v.initial[:-1])) if v else None


def change_width(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A variable widens, or narrows; the first field of a struct is always wide enough for a peek."""
    targets = {v.target for v in program.variables.values() if not v.whole}
    if not draw(st.integers(0, 3)):
        targets = set()
    # What a pointer points to is seldom another type: that is refused.
    v = _pick(
        draw, [v for v in program.variables.values() if v.kind in g.POINTED and (v.names or v.key not in targets)]
    )
    if v is None:
        return None
    at = draw(st.integers(int(v.key in targets), len(v.names) - 1)) if len(v.names) > 1 else 0
    others = [w for w in ((4, 8) if not at else (1, 2, 4, 8)) if w != v.width(at)]
    widths = [v.width(i) for i in range(len(v.names) or 1)]
    widths[at] = draw(st.sampled_from(others))
    return _exchange(program, v, replace(v, widths=tuple(widths)))


def _structs(program: p.Program) -> list[p.Variable]:
    return [v for v in program.variables.values() if v.kind == "struct"]


def grow_struct(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A struct gains a field: at the end, in the middle or in front."""
    v = _pick(draw, _structs(program))
    if v is None:
        return None
    name = next(n for i in range(3, 100) if (n := f"w{i}") not in v.names)
    order = list(v.order or v.names)
    order.insert(len(order) - draw(st.integers(0, len(order))), name)
    more = replace(
        v,
        initial=(*v.initial, draw(st.sampled_from([0, 7]))),
        names=(*v.names, name),
        widths=(*v.widths, draw(st.sampled_from([4, 8, 1]))),
        order=tuple(order),
    )
    return _exchange(program, v, more)


def shrink_struct(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    """A struct loses a field, but for the first."""
    v = _pick(draw, [v for v in _structs(program) if len(v.names) > 1])
    if v is None:
        return None
    at = draw(st.integers(1, len(v.names) - 1))
    order = tuple(n for n in v.order or v.names if n != v.names[at])

    def without(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return items[:at] + items[at + 1 :]

    less = replace(v, initial=without(v.initial), names=without(v.names), widths=without(v.widths), order=order)
    return _exchange(program, v, less)


def reorder_fields(draw: st.DrawFn, program: p.Program) -> p.Program | None:
    v = _pick(draw, _structs(program))
    return _exchange(program, v, replace(v, order=tuple(draw(st.permutations(v.order or v.names))))) if v else None


RELAYOUTS: Final = (grow_array, insert_element, shrink_array, change_width, grow_struct, shrink_struct, reorder_fields)
EDITS: Final[dict[str, Edit]] = {
    f.__name__: f
    for f in (
        change_constant, change_operator, change_flag, change_literal, change_real, change_numbers, add_case,
        change_factor, add_statement, add_static_local, add_library_call, remove_statement, swap_statements,
        add_function, remove_function, add_variable, remove_variable, rename_variable, rename_function, change_initial,
        toggle_static, toggle_inline, change_linkage, add_table, change_signature, change_tail, insert_lines, reorder,
        move_function, change_table, change_handlers, *RELAYOUTS,
    )
}  # fmt: skip
MUST: Final = {
    "change_constant", "change_operator", "change_literal", "change_real", "change_numbers", "change_factor",
    "add_case", "swap_statements", "add_function", "insert_lines",
}  # fmt: skip


# What only some programs have something for comes twice.
_WEIGHTED: Final = sorted([*EDITS, *(f.__name__ for f in RELAYOUTS)])

MUST_WHOLE: Final = {"grow_array", "grow_struct", "reorder_fields"}  # where a variable is one whole


@st.composite
def edited(draw: st.DrawFn, program: p.Program, first: tuple[str, ...] = ()) -> tuple[p.Program, tuple[str, ...]]:
    """The program after one or a few edits, and which these were; `first`: one of these, if any are named.

    What an earlier edit removed never comes back as something else of the same key, which would be taken for a change.
    """
    kinds: list[str] = []
    at_first = _keys(program)
    wanted = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    for _ in range(wanted + 3):
        if len(kinds) == wanted:
            break
        name = draw(st.sampled_from(first if first and not kinds else _WEIGHTED))
        made = EDITS[name](draw, program)
        if made is None or made == program or p.problem(made):
            continue
        if not (_keys(made) - _keys(program)) & at_first:
            program = made
            kinds.append(name)
    return program, tuple(kinds)


def _keys(program: p.Program) -> set[str]:
    return {getattr(n, "key", "") for n in p.walk(program)} - {""}
