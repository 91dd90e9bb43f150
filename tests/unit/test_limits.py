"""What a process lacks, in words and as a command for prlimit(1)."""

from __future__ import annotations

import resource

import pytest

from katana_cc.process.limits import descriptor_remedy, memory_remedy

_NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "command"),
    [
        ((3, 64), "`prlimit --pid 7 --nofile=11:`"),
        ((3, _NONE), "`prlimit --pid 7 --nofile=11:`"),
        ((64, 64), "`prlimit --pid 7 --nofile=72`"),  # the hard limit has to move too
    ],
)
def test_command_widens_no_more_limits_than_it_must(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], command: str
) -> None:
    monkeypatch.setattr(resource, "prlimit", lambda _, __: limits)
    assert command in descriptor_remedy(7)


def test_each_limit_of_memory_that_is_set_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    of = {resource.RLIMIT_AS: (1 << 30, _NONE), resource.RLIMIT_DATA: (1 << 20, 1 << 20)}
    monkeypatch.setattr(resource, "prlimit", lambda _, limit: of[limit])
    beside = 2 << 20
    words = memory_remedy(7, 4096)
    assert f"`prlimit --pid 7 --as={(1 << 30) + 4096 + beside}: && " in words
    assert f" && prlimit --pid 7 --data={(1 << 20) + 4096 + beside}`" in words


def test_without_a_limit_the_cgroup_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "prlimit", lambda _, __: (_NONE, _NONE))
    assert "memory.max" in memory_remedy(7, 4096)
    assert "prlimit" not in memory_remedy(7, 4096) + descriptor_remedy(7)


def test_process_that_is_gone_or_of_another_has_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, __: int) -> tuple[int, int]:
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(resource, "prlimit", refuse)
    assert "prlimit" not in memory_remedy(7, 4096) + descriptor_remedy(7)
