"""The scope of a variable, as debug information declares it."""

from __future__ import annotations

from typing import NamedTuple


class Scope(NamedTuple):
    """What debug information says of a variable: `f()::n`, and at which offset of it a part lies (-1: all of it)."""

    name: str
    part: int = -1

    @property
    def declared(self) -> str:
        """The name as declared: `n`."""
        return self.name.rpartition("::")[2]

    @property
    def is_of_function(self) -> bool:
        """Whether it is a static of a function of known name."""
        return ")::" in self.name.replace("(anonymous namespace)::", "").replace("(inlined function)::", "")
