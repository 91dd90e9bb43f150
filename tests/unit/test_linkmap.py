"""Link maps and archives: what is read of them, and that damage is an error of ours."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from katana_cc.diff.options import link_options
from katana_cc.errors import FormatError
from katana_cc.recorder import archive
from katana_cc.recorder.linkmap import Contribution, parse

BFD = b"""
Discarded input sections

 .text.gone     0x0000000000000000       0x10 a.o

Linker script and memory map

LOAD a.o
 .text.main     0x0000000000001060       0xb9 a.o
 .text.a_function_with_a_long_name
                0x0000000000001120       0x1a dir with space/b.o
 .text.member   0x0000000000001140        0x8 libx.a(m.o)
 COMMON         0x0000000000004040        0x4 a.o
 *fill*         0x0000000000001148        0x8
 .text          0x0000000000001148        0x0 a.o
 .debug_info    0x0000000000000000       0x99 a.o
 .debug_info    0x0000000000000099       0x99 libx.a(m.o)
"""
LLD = b"""             VMA              LMA     Size Align Out     In      Symbol
            1840             1840       b9    16 .text
            1840             1840       b9    16         a.o:(.text.main)
            1840             1840       b9     1                 main
            1900             1900        8    16         libx.a(m.o):(.text.member)
            2000             2000        3     1         <internal>:(.rodata)
"""
MOLD = b"""               VMA       Size Align Out     In      Symbol
            0x1840        185    16 .text
            0x1840        185    16         a.o:(.text.main)
            0x1840          0     0                 main
"""
GOLD = BFD.replace(b"Linker script and memory map", b"Memory map")


@pytest.mark.parametrize("text", [BFD, GOLD], ids=["bfd", "gold"])
def test_gnu_maps(text: bytes) -> None:
    assert parse(text) == {
        ("a.o", ""): [Contribution(".text.main", 0x1060, 0xB9), Contribution("COMMON", 0x4040, 4)],
        ("dir with space/b.o", ""): [Contribution(".text.a_function_with_a_long_name", 0x1120, 0x1A)],
        ("libx.a", "m.o"): [Contribution(".text.member", 0x1140, 8)],
    }


def test_lld_map_without_the_linkers_own_parts() -> None:
    assert parse(LLD) == {
        ("a.o", ""): [Contribution(".text.main", 0x1840, 0xB9)],
        ("libx.a", "m.o"): [Contribution(".text.member", 0x1900, 8)],
    }


def test_mold_map_has_decimal_sizes() -> None:
    assert parse(MOLD) == {("a.o", ""): [Contribution(".text.main", 0x1840, 185)]}


@given(st.binary(max_size=300))
def test_anything_else_is_no_map(data: bytes) -> None:
    try:
        parse(data, "x.map")
    except FormatError as error:
        assert error.where == "x.map"


def test_archive_members_as_ar_made_them(tmp_path: Path) -> None:
    names = ["short.o", "a_name_that_is_longer_than_sixteen.o", "odd.o"]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * (i + 1))
    subprocess.run(["ar", "rc", "lib.a", *names], cwd=tmp_path, check=True)
    found = list(archive.members((tmp_path / "lib.a").read_bytes()))
    assert found == [(n, b"x" * (i + 1)) for i, n in enumerate(names)]


def test_thin_archive_names_its_members_only(tmp_path: Path) -> None:
    (tmp_path / "m.o").write_bytes(b"x")
    subprocess.run(["ar", "rcT", "lib.a", "m.o"], cwd=tmp_path, check=True)
    assert list(archive.members((tmp_path / "lib.a").read_bytes())) == [("m.o", None)]


@given(st.binary(max_size=300))
def test_damaged_archive_is_our_error(tail: bytes) -> None:
    try:
        list(archive.members(b"!<arch>\n" + tail))
    except FormatError as error:
        assert error.what


@pytest.mark.parametrize(
    ("words", "wrapped", "icf"),
    [
        (["--wrap=f", "--wrap", "g"], {"f", "g"}, False),
        (["--icf=all"], set(), True),
        (["--icf=none"], set(), False),
        (["-o", "prog", "a.o"], set(), False),
    ],
)
def test_options_that_change_what_names_mean(words: list[str], wrapped: set[str], icf: bool) -> None:
    found = link_options(words)
    assert (set(found.wrapped), found.icf) == (wrapped, icf)
