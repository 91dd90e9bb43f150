"""From two layouts to a transformation, or to the questions that keep it from being one.

The walk goes down both types at once: fields by name, elements by index, bases by name; at the bottom `values.scalar`
gives the step.  What is alike in both builds and holds no pointer is copied whole.  Arrays become one `Repeat`, so a
transformation is as long as the types are, never as long as the data.

Refused, since nothing in the types decides it: fields that may be renamed, unions of which more changed than that they
gained members, bases that changed, virtual bases (where they lie, the object itself says), open arrays (how long they
are, only the program knows).

Sources: the Katana paper, section on data transformation; Itanium C++ ABI 2.4 (layout of bases).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from katana_cc.dwarf.forms import Encoding, Form
from katana_cc.dwarf.types import Base, TypeKind, TypeLayout
from katana_cc.dwarf.variables import Variable
from katana_cc.transform import byhand
from katana_cc.transform.alike import Alike, is_empty
from katana_cc.transform.fields import ANONYMOUS, VTABLE, Renames, match
from katana_cc.transform.model import Copy, Dropped, Initial, Repeat, Step, Transformation, joined
from katana_cc.transform.problems import Problem, ProblemKind
from katana_cc.transform.rules import broken, ordered
from katana_cc.transform.values import Layouts, Value, changed, problem, scalar

Outcome = Transformation | tuple[Problem, ...]


def between_types(
    old_key: str,
    old: Layouts,
    new_key: str,
    new: Layouts,
    renames: Renames | None = None,
    by_hand: Collection[str] = (),
) -> Outcome:
    """The transformation of an object of a struct, union or class, or the problems.

    Args:
        old_key, new_key: keys in `old` and `new`, the layouts of all aggregates of each build.
        renames: what a person said of possible renames: (key of the old type, old field) → new field, "" for none.
        by_hand: keys of types that functions of the user's make, of which nothing is asked.
    """
    return _between_types(old_key, old, new_key, new, renames, by_hand)[0]


def type_parts_by_hand(key: str, old: Layouts, new: Layouts, by_hand: Collection[str]) -> tuple[byhand.Part, ...]:
    """The parts of an object of a type that functions of the user's make."""
    return tuple(_between_types(key, old, key, new, None, by_hand)[1]) if by_hand else ()


def _between_types(
    old_key: str, old: Layouts, new_key: str, new: Layouts, renames: Renames | None, by_hand: Collection[str]
) -> tuple[Outcome, list[byhand.Part]]:
    before, after = old.get(old_key), new.get(new_key)
    if before is None or after is None:
        side = "old" if before is None else "new"
        key = old_key if before is None else new_key
        return (Problem(ProblemKind.NO_LAYOUT, key, "", f"the {side} build does not define {key}", "", 0),), []
    walk = _Walk(old, new, renames or {}, by_hand, alike=Alike(old, new).alike(old_key, new_key))
    steps = list(walk.value(_whole(before, old_key), _whole(after, new_key)))
    problems = walk.problems or list(walk.moved())
    return _outcome(f"{after.kind} {new_key}", before.size, after.size, steps, problems), walk.parts


def between_variables(
    old: Variable,
    old_layouts: Layouts,
    new: Variable,
    new_layouts: Layouts,
    renames: Renames | None = None,
    by_hand: Collection[str] = (),
) -> Outcome:
    """The same for a variable of any type: a number, an array, a struct."""
    return _between_variables(old, old_layouts, new, new_layouts, renames, by_hand)[0]


def parts_by_hand(
    old: Variable, old_layouts: Layouts, new: Variable, new_layouts: Layouts, by_hand: Collection[str]
) -> tuple[byhand.Part, ...]:
    """The parts of a variable that functions of the user's make."""
    return tuple(_between_variables(old, old_layouts, new, new_layouts, None, by_hand)[1]) if by_hand else ()


def _between_variables(
    old: Variable,
    old_layouts: Layouts,
    new: Variable,
    new_layouts: Layouts,
    renames: Renames | None,
    by_hand: Collection[str],
) -> tuple[Outcome, list[byhand.Part]]:
    same = old.aggregate == new.aggregate == "" or Alike(old_layouts, new_layouts).alike(old.aggregate, new.aggregate)
    walk = _Walk(old_layouts, new_layouts, renames or {}, by_hand, alike=same and old.type == new.type)
    steps = list(walk.value(_of_variable(old), _of_variable(new)))
    problems = walk.problems or list(walk.moved())
    return _outcome(new.qualified, old.size, new.size, steps, problems, old.type), walk.parts


