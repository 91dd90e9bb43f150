"""What a patch object needs before it may be applied, and which option of `katana apply` grants it.

A reason of severity "needs" is a need: something that is not wrong, but that somebody has to decide.  Its code says
which option grants it, its subject what the option has to name.  A need is met by exactly that grant and by nothing
else; a code that is not in the table (of a later Katana) is never met.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from enum import StrEnum
from typing import Final, NamedTuple

from katana_cc.diff.reasons import NEEDS, Code
from katana_cc.patch.model import PatchObject, Reason


class Option(StrEnum):
    """Options of `katana apply` that grant something."""

    ALLOW_ACTIVE = "--allow-active"
    TAKE_INITIALISER = "--take-initialiser"
    FOLLOW = "--follow"
    ONLY_STATIC = "--only-static"
    NOT_IMPORTED = "--not-imported"
    ONLY_REACHED = "--only-reached"


class Grant(NamedTuple):
    """One use of such an option: `--allow-active main`."""

    option: Option
    value: str

    def __str__(self) -> str:
        return f"{self.option} {shlex.quote(self.value)}"


GRANTED_BY: Final[dict[str, Option]] = {
    Code.MAIN_ACTIVE: Option.ALLOW_ACTIVE,
    Code.STORAGE_LOST: Option.TAKE_INITIALISER,
    Code.STORAGE_UNKNOWN: Option.TAKE_INITIALISER,
    Code.TYPE_ELSEWHERE: Option.ONLY_STATIC,
    Code.POINTER_OPAQUE: Option.FOLLOW,
    Code.DATA_EXPORTED: Option.NOT_IMPORTED,
    Code.TYPE_EXPORTED: Option.NOT_IMPORTED,
    Code.TYPE_HIDDEN: Option.ONLY_REACHED,
}


class Need(NamedTuple):
    """One need.  `grant` is None where this version knows no option for it."""

    reason: Reason
    grant: Grant | None


def needs_of(po: PatchObject) -> tuple[Need, ...]:
    """All needs of a patch object, in the order of its reasons."""
    return tuple(Need(r, grant_for(r)) for r in po.reasons if r.severity == NEEDS)


def grant_for(reason: Reason) -> Grant | None:
    """What meets a reason that is a need."""
    option = GRANTED_BY.get(reason.code)
    return Grant(option, reason.subject) if option and reason.severity == NEEDS else None


def initialisers_of(po: PatchObject) -> frozenset[str]:
    """What `--take-initialiser` may name: variables with a new initial value, and those that a need is about."""
    asked = {n.grant.value for n in needs_of(po) if n.grant and n.grant.option is Option.TAKE_INITIALISER}
    return frozenset(asked | {e.name for e in po.data_edits if e.is_initialiser})


def unmet(po: PatchObject, granted: Collection[Grant]) -> tuple[Need, ...]:
    """The needs that `granted` does not meet."""
    return tuple(n for n in needs_of(po) if n.grant is None or n.grant not in granted)
