"""What came of objects at the last look, kept for the next: all of them, unless they are very large."""

from __future__ import annotations

from katana_cc.process.remembered import Remembered
from katana_cc.transform.model import Transformation

T = Transformation("t", 8, 8, ())


class Counted:
    """A function that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, _: Transformation, live: bytes, other: bytes | None) -> bytes:
        self.calls += 1
        return live + (other or b"")


def test_second_look_at_many_objects_computes_nothing() -> None:
    """A bug: where more variables move than are remembered, the stop pays for all of them."""
    count = Counted()
    known = Remembered(count, 1 << 20)
    objects = [n.to_bytes(8, "little") for n in range(1000)]
    for _ in range(2):
        assert [known(T, o, None) for o in objects] == objects
    assert count.calls == 1000


def test_what_is_kept_is_bounded_in_bytes() -> None:
    """A bug: large variables of each process of many stay in memory until all are patched."""
    count = Counted()
    known = Remembered(count, 10_000)
    for n in range(100):
        known(T, bytes([n]) * 1000, bytes(500))
        assert known.size <= 10_000
    known(T, bytes([99]) * 1000, bytes(500))
    assert count.calls == 100, "the latest is there"
    known(T, bytes([0]) * 1000, bytes(500))
    assert count.calls == 101, "the oldest is not"


def test_object_larger_than_the_bound_is_not_kept() -> None:
    count = Counted()
    known = Remembered(count, 100)
    known(T, b"small", None)
    assert known(T, bytes(200), None) == bytes(200)
    known(T, b"small", None)
    assert (count.calls, known.size <= 100) == (2, True)


def test_another_transformation_or_initial_value_is_another_object() -> None:
    count = Counted()
    known = Remembered(count, 1000)
    assert known(T, b"a", b"b") == known(T, b"a", b"b") == b"ab"
    assert known(T, b"a", b"c") == b"ac"
    known(Transformation("u", 8, 8, ()), b"a", b"b")
    assert count.calls == 3
