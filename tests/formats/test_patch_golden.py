"""Golden bytes: a patch object of every format version that was ever written stays readable, and is still written so.

`patch_v1.hex` was made by the first writer of version 1 from `tests.support.patches.sample()`.  When this test fails,
the format changed: raise FORMAT_VERSION and add a file, never replace one.
"""

from __future__ import annotations

from pathlib import Path

from katana_cc.patch.codec import decode, encode, patch_id
from tests.support.patches import sample

GOLDEN = bytes.fromhex(Path(__file__).with_name("patch_v1.hex").read_text())


def test_version_1_stays_readable() -> None:
    assert decode(GOLDEN, "golden") == sample()


def test_version_1_is_still_written_to_the_byte() -> None:
    assert encode(sample()) == GOLDEN


def test_its_identity_stays_the_same() -> None:
    assert patch_id(GOLDEN) == "4cf112560acf2240680ad499c9132b58"
