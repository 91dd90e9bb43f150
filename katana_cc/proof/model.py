"""The values of the proof: what a relocated field leads to, and what is left unaccounted for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from katana_cc.cpu.interface import Relocations
from katana_cc.diff.program import Place


@dataclass(frozen=True, slots=True)
class Carried:
    """A section of the patch object, by its index."""

    number: int


@dataclass(frozen=True, slots=True)
class Named:
    """What no section of an object defines: an import, a COMMON variable, a symbol of the linker's."""

    name: str


@dataclass(frozen=True, slots=True)
class Content:
    """A literal: its bytes, for it has no identity."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Absolute:
    """A number that is no address of the output."""

    value: int


Target = Place | Carried | Named | Content | Absolute


class Field(NamedTuple):
    """One relocated field: where it lies in its section, its R_* type, and what it leads to.

    `distance` is S + A counted from the start of `target`.  `start` must be added to it to get where the thing meant
    begins: a PC-relative field counts from the end of its instruction, and `"abc"[i - 1]` from before the literal.
    """

    offset: int
    type: int
    target: Target
    distance: int
    start: int

    def is_entry(self, known: Relocations) -> bool:
        """Whether it leads to the very start of its target."""
        return self.distance == (-known.BIAS if self.type in known.PC_RELATIVE else 0)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something of the new build that is not as in the patched process, and that no reason accounts for.

    `place` is in the new build, or in the old one (`is_old`); None when a name alone is concerned.
    """

    subject: str
    text: str
    place: Place | None = None
    is_old: bool = False
