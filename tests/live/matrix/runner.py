"""Builds all cases of a program in one variant, patches the running program, and asks.

One program holds many cases, so that a start and a link serve all of them.  Each case is patched singly (its objects
alone are new), and all that can be carried together.  What decides is never typed: the new build itself runs beside the
patched process and is asked the same questions, equally often; after the revert, the old build does.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from katana_cc.errors import RefusedError
from katana_cc.patch.codec import patch_id
from katana_cc.patch.needs import Grant, Option, unmet
from katana_cc.process.apply import apply_patch
from katana_cc.process.reverting import revert_one
from katana_cc.process.target import Target
from katana_cc.snapshot.answers import write_answers
from tests.live.debugger import below, differing, gdb_at, of_files, plain, script_of
from tests.live.matrix.model import AT_APPLY, AT_REVERT, PROGRAMS, REFUSED, WORKS, Case, Outcome
from tests.live.server import Server, code_of, serving
from tests.support.project import Build, Project, Result, Variant

Answers = dict[tuple[str, int], str]

_WAIT = 5.0  # seconds for a moment at which nothing speaks against it

PRELUDE = "#define NOINLINE __attribute__((noinline))\nstatic volatile long seen;\n"

_DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef long question(long);
%(declared)s
static const struct { const char *name; question *ask; } cases[] = { %(listed)s };
/* What calls leave behind on the stack is part of later frames, and looks like pointers that live. */
__attribute__((noinline)) static void wash(void) {
  volatile char room[16384];
  for (unsigned i = 0; i < sizeof room; i++) room[i] = 0;
}
int main(void) {
  char line[200], name[100]; long x;
  puts("ready"); fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    if (sscanf(line, "%%99s %%ld", name, &x) != 2) return 2;
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
      if (!strcmp(cases[i].name, name)) printf("%%ld\n", cases[i].ask(x));
    fflush(stdout);
    wash();
  }
  return 0;
}
"""


