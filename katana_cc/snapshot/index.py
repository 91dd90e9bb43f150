"""The SQLite index of a store: its tables, and the seal of each row.

SQLite finds damage of its own structure, and not a bit that flipped in a value: a time, a path, the name of a release.
So each row ends with a seal, some bytes of the SHA-256 of its table and all its values, and is only written by
`insert`.  Rows that are gone altogether, SQLite does find.
"""

import hashlib
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

SCHEMA_VERSION: Final = 5

_SCHEMA: Final = """
CREATE TABLE snapshots (
  id INTEGER PRIMARY KEY, output TEXT NOT NULL, path TEXT NOT NULL, build_id TEXT NOT NULL,
  manifest TEXT NOT NULL, image TEXT NOT NULL, time REAL NOT NULL, seal INTEGER NOT NULL);
CREATE INDEX snapshots_image ON snapshots (image);
CREATE INDEX snapshots_output ON snapshots (output, id);
CREATE INDEX snapshots_build_id ON snapshots (build_id);
CREATE TABLE releases (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, deployed INTEGER NOT NULL, time REAL NOT NULL,
  seal INTEGER NOT NULL);
CREATE TABLE release_snapshots (
  release INTEGER NOT NULL REFERENCES releases (id), snapshot INTEGER NOT NULL REFERENCES snapshots (id),
  seal INTEGER NOT NULL, PRIMARY KEY (release, snapshot));
CREATE TABLE gaps (
  id INTEGER PRIMARY KEY, output TEXT NOT NULL, path TEXT NOT NULL, reason TEXT NOT NULL, time REAL NOT NULL,
  open INTEGER NOT NULL, seal INTEGER NOT NULL);
CREATE TABLE patches (
  id TEXT PRIMARY KEY, output TEXT NOT NULL, from_snapshot INTEGER NOT NULL REFERENCES snapshots (id),
  to_snapshot INTEGER NOT NULL REFERENCES snapshots (id), from_name TEXT NOT NULL, to_name TEXT NOT NULL,
  verdict TEXT NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL, time REAL NOT NULL, seal INTEGER NOT NULL);
CREATE TABLE objects (ident TEXT NOT NULL, member TEXT NOT NULL, ordinal INTEGER NOT NULL, blob TEXT NOT NULL,
  seal INTEGER NOT NULL, PRIMARY KEY (ident, ordinal));
CREATE TABLE records (blob TEXT PRIMARY KEY, record BLOB NOT NULL, seal INTEGER NOT NULL);
"""
TABLES: Final = ("snapshots", "releases", "release_snapshots", "gaps", "patches", "objects", "records")
_SEAL_SIZE: Final = 6  # bytes; 8 would not fit into SQLite's integers, which have a sign


def connect(index: Path, create: bool) -> tuple[sqlite3.Connection, int]:
    """The index and its version.  WAL mode wants to write beside it: on a read-only medium it is read as it lies.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    try:
        return _opened(sqlite3.connect(index, timeout=60, isolation_level=None))
    except sqlite3.OperationalError:
        if create:
            raise
        return _opened(sqlite3.connect(f"{index.absolute().as_uri()}?immutable=1", uri=True, isolation_level=None))


def _opened(db: sqlite3.Connection) -> tuple[sqlite3.Connection, int]:
    db.execute("PRAGMA foreign_keys = ON")
    # With WAL the index stays consistent; a power failure may take the last links with it, whose blobs are not synced
    # to the disk either.
    db.execute("PRAGMA synchronous = NORMAL")
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return db, version


def create_tables(db: sqlite3.Connection) -> None:
    """Make the tables, unless another process has made them meanwhile."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN IMMEDIATE")
    try:
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def seal(table: str, values: Sequence[Any]) -> int:
    """The seal of a row: of its values as SQLite gives them back."""
    parts = [value if isinstance(value, bytes) else repr(value).encode() for value in values]
    return int.from_bytes(hashlib.sha256(b"\0".join((table.encode(), *parts))).digest()[:_SEAL_SIZE], "little")


