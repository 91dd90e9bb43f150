"""Patches v1..v2 and v2..v3 put together, against the patch that is made from v1 to v3, and against v3 itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from katana_cc.cli.main import main
from katana_cc.diff.engine import Diff
from katana_cc.errors import RefusedError
from katana_cc.patch.checks import check_file, problems
from katana_cc.patch.codec import decode, encode, patch_id
from katana_cc.patch.compose import compose
from katana_cc.patch.model import UNKNOWN, Basis, PatchObject, Verdict
from katana_cc.proof.completeness import unaccounted
from katana_cc.release.proving import check_equivalence
from tests.support.chain import Chain
from tests.support.equivalence import inequivalences
from tests.support.project import Project, Variant, project_in

N = "__attribute__((noinline)) "
FRAME = r"""
#include <stdio.h>
#include <stdlib.h>
int seen, zero;
static int calls;
__thread int mine = 3;
const int steps[4] = {1, 2, 3, 4};
static int kept(int x) { return x + 1; }
/*NEW*/
typedef int handler(int);
N int first(int x) { seen += x; calls++; /*FIRST*/ return x + zero; }
N int second(int x) { seen -= x; /*SECOND*/ return first(x) + 2; }
N static int third(int x) { static int n; n += x; seen ^= x; mine++; /*THIRD*/ return n + second(x) + steps[x & 3]; }
N static int fourth(int x) { printf("%d\n", x); /*FOURTH*/ return third(x) + kept(x); }
N int calm(int x) { seen |= x; return x * 3 + zero; }
/*TABLE*/
handler *volatile table[3] = {first, calm, /*ENTRY*/ second};
int limit = /*LIMIT*/ 5;
int main(int argc, char **argv) { return fourth(argc) + table[argc & 1](argc) + calm(argc) + limit; }
""".replace("\nN ", f"\n{N}")


def source(frame: str = FRAME, **parts: str) -> str:
    """The program, with these parts in it."""
    for mark, text in parts.items():
        frame = frame.replace(
            f"/*{mark.upper()}*/" + (" 5" if mark == "limit" else " second" if mark == "entry" else ""), text
        )
    return frame


class Program(Chain):
    """Builds, one after the other; what leads to the last as one patch, and as the steps put together."""

    def __init__(self, project: Project, *sources: str) -> None:
        super().__init__(project, sources)
        self.patches = [step.patch for step in self.steps()]

    def direct(self) -> PatchObject:
        """The patch from the first to the last."""
        return self.project.checked(self.builds[0], self.builds[-1]).patch

    def composed(self) -> PatchObject:
        """The steps put together, with what must hold of any patch object: proofs that do not know how it was made."""
        po = self.patches[0]
        for step in self.patches[1:]:
            po = compose(po, step)
        data = encode(po)
        assert decode(data, "composed") == po
        assert problems(po) == []
        assert inequivalences(po, self.builds[0].path, self.builds[-1].path) == []
        old, new = self.builds[0].snapshot, self.builds[-1].snapshot
        assert (po.identity.from_build_id, po.identity.to_build_id) == (old.build_id, new.build_id)
        diff = Diff(self.project.store, old, new)  # its readers
        assert unaccounted(diff.old, diff.new, diff.view, diff.debug, po) == []
        return po


def replaced(po: PatchObject) -> dict[str, tuple[int, int]]:
    """Name → where the old function is."""
    return {r.name: (r.address, r.size) for r in po.replacements}


def carried(po: PatchObject) -> dict[str, tuple[bytes, int, int]]:
    """Name → contents (unrelocated), size and flags of the sections that hold something with a name."""
    found = {}
    for y in po.symbols:
        if y.section is not None and y.name and po.sections[y.section].flags & 2:
            s = po.sections[y.section]
            found[y.name] = s.data, s.size, s.flags
    return found


NEW = f'int hits; {N}static int fresh(int x) {{ return x * 5 + zero; }} const char *const words[] = {{"a", "b"}};'
NEWER = NEW.replace("x * 5", "x * 7 + hits") + f"{N}static int last(int x) {{ return x * 9 + zero; }}"
V1 = source()
V2 = source(new=NEW, first="hits++; return fresh(x) + 10;", third="puts(words[x & 1]); x += 4;", entry="calm")
V3 = source(
    new=NEWER,
    first="hits++; return fresh(x) + last(x) + 20;",
    second="static int m; m += hits; x += m;",
    third="puts(words[x & 1]); x += 4;",
    fourth='puts("three");',
    entry="first",
    limit="7",
)

VARIANTS = [
    Variant("gcc", "-O2", "pie"),
    Variant("gcc", "-O0", "nopie"),
    Variant("gcc", "-Os", "nopie", "gold"),
    Variant("clang", "-O2", "pie", "lld"),
    Variant("clang", "-O1", "nopie", "mold"),
]
project = project_in(VARIANTS)


def test_two_steps_are_as_the_one(project: Project) -> None:
    """Functions of the first step, of the second and of both, new ones, variables, constants, table entries, literals.
    A bug: another function is replaced, or the code of another build carried, or it leads elsewhere."""
    program = Program(project, V1, V2, V3)
    direct, composed = program.direct(), program.composed()
    assert replaced(composed) == replaced(direct)
    assert carried(composed) == carried(direct)
    assert sorted(b[1:] for b in composed.brought) == sorted(b[1:] for b in direct.brought)
    assert composed.layouts == direct.layouts
    assert sorted((e.name, e.address) for e in composed.data_edits) == sorted(
        (e.name, e.address) for e in direct.data_edits
    )
    assert composed.addresses.stretches == direct.addresses.stretches
    assert composed.addresses.thread == direct.addresses.thread
    assert {x[1:] for x in composed.addresses.carried} == {x[1:] for x in direct.addresses.carried}
    assert composed.addresses.named == direct.addresses.named
    lines = {s.name for s in composed.sections if s.name.startswith(".debug")}
    assert {".debug_info", ".debug_line", ".debug_abbrev"} <= lines


def test_what_no_step_replaces_is_found_by_the_digest_without_blanks(project: Project) -> None:
    """`second` is changed by the second step only: no patch has the bytes that v1 has of it.  A bug: no process of v1
    would be found to have it."""
    from katana_cc.elf.reader import ElfFile
    from katana_cc.patch.addresses import shape_of

    program = Program(project, V1, source(first="return x + 11;"), source(first="return x + 11;", second="x += 3;"))
    composed = program.composed()
    (second,) = (r for r in composed.replacements if r.name == "second")
    (exact,) = (r for r in program.direct().replacements if r.name == "second")
    assert (second.address, second.size, len(second.parts)) == (exact.address, exact.size, len(exact.parts))
    image = ElfFile(program.builds[0].path.read_bytes())
    segment = next(s for s in image.segments if s.type == 1 and s.vaddr <= second.address < s.vaddr + s.file_size)
    at = segment.offset + second.address - segment.vaddr
    code = program.builds[0].path.read_bytes()[at : at + second.size]
    assert shape_of(code, second.blanks[0]).digest == second.digest
    assert second.blanks[0]
    assert sum(size for _, size in second.blanks[0]) < second.size


def test_three_steps_in_either_order(plain: Project) -> None:
    """(A B) C and A (B C).  A bug: what is composed lacks what it takes to compose it."""
    v4 = V3.replace("x * 9", "x * 8").replace("limit =  7", "limit = 9") + f"{N}int more(int x) {{ return x; }}"
    program = Program(plain, V1, V2, V3, v4.replace('puts("three")', 'puts("four"); mine += more(calls)'))
    left = program.composed()
    right = compose(program.patches[0], compose(program.patches[1], program.patches[2]))
    direct = program.direct()
    assert replaced(left) == replaced(right) == replaced(direct)
    assert carried(left) == carried(right) == carried(direct)
    assert inequivalences(right, program.builds[0].path, program.builds[-1].path) == []


def test_it_can_be_composed_from_files(plain: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """The command, without a store and without the builds."""
    program = Program(plain, V1, V2, V3)
    names = [plain.folder / "1.kpo", plain.folder / "2.kpo"]
    for path, step in zip(names, program.patches, strict=True):
        path.write_bytes(encode(step))
    away = plain.folder / "away"
    away.mkdir()
    out = away / "both.kpo"
    assert main(["compose", *map(str, names), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "changed" in said
    assert str(out) in said
    data = out.read_bytes()
    po = decode(data, "x")
    assert po == program.composed()
    assert check_file(out, data, po) == []
    assert main(["compose", *map(str, names), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["patch"] == patch_id(data)
    assert main(["explain", str(out)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "put together from a patch to" in told
    assert "but for what a linker writes there" in told
    assert main(["show", str(out)]) == 0
    assert "may not be active" in capsys.readouterr().out.lower()


def test_katana_check_compares_it_with_the_new_build(plain: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(plain, V1, V2, V3)
    monkeypatch.chdir(plain.folder)
    assert check_equivalence(program.composed()) == ([], "")
    # It finds something: the first step alone is not the new build.
    wrong = replace(program.patches[0], identity=program.composed().identity)
    found, _ = check_equivalence(wrong)
    assert found


def test_patches_that_do_not_follow_each_other(plain: Project, capsys: pytest.CaptureFixture[str]) -> None:
    program = Program(plain, V1, V2, V3)
    first, second = program.patches
    with pytest.raises(RefusedError) as caught:
        compose(second, first)
    assert first.identity.from_build_id in caught.value.what
    assert second.identity.to_build_id in caught.value.what
    path = plain.folder / "a.kpo"
    path.write_bytes(encode(first))
    assert main(["compose", str(path), str(path), "-o", str(plain.folder / "c.kpo")]) == 3
    assert "does not start where the first one leads" in capsys.readouterr().err
    assert not (plain.folder / "c.kpo").exists()


def test_there_and_back_is_no_patch(plain: Project) -> None:
    """A bug: a patch from a build to itself."""
    first, second = (plain.build({"prog.c": text}) for text in (V1, V2))
    there, back = plain.checked(first, second).patch, plain.checked(second, first).patch
    with pytest.raises(RefusedError, match="leads back to where the first one starts") as caught:
        compose(there, back)
    assert "katana revert" in caught.value.remedy


def test_what_is_taken_back_is_no_edit_any_more(plain: Project) -> None:
    """A table entry, an initial value and a constant as v1 has them again.  A bug: an edit that changes nothing, and
    refuses processes."""
    table = source(entry="calm", limit="6").replace("{1, 2, 3, 4}", "{1, 2, 9, 4}")
    program = Program(plain, V1, table, source(second="x += 3;"))
    assert {e.name.partition("+")[0] for e in program.patches[0].data_edits} == {"table", "limit", "steps"}
    composed = program.composed()
    assert composed.data_edits == ()
    assert replaced(composed).keys() == replaced(program.direct()).keys()


def test_a_function_as_it_was_is_carried_as_it_is_now(plain: Project) -> None:
    """v3 has v1's `first`.  It is replaced by itself: the patch does not know v1's."""
    program = Program(plain, V1, source(first="return x + 11;"), source(second="x += 3;"))
    composed = program.composed()
    direct = program.direct()
    assert set(replaced(composed)) - set(replaced(direct)) >= {"first"}
    assert set(replaced(direct)) <= set(replaced(composed))


def test_what_nothing_uses_any_more_is_left_out(plain: Project) -> None:
    program = Program(plain, V1, source(new=NEW, first="hits++; return fresh(x) + 10;"), source(first="return x + 12;"))
    composed = program.composed()
    assert set(carried(composed)) == set(carried(program.direct()))
    assert not {"fresh", "hits"} & set(carried(composed))
    assert composed.brought == ()
    assert not [r for r in composed.reasons if r.subject in ("fresh", "hits") and r.code.endswith("-new")]


def test_initial_values_of_both_steps(plain: Project) -> None:
    program = Program(plain, V1, source(limit="6"), source(limit="7", second="x += 2;"))
    (edit,) = program.composed().data_edits
    po = program.composed()
    assert edit.is_initialiser
    assert [po.sections[n].data for n in (edit.expected, edit.replacement)] == [b"\5\0\0\0", b"\7\0\0\0"]


def test_code_that_the_first_step_left_alone(plain: Project) -> None:
    """Only its line numbers differ in v2.  A bug: the bytes of v2 are looked for in processes of v1, and not found."""
    first = FRAME.replace("return x * 3 + zero;", 'printf("%d", __LINE__); return x * 3 + zero;')
    program = Program(plain, first, "\n\n" + first, "\n\n" + first.replace("x * 3", "x * 4"))
    if not program.patches[0].replacements:
        composed = program.composed()
        (calm,) = composed.replacements
        (exact,) = program.direct().replacements
        assert calm.address == exact.address


def test_first_step_code_may_not_go_on_while_it_is_replaced(plain: Project) -> None:
    """v1's `third` was never looked at together with v3's `second`."""
    program = Program(plain, V1, source(third="x += 4;"), source(third="x += 4;", second="x += 3;"))
    composed = program.composed()
    own = [r for r in composed.reliances if r.basis is Basis.TWO_STEPS]
    assert {composed.replacements[r.caller].name for r in own} >= {"third"}
    assert composed.verdict is Verdict.SAFE


MOVING = r"""
#include <stdio.h>
struct conn { int a; /*FIELD*/ int b; };
struct conn held = {1, 2}, *volatile where = &held;
int zero;
__attribute__((noinline)) int get(void) { return held.a * 10 + where->b + zero; }
__attribute__((noinline)) int put(int x) { held.a += x; /*PUT*/ return zero; }
__attribute__((noinline)) int other(int x) { /*OTHER*/ return x + zero; }
int main(int argc, char **argv) { return get() + put(argc) + other(argc); }
"""


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS[:2], ids=str)
def test_variable_that_gets_a_new_layout_in_one_step(tmp_path: Path, variant: Variant, step: int) -> None:
    """A bug: its live value is lost, or code goes on using the old one."""
    project = Project(tmp_path, variant)
    moved = MOVING.replace("/*FIELD*/", "long c;")
    last = moved.replace("/*OTHER*/", "x += 5;")
    program = Program(project, MOVING, (MOVING.replace("/*OTHER*/", "x += 5;"), moved)[1 - step], last)
    direct, composed = program.direct(), program.composed()
    assert carried(composed) == carried(direct)
    assert replaced(composed) == replaced(direct)
    kept = [{(d.transformation, d.address, d.symbol is None) for d in po.transforms} for po in (composed, direct)]
    assert kept[0] == kept[1]
    assert composed.layouts == direct.layouts


def test_layout_that_changes_in_both_steps_is_refused(plain: Project) -> None:
    moved = MOVING.replace("/*FIELD*/", "long c;")
    program = Program(plain, MOVING, moved, moved.replace("long c;", "long c, d;"))
    with pytest.raises(RefusedError, match=r"both give live data another layout \(the first .*held") as caught:
        compose(*program.patches)
    assert "katana-release --since" in caught.value.remedy


def test_new_variable_that_gets_another_layout_is_new(plain: Project) -> None:
    """A process of v1 has none."""
    new = "struct box { int a; }; struct box box = {4}; struct box *volatile at = &box;"
    use = "return box.a++ + at->a;"
    changed = new.replace("int a;", "long b; int a;")
    program = Program(plain, V1, source(new=new, first=use), source(new=changed, first=use))
    direct, composed = program.direct(), program.composed()
    assert composed.transforms == direct.transforms == ()
    assert carried(composed) == carried(direct)
    known = {b.name: b.digest for b in direct.brought}
    # The type of `at` is another one in v3, and no patch tells which.
    assert {b.name: b.digest for b in composed.brought} == {**known, "at": UNKNOWN}


def test_what_was_refused_is_refused(plain: Project) -> None:
    program = Program(plain, V1, V2, V3)
    first, second = program.patches
    reason = replace(first.reasons[0], severity="refused")
    no = PatchObject(first.identity, Verdict.REFUSED, (reason,))
    with pytest.raises(RefusedError, match="the first one was refused when it was made"):
        compose(no, second)


def test_what_the_map_does_not_tell_is_refused(plain: Project) -> None:
    """A bug: it is taken for what lies nearby."""
    program = Program(plain, V1, V2, V3)
    first, second = program.patches
    with pytest.raises(RefusedError, match="does not tell where"):
        compose(replace(first, addresses=replace(first.addresses, stretches=first.addresses.stretches[:1])), second)
    with pytest.raises(RefusedError, match="does not say what lies where"):
        compose(replace(first, addresses=type(first.addresses)()), second)


def test_it_is_the_same_each_time(plain: Project) -> None:
    program = Program(plain, V1, V2, V3)
    assert encode(compose(*program.patches)) == encode(compose(*program.patches))
