"""The property: a patched process does what the new build does with its state, and a reverted one what the old does.

build both ── the new one, from its start, must do what the model says (so the model is right)
old process ── history ── patch ── further commands ── revert ── further commands, and code as it was
refused, or left to a person's decision: fine, with reasons that name something; but not for edits that have to work
nothing to do: then the old process must do what the new version would
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from katana_cc.diff.reasons import Code
from katana_cc.errors import KatanaError, RefusedError
from katana_cc.patch.codec import patch_id
from katana_cc.patch.model import PatchObject
from katana_cc.patch.needs import Grant, Option, needs_of
from katana_cc.process.apply import apply_patch
from katana_cc.process.objections import StrayWordsError
from katana_cc.process.revert import revert_patch
from katana_cc.process.reverting import Wishes
from tests.fuzz import edits
from tests.fuzz.cases import Case, Exchange
from tests.live.server import Server, code_of, serving
from tests.support.equivalence import inequivalences
from tests.support.project import Project, Result

# What may be in the way of any edit: the old function has no room for a jump; a static gets its first reader, or loses
# its last writer; a compiler keeps one whole that it took apart, so that nothing tells which part is which.
_STORAGE = {Code.STORAGE_LOST.value, Code.STORAGE_UNKNOWN.value, Code.STORAGE_RESTYLED.value}
EXCUSED = frozenset({"function-too-small"} | _STORAGE)
# What the programs here never have: objects of their types anywhere else, and pointers that are something else.
GRANTED = frozenset({Option.ONLY_STATIC, Option.FOLLOW})


class Counterexample(AssertionError):
    """The property does not hold."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case: "patched", "nothing", "refused" (with codes) or "refused live"."""

    kind: str
    codes: tuple[str, ...] = ()


