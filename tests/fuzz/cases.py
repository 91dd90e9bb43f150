"""Cases: two versions of a program as text, how to build them, and what a process must say at each point.

A case does not need the strategies any more once it is made: a stored one stays what it was when they change.  A
__LINE__ may be that of either version, since functions that differ in nothing else are left as they are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hypothesis import assume
from hypothesis import strategies as st

from tests.fuzz import edits, generate
from tests.fuzz import program as p
from tests.fuzz.model import Handover, Machine, OutOfFuelError, State, begin, take_over, written
from tests.fuzz.render import DRIVER, Source, entries, render
from tests.support.project import Variant


@dataclass(frozen=True, slots=True)
class Exchange:
    """A command, its answer, and the line numbers that may stand behind it, each as the ones possible."""

    command: str
    answer: str
    alternatives: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """What to build and what to expect.

    `first` is what the new build says from its start; `before`, `after` and `reverted` are one process's life; `kept`
    follows `after` where reverting is refused.
    `conflict`: applying may be refused at run time, since a pointer to rewrite has another value; `revert_conflict`:
    the same of reverting.  `lost` and `broken`, `revert_lost` and `revert_broken`: names of variables with a value that
    does not go over, and of pointers that would lead nowhere, for which it must be refused.
    """

    variant: Variant
    old: dict[str, str]
    new: dict[str, str]
    edits: tuple[str, ...]
    first: tuple[Exchange, ...]
    before: tuple[Exchange, ...]
    after: tuple[Exchange, ...]
    reverted: tuple[Exchange, ...]
    conflict: bool = False
    revert_conflict: bool = False
    kept: tuple[Exchange, ...] = ()
    lost: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    revert_lost: tuple[str, ...] = ()
    revert_broken: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The case as text."""
        return json.dumps(asdict(self), indent=1)


def load(path: Path) -> Case:
    """A case that was stored."""
    raw = json.loads(path.read_text())

    def exchanges(items: list[dict[str, object]]) -> tuple[Exchange, ...]:
        return tuple(
            Exchange(str(i["command"]), str(i["answer"]), tuple(tuple(x) for x in i["alternatives"]))  # type: ignore[attr-defined]
            for i in items
        )

    v = raw["variant"]
    variant = Variant(**{**v, "compile_flags": tuple(v["compile_flags"]), "link_flags": tuple(v["link_flags"])})
    talk = {name: exchanges(raw.get(name, [])) for name in ("first", "before", "after", "reverted", "kept")}
    return Case(
        variant, raw["old"], raw["new"], tuple(raw["edits"]), **talk,
        conflict=raw["conflict"], revert_conflict=raw["revert_conflict"],
        lost=tuple(raw.get("lost", ())), broken=tuple(raw.get("broken", ())),
        revert_lost=tuple(raw.get("revert_lost", ())), revert_broken=tuple(raw.get("revert_broken", ())),
    )  # fmt: skip


COMPILE_FLAGS = ((),) * 8 + (
    ("-fcommon",),
    ("-fno-plt",),
    ("-fstack-protector-strong",),
    ("-fno-inline",),
    ("-fvisibility=hidden",),
    ("-fcf-protection",),
    ("-fomit-frame-pointer",),
)


@st.composite
def variants(draw: generate.Draw) -> Variant:
    """Compiler, optimisation, kind of output and linker that are installed."""
    compiler = draw(st.sampled_from(["gcc", "clang"]))
    optimise = draw(st.sampled_from(["-O2", "-O2", "-O0", "-O1", "-O3", "-Os"]))
    mode = draw(st.sampled_from(["pie", "nopie"]))
    linker = draw(st.sampled_from(["bfd", "bfd", "lld", "gold", "mold"]))
    flags = draw(st.sampled_from(COMPILE_FLAGS))
    link = draw(st.sampled_from([(), (), (), ("-Wl,--gc-sections",), ("-Wl,-z,now",)]))
    variant = Variant(compiler, optimise, mode, linker, flags, link)
    assume(variant.available())
    return variant


@st.composite
def commands(draw: generate.Draw, program: p.Program) -> tuple[tuple[str, int], ...]:
    """Calls of entry points and pokes."""
    names = [f.key for f in entries(program)] + [f"poke_{u.name}" for u in program.units]
    one = st.tuples(st.sampled_from(names), st.one_of(st.integers(0, 40), generate.NUMBERS))
    return tuple(draw(st.lists(one, min_size=3, max_size=12)))


Lines = dict[str, tuple[int, ...]]


