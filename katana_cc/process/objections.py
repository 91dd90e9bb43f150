"""What speaks against moving variables as they are, in words: values that would be lost, pointers that would lead
nowhere, words that nothing explains.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from katana_cc.errors import RefusedError
from katana_cc.patch.needs import Grant, Option
from katana_cc.process.carry import NOWHERE, Cargo, Carry, Stray
from katana_cc.process.ledger import Ledger
from katana_cc.process.moves import DISCARD
from katana_cc.process.objects import Cargo as Objects
from katana_cc.process.unreached import Unreached

_LISTED = 20  # words that an error lists


class StrayWordsError(RefusedError):
    """Words lead into variables that move, and nothing says what they are.  `is_passing`: only registers and stacks
    hold them, so that a later moment may be better."""

    is_passing = False


class HeapError(RefusedError):
    """Objects on the heap cannot all be found, as of this moment: a thread may be about to change what stands in the
    way."""


def judge(carry: Carry, cargo: Cargo) -> None:
    """Whether the variables may be moved as they are.

    Raises:
        RefusedError: a value would be lost, or a pointer would lead nowhere.
        HeapError: objects on the heap that cannot be found.
        StrayWordsError: words that nothing explains.
    """
    if cargo.lost:
        options = " ".join(f"{DISCARD} {shlex.quote(name)}" for name in cargo.discardable)
        remedy = f"if that may be lost, {carry.retry} {options}; or " if options else ""
        raise RefusedError(
            "a value would be lost, and nothing was touched" + _listed(cargo.lost),
            where=carry.where,
            remedy=f"{remedy}change the value by the program's own means, or restart it",
        )
    if cargo.broken:
        raise RefusedError(
            "pointers lead into variables that move, and nothing was touched" + _listed(cargo.broken),
            where=carry.where,
            remedy="restart the process with the new build",
        )
    if cargo.heap is not None:
        _judge_heap(carry, cargo.heap)
    if cargo.strays:
        raise _stray_error(carry, cargo.strays)


def _judge_heap(carry: Carry, found: Objects) -> None:
    if problems := found.reached.problems:
        raise HeapError(
            "not all objects on the heap can be found, and nothing was touched" + _listed([p.text for p in problems]),
            where=carry.where,
            remedy="restart the process with the new build" + _denied(carry),
        )
    if found.unreached:
        lines = [_unreached_line(u) for u in found.unreached]
        options = " ".join(str(Grant(Option.ONLY_REACHED, u.kind.name)) for u in found.unreached)
        raise HeapError(
            "blocks on the heap may be objects of a changed type that no pointer by its type leads to, and nothing was "
            "touched" + _listed(lines),
            where=carry.where,
            remedy=f"if they are something else, {carry.retry} {options}",
        )


def _denied(carry: Carry) -> str:
    if not carry.deniable:
        return ""
    options = " ".join(str(Grant(Option.ONLY_STATIC, name)) for name in carry.deniable)
    return f"; if no object of such a type is in this process but in variables, {carry.retry} {options}"


def _unreached_line(u: Unreached) -> str:
    shown = u.likely or u.count
    more = ", ..." if shown > len(u.first) else ""
    size = u.kind.transformation.old_size
    likely = f"{u.likely or 'none'} of {u.count} with pointers where it has some" if u.has_pointers else f"{u.count}"
    return f"{u.kind.name} ({size} bytes): {likely}, at {', '.join(f'{a:#x}' for a in u.first)}{more}"


def _stray_error(carry: Carry, strays: Sequence[Stray]) -> StrayWordsError:
    lines = [stray_line(s) for s in strays]
    number = f"{len(strays)} words lead" if len(strays) > 1 else "a word leads"
    names = dict.fromkeys(s.lead.passage.name for s in strays if s.can_follow)
    options = " ".join(str(Grant(Option.FOLLOW, name)) for name in names)
    if all(s.can_follow for s in strays):
        remedy = f"if every word there that leads into them is a pointer, {carry.retry} {options}"
    else:
        remedy = "restart the process with the new build: not all of them could be followed"
    error = StrayWordsError(
        f"{number} to variables that move, and nothing says what they are; nothing was touched" + _listed(lines),
        where=carry.where,
        remedy=remedy,
    )
    error.is_passing = all(s.is_passing for s in strays)
    return error


def stray_line(stray: Stray) -> str:
    """A word that nothing explains, in one line."""
    if stray.can_follow:
        return f"{stray.place}: {stray.lead}"
    if stray.lead.moved is None:
        return f"{stray.place}: {stray.lead} ({stray.lead.depth}); {NOWHERE}"
    return f"{stray.place}: {stray.lead}; it cannot be rewritten there"


def _listed(lines: Sequence[str]) -> str:
    more = f"\n    and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return "".join(f"\n    {line}" for line in lines[:_LISTED]) + more


def half_moved(where: str, ledger: Ledger) -> RefusedError:
    """What to say of a process in which a katana was killed while it moved variables."""
    names = ", ".join([m.name for m in ledger.moves if not m.stays] + [k.name for k in ledger.kinds if not k.stays])
    return RefusedError(
        f"a katana was killed while it moved {names}: some code uses the old one, some the new one",
        where=where,
        remedy="restart the process; which of both holds what the program wrote last, nothing tells",
    )