class Workshop:
    """All cases of one program in one variant.

    Args:
        folder: an empty folder.
        variant: how to build.
        cases: of one program.
    """

    def __init__(self, folder: Path, variant: Variant, cases: Sequence[Case]) -> None:
        (name,) = {case.program for case in cases}
        self.program = PROGRAMS[name]
        self.asked_for = variant
        self.refusals: list[str] = []
        linker = self.program.linker.get(variant.compiler, variant.linker)
        flags = (*variant.compile_flags, *self.program.compile_flags)
        self.variant = replace(variant, linker=linker, compile_flags=flags)
        self.cases = tuple(cases)
        self.project = Project(folder, self.variant)
        self.objects = folder / "objects"
        self.project.compile({"main.c": self._driver()})
        self._time = time.time()

    def _driver(self) -> str:
        names = [case.name for case in self.cases]
        return _DRIVER % {
            "declared": "\n".join(f"extern question ask_{n};" for n in names),
            "listed": ", ".join(f'{{"{n}", ask_{n}}}' for n in names),
        }

    def _sources(self, case: Case, side: int) -> dict[str, str]:
        """The files of a case.  The times of its compilation are a minute apart, as a person's builds would be."""
        stamp = time.strftime("%H:%M:%S", time.localtime(self._time - 60 * (1 - side)))
        return {
            name: (PRELUDE if not name.endswith(".S") else "") + text.replace("@TIME@", stamp)
            for name, text in case.files(side).items()
        }

    def compile(self, cases: Iterable[Case], side: int) -> None:
        """Compile these cases' objects of one side, and keep them."""
        kept = self.objects / str(side)
        kept.mkdir(parents=True, exist_ok=True)
        files: dict[str, str] = {}
        flags: dict[str, Sequence[str]] = {}
        for case in cases:
            found = self._sources(case, side)
            files |= found
            flags |= dict.fromkeys(found, case.flags)
        for name in self.project.compile(files, file_flags=flags).values():
            shutil.copy(self.project.folder / name, kept / name)

    def link(self, new: Iterable[Case]) -> Build:
        """Link and record, with the new objects of some cases."""
        names = {case.name for case in new}
        inputs = ["main.o"]
        for case in self.cases:
            for file in case.files(0).keys() | case.files(1).keys():
                name = str(Path(file).with_suffix(".o"))
                kept = self.objects / str(int(case.name in names)) / name
                if kept.exists():
                    shutil.copy(kept, self.project.folder / name)
                    inputs.append(name)
        return self.project.link(sorted(inputs), link_flags=self.program.link_flags)

    @cached_property
    def old(self) -> Build:
        """The old build of all cases."""
        self.compile(self.cases, 0)
        return self.link(())

    def build(self, changed: Sequence[Case]) -> Build:
        """A build with these cases changed."""
        _ = self.old
        missing = [
            case
            for case in changed
            if not (self.objects / "1" / Path(next(iter(case.files(1)))).with_suffix(".o")).exists()
        ]
        self.compile(missing, 1)
        return self.link(changed)

    def remove(self) -> None:
        """Remove all that was built."""
        shutil.rmtree(self.project.folder)

    def run(self, changed: Sequence[Case]) -> Outcome:
        """Patch a running old build with these changes, and take it back.  Anything amiss is an AssertionError."""
        new = self.build(changed)
        answers = {question: answer for case in changed for question, answer in case.answers.items()}
        write_answers(self.project.store.folder, answers)
        result = self.project.diff(self.old, new)
        about = f"{self.variant}: {', '.join(case.name for case in changed)}"
        refused = [r for r in result.patch.reasons if r.severity == "refused"]
        if refused:
            self.refusals = [f"{r.subject} ({r.file}:{r.line}): {r.text} [{r.code}]" for r in refused]
            assert all(r.text and (r.subject or r.file) for r in refused), about
            codes = {r.code for r in refused}
            for case in changed:
                if (wanted := case.refused) is not None:
                    told = "\n".join(r.text for r in refused if r.code == wanted.code)
                    assert re.search(wanted.text, told), (about, self.refusals)
            return Outcome(REFUSED, tuple(sorted(codes)))
        for case in changed:
            self._check_case(case, result)
            if (wanted := case.refused) is not None:
                with contextlib.ExitStack() as stack:
                    self._compare_refused(stack, new, result, case, about)
                return Outcome(REFUSED, (wanted.code,))
        if result.nothing:
            with contextlib.ExitStack() as stack:
                self._compare_nothing(stack, new, about)
        else:
            with contextlib.ExitStack() as stack:
                self._compare_patched(stack, new, result, changed, about)
        return Outcome(WORKS)

    def _check_case(self, case: Case, result: Result) -> None:
        """What is said of the case's files is what has to be said."""
        about = f"{self.variant}: {case.name}"
        mine = [r for r in result.patch.reasons if Path(r.file).name in case.files(0)]
        codes = {r.code for r in mine}
        changed = {r.subject.partition(".")[0] for r in mine if r.code == "function-changed"}
        if case.nothing:
            assert codes <= {"line-numbers-only", "build-time-only"}, (about, mine)
        if case.replaced is not None:
            assert changed <= case.replaced, about
        assert case.codes <= codes, (about, codes)
        moved = {d.transformation.name for d in result.patch.transforms if d.symbol is not None}
        assert case.moved <= moved, (about, moved)

    def _compare_nothing(self, stack: contextlib.ExitStack, new: Build, about: str) -> None:
        """Nothing to patch is right only if the new build answers like the old one."""
        live, after = (stack.enter_context(serving(b.path)) for b in (self.old, new))
        expected = _asked(after, self.cases)
        assert _asked(live, self.cases) == expected, about

    def compare(self, stack: contextlib.ExitStack, new: Build, result: Result, changed: Sequence[Case]) -> None:
        """Patch a running old build with a patch that was made otherwise, and compare it with the new one."""
        self._compare_patched(stack, new, result, changed, f"{self.variant}: {', '.join(x.name for x in changed)}")

    def _compare_patched(
        self, stack: contextlib.ExitStack, new: Build, result: Result, changed: Sequence[Case], about: str
    ) -> None:
        identity = patch_id(result.data)
        live, before, after = (stack.enter_context(serving(b.path)) for b in (self.old, self.old, new))
        code = code_of(live.pid)

        def apply(granted: Iterable[Grant]) -> None:
            apply_patch(result.patch, identity, [live.pid], wait=_WAIT, granted=list(granted))

        assert _asked(live, self.cases) == _asked(before, self.cases), about
        _asked(after, self.cases)

        granted = list(dict.fromkeys(g for case in changed for g in _grants(case)))
        needed = [g for g in granted if g.option is not Option.TAKE_INITIALISER]  # which is a wish
        for one in needed if len(changed) == 1 else ():
            error = _refused(partial(apply, [g for g in granted if g != one]), about)
            assert str(one) in error, (about, error)
            assert code_of(live.pid) == code, f"{about}: refused, and touched"
        if needed and len(changed) > 1:
            _refused(partial(apply, []), about)
        apply(granted)
        old_answers, new_answers = _asked(before, self.cases), _asked(after, self.cases)
        expected = new_answers | {key: old_answers[key] for key in _as_old(changed)}
        _same(_asked(live, self.cases), expected, f"{about}: patched")
        if len(changed) == 1 and not changed[0].nothing:
            assert expected != old_answers, f"{about}: the questions do not tell the versions apart"

        for case in changed:
            self._compare_watched(live, after, case, about)

        with Target(live.pid) as target:
            revert_one(target, identity, _WAIT)
        assert code_of(live.pid) == code, f"{about}: the code is not what it was"
        _same(_asked(live, self.cases), _asked(before, self.cases), f"{about}: reverted")
        if any(case.exits for case in changed):
            apply(granted)
            for server in (live, before):
                _asked(server, self.cases)
            _asked(after, self.cases)
            assert live.finish() == after.finish(), f"{about}: at exit"

    def _compare_watched(self, live: Server, after: Server, case: Case, about: str) -> None:
        """What gdb says of the new build, it says of the patched process."""
        if not case.watched:
            return
        stop = case.watched.partition(" ")[0]
        question = f"{case.name} {case.asked[-1]}"
        told = []
        for server in (live, after):
            script = script_of(server.pid, self.project.folder)
            text, answer = gdb_at(server, question, script, case.watched, "backtrace full")
            told.append((of_files(below(plain(text), stop, "main"), {*case.files(0), "main.c"}), answer))
        wrong = differing(told[0][0], told[1][0])
        assert not wrong, f"{about}: gdb of {case.name}: (found, expected) differ: {wrong}"
        assert told[0][1] == told[1][1], about

    def _compare_refused(self, stack: contextlib.ExitStack, new: Build, result: Result, case: Case, about: str) -> None:
        """A refusal tells what it has to, and the process goes on as the build that it runs by then."""
        assert case.refused is not None
        identity = patch_id(result.data)
        live, before, after = (stack.enter_context(serving(b.path)) for b in (self.old, self.old, new))
        code = code_of(live.pid)
        assert _asked(live, self.cases) == _asked(before, self.cases), about
        _asked(after, self.cases)
        twin = before

        def apply() -> None:
            apply_patch(result.patch, identity, [live.pid], wait=_WAIT, granted=list(_grants(case)))

        def revert() -> None:
            with Target(live.pid) as target:
                revert_one(target, identity, _WAIT)

        if case.refused.code == AT_REVERT:
            apply()
            code, twin = code_of(live.pid), after
            _same(_asked(live, self.cases), _asked(after, self.cases), f"{about}: patched")
            told = _refused(revert, about)
        else:
            needed = {n.reason.code for n in unmet(result.patch, list(_grants(case)))}
            assert case.refused.code == AT_APPLY or case.refused.code in needed, (about, needed)
            told = _refused(apply, about)
        assert re.search(case.refused.text, told), (about, told)
        assert code_of(live.pid) == code, f"{about}: refused, and touched"
        _same(_asked(live, self.cases), _asked(twin, self.cases), f"{about}: refused")


