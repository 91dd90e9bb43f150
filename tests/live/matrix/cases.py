"""All cases, in the order of their kinds."""

from __future__ import annotations

from collections.abc import Iterable

from tests.live.matrix.cases_cxx import CXX
from tests.live.matrix.cases_data import DATA, DATA_CXX
from tests.live.matrix.cases_debugger import WATCHED
from tests.live.matrix.cases_exceptions import THROWS
from tests.live.matrix.cases_flow import FLOW, FRAMES, LINES, OUTSIDE, SMALL
from tests.live.matrix.cases_functions import CLONES, FUNCTIONS
from tests.live.matrix.cases_links import IMPORTS, SYMBOLS
from tests.live.matrix.cases_machine import FOLDED, MACHINE, STARTUP
from tests.live.matrix.model import COMPILERS, FIRST_OF_DATA, LEVELS, MODES, Case
from tests.support.project import Variant

CASES: tuple[Case, ...] = (
    *FUNCTIONS, *CLONES, *FLOW, *SMALL, *LINES, *IMPORTS, *SYMBOLS, *MACHINE, *FOLDED,
    *FRAMES, *OUTSIDE, *STARTUP, *CXX, *THROWS, *DATA, *DATA_CXX, *WATCHED,
)  # fmt: skip


_FEW = (
    Variant("gcc", "-O2", "pie"),
    Variant("clang", "-O2", "nopie"),
    Variant("gcc", "-O0", "nopie"),
    Variant("clang", "-Os", "pie"),
)


def sample(number: int) -> list[Variant]:
    """Four of the sixteen variants for case `number`: every level, each compiler with each mode; every four successive
    cases have them all.  Live data depends less on how code is made: one variant."""
    if _is_of_data(number):
        return [_FEW[number & 3]]
    return [
        Variant(COMPILERS[(number + i) & 1], level, MODES[((number >> 1) + (i >> 1)) & 1])
        for i, level in enumerate(LEVELS)
    ]


def single(number: int) -> Variant:
    """The one of them in which the case is also patched by itself."""
    chosen = sample(number)
    return chosen[(number >> 2) % len(chosen)]


def is_alone_in_sample(number: int) -> bool:
    """Whether the sample has the case by itself: of those of live data, one in four."""
    return not _is_of_data(number) or not (number >> 2) & 3


def is_in_test(variant: Variant, numbers: Iterable[int]) -> bool:
    """Whether `make test` builds these cases in a variant: half of the variants, two of the four of each case of code;
    what has cases of live data, always."""
    place = COMPILERS.index(variant.compiler) + LEVELS.index(variant.optimise) + MODES.index(variant.mode)
    return place % 2 == 0 or any(_is_of_data(number) for number in numbers)


def _is_of_data(number: int) -> bool:
    return CASES[number].kind >= FIRST_OF_DATA
