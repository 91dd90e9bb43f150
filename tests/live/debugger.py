"""gdb on a running server, as an operator would use it: attached, with what `katana status --gdb` says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from tests.live.server import Server, katana

_QUIET = ["-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set pagination off"]
_PLAIN = ["set print entry-values no", "set print frame-arguments all", "set backtrace past-main off"]


def script_of(pid: int, folder: Path) -> Path:
    """The file of commands that `katana status --pid PID --gdb` prints."""
    done = katana("status", "--pid", pid, "--gdb")
    assert done.returncode == 0, done.stderr
    path = folder / f"{pid}.gdb"
    path.write_text(done.stdout)
    return path


def _words(pid: int, script: Path, commands: Sequence[str]) -> list[str]:
    return ["gdb", *_QUIET, "-p", str(pid), "-x", str(script), *(w for x in (*_PLAIN, *commands) for w in ("-ex", x))]


def gdb(pid: int, script: Path, *commands: str) -> str:
    """What gdb says of a process, having read `script`."""
    done = subprocess.run(_words(pid, script, commands), capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def gdb_at(server: Server, question: str, script: Path, stop: str, *commands: str) -> tuple[str, str]:
    """What gdb says when the server, asked `question`, is at `stop` (a place for `break`); and the answer."""
    ready = 'printf "watching\\n"'
    words = _words(server.pid, script, [f"break {stop}", ready, "continue", 'printf "stopped\\n"', *commands, "delete"])
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("watching"):
            break
    else:
        raise AssertionError("".join(said))
    server.tell(question)
    rest = process.communicate()[0]
    assert "stopped\n" in rest, rest
    return rest.partition("stopped\n")[2], server.line()


def plain(text: str) -> list[str]:
    """Lines without what differs from process to process: addresses, thread ids, source folders."""
    result = []
    for line in text.splitlines():
        line = re.sub(r"0x[0-9a-f]+( in )?", lambda m: "" if m[1] else "0x", line)
        line = re.sub(r"\(LWP \d+\)|Thread \d+|\(process \d+\)", "", line)
        line = re.sub(r"\b\d{10,}\b", "(an address)", line)
        result.append(re.sub(r" at \S*/", " at ", line.rstrip()))
    return [line for line in result if line]


def below(lines: Sequence[str], first: str, last: str) -> list[str]:
    """The lines of a backtrace from the frame of `first` up to that of `last`, which must be there; without numbers."""
    numbered = [re.sub(r"^#\d+ +", "# ", line) for line in lines]
    start = next((i for i, x in enumerate(numbered) if x.startswith(f"# {first} (")), None)
    assert start is not None, lines
    end = next((i for i, x in enumerate(numbered[start:], start) if x.startswith(f"# {last} (")), None)
    assert end is not None, lines
    return numbered[start : end + 1]


def of_files(lines: Sequence[str], files: Collection[str]) -> list[str]:
    """Of a backtrace the frames, with their variables, of functions of these files: others' are libraries' own."""
    result: list[str] = []
    is_wanted = False
    for line in lines:
        if line.startswith("# "):
            place = re.search(r" at ([^ ]*):\d+$", line)
            is_wanted = place is not None and place[1] in files
        if is_wanted:
            result.append(line)
    return result


def differing(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """The lines that do not say the same.  An argument may be missing (`<optimized out>`) where gdb works it out from
    what the caller says it passed: old callers speak of old functions, new ones of new functions."""
    if len(ours) != len(theirs):
        return [("\n".join(ours), "\n".join(theirs))]
    pairs = zip(ours, theirs, strict=True)
    return [(a, b) for a, b in pairs if not (_covers(a, b) or (a.startswith("# ") and _covers(b, a)))]


def _covers(line: str, other: str) -> bool:
    pattern = re.escape(line).replace(re.escape("<optimized out>"), ".*")
    return re.fullmatch(pattern, other) is not None
