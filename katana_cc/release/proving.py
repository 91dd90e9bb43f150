"""The completeness proof as part of making a patch object: what it finds becomes a refusal."""

from __future__ import annotations

from katana_cc.diff.engine import Changes, Diff
from katana_cc.diff.reasons import REFUSED, Code, by_weight
from katana_cc.patch.model import PatchObject, Reason, Verdict
from katana_cc.proof.completeness import unaccounted
from katana_cc.proof.model import Finding

_SHOWN = 20  # findings; more say nothing that these do not
_WHAT_TO_DO = "this is a bug of Katana: please report it, and restart the program instead"


def prove(diff: Diff, changes: Changes, patch: PatchObject) -> PatchObject:
    """The patch object, or a refusal that names what it does not account for.

    What is refused already needs no proof: it changes nothing.
    """
    if patch.verdict is Verdict.REFUSED:
        return patch
    findings = unaccounted(diff.old, diff.new, diff.view, diff.debug.lines, patch)
    if not findings:
        return patch
    changes.reasons += [_reason(diff, f) for f in findings[:_SHOWN]]
    return PatchObject(patch.identity, Verdict.REFUSED, by_weight(dict.fromkeys(changes.reasons)))


def _reason(diff: Diff, finding: Finding) -> Reason:
    program = diff.old if finding.is_old else diff.new
    file, line = "", 0
    if finding.place is not None:
        file, line = diff.debug.declared(program, finding.place)
        file = file or diff.view(program, finding.place.unit).file or program.unit_name(finding.place.unit)
    return Reason(Code.UNACCOUNTED.value, REFUSED, finding.subject, file, line, f"{finding.text}; {_WHAT_TO_DO}")
