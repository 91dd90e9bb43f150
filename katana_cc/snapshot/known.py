"""What is known of objects that were read before, so that a link which holds them again need not read them.

Of a staged file the index tells which objects it holds, and of an object its record (`katana_cc.recorder.record`).
Both can be made anew from the files themselves, so one that is damaged is as good as none.
"""

from collections.abc import Iterator
from typing import Any

from katana_cc.snapshot.blobs import compress_row, expand_row
from katana_cc.snapshot.database import Database
from katana_cc.snapshot.index import insert


class KnownObjects:
    """The objects that an index knows.

    Args:
        index: it stays the caller's.
    """

    def __init__(self, index: Database) -> None:
        self._index = index

    def members(self, idents: list[str]) -> dict[str, list[tuple[str, str]]]:
        """Staged file → its (member, blob) pairs in archive order, for those ingested before."""
        result: dict[str, list[tuple[str, str]]] = {}
        query = "SELECT ident, member, blob FROM objects WHERE ident IN ({}) ORDER BY ident, ordinal"
        for ident, member, blob in self._index.rows_of(query, idents):
            result.setdefault(ident, []).append((member, blob))
        return result

    def records(self, blobs: list[str]) -> dict[str, bytes]:
        """Object blob → its record, for those read before."""
        return {blob: data for blob, row in self._rows(blobs) if (data := expand_row(row)) is not None}

    def damaged(self, blobs: list[str]) -> list[str]:
        """Object blobs whose record is damaged."""
        return [blob for blob, row in self._rows(blobs) if expand_row(row) is None]

    def _rows(self, blobs: list[str]) -> Iterator[tuple[Any, ...]]:
        return self._index.rows_of("SELECT blob, record FROM records WHERE blob IN ({})", blobs)

    def remember(self, objects: dict[str, list[tuple[str, str]]], records: dict[str, bytes]) -> None:
        """Keep what `members` and `records` will answer."""
        rows = [(blob, compress_row(record)) for blob, record in records.items()]
        with self._index.transaction() as db:
            members = [(ident, m, i, b) for ident, members in objects.items() for i, (m, b) in enumerate(members)]
            insert(db, "objects", members, "IGNORE")
            insert(db, "records", rows, "REPLACE")
