"""`katana check PO` against the builds of a store: what only a comparison with the new build can notice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from katana_cc.cli.main import main
from katana_cc.cpu.x86_64.relocations import EXTENTS
from katana_cc.elf import constants as c
from katana_cc.patch import codec
from katana_cc.patch.model import PatchObject, PatchRelocation
from tests.support.project import Variant, project_of

SOURCE = """#include <stdio.h>
static int total = 5, other = 6;
const int table[40] = {1, 2, @};
__attribute__((noinline)) int one(int x) { return x + other++; }
__attribute__((noinline)) int two(int x) { return x * 7 + total++; }
__attribute__((noinline)) static int fresh(int x) { puts("text @"); return x * 10@; }
__attribute__((noinline)) int serve(int x) { return one(x) + two(x) * @ + fresh(x) + table[x & 31] + total++; }
int main(int c, char **v) { return serve(c) + one(c); }
"""


@pytest.fixture(params=[Variant("gcc", "-O2", "pie"), Variant("clang", "-O2", "nopie", "lld")], ids=str)
def patched(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PatchObject:
    """A patch object whose builds are in the store of the current folder."""
    project = project_of(tmp_path, request.param)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KATANA_DIR", raising=False)
    result = project.change({"a.c": SOURCE.replace("@", "3")}, {"a.c": SOURCE.replace("@", "5")})
    assert "serve" in result.replaced
    assert result.edited == ["table"]
    return result.patch


def check(patch: PatchObject, *options: str) -> int:
    """The exit status of `katana check`, for a file that is sealed anew."""
    Path("x.kpo").write_bytes(codec.encode(patch))
    return int(main(["check", "x.kpo", *options]))


def section_of(patch: PatchObject, name: str) -> int:
    """The section that defines a function."""
    return next(y.section for y in patch.symbols if y.name == name and y.section is not None)


def with_section(patch: PatchObject, number: int, **changes: object) -> PatchObject:
    sections = list(patch.sections)
    sections[number] = replace(sections[number], **changes)  # type: ignore[arg-type]
    return replace(patch, sections=tuple(sections))


def test_what_the_diff_made_is_equivalent(patched: PatchObject, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(patched) == 0
    assert "equivalent" in capsys.readouterr().out
    assert check(patched, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["equivalence"] == {"checked": True, "why_not": ""}
    assert told["problems"] == []


def test_byte_of_code_altered(patched: PatchObject, capsys: pytest.CaptureFixture[str]) -> None:
    number = section_of(patched, "serve")
    section = patched.sections[number]
    fields = {r.offset + i for r in section.relocations for i in range(-EXTENTS[r.type].before, 8)}
    at = next(i for i in range(len(section.data)) if i not in fields)
    data = bytearray(section.data)
    data[at] ^= 1
    assert check(with_section(patched, number, data=bytes(data))) == 7
    assert "serve" in capsys.readouterr().out


def test_relocation_leads_elsewhere(patched: PatchObject, capsys: pytest.CaptureFixture[str]) -> None:
    """A call of `two` becomes one of `one`: well-formed, and wrong."""
    number = section_of(patched, "serve")
    names = [y.name.rpartition(":")[2] for y in patched.symbols]

    def retarget(r: PatchRelocation) -> PatchRelocation:
        return replace(r, symbol=names.index("one")) if names[r.symbol] == "two" else r

    relocations = tuple(retarget(r) for r in patched.sections[number].relocations)
    assert relocations != patched.sections[number].relocations
    assert check(with_section(patched, number, relocations=relocations)) == 7
    assert "one" in capsys.readouterr().out


def test_address_of_an_existing_variable_altered(patched: PatchObject, capsys: pytest.CaptureFixture[str]) -> None:
    """`total` would be another variable's live value."""
    by_name = {y.name.rpartition(":")[2]: y for y in patched.symbols}
    shifted = by_name["total"].value + 4
    symbols = tuple(replace(y, value=shifted) if y is by_name["total"] else y for y in patched.symbols)
    assert check(replace(patched, symbols=symbols)) == 7
    assert capsys.readouterr().out


def test_literal_altered(patched: PatchObject, capsys: pytest.CaptureFixture[str]) -> None:
    number = next(n for n, s in enumerate(patched.sections) if s.flags & c.SHF_STRINGS)
    data = patched.sections[number].data.replace(b"text", b"next")
    assert check(with_section(patched, number, data=data)) == 7
    assert capsys.readouterr().out


def test_constant_altered(patched: PatchObject, capsys: pytest.CaptureFixture[str]) -> None:
    number = patched.data_edits[0].replacement
    data = bytearray(patched.sections[number].data)
    data[8] ^= 0x40
    assert check(with_section(patched, number, data=bytes(data))) == 7
    assert "table" in capsys.readouterr().out


def test_frames_altered(patched: PatchObject, capsys: pytest.CaptureFixture[str]) -> None:
    """The last function would be said to be longer than it is."""
    number = next(n for n, s in enumerate(patched.sections) if s.name == ".eh_frame")
    section = patched.sections[number]
    data = bytearray(section.data)
    data[max(r.offset for r in section.relocations) + 4] += 1
    assert check(with_section(patched, number, data=bytes(data))) == 7
    assert "call frame information" in capsys.readouterr().out


def test_replaces_another_function(patched: PatchObject, capsys: pytest.CaptureFixture[str]) -> None:
    """`serve` would be written over `one`."""
    one = next(y for y in patched.symbols if y.name.rpartition(":")[2] == "one")
    replacements = tuple(replace(r, address=one.value) if r.name == "serve" else r for r in patched.replacements)
    assert check(replace(patched, replacements=replacements)) == 7
    assert "serve" in capsys.readouterr().out


def test_without_a_store_it_says_so(patched: PatchObject, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".katana").rename(tmp_path / "away")
    assert check(patched) == 0
    assert "equivalence not checked: no .katana store" in capsys.readouterr().out
    assert check(patched, "--json") == 0
    assert json.loads(capsys.readouterr().out)["equivalence"]["checked"] is False


def test_store_without_the_build_says_so(patched: PatchObject, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = replace(patched, identity=replace(patched.identity, to_build_id="ab" * 20))
    assert check(foreign) == 0
    assert "does not hold build abababababab" in capsys.readouterr().out
