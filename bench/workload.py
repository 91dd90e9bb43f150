"""A program to build, link and change: what the benchmarks need to know of it, whatever it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import MeasureError, Run, run
from bench.setting import SECTION_FLAGS

if TYPE_CHECKING:
    from bench.setting import Setting


@dataclass(frozen=True, slots=True)
class Workload:
    """A source tree and how to treat it.  Commands are without the compiler, relative to `folder / place`.

    `edit` is (source, anchor, replacement): the text `anchor` of `source`, which lies inside one function, becomes
    `replacement` with `{n}` filled in; no line number moves, so exactly that function changes.
    """

    name: str
    folder: Path
    place: str
    make: tuple[str, ...]
    output: str
    compile: tuple[str, ...]
    link: tuple[str, ...]
    edit: tuple[str, str, str]
    objects: int
    note: str = ""

    @property
    def where(self) -> Path:
        """The folder that commands run in."""
        return self.folder / self.place

    @property
    def store(self) -> Path:
        """The store of its builds."""
        return self.folder / ".katana"

    def link_command(self, compiler: str, output: str, *extra: str) -> list[str]:
        """The link by `compiler`, to `output`."""
        words = [output if word == self.output else word for word in self.link]
        return [compiler, *words, *extra]

    def change(self, setting: Setting, number: int) -> None:
        """Make the one-function change for the `number`-th time, each time another one, and compile the object."""
        name, anchor, replacement = self.edit
        source = self.where / name
        original = source.with_name(source.name + ".original")
        if not original.exists():
            source.rename(original)
        text = original.read_text()
        if text.count(anchor) != 1:
            raise MeasureError(f"the place to edit is not there once: {anchor}", where=name)
        source.write_text(text.replace(anchor, replacement.replace("{n}", str(1000 + number))))
        run([setting.compiler, *SECTION_FLAGS, *self.compile], cwd=self.where, env=setting.environment())


def build(setting: Setting, workload: Workload, compiler: str) -> Run:
    """Build the whole program with `compiler` (a command of one or more words)."""
    command = ["make", "-j2", *workload.make, f"CC={compiler}"]
    return run(command, cwd=workload.where, env=setting.environment(workload.store))
