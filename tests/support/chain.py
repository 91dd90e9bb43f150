"""Builds of one program, one after the other, and the patches between them, none of which may be refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.project import Project, Result


class Chain:
    """Builds and their patches.

    Args:
        project: an empty one.
        sources: of each build its files, or the one file of which it consists.
        options: of each build, as of `Project.build`.
    """

    def __init__(self, project: Project, sources: Sequence[str | Mapping[str, str]], **options: Any) -> None:
        self.project = project
        files = [{"prog.c": source} if isinstance(source, str) else source for source in sources]
        self.builds = tuple(project.build(each, **options) for each in files)
        self._results: dict[tuple[int, int], Result] = {}

    def result(self, old: int, new: int) -> Result:
        """What leads from one build to another, checked."""
        if (old, new) not in self._results:
            found = self.project.checked(self.builds[old], self.builds[new])
            assert found.refusals == [], found.refusals
            self._results[old, new] = found
        return self._results[old, new]

    def steps(self) -> list[Result]:
        """What leads from each build to the next."""
        return [self.result(n, n + 1) for n in range(len(self.builds) - 1)]

    def file(self, old: int, new: int, name: str = "patch.kpo") -> Path:
        """The patch from one build to another, as a file of that name in the project's folder."""
        path = self.project.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.result(old, new).data)
        return path
