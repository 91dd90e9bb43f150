"""The summary of a patch object, and the line a link prints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katana_cc.diff.reasons import Code
from katana_cc.patch.model import PatchObject, PatchSymbol, Reason, Verdict
from katana_cc.report.summary import clean, headline, one_line, summarise
from tests.support.patches import IDENTITY, refused, sample


def _with_symbol(symbol: PatchSymbol) -> PatchObject:
    return replace(sample(), symbols=(*sample().symbols, symbol))


HOOKS = "runs 1 hook before, 1 after the revert, 1 function for live objects"


def test_the_line_of_a_safe_patch() -> None:
    po = replace(
        sample(),
        verdict=Verdict.SAFE,
        reasons=(),
        data_edits=(),
        symbols=sample().symbols[:6],
        hooks=(),
        transforms=tuple(replace(d, handed=()) for d in sample().transforms),
    )
    words = (
        "katana: src/server (v1.2 → 3f9c21ab): 1 function changed, 1 new, 1 variable carried over, "
        "objects of 1 type carried over, safe: p/x.kpo"
    )
    assert one_line(replace(po, sections=po.sections[:3]), "p/x.kpo") == words


def test_the_line_of_a_patch_that_needs_a_decision() -> None:
    assert one_line(sample(), "x").endswith(f"1 new initial value not taken, {HOOKS}, needs --allow-active parse: x")
    unknown = replace(sample().reasons[2], code="of-a-later-version")
    assert one_line(replace(sample(), reasons=(unknown,)), "x").endswith(
        f"1 new initial value not taken, {HOOKS}, needs a decision: x"
    )


def test_the_line_of_a_refused_change_gives_its_reason_and_place() -> None:
    words = "refused: struct conn: it grew by 8 bytes <b>&co</b> (src/conn.h:40): x"
    assert one_line(refused(), "x") == f"katana: src/server (v1.2 → 3f9c21ab): {words}"


def test_further_refusals_are_counted() -> None:
    po = refused()
    assert " (and 2 more): x" in one_line(replace(po, reasons=po.reasons * 3), "x")


def test_a_build_without_a_release_is_called_by_its_build_id() -> None:
    po = replace(sample(), identity=replace(IDENTITY, from_release="", to_release=""))
    assert "(abababab → cdcdcdcd)" in one_line(po, "x")


def test_it_stays_one_line_whatever_the_names() -> None:
    po = replace(refused(), reasons=(Reason("x", "refused", "a\nb", "c\x1b[2J.c", 1, "d\r\n"),))
    line = one_line(po, "e\nf")
    assert line.isprintable()
    assert "\\x1b[2J" in line


@pytest.mark.parametrize(
    ("raw", "shown"), [("parse", "parse"), ("caf\udce9", "caf\\udce9"), ("a\tb", "a\\tb"), ("naïve → ok", "naïve → ok")]
)
def test_clean_escapes_what_cannot_be_printed(raw: str, shown: str) -> None:
    assert clean(raw) == shown


def test_a_cold_part_of_a_function_is_no_new_function() -> None:
    po = _with_symbol(PatchSymbol("helper.cold", 0, 2, 1, 0, 1))
    assert [f.name for f in summarise(po).new_functions] == ["helper"]


def test_an_alias_of_the_replacement_is_no_new_function() -> None:
    po = _with_symbol(PatchSymbol("parse_alias", 0, 2, 0, 0, 21))
    assert [f.name for f in summarise(po).new_functions] == ["helper"]


def test_imports_and_existing_symbols_are_told_apart() -> None:
    summary = summarise(sample())
    assert [r.name for r in summary.imports] == ["puts", "maybe"]
    assert [r.name for r in summary.existing] == ["server.c:log", "server.c:log", "depth", "errors"]


def test_a_thread_local_at_offset_0_exists() -> None:
    assert "tls0" in [r.name for r in summarise(_with_symbol(PatchSymbol("tls0", 1, 6, None, 0, 4))).existing]


def test_only_what_is_mapped_counts_as_new_data() -> None:
    po = _with_symbol(PatchSymbol("banner", 0, 1, 6, 0, 4))
    assert [d.name for d in summarise(po).new_data] == ["zeroes"]


def test_code_that_is_made_to_use_another_variable_is_no_constant() -> None:
    po = sample()
    edit = replace(po.data_edits[0], name="main+0x2")
    reason = replace(po.reasons[0], code=Code.CODE_RETARGETED.value, severity="info", subject="main")
    summary = summarise(replace(po, data_edits=(*po.data_edits, edit), reasons=(reason,)))
    assert summary.retargeted == ("main",)
    assert [d.name for d in summary.rewritten] == [e.name for e in po.data_edits if not e.is_initialiser]


def test_reasons_are_grouped_gravest_first() -> None:
    odd = replace(sample().reasons[0], severity="odd")
    groups = summarise(replace(sample(), reasons=(odd, *sample().reasons))).reasons
    assert list(groups) == ["needs", "info", "odd"]
    assert sum(map(len, groups.values())) == 4


def test_the_headline_of_nothing() -> None:
    assert headline(summarise(refused())) == "nothing carried"


def test_reasons_are_ordered_by_weight_whatever_the_patch_says() -> None:
    """A bug: the one function that changed stands below fifty that only moved."""
    codes = (
        "line-numbers-only",
        "data-new",
        "of-a-later-version",
        "function-new",
        "function-removed",
        "function-changed",
    )
    reasons = [Reason(code, "info", code, "a.c", 1, "") for code in codes]
    reasons += [Reason("function-always-active", "needs", "main", "a.c", 1, ""), Reason("odd", "odd", "x", "", 0, "")]
    shown = [r.code for group in summarise(replace(sample(), reasons=tuple(reasons))).reasons.values() for r in group]
    assert shown == [
        "function-always-active", "function-changed", "function-new", "data-new", "function-removed",
        "line-numbers-only", "of-a-later-version", "odd",
    ]  # fmt: skip


def test_only_imports_that_the_old_program_did_not_have_are_changes() -> None:
    new = Reason("import-new", "info", "maybe", "a.c", 1, "parse uses it of a library")
    summary = summarise(replace(sample(), reasons=(*sample().reasons, new)))
    assert [r.name for r in summary.new_imports] == ["maybe"]
    assert [r.name for r in summary.imports] == ["puts", "maybe"]
    assert summarise(sample()).new_imports == ()
