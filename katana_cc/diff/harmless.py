"""Differences that mean nothing to a running process: line numbers that moved, and the time of the build.

`__LINE__` is the immediate of a `mov` or a `push`: an argument.  When lines are inserted above a function, each such
immediate grows by what its own instruction's line grew, and nothing else changes.  So of every differing field both
values must lie at the line of their instruction, or a few lines after it (a macro call over several lines has the line
of its end), and differ by exactly as much as these lines do.  An instruction may be of several lines: then of each
it is told how far it moved, and a number that merely lies between two of them is none.

`__DATE__`, `__TIME__` and `__TIMESTAMP__` are literals of fixed forms.  What looks like one is taken for one only when
it says about the time of the new link.

Out of scope: immediates in front of which the compiler chose another instruction since the number grew (they change the
size); dates that the optimiser stored as immediates.  Both are carried as changes.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

from katana_cc.cpu.interface import Instructions

Lines = Sequence[tuple[int, int]]  # (offset, line), by offset

_MACRO_LINES: Final = 12  # the longest macro call of which __LINE__ may be the end
_MONTHS: Final = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_DATE: Final = re.compile(rb"\b(" + b"|".join(_MONTHS) + rb") ([ 1-3]\d) (\d{4})\b")
_TIME: Final = re.compile(rb"\b([01]\d|2[0-3]):([0-5]\d):([0-5]\d)\b")
_STAMP: Final = re.compile(
    rb"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) (" + b"|".join(_MONTHS) + rb") ([ 1-3]\d) (\d\d:\d\d:\d\d) (\d{4})\b"
)
_NEAR: Final = 16  # bytes from an argument's constant to the next statement: a few instructions
_COMPILED_BEFORE: Final = 6 * 3600  # seconds that a long build may take from a compilation to its link


def only_lines_differ(old: bytes, new: bytes, old_lines: Lines, new_lines: Lines, code: Instructions) -> bool:
    """Whether every difference of two equally long pieces of code is a line number that moved.

    Args:
        old, new: code with relocated fields zeroed.
        old_lines, new_lines: (offset, line) of the line table rows of each.
        code: their CPU's instructions.
    """
    if len(old) != len(new) or not old_lines or not new_lines:
        return False
    fields = list(code.constants_moved(old))
    if fields != list(code.constants_moved(new)):
        return False
    checked = 0
    for constant in fields:
        if old[checked : constant.start] != new[checked : constant.start]:
            return False
        checked = constant.end
        pair = constant.value(old), constant.value(new)
        if constant.around(old) != constant.around(new):
            return False
        if pair[0] != pair[1] and not _is_line(pair, _moved(old_lines, new_lines, constant.start)):
            return False
    return old[checked:] == new[checked:]


def _is_line(pair: tuple[int, int], moved: Iterable[tuple[int, int]]) -> bool:
    return any(0 <= pair[0] - a <= _MACRO_LINES and pair[1] - b == pair[0] - a for a, b in moved)


def _moved(old_lines: Lines, new_lines: Lines, at: int) -> list[tuple[int, int]]:
    """(line before, line after) of the instruction that holds the byte at `at`, where it moved."""
    before, after = _in_force(old_lines, at), _in_force(new_lines, at)
    return [(a, b) for a, b in zip(before, after, strict=True) if a != b] if len(before) == len(after) else []


def _in_force(lines: Lines, at: int) -> list[int]:
    """The lines of the instruction that holds the byte at `at`: all rows of the last offset not after it, in order.

    Where these say nothing (line 0: clang gives constants none), those of the next offset that does: constants are made
    for the call that follows.
    """
    here = bisect_right(lines, (at, 1 << 62)) - 1
    if here < 0:
        return []
    found = [line for offset, line in lines if offset == lines[here][0] and line]
    for offset, line in lines[here + 1 :]:
        if line and (offset - at <= _NEAR):
            found.append(line)
            break
    return found


def same_but_built_later(old: bytes, new: bytes, linked: float) -> bool:
    """Whether two literals differ only in dates or times of which the new ones say when the new build was.

    `linked` is the time of the new link in seconds since the epoch; compilers write local time.
    """
    if old == new or len(old) != len(new):
        return False
    for pattern, is_now in ((_STAMP, _is_date), (_DATE, _is_date), (_TIME, _is_time)):
        before, after = list(pattern.finditer(old)), list(pattern.finditer(new))
        if [m.span() for m in before] != [m.span() for m in after]:
            return False
        for a, b in zip(before, after, strict=True):
            if a.group() == b.group():
                continue
            if not is_now(b.groups(), linked):
                return False
            start, end = b.span()
            old = old[:start] + bytes(end - start) + old[end:]
            new = new[:start] + bytes(end - start) + new[end:]
    return old == new


def _is_date(parts: tuple[bytes, ...], linked: float) -> bool:
    for ago in (0, _COMPILED_BEFORE):
        now = time.localtime(linked - ago)
        if (_MONTHS[now.tm_mon - 1], int(parts[1]), int(parts[-1])) == (parts[0], now.tm_mday, now.tm_year):
            return True
    return False


def _is_time(parts: tuple[bytes, ...], linked: float) -> bool:
    now = time.localtime(linked)
    seconds = now.tm_hour * 3600 + now.tm_min * 60 + now.tm_sec
    said = int(parts[0]) * 3600 + int(parts[1]) * 60 + int(parts[2])
    return (seconds + 2 - said) % 86400 <= _COMPILED_BEFORE
