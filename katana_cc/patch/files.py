"""Patch objects on disk: the one place that opens them."""

from __future__ import annotations

from pathlib import Path

from katana_cc.errors import InvalidPatchError
from katana_cc.patch.codec import decode
from katana_cc.patch.model import PatchObject


def is_file(word: str) -> bool:
    """Whether a word on the command line is the path of a file; a name that no file can have is none."""
    try:
        return Path(word).is_file()
    except OSError:
        return False


def is_folder(word: str) -> bool:
    """The same of a folder."""
    try:
        return Path(word).is_dir()
    except (OSError, ValueError):
        return False


def read_patch(path: str | Path) -> tuple[bytes, PatchObject]:
    """The bytes of a patch object and what they hold.

    Raises:
        InvalidPatchError: it cannot be read, or is no valid patch object (see `codec.decode`).
    """
    data = contents(path)
    return data, decode(data, str(path))


def contents(path: str | Path) -> bytes:
    """The bytes of a file that is to be a patch object.

    Raises:
        InvalidPatchError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except ValueError:  # a NUL in it
        raise InvalidPatchError("no file can have that name", where=repr(path)) from None
    except OSError as error:
        remedy = "`katana patches` lists the patch objects made, with their paths"
        raise InvalidPatchError(f"cannot be read: {error.strerror}", where=str(path), remedy=remedy) from error