def insert(db: sqlite3.Connection, table: str, rows: Iterable[Sequence[Any]], otherwise: str = "ABORT") -> None:
    """Add rows, all their values but the seal.

    Args:
        db: in a transaction.
        table: one of `TABLES`.
        rows: their values in the order of the columns; a REAL as float, else the seal were that of an int.
        otherwise: what to do about one that is there: "ABORT", "IGNORE" or "REPLACE".
    """
    sealed = [(*row, seal(table, row)) for row in rows]
    if sealed:
        marks = ",".join("?" * len(sealed[0]))
        db.executemany(f"INSERT OR {otherwise} INTO {table} VALUES ({marks})", sealed)


def next_id(db: sqlite3.Connection, table: str) -> int:
    """The number of the next row, in a transaction."""
    found: int = db.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()[0]
    return found


def problems(db: sqlite3.Connection) -> Iterator[str]:
    """What is wrong with the index, a clause for each finding.

    Raises:
        sqlite3.Error: it cannot be read on.
    """
    for (text,) in db.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield str(text)
    for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} refers to one of {parent} that is not there"
    for table in TABLES:
        for row in db.execute(f"SELECT * FROM {table}"):
            if seal(table, row[:-1]) != row[-1]:
                yield f"the row {_called(table, row)} of {table} is damaged"


def _called(table: str, row: Sequence[Any]) -> str:
    """What a person knows a row by."""
    shown = {"snapshots": row[:2], "releases": row[:2], "gaps": row[:2], "patches": row[:2]}.get(table, row[:1])
    return " ".join(str(value)[:40] for value in shown)


_LOG_HEAD: Final = struct.Struct(">8I")  # magic, version, size of a page, number, two salts, two sums
_FRAME: Final = struct.Struct(">6I")  # page, size of the database after a commit, two salts, two sums
_LOG_MAGIC: Final = 0x377F0682  # its lowest bit: whether sums are of big-endian words


def log_problems(log: Path) -> Iterator[str]:
    """What is wrong with SQLite's write-ahead log, which ends for SQLite, without a word, where a sum is wrong.

    To be asked before the index is opened: that takes the log in and starts it anew.  A wrong sum is damage where more
    of the same log follows; at its end, a writer was killed there, and what it wrote was not yet the index's.

    Source: "WAL-mode File Format", sqlite.org/walformat.html.
    """
    try:
        data = log.read_bytes()
    except OSError:
        return  # none is there, as a rule; one that cannot be read, the index tells of
    if len(data) < _LOG_HEAD.size:
        return
    magic, _, page, _, salt, other_salt, *sums = _LOG_HEAD.unpack_from(data)
    words = ">" if magic & 1 else "<"
    if magic & ~1 != _LOG_MAGIC or not page or list(_sum(data[:24], words, (0, 0))) != sums:
        yield "the head of its log is damaged: what was recorded last is lost"
        return
    state = (sums[0], sums[1])
    wrong = False
    for number, at in enumerate(range(_LOG_HEAD.size, len(data) - _FRAME.size - page + 1, _FRAME.size + page)):
        frame = _FRAME.unpack_from(data, at)
        is_ours = frame[2:4] == (salt, other_salt)
        if wrong and is_ours:
            yield f"its log is damaged before frame {number}: what was recorded from there on is lost"
            return
        if not wrong:
            body = data[at + _FRAME.size : at + _FRAME.size + page]
            state = _sum(body, words, _sum(data[at : at + 8], words, state))
            wrong = not is_ours or state != frame[4:]


def _sum(data: bytes, order: str, state: tuple[int, int]) -> tuple[int, int]:
    first, second = state
    numbers = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for even, odd in zip(numbers, numbers, strict=True):
        first = first + even + second & 0xFFFFFFFF
        second = second + odd + first & 0xFFFFFFFF
    return first, second
