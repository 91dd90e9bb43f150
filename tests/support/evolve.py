"""Random C structs in two versions, and a C program that turns the one into the other field by field: the oracle.

The oracle knows nothing of DWARF, offsets or steps: it assigns `new->f = old->f` for every field that both have, and
leaves the conversions to the compiler.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

INTEGERS = (
    "char", "signed char", "unsigned char", "short", "unsigned short", "int", "unsigned int", "long", "unsigned long",
    "long long", "_Bool", "enum color", "enum level",
)  # fmt: skip
# The widest bit-field of each; of one as wide as its type clang 14 tells as if it were none, aligned or not.
BIT_TYPES = {"_Bool": 1, "unsigned char": 7, "short": 15, "int": 31, "unsigned int": 31, "long": 63, "enum level": 4}
OTHERS = ("float", "double", "void *", "struct node *", "long double", "void (*)(int)")


@dataclass(frozen=True)
class Field:
    """A field: `bits` for a bit-field, `counts` for an array, `struct` the number of a struct held by value, `inner`
    for the members of an anonymous struct (`name` is then empty) or of a named union."""

    name: str
    type: str = ""
    bits: int = 0
    counts: tuple[int, ...] = ()
    struct: int = -1
    inner: tuple[Field, ...] = ()

    def declare(self, prefix: str) -> str:
        bounds = "".join(f"[{n}]" for n in self.counts)
        if self.inner:
            inside = " ".join(f.declare(prefix) for f in self.inner)
            return f"union {{ {inside} }} {self.name};" if self.name else f"struct {{ {inside} }};"
        if self.struct >= 0:
            return f"struct {prefix}s{self.struct} {self.name}{bounds};"
        if self.type.endswith("(*)(int)"):
            return f"void (*{self.name}{bounds})(int);"
        return f"{self.type} {self.name}{bounds}{f' : {self.bits}' if self.bits else ''};"


@dataclass(frozen=True)
class Struct:
    """A struct in two versions, and whether it is packed."""

    number: int
    old: tuple[Field, ...]
    new: tuple[Field, ...]
    attributes: tuple[str, str]

    def declare(self, version: int, prefix: str) -> str:
        fields = (self.old, self.new)[version]
        inside = " ".join(f.declare(prefix) for f in fields)
        return f"struct {self.attributes[version]} {prefix}s{self.number} {{ {inside} }};"


def generate(seed: int, count: int) -> list[Struct]:
    """`count` structs, later ones holding earlier ones."""
    chance = random.Random(seed)
    flat = count // 3  # structs of no struct; arrays of arrays of arrays would fill the memory
    return [_struct(chance, number, 0 if number < flat else flat) for number in range(count)]


def _struct(chance: random.Random, index: int, number: int) -> Struct:
    names = iter(f"f{i}" for i in range(1000))
    old = [_field(chance, names, number) for _ in range(chance.randint(1, 9))]
    new = [_evolved(chance, f) for f in old if len(old) == 1 or chance.random() > 0.1]
    if chance.random() < 0.3:
        chance.shuffle(new)
    for _ in range(chance.randint(0, 3)):
        new.insert(chance.randint(0, len(new)), _field(chance, names, number))
    attribute = ("", "", "", "__attribute__((packed))", "__attribute__((aligned(32)))")
    return Struct(
        index, tuple(old), tuple(new) or (Field("z", "int"),), (chance.choice(attribute), chance.choice(attribute))
    )


def _field(chance: random.Random, names: object, number: int, depth: int = 0) -> Field:
    name = next(names)  # type: ignore[call-overload]
    kind = chance.random()
    if kind < 0.25:
        base = chance.choice(tuple(BIT_TYPES))
        return Field(name, base, bits=chance.randint(1, BIT_TYPES[base]))
    if kind < 0.4 and number:
        counts = chance.choice(((), (), (3,), (2, 4), (40,)))
        return Field(name, struct=chance.randrange(number), counts=counts)
    if kind < 0.55:
        counts = chance.choice(((1,), (4,), (3, 5), (100,)))
        return Field(name, chance.choice(INTEGERS + OTHERS), counts=counts)
    if kind < 0.62 and not depth:
        return Field(name, inner=(Field("a", "int"), Field("b", "long"), Field("c", "char", counts=(3,))))
    if kind < 0.7 and not depth:
        inner = tuple(_field(chance, names, number, 1) for _ in range(chance.randint(1, 3)))
        return Field("", inner=inner)
    return Field(name, chance.choice(INTEGERS + OTHERS))


def _evolved(chance: random.Random, f: Field) -> Field:
    if f.inner and not f.name:
        return replace(f, inner=tuple(_evolved(chance, x) for x in f.inner))
    if chance.random() < 0.5 or f.inner:
        return f
    if f.counts and chance.random() < 0.7:
        return replace(f, counts=tuple(max(1, n + chance.choice((-1, 0, 2))) for n in f.counts))
    if f.bits:
        base = chance.choice(tuple(BIT_TYPES))
        return chance.choice((replace(f, type=base, bits=chance.randint(1, BIT_TYPES[base])), Field(f.name, "long")))
    if f.type in ("float", "double"):
        return replace(f, type={"float": "double", "double": "float"}[f.type])
    if f.type in INTEGERS:
        usual = [t for t in INTEGERS if not (t.startswith("enum") and f.type.startswith("enum"))]
        return replace(f, type=chance.choice(usual))
    return f


PRELUDE = """
enum color { RED, GREEN, BLUE = 700 };
enum level { LOW = -2, HIGH = 5 };
struct node;
"""


def sources(structs: list[Struct]) -> tuple[str, str]:
    """The old and the new program, each with a variable of every struct."""
    programs = []
    for version in (0, 1):
        lines = [PRELUDE, *(s.declare(version, "") for s in structs)]
        lines += [f"struct s{s.number} v{s.number};" for s in structs]
        programs.append("\n".join(lines))
    return programs[0], programs[1]


def oracle(structs: list[Struct]) -> str:
    """A program that prints, for each struct: the old object, the new one made over zeros, and over ones; in hex."""
    lines = ["#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>", PRELUDE]
    for s in structs:
        lines += [s.declare(0, "old_"), s.declare(1, "new_")]
        lines.append(f"static void fill{s.number}(struct old_s{s.number} *o) {{")
        lines += [line for f in _leaves(s.old) for line in _fill(f)]
        lines.append(f"}} static void move{s.number}(struct new_s{s.number} *n, const struct old_s{s.number} *o) {{")
        after = {f.name: f for f in _leaves(s.new)}
        lines += [_assign(f, after[f.name]) for f in _leaves(s.old) if f.name in after]
        lines.append("}")
    lines.append("static void hex(const void *p, size_t n) { for (size_t i = 0; i < n; i++)")
    lines.append('printf("%02x", ((const unsigned char *)p)[i]); putchar(10); }')
    lines.append("int main(void) { srand(7);")
    for s in structs:
        old, new = f"struct old_s{s.number}", f"struct new_s{s.number}"
        lines.append(f"{{ static {old} o; static {new} n;")
        lines.append("for (size_t i = 0; i < sizeof o; i++) ((unsigned char *)&o)[i] = rand() >> 7;")
        lines.append(f"fill{s.number}(&o); hex(&o, sizeof o);")
        for byte in (0, 255):
            lines.append(f"memset(&n, {byte}, sizeof n); move{s.number}(&n, &o); hex(&n, sizeof n);")
        lines.append("}")
    return "\n".join([*lines, "return 0; }"])


def _leaves(fields: tuple[Field, ...]) -> list[Field]:
    """Fields as C names them: those of anonymous structs among them."""
    return [x for f in fields for x in (_leaves(f.inner) if f.inner and not f.name else [f])]


def _loops(f: Field, counts: tuple[int, ...], body: str) -> str:
    """`body` for each element; `@` in it is the field with its indices."""
    indices = "".join(f"[i{k}]" for k in range(len(counts)))
    heads = "".join(f"for (int i{k} = 0; i{k} < {n}; i{k}++) " for k, n in enumerate(counts))
    return heads + body.replace("@", f.name + indices)


def _fill(f: Field) -> list[str]:
    """What random bytes are no value of: a bool of 77, a signalling NaN."""
    if f.struct >= 0:
        return [_loops(f, f.counts, f"fill{f.struct}(&o->@);")]
    if f.type == "_Bool":
        return [_loops(f, f.counts, "o->@ = rand() & 1;")]
    if f.type in ("float", "double", "long double"):
        return [_loops(f, f.counts, "o->@ = (rand() - 1000000000) / 7.0;")]
    return []


def _assign(old: Field, new: Field) -> str:
    counts = tuple(min(a, b) for a, b in zip(old.counts, new.counts, strict=True))
    if old.struct >= 0:
        return _loops(old, counts, f"move{old.struct}(&n->@, &o->@);")
    if old.inner:
        return f"memcpy(&n->{old.name}, &o->{old.name}, sizeof o->{old.name});"
    return _loops(old, counts, "n->@ = o->@;")
