"""Layouts that no compiler writes: damaged debug information ends in a problem, never in an exception."""

from __future__ import annotations

from dataclasses import replace

from katana_cc.dwarf.forms import Encoding, Form
from katana_cc.dwarf.types import Member, TypeKind, TypeLayout
from katana_cc.transform.between import between_types
from katana_cc.transform.model import Transformation
from katana_cc.transform.problems import Problem, ProblemKind


def member(name: str, offset: int, size: int = 4, *, aggregate: str = "") -> Member:
    return Member(name, offset * 8, None, size, f"struct {aggregate}" if aggregate else "int", aggregate, 1,
                  Form(Encoding.AGGREGATE if aggregate else Encoding.SIGNED, size))  # fmt: skip


def layout(name: str, size: int, *members: Member) -> TypeLayout:
    return TypeLayout(name, TypeKind.STRUCT, size, members, (), (), "s.h", 1)


def test_layouts_that_contradict_themselves_are_refused() -> None:
    """clang 14 tells of a packed bit-field as wide as its type as if it were an aligned member over its neighbour."""
    old, new = layout("s", 8, member("a", 0), member("b", 4)), layout("s", 8, member("a", 0), member("b", 2))
    (found,) = _problems(old, new)
    assert found.kind is ProblemKind.NOT_SUPPORTED
    assert "overlaps" in found.text


def test_a_type_that_holds_itself_ends_somewhere() -> None:
    """Only damaged debug information says so."""
    old = layout("s", 8, member("a", 0, 8, aggregate="s"), member("b", 0))
    (found,) = _problems(old, replace(old, size=16))
    assert "holds itself" in found.text


def _problems(old: TypeLayout, new: TypeLayout) -> tuple[Problem, ...]:
    found = between_types(old.name, {old.name: old}, new.name, {new.name: new})
    assert not isinstance(found, Transformation)
    return found
