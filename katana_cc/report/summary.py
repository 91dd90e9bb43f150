"""What a patch object changes, drawn together for people and scripts.  Text, JSON and HTML are all made from this."""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

from katana_cc.diff.reasons import Code, by_weight
from katana_cc.elf import constants as c
from katana_cc.patch.model import (
    REGISTRATION,
    HookKind,
    Identity,
    PatchObject,
    PatchSection,
    PatchSymbol,
    Reason,
    Verdict,
)
from katana_cc.patch.needs import grant_for, needs_of
from katana_cc.transform.model import Transformation

SEVERITY_TITLES: Final = {
    "refused": "Refused because",
    "needs": "Needs a decision",
    "info": "Carried, or left out for a reason",
}


class ChangedFunction(NamedTuple):
    """A function that is replaced.  Sizes in bytes; `parts` are (address, size) of its further ranges in the target."""

    name: str
    address: int
    old_size: int
    new_name: str
    new_size: int
    parts: tuple[tuple[int, int], ...]


class NewThing(NamedTuple):
    """A function or datum the patch brings; `kind`: function, variable, zeroed variable, constant or thread-local."""

    name: str
    kind: str
    size: int
    section: str


_TAKEN: Final = {True: "taken", False: "not taken"}


class RewrittenDatum(NamedTuple):
    """Data rewritten in place: read-only, or pointers; or the initial value that a variable gets if it is asked for, or
    with `is_taken` without that."""

    name: str
    address: int
    size: int
    is_taken: bool = False


class UsersHook(NamedTuple):
    """A function of the user's that runs when the patch is applied or reverted; `size` of what calls it, in bytes."""

    name: str
    kind: HookKind
    size: int


class Reference(NamedTuple):
    """Something the new code uses: an import found by name (`address` None; a weak one may be absent), or what exists
    in the target (its link-time address; for thread-local ones the offset in the output's TLS segment)."""

    name: str
    address: int | None
    weak: bool
    thread_local: bool


class Summary(NamedTuple):
    """All that is said of a patch object, beside its raw sections, symbols and relocations.

    `carried_over` are the variables that are made anew with their live value, `retargeted` the functions that stay and
    are made to use them; neither is counted as new or rewritten.  `types` are those whose objects are made anew
    wherever pointers lead to them.  `unnamed_bytes` are the mapped sections without a
    symbol; `active` the replaced functions that are always active; `new_imports` are those imports that the old program
    did not have; `options` what `katana apply` must be told, a need each; `blanked` the replaced functions whose
    digest leaves something out.
    """

    identity: Identity
    verdict: Verdict
    changed: tuple[ChangedFunction, ...]
    new_functions: tuple[NewThing, ...]
    new_data: tuple[NewThing, ...]
    unnamed_bytes: int
    rewritten: tuple[RewrittenDatum, ...]
    initialisers: tuple[RewrittenDatum, ...]
    carried_over: tuple[str, ...]
    types: tuple[str, ...]
    retargeted: tuple[str, ...]
    hooks: tuple[UsersHook, ...]
    imports: tuple[Reference, ...]
    new_imports: tuple[Reference, ...]
    existing: tuple[Reference, ...]
    reasons: dict[str, tuple[Reason, ...]]
    mapped_bytes: int
    active: tuple[str, ...]
    options: tuple[str, ...]
    blanked: tuple[str, ...] = ()