def _grants(case: Case) -> Iterator[Grant]:
    for words in case.granted:
        option, _, value = words.partition(" ")
        yield Grant(Option(option), value)


def _refused(attempt: Callable[[], None], about: str) -> str:
    """What a refusal tells."""
    try:
        attempt()
    except RefusedError as error:
        return str(error)
    raise AssertionError(f"{about}: not refused")


def _as_old(cases: Iterable[Case]) -> Iterator[tuple[str, int]]:
    for case in cases:
        for x in case.as_old:
            yield case.name, x


def _asked(server: Server, cases: Iterable[Case]) -> Answers:
    """The answers to all questions of all cases: those of cases that did not change tell of neighbours overwritten."""
    keys = [(case.name, x) for case in cases for x in case.asked]
    with contextlib.suppress(BrokenPipeError):
        for name, x in keys:
            server.tell(f"{name} {x}")
    answers = {key: server.line() for key in keys}
    assert all(answers.values()), f"it ended at {next(key for key in keys if not answers[key])}"
    return answers


def _same(found: Answers, expected: Answers, about: str) -> None:
    wrong = {key: (found[key], expected[key]) for key in expected if found[key] != expected[key]}
    assert not wrong, f"{about}: (found, expected) differ: {wrong}"


def programs_of(cases: Iterable[Case]) -> Mapping[str, list[Case]]:
    """Cases by the program they are part of."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.program, []).append(case)
    return found
