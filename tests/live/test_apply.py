"""A patch goes into a running process and out again."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from katana_cc.process import revert, reverting
from katana_cc.process.proc import is_dead
from tests.live.conftest import TIMES_TEN
from tests.live.handmade import Built, build, patch_from
from tests.live.programs import COUNTER
from tests.live.server import code_of, identity, katana, katana_json, mappings, serving, write_patch
from tests.live.situations import situation

KINDS = {"pie": (), "no-pie": ("-no-pie",), "static": ("-static",), "static-pie": ("-static-pie",)}
COMPILE = {"no-pie": ("-O2", "-fno-pie"), "static": ("-O2", "-fno-pie")}


@situation(45, "executable, position-independent or not, static or not (static-PIE)")
@situation(40, "1, 64 and 256 threads")
@pytest.mark.parametrize("threads", [0, 63, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_answer_changes_and_changes_back(tmp_path: Path, kind: str, threads: int) -> None:
    """A bug: the old answer after applying, the new one after reverting, or a byte of code left different."""
    flags, link = COMPILE.get(kind, ("-O2",)), KINDS[kind]
    old = build(tmp_path / "old", "server", COUNTER, flags=flags, link=link)
    new = build(tmp_path / "new", "server", TIMES_TEN, flags=flags, link=link)
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output, str(threads)) as server:
        before = code_of(server.pid)
        assert server.ask("a 5") == "6"
        report = katana_json("apply", patch, "--pid", server.pid)["processes"][0]
        assert (report["outcome"], report["threads"]) == ("applied", threads + 1)
        assert [server.ask("a 5"), server.ask("a 5")] == ["51", "52"]
        assert code_of(server.pid) != before
        assert katana("revert", "--pid", server.pid).returncode == 0
        assert server.ask("a 5") == "6"
        assert code_of(server.pid) == before
        assert server.ask("c") == "4", "the counter lost a call or its value"


@pytest.mark.parametrize("linker", ["gold", "lld", "mold"])
@pytest.mark.parametrize("kind", ["pie", "no-pie"])
def test_program_of_another_linker_is_patched(tmp_path: Path, kind: str, linker: str) -> None:
    """A bug: a small file, whose first page is mapped for its headers and for its code, counts as two programs."""
    flags, link = COMPILE.get(kind, ("-O2",)), (*KINDS[kind], f"-fuse-ld={linker}")
    old = build(tmp_path / "old", "server", COUNTER, flags=flags, link=link)
    new = build(tmp_path / "new", "server", TIMES_TEN, flags=flags, link=link)
    patch = write_patch(tmp_path, patch_from(old, new, ("answer",)))
    with serving(old.output) as server:
        done = katana("apply", patch, "--pid", server.pid)
        assert done.returncode == 0, done.stderr
        assert server.ask("a 5") == "51"


@situation(45, "stripped after the build")
def test_stripped_and_deleted_program_is_patched(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: symbols or the build-id are looked for in the file."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    program = tmp_path / "stripped"
    subprocess.run(["strip", "-o", program, counter[0].output], check=True)
    with serving(program) as server:
        program.unlink()
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        assert server.ask("a 1") == "11"


@situation(47, "the same patch again")
def test_applying_again_says_so(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: a second mapping, a jump to a jump, or an error."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    with serving(counter[0].output) as server:
        assert katana("apply", patch, "--pid", server.pid).returncode == 0
        before = mappings(server.pid)
        again = katana("apply", patch, "--pid", server.pid)
        assert again.returncode == 0
        assert "already applied" in again.stdout
        assert mappings(server.pid) == before


@situation(47, "applied again after a revert")
def test_applying_after_a_revert_uses_the_memory_again(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: mappings pile up, or the patch's own variables start with what they were left at."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    with serving(counter[0].output) as server:
        katana("apply", patch, "--pid", server.pid)
        before = mappings(server.pid)
        assert [server.ask("a 1"), server.ask("a 1")] == ["11", "12"]
        katana("revert", "--pid", server.pid)
        assert katana_json("apply", patch, "--pid", server.pid)["processes"][0]["outcome"] == "applied"
        assert server.ask("a 1") == "11"
        assert mappings(server.pid) == before


@situation(47, "another patch after a revert")
def test_reverted_patch_does_not_stand_in_the_way_of_another(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: the other patch's jump is taken for someone's tampering with the reverted one."""
    po = patch_from(*counter, ("answer",))
    (tmp_path / "other").mkdir()
    first = write_patch(tmp_path, po)
    second = write_patch(tmp_path / "other", replace(po, identity=replace(po.identity, to_release="another")))
    with serving(counter[0].output) as server:
        katana("apply", first, "--pid", server.pid)
        katana("revert", "--pid", server.pid)
        katana("apply", second, "--pid", server.pid)
        assert katana_json("apply", second, "--pid", server.pid)["processes"][0]["outcome"] == "already applied"
        assert "altered" not in katana("status", "--pid", server.pid).stdout
        katana("revert", "--pid", server.pid)
        assert server.ask("a 1") == "2"


