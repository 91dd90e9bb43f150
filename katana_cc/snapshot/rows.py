"""What the index of a store says of snapshots, releases, patch objects and gaps: a value for each row."""

from typing import NamedTuple


class Release(NamedTuple):
    """A named set of snapshots."""

    name: str
    deployed: bool
    time: float
    snapshots: tuple[int, ...]


class PatchRow(NamedTuple):
    """One patch object that was made."""

    id: str
    output: str
    from_snapshot: int
    to_snapshot: int
    from_name: str
    to_name: str
    verdict: str
    path: str
    size: int
    time: float


class SnapshotRow(NamedTuple):
    """What the index knows of a snapshot without reading its manifest."""

    id: int
    output: str
    path: str
    build_id: str
    manifest: str
    image: str
    time: float


class Gap(NamedTuple):
    """A link that could not be recorded, and why; open until a later one of the output is recorded."""

    output: str
    path: str
    reason: str
    time: float
    is_open: bool
