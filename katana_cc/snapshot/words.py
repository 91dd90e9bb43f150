"""What goes wrong with files and the index, in words a person can act on."""

from __future__ import annotations

import errno
import os
import sqlite3
from typing import Final

_SQLITE: Final = {
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened (is the folder there, and may it be written to?)",
    sqlite3.SQLITE_READONLY: "it may not be written to, or lies on a read-only medium",
    sqlite3.SQLITE_PERM: "it may not be read and written",
    sqlite3.SQLITE_AUTH: "it may not be read and written",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_BUSY: "another katana has been writing to it for a minute",
    sqlite3.SQLITE_LOCKED: "another katana has been writing to it for a minute",
    sqlite3.SQLITE_IOERR: "the disk reports an error, or is full",
    sqlite3.SQLITE_CORRUPT: "it is damaged",
    sqlite3.SQLITE_NOTADB: "it is no index of a Katana store, or damaged",
}
_ERRNO: Final = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "it lies on a read-only medium",
    errno.ENOENT: "it is not there",
    errno.ENOTDIR: "a folder on the way to it is a file",
    errno.EISDIR: "it is a folder",
}


def plain(error: OSError | sqlite3.Error | UnicodeDecodeError) -> str:
    """An error of the system or of SQLite as a clause; SQLite's own words of a damaged index may be no text."""
    if isinstance(error, UnicodeDecodeError):
        return "it is damaged"
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return _SQLITE.get(code & 0xFF, str(error)) if isinstance(code, int) else str(error)
    number = error.errno
    return _ERRNO.get(number, os.strerror(number).lower()) if number is not None else str(error)


def remedy_for(error: OSError | sqlite3.Error | UnicodeDecodeError) -> str:
    """What to do next about it."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    if isinstance(error, UnicodeDecodeError) or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return "Run `katana check`; put back a copy of the store, or remove it, build again and name the release."
    return "Free space, check the permissions of the store, or set KATANA_DIR to another folder."