def summarise(po: PatchObject) -> Summary:
    """The summary of a patch object."""
    replacing = {r.symbol for r in po.replacements}
    calling = {h.symbol for h in po.hooks}
    names = {y.name for y in po.symbols}
    places = {(po.symbols[i].section, po.symbols[i].value) for i in replacing}
    changed = tuple(
        ChangedFunction(
            r.name,
            r.address,
            r.size,
            po.symbols[r.symbol].name,
            po.symbols[r.symbol].size,
            tuple((address, size) for address, size, _ in r.parts),
        )
        for r in po.replacements
    )
    functions, data = [], []
    named: set[int] = set()
    moved = {po.symbols[d.symbol].section: d.transformation.name for d in po.transforms if d.symbol is not None}
    retargeted = tuple(dict.fromkeys(r.subject for r in po.reasons if r.code == Code.CODE_RETARGETED))
    for i, y in enumerate(po.symbols):
        if y.section is None or y.type not in (c.STT_FUNC, c.STT_OBJECT, c.STT_TLS, c.STT_GNU_IFUNC):
            continue
        section = po.sections[y.section]
        if not section.flags & c.SHF_ALLOC:
            continue
        named.add(y.section)
        thing = NewThing(y.name, _kind(section), y.size, section.name)
        if thing.kind != "function":
            data += [thing] if y.section not in moved else []
        elif i not in replacing | calling and (y.section, y.value) not in places and not _is_fragment(y.name, names):
            functions.append(thing)
    # What only registers frames is no part of the change.
    used = {r.symbol for s in po.sections for r in s.relocations}
    silent = {i for i, y in enumerate(po.symbols) if y.name in REGISTRATION and i not in used}
    references = [_reference(y) for i, y in enumerate(po.symbols) if y.section is None and i not in silent]
    fresh = {r.subject for r in po.reasons if r.code == Code.IMPORT_NEW}
    mapped = {i: s.size for i, s in enumerate(po.sections) if s.flags & c.SHF_ALLOC}
    return Summary(
        po.identity,
        po.verdict,
        changed,
        tuple(functions),
        tuple(data),
        sum(size for i, size in mapped.items() if i not in named),
        tuple(r for r in _rewritten(po, False) if r.name.rpartition("+")[0] not in retargeted),
        _rewritten(po, True),
        tuple(moved.values()),
        tuple(t.name for t in converted(po) if not t.name.endswith("]")),
        retargeted,
        tuple(UsersHook(h.name, h.kind, po.symbols[h.symbol].size) for h in po.hooks),
        tuple(r for r in references if r.address is None),
        tuple(r for r in references if r.address is None and r.name in fresh),
        tuple(r for r in references if r.address is not None),
        {s: tuple(group) for s, group in itertools.groupby(by_weight(po.reasons), lambda r: r.severity)},
        sum(mapped.values()),
        tuple(r.subject for r in po.reasons if r.code == Code.MAIN_ACTIVE),
        tuple(dict.fromkeys(str(n.grant) for n in needs_of(po) if n.grant)),
        tuple(r.name for r in po.replacements if r.blanks),
    )


def converted(po: PatchObject) -> list[Transformation]:
    """How the objects of each type that are made anew wherever pointers lead to them become new ones."""
    return [d.transformation for d in po.transforms if d.is_type and not d.transformation.is_identity]


def headline(summary: Summary) -> str:
    """What changed, in a few words: "2 functions changed, 1 new"."""
    words = []
    single = len(summary.carried_over) == 1
    if summary.changed:
        words.append(f"{count(len(summary.changed), 'function')} changed")
    if summary.new_functions:
        new = len(summary.new_functions)
        words.append(f"{new} new" if summary.changed else f"{count(new, 'new function')}")
    if summary.carried_over:
        words.append(f"{count(len(summary.carried_over), 'variable')} carried over")
    if summary.types:
        words.append(f"objects of {count(len(summary.types), 'type')} carried over")
    if summary.retargeted:
        words.append(f"{count(len(summary.retargeted), 'function')} made to use {'it' if single else 'them'}")
    variables = sum(d.kind != "constant" for d in summary.new_data)
    if variables:
        words.append(count(variables, "new variable"))
    if summary.rewritten:
        words.append(count(len(summary.rewritten), "data edit"))
    for number, how in ((sum(d.is_taken is taken for d in summary.initialisers), how) for taken, how in _TAKEN.items()):
        if number:
            words.append(f"{count(number, 'new initial value')} {how}")
    words += hook_words(summary)
    return ", ".join(words) or "nothing carried"


def hook_words(summary: Summary) -> list[str]:
    """How many hooks run when: "runs 1 hook before", "1 after"."""
    words: list[str] = []
    for kind in (k for k in HookKind if not k.makes_objects):
        if number := sum(h.kind is kind for h in summary.hooks):
            words.append(f"{number} {kind.words}" if words else f"runs {count(number, 'hook')} {kind.words}")
    makers = sum(h.kind is HookKind.TRANSFORM for h in summary.hooks)
    return [*words, f"{count(makers, 'function')} for live objects"] if makers else words


