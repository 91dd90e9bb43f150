"""What a process has mapped is counted rightly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.live.handmade import build
from tests.live.server import katana_json, serving

SMALL = r"""
#include <unistd.h>
int main(void) { char c; if (write(1, "ready\n", 6) != 6) return 1; return (int)read(0, &c, 1); }
"""


@pytest.mark.skipif(not shutil.which("ld.lld"), reason="ld.lld is not installed")
def test_segments_that_share_a_page_of_the_file_are_one_module(tmp_path: Path) -> None:
    """A bug: a small program of lld, whose first page is mapped for each segment, counts as loaded several times."""
    built = build(tmp_path, "small", SMALL, link=("-fuse-ld=lld", "-pie"), flags=("-O2", "-fPIE"))
    with serving(built.output) as server:
        maps = [line.split() for line in Path(f"/proc/{server.pid}/maps").read_text().splitlines()]
        starts = [m for m in maps if m[-1] == str(built.output) and int(m[2], 16) == 0]
        assert len(starts) > 1, "the case is not what it claims to be"
        modules = katana_json("status", "--pid", server.pid)["processes"][0]["modules"]
        assert [m["path"] for m in modules].count(str(built.output)) == 1
