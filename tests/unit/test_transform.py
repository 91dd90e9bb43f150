"""Transformations as values: carrying them out, turning them round, what is lost, and the rules they keep."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from katana_cc.dwarf.forms import Encoding
from katana_cc.errors import UsageError
from katana_cc.transform.execute import apply, apply_all
from katana_cc.transform.fates import fates
from katana_cc.transform.inverse import invert
from katana_cc.transform.losses import LossKind, losses
from katana_cc.transform.model import (
    Copy,
    Dropped,
    Float,
    Initial,
    Integer,
    Pointer,
    Repeat,
    Step,
    Transformation,
    nothing_of,
)
from katana_cc.transform.places import moved_offset
from katana_cc.transform.rules import broken, new_range
from tests.support.transforms import transformations

S, U, B = Encoding.SIGNED, Encoding.UNSIGNED, Encoding.BOOL
settings.register_profile("transform", suppress_health_check=[HealthCheck.too_slow])
relaxed = settings(settings.get_profile("transform"), max_examples=150)


def one(step: Step, old_size: int = 16, new_size: int = 16) -> Transformation:
    return Transformation("struct s", old_size, new_size, (step,))


@relaxed
@given(transformations())
def test_the_generator_keeps_the_rules(t: Transformation) -> None:
    assert broken(t) == []


@relaxed
@given(transformations())
def test_turned_round_twice_it_is_the_same(t: Transformation) -> None:
    back = invert(t)
    assert broken(back) == []
    assert invert(back) == t


@relaxed
@given(transformations(), st.data())
def test_what_no_loss_is_told_of_comes_back(t: Transformation, data: st.DataObject) -> None:
    """There and back over the kept old bytes gives the old object, whatever the new one began as."""
    live = data.draw(st.binary(min_size=t.old_size, max_size=t.old_size))
    initial = data.draw(st.binary(min_size=t.new_size, max_size=t.new_size))
    there = apply(t, live, initial)
    if not losses(t, live, live) and not _may_quieten(t.steps):
        assert apply(invert(t), there, live) == live
    # An object made and not used since goes back without loss of what was added.
    assert not [x for x in losses(invert(t), there, initial) if x.kind is LossKind.DROPPED]


def _may_quieten(steps: tuple[Step, ...]) -> bool:
    """A conversion of a signalling NaN gives a quiet one, in C as here; a bool of 77 is none."""
    return any(
        isinstance(s, Float)
        or (isinstance(s, Integer) and B in (s.old_encoding, s.new_encoding))
        or (isinstance(s, Repeat) and _may_quieten(s.steps))
        for s in steps
    )


@relaxed
@given(transformations(), st.data())
def test_only_what_steps_name_is_written(t: Transformation, data: st.DataObject) -> None:
    live = data.draw(st.binary(min_size=t.old_size, max_size=t.old_size))
    zeros, ones = (apply(t, live, bytes([b]) * t.new_size) for b in (0, 255))
    kept = int.from_bytes(zeros, "little") ^ int.from_bytes(ones, "little")
    for step in t.steps:
        start, end = new_range(step)
        if not isinstance(step, Repeat | Initial | Dropped):
            assert not kept >> start & ((1 << end - start) - 1)


@pytest.mark.parametrize(
    ("step", "old", "new"),
    [
        (Integer(0, 64, S, 0, 32, S), struct.pack("<i", -7), struct.pack("<q", -7)),
        (Integer(0, 64, S, 0, 32, U), struct.pack("<I", 2**32 - 7), struct.pack("<q", 2**32 - 7)),
        (Integer(0, 64, U, 0, 8, S), b"\xff", b"\xff" * 8),
        (Integer(0, 16, S, 0, 32, S), struct.pack("<i", -2), struct.pack("<h", -2)),
        (Integer(0, 8, B, 0, 32, S), struct.pack("<i", 256), b"\1"),
        (Integer(0, 32, S, 0, 8, B), b"\1", struct.pack("<i", 1)),
        (Integer(3, 5, S, 6, 4, S), b"\x80\x02", b"\xd0"),  # 0b1010 = -6 in 4 bits from bit 6 on; 5 bits at 3
        (Integer(5, 62, U, 7, 62, U), (2**69 - 640).to_bytes(9, "little"), (2**67 - 160).to_bytes(9, "little")),
        (Float(0, 8, 0, 4), struct.pack("<f", -1.25), struct.pack("<d", -1.25)),
        (Float(0, 4, 0, 8), struct.pack("<d", 0.1), struct.pack("<f", 0.1)),
        (Float(0, 4, 0, 8), struct.pack("<d", 1e300), struct.pack("<f", math.inf)),
        (Pointer(8, 0, "char"), b"POINTER!", bytes(8) + b"POINTER!"),
        (Copy(1, 2, 3), b"abcde", b"\0cde"),
    ],
)  # fmt: skip
def test_a_value_becomes_what_c_makes_of_it(step: Step, old: bytes, new: bytes) -> None:
    assert apply(one(step, len(old), len(new)), old, bytes(len(new))) == new


def test_a_bit_field_leaves_its_neighbours_alone() -> None:
    step = Integer(3, 2, U, 0, 8, U)
    assert apply(one(step, 1, 1), b"\0", b"\xff") == b"\xe7"


def test_a_long_array_is_one_step_and_soon_done() -> None:
    count = 200_000
    body = (Copy(0, 0, 4), Pointer(8, 8, "char"), Initial(128, 32))
    t = Transformation("v", count * 16, count * 24, (Repeat(count, 0, 24, 0, 16, body),))
    old = struct.pack("<iiq", 1, 2, 3) * count
    assert apply(t, old, bytes(t.new_size)) == struct.pack("<iiqq", 1, 0, 3, 0) * count


@relaxed
@given(transformations(), st.integers(0, 30), st.data())
def test_many_objects_at_once_become_what_each_would(t: Transformation, count: int, data: st.DataObject) -> None:
    old = data.draw(st.binary(min_size=t.old_size * count, max_size=t.old_size * count))
    initial = data.draw(st.binary(min_size=t.new_size * count, max_size=t.new_size * count))
    one_by_one = b"".join(
        apply(t, old[i * t.old_size : (i + 1) * t.old_size], initial[i * t.new_size : (i + 1) * t.new_size])
        for i in range(count)
    )
    assert apply_all(t, count, old, initial) == one_by_one


@pytest.mark.parametrize(("old", "new"), [("<i", "<q"), ("<I", "<q"), ("<q", "<h"), ("<b", "<I")])
def test_arrays_of_numbers_are_converted_in_columns(old: str, new: str) -> None:
    sizes = struct.calcsize(old), struct.calcsize(new)
    kinds = (S if f[1].islower() else U for f in (old, new))
    old_kind, new_kind = kinds
    step = Integer(0, sizes[1] * 8, new_kind, 0, sizes[0] * 8, old_kind)
    count = 10_001
    t = Transformation("v", count * sizes[0], count * sizes[1], (Repeat(count, 0, sizes[1], 0, sizes[0], (step,)),))
    first = -3 if old_kind is S else 250
    live = struct.pack(old, first) + struct.pack(old, 100) * (count - 1)
    wrapped = first % (1 << 8 * sizes[1]) if new_kind is U else first
    assert apply(t, live, bytes(t.new_size)) == struct.pack(new, wrapped) + struct.pack(new, 100) * (count - 1)


def test_bytes_of_another_size_are_refused() -> None:
    t = one(Copy(0, 0, 8))
    for old, new in ((15, 16), (16, 17)):
        with pytest.raises(UsageError, match="struct s"):
            apply(t, bytes(old), bytes(new))
    with pytest.raises(UsageError, match="struct s"):
        losses(t, bytes(8))


@pytest.mark.parametrize(
    ("step", "live", "text"),
    [
        (Integer(0, 16, S, 0, 32, S, "n", "n"), struct.pack("<i", 70000),
         "`n` is 70000, which 16 signed bits do not hold"),
        (Integer(0, 16, U, 0, 32, S, "n", "n"), struct.pack("<i", -1), "`n` is -1, which 16 bits do not hold"),
        (Integer(0, 8, B, 0, 32, S, "n", "old"), struct.pack("<i", 2), "`old` is 2, which a truth value does not hold"),
        (Float(0, 4, 0, 8, "d", "d"), struct.pack("<d", 0.1), "`d` is 0.1, which no float holds exactly"),
        (Dropped(0, 3, "flags"), b"\4", "`flags` is 4, and there is no such field"),
        (Repeat(3, 0, 1, 0, 2, (Integer(0, 8, S, 0, 16, S, "x", "x"),), "a[]", "a[]"), struct.pack("<3h", 1, -128, 300),
         "`a[2].x` is 300, which 8 signed bits do not hold"),
        # A variable that is one number has no field.
        (Integer(0, 16, U, 0, 32, U), struct.pack("<I", 70000), "its value is 70000, which 16 bits do not hold"),
        (Float(0, 4, 0, 8), struct.pack("<d", 0.1), "its value is 0.1, which no float holds exactly"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_survive_is_named(step: Step, live: bytes, text: str) -> None:
    (loss,) = losses(one(step), live.ljust(16, b"\0"))
    assert loss.text == text


@pytest.mark.parametrize(
    ("step", "live"),
    [
        (Integer(0, 16, S, 0, 32, S), struct.pack("<i", -32768)),
        (Integer(0, 32, U, 0, 32, S), struct.pack("<i", -1)),
        (Integer(0, 64, U, 0, 32, S), struct.pack("<i", -1)),
        (Float(0, 4, 0, 8), struct.pack("<d", 0.5)),
        (Float(0, 4, 0, 8), struct.pack("<d", math.nan)),
        (Dropped(0, 3, "flags"), b"\xf8"),
    ],
)
def test_a_value_that_survives_is_no_loss(step: Step, live: bytes) -> None:
    assert losses(one(step), live.ljust(16, b"\0")) == ()


def test_an_added_field_goes_back_while_it_is_as_it_began() -> None:
    t = Transformation("struct s", 4, 8, (Copy(0, 0, 4, "a", "a"), Initial(32, 32, "b")))
    initial = bytes(4) + b"\7\0\0\0"
    live = apply(t, b"abcd", initial)
    assert losses(invert(t), live, initial) == ()
    (loss,) = losses(invert(t), b"abcd\x08\0\0\0", initial)
    assert (loss.kind, loss.field) == (LossKind.DROPPED, "b")


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((Copy(0, 0, 17),), "beyond the end"),
        ((Copy(0, -1, 4),), "out of range"),
        ((Copy(0, 0, 0),), "out of range"),
        ((Copy(0, 0, 4), Copy(2, 4, 4)), "overlaps another field of the new"),
        ((Copy(0, 0, 4), Copy(4, 2, 4)), "overlaps another field of the old"),
        ((Copy(4, 4, 4), Copy(0, 0, 4)), "out of order"),
        ((Integer(0, 65, U, 0, 8, U),), "out of range"),
        ((Float(0, 4, 0, 4),), "out of range"),
        ((Repeat(0, 0, 1, 0, 1, (Copy(0, 0, 1),)),), "out of range"),
        ((Repeat(2, 0, 1, 0, 1, ()),), "repeats nothing"),
        ((Repeat(2, 0, 4, 0, 4, (Copy(0, 0, 5),)),), "beyond the end"),
        ((Repeat(9, 0, 2, 0, 2, (Copy(0, 0, 1),)),), "beyond the end"),
        ((Dropped(100, 29),), "beyond the end of the old"),
    ],
)  # fmt: skip
def test_each_rule_is_asked(steps: tuple[Step, ...], text: str) -> None:
    assert any(text in sentence for sentence in broken(Transformation("t", 16, 16, steps)))


def test_repeats_have_a_greatest_depth() -> None:
    step: Step = Copy(0, 0, 1)
    for _ in range(40):
        step = Repeat(1, 0, 1, 0, 1, (step,))
    assert any("deep" in sentence for sentence in broken(one(step)))


def test_an_object_that_takes_nothing_over_loses_nothing_until_it_is_written_to() -> None:
    t = Transformation("table", 4, 8, nothing_of(4, 8), "int[1]")
    assert t.takes_nothing
    assert invert(t).takes_nothing
    assert apply(t, b"\1\0\0\0", b"\2\0\0\0\3\0\0\0") == b"\2\0\0\0\3\0\0\0"
    assert losses(t, b"\1\0\0\0") == ()
    assert losses(invert(t), b"\2\0\0\0\3\0\0\0", b"\2\0\0\0\3\0\0\0") == ()
    (loss,) = losses(invert(t), b"\2\0\0\0\4\0\0\0", b"\2\0\0\0\3\0\0\0")
    assert loss.text == "something has written to it"
    assert [f.new for f in fates(t, b"\1\0\0\0", bytes(8))] == ["what the new build begins with"]
    assert moved_offset(t, 0, "int") == 0
    assert moved_offset(t, 4, "int") is None
