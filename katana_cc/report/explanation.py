"""Why a patch may be applied: `katana explain`, as data that text, JSON and HTML render alike.

Four questions, in the order a change-approval board asks them: what does it change, whom does it touch, is it safe, why
do we think so; then how it is applied and undone.  Every sentence follows from what the patch object holds.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from katana_cc.patch.codec import patch_id
from katana_cc.patch.model import HookKind, PatchObject, Reason, Verdict
from katana_cc.report.patch_json import reason_json
from katana_cc.report.summary import (
    SEVERITY_TITLES,
    Summary,
    allowance,
    clean,
    conclusion,
    converted,
    count,
    from_name,
    headline,
    location,
    summarise,
    to_name,
)


@dataclass(frozen=True, slots=True)
class Topic:
    """One question and its answer: sentences, then points."""

    title: str
    sentences: tuple[str, ...]
    points: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """The reasons of one severity."""

    severity: str
    title: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A whole explanation.  `facts` are (label, value) rows of the identity."""

    title: str
    verdict: str
    conclusion: str
    facts: tuple[tuple[str, str], ...]
    topics: tuple[Topic, ...]
    groups: tuple[Group, ...]


def explain(po: PatchObject, data: bytes) -> Explanation:
    """The explanation of `po`, whose file is `data`."""
    s = summarise(po)
    i = po.identity
    return Explanation(
        f"{i.output}: {from_name(i)} → {to_name(i)}",
        str(po.verdict),
        conclusion(s),
        (
            ("Output", i.output),
            ("From", f"{i.from_release or 'unnamed build'} (build-id {i.from_build_id})"),
            ("To", f"{i.to_release or 'unnamed build'} (build-id {i.to_build_id})"),
            ("Patch", patch_id(data)),
            ("Size", f"{count(len(data), 'byte')}; {count(s.mapped_bytes, 'byte')} in the process"),
        ),
        (_changes(s, po), _touched(s), _safety(s), _handling(s)),
        tuple(Group(v, SEVERITY_TITLES.get(v, v), reasons) for v, reasons in s.reasons.items()),
    )


def to_text(e: Explanation) -> str:
    """The explanation for a terminal."""
    lines = [e.title, "=" * len(e.title), e.conclusion, ""]
    lines += [f"{label:8}{value}" for label, value in e.facts]
    for topic in e.topics:
        lines += ["", topic.title, *map(_wrap, topic.sentences), *(f"  - {p}" for p in topic.points)]
    lines += ["", "Why"]
    for group in e.groups:
        lines.append(f"  {group.title}:")
        for r in group.reasons:
            place = f", {location(r)}" if location(r) else ""
            lines.append(clean(f"  - {r.subject}: {r.text} [{r.code}{place}]"))
    if not e.groups:
        lines.append("  No reason was recorded.")
    return "\n".join(clean(part) for line in lines for part in line.split("\n")) + "\n"


def to_json(e: Explanation) -> dict[str, Any]:
    """The explanation for `json.dumps`."""
    topics = [{"title": t.title, "sentences": list(t.sentences), "points": list(t.points)} for t in e.topics]
    reasons = [reason_json(r) for g in e.groups for r in g.reasons]
    facts = {label.lower(): value for label, value in e.facts}
    head = {"title": e.title, "verdict": e.verdict, "conclusion": e.conclusion}
    return {**head, "facts": facts, "topics": topics, "reasons": reasons}


def _wrap(sentence: str) -> str:
    return textwrap.fill(clean(sentence), 100, initial_indent="  ", subsequent_indent="  ", break_long_words=False)


def _changes(s: Summary, po: PatchObject) -> Topic:
    moved = [d.transformation for d in po.transforms if d.symbol is not None]
    if s.verdict is Verdict.REFUSED:
        return Topic("What it changes", ("Nothing: a refused patch carries its reasons only.",))
    points = [
        f"{f.name} is replaced ({f.old_size} → {count(f.new_size, 'byte')}, at {f.address:#x})" for f in s.changed
    ]
    points += [
        f"{h.name} {'is called' if h.kind.makes_objects else 'runs'} {h.kind.words}: it is of the program's authors"
        for h in s.hooks
    ]
    points += [f"{f.name} is new ({count(f.size, 'byte')})" for f in s.new_functions]
    points += [
        f"{t.name} is made anew ({t.old_size} → {count(t.new_size, 'byte')}), "
        f"{'as the new build has it, if nothing has written to it' if t.takes_nothing else 'with its live value'}"
        for t in moved
    ]
    points += [
        f"objects of {t.name} are made anew wherever pointers lead to them ({t.old_size} → "
        f"{count(t.new_size, 'byte')} each)"
        for t in converted(po)
    ]
    points += [f"{name} stays, and is made to use the new one where it does" for name in s.retargeted]
    points += [f"{d.name} is new: {d.kind}, {count(d.size, 'byte')}" for d in s.new_data]
    points += [f"{d.name}: {count(d.size, 'byte')} at {d.address:#x}, rewritten where it is" for d in s.rewritten]
    points += [
        f"{d.name} ({count(d.size, 'byte')} at {d.address:#x}) "
        + (
            "gets its new initial value, as the source says; what it holds is lost until a revert"
            if d.is_taken
            else f"keeps its live value; --take-initialiser {d.name} gives it the new initial one"
        )
        for d in s.initialisers
    ]
    points += [
        f"{r.name} of a library is used for the first time{', when it is there' if r.weak else ''}"
        for r in s.new_imports
    ]
    return Topic("What it changes", (f"{headline(s)}.",), tuple(points))


