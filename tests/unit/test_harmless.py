"""Line numbers that moved and times of builds: told apart from changes that only look like them."""

from __future__ import annotations

import time
from functools import partial

import pytest

from katana_cc.cpu.x86_64 import code
from katana_cc.diff import harmless
from katana_cc.diff.harmless import same_but_built_later

only_lines_differ = partial(harmless.only_lines_differ, code=code)
CODE = bytes.fromhex("55 ba {} e8 00000000 c3".replace("{}", "64000000"))  # push; mov $100,%edx; call; ret
LINES = [(0, 90), (1, 100), (6, 100), (11, 101)]


def with_line(value: int) -> bytes:
    """The code with another immediate."""
    return CODE[:2] + value.to_bytes(4, "little") + CODE[6:]


def moved(by: int) -> list[tuple[int, int]]:
    """The line table after `by` lines were inserted above."""
    return [(offset, line + by) for offset, line in LINES]


def test_immediate_that_moved_with_its_line() -> None:
    assert only_lines_differ(CODE, with_line(103), LINES, moved(3))


def test_line_of_the_end_of_a_macro_call() -> None:
    assert only_lines_differ(with_line(102), with_line(105), LINES, moved(3))


def test_line_that_carries_into_the_next_byte() -> None:
    lines = [(0, 250), (1, 255)]
    later = [(0, 251), (1, 256)]
    assert only_lines_differ(with_line(255), with_line(256), lines, later)


@pytest.mark.parametrize("value", [101, 102, 104, 99])
def test_immediate_that_moved_by_another_distance(value: int) -> None:
    assert not only_lines_differ(CODE, with_line(value), LINES, moved(3))


def test_immediate_far_from_its_line_is_no_line() -> None:
    assert not only_lines_differ(with_line(7), with_line(10), LINES, moved(3))


def test_immediate_before_its_line_is_no_line() -> None:
    assert not only_lines_differ(with_line(88), with_line(91), LINES, moved(3))


def test_nothing_moved_so_it_is_a_change() -> None:
    assert not only_lines_differ(CODE, with_line(101), LINES, LINES)


def test_another_opcode_is_a_change() -> None:
    assert not only_lines_differ(CODE, CODE[:-1] + b"\xcc", LINES, moved(1))


def test_without_line_tables_all_is_a_change() -> None:
    assert not only_lines_differ(CODE, with_line(101), [], [])


def test_number_between_two_lines_of_its_instruction() -> None:
    """No line moved: several statements are one instruction, and a byte of its constant is near one of their lines."""
    rows = [(0, 19), (0, 22), (0, 23), (6, 24)]
    code = bytes.fromhex("bf 22040000 c3"), bytes.fromhex("bf 23040000 c3")  # mov $1058,%edi; ret
    assert not only_lines_differ(*code, rows, rows)
    assert not only_lines_differ(b"\xbf\x16" + code[0][2:], b"\xbf\x17" + code[1][2:], rows, rows)


def test_low_byte_of_a_number_is_no_line() -> None:
    rows, later = [(0, 30)], [(0, 31)]
    assert not only_lines_differ(bytes.fromhex("bf 22040000 c3"), bytes.fromhex("bf 23040000 c3"), rows, later)
    assert not only_lines_differ(
        bytes.fromhex("83 c7 22 c3"), bytes.fromhex("83 c7 23 c3"), rows, later
    )  # add $34,%edi


NOW = time.mktime((2026, 11, 23, 12, 0, 0, 0, 0, -1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"built Nov 20 2026", b"built Nov 23 2026"),
        (b"at 01:02:03\0", b"at 11:59:58\0"),
        (b"Jan  2 2020 01:02:03", b"Nov 23 2026 11:00:00"),
        (b"Mon Jan  2 01:02:03 2020", b"Mon Nov 23 11:30:00 2026"),
    ],
)
def test_time_of_the_build(old: bytes, new: bytes) -> None:
    assert same_but_built_later(old, new, NOW)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"valid until Nov 20 2026", b"valid until Nov 23 2031"),
        (b"at 01:02:03", b"at 23:59:58"),
        (b"a Nov 20 2026", b"b Nov 23 2026"),
        (b"Nov 20 2026", b"Nov 23 2026 "),
        (b"same", b"same"),
        (b"one", b"two"),
    ],
)
def test_what_is_no_time_of_the_build(old: bytes, new: bytes) -> None:
    assert not same_but_built_later(old, new, NOW)
