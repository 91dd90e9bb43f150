"""The errors of staging.  Apart from `katana_cc.errors`, which costs more to import than a link may."""

from __future__ import annotations

import os


class StagingError(Exception):
    """The link cannot be recorded, for a reason the user can do something about."""


def in_words(error: OSError) -> str:
    """What the system refused, where, and what to do about it."""
    where = os.fsdecode(error.filename) + ": " if isinstance(error.filename, str | bytes) else ""
    what = error.strerror or str(error)
    return f"{where}{what}; free space, check the permissions of the store, or set KATANA_DIR to another folder"
