"""Settings and where they come from: command line, environment, katana.conf of the project, of the user, defaults.

The wrappers read the same files in sh (`wrappers/libexec/katana/settings`), and hand them on in the environment;
commands take them from here.  A file holds lines `name = value`; `#` begins a line of comment.

What the command line says goes into the environment, too, with its name in KATANA_COMMAND_LINE: so it reaches the
linker's stand-in, and it is known what said it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Final, NamedTuple

from katana_cc.errors import UsageError

FILE: Final = "katana.conf"
SAID: Final = "KATANA_COMMAND_LINE"  # names of settings, with spaces between


class Setting(NamedTuple):
    """One setting: its name in files, the variable of the environment, its default, and what it is."""

    name: str
    variable: str
    default: str
    meaning: str


SETTINGS: Final = (
    Setting("dir", "KATANA_DIR", "", "the store, an absolute path; empty: .katana at the project's root"),
    Setting("cc", "KATANA_CC", "cc", "the C compiler that katana-cc runs; several words allowed"),
    Setting("cxx", "KATANA_CXX", "c++", "the C++ compiler that katana-c++ runs; several words allowed"),
    Setting("real_ld", "KATANA_REAL_LD", "", "the linker; empty: the one the compiler asks for"),
    Setting("lto", "KATANA_LTO", "off", "keep: leave -flto on, and the link is a gap in the record"),
    Setting("strict", "KATANA_STRICT", "0", "1: a link that cannot be recorded fails"),
    Setting("readonly", "KATANA_READONLY", "0", "1: record nothing, one warning a link"),
    Setting("disable", "KATANA_DISABLE", "0", "1: pass everything through"),
    Setting("logfile", "KATANA_LOGFILE", "", "a file that gets a line for each link: recorded, or why not"),
)
_NAMES: Final = frozenset(setting.name for setting in SETTINGS)


class Value(NamedTuple):
    """What a setting is, and what said so: "command line", "environment", "default", or the path of a file."""

    setting: Setting
    value: str
    origin: str


def files(folder: Path, environment: Mapping[str, str]) -> tuple[Path, ...]:
    """The configuration files that count for a build in `folder`, the more important first."""
    found = [next((f / FILE for f in (folder, *folder.parents) if (f / FILE).is_file()), None)]
    base = environment.get("XDG_CONFIG_HOME") or environment.get("HOME", "") + "/.config"
    users = Path(base) / "katana" / FILE
    found.append(users if users.is_file() else None)
    return tuple(path for path in found if path is not None)


def read(text: str) -> Iterator[tuple[str, str]]:
    """Names and values in a file, in its order; lines that hold no name are passed over."""
    for line in text.splitlines():
        name, _, value = line.strip().partition("=")
        if name and not name.startswith("#"):
            yield name.strip(), value.strip()


def resolve(folder: Path, environment: Mapping[str, str]) -> tuple[tuple[Value, ...], tuple[tuple[Path, str], ...]]:
    """Every setting's value with its origin; and the names in files that are no settings.

    The first line of a name counts, as in the wrappers.
    """
    said: dict[str, tuple[str, str]] = {}
    unknown: list[tuple[Path, str]] = []
    for path in files(folder, environment):
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            continue  # as the wrappers do: a build never fails because of us
        for name, value in read(text):
            if name in _NAMES:
                said.setdefault(name, (value, str(path)))
            else:
                unknown.append((path, name))
    values = []
    on_command_line = environment.get(SAID, "").split()
    for setting in SETTINGS:
        if setting.variable in environment:
            origin = "command line" if setting.name in on_command_line else "environment"
            values.append(Value(setting, environment[setting.variable], origin))
        else:
            values.append(Value(setting, *said.get(setting.name, (setting.default, "default"))))
    return tuple(values), tuple(unknown)


def say(environment: MutableMapping[str, str], words: Iterable[str]) -> None:
    """Take `name=value`, as the command line has it, before all else.

    Raises:
        UsageError: a word is none, or names no setting.
    """
    known = {setting.name: setting for setting in SETTINGS}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or name.strip() not in known:
            raise UsageError(f"{word!r} sets nothing", remedy=f"Say NAME=VALUE; there are {', '.join(known)}.")
        environment[known[name.strip()].variable] = value.strip()
        environment[SAID] = " ".join([*environment.get(SAID, "").split(), name.strip()])


def export(environment: MutableMapping[str, str]) -> None:
    """Put what files say for the current folder into the environment, where that says nothing."""
    try:
        values, _ = resolve(Path.cwd(), environment)
    except OSError:  # the folder is gone, or one above it may not be searched
        return
    for value in values:
        if value.origin not in ("command line", "environment", "default"):
            environment[value.setting.variable] = value.value
