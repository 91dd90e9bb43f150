"""Program values as C.

Each unit declares what it uses of others, then its own things, so that the order of functions is free.  The driver
(`main.c`) never changes; `dispatch.c` knows the entry points of a version.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.fuzz import program as p
from tests.fuzz.model import LIBRARY, aimed, candidates, masks, pokable

DRIVER = r"""
int printf(const char *, ...); int puts(const char *); int fflush(void *); unsigned alarm(unsigned);
char *fgets(char *, int, void *); int sscanf(const char *, const char *, ...); int strcmp(const char *, const char *);
extern void *stdin; extern void *stdout;
unsigned peek(const void *p) { return *(const volatile unsigned *)p; }
extern unsigned dispatch(const char *, unsigned); extern void dump(void);
static unsigned marks[64], marked;
volatile unsigned colds;
void mark(unsigned line) { if (marked < 64) marks[marked++] = line; }
unsigned hash_str(const char *s) { unsigned h = 5381; while (*s) h = h * 33 + (unsigned char)*s++; return h; }
void cold_note(unsigned x) { colds += x; }
int main(void)
{
    char line[128], name[64];
    unsigned number;
    puts("ready");
    fflush(0);
    while (fgets(line, sizeof line, stdin)) {
        alarm(30);
        marked = 0;
        if (sscanf(line, "%63s %u", name, &number) == 2)
            printf("%u", dispatch(name, number));
        else
            dump();
        for (unsigned i = 0; i < marked; i++)
            printf(" @%u", marks[i]);
        puts("");
        fflush(0);
    }
    return 0;
}
"""

_PRELUDE = """extern unsigned hash_str(const char *); extern void mark(unsigned); extern unsigned peek(const void *);
extern void cold_note(unsigned) __attribute__((cold));
int printf(const char *, ...); int snprintf(char *, unsigned long, const char *, ...);
void qsort(void *, unsigned long, unsigned long, int (*)(const void *, const void *));
int _setjmp(void *) __attribute__((returns_twice)); void longjmp(void *, int) __attribute__((noreturn));
"""
_WIDTHS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long"}


@dataclass(frozen=True, slots=True)
class Source:
    """The text of a unit, and on which line each use of __LINE__ stands."""

    text: str
    lines: dict[str, int] = field(default_factory=dict)


def render(program: p.Program) -> dict[str, Source]:
    """File name → source, for all but the driver."""
    sources = {f"{u.name}.c": _Renderer(program, u).render() for u in program.units}
    return {**sources, "dispatch.c": Source(_dispatch(program))}


def entries(program: p.Program) -> list[p.Function]:
    """The functions that commands can name."""
    return [f for u in program.units for f in u.functions if not f.static and f.kind in ("plain", "callback")]


def _dispatch(program: p.Program) -> str:
    lines = ["int strcmp(const char *, const char *);"]
    lines += [f"extern {_prototype(f)};" for f in entries(program)]
    units = [u.name for u in program.units]
    lines += [f"extern void dump_{name}(void); extern unsigned poke_{name}(unsigned, unsigned);" for name in units]
    lines += ["unsigned dispatch(const char *name, unsigned x)", "{"]
    for f in entries(program):
        arguments = ", ".join(f"x + {i}" for i in range(f.params))
        lines.append(f'    if (!strcmp(name, "{f.key}")) return {f.name}({arguments});')
    for u in program.units:
        lines.append(f'    if (!strcmp(name, "poke_{u.name}")) return poke_{u.name}(x & 7, x);')
    lines += ["    return 0;", "}", "void dump(void)", "{"]
    lines += [f"    dump_{u.name}();" for u in program.units]
    return "\n".join([*lines, "}", ""])


def _prototype(f: p.Function) -> str:
    if f.kind == "order":
        return f"int {f.name}(const void *p, const void *q)"
    if f.kind == "sum":
        return f"unsigned {f.name}(unsigned n, ...)"
    return f"unsigned {f.name}({', '.join(f'unsigned a{i}' for i in range(f.params))})"


_ATTRIBUTES = {
    "noinline": "__attribute__((noinline)) ",
    "weak": "__attribute__((weak)) ",
    "cold": "__attribute__((cold)) ",
}


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Renderer:
    """Writes one unit, line by line."""

    def __init__(self, program: p.Program, unit: p.Unit) -> None:
        self.program = program
        self.unit = unit
        self.functions, self.variables = program.functions, program.variables
        self.tables, self.handlers = program.tables, program.handlers
        self.lines: list[str] = []
        self.marks: dict[str, int] = {}
        self.labels = 0
        self.structs: set[str] = set()

    def put(self, *lines: str) -> None:
        self.lines += lines

    def render(self) -> Source:
        self.put(*_PRELUDE.splitlines())
        used = {n.name for n in p.walk(self.unit) if isinstance(n, p.Library)}
        self.put(*(LIBRARY[name].declaration for name in sorted(used)))
        own = {e.key for e in self.unit.entities}
        foreign = p.uses(self.unit) - own
        if self.unit.handlers:
            foreign |= {f.key for f in candidates(self.program, self.unit)} - own
        for key in sorted(foreign):
            self._declare(key)
        for f in self.unit.functions:
            inline = "inline " if f.attribute == "inline" and f.static else ""
            self.put(f"{'static ' * f.static}{inline}{_ATTRIBUTES.get(f.attribute, '')}{_prototype(f)};")
            if f.attribute == "alias":
                self.put(f'extern {_prototype(self._aliased(f))} __attribute__((alias("{f.name}")));')
        # What pointers point to comes first.
        for v in sorted(self.unit.variables, key=lambda v: v.kind == "pointer"):
            self._variable(v)
        for t in self.unit.tables:
            self._table(t)
        for h in self.unit.handlers:
            const = "const " * h.const
            names = ", ".join(self._name(e) for e in h.entries)
            self.put(f"{'static ' * h.static}unsigned (*{const}{h.name}[{len(h.entries)}])(unsigned) = {{{names}}};")
        if any(isinstance(n, p.Jump) for n in p.walk(self.unit)):
            self.put("static long buffer[64];")
            self.put("static __attribute__((noinline)) void jumper(unsigned x) { if (x & 1) longjmp(buffer, 1); }")
        for f in self.unit.functions:
            self._function(f)
        self._service()
        return Source("\n".join([*self.lines, ""]), self.marks)

    @staticmethod
    def _aliased(f: p.Function) -> p.Function:
        return p.Function(f.key, f"{f.name}_alias", f.kind, f.rank, f.static, f.params)

    def _name(self, key: str) -> str:
        """What this unit calls a function."""
        f = self.functions[key]
        away = all(f is not g for g in self.unit.functions)
        return f"{f.name}_alias" if f.attribute == "alias" and away else f.name

    def _declare(self, key: str) -> None:
        if key in self.functions:
            f = self.functions[key]
            self.put(f"extern {_prototype(self._aliased(f) if f.attribute == 'alias' else f)};")
        elif key in self.variables:
            v = self.variables[key]
            self._struct(v)
            self.put(f"extern {self._declarator(v)};")
        elif key in self.tables:
            t = self.tables[key]
            size = len(t.texts or t.values)
            self.put(f"extern {self._element(t)} {t.name}[{size}];")
        else:
            h = self.handlers[key]
            self.put(f"extern unsigned (*{'const ' * h.const}{h.name}[{len(h.entries)}])(unsigned);")

    @staticmethod
    def _element(t: p.Table) -> str:
        return "const char *const" if t.texts else f"const {_WIDTHS[t.width]}"

    def _struct(self, v: p.Variable) -> None:
        """Define the struct that a variable is or points to, once."""
        v = self.variables[v.target] if v.target else v
        if v.kind == "struct" and v.key not in self.structs:
            self.structs.add(v.key)
            members = " ".join(f"{_WIDTHS[v.width(v.names.index(n))]} {n};" for n in v.order or v.names)
            self.put(f"struct s_{v.key} {{ {members} }};")

    def _declarator(self, v: p.Variable) -> str:
        if v.kind == "text":
            return f"const char *{v.name}"
        if v.kind == "struct":
            return f"struct s_{v.key} {v.name}"
        if v.kind == "pointer":
            target = self.variables[v.target]
            return f"{f'struct s_{v.target}' if v.whole else _WIDTHS[target.width(0)]} *{v.name}"
        thread = "__thread " if v.kind == "thread" else ""
        return f"{thread}{_WIDTHS[v.width(0)]} {v.name}" + (f"[{len(v.initial)}]" if v.kind == "array" else "")

    def _variable(self, v: p.Variable) -> None:
        self._struct(v)
        if v.kind == "text":
            initial = f" = {_quoted(v.text)}"
        elif v.kind == "pointer":
            initial = f" = {self._aimed(v, v.initial[0])}"
        elif not any(v.initial):
            initial = ""
        else:
            numbers = [f"{x & m}U" for x, m in zip(v.initial, masks(v), strict=True)]
            if v.kind == "struct":
                numbers = [f".{name} = {n}" for name, n in zip(v.names, numbers, strict=True)]
            initial = f" = {{{', '.join(numbers)}}}" if v.kind in ("array", "struct") else f" = {numbers[0]}"
        self.put(f"{'static ' * v.static}{self._declarator(v)}{initial};")

    def _aimed(self, pointer: p.Variable, index: int) -> str:
        """The address that a pointer is pointed to."""
        target = self.variables[pointer.target]
        label = aimed(self.program, pointer, index)
        return f"&{self._cells(target)[target.labels.index(label)] if label else target.name}"

    def _deref(self, o: p.Deref) -> str:
        pointer = self.variables[o.pointer]
        names = self.variables[pointer.target].names
        return f"{pointer.name}->{names[o.index % len(names)]}" if pointer.whole else f"*{pointer.name}"

    def _table(self, t: p.Table) -> None:
        values = ", ".join([_quoted(x) for x in t.texts] or [str(x & ((1 << 8 * t.width) - 1)) + "U" for x in t.values])
        self.put(f"{'static ' * t.static}{self._element(t)} {t.name}[] = {{{values}}};")

    def _function(self, f: p.Function) -> None:
        self.put(*[""] * f.blank)
        if f.kind == "order":
            k = f"* {f.constant | 1}U"
            self.put(f"{'static ' * f.static}{_prototype(f)}", "{")
            self.put(f"    unsigned x = *(const unsigned *)p {k}, y = *(const unsigned *)q {k};")
            self.put("    return x < y ? -1 : x > y;", "}")
            return
        if f.kind == "sum":
            self.put(f"{'static ' * f.static}{_prototype(f)}", "{", "    unsigned total = 0;")
            self.put("    __builtin_va_list list;", "    __builtin_va_start(list, n);", "    while (n--)")
            self.put(f"        total = total * {f.constant}U + __builtin_va_arg(list, unsigned);")
            self.put("    __builtin_va_end(list);", "    return total;", "}")
            return
        self.put(f"{'static ' * f.static}{_prototype(f)}", "{", "    unsigned acc = a0;")
        self._body(f.body, f, 1)
        if f.tail:
            callee = self.functions[f.tail]
            self.put(f"    return {self._name(f.tail)}({', '.join(f'acc + {i}' for i in range(callee.params))});")
        else:
            self.put("    return acc;")
        self.put("}")

    def _service(self) -> None:
        """What the driver's `dump` and `poke` come to."""
        name = self.unit.name
        self.put(f"void dump_{name}(void)", "{")
        for v in self.unit.variables:
            if v.kind == "text":
                self.put(f'    printf("{v.key}=%s ", {v.name});')
            elif v.kind == "pointer":
                # Where it leads by address, too: what it pointed to may hold the same value as what took its place.
                target = self.variables[v.target]
                labels = [""] if v.whole else target.aims
                chain = "".join(f'{v.name} == {self._aimed(v, i)} ? "{x}" : ' for i, x in enumerate(labels))
                value = f"(unsigned long)({self._deref(p.Deref(v.key))})"
                self.put(f'    printf("{v.key}=%lu@%s ", {value}, {chain}"?");')
            elif v.kind == "array":
                self.put(
                    f"    for (unsigned i = 0; i < {len(v.initial)}; i++)",
                    f'        printf("{v.key}=%lu ", (unsigned long){v.name}[i]);',
                )
            else:
                for cell in self._cells(v):
                    self.put(f'    printf("{v.key}=%lu ", (unsigned long){cell});')
        for h in self.unit.handlers:
            chain = "".join(
                f'{h.name}[i] == {self._name(f.key)} ? "{f.key}" : ' for f in candidates(self.program, self.unit)
            )
            self.put(f"    for (unsigned i = 0; i < {len(h.entries)}; i++)")
            self.put(f'        printf("{h.key}=%s ", {chain}"?");')
        self.put("}", f"unsigned poke_{name}(unsigned number, unsigned x)", "{")
        poked = pokable(self.unit)
        if poked:
            self.put(f"    switch (number % {len(poked)}) {{")
            for n, v in enumerate(poked):
                if v.kind == "pointer":
                    count = 1 if v.whole else len(self.variables[v.target].aims)
                    chain = "".join(f"x % {count} == {i} ? {self._aimed(v, i)} : " for i in range(count - 1))
                    self.put(f"    case {n}: {v.name} = {chain}{self._aimed(v, count - 1)}; break;")
                    continue
                high = [" + ((unsigned long)(x & 1) << 32)" * (v.width(i) == 8) for i in range(len(v.initial))]
                writes = " ".join(f"{cell} = (x + {i}){high[i]};" for i, cell in enumerate(self._cells(v)))
                self.put(f"    case {n}: {writes} break;")
            self.put("    }")
        self.put("    return x;", "}")

    @staticmethod
    def _cells(v: p.Variable) -> list[str]:
        if v.kind == "array":
            return [f"{v.name}[{i}]" for i in range(len(v.initial))]
        if v.kind == "struct":
            return [f"{v.name}.{name}" for name in v.names]
        return [v.name]

    def _cell(self, cell: p.Cell) -> str:
        v = self.variables[cell.variable]
        size = len(v.initial)
        if v.kind == "struct":
            return f"{v.name}.{v.names[cell.index % size]}"
        if v.kind == "array":
            return f"{v.name}[acc % {size}U]" if cell.dynamic else f"{v.name}[{cell.index % size}]"
        return v.name

    def operand(self, o: p.Operand, f: p.Function) -> str:
        match o:
            case p.Const():
                return f"{o.value}U"
            case p.Acc():
                return "acc"
            case p.Arg():
                return f"a{o.index % f.params}"
            case p.Cell():
                if self.variables[o.variable].kind == "text":
                    return f"hash_str({self.variables[o.variable].name})"
                return self._cell(o)
            case p.Deref():
                return self._deref(o)
            case p.Entry():
                t = self.tables[o.table]
                entry = f"{t.name}[acc % {len(t.texts or t.values)}U]"
                return f"hash_str({entry})" if t.texts else entry
            case p.Text():
                return f"hash_str({_quoted(o.text)})"
            case p.Real():
                return f"(unsigned)(long)((double)(acc & 1023) * {o.factor / 8} + {o.offset / 8})"
            case p.LocalTable():
                values = ", ".join(f"{x}U" for x in o.values)
                const = "static const " if o.fixed else ""
                return f"({{ {const}unsigned t[] = {{{values}}}; t[acc % {len(o.values)}U]; }})"

    def _body(self, body: tuple[p.Statement, ...], f: p.Function, depth: int) -> None:
        for statement in body:
            for line in self._statement(statement, f, depth):
                self.put("    " * depth + line)

    def _nested(self, body: tuple[p.Statement, ...], f: p.Function, depth: int) -> None:
        self._body(body, f, depth + 1)

    def _statement(self, s: p.Statement, f: p.Function, depth: int) -> list[str]:
        pad = "    " * depth
        match s:
            case p.Mix():
                return [self._mixed(s.op, self.operand(s.operand, f))]
            case p.Set():
                cell = self._cell(s.cell)
                return [self._combined(cell, s.op, self.operand(s.operand, f))]
            case p.SetThrough():
                return [self._combined(self._deref(s.to), s.op, self.operand(s.operand, f))]
            case p.Aim():
                pointer = self.variables[s.pointer]
                return [f"{pointer.name} = {self._aimed(pointer, s.index)};"]
            case p.SetText():
                return [f"{self.variables[s.variable].name} = {_quoted(s.text)};"]
            case p.If():
                test = f"{self.operand(s.operand, f)} {s.compare} {s.limit}U"
                self.put(f"{pad}if ({f'__builtin_expect({test}, 0)' if s.cold else test}) {{")
                self._nested(s.then, f, depth)
                if s.cold:
                    self.put(f"{pad}    cold_note(acc);")
                if s.other:
                    self.put(f"{pad}}} else {{")
                    self._nested(s.other, f, depth)
                return ["}"]
            case p.Loop():
                self.put(f"{pad}for (unsigned i{depth} = 0; i{depth} < {s.times}U; i{depth}++) {{")
                self._nested(s.body, f, depth)
                return ["}"]
            case p.Switch():
                self.put(f"{pad}switch (({self.operand(s.operand, f)}) % {len(s.cases) + 1}U) {{")
                for i, body in enumerate(s.cases):
                    self.put(f"{pad}case {i}:")
                    self._nested(body, f, depth)
                    self.put(f"{pad}    break;")
                return ["}"]
            case p.Select():
                chosen = "".join(f"case {i}: t = {x}U; break; " for i, x in enumerate(s.values))
                test = f"({self.operand(s.operand, f)}) % {len(s.values) + 1}U"
                return [f"{{ unsigned t; switch ({test}) {{ {chosen}default: t = 77U; }} acc ^= t; }}"]
            case p.Labels():
                return self._goto(s, f)
            case p.Count():
                initial = f" = {s.initial}U" if s.initial else ""
                n = s.name
                return [f"{{ static unsigned {n}{initial}; {n} = {n} * {s.factor}U + 1; acc ^= {n}; }}"]
            case p.Recurse():
                rest = "".join(f", a{i}" for i in range(1, f.params))
                return [f"if (a0 & 3) {self._mixed(s.op, f'{f.name}((a0 & 3) - 1{rest})')}"]
            case _:
                return self._reach(s, f)

    def _goto(self, s: p.Labels, f: p.Function) -> list[str]:
        self.labels += 1
        names = [f"l{self.labels}_{i}" for i in range(len(s.values))]
        const = "const " * s.const
        addresses = ", ".join(f"&&{n}" for n in names)
        test = f"({self.operand(s.operand, f)}) % {len(names)}U"
        jumps = " ".join(f"{n}: acc += {x}U; goto l{self.labels};" for n, x in zip(names, s.values, strict=True))
        return [
            f"{{ static void *{const}to[] = {{{addresses}}}; goto *to[{test}]; }}",
            f"{jumps}",
            f"l{self.labels}: ;",
        ]

    def _reach(self, s: p.Statement, f: p.Function) -> list[str]:
        match s:
            case p.Invoke():
                callee = self.functions[s.function]
                arguments = (self.operand(s.arguments[i % len(s.arguments)], f) for i in range(callee.params))
                return [self._mixed(s.op, f"{self._name(s.function)}({', '.join(arguments)})")]
            case p.Through():
                h = self.handlers[s.handlers]
                return [self._mixed(s.op, f"{h.name}[acc % {len(h.entries)}U](acc)")]
            case p.Store():
                h = self.handlers[s.handlers]
                return [f"{h.name}[{s.index % len(h.entries)}] = {self._name(s.function)};"]
            case p.Same():
                h = self.handlers[s.handlers]
                slot = f"{h.name}[{s.index % len(h.entries)}]"
                return [f"acc ^= {slot} == {self._name(s.function)} ? {s.number}U : 0;"]
            case p.Print():
                return [
                    f'{{ char b[48]; snprintf(b, sizeof b, "{s.text} %u", (unsigned)({self.operand(s.operand, f)})); '
                    "acc ^= hash_str(b); }"
                ]
            case p.Sort():
                numbers = ", ".join(f"(acc * {k} + {k}) & 0xffff" for k in (3, 5, 7, 11))
                return [
                    f"{{ unsigned t[] = {{{numbers}}}; qsort(t, 4, sizeof *t, {self._name(s.comparator)}); "
                    "acc ^= t[0] * 3 + t[1] * 5 + t[2] * 7 + t[3]; }"
                ]
            case p.Sum():
                operands = ", ".join(f"(unsigned)({self.operand(o, f)})" for o in s.operands)
                return [f"acc += {self._name(s.function)}(3, {operands});"]
            case p.Jump():
                return [
                    "{ volatile unsigned kept = acc;",
                    f"if (!_setjmp(buffer)) {{ jumper(kept); kept += {s.returned}U; }} else kept ^= {s.jumped}U;",
                    "acc = kept; }",
                ]
            case p.Peek():
                v = self.variables[s.variable]
                return [f"acc ^= peek(&{self._cells(v)[0] if v.kind == 'struct' else v.name});"]
            case p.Line():
                # The text of this line is put right after this returns.
                self.marks[s.key] = len(self.lines) + 1
                return ["mark(__LINE__);"]
            case p.Library():
                return [self._mixed(s.op, f"(unsigned){LIBRARY[s.name].expression}")]
        raise AssertionError(s)

    def _mixed(self, op: str, operand: str) -> str:
        return self._combined("acc", op, operand)

    @staticmethod
    def _combined(cell: str, op: str, operand: str) -> str:
        match op:
            case "=":
                return f"{cell} = {operand};"
            case "/" | "%":
                return f"{cell} = {cell} {op} (({operand}) | 1);"
            case "<<" | ">>":
                return f"{cell} = {cell} {op} (({operand}) & 15);"
            case _:
                return f"{cell} = {cell} {op} ({operand});"
