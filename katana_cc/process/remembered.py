"""What came of objects at the last look: one that is as it was then costs nothing in the stop.

All of them are kept, since a look asks for one after the other: with less room than they take, each would be dropped
just before it is asked for.  Only where they come to very many bytes, the oldest go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from katana_cc.transform.model import Transformation

_R = TypeVar("_R")
_BESIDE: Final = 2  # a result may be as large as what it was made of


class Remembered(Generic[_R]):
    """A function of a transformation, of a live object, and of what it begins as or began as.

    Args:
        function: its result depends on nothing else, is never None, and takes no more bytes than its arguments.
        room: bytes that are kept at the most.

    Attributes:
        size: bytes that are kept.
    """

    def __init__(self, function: Callable[[Transformation, bytes, bytes | None], _R], room: int) -> None:
        self._function, self._room = function, room
        self._known: dict[tuple[Transformation, bytes, bytes | None], _R] = {}
        self.size = 0

    def __call__(self, t: Transformation, live: bytes, other: bytes | None) -> _R:
        """What the function returns."""
        key = t, live, other
        found = self._known.get(key)
        if found is not None:
            return found
        result = self._function(*key)
        size = _size(*key)
        if size > self._room:
            return result
        while self.size + size > self._room:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self.size -= _size(*oldest)
        self._known[key] = result
        self.size += size
        return result


def _size(_: Transformation, live: bytes, other: bytes | None) -> int:
    return _BESIDE * (len(live) + len(other or b""))
