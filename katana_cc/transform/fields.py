"""The fields of two structs, matched by name.

Members of an anonymous struct are fields of what holds it, as in C.  An anonymous union stays one field: which of its
members is in use, its type does not say.  It is the same one as before when it shares a member's name.

A name that went and one that came where it was may be a rename, and what the value means to the new program then only
a person knows.  "Where it was" is the same place, or behind the same field, since a field that came before them moves
both; and the one must be something that could become the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from katana_cc.dwarf.types import TypeKind, TypeLayout
from katana_cc.transform.alike import is_empty
from katana_cc.transform.problems import Problem, ProblemKind
from katana_cc.transform.values import Layouts, Value, member_value, problem

# What a person said: (old type's key, old field) -> new field; "" when it is no rename.
Renames = Mapping[tuple[str, str], str]
ANONYMOUS = "(anonymous "
VTABLE = "_vptr.", "_vptr$"  # how the pointer to it is called: `_vptr.Class` by gcc, `_vptr$Class` by clang


@dataclass(frozen=True, slots=True)
class Fields:
    """What became of the fields: pairs (old, new), old ones without a successor, new ones without an origin."""

    pairs: tuple[tuple[Value, Value], ...]
    gone: tuple[Value, ...]
    came: tuple[Value, ...]
    problems: tuple[Problem, ...]


def match(
    old: tuple[TypeLayout, Layouts, str, int], new: tuple[TypeLayout, Layouts, str, int], renames: Renames
) -> Fields:
    """Match the fields of two structs; each side is (layout, all layouts, path of the struct, bit where it begins)."""
    before, after = dict(_fields(*old)), dict(_fields(*new))
    _same_unions(before, after, old[1], new[1])
    answers = {name: renames[old[0].name, name] for name in before if (old[0].name, name) in renames}
    successors = {name: name for name in before if name in after}
    successors |= {name: answer for name, answer in answers.items() if answer in after and answer not in before}
    starts = old[3], new[3]
    problems = [*_of_unions(before, after, old[1], new[1])]
    problems = problems or [*_possible_renames(before, after, starts, successors, answers)]
    taken = set(successors.values())
    return Fields(
        tuple((before[a], after[b]) for a, b in successors.items()),
        tuple(v for name, v in before.items() if name not in successors),
        tuple(v for name, v in after.items() if name not in taken),
        tuple(problems),
    )


def _fields(
    layout: TypeLayout, layouts: Layouts, prefix: str, base: int, inside: tuple[TypeLayout, ...] = ()
) -> Iterator[tuple[str, Value]]:
    """(name, value) of each field, those of anonymous structs among them; `inside`: what we are in already."""
    for member in layout.members:
        if is_empty(member.aggregate, layouts):
            continue
        value = member_value(member, layout, prefix, base)
        if not member.name.startswith(ANONYMOUS):
            yield member.name, value
            continue
        inner = layouts.get(member.aggregate)
        if inner is None:
            continue  # a nameless bit-field: padding
        if inner.kind is TypeKind.STRUCT and not member.form.bounds and inner not in inside:
            for name, nested in _fields(inner, layouts, prefix, value.bit, (*inside, inner)):
                yield name, replace(nested, owner=f"{layout.kind} {layout.name}")
        else:
            yield f"{layout.name}.{member.name}", value


def union_names(value: Value, layouts: Layouts) -> set[str]:
    """The names that an anonymous union brings into scope; none for any other field."""
    layout = layouts.get(value.aggregate)
    if layout is None or layout.kind is not TypeKind.UNION or not value.name.startswith(ANONYMOUS):
        return set()
    return {name for name, _ in _fields(layout, layouts, "", 0)}


def _same_unions(before: dict[str, Value], after: dict[str, Value], old: Layouts, new: Layouts) -> None:
    """Give anonymous unions of one kind on both sides one name: they are numbered, and one that came shifts them."""
    was = {name: names for name, v in before.items() if (names := union_names(v, old))}
    now = {name: names for name, v in after.items() if (names := union_names(v, new))}
    renamed: dict[str, str] = {}
    for name, names in now.items():
        twin = next((o for o, inside in was.items() if inside & names and o not in renamed.values()), None)
        renamed[name] = twin if twin is not None else f"{name} of the new build"
    items = list(after.items())
    after.clear()
    after.update((renamed.get(name, name), value) for name, value in items)


def _of_unions(before: dict[str, Value], after: dict[str, Value], old: Layouts, new: Layouts) -> Iterator[Problem]:
    """A field that left an anonymous union, or went into one: the bytes may be those of another member."""
    for fields, layouts, others, verb in ((before, old, after, "was"), (after, new, before, "is")):
        for name, value in fields.items():
            if name not in others and (moved := union_names(value, layouts) & others.keys()):
                text = f"field `{min(moved)}` of {value.owner} {verb} in a union with others, and not on the other side"
                yield problem(ProblemKind.UNION_CHANGED, others[min(moved)], text)


def _possible_renames(
    before: dict[str, Value],
    after: dict[str, Value],
    starts: tuple[int, int],
    successors: Mapping[str, str],
    answers: Mapping[str, str],
) -> Iterator[Problem]:
    for name, answer in answers.items():
        if answer and answer not in after and name not in after:
            was = before[name]
            text = f"field `{was.path}` of {was.owner} is said to be called `{answer}` now, and there is none"
            yield problem(ProblemKind.POSSIBLE_RENAME, was, text)
    taken = set(successors.values())
    places = {successor: name for name, successor in successors.items()}
    came = [name for name in after if name not in taken]
    for name, was in before.items():
        if name in successors or name in answers:
            continue
        behind = _previous(before, name, successors)
        for other in came:
            value = after[other]
            same_place = was.bit - starts[0] == value.bit - starts[1]
            if not _kin(was, value) or not (same_place or places.get(_previous(after, other, places), "") == behind):
                continue
            text = (
                f"field `{was.path}` ({was.in_words}) of {value.owner} is gone, and `{value.path}` "
                f"({value.in_words}) is where it was: whether it was renamed only a person knows (katana answer "
                f"'{was.owner}.{name}' {other}, or --gone)"
            )
            yield problem(ProblemKind.POSSIBLE_RENAME, value, text)
            came.remove(other)
            break


def _kin(old: Value, new: Value) -> bool:
    """Whether a value of the one type could go on as one of the other."""
    same = old.form.encoding is new.form.encoding or (old.form.is_integer and new.form.is_integer)
    return same and len(old.form.bounds) == len(new.form.bounds)


def _previous(fields: Iterable[str], name: str, known: Mapping[str, str]) -> str:
    """The nearest field before `name` that both sides have; "" at the start."""
    last = ""
    for field in fields:
        if field == name:
            break
        if field in known:
            last = field
    return last