def _outcome(
    name: str, old_size: int, new_size: int, steps: list[Step], problems: list[Problem], type_: str = ""
) -> Outcome:
    if problems:
        return tuple(problems)
    made = Transformation(name, old_size, new_size, ordered(steps), type_)
    if wrong := broken(made):
        # Layouts that contradict themselves: damaged debug information, or a layout that is not understood.
        text = f"the fields of {name} do not fit together: {wrong[0]}"
        return (Problem(ProblemKind.NOT_SUPPORTED, name, "", text, "", 0),)
    return made


def _whole(layout: TypeLayout, key: str) -> Value:
    title = f"{layout.kind} {layout.name}"
    encoding = Encoding.UNSIGNED if layout.kind is TypeKind.ENUM else Encoding.AGGREGATE
    form = Form(encoding, layout.size)
    return Value("", 0, None, layout.size, title, key, form, title, layout.file, layout.line)


def _of_variable(v: Variable) -> Value:
    return Value("", 0, None, v.size, v.type, v.aggregate, v.form, f"variable {v.qualified}", v.file, v.line)


class _Walk:
    """One walk down two types.  `problems` fills on the way; `alike`: the whole is, so that nothing is asked."""

    def __init__(self, old: Layouts, new: Layouts, renames: Renames, by_hand: Collection[str], *, alike: bool) -> None:
        self._old, self._new, self._renames = old, new, renames
        self._alike = Alike(old, new)
        self._whole_alike = alike
        self._inside: list[tuple[str, str]] = []
        self._gone: dict[str, Value] = {}
        self._came: dict[str, Value] = {}
        self._by_hand = by_hand
        self._levels: list[byhand.Level] = []
        self.parts: list[byhand.Part] = []
        self.problems: list[Problem] = []

    def value(self, old: Value, new: Value, *, whole: bool = True) -> Iterator[Step]:
        """The steps of one field; `whole`: its padding is its own, so it may be copied whole."""
        if old.form.bounds or new.form.bounds:
            yield from self._array(old, new)
        elif old.form.encoding is new.form.encoding is Encoding.AGGREGATE:
            yield from self._aggregate(old, new, whole)
        elif Encoding.AGGREGATE in (old.form.encoding, new.form.encoding):
            self.problems.append(changed(old, new))
        else:
            found = scalar(old, new, self._old, self._new)
            if isinstance(found, Problem):
                self.problems.append(found)
            else:
                yield found

    # -- arrays --------------------------------------------------------------------------------------------------------

    def _array(self, old: Value, new: Value) -> Iterator[Step]:
        if len(old.form.bounds) != len(new.form.bounds):
            self.problems.append(changed(old, new))
            return
        was, now = old.form.bounds[0], new.form.bounds[0]
        if not was or not now:
            if not self._whole_alike:
                self._open(new)
            return
        old_element, new_element = old.element, new.element
        count, strides = min(was, now), (old_element.size, new_element.size)
        self._levels.append(byhand.Level(count, old.bit // 8, strides[0], new.bit // 8, strides[1]))
        steps = ordered(self.value(old_element, new_element))
        self._levels.pop()
        if steps == (Copy(0, 0, strides[1]),) and strides[0] == strides[1]:
            yield Copy(new.bit // 8, old.bit // 8, count * strides[0], new.path, old.path)
        elif steps:
            labels = f"{new.path}[]", f"{old.path}[]"
            yield Repeat(count, new.bit // 8, strides[1], old.bit // 8, strides[0], steps, *labels)
        yield from self._rest(old, new, count)

    def _open(self, value: Value) -> None:
        text = f"`{value.label}` of {value.owner} is an open array: how many elements there are, its type does not say"
        self.problems.append(problem(ProblemKind.FLEXIBLE_ARRAY, value, text))

    def _rest(self, old: Value, new: Value, count: int) -> Iterator[Step]:
        """The elements that only one side has."""
        was, now = old.form.bounds[0] or 0, new.form.bounds[0] or 0
        if now > count:
            self._needs_value(new)
            stride = new.size * 8 // now
            yield Initial(new.bit + count * stride, (now - count) * stride, _elements(new.path, count, now))
        if was > count:
            stride = old.size * 8 // was
            yield Dropped(old.bit + count * stride, (was - count) * stride, _elements(old.path, count, was))

    # -- structs and unions --------------------------------------------------------------------------------------------

    def _aggregate(self, old: Value, new: Value, whole: bool) -> Iterator[Step]:
        before, after = self._old.get(old.aggregate), self._new.get(new.aggregate)
        if (
            old.aggregate == new.aggregate
            and new.aggregate in self._by_hand
            and before is not None
            and after is not None
        ):
            yield from self._handed(old, new, before, after, whole)
        elif before is None or after is None:
            text = f"`{new.label}` of {new.owner}: {new.type} has no name by which its fields could be compared"
            self.problems.append(problem(ProblemKind.NO_LAYOUT, new, text))
        elif before.kind is not after.kind:
            self.problems.append(changed(old, new))
        elif not self._whole_alike and self._alike.open_ended(old.aggregate):
            self._open(new)
        elif (old.aggregate, new.aggregate) in self._inside:
            text = f"{new.owner} holds itself: damaged debug information"
            self.problems.append(problem(ProblemKind.NOT_SUPPORTED, new, text))
        elif before.kind is TypeKind.UNION:
            yield from self._union(old, new, before, after)
        elif is_empty(old.aggregate, self._old) and is_empty(new.aggregate, self._new):
            return
        elif whole and new.label and self._copies(old.aggregate, new.aggregate):
            # (Not the whole object itself: whoever asks of an unchanged type wants its fields.)
            if new.size:
                yield Copy(new.bit // 8, old.bit // 8, new.size, new.path, old.path)
        else:
            self._inside.append((old.aggregate, new.aggregate))
            yield from self._bases(old, new, before, after)
            yield from self._fields(old, new, before, after, whole)
            self._inside.pop()

    def _handed(self, old: Value, new: Value, before: TypeLayout, after: TypeLayout, whole: bool) -> Iterator[Step]:
        """What a part that a function makes begins as: nothing is asked of it."""
        sizes = old.size, new.size
        if self._alike.open_ended(old.aggregate) or any(m.form.bounds and not m.form.count for m in after.members):
            self._open(new)  # how long the object is, neither type says
            return
        if byhand.rows(self._levels) > byhand.ROWS_LIMIT:
            text = f"`{new.label}` of {new.owner}: arrays in arrays of what a function of the program's is to make"
            self.problems.append(problem(ProblemKind.NOT_SUPPORTED, new, text))
            return
        self.parts += byhand.parts(new.aggregate, old.bit // 8, new.bit // 8, sizes, self._levels)
        if TypeKind.UNION in (before.kind, after.kind) or before.bases or after.bases:
            yield Initial(new.bit, new.size * 8, new.path)
            yield Dropped(old.bit, old.size * 8, old.path)
            return
        answered = {(before.name, m.name): "" for m in before.members} | dict(self._renames)
        sides = (before, self._old, old.path, old.bit), (after, self._new, new.path, new.bit)
        fields = match(*sides, answered)
        gone, came = [*fields.gone], [*fields.came]
        for was, now in fields.pairs:
            mark = len(self.problems), len(self.parts)
            steps = list(self.value(was, now, whole=whole))
            if len(self.problems) > mark[0] or byhand.may_lose(steps):
                del self.problems[mark[0] :], self.parts[mark[1] :]
                gone.append(was)
                came.append(now)
            else:
                yield from steps
        yield from (Initial(value.bit, value.width, value.path) for value in came if value.width)
        yield from (Dropped(value.bit, value.width, value.path) for value in gone if value.width)

    def _copies(self, old_key: str, new_key: str) -> bool:
        return self._alike.alike(old_key, new_key) and not self._alike.holds_pointers(old_key)

    def _union(self, old: Value, new: Value, before: TypeLayout, after: TypeLayout) -> Iterator[Step]:
        """One that kept its members is copied whole, whichever of them is in use."""
        now = {m.name: m for m in after.members}
        for member in before.members:
            successor = now.get(member.name)
            same = successor is not None and (member.type, member.size, member.bit_size, member.bit_offset) == (
                successor.type, successor.size, successor.bit_size, successor.bit_offset,
            )  # fmt: skip
            if same and successor is not None and member.aggregate:
                same = self._alike.alike(member.aggregate, successor.aggregate)
            if not same:
                text = (
                    f"member `{member.name}` of {before.kind} {before.name} changed, and which member is in use, its "
                    f"type does not say"
                )
                line = successor.line if successor is not None else after.line
                self.problems.append(
                    Problem(ProblemKind.UNION_CHANGED, f"union {after.name}", new.label, text, after.file, line)
                )
                return
        if after.size < before.size:
            self.problems.append(changed(old, new))
            return
        yield Copy(new.bit // 8, old.bit // 8, before.size, new.path, old.path)

    def _bases(self, old: Value, new: Value, before: TypeLayout, after: TypeLayout) -> Iterator[Step]:
        where = replace(new, owner=f"struct {after.name}")
        if any(b.offset < 0 for b in (*before.bases, *after.bases)):
            text = f"struct {after.name} has a virtual base: where it lies, only the object itself says"
            self.problems.append(problem(ProblemKind.VIRTUAL_BASE, where, text))
        elif [b.name for b in before.bases] != [b.name for b in after.bases]:
            text = f"the base classes of struct {after.name} were {_names(before)}, are {_names(after)}"
            self.problems.append(problem(ProblemKind.BASES_CHANGED, where, text))
        else:
            for was, now in zip(before.bases, after.bases, strict=True):
                # Fields of a class may lie in the padding of its base, so a base is never copied whole.
                sides = _base(old, was, self._old), _base(new, now, self._new)
                yield from self.value(*sides, whole=False)

    def _fields(self, old: Value, new: Value, before: TypeLayout, after: TypeLayout, whole: bool) -> Iterator[Step]:
        sides = (before, self._old, old.path, old.bit), (after, self._new, new.path, new.bit)
        fields = match(*sides, self._renames)
        self.problems += fields.problems
        if fields.problems:
            return
        olds, news = [*(a for a, _ in fields.pairs), *fields.gone], [*(b for _, b in fields.pairs), *fields.came]
        for was, now in fields.pairs:
            own = whole and not _overlapped(was, olds) and not _overlapped(now, news)
            yield from self.value(was, now, whole=own)
        for value in (*fields.gone, *fields.came):
            if value.name.startswith(VTABLE):
                text = f"{value.owner} has virtual functions on one side only"
                self.problems.append(problem(ProblemKind.VTABLE_CHANGED, value, text))
                return
            if value.form.bounds and not value.form.count:
                self._open(value)
        for value in fields.gone:
            if (before.name, value.name) not in self._renames:
                self._note(self._gone, value, self._old)
        for value in fields.came:
            self._note(self._came, value, self._new)
            self._needs_value(value)
            if value.width:
                yield Initial(value.bit, value.width, value.path)
        for value in fields.gone:
            if value.width:
                yield Dropped(value.bit, value.width, value.path)

    def _note(self, names: dict[str, Value], value: Value, layouts: Layouts) -> None:
        """Remember the name of a field that only one side has, and all names inside of it."""
        waiting, seen = [(value.name, value.aggregate)], set()
        while waiting:
            name, key = waiting.pop()
            names.setdefault(name, value)
            layout = layouts.get(key)
            if layout is not None and key not in seen:
                seen.add(key)
                waiting += [(m.name, m.aggregate) for m in layout.members]

    def moved(self) -> Iterator[Problem]:
        """A name that went in one struct and came in another: its value would be lost without a word."""
        for name, was in self._gone.items():
            now = self._came.get(name)
            if now is not None and not name.startswith(ANONYMOUS):
                text = (
                    f"field `{name}` of {was.owner} is gone, and in `{now.path}` of {now.owner} is one of this name: "
                    f"whether it is the same only a person knows (if not: katana answer '{was.owner}.{name}' --gone)"
                )
                yield problem(ProblemKind.POSSIBLE_RENAME, now, text)

    def _needs_value(self, value: Value) -> None:
        """A new reference, or a new object of a class with virtual functions, is nothing while it is all zeros."""
        if value.type.endswith("&") or self._is_polymorphic(value.aggregate):
            text = f"`{value.label}` of {value.owner} is new, and zeros are no value of {value.type}"
            self.problems.append(problem(ProblemKind.NO_VALUE, value, text))

    def _is_polymorphic(self, key: str, depth: int = 0) -> bool:
        layout = self._new.get(key)
        if layout is None or layout.kind is not TypeKind.STRUCT or depth > 100:
            return False
        inner = [m.aggregate for m in layout.members if m.aggregate] + [b.key for b in layout.bases]
        own = any(m.name.startswith(VTABLE) or m.type.endswith("&") for m in layout.members)
        return own or any(self._is_polymorphic(k, depth + 1) for k in inner)


def _base(holder: Value, base: Base, layouts: Layouts) -> Value:
    layout = layouts.get(base.key)
    size = layout.size if layout is not None else 0
    return replace(
        holder,
        path=joined(holder.path, f"({base.key})"),
        bit=holder.bit + base.offset * 8,
        size=size,
        type=base.name,
        aggregate=base.key,
    )


def _overlapped(value: Value, fields: list[Value]) -> bool:
    """Whether another field lies within its padding, as [[no_unique_address]] allows."""
    if value.form.encoding is not Encoding.AGGREGATE:
        return False
    end = value.bit + value.width
    return any(v is not value and v.bit < end and value.bit < v.bit + v.width for v in fields)


def _elements(path: str, first: int, end: int) -> str:
    return f"{path}[{first}]" if end == first + 1 else f"{path}[{first}..{end - 1}]"


def _names(layout: TypeLayout) -> str:
    return ", ".join(b.name for b in layout.bases) or "none"