def conclusion(summary: Summary) -> str:
    """What the verdict means, in a sentence."""
    if summary.verdict is Verdict.REFUSED:
        reasons = len(summary.reasons.get("refused", ()))
        return f"Refused: this change cannot be made in a running process, for {count(reasons, 'reason')} named below."
    if summary.verdict is Verdict.NEEDS:
        needs = len(summary.reasons.get("needs", ()))
        points = f"{count(needs, 'point')} below {'is' if needs == 1 else 'are'} settled"
        if all(grant_for(r) for r in summary.reasons.get("needs", ())):
            return f"Needs a decision: it can be applied with {allowance(summary)}, once {points}."
        return f"Needs a decision: it can be applied once {points}."
    return "Safe: it can be applied as it is."


def allowance(summary: Summary) -> str:
    """The options that meet the needs of the patch."""
    return " ".join(summary.options)


def one_line(po: PatchObject, path: str, remark: str = "") -> str:
    """The line a link prints after it made the patch object at `path`; `remark` says more of the whole build."""
    summary = summarise(po)
    start = f"katana: {po.identity.output} ({from_name(po.identity)} → {to_name(po.identity)}): "
    if po.verdict is Verdict.REFUSED:
        refusals = summary.reasons.get("refused", ())
        text = "refused"
        if refusals:
            text += f": {reason_line(refusals[0])}"
        if len(refusals) > 1:
            text += f" (and {len(refusals) - 1} more)"
        text += f"; {remark}" if remark else ""
        return clean(f"{start}{text}: {path}")
    verdict = f"needs {allowance(summary) or 'a decision'}" if po.verdict is Verdict.NEEDS else str(po.verdict)
    return clean(f"{start}{headline(summary)}{remark and f', {remark}'}, {verdict}: {path}")


def reason_line(reason: Reason) -> str:
    """A reason in one line: subject, words, place."""
    place = f" ({location(reason)})" if location(reason) else ""
    return f"{reason.subject}: {reason.text}{place}" if reason.subject else f"{reason.text}{place}"


def location(reason: Reason) -> str:
    """`file:line`, or as much of it as is known."""
    return f"{reason.file}:{reason.line}" if reason.file and reason.line else reason.file


def from_name(identity: Identity) -> str:
    """What to call the build it starts from: its release, else the start of its build-id."""
    return identity.from_release or identity.from_build_id[:8]


def to_name(identity: Identity) -> str:
    """What to call the build it leads to."""
    return identity.to_release or identity.to_build_id[:8]


def count(number: int, noun: str) -> str:
    """`1 function`, `2 functions`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def edited(edits: int, threads: int, pause_us: float) -> str:
    """What was done to a process: `2 edits, 5 threads stopped for 0.61 ms`."""
    return f"{count(edits, 'edit')}, {count(threads, 'thread')} stopped for {pause_us / 1000:.2f} ms"


def clean(text: str) -> str:
    """`text` fit for a terminal and for UTF-8: control characters and undecodable bytes as escapes.

    Names come from other people's sources; an escape sequence in one must not drive the reader's terminal.
    """
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode("ascii") for ch in text)


def _rewritten(po: PatchObject, initialisers: bool) -> tuple[RewrittenDatum, ...]:
    edits = (e for e in po.data_edits if e.is_initialiser is initialisers and not e.is_condition)
    return tuple(RewrittenDatum(e.name, e.address, po.sections[e.replacement].size, e.is_taken) for e in edits)


def _kind(section: PatchSection) -> str:
    if section.flags & c.SHF_EXECINSTR:
        return "function"
    if section.flags & c.SHF_TLS:
        return "thread-local"
    if section.type == c.SHT_NOBITS:
        return "zeroed variable"
    return "variable" if section.flags & c.SHF_WRITE else "constant"


def _is_fragment(name: str, others: set[str]) -> bool:
    """Whether it is the .cold or .part.N of another function that the patch brings or knows."""
    base, dot, rest = name.partition(".")
    return bool(dot) and rest.split(".")[0] in ("cold", "part") and base in others


def _reference(y: PatchSymbol) -> Reference:
    exists = bool(y.value) or y.type == c.STT_TLS
    return Reference(y.name, y.value if exists else None, y.binding == c.STB_WEAK, y.type == c.STT_TLS)
