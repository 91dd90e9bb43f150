"""Patch objects on disk: the one place that opens them."""

from __future__ import annotations

from pathlib import Path

from katana_cc.errors import InvalidPatchError
from katana_cc.patch.codec import decode
from katana_cc.patch.model import PatchObject


def read_patch(path: str | Path) -> tuple[bytes, PatchObject]:
    """The bytes of a patch object and what they hold.

    Raises:
        InvalidPatchError: it cannot be read, or is no valid patch object (see `codec.decode`).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        remedy = "`katana patches` lists the patch objects made, with their paths"
        raise InvalidPatchError(f"cannot be read: {error.strerror}", where=str(path), remedy=remedy) from error
    return data, decode(data, str(path))
