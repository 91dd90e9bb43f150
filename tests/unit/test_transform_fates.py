"""What a person is told of each field of a live object."""

from __future__ import annotations

import struct

from katana_cc.dwarf.forms import Encoding
from katana_cc.transform.execute import apply
from katana_cc.transform.fates import Fate, FateKind, fates
from katana_cc.transform.model import Copy, Dropped, Float, Initial, Integer, Pointer, Repeat, Transformation

S, U = Encoding.SIGNED, Encoding.UNSIGNED


def test_what_comes_goes_and_is_converted_is_told_with_values() -> None:
    row = (Integer(0, 64, S, 0, 16, S, "n", "m"), Initial(64, 8, "fresh"), Copy(9, 2, 1, "c", "c"))
    t = Transformation(
        "conn", 64, 96,
        (
            Integer(0, 32, S, 0, 32, S, "fd", "fd"),
            Pointer(8, 8, "char", "name", "name"),
            Float(16, 8, 16, 4, "load", "load"),
            Repeat(2, 24, 16, 20, 4, row, "rows[]", "lines[]"),
            Initial(56 * 8, 160, "room"),
            Initial(80 * 8, 128, "more"),
            Dropped(28 * 8 + 1, 3, "flag"),
            Dropped(32 * 8, 256, "old"),
        ),
    )  # fmt: skip
    live = struct.pack("<iixxxxxxxxfhxxhxxB3x", 5, 0, 0.5, -1, 7, 0b1010).ljust(64, b"\x01")
    initial = bytes(32) + b"\x63" + bytes(23) + bytes(range(20)) + bytes(20)
    made = apply(t, live, initial)
    K = FateKind
    assert list(fates(t, live, made)) == [
        Fate(K.CONVERTED, "load", "0.5", "0.5"),
        Fate(K.CONVERTED, "rows[0].n", "-1", "-1"),
        Fate(K.COMES, "rows[0].fresh", "", "99"),
        Fate(K.CONVERTED, "rows[1].n", "7", "7"),
        Fate(K.COMES, "rows[1].fresh", "", "0"),
        Fate(K.COMES, "room", "", "20 bytes, 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f ..."),
        Fate(K.COMES, "more", "", "16 bytes, all 0"),
        Fate(K.GOES, "flag", "5", ""),
        Fate(K.GOES, "old", "32 bytes, 01 01 01 01 01 01 01 01 01 01 01 01 01 01 01 01 ...", ""),
    ]


def test_a_number_that_does_not_fit_is_told_as_it_would_be() -> None:
    t = Transformation("n", 8, 2, (Integer(0, 16, S, 0, 64, S),))
    live = struct.pack("<q", 70000)
    assert list(fates(t, live, apply(t, live, bytes(2)))) == [Fate(FateKind.CONVERTED, "", "70000", "4464")]
