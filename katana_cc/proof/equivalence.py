"""The equivalence check by itself: a patch object against the build it leads to (theory in `walk.py`)."""

from __future__ import annotations

from collections.abc import Callable

from katana_cc.diff.program import Program
from katana_cc.diff.view import ObjectView
from katana_cc.patch.model import PatchObject
from katana_cc.proof.carried import CarriedSections
from katana_cc.proof.image import Image
from katana_cc.proof.judge import Judge, Scopes
from katana_cc.proof.model import Finding
from katana_cc.proof.pairing import Pairing
from katana_cc.proof.walk import walk


def inequivalent(
    old: Program, new: Program, view: Callable[[Program, int], ObjectView], scopes: Scopes, patch: PatchObject
) -> list[Finding]:
    """Where what a patch object carries is not, once relocated, what the new build has.

    Args:
        old, new: the outputs it leads from and to.
        view: gives the view of a unit's object.
        scopes: what debug information says of a unit's variables.
        patch: a patch object.
    """
    before, after = Image(old, view), Image(new, view)
    judge = Judge(before, after, Pairing(before, after), CarriedSections(patch, before), scopes)
    found = walk(judge)
    return list(dict.fromkeys(found))