def _touched(s: Summary) -> Topic:
    i = s.identity
    release = f" (release {i.from_release})" if i.from_release else ""
    sentences = [
        f"Processes that run or map {i.output} of build-id {i.from_build_id}{release}, and no others: a process of any "
        "other build is left alone."
    ]
    if s.active:
        sentences.append(
            f"Always running: {', '.join(s.active)}. Calls in progress go on in the old code; the patch is applied "
            f"only when that is allowed with {allowance(s)}."
        )
    if len(s.changed) > len(s.active):
        sentences.append(
            "Each is stopped once, for a moment, when none of its threads is inside one of these functions:"
        )
    return Topic("Whom it touches", tuple(sentences), tuple(f.name for f in s.changed if f.name not in s.active))


def _safety(s: Summary) -> Topic:
    sentences = [conclusion(s)]
    if s.verdict is not Verdict.REFUSED:
        ranges = len(s.changed) + sum(len(f.parts) for f in s.changed)
        if ranges:
            what = "that code is" if ranges == 1 else f"those {ranges} ranges of code are"
            sentences.append(
                f"Before anything is written, {what} compared by SHA-256 with what the build made; a process whose "
                "code differs is refused."
            )
        if s.blanked:
            sentences.append(
                f"Of {', '.join(s.blanked)} it is compared but for what a linker writes there: the patch was put "
                "together from two, and no build was at hand that tells."
            )
        if s.rewritten:
            sentences.append(
                "The data rewritten in place must hold its old contents exactly, or the process is refused."
            )
        if s.carried_over:
            sentences.append(
                f"{', '.join(s.carried_over)}: the live value is carried over field by field into a new place, in the "
                "same stop as the code. All writable memory is searched for pointers to the old one: those that a type "
                "explains are followed, any other is listed and the process is refused, unless `--follow` names the "
                "variable."
            )
        if s.types:
            sentences.append(
                f"{', '.join(s.types)}: objects on the heap are found by following pointers by their types, from the "
                "variables named below, and made anew in the same stop, where they are or in blocks that the program's "
                "own malloc gives out. A pointer that leads to no such object refuses the process, and so does a block "
                "of the same size that nothing led to, unless `--only-reached` names the type."
            )
        if any(h.kind in (HookKind.BEFORE, HookKind.BEFORE_REVERT) for h in s.hooks):
            sentences.append(
                "What runs before can keep the patch out, or in, by its result, by a fault or by taking too long: then "
                "nothing is changed, except by what it did itself."
            )
        others = "Other variables" if s.carried_over else "Variables that exist"
        sentences.append(f"{others} keep their values and addresses.")
    return Topic("Is it safe", tuple(sentences))


def _handling(s: Summary) -> Topic:
    if s.verdict is Verdict.REFUSED:
        return Topic("What to do", ("Deploy the new build by a restart, or change the source so that the reasons go.",))
    sentences = [
        f"`katana apply PO --pid PID{' ' * bool(s.options)}{allowance(s)}` applies it, `--dry-run` shows first what "
        "would be written.",
        "`katana revert --pid PID` writes the old bytes back exactly.",
    ]
    if s.carried_over:
        sentences.append(
            f"Revert carries {', '.join(s.carried_over)} back too, with the values of that moment, unless a field that "
            "the old build has no room for holds a value: then it is refused and names the field."
        )
    if s.types:
        sentences.append(f"Revert finds the objects of {', '.join(s.types)} again, new ones among them.")
    names = ", ".join(d.name for d in s.new_data if d.kind != "constant")
    if names:
        sentences.append(f"Revert takes the new variables out with their values: {names}.")
    return Topic("How it is applied and undone", tuple(sentences))
