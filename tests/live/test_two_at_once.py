"""Two katanas that come to the same process at the same time, and a process that is not what it was any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from katana_cc.errors import RefusedError
from katana_cc.patch.codec import patch_id
from katana_cc.patch.files import read_patch
from katana_cc.process import apply, plan, takeback
from katana_cc.process.apply import apply_patch
from katana_cc.process.revert import revert_patch
from katana_cc.process.target import Target
from tests.live.conftest import TIMES_TEN
from tests.live.handmade import Built, build, patch_from
from tests.live.programs import COUNTER
from tests.live.server import katana, mappings, serving, write_patch
from tests.live.situations import REFUSED, situation

ROUNDS = 6
PROGRAM = "import sys; from katana_cc.cli.main import main; sys.exit(main())"


@pytest.fixture
def patch(tmp_path: Path, counter: tuple[Built, Built]) -> Path:
    return write_patch(tmp_path, patch_from(*counter, ("answer",)))


@situation(46, "another katana is at work on the process: it is named, and waited for", REFUSED)
def test_second_katana_waits_for_the_first(
    counter: tuple[Built, Built], patch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug: the second took what the first had mapped for a dead one's, unmapped it, and the process died of it."""
    data, po = read_patch(patch)
    linked = plan.relink
    said = []
    with serving(counter[0].output) as server:

        def meanwhile(*words: Any) -> Any:
            done = katana("apply", patch, "--pid", server.pid, "--wait", "0.2")
            said.append((done.returncode, done.stderr))
            return linked(*words)

        monkeypatch.setattr("katana_cc.process.inject.relink", meanwhile)
        (report,) = apply_patch(po, patch_id(data), [server.pid])
        assert report.outcome == "applied"
        ((status, text),) = said
        assert status == 4
        assert f"pid {server.pid} (server): another katana (pid {os.getpid()}, " in text
        assert server.ask("a 5") == "51"
        assert katana("apply", patch, "--pid", server.pid).returncode == 0, "it is free again"
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("a 5") == "6"


def test_revert_waits_for_another_katana_too(counter: tuple[Built, Built], patch: Path) -> None:
    with serving(counter[0].output) as server:
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        with Target(server.pid) as target:
            target.claim(0)
            done = katana("revert", "--pid", server.pid, "--wait", "0.2")
            assert done.returncode == 4
            assert "another katana" in done.stderr
            assert server.ask("a 5") == "51"
        assert katana("revert", "--pid", server.pid).returncode == 0


def test_two_at_once_end_as_one_after_the_other(counter: tuple[Built, Built], patch: Path) -> None:
    for _ in range(ROUNDS):
        with serving(counter[0].output) as server:
            words = [sys.executable, "-c", PROGRAM, "apply", str(patch), "--pid", str(server.pid), "--wait", "60"]
            both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
            texts = [process.communicate()[0] for process in both]
            assert [process.returncode for process in both] == [0, 0]
            assert sorted("already applied" in text for text in texts) == [False, True]
            assert server.ask("a 5") == "51"
            assert len({line.split()[4] for line in mappings(server.pid)}) == 1, "one mapping, by its inode"
            revert_patch([server.pid], "")
            assert server.ask("a 5") == "6"


def test_what_a_process_has_become_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: a rollback unmapped by address alone, in a process that had called execve since."""
    source = COUNTER.replace("case 'o':", "case 'e': execl(\"/proc/self/exe\", argv[0], (char *)0);\n    case 'o':")
    old = build(tmp_path / "old", "server", source)
    po = patch_from(old, build(tmp_path / "new", "server", TIMES_TEN), ("answer",))
    unmapped = []
    monkeypatch.setattr(takeback, "unmap", lambda *words: unmapped.append(words))
    with serving(old.output) as server:

        def committing(*_: object) -> None:
            assert server.ask("e 1") == "ready"
            raise RefusedError("enough")

        monkeypatch.setattr(apply, "_register", committing)
        with pytest.raises(RefusedError, match="enough"):
            apply_patch(po, "0" * 32, [server.pid])
        assert unmapped == []
        assert server.ask("a 5") == "6"
