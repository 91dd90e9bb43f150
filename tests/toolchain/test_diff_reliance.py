"""Old code that goes on beside new code: what it relies on is in the patch object, or the change is refused."""

from __future__ import annotations

from pathlib import Path

from katana_cc.patch.model import Basis
from tests.support.project import Project, Result, Variant
from tests.toolchain.test_diff_code import MAIN, NOINLINE, change

TWO = NOINLINE + "static int tick(int x) {{ return {}; }}\nint serve(int x) {{ return {} + tick(x) * {}; }}\n"


def reliances(result: Result) -> list[tuple[str, str, Basis, str]]:
    """(caller, callee, basis, through) by name."""
    names = [r.name for r in result.patch.replacements]
    return sorted((names[x.caller], names[x.callee], x.basis, x.through) for x in result.patch.reliances)


def test_replaced_function_that_calls_a_replaced_one_of_its_unit(plain: Project) -> None:
    result = change(plain, TWO.format("x * 3 + 1", "x", 2), TWO.format("x / 7 % 3", "x", 5))
    assert result.replaced == ["serve", "tick"]
    assert reliances(result) == [("serve", "tick", Basis.BODY_SEEN, "")]


def test_knowledge_is_passed_on_through_a_function_that_did_not_change(plain: Project) -> None:
    source = (
        NOINLINE
        + "static int low(int x) {{ return {}; }}\n"
        + NOINLINE
        + "static int mid(int x) {{ return low(x) ^ 9; }}"
        "\nint serve(int x) {{ return mid(x) * {}; }}\n"
    )
    result = change(plain, source.format("x * 3 + 1", 3), source.format("x / 7 % 3", 5))
    if "mid" in result.replaced:  # the compiler may see that its registers changed
        assert ("serve", "mid", Basis.BODY_SEEN, "") in reliances(result)
    else:
        assert reliances(result) == [("serve", "low", Basis.BODY_SEEN, "mid")]


def test_callee_of_another_unit_counts_when_its_prototype_changed(plain: Project) -> None:
    serve = "int far({0}); int serve(int x) {{ return far(x) * {1}; }}"
    far = "int far({0} x) {{ return (int) x * {1} + ((int) x ^ 0x12345); }}"
    before = {"main.c": MAIN, "a.c": serve.format("int", 3), "b.c": far.format("int", 3)}
    same = plain.change(before, {"a.c": serve.format("int", 5), "b.c": far.format("int", 7)})
    assert (same.replaced, reliances(same)) == (["far", "serve"], [])
    changed = plain.change(before, {"a.c": serve.format("long", 5), "b.c": far.format("long", 7)})
    assert reliances(changed) == [("serve", "far", Basis.PROTOTYPE, "")]


def test_functions_that_do_not_call_each_other_are_free(plain: Project) -> None:
    source = "int one(int x) {{ return x * {0}; }}\nint serve(int x) {{ return x / {0}; }}\n"
    assert reliances(change(plain, source.format(3), source.format(7))) == []


def test_caller_that_keeps_a_value_in_a_register_is_replaced_with_its_callee(plain: Project) -> None:
    """Code that did not change was compiled with the new callee: it relies on nothing the new one breaks.

    A bug would be a caller that keeps a value in a register which only the old callee spares, and is not replaced.
    """
    source = (
        "extern volatile int n; volatile int n;\n" + NOINLINE + "static int tick(int x) {{ return {}; }}\n"
        "int serve(int x) {{ int kept = n; return tick(x) + kept; }}\n"
    )
    result = change(plain, source.format("x * 3 + 1"), source.format("(x / 7 % 3) * (x % 11) + (x ^ n)"))
    assert result.replaced == ["serve", "tick"], "gcc -O2 gives `serve` other registers (-fipa-ra)"


LOOP = (
    NOINLINE + "static int tick(int x) {{ return {}; }}\nint serve(int x) {{ return tick(x); }}\n"
    "int main(int c, char **v) {{ int s = {}; for (int i = 0; i < c; i++) s += {}(i); return s; }}\n"
)


def test_main_needs_to_be_allowed(plain: Project) -> None:
    result = plain.change({"a.c": LOOP.format("x * 3 + 1", 0, "serve")}, {"a.c": LOOP.format("x * 3 + 1", 9, "serve")})
    assert str(result.patch.verdict) == "needs"
    assert [(r.severity, r.subject) for r in result.patch.reasons if r.code == "function-always-active"] == [
        ("needs", "main")
    ]


def test_main_that_relies_on_a_replaced_function_is_refused(plain: Project) -> None:
    """It is always active, so there is no moment at which the patch could be applied."""
    before, after = LOOP.format("x * 3 + 1", 0, "tick"), LOOP.format("x / 7 % 3", 9, "tick")
    result = plain.change({"a.c": before}, {"a.c": after})
    assert result.refusals == [("active-code-relies-on-old", "main")]
    (text,) = [r.text for r in result.patch.reasons if r.severity == "refused"]
    assert "calls tick, which is replaced too" in text


def test_main_of_a_library_is_a_function_like_others(tmp_path: Path) -> None:
    project = Project(tmp_path, Variant("gcc", "-O2", "shared"))
    result = project.change(
        {"a.c": "int main(int x) { return x * 3 + (x ^ 9999); }"}, {"a.c": "int main(int x) { return x * 5; }"}
    )
    assert str(result.patch.verdict) == "safe"


CALLBACK = (
    NOINLINE + "static int tick(int x) {{ return {}; }}\n"
    + NOINLINE + "static int {}(int x) {{ return tick(x) + 4; }}\nint (*hook)(int);\n"
    "int serve(int x) {{ {} return tick(x) * 2; }}\n"
)  # fmt: skip


def test_function_that_is_gone_but_may_be_pointed_to_is_refused_when_it_relies_on_a_replaced_one(
    plain: Project,
) -> None:
    """The old `on_old` was not compiled again with the new `tick`, and the heap may hold its address."""
    before, after = (
        CALLBACK.format("x * 3 + 1", "on_old", "hook = on_old;"),
        CALLBACK.format("x / 7 % 3", "on_new", "hook = on_new;"),
    )
    assert change(plain, before, after).refusals == [("removed-code-relies-on-old", "on_old")]


def test_function_that_is_gone_and_was_only_called_is_harmless(plain: Project) -> None:
    """Only code that is replaced too could call it."""
    before = CALLBACK.format("x * 3 + 1", "on_old", "x += on_old(x);")
    after = CALLBACK.format("x / 7 % 3", "on_new", "x += on_new(x);")
    result = change(plain, before, after)
    assert result.refusals == []
    assert ("serve", "tick", Basis.BODY_SEEN, "") in reliances(result)
