"""Settings: which of five places counts, and that it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.errors import UsageError
from katana_cc.settings import SETTINGS, export, files, read, resolve, say


def origins(folder: Path, environment: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {value.setting.name: (value.value, value.origin) for value in resolve(folder, environment)[0]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / ".config" / "katana"
    folder.mkdir(parents=True)
    (folder / "katana.conf").write_text("strict = 1\ncc = clang\nlto = keep\n")
    return tmp_path / "home"


def test_environment_then_project_then_user_then_default(tmp_path: Path, home: Path) -> None:
    deep = tmp_path / "project" / "a" / "b"
    deep.mkdir(parents=True)
    project = tmp_path / "project" / "katana.conf"
    project.write_text("# ours\ncc = ccache gcc-12\nstrict = 0\n")
    found = origins(deep, {"HOME": str(home), "KATANA_STRICT": "yes"})
    assert found["strict"] == ("yes", "environment")
    assert found["cc"] == ("ccache gcc-12", str(project))
    assert found["lto"] == ("keep", str(home / ".config/katana/katana.conf"))
    assert found["readonly"] == ("0", "default")


def test_the_command_line_comes_first_and_files_do_not_undo_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "katana.conf").write_text("strict = 0\nlto = keep\nlogfile = /l\n")
    monkeypatch.chdir(tmp_path)
    environment = {"KATANA_STRICT": "0", "KATANA_CC": "gcc"}
    say(environment, ["strict = 1", "lto=off", "strict=yes"])
    export(environment)
    assert {name: environment[name] for name in ("KATANA_STRICT", "KATANA_LTO", "KATANA_CC", "KATANA_LOGFILE")} == {
        "KATANA_STRICT": "yes", "KATANA_LTO": "off", "KATANA_CC": "gcc", "KATANA_LOGFILE": "/l",
    }  # fmt: skip
    found = origins(tmp_path, environment)
    assert (found["strict"], found["lto"]) == (("yes", "command line"), ("off", "command line"))
    assert found["cc"] == ("gcc", "environment")


@pytest.mark.parametrize("word", ["strict", "strickt=1", "=1", ""])
def test_what_sets_nothing_is_refused(word: str) -> None:
    environment: dict[str, str] = {}
    with pytest.raises(UsageError, match="sets nothing"):
        say(environment, [word])
    assert environment == {}


def test_the_nearest_file_of_a_project_hides_those_above(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "katana.conf").write_text("strict = 1\n")
    (tmp_path / "sub" / "katana.conf").write_text("")
    assert files(tmp_path / "sub", {}) == (tmp_path / "sub" / "katana.conf",)
    assert origins(tmp_path / "sub", {})["strict"] == ("0", "default")


def test_a_configuration_folder_of_the_users_own(tmp_path: Path, home: Path) -> None:
    assert origins(tmp_path, {"HOME": "/nowhere", "XDG_CONFIG_HOME": str(home / ".config")})["strict"][0] == "1"


def test_names_that_are_no_settings_are_told(tmp_path: Path) -> None:
    (tmp_path / "katana.conf").write_text("strickt = 1\n")
    assert resolve(tmp_path, {})[1] == ((tmp_path / "katana.conf", "strickt"),)


def test_what_a_file_may_look_like() -> None:
    assert list(read(" a = b c \n#d = e\n\nf=g=h\nempty =\n")) == [("a", "b c"), ("f", "g=h"), ("empty", "")]


def test_export_never_overrides_the_environment(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"HOME": str(home), "KATANA_CC": "gcc"}
    export(environment)
    assert environment == {"HOME": str(home), "KATANA_CC": "gcc", "KATANA_STRICT": "1", "KATANA_LTO": "keep"}


def test_names_follow_the_variables() -> None:
    assert all(setting.variable == f"KATANA_{setting.name.upper()}" for setting in SETTINGS)
