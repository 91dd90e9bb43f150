"""A patch object as text, JSON and HTML: the same reasons in each, nothing lost, nothing let through."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from katana_cc.cli.main import main
from katana_cc.patch.codec import encode, patch_id
from katana_cc.patch.model import PatchObject, Reason
from katana_cc.report.explanation import explain, to_text
from katana_cc.report.html import page
from katana_cc.report.patch_json import to_json
from katana_cc.report.patch_text import render
from tests.support.patches import IDENTITY, refused, sample

BOTH = pytest.mark.parametrize("po", [sample(), refused()], ids=["sample", "refused"])
VOID = {"meta", "br"}


class _Page(HTMLParser):
    """Collects the text of a page; fails on tags that do not match."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "href", "onclick"} & {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@BOTH
def test_every_reason_is_in_text_json_and_html(po: PatchObject) -> None:
    data = encode(po)
    shown = (render(po, data), to_text(explain(po, data)), _Page(page(po, data)).text)
    for r in po.reasons:
        for text in shown:
            assert all(part in text for part in (r.code, r.subject, r.text, f"{r.file}:{r.line}"))
    listed = to_json(po, data)["reasons"]
    assert {tuple(sorted(r.items())) for r in listed} == {
        tuple(sorted({"code": r.code, "severity": r.severity, "subject": r.subject, "file": r.file, "line": r.line,
                      "text": r.text}.items())) for r in po.reasons
    }  # fmt: skip


def test_text_names_every_function_datum_section_and_symbol() -> None:
    po = sample()
    text = render(po, encode(po))
    for name in {s.name for s in po.sections} | {y.name for y in po.symbols} | {"banner"}:
        assert name in text
    assert "48 bytes at 0x401200 → 21 bytes; also 8 bytes at 0x401300" in text


def test_text_lists_relocations_with_the_names_of_their_symbols() -> None:
    lines = [" ".join(line.split()) for line in render(sample(), encode(sample())).splitlines()]
    assert "0x5 R_X86_64_PLT32 server.c:log - 0x4" in lines
    assert "0x20 R_X86_64_PC32 .text.parse + 0x0" in lines  # a section symbol is called by its section


def test_text_shows_each_transformed_field() -> None:
    lines = [" ".join(line.split()) for line in render(sample(), encode(sample())).splitlines()]
    start = lines.index("Transformations")
    assert lines[start + 1 : start + 11] == [
        "variable fresh: 4 bytes at 0x404080 → 8 bytes",
        "value at 0 ← value at 0 signed, 32 bits → signed, 64 bits",
        "struct conn: 40 bytes wherever pointers lead to it → 72 bytes",
        "flags at 0 ← flags at 0 bit 3 unsigned, 5 bits",
        "deadline at 8 ← its initial value 8 bytes",
        "next at 16 ← next at 8 pointer to struct conn",
        "at[] at 24 ← at[] at 16 3 elements, 8 → 16 bytes each",
        "x at 0 ← x at 0 4 bytes",
        "y at 8 ← y at 4 float → double",
        "nothing ← port at 4 2 bytes",
    ]


def test_json_holds_every_step_of_a_transformation() -> None:
    variable, kind = to_json(sample(), encode(sample()))["transformations"]
    assert (variable["kind"], variable["address"], variable["symbol"]) == ("variable", "0x404080", 1)
    assert (kind["kind"], kind["address"], kind["old_size"], kind["new_size"]) == ("type", None, 40, 72)
    assert [s["kind"] for s in kind["steps"]] == ["integer", "initial", "pointer", "repeat", "dropped"]
    assert kind["steps"][2] == {
        "kind": "pointer", "field": "next", "from": "next", "new_offset": 16, "old_offset": 8, "pointee": "struct conn",
    }  # fmt: skip
    assert [s["field"] for s in kind["steps"][3]["steps"]] == ["x", "y"]


def test_text_can_be_short() -> None:
    assert "Relocations of" not in render(sample(), encode(sample()), verbose=False)


def test_text_states_both_builds_and_the_identity() -> None:
    data = encode(sample())
    text = render(sample(), data)
    for word in (
        patch_id(data),
        "v1.2",
        "ab" * 20,
        "3f9c21ab",
        "cd" * 20,
        "src/server",
        "verdict   Needs a decision: ",
    ):
        assert word in text


