"""What the matrix is made of: cases, the variants they are built in, and what came of one case in one variant."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.support.project import Variant

MUST, JUDGE = "must", "judge"

# The table that the matrix answers to, row by row.
KINDS: Mapping[int, tuple[str, str]] = {
    1: ("body of a global function; of a static one", MUST),
    2: ("a callee that was inlined changes: its inliners change, and the report says why", MUST),
    3: ("new function, static or global; removed function still referenced by a pointer", MUST),
    4: ("changed signature of a static function and its callers together", MUST),
    5: (
        "`.cold`, `.part`, `.isra`, `.constprop` clones: changed in the parent or the clone, appearing, vanishing",
        MUST,
    ),
    6: ("jump tables; computed goto; tail calls into a changed function", MUST),
    7: ("function pointer taken, stored, compared before and after", MUST),
    8: ("function under 5 bytes, or its neighbour starts at once", MUST),
    9: ("line numbers, `__DATE__`, comment, whitespace only: no patch, or the smaller one", MUST),
    10: ("library function never imported before; data symbol of a library; IFUNC", MUST),
    11: ("weak and aliased symbols, symbol versions, hidden visibility, COMMON, same-named statics in two files", MUST),
    12: ("hand-written assembly in `.text`; inline assembly; naked functions", JUDGE),
    13: ("identical functions folded into one (ICF)", JUDGE),
    14: ("recursion; varargs; many arguments; red zone; function that crosses a page", MUST),
    15: ("setjmp/longjmp, signal handlers, callbacks from libraries, atexit handlers in changed code", MUST),
    16: ("constructor or destructor functions added or changed", JUDGE),
    17: (
        "C++: methods, virtual methods, templates, lambdas, anonymous namespaces, COMDAT, statics with guards; "
        "exceptions thrown, caught, passed on and cleaned up by new code",
        MUST,
    ),
    20: ("static local and global keep their values and addresses; numbering of `.NNN` suffixes shifts", MUST),
    21: ("new global, new static, new static local; new bss", MUST),
    22: ("string literal; floating constant; `const` table changed, grown, reordered", MUST),
    23: ("initialiser of a writable variable changed: the live value is kept; taken over where asked", MUST),
    24: ("writable table of function pointers gains or changes an entry, live value still the old initial one", MUST),
    25: (
        "struct of a global gains, loses, moves, renames, widens or narrows a field; nested; arrays of them; "
        "bit-fields; unions; enums",
        MUST,
    ),
    26: ("global array grows", MUST),
    27: (
        "pointers to a moved object: in other globals, in heap objects reached by typed pointers, behind `void *`",
        f"{MUST} for typed, {JUDGE} for opaque",
    ),
    28: ("heap objects whose type changed", f"{MUST} where all are reached by typed pointers, else {JUDGE}"),
    29: ("thread-local variable: existing one referenced; new one; changed one", f"{MUST} / {JUDGE} / {JUDGE}"),
    30: ("variable removed; variable turns static, const or thread-local", f"{MUST} / {JUDGE}"),
    31: ("padding, alignment, packed attribute changed", MUST),
    51: ("a debugger afterwards: gdb shows function, line, arguments and variables in new code, and all callers", MUST),
}

FIRST_OF_DATA = 20

COMPILERS = ("gcc", "clang")
LEVELS = ("-O0", "-O2", "-O3", "-Os")
MODES = ("pie", "nopie")
VARIANTS: tuple[Variant, ...] = tuple(
    Variant(compiler, level, mode) for compiler, level, mode in itertools.product(COMPILERS, LEVELS, MODES)
)

_CHOICE = re.compile(r"<<<(.*?)=>(.*?)>>>", re.DOTALL)


AT_APPLY, AT_REVERT = "at-apply", "at-revert"  # what stands for a code where live values decide


@dataclass(frozen=True, slots=True)
class Refusal:
    """That a case is refused, in every build.

    Attributes:
        code: of the reason in the patch, whether it is refused for it or needs a decision that nobody granted;
            `AT_APPLY` or `AT_REVERT` where what the process holds speaks against it.
        text: what a person has to be told (a regular expression).
        is_right: whether nothing better could come of it.
    """

    code: str
    text: str
    is_right: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One change.

    `source` holds both versions: `<<<old=>new>>>` stands for `old` in the one and `new` in the other; `more` are
    further files of the case, of the same form.  The case answers questions: `long ask_NAME(long x)`.

    Attributes:
        must: whether it has to work; else it may be refused with a reason.
        asked: the questions.
        as_old: of these, those that the patched process must answer as the old build does, since they ask for what the
            old build left behind.
        replaced: if given, the only functions that may be replaced (static ones by their name without a number).
        nothing: whether there must be nothing to patch.
        codes: codes of reasons the patch must give.
        flags: for the compiler, of this case's files.
        exits: whether it answers at exit too.
        granted: options of `katana apply` that it needs, and is refused without, naming them.
        answers: what is said of renames, as (type, old field) → new field ("": gone).
        moved: the variables that must be made anew elsewhere, with their values.
        refused: how it is refused, if it is.
        watched: a place for gdb's `break`, in code that does not change and that new code calls when asked the last
            question: what gdb says of the callers there is compared as well.
        program: which program it is part of (see `PROGRAMS`).
    """

    kind: int
    name: str
    source: str
    more: Mapping[str, str] = field(default_factory=dict)
    must: bool = True
    asked: tuple[int, ...] = (0, 1, 2, 3, -4, 17)
    as_old: tuple[int, ...] = ()
    replaced: frozenset[str] | None = None
    nothing: bool = False
    codes: frozenset[str] = frozenset()
    flags: tuple[str, ...] = ()
    exits: bool = False
    granted: tuple[str, ...] = ()
    answers: Mapping[tuple[str, str], str] = field(default_factory=dict)
    moved: frozenset[str] = frozenset()
    refused: Refusal | None = None
    watched: str = ""
    program: str = "c"
    suffix: str = ".c"

    def files(self, side: int) -> dict[str, str]:
        """File name → source, old (0) or new (1)."""
        named = {f"{self.name}{self.suffix}": self.source, **self.more}
        return {name: _CHOICE.sub(lambda m: m.group(1 + side), text) for name, text in named.items()}


@dataclass(frozen=True, slots=True)
class Program:
    """How the cases of a program are linked: flags for all, and the linkers of the compilers if not the usual."""

    link_flags: tuple[str, ...] = ()
    compile_flags: tuple[str, ...] = ()
    linker: Mapping[str, str] = field(default_factory=dict)


PROGRAMS: Mapping[str, Program] = {
    "c": Program(),
    "cxx": Program(link_flags=("-Wl,--no-as-needed", "-lstdc++")),
    "throws": Program(link_flags=("-Wl,--no-as-needed", "-lstdc++")),
    "icf": Program(link_flags=("-Wl,--icf=all",), linker={"gcc": "gold", "clang": "lld"}),
    "startup": Program(),
    "version": Program(),
    "data": Program(),
    "data_cxx": Program(link_flags=("-Wl,--no-as-needed", "-lstdc++")),
    "watched": Program(),
    "watched_cxx": Program(link_flags=("-Wl,--no-as-needed", "-lstdc++")),
    "imports": Program(),  # apart: what any case imports, all would find imported before
}

WORKS, REFUSED = "works", "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case in a variant: it works, or is refused with codes.  Anything else fails the test."""

    state: str
    codes: tuple[str, ...] = ()
