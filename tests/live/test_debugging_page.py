"""docs/debugging.md, word for word: what an operator types there, typed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.conftest import TIMES_TEN
from tests.live.handmade import build, patch_from
from tests.live.programs import COUNTER
from tests.live.server import katana, serving, write_patch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "debugging.md"


def blocks() -> list[str]:
    """The blocks of commands."""
    return re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


def typed(command: str, pid: int, folder: Path) -> str:
    """What a shell says to the commands, with a folder of the test's own, and a second for ten."""
    command = command.replace("/tmp/", f"{folder}/").replace("sleep 10", "sleep 1")
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    program = bin_folder / "katana"
    if not program.exists():
        lines = f"#!{sys.executable}", "import sys", "from katana_cc.cli.main import main", "sys.exit(main())", ""
        program.write_text("\n".join(lines))
        program.chmod(0o755)
    environment = {**os.environ, "PID": str(pid), "PATH": f"{bin_folder}:{os.environ['PATH']}", "HOME": str(folder)}
    # Files, as perf takes pipes for a place to put its data.
    asked, said = folder / "asked", folder / "said"
    asked.write_text("set pagination off\nthread apply all backtrace\ninfo line answer\n")
    with asked.open() as source, said.open("w") as sink:
        subprocess.run(
            ["bash", "-c", command], stdin=source, stdout=sink, stderr=sink, cwd=folder, env=environment, check=False
        )
    return said.read_text(errors="replace")


@pytest.mark.timeout(300)
def test_what_the_page_says_is_so(tmp_path: Path) -> None:
    """A bug: a command that does not work as it stands."""
    gdb, printed, stack, profile, objdump, core = blocks()
    flags = ("-O1", "-g")
    old = build(tmp_path / "old", "server", COUNTER, flags=flags)
    spinning = TIMES_TEN.replace("news++;", "news++; if (x == 99) for (;;) seen++;")
    new = build(tmp_path / "new", "server", spinning, flags=flags)
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output) as server:
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("a 5") == "51"
        server.tell("a 99")
        pid = server.pid
        said = typed(gdb, pid, tmp_path)
        assert re.search(r"#0 +(0x[0-9a-f]+ in )?answer ", said), said
        assert "main (" in said
        lines = typed("katana status --pid $PID --gdb", pid, tmp_path).splitlines()
        forms = [re.sub(r"0x[0-9a-f]+|[0-9a-f]{32}|\d+", "N", x) for x in (lines[1], printed.splitlines()[1])]
        assert forms[0] == forms[1]
        assert re.match(r"# pid \d+ \(.*\): .*, .* -> .*, [0-9a-f]{32}$", lines[0])
        assert re.match(r"# pid \d+ \(.*\): .*, .* -> .*, [0-9a-f]{32}$", printed.splitlines()[0])
        assert re.search(r"#0 .* answer\n(.*\n)*?#1 .* main\n", typed(stack, pid, tmp_path))
        if shutil.which("perf"):
            said = typed(profile, pid, tmp_path)
            if "Permission" not in said and "not supported" not in said:
                assert re.search(r"\[\.\] answer$", said, re.M), said
        else:
            typed(profile.splitlines()[1], pid, tmp_path)
        assert re.search(r"^[0-9a-f]+ <answer>:$", typed(objdump, pid, tmp_path), re.M)
    assert core.splitlines()[0] == "gdb PROGRAM CORE", "tests/live/test_debuggers.py does this"
