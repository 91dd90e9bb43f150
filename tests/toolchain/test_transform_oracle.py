"""Transformations made from compiled layouts, against what a C program makes of the same object field by field."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from katana_cc.dwarf.types import TypeLayout, layouts
from katana_cc.transform.between import between_types
from katana_cc.transform.execute import apply
from katana_cc.transform.inverse import invert
from katana_cc.transform.losses import losses
from katana_cc.transform.model import Initial, Repeat, Step, Transformation
from tests.support.dwarf import build
from tests.support.evolve import Struct, generate, oracle, sources

BUILDS = [(c, v) for c in ("gcc", "clang") for v in ("-gdwarf-4", "-gdwarf-5")]
COUNT = 30


def removed(structs: list[Struct], old: dict[str, TypeLayout]) -> dict[tuple[str, str], str]:
    """ "No rename" for every field, as a person would answer: the generator renames none."""
    return {(s, m.name): "" for s, layout in old.items() for m in layout.members} if structs else {}


def initial_bits(steps: tuple[Step, ...], at: int = 0) -> int:
    """A mask of the bits that keep their initial value."""
    mask = 0
    for step in steps:
        if isinstance(step, Initial):
            mask |= ((1 << step.bits) - 1) << at + step.new
        elif isinstance(step, Repeat):
            for i in range(step.count):
                mask |= initial_bits(step.steps, at + (step.new + i * step.new_stride) * 8)
    return mask


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


@pytest.mark.parametrize("command", BUILDS, ids=" ".join)
@pytest.mark.parametrize("seed", range(3))
def test_every_field_gets_the_value_that_c_would_assign(tmp_path: Path, command: tuple[str, ...], seed: int) -> None:
    structs = generate(seed, COUNT)
    before, after = (
        dict(layouts(build(tmp_path, text, *command, "-w", name=f"{i}.c"))) for i, text in enumerate(sources(structs))
    )
    (tmp_path / "oracle.c").write_text(oracle(structs))
    subprocess.run([command[0], "-w", "-O0", "oracle.c", "-o", "oracle"], cwd=tmp_path, check=True)
    lines = subprocess.run([tmp_path / "oracle"], capture_output=True, text=True, check=True).stdout.split()
    for s in structs:
        key = f"s{s.number}"
        made = between_types(key, before, key, after, removed(structs, before))
        assert isinstance(made, Transformation), made
        old, zeros, ones = (bytes.fromhex(line) for line in lines[3 * s.number : 3 * s.number + 3])
        assert (len(old), len(zeros)) == (made.old_size, made.new_size)
        mine = apply(made, old, bytes(made.new_size)), apply(made, old, b"\xff" * made.new_size)
        written = ~(number(zeros) ^ number(ones)) & ((1 << made.new_size * 8) - 1)
        for ours, theirs in zip(mine, (zeros, ones), strict=True):
            assert number(ours) & written == number(theirs) & written, (s, made)
        # What came is as the initial bytes have it.
        fresh = initial_bits(made.steps)
        assert not fresh & written
        assert (number(mine[0]) & fresh, number(mine[1]) & fresh) == (0, fresh)
        back = invert(made)
        assert invert(back) == made
        if not losses(made, old, old):  # what is dropped comes back from the old bytes
            assert apply(back, mine[0], old) == old


CLASSES = """
namespace NS {
struct Base { virtual ~Base(); %(base)s };
struct Plain { %(plain)s };
struct Empty {};
enum class Mode : signed char { Off = -1, On = 4 };
struct __attribute__((packed)) Tight { char c; %(tight)s };
struct s : Base, Plain, Empty {
    ~s(); Mode mode; %(members)s
    [[no_unique_address]] Empty nothing; [[no_unique_address]] Plain tail; char last;
    struct Inner { short h; %(inner)s } inners[3]; Tight tights[2]; Plain Base::*member; int &reference;
    s();
};
Base::~Base() {} s::~s() {} static int target; s::s() : reference(target) {}
}
"""
OLD = {"base": "int b; char bc;", "plain": "short p; char q;", "tight": "int i : 7; long l : 60;",
       "members": "float f;", "inner": "unsigned char u;"}  # fmt: skip
NEW = {"base": "long first; char bc; long b;", "plain": "int p; long extra; char q;",
       "tight": "long l : 61; int i : 9;",
       "members": "unsigned added; double f;", "inner": "long z; int u;"}  # fmt: skip
# What C++ finds by these names is looked at; the generated structs above leave nothing out.
ASSIGNED = ("b", "bc", "p", "q", "mode", "f", "tail.p", "tail.q", "last", "member", "inners[0].h", "inners[0].u",
            "inners[2].h", "inners[2].u", "tights[1].c", "tights[1].i", "tights[1].l")  # fmt: skip


def class_oracle() -> str:
    """Fills a class of the old program with numbers, assigns each field to one of the new, prints both, in hex, and for
    each field the new object with only that field written, so that padding does not count."""
    lines = ["#include <cstdio>", "#include <cstring>", "#include <new>"]
    lines += [f"{CLASSES % values}".replace("NS", name) for name, values in (("before", OLD), ("after", NEW))]
    lines += ["static void hex(const void *p, unsigned n) {", "for (unsigned i = 0; i < n; i++)"]
    lines += ['std::printf("%02x", ((const unsigned char *)p)[i]); std::puts(""); }', "int main() {"]
    lines += ["static char room[sizeof(before::s)]; std::memset(room, 0x5a, sizeof room);"]
    lines += ["before::s &o = *new (room) before::s;"]
    for i, field in enumerate(ASSIGNED):
        if field not in ("mode", "member"):
            lines.append(f"o.{field} = {-3 - i if field not in ('inners[0].u', 'inners[2].u') else 200 + i};")
    lines.append("o.mode = before::Mode::Off; o.member = nullptr; hex(&o, sizeof o);")
    for field in ASSIGNED:
        value = {"mode": "after::Mode(o.mode)", "member": "nullptr"}.get(field, f"o.{field}")
        lines.append("for (int b = 0; b < 256; b += 255) {")
        lines.append("alignas(after::s) static char space[sizeof(after::s)]; std::memset(space, b, sizeof space);")
        lines.append(f"auto &n = *(after::s *)space; n.{field} = {value}; hex(space, sizeof space); }}")
    return "\n".join([*lines, "}"])


@pytest.mark.parametrize(
    "command", [("g++", "-gdwarf-5"), ("g++", "-gdwarf-4"), ("clang++", "-gdwarf-5")], ids=" ".join
)
def test_classes_with_bases_and_reused_padding(tmp_path: Path, command: tuple[str, ...]) -> None:
    standard = "-std=c++20"
    before, after = (
        layouts(build(tmp_path, (CLASSES % values).replace("NS", "n"), *command, standard, "-w", name=f"{i}.cc"))
        for i, values in enumerate((OLD, NEW))
    )
    made = between_types("n::s", before, "n::s", after)
    assert isinstance(made, Transformation), made
    (tmp_path / "oracle.cc").write_text(class_oracle())
    subprocess.run([command[0], standard, "-w", "-O0", "oracle.cc", "-o", "oracle"], cwd=tmp_path, check=True)
    lines = subprocess.run([tmp_path / "oracle"], capture_output=True, text=True, check=True).stdout.split()
    old = bytes.fromhex(lines[0])
    mine = number(apply(made, old, bytes(made.new_size)))
    seen = 0
    for i, field in enumerate(ASSIGNED):
        zeros, ones = (number(bytes.fromhex(line)) for line in lines[1 + 2 * i : 3 + 2 * i])
        written = ~(zeros ^ ones) & ((1 << made.new_size * 8) - 1)
        assert written, field
        assert mine & written == zeros & written, field
        seen |= written
    assert seen & initial_bits(made.steps) == 0
