"""Code on stacks that no thread runs on: coroutines that are switched out.

Nothing tells where such a stack is, or that a word in it is a return address: it looks as one that a function long
returned has left behind, on a stack of a thread that has ended, for one.  So the stop does not look for them, and only
what can be told is told beforehand: that the program switches stacks by itself, as far as it imports what does that,
and which words outside the stacks of threads lead back into replaced functions.

A coroutine that goes on in the old code of a replaced function meets what a caller does that `--allow-active` allows:
its code is still there but for the first bytes, which it has left behind; what it calls is new.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from katana_cc.errors import KatanaError
from katana_cc.process.activity import Guard
from katana_cc.process.dynamic import DynamicModule
from katana_cc.process.memory import BulkReader
from katana_cc.process.stacks import Search
from katana_cc.process.target import Target
from katana_cc.process.threads import list_threads, waiting_at

# glibc, Boost.Context, libcoro, libco, Pth.
_SWITCHERS: Final = frozenset(
    ("swapcontext", "makecontext", "setcontext", "make_fcontext", "jump_fcontext", "ontop_fcontext", "coro_transfer",
     "co_switch", "pth_uctx_switch")
)  # fmt: skip
# With both, a stack is made by a signal handler that never returns, and left by longjmp.
_BY_SIGNAL: Final = "sigaltstack"
_JUMPS: Final = frozenset(("longjmp", "_longjmp", "siglongjmp", "__longjmp_chk"))
_PIECE: Final = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Suspended:
    """A replaced function into which `words` lead back, the first of them at `address`."""

    function: str
    words: int
    address: int


def switchers(target: Target) -> tuple[str, ...]:
    """The functions by which a program switches stacks, as far as it imports them."""
    names: set[str] = set()
    for module in target.modules:
        with contextlib.suppress(KatanaError):
            names.update(DynamicModule(target.memory, module).named_relocations)
    found = names & _SWITCHERS
    if _BY_SIGNAL in names and names & _JUMPS:
        found |= {_BY_SIGNAL, *(names & _JUMPS)}
    return tuple(sorted(found))


def suspended(
    target: Target, guards: Sequence[Guard], guard_of_return: Callable[[int], Guard | None]
) -> tuple[Suspended, ...]:
    """What leads back into guarded functions from writable memory that is no stack of a thread; the process runs on.

    Raises:
        OSError: it is gone.
    """
    regions = target.read_map()
    places = [place for tid in list_threads(target.pid) if (place := waiting_at(target.pid, tid)) is not None]
    own = {r.start for p, _ in places if (r := regions.at(p)) and (r.path == "[stack]" or regions.is_guarded(r))}
    bulk = BulkReader(target.memory, _PIECE)
    search = Search([(g.start, g.size) for g in guards], lambda value: guard_of_return(value) is not None)
    found: dict[str, list[int]] = {}
    for region in regions.regions:
        if "w" not in region.permissions or region.start in own or region.path.startswith(("/dev/", "[stack]")):
            continue
        for start in range(region.start, region.end, _PIECE):
            bulk.read([(start, min(_PIECE, region.end - start))])
            for at, value in search.words(bulk):
                guard = guard_of_return(value)
                if guard is not None and not (start + at) % 8:
                    found.setdefault(guard.name, []).append(start + at)
    return tuple(Suspended(name, len(set(at)), min(at)) for name, at in sorted(found.items()))
