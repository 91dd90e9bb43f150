"""The reasons a diff can give: an enumerated code each, with its severity.  Text, JSON and HTML render the same ones.

Codes are part of the patch object's format and of scripts: they are only ever added.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from katana_cc.patch.model import Basis, Reason, Verdict

INFO, NEEDS, REFUSED = "info", "needs", "refused"


class Code(StrEnum):
    """What can be said of one changed thing."""

    # Carried.
    FUNCTION_CHANGED = "function-changed"
    FUNCTION_NEW = "function-new"
    FUNCTION_MOVED = "function-moved"
    CALLEE_MOVED = "uses-new-constant"
    CODE_RETARGETED = "code-retargeted"
    DATA_NEW = "data-new"
    DATA_TRANSFORMED = "data-transformed"
    TYPE_CARRIED = "type-carried-over"
    TABLE_TAKEN_OVER = "table-taken-over"
    TYPE_WALKED = "type-walked"
    CONSTANT_CHANGED = "constant-changed"
    CONSTANT_RECREATED = "constant-recreated"
    IMPORT_NEW = "import-new"
    INLINED_CHANGED = "inlined-function-changed"
    CALLEE_REDIRECTED = "caller-redirected"
    HOOK = "hook"
    # Left out, and why that is right.
    FUNCTION_REMOVED = "function-removed"
    POINTER_TAKEN_OVER = "pointer-rewritten"
    DATA_REMOVED = "data-removed"
    LINES_ONLY = "line-numbers-only"
    BUILD_TIME = "build-time-only"
    HOOK_LEFT_OUT = "hook-left-out"
    INITIALISER_KEPT = "initialiser-kept"
    INITIALISER_TAKEN = "initialiser-taken"
    ENUMERATOR_ADDED = "enumerator-added"
    COMPILED_OTHERWISE = "compiled-otherwise"
    COMPOSED = "composed"
    NOT_RECORDED_WHOLE = "object-not-recorded-whole"
    # Needs a decision: `patch/needs.py` names the option that grants each.
    MAIN_ACTIVE = "function-always-active"
    STORAGE_LOST = "data-storage-lost"
    STORAGE_UNKNOWN = "data-storage-unknown"
    TYPE_ELSEWHERE = "type-changed-elsewhere"
    POINTER_OPAQUE = "pointer-opaque"
    DATA_EXPORTED = "data-exported"
    TYPE_EXPORTED = "type-exported"
    TYPE_HIDDEN = "type-reached-otherwise"
    # Refused.
    FUNCTION_TOO_SMALL = "function-too-small"
    FUNCTION_FOLDED = "function-folded"
    CODE_SHARED_SECTION = "code-in-shared-section"
    NOT_PLACED = "place-not-confirmed"
    BYTES_UNEXPECTED = "bytes-unexpected"
    DATA_RESIZED = "data-resized"
    DATA_POINTERS_CHANGED = "data-pointers-changed"
    DATA_AMBIGUOUS = "data-ambiguous"
    DATA_REARRANGED = "data-rearranged"
    DATA_KIND_CHANGED = "data-kind-changed"
    CONSTANT_SHARED = "constant-resized-but-shared"
    THREAD_LOCAL = "thread-local-changed"
    TYPE_CHANGED = "type-changed"
    VARIABLE_TYPE_CHANGED = "variable-type-changed"
    STARTUP_CHANGED = "startup-code-changed"
    NAME_REBOUND = "name-means-another"
    IFUNC = "ifunc-resolver-changed"
    LINK_OPTIONS = "link-options-changed"
    SECTION_CHANGED = "section-changed"
    EXCEPTIONS = "exception-tables"
    IMPORT_DIRECT = "import-not-reachable"
    LIBRARY_NEW = "library-new"
    RELOCATION = "relocation-not-supported"
    TEXT_RELOCATIONS = "text-relocations"
    MACHINE_CHANGED = "machine-or-type-changed"
    DEBUG_INFORMATION = "debug-information-missing"
    ACTIVE_RELIES = "active-code-relies-on-old"
    REMOVED_RELIES = "removed-code-relies-on-old"
    UNACCOUNTED = "unaccounted"
    STORAGE_RESTYLED = "data-storage-restyled"
    HOOK_UNUSABLE = "hook-unusable"
    RESTARTABLE = "restartable-sequence"


# What a reader looks for first, comes first; codes of a later version go last.  Of the other severities all are alike.
_ORDER: Final = (
    Code.COMPOSED,
    Code.COMPILED_OTHERWISE,
    Code.HOOK,
    Code.FUNCTION_CHANGED,
    Code.FUNCTION_NEW,
    Code.FUNCTION_MOVED,
    Code.CALLEE_MOVED,
    Code.IMPORT_NEW,
    Code.CODE_RETARGETED,
    Code.DATA_TRANSFORMED,
    Code.TABLE_TAKEN_OVER,
    Code.TYPE_CARRIED,
    Code.TYPE_WALKED,
    Code.DATA_NEW,
    Code.CONSTANT_CHANGED,
    Code.CONSTANT_RECREATED,
    Code.POINTER_TAKEN_OVER,
    Code.INITIALISER_TAKEN,
    Code.INITIALISER_KEPT,
    Code.ENUMERATOR_ADDED,
    Code.FUNCTION_REMOVED,
    Code.DATA_REMOVED,
    Code.LINES_ONLY,
    Code.BUILD_TIME,
    Code.HOOK_LEFT_OUT,
)
_WEIGHTS: Final = {code.value: number for number, code in enumerate(_ORDER)}
SEVERITIES: Final = (REFUSED, NEEDS, INFO)  # gravest first


def by_weight(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """The gravest first; of one kind in the order given."""

    def weight(reason: Reason) -> tuple[int, str, int]:
        known = reason.severity in SEVERITIES
        grave = SEVERITIES.index(reason.severity) if known else len(SEVERITIES)
        kind = _WEIGHTS.get(reason.code, len(_ORDER)) if reason.severity == INFO else 0
        return grave, "" if known else reason.severity, kind

    return tuple(sorted(reasons, key=weight))


_WHY: Final = {
    Basis.BODY_SEEN: "which is replaced too: the compiler saw both at once, so the old code may rely on what the old "
    "callee did with registers, memory and arguments",
    Basis.PROTOTYPE: "which is replaced too, and whose parameters or result are of another type now",
}
_MOVED: Final = "which is made anew elsewhere, so that it would read and write an object that nobody else uses"

_TWO_STEPS: Final = (
    "is two builds old: the first of the two patches that this one was put together from replaces it, and no build "
    "tells what it relies on of what the second one changes"
)
_CHANGED: Final = "which is laid out otherwise, so that it would misread those that are made anew"


def relies(callee: str, basis: Basis, through: str) -> str:
    """What relying on `callee` means, to follow the name of the caller."""
    if basis is Basis.DATA_MOVED:
        return f"uses {through}, {_MOVED}"
    if basis is Basis.TYPE_CHANGED:
        return f"may use objects of {through}, {_CHANGED}"
    if basis is Basis.TWO_STEPS:
        return _TWO_STEPS
    return f"calls {callee}{f' (through {through})' if through else ''}, {_WHY[basis]}"


def verdict_of(reasons: Iterable[Reason]) -> Verdict:
    """The verdict that follows from all reasons."""
    severities = {r.severity for r in reasons}
    if REFUSED in severities:
        return Verdict.REFUSED
    return Verdict.NEEDS if NEEDS in severities else Verdict.SAFE