def test_dry_run_lists_the_edits_and_touches_nothing(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: a mapping appears, or the process is stopped."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    with serving(counter[0].output) as server:
        before = code_of(server.pid), mappings(server.pid)
        done = katana("apply", patch, "--pid", server.pid, "--dry-run")
        assert done.returncode == 0, done.stderr
        assert "would apply" in done.stdout
        assert any(line.split()[0] == "jump" and line.split()[-1] == "answer" for line in done.stdout.splitlines())
        assert (code_of(server.pid), mappings(server.pid)) == before
        assert server.ask("a 5") == "6"


@situation(43, "several processes by name")
def test_several_processes_are_patched_together(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: only the first --pid counts."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    with serving(counter[0].output) as one, serving(counter[0].output) as two, serving(counter[0].output) as three:
        done = katana("apply", patch, "--pid", one.pid, two.pid, "--pid", three.pid)
        assert done.returncode == 0, done.stderr
        assert [s.ask("a 1") for s in (one, two, three)] == ["11"] * 3


@pytest.mark.xdist_group("all processes")
def test_all_finds_the_processes_of_the_build(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: processes of another build are touched, or one of this build is missed."""
    po = patch_from(*counter, ("answer",))
    patch = write_patch(tmp_path, po)
    with serving(counter[0].output) as old, serving(counter[1].output) as foreign:
        done = katana_json("apply", patch, "--all")
        assert [p["pid"] for p in done["processes"]] == [old.pid]
        assert old.ask("a 1") == "11"
        assert not mappings(foreign.pid)
        # Of a patched process of another test it may be said that it has ended meanwhile.
        told = katana_json("revert", identity(po), "--all")["processes"]
        assert [p["pid"] for p in told if p["outcome"] != "skipped"] == [old.pid]
        assert old.ask("a 1") == "2"


def test_a_process_that_ends_meanwhile_is_left_out_of_all(
    tmp_path: Path, counter: tuple[Built, Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug: nobody is reverted, because one that carried it has ended."""
    po = patch_from(*counter, ("answer",))
    patch = write_patch(tmp_path, po)
    with serving(counter[0].output) as one, serving(counter[0].output) as two:
        assert katana("apply", patch, "--pid", one.pid, two.pid).returncode == 0
        prepared = reverting.prepared

        def killing(*arguments: Any, **more: Any) -> Any:
            two.kill()
            while not is_dead(two.pid):
                pass
            return prepared(*arguments, **more)

        monkeypatch.setattr(revert, "prepared", killing)
        reports = revert.revert_patch([one.pid, two.pid], identity(po), must_match=False)
        assert [(r.pid, str(r.outcome)) for r in reports] == [(one.pid, "reverted"), (two.pid, "skipped")]
        assert one.ask("a 1") == "2"


def test_all_without_a_process_has_nothing_to_do(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: an error where nothing is wrong."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    done = katana("apply", patch, "--all")
    assert done.returncode == 0
    assert "nothing to do" in done.stdout


def test_status_tells_what_is_applied(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: the state comes from memory of what was done, not from the bytes."""
    po = patch_from(*counter, ("answer",))
    patch = write_patch(tmp_path, po)
    with serving(counter[0].output) as server:
        katana("apply", patch, "--pid", server.pid)
        status = katana_json("status", "--pid", server.pid)["processes"][0]
        assert po.identity.from_build_id in [m["build_id"] for m in status["modules"]]
        (entry,) = status["patches"]
        assert (entry["state"], entry["to_build_id"], entry["to_release"]) == ("applied", po.identity.to_build_id, "v2")
        assert [e["name"] for e in entry["edits"]] == ["answer"]
        assert server.pid in [p["pid"] for p in katana_json("status")["processes"]]
        katana("revert", "--pid", server.pid)
        assert katana_json("status", "--pid", server.pid)["processes"][0]["patches"][0]["state"] == "reverted"


def test_mapping_is_named_and_never_writable_and_executable(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: tools cannot see what is patched, or a policy against writable code is broken."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    with serving(counter[0].output) as server:
        katana("apply", patch, "--pid", server.pid)
        lines = mappings(server.pid)
        assert [line.split()[1] for line in lines] == ["r--p", "r-xp", "rw-p"]
        assert all("katana:v1..v2" in line for line in lines)
        assert not [n for n in Path(f"/proc/{server.pid}/fd").iterdir() if "katana" in str(n.readlink())]


def test_revert_without_a_patch_says_so(counter: tuple[Built, Built]) -> None:
    """A bug: an error, or a claim that something was reverted."""
    with serving(counter[0].output) as server:
        done = katana("revert", "--pid", server.pid)
        assert done.returncode == 0
        assert "nothing to revert" in done.stdout


def test_revert_of_another_patch_names_what_is_applied(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: a PO-ID that was mistyped passes for a patch that is out."""
    po = patch_from(*counter, ("answer",))
    with serving(counter[0].output) as server:
        katana("apply", write_patch(tmp_path, po), "--pid", server.pid)
        done = katana("revert", "deadbeef", "--pid", server.pid)
        assert done.returncode == 0
        assert f"nothing to revert: it carries {identity(po)}, and not deadbeef" in done.stdout
        assert server.ask("a 1") == "11"


def test_json_of_an_error_names_its_status(tmp_path: Path, counter: tuple[Built, Built]) -> None:
    """A bug: a script has to read words."""
    patch = write_patch(tmp_path, patch_from(*counter, ("answer",)))
    done = katana("apply", patch, "--pid", 2**22 + 1, "--json")
    assert done.returncode == 5
    assert json.loads(done.stdout)["error"]["status"] == 5
