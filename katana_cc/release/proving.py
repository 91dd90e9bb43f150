"""The proofs at work: what a patch object leaves unaccounted for is a refusal, and `katana check` compares it anew."""

from __future__ import annotations

from katana_cc.diff.engine import Changes, Diff
from katana_cc.diff.reasons import REFUSED, Code, by_weight
from katana_cc.errors import FormatError, KatanaError
from katana_cc.patch.model import PatchObject, Reason, Verdict
from katana_cc.proof.completeness import unaccounted
from katana_cc.proof.equivalence import inequivalent
from katana_cc.proof.model import Finding
from katana_cc.snapshot.model import Snapshot
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.store import Store

_SHOWN = 20  # findings; more say nothing that these do not
_WHAT_TO_DO = "this is a bug of Katana: please report it, and restart the program instead"


def prove(diff: Diff, changes: Changes, patch: PatchObject) -> PatchObject:
    """The patch object, or a refusal that names what it does not account for.

    What is refused already needs no proof: it changes nothing.
    """
    if patch.verdict is Verdict.REFUSED:
        return patch
    try:
        findings = unaccounted(diff.old, diff.new, diff.view, diff.debug, patch)
    except FormatError as error:
        findings = [Finding(patch.identity.output, f"it cannot be proved complete: {error.what} ({error.where})")]
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


def check_equivalence(patch: PatchObject) -> tuple[list[str], str]:
    """Compare a patch object with the builds of the store at hand: (what is wrong, why it was not checked or "")."""
    if patch.verdict is Verdict.REFUSED:
        return [], "a refused patch carries nothing"
    try:
        store = Store(find_store())
        builds = [
            _build(store, patch.identity.output, b) for b in (patch.identity.from_build_id, patch.identity.to_build_id)
        ]
    except KatanaError as error:
        return [], error.what
    old, new = builds
    if old is None or new is None:
        missing = patch.identity.from_build_id if old is None else patch.identity.to_build_id
        return [], f"the store {store.folder} does not hold build {missing[:12]} of {patch.identity.output}"
    diff = Diff(store, old, new)  # its readers; no diff is made
    try:
        return [
            f"{f.subject}: {f.text}" for f in inequivalent(diff.old, diff.new, diff.view, diff.debug.scopes, patch)
        ], ""
    except FormatError as error:
        return [f"it cannot be compared with the new build: {error.what} ({error.where})"], ""
    except KatanaError as error:
        return [], error.what


def _build(store: Store, output: str, build_id: str) -> Snapshot | None:
    rows = store.snapshot_rows(output)
    found = next((r.id for r in rows if r.build_id == build_id), None)
    return None if found is None else store.snapshot(found)
