"""Settings in files, the log file, `katana config`, `stats` and `completion`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from katana_cc.cli.completion import options_of
from katana_cc.cli.main import COMMANDS
from katana_cc.settings import SETTINGS
from tests.support.installation import ROOT, Installation
from tests.support.staged import links, only_link

WRAPPER = ROOT / "wrappers/katana-cc"


@pytest.fixture
def sources(project: Path) -> Path:
    (project / "main.c").write_text("int main(void) { return 0; }\n")
    return project


def test_the_wrappers_know_the_settings_that_the_commands_know() -> None:
    text = (ROOT / "wrappers/libexec/katana/settings").read_text()
    handed_on = dict(re.findall(r"^\t\t(\w+)\) : .* export (\w+) ;;", text, re.MULTILINE))
    assert handed_on == {setting.name: setting.variable for setting in SETTINGS}
    options = re.findall(r"^\t([\w-]+)\) .*KATANA_\w+=\$value && export (\w+) ;;", WRAPPER.read_text(), re.MULTILINE)
    assert {name.replace("-", "_"): variable for name, variable in options} == handed_on


def test_a_projects_file_decides_about_its_builds(katana: Installation, sources: Path, tmp_path: Path) -> None:
    log, store = tmp_path / "log", tmp_path / "a store"
    (sources / "katana.conf").write_text(f"# where\ndir = {store}\n  logfile={log}\nnothing = 1\n")
    (sources / "sub").mkdir()
    done = katana.run(katana.cc, "gcc", "../main.c", "-o", "prog", cwd=sources / "sub")
    assert (done.returncode, done.stderr) == (0, b"")
    assert only_link(store)["output"] == str(sources / "sub" / "prog")
    (line,) = log.read_text().splitlines()
    assert line.endswith(f" {sources}/sub/prog: recorded")
    # The commands look there too, and the environment comes before the file.
    assert katana.run("katana-release", "v1", cwd=sources / "sub").returncode == 0
    done = katana.run(katana.cc, "gcc", "main.c", "-o", "prog2", cwd=sources, KATANA_DISABLE="1")
    assert (done.returncode, len(links(store))) == (0, 1)
    shown = katana.run("katana", "config", "--json", cwd=sources, KATANA_STRICT="1")
    origins = {row["name"]: (row["value"], row["origin"]) for row in json.loads(shown.stdout)}
    assert origins["dir"] == (str(store), str(sources / "katana.conf"))
    assert origins["strict"] == ("1", "environment")
    assert origins["cc"][1] == "default"
    assert b"no setting 'nothing'" in shown.stderr
    assert katana.run("katana", "config", "dir", cwd=sources).stdout.decode() == f"{store}\n"
    assert katana.run("katana", "config", "dirt", cwd=sources).returncode == 2


def test_the_users_file_decides_where_the_project_says_nothing(
    katana: Installation, sources: Path, tmp_path: Path
) -> None:
    folder = tmp_path / ".config" / "katana"
    folder.mkdir(parents=True)
    (folder / "katana.conf").write_text("disable = 1")  # without a line end
    done = katana.run(katana.cc, "gcc", "main.c", "-o", "prog", cwd=sources, HOME=str(tmp_path))
    assert (done.returncode, (sources / ".katana").exists()) == (0, False)
    (sources / "katana.conf").write_text("disable = 0\n")
    katana.run(katana.cc, "gcc", "main.c", "-o", "prog", cwd=sources, HOME=str(tmp_path))
    assert only_link(sources / ".katana")["output_key"] == "prog"


def test_the_command_line_of_the_wrapper_comes_first(katana: Installation, sources: Path, tmp_path: Path) -> None:
    (sources / "katana.conf").write_text(f"dir = {tmp_path}/from-file\ndisable = 1\ncc = /no/such/compiler\n")
    said = [f"--katana-dir={tmp_path}/said by hand", "--katana-disable=0", f"--katana-cc={shutil.which('gcc')}"]
    done = katana.run(katana.cc, *said, "main.c", "-o", "prog", cwd=sources, KATANA_DIR=f"{tmp_path}/from-environment")
    assert (done.returncode, done.stderr) == (0, b"")
    assert only_link(tmp_path / "said by hand")["compiler"] == shutil.which("gcc")
    assert sorted(p.name for p in tmp_path.glob("from-*")) == []
    for wrong in ("--katana-dir", "--katana-color=1", "--katana-"):
        done = katana.run(katana.cc, wrong, "-c", "main.c", cwd=sources)
        assert (done.returncode, b"there is no option" in done.stderr) == (127, True)


def test_the_command_line_of_commands_comes_first(katana: Installation, sources: Path, tmp_path: Path) -> None:
    store = tmp_path / "elsewhere"
    assert katana.run(katana.cc, "gcc", "main.c", "-o", "prog", cwd=sources, KATANA_DIR=str(store)).returncode == 0
    assert katana.run(katana.cc, "gcc", "main.c", "-o", "other", cwd=sources).returncode == 0  # into .katana here
    done = katana.run("katana-release", "-c", f"dir={store}", "v1", cwd=sources)
    assert (done.returncode, b"v1: prog (" in done.stdout, b"v1: other (" in done.stdout) == (0, True, False)
    assert b"v1" in katana.run("katana", "-c", f"dir={store}", "log", cwd=sources).stdout
    shown = katana.run("katana", "-c", "strict=1", "config", "--json", cwd=sources, KATANA_STRICT="0")
    (strict,) = [row for row in json.loads(shown.stdout) if row["name"] == "strict"]
    assert (strict["value"], strict["origin"]) == ("1", "command line")
    done = katana.run("katana", "-c", "strickt=1", "config", cwd=sources)
    assert (done.returncode, b"'strickt=1' sets nothing" in done.stderr) == (2, True)


def test_a_log_file_tells_of_what_was_not_recorded(katana: Installation, sources: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    katana.run(katana.cc, "gcc", "main.c", "-o", "p", cwd=sources, KATANA_READONLY="1", KATANA_LOGFILE=str(log))
    assert log.read_text().endswith("/p: not recorded: KATANA_READONLY is set\n")
    done = katana.run(katana.cc, "gcc", "main.c", "-o", "p", cwd=sources, KATANA_LOGFILE="/no/such/folder/log")
    assert (done.returncode, done.stderr) == (0, b"")


def test_stats_count_what_the_store_holds(katana: Installation, sources: Path) -> None:
    assert katana.run(katana.cc, "gcc", "main.c", "-o", "prog", cwd=sources).returncode == 0
    assert katana.run("katana-release", "v1", cwd=sources).returncode == 0
    told = json.loads(katana.run("katana", "stats", "--json", cwd=sources).stdout)
    assert told["counts"] == {
        "outputs": 1, "snapshots": 1, "releases": 1, "patches": 0, "gaps": 0, "staged_links": 1,
    }  # fmt: skip
    blobs = subprocess.run(
        ["find", ".katana/blobs", "-type", "f", "-printf", "%s\\n"], cwd=sources, capture_output=True, check=True
    )
    assert told["bytes"]["blobs"] == sum(map(int, blobs.stdout.split()))
    assert b"snapshots" in katana.run("katana", "stats", cwd=sources).stdout


def test_bash_completes_commands_and_options(katana: Installation, tmp_path: Path) -> None:
    script = katana.run("katana", "completion", "bash", cwd=tmp_path).stdout.decode()

    def completed(*words: str) -> list[str]:
        line = (
            f'{script}\nCOMP_WORDS=({" ".join(words)}) COMP_CWORD={len(words) - 1}\n_katana\necho "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout.split()

    assert completed("katana", "re") == ["revert"]
    assert set(completed("katana", "apply", "--a")) == {o for o in options_of("apply") if o.startswith("--a")} != set()
    (tmp_path / "some.kpo").write_text("")
    assert completed("katana", "explain", "so") == ["some.kpo"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_command(katana: Installation, tmp_path: Path, shell: str) -> None:
    done = katana.run("katana", "completion", shell, cwd=tmp_path)
    assert done.returncode == 0
    assert all(command in done.stdout.decode() for command in COMMANDS)


def test_the_manual_pages_tell_of_every_command_and_setting() -> None:
    page = (ROOT / "man/katana.1").read_text()
    assert dict(re.findall(r"^\.TP\n\.B (\w+)\n([^\n]+)$", page, re.MULTILINE)) == COMMANDS
    wrapper = (ROOT / "man/katana-cc.1").read_text()
    for setting in SETTINGS:
        assert setting.variable in wrapper
        assert f"\\fI{setting.name}\\fR" in wrapper


@pytest.mark.parametrize("name", ["katana", "katana-cc", "katana-release"])
def test_the_manual_pages_are_well_formed(katana: Installation, tmp_path: Path, name: str) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    file = katana.prefix / "share" / "man" / "man1" / f"{name}.1"
    done = katana.run("man", "--warnings", "-l", file, cwd=tmp_path, LC_ALL="C.UTF-8", MANWIDTH="100")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"SYNOPSIS" in done.stdout
