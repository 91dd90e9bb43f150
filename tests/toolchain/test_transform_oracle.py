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