def converse(
    program: p.Program, state: State, todo: tuple[tuple[str, int], ...], lines: Lines
) -> tuple[tuple[Exchange, ...], State]:
    """The exchanges that commands and a dump come to, and the state after them; what takes too long is left out."""
    found = []
    for name, number in todo:
        machine = Machine(program, state.copy())
        try:
            if name.startswith("poke_"):
                unit = next(u for u in program.units if u.name == name.removeprefix("poke_"))
                value = machine.poke(unit, number & 7, number)
            else:
                params = program.functions[name].params
                value = machine.call(name, [(number + i) & 0xFFFFFFFF for i in range(params)])
        except OutOfFuelError:
            continue
        state = machine.state
        found.append(Exchange(f"{name} {number}", str(value), tuple(lines[k] for k in machine.lines)))
    found.append(Exchange("dump", Machine(program, state).dump()))
    return tuple(found), state


def _unknown(program: p.Program, state: State) -> bool:
    """Whether a compiler of this program may take a variable's value for granted that the process has changed."""
    initial, known = begin(program), written(program)
    return any(
        key not in known and here[key] != value
        for here, there in (
            (state.cells, initial.cells),
            (state.texts, initial.texts),
            (state.handlers, initial.handlers),
            (state.pointers, initial.pointers),
        )
        for key, value in there.items()
    )


def _lines(*versions: dict[str, Source]) -> Lines:
    found: dict[str, set[int]] = {}
    for sources in versions:
        for source in sources.values():
            for key, line in source.lines.items():
                found.setdefault(key, set()).add(line)
    return {key: tuple(sorted(lines)) for key, lines in found.items()}


@st.composite
def cases(draw: generate.Draw, first: tuple[str, ...] = ()) -> Case:
    """A program, edits of it, a history, and what is to be expected; `first`: as of `edits.edited`."""
    variant = draw(variants())
    old = draw(generate.programs())
    assume(not p.problem(old))
    new, kinds = draw(edits.edited(old, first))
    assume(kinds)
    return make(
        variant, old, new, kinds, draw(commands(old)), draw(commands(new)), draw(commands(old)), draw(commands(new))
    )


def make(
    variant: Variant, old: p.Program, new: p.Program, kinds: tuple[str, ...], *todo: tuple[tuple[str, int], ...]
) -> Case:
    """The case of two versions; `todo`: the commands before, after, after the revert, and to the new build alone."""
    sources = render(old), render(new)
    lines = _lines(*sources)
    before, state = converse(old, begin(old), todo[0], lines)
    after: tuple[Exchange, ...] = ()
    reverted: tuple[Exchange, ...] = ()
    kept: tuple[Exchange, ...] = ()
    left, forth = state, take_over(old, new, state)
    back = Handover(state)
    if not forth.broken:
        state = forth.state
        is_known = not _unknown(new, state)
        if is_known:
            after, state = converse(new, state, todo[1], lines)
        names = {f.key for f in entries(new)}
        back = take_over(new, old, state, left)
        if is_known:
            kept, _ = converse(new, state, tuple(x for x in todo[2] if x[0] in names), lines)
        gone = any(k not in old.functions for live in back.state.handlers.values() for k in live)
        if is_known and not gone and not back.broken and not _unknown(old, back.state):
            reverted, _ = converse(old, back.state, todo[2], lines)
    first, _ = converse(new, begin(new), todo[3], _lines(sources[1]))
    texts = tuple({"main.c": DRIVER, **{name: s.text for name, s in side.items()}} for side in sources)
    conflict, revert_conflict = bool(forth.rewritten | forth.stale), bool(back.rewritten | back.stale)
    # Of statics with one name in both units only debug information tells which is which: those may be refused.
    conflict |= bool(_several(new, forth.lost | forth.broken))
    revert_conflict |= bool(_several(new, back.lost | back.broken))
    return Case(
        variant, texts[0], texts[1], kinds, first, before, after, reverted, conflict, revert_conflict, kept,
        _names(new, forth.lost), _names(new, forth.broken), _names(new, back.lost), _names(new, back.broken),
    )  # fmt: skip


def _called(program: p.Program) -> dict[str, str]:
    """What C calls each variable and each table of handlers."""
    return {v.key: v.name for v in program.variables.values()} | {h.key: h.name for h in program.handlers.values()}


def _several(program: p.Program, keys: set[str]) -> set[str]:
    """Those of which there is another with the same name."""
    called = _called(program)
    return {key for key in keys if list(called.values()).count(called[key]) > 1}


def _names(program: p.Program, keys: set[str]) -> tuple[str, ...]:
    return tuple(sorted(_called(program)[key] for key in keys - _several(program, keys)))


def with_variant(case: Case, variant: Variant) -> Case:
    """The case, built otherwise."""
    return replace(case, variant=variant)
