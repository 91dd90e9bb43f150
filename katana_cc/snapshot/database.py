"""The index of a store while it is open: one SQLite database, whose failures are told in plain words.

WAL mode and a busy timeout make it safe for several links at once; a transaction is written whole or not at all.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from katana_cc.errors import StoreError
from katana_cc.snapshot.index import SCHEMA_VERSION, connect, create_tables, problems
from katana_cc.snapshot.words import plain, remedy_for

_AT_ONCE: Final = 500  # values of a query; SQLite takes 999 in old versions
_OLDER: Final = (
    "Use the Katana that wrote it; or move the folder away, build again from clean sources with this one, and name what"
    " runs with `katana-release NAME`."
)


class Database:
    """The open index of a store.

    Args:
        folder: the `.katana` folder.
        create: make the index when it is missing.

    Raises:
        StoreError: not there, not readable, or written by a later version of Katana.
    """

    def __init__(self, folder: Path, *, create: bool) -> None:
        self._folder = folder
        index = folder / "index.db"
        try:
            if not create and not index.exists():
                raise _nothing_recorded(folder)
            if create:
                folder.mkdir(parents=True, exist_ok=True)
            self._db, version = connect(index, create)
            if version == 0 and create:
                create_tables(self._db)
                version = SCHEMA_VERSION
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            raise StoreError(
                f"the index cannot be opened: {plain(error)}", where=str(index), remedy=remedy_for(error)
            ) from error
        if version == 0:
            raise _nothing_recorded(folder)
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"the store has version {version}, this Katana reads version {SCHEMA_VERSION}",
                where=str(folder),
                remedy=_OLDER if version < SCHEMA_VERSION else "Use the Katana that wrote it, or a later one.",
            )

    def close(self) -> None:
        """Close it.  Whoever is the last to do so empties SQLite's log into it, which else stays beside it."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction; rolled back when the body raises.

        Raises:
            StoreError: the index cannot be written.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite ends it by itself when the disk is full
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(
                f"the index cannot be written: {plain(error)}", where=str(self._folder), remedy=remedy_for(error)
            ) from error

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What a query finds.

        Raises:
            StoreError: the index cannot be read.
        """
        try:
            return self._db.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise StoreError(
                f"the index cannot be read: {plain(error)}", where=str(self._folder), remedy=remedy_for(error)
            ) from error

    def rows_of(self, query: str, values: list[str]) -> Iterator[tuple[Any, ...]]:
        """What a query finds of any number of values, some at a time; its `{}` stands for them.

        Raises:
            StoreError: the index cannot be read.
        """
        for at in range(0, len(values), _AT_ONCE):
            part = values[at : at + _AT_ONCE]
            yield from self.rows(query.format(",".join("?" * len(part))), *part)

    def shrink(self, part: int) -> None:
        """Give back what is free in the index, if that is one part in `part` of it.

        Raises:
            sqlite3.Error: it could not be done; the index is as it was.
        """
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        if self._db.execute("PRAGMA freelist_count").fetchone()[0] * part > pages:
            self._db.execute("VACUUM")

    def problems(self) -> list[str]:
        """What SQLite finds wrong with the index; empty when it is whole."""
        found: list[str] = []
        try:
            found.extend(problems(self._db))
        except (sqlite3.Error, UnicodeDecodeError) as error:
            found.append(plain(error))
        return found


def _nothing_recorded(folder: Path) -> StoreError:
    return StoreError(
        "nothing is recorded here yet",
        where=str(folder),
        remedy="Build with `CC=katana-cc make`, then name what runs with `katana-release NAME`.",
    )
