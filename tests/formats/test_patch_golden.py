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


def test_version_8_stays_readable() -> None:
    assert decode(golden(8), "golden") == sample()


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6, 7])
def test_earlier_versions_are_refused_by_their_number(version: int) -> None:
    """The first does not say what old code relies on; of all, patches can be made again."""
    with pytest.raises(InvalidPatchError, match=f"format version {version}; this katana reads version 8"):
        decode(golden(version), "golden")


def test_version_8_is_still_written_to_the_byte() -> None:
    assert encode(sample()) == golden(8)


def test_its_identity_stays_the_same() -> None:
    assert patch_id(golden(8)) == "0cddeb8bf4e1b2513fa8c15967afd4bd"
