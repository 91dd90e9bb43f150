"""Why no transformation follows from two layouts: where a person has to decide.  Enumerated, each with its sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ProblemKind(StrEnum):
    """What stands in the way.  Names are append-only: they are shown to people and scripts."""

    POSSIBLE_RENAME = "possible-rename"
    TYPE_CHANGED = "field-type-changed"
    POINTEE_CHANGED = "pointee-changed"
    ENUMERATORS_CHANGED = "enumerators-changed"
    UNION_CHANGED = "union-changed"
    BASES_CHANGED = "bases-changed"
    VIRTUAL_BASE = "virtual-base"
    VTABLE_CHANGED = "vtable-changed"
    FLEXIBLE_ARRAY = "flexible-array"
    NO_LAYOUT = "no-layout"
    NO_VALUE = "no-value"
    NOT_SUPPORTED = "not-supported"


@dataclass(frozen=True, slots=True)
class Problem:
    """One question, or one refusal.  `type` is the aggregate it is in (or the variable), `field` the path of the field
    below the whole; `file` and `line` are in the new source, in the old one for what is gone."""

    kind: ProblemKind
    type: str
    field: str
    text: str
    file: str
    line: int
