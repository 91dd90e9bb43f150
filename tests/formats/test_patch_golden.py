"""Golden bytes: the present format version is written so to the byte; older ones are read, or refused by their number.

`patch_vN.hex` was made by the first writer of version N from `tests.support.patches.sample()`.  When this test fails,
the format changed: raise FORMAT_VERSION and add a file, never replace one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.errors import InvalidPatchError
from katana_cc.patch.codec import decode, encode, patch_id
from tests.support.patches import sample


def golden(version: int) -> bytes:
    return bytes.fromhex(Path(__file__).with_name(f"patch_v{version}.hex").read_text())


def test_version_2_stays_readable() -> None:
    assert decode(golden(2), "golden") == sample()


def test_version_1_is_refused_by_its_number() -> None:
    """It does not say what old code relies on, so what may stay active is not known."""
    with pytest.raises(InvalidPatchError, match="format version 1; this katana reads version 2"):
        decode(golden(1), "golden")


def test_version_2_is_still_written_to_the_byte() -> None:
    assert encode(sample()) == golden(2)


def test_its_identity_stays_the_same() -> None:
    assert patch_id(golden(2)) == "9c11af713b3ecd846288460ec872b603"