def test_json_holds_digests_relocations_and_parts() -> None:
    po = sample()
    out = json.loads(json.dumps(to_json(po, encode(po))))
    changed = out["changed_functions"][0]
    assert changed["sha256"] == po.replacements[0].digest.hex()
    digest = po.replacements[0].parts[0][2].hex()
    assert changed["parts"][0] == {"address": "0x401300", "size": 8, "sha256": digest, "blanks": []}
    assert changed["blanks"] == [[1, 4], [12, 4]]
    assert out["sections"][0]["relocations"][0] == {
        "offset": 5, "type": "R_X86_64_PLT32", "symbol": 4, "addend": -4,
    }  # fmt: skip
    assert [s["name"] for s in out["sections"]] == [s.name for s in po.sections]
    assert len(out["symbols"]) == len(po.symbols)


def test_a_refused_change_says_so_everywhere() -> None:
    po, data = refused(), encode(refused())
    assert "verdict   Refused: " in render(po, data)
    assert to_text(explain(po, data)).splitlines()[2].startswith("Refused: ")
    assert "katana apply" not in to_text(explain(po, data))
    assert "Refused: " in _Page(page(po, data)).text


def test_text_lines_are_kept_apart_even_by_hostile_names() -> None:
    hostile = Reason("function-changed", "info", "f\x1b]0;owned\x07", "a\n.c", 1, "x\u202ey")
    po = replace(sample(), reasons=(hostile,), identity=replace(IDENTITY, output="o\x1b[31m"))
    for text in (render(po, encode(po)), to_text(explain(po, encode(po))), page(po, encode(po))):
        assert all(line.isprintable() for line in text.split("\n"))


def test_html_escapes_names() -> None:
    evil = "<script>alert(1)</script>"
    reason = Reason(evil, "info", evil, evil, 1, evil)
    po = replace(sample(), reasons=(reason,), identity=replace(IDENTITY, output=evil, from_release=evil))
    source = page(po, encode(po))
    assert "<script" not in source
    assert evil in _Page(source).text


@BOTH
def test_html_is_self_contained(po: PatchObject) -> None:
    source = page(po, encode(po))
    parsed = _Page(source)
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags)
    assert "url(" not in source
    assert "http://" not in source
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source


def test_explain_names_the_new_variables_that_revert_takes_out() -> None:
    said = " ".join(to_text(explain(sample(), encode(sample()))).split())
    assert "with their values: zeroes." in said
    assert "fresh: the live value is carried over" in said


def test_a_function_that_is_always_active_is_said_to_need_leave() -> None:
    po = sample()
    explanation = " ".join(to_text(explain(po, encode(po))).split())
    assert "it can be applied with --allow-active parse, once 1 point below is settled." in explanation
    assert "`katana apply PO --pid PID --allow-active parse` applies it" in explanation
    assert "verdict   Needs a decision: it can be applied with --allow-active parse, once" in render(po, encode(po))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "p.kpo"
    path.write_bytes(encode(sample()))
    return path


def test_katana_explain_prints_the_explanation(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(file)]) == 0
    assert capsys.readouterr().out == to_text(explain(sample(), encode(sample())))


def test_katana_explain_json_has_the_reasons(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(file), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert [r["code"] for r in out["reasons"]] == ["function-always-active", "function-changed", "function-new"]
    assert out["verdict"] == "needs"


def test_katana_explain_html_writes_the_page_and_prints_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = file.with_name("page.html")
    assert main(["explain", str(file), "--html", str(target)]) == 0
    assert capsys.readouterr().out == ""
    assert target.read_text(encoding="utf-8") == page(sample(), encode(sample()))


def test_katana_explain_to_no_folder_is_a_usage_error(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(file), "--html", str(file / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_katana_explain_of_a_damaged_file_exits_7_with_json_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["explain", str(file), "--json"]) == 7
    assert json.loads(capsys.readouterr().out)["error"]["status"] == 7


def test_text_needs_no_jinja() -> None:
    code = "import sys, katana_cc.cli.explain, katana_cc.report.patch_text; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