class Checker:
    """Checks cases in one folder, one after the other.  Objects of the driver are kept, since it is always the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._drivers: dict[tuple[object, ...], bytes] = {}

    def check(self, case: Case) -> Outcome:
        """Check one.

        Raises:
            Counterexample: by its message what is wrong.
        """
        place = self.folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        project = Project(place, case.variant)
        old_path, new_path, result = self._build(case, project)
        with serving(new_path) as server:
            talk(server, case.first, "the new build from its start")
        needs = needs_of(result.patch)
        granted = [n.grant for n in needs if n.grant is not None and n.grant.option in GRANTED]
        if result.refusals or len(granted) < len(needs):
            return _refused(case, result)
        if not result.nothing and (wrong := inequivalences(result.patch, old_path, new_path)):
            raise Counterexample(f"the patch is not what the new build holds: {wrong}")
        with serving(old_path) as server:
            return _live(case, result, server, granted)

    def _build(self, case: Case, project: Project) -> tuple[Path, Path, Result]:
        v = case.variant
        key = (v.compiler, v.optimise, v.mode, v.compile_flags)
        keep = []
        if key in self._drivers:
            (project.folder / "main.c").write_text(case.old["main.c"])
            (project.folder / "main.o").write_bytes(self._drivers[key])
            keep = ["main.c"]
        old = project.build(case.old, keep=keep)
        self._drivers[key] = (project.folder / "main.o").read_bytes()
        new = project.build(case.new, keep=[n for n in case.new if case.new[n] == case.old.get(n)])
        try:
            return old.path, new.path, project.diff(old, new)
        except KatanaError as error:
            raise Counterexample(f"the diff fails: {error}") from error


def _reasons(result: Result) -> str:
    return "; ".join(f"{r.severity} {r.code} {r.subject}: {r.text}" for r in result.patch.reasons)


def _refused(case: Case, result: Result) -> Outcome:
    for r in result.patch.reasons:
        if r.severity in ("refused", "needs") and not (r.subject and r.text):
            raise Counterexample(f"a refusal that names nothing: {r}")
    codes = tuple(sorted({code for code, _ in [*result.refusals, *result.needs]}))
    if Code.UNACCOUNTED.value in codes:
        raise Counterexample(f"Katana calls it a bug of its own: {_reasons(result)}")
    is_plain = case.variant.optimise == "-O2" and not case.variant.compile_flags
    excused = EXCUSED | ({Code.DATA_AMBIGUOUS.value} if Code.STORAGE_RESTYLED.value in codes else set())
    # clang takes statics apart, which are not put together again.
    must = edits.MUST | edits.MUST_WHOLE if case.variant.compiler == "gcc" else edits.MUST
    if is_plain and set(case.edits) <= must and not set(codes) <= excused:
        raise Counterexample(f"{case.edits} must not be refused: {_reasons(result)}")
    return Outcome("refused", codes)


def _live(case: Case, result: Result, server: Server, granted: list[Grant]) -> Outcome:
    talk(server, case.before, "the old build")
    if result.nothing:
        # Nobody patches anything; but then there must be nothing to it.
        talk(server, case.after, f"the old build, for which nothing was to be done ({_reasons(result)})")
        return Outcome("nothing")
    code = code_of(server.pid)
    identity = patch_id(result.data)
    moved = {d.transformation.name for d in result.patch.transforms if d.symbol is not None}
    stays = {d.transformation.name for d in result.patch.transforms if d.symbol is None}
    lost = moved & set(case.lost), moved & set(case.revert_lost)
    broken = stays & set(case.broken), stays & set(case.revert_broken)
    stray: tuple[str, ...] = ()
    try:
        try:
            apply_patch(result.patch, identity, [server.pid], granted=granted)
        except StrayWordsError:
            # Stale ones on the stack: nothing of a program here looks like a pointer and is none.
            stray = ("stray-words",)
            apply_patch(result.patch, identity, [server.pid], granted=[*granted, *_follow(result.patch)])
    except StrayWordsError:
        # At the start of a struct that gains a field in front: what is meant, no follower knows.
        talk(server, case.before[-1:], "the process that was left alone")
        return Outcome("refused live", stray)
    except RefusedError as error:
        _justified(f"{error}", lost[0], case.broken, case.conflict, f"apply; {_reasons(result)}")
        talk(server, case.before[-1:], "the process that was left alone")
        return Outcome("refused live", stray)
    if lost[0] | broken[0]:
        raise Counterexample(f"{lost[0] | broken[0]} should have kept the patch out; {_reasons(result)}")
    talk(server, case.after, f"the patched process ({_reasons(result)})")
    try:
        try:
            revert_patch([server.pid], identity)
        except StrayWordsError:
            stray = ("stray-words",)
            revert_patch([server.pid], identity, wishes=Wishes(followed=moved))
    except StrayWordsError:
        talk(server, case.kept, "the process that stays patched")
        return Outcome("patched", stray)
    except RefusedError as error:
        _justified(f"{error}", lost[1], case.revert_broken, case.revert_conflict, f"revert; {_reasons(result)}")
        talk(server, case.kept, "the process that stays patched")
        return Outcome("patched", stray)
    if lost[1] | broken[1]:
        raise Counterexample(f"{lost[1] | broken[1]} should have kept the patch in; {_reasons(result)}")
    talk(server, case.reverted, f"the reverted process ({_reasons(result)})")
    if code_of(server.pid) != code:
        raise Counterexample("code is not what it was before")
    return Outcome("patched", stray)


def _follow(po: PatchObject) -> list[Grant]:
    return [Grant(Option.FOLLOW, d.transformation.name) for d in po.transforms if d.symbol is not None]


def _justified(text: str, lost: set[str], broken: tuple[str, ...], conflict: bool, what: str) -> None:
    """Whether it was refused for what the model knows, and says so."""
    if lost:
        missing = [name for name in lost if name not in text]
        if missing:
            raise Counterexample(f"the refusal does not name {missing}: {text}; {what}")
    elif not conflict and not any(name in text for name in broken):
        raise Counterexample(f"refused at run time: {text}; {what}")


def talk(server: Server, exchanges: tuple[Exchange, ...], who: str) -> None:
    """Say each command and compare the answer."""
    for e in exchanges:
        answer = server.ask(e.command)
        said, *marks = answer.split(" @")
        said = said.strip()
        lines = [int(m) for m in marks]
        fits = len(lines) == len(e.alternatives) and all(
            n in some for n, some in zip(lines, e.alternatives, strict=True)
        )
        if said != e.answer.strip() or not fits:
            raise Counterexample(f"{who}: {e.command!r} gave {answer!r}, not {e.answer!r} {e.alternatives}")
