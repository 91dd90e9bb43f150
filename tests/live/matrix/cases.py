"""All cases, in the order of their kinds."""

from __future__ import annotations

from tests.live.matrix.cases_cxx import CXX
from tests.live.matrix.cases_exceptions import THROWS
from tests.live.matrix.cases_flow import FLOW, FRAMES, LINES, OUTSIDE, SMALL
from tests.live.matrix.cases_functions import CLONES, FUNCTIONS
from tests.live.matrix.cases_links import IMPORTS, SYMBOLS
from tests.live.matrix.cases_machine import FOLDED, MACHINE, STARTUP
from tests.live.matrix.model import COMPILERS, LEVELS, MODES, Case
from tests.support.project import Variant

CASES: tuple[Case, ...] = (
    *FUNCTIONS, *CLONES, *FLOW, *SMALL, *LINES, *IMPORTS, *SYMBOLS, *MACHINE, *FOLDED,
    *FRAMES, *OUTSIDE, *STARTUP, *CXX, *THROWS,
)  # fmt: skip


def sample(number: int) -> list[Variant]:
    """Four of the sixteen variants for case `number`: every level, each compiler with each mode; every four successive
    cases have them all."""
    return [
        Variant(COMPILERS[(number + i) & 1], level, MODES[((number >> 1) + (i >> 1)) & 1])
        for i, level in enumerate(LEVELS)
    ]


def single(number: int) -> Variant:
    """The one of them in which the case is also patched by itself."""
    return sample(number)[(number >> 2) & 3]
