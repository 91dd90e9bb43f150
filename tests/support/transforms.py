"""Random transformations for property tests, and values for their objects."""

from __future__ import annotations

from hypothesis import strategies as st

from katana_cc.dwarf.forms import Encoding
from katana_cc.transform.model import Copy, Dropped, Float, Initial, Integer, Pointer, Repeat, Step, Transformation
from katana_cc.transform.rules import ordered

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
NUMBERS = st.sampled_from([Encoding.SIGNED, Encoding.UNSIGNED, Encoding.BOOL])


@st.composite
def _step(draw: st.DrawFn, new: int, old: int, depth: int) -> tuple[Step, int, int]:
    """(step, bits it takes of the new object, of the old one), beginning at these bits at the earliest."""
    kind = draw(st.sampled_from(["copy", "pointer", "integer", "float", "initial", "dropped", "repeat"]))
    names = draw(NAMES), draw(NAMES)
    if kind == "integer":
        widths = draw(st.integers(1, 64)), draw(st.integers(1, 64))
        step = Integer(new, widths[0], draw(NUMBERS), old, widths[1], draw(NUMBERS), *names)
        return step, *widths
    if kind in ("initial", "dropped"):
        bits = draw(st.integers(1, 200))
        return (Initial(new, bits, names[0]), bits, 0) if kind == "initial" else (Dropped(old, bits, names[1]), 0, bits)
    # From here on whole bytes.
    skip_new, skip_old = -new % 8, -old % 8
    at = (new + skip_new) // 8, (old + skip_old) // 8
    made: Step
    sizes: tuple[int, int]
    if kind == "copy":
        size = draw(st.integers(1, 40))
        made, sizes = Copy(*at, size, *names), (size, size)
    elif kind == "pointer":
        made, sizes = Pointer(*at, draw(NAMES), *names), (8, 8)
    elif kind == "float" or depth > 1:
        sizes = draw(st.sampled_from([(4, 8), (8, 4)]))
        made = Float(at[0], sizes[0], at[1], sizes[1], *names)
    else:
        count = draw(st.integers(1, 20))
        body, new_size, old_size = draw(_body(depth + 1))
        made = Repeat(count, at[0], new_size, at[1], old_size, body, *names)
        sizes = count * new_size, count * old_size
    return made, skip_new + sizes[0] * 8, skip_old + sizes[1] * 8


@st.composite
def _body(draw: st.DrawFn, depth: int) -> tuple[tuple[Step, ...], int, int]:
    """(steps, size of the new object, of the old one)."""
    steps: list[Step] = []
    new = old = 0
    for _ in range(draw(st.integers(1, 5))):
        new, old = new + draw(st.integers(0, 20)), old + draw(st.integers(0, 20))
        step, new_bits, old_bits = draw(_step(new, old, depth))
        steps.append(step)
        new, old = new + new_bits, old + old_bits
    return ordered(steps), max(1, (new + 7) // 8), max(1, (old + 7) // 8)


@st.composite
def transformations(draw: st.DrawFn) -> Transformation:
    """Any transformation that keeps the rules, its fields in one order on both sides."""
    steps, new_size, old_size = draw(_body(0))
    return Transformation(draw(NAMES), old_size, new_size, steps)
