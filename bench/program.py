"""C programs of ours under measurement: built with and without recording, driven over a line protocol, patched."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from bench.measure import MeasureError, run
from bench.setting import SECTION_FLAGS, Setting

PROGRAMS: Final = Path(__file__).resolve().parent / "programs"


class NotPermitted(Exception):
    """This system does not let one process trace another; the message says what it answered."""


@dataclass(frozen=True, slots=True)
class Patched:
    """A program in three builds, and the patch object from the recorded `old` one to the `new` one."""

    unrecorded: Path
    old: Path
    new: Path
    patch: Path


def build_pair(
    setting: Setting, name: str, before: str, after: str, *flags: str, filled: tuple[str, str] = ("", "")
) -> Patched:
    """Build `programs/NAME.c`, release it, change the text `before` to `after`, and build it again.

    Args:
        filled: a text of it, and what stands there instead in both builds.

    Raises:
        MeasureError: the text is not there once, or no patch object came of it.
    """
    folder = setting.folder(name)
    text = (PROGRAMS / f"{name}.c").read_text().replace(*filled)
    if text.count(before) != 1:
        raise MeasureError(f"the text to change is not there once: {before}", where=f"{name}.c")
    source = folder / f"{name}.c"
    env = setting.environment(folder / ".katana")
    built: list[Path] = []
    for step, contents in (("old", text), ("new", text.replace(before, after))):
        source.write_text(contents)
        if step == "old":
            run([setting.compiler, *SECTION_FLAGS, *flags, source.name, "-o", "unrecorded"], cwd=folder, env=env)
        run([setting.wrapper, *flags, source.name, "-o", name], cwd=folder, env=env)
        # The next link replaces the file; a process needs one that stays.
        built.append(Path(shutil.copy2(folder / name, folder / f"{name}.{step}")))
        if step == "old":
            run([setting.command("katana-release"), "v1"], cwd=folder, env=env)
    rows = json.loads(
        subprocess.run(
            [setting.command("katana"), "patches", "--json"], cwd=folder, env=env, capture_output=True, check=True
        ).stdout
    )
    if len(rows) != 1:
        raise MeasureError(f"one change made {len(rows)} patch objects", where=f"{name}.c")
    return Patched(folder / "unrecorded", built[0], built[1], Path(rows[0]["path"]))


def build_tool(setting: Setting, name: str) -> Path:
    """Build a tool that is not recorded."""
    folder = setting.folder(name)
    run([setting.compiler, "-O2", str(PROGRAMS / f"{name}.c"), "-o", name], cwd=folder, env=setting.environment())
    return folder / name


@dataclass(frozen=True, slots=True)
class Talk:
    """A running program that answers a line with a line."""

    pid: int
    ready: str
    to: IO[str]
    of: IO[str]

    def ask(self, line: str) -> str:
        """Its answer.

        Raises:
            MeasureError: it is gone.
        """
        try:
            self.to.write(f"{line}\n")
            self.to.flush()
        except BrokenPipeError:
            raise MeasureError(f"the target is gone, asked: {line}") from None
        answer = self.of.readline()
        if not answer:
            raise MeasureError(f"the target is gone, asked: {line}")
        return answer.rstrip("\n")


@contextmanager
def started(program: Path, *arguments: str) -> Iterator[Talk]:
    """Start a program, wait until it says that it is ready, and kill it in the end."""
    with subprocess.Popen(
        [str(program), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            ready = process.stdout.readline().split()
            if ready[:1] != ["ready"]:
                raise MeasureError("the target did not come up", where=program.name)
            yield Talk(process.pid, " ".join(ready[1:]), process.stdin, process.stdout)
        finally:
            process.kill()


def katana(setting: Setting, *words: str) -> dict[str, Any]:
    """Run `katana ... --json`; its answer.

    Raises:
        MeasureError: it ended with another status than 0.
    """
    command = [setting.command("katana"), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=setting.environment(), check=False)
    if done.returncode:
        raise MeasureError(f"ended with status {done.returncode}: {done.stderr.strip()}", where=" ".join(words))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
