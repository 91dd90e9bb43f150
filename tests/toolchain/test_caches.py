"""Compiler caches and farms, in front of katana-cc and behind it: what docs/building.md says of each order."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.installation import Installation, clean_environment
from tests.support.staged import input_names, only_link

FILES = {"main.c": "int g(void);\nint main(void) { return g() - 42; }\n", "g.c": "int g(void) { return 42; }\n"}


@pytest.fixture
def sources(project: Path) -> Path:
    for name, text in FILES.items():
        (project / name).write_text(text)
    return project


def build(katana: Installation, sources: Path, compiler: list[str], **variables: str) -> bytes:
    """Compile both files and link them; what was printed."""
    printed = b""
    for words in (["-c", "main.c"], ["-c", "g.c"], ["main.o", "g.o", "-o", "prog"]):
        done = katana.run(*compiler, *words, cwd=sources, stdin=None, **variables)
        assert done.returncode == 0, done.stderr
        printed += done.stderr
    return printed


def hits(katana: Installation, sources: Path, **variables: str) -> int:
    """How often ccache had the answer."""
    text = katana.run("ccache", "--print-stats", cwd=sources, stdin=None, **variables).stdout.decode()
    return sum(int(n) for n in re.findall(r"^(?:direct|preprocessed)_cache_hit\t(\d+)$", text, re.MULTILINE))


@pytest.mark.parametrize("order", ["katana-cc ccache gcc", "ccache katana-cc", "masquerade"])
def test_ccache_hits_and_the_link_is_recorded_and_patched(
    katana: Installation, sources: Path, tmp_path: Path, order: str
) -> None:
    if shutil.which("ccache") is None:
        pytest.skip("ccache is not installed")
    cache = {"CCACHE_DIR": str(tmp_path / "cache"), "CCACHE_NOHASHDIR": "1"}
    compiler = order.split()
    if order == "masquerade":  # as Debian's /usr/lib/ccache
        folder = tmp_path / "ccache"
        folder.mkdir()
        (folder / "gcc").symlink_to(str(shutil.which("ccache")))
        cache["PATH"] = f"{katana.prefix / 'bin'}:{folder}:{clean_environment()['PATH']}"
        compiler = ["katana-cc", "gcc"]
    assert build(katana, sources, compiler, **cache) == b""
    assert hits(katana, sources, **cache) == 0
    assert build(katana, sources, compiler, **cache) == b""
    assert hits(katana, sources, **cache) == 2
    entry = only_link(sources / ".katana")
    assert input_names(entry) == {"main.o", "g.o"}
    if order == "katana-cc ccache gcc":
        assert entry["compiler"] == shutil.which("gcc")
    assert katana.run("katana-release", "v1", cwd=sources).returncode == 0
    # Objects from the cache are those that were compiled: nothing to patch; then one function.
    assert build(katana, sources, compiler, **cache) == b""
    (sources / "g.c").write_text("int g(void) { return 43; }\n")
    assert b"1 function changed, safe" in build(katana, sources, compiler, **cache)
    assert hits(katana, sources, **cache) == 5


@pytest.mark.rest
@pytest.mark.parametrize("order", ["katana-cc distcc gcc", "katana-cc icecc gcc", "katana-cc ccache distcc gcc"])
def test_a_farm_behind_us_is_sent_the_compiles(katana: Installation, sources: Path, tmp_path: Path, order: str) -> None:
    compiler = order.split()
    for program in compiler[1:]:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    variables = {
        "DISTCC_HOSTS": "localhost", "DISTCC_DIR": str(tmp_path / "distcc"), "CCACHE_DIR": str(tmp_path / "cache"),
    }  # fmt: skip
    build(katana, sources, compiler, **variables)
    assert input_names(only_link(sources / ".katana")) == {"main.o", "g.o"}
    assert katana.run("katana-release", "v1", cwd=sources).returncode == 0
    (sources / "g.c").write_text("int g(void) { return 43; }\n")
    assert b"1 function changed, safe" in build(katana, sources, compiler, **variables)
