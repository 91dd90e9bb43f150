"""What long work tells of itself as it goes on; what becomes of it is the command line's affair (`cli/progress`)."""

from __future__ import annotations

from collections.abc import Callable

# How many parts are done, of how many, and what the next one is called: told as it begins.
Tell = Callable[[int, int, str], None]
# How many seconds were waited, of how many at most, and for what: told once a second at least.
TellWait = Callable[[float, float, str], None]


def silent(_done: float, _total: float, _what: str) -> None:
    """For work that nobody watches."""
