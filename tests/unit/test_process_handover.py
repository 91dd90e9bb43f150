"""What functions of the program's are to make, as addresses, and which bytes are theirs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from katana_cc.process.follow import Passage
from katana_cc.process.handover import Part, _Object, _told_apart, parts_of
from katana_cc.process.moves import Made
from katana_cc.transform.model import Copy, Transformation

MADE = Made("renew", "recall", 0x100, 0x200, 4, 8, 2, 10, 20)
T = Transformation("many", 30, 60, (Copy(0, 0, 4),))


def test_parts_of_a_variable() -> None:
    """A bug: the strides of the two layouts are exchanged."""
    passage = Passage(T, 0x1000, 0x5000, bytes(60), None, False, True, (MADE,))
    assert list(parts_of([passage])) == [
        Part("renew", 0x100, 0x1004, 0x5008, "many"), Part("renew", 0x100, 0x100E, 0x501C, "many")
    ]  # fmt: skip


def test_way_back_is_the_other_function() -> None:
    """And twice back is the way forth."""
    assert MADE.reversed() == Made("recall", "renew", 0x200, 0x100, 8, 4, 2, 20, 10)
    assert MADE.reversed().reversed() == MADE


def test_where_a_part_goes() -> None:
    """A bug: what leads to the start of an element leads to another one, or into the middle."""
    assert [MADE.at(offset) for offset in (3, 4, 5, 14, 24)] == [None, 8, None, 28, None]


@given(
    st.lists(st.integers(0, 20).map(lambda n: 16 * n), unique=True, max_size=8),
    st.lists(st.tuples(st.integers(0, 340), st.integers(1, 60)), max_size=6),
)
def test_every_byte_is_written_once_and_by_whom_it_belongs(news: list[int], spans: list[tuple[int, int]]) -> None:
    """Writes to neighbouring blocks are one.  A bug: bytes of other memory are taken for an object's, or left out."""
    writes, end = [], 0
    for start, size in sorted(spans):
        start = max(start, end)
        end = start + size
        writes.append((start, bytes(size), bytes((start + i) % 251 for i in range(size))))
    cargo: Any = SimpleNamespace(heap=SimpleNamespace(converted=SimpleNamespace(writes=tuple(writes))))
    own, others = _told_apart(cargo, [_Object("s", (), 0, new, 10) for new in news])
    theirs = {new + i for new in news for i in range(10)}
    expected = {
        a + i: (b, c) for a, before, after in writes for i, (b, c) in enumerate(zip(before, after, strict=True))
    }
    for found, inside in ((own, True), (others, False)):
        seen = {a + i: (b, c) for a, x, y in found for i, (b, c) in enumerate(zip(x, y, strict=True))}
        assert sum(len(x) for _, x, _ in found) == len(seen)
        assert seen == {a: v for a, v in expected.items() if (a in theirs) is inside}
