"""The `katana` command: picks the subcommand, and is the one place where errors become words and exit statuses.

Each subcommand is a module with `add_arguments(parser)`, `run(arguments) -> ExitStatus` and, where the order of words
needs help, `prepare(words) -> words`; only the one that
is asked for is imported, since LIEF, ptrace and the store must stay out of processes that do not need them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from katana_cc import __version__
from katana_cc.errors import ExitStatus, KatanaError, UsageError
from katana_cc.settings import export, say

COMMANDS: Final = {
    "log": "what was recorded: snapshots and releases, newest first",
    "show": "one snapshot, release or patch object",
    "diff": "what differs between two snapshots, and the verdict",
    "patches": "the patch objects made, newest first",
    "compose": "two patches that follow each other, put together to one",
    "apply": "put a patch object into running processes",
    "run": "start a program with patches in it, from before its main",
    "revert": "take a patch out of running processes",
    "update": "fetch what is newest for what runs here, and apply it",
    "status": "what runs, and what is applied to it",
    "answer": "say what no build can tell: which field was renamed",
    "explain": "what a patch object changes, and whether it is safe",
    "check": "verify the store, one patch object, or a bundle of them",
    "push": "send releases to a place that other stores pull from",
    "pull": "take releases that were pushed to a place",
    "config": "the settings, and what each comes from",
    "stats": "how much the store holds",
    "completion": "what completes katana in a shell",
    "gc": "drop what no release, patch or present output needs",
}


class Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's own, told the width: to ask for it, it imports shutil and four compression libraries at each start."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `katana`; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="katana",
        description="Patch native programs while they run.",
        epilog="commands:\n" + "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items()),
        formatter_class=Formatter,
    )
    parser.add_argument("--version", action="version", version=f"katana {__version__}")
    parser.add_argument("--cmake-dir", action="version", version=str(cmake_folder()), help="where Katana.cmake is")
    parser.add_argument("--include-dir", action="version", version=str(include_folder()), help="where katana.h is")
    parser.add_argument("--fleet-dir", action="version", version=str(fleet_folder()), help="where rollout.yml is")
    add_settings(parser)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if not words:
        parser.print_usage(sys.stderr)
        print("katana: error: say a COMMAND; `katana --help` lists them", file=sys.stderr)
        return int(ExitStatus.USAGE)
    chosen = parser.parse_args(words)
    try:
        say(os.environ, chosen.set)
    except UsageError as error:
        print(f"katana: {error}", file=sys.stderr)
        return int(error.status)
    if chosen.command != "config":  # which tells what comes from files
        export(os.environ)
    try:
        module = importlib.import_module(f"katana_cc.cli.{chosen.command}")
    except KatanaError as error:  # what reaches into processes, on a machine whose CPU is not known
        print(f"katana {chosen.command}: {error}", file=sys.stderr)
        return int(error.status)
    sub = argparse.ArgumentParser(
        prog=f"katana {chosen.command}", description=COMMANDS[chosen.command], formatter_class=Formatter
    )
    module.add_arguments(sub)
    prepare: Callable[[Sequence[str]], list[str]] = getattr(module, "prepare", list)
    arguments = sub.parse_args(prepare(chosen.rest))
    return run_reporting_errors(
        f"katana {chosen.command}", lambda: module.run(arguments), getattr(arguments, "json", False)
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """`-c NAME=VALUE`, which comes before the environment and files."""
    parser.add_argument(
        "-c",
        dest="set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting, before what environment and files say of it; `katana config` lists them",
    )


def _columns() -> int:
    """As `shutil.get_terminal_size` finds them."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    try:
        return os.get_terminal_size().columns or 80
    except OSError:
        return 80


def cmake_folder() -> Path:
    """Where an installation keeps `Katana.cmake`."""
    return Path(sys.prefix) / "share" / "katana" / "cmake"


def fleet_folder() -> Path:
    """Where an installation keeps what rolls patches out: the Ansible role and playbook, and systemd's units."""
    return Path(sys.prefix) / "share" / "katana" / "fleet"


def include_folder() -> Path:
    """Where an installation keeps `katana.h`; builds through katana-cc find it by themselves."""
    return Path(sys.prefix) / "libexec" / "katana" / "include"


def _processes_json(program: str, error: KatanaError) -> dict[str, Any]:
    """What came of each process, where processes were to be patched."""
    if not error.processes:
        return {}
    from katana_cc.outcomes import APPLYING, REVERTING, counts_json  # late: most commands patch nothing

    counts = counts_json((p.outcome for p in error.processes), REVERTING if program.endswith("revert") else APPLYING)
    return {"processes": [p.as_json() for p in error.processes], "counts": counts}


def run_reporting_errors(program: str, action: Callable[[], ExitStatus], as_json: bool = False) -> int:
    """Run `action`; turn the errors a user can meet into one message and their exit status.

    With `as_json` the error is also printed to stdout as {"error": {...}}, so that a script need not read words; where
    processes were to be patched, with what came of each.
    """
    try:
        status = action()
        sys.stdout.flush()
    except KatanaError as error:
        if as_json:
            detail = {"what": error.what, "where": error.where, "remedy": error.remedy, "status": int(error.status)}
            print(json.dumps({"error": detail, **_processes_json(program, error)}, indent=2))
        elif len(error.processes) > 1:
            from katana_cc.outcomes import count_line

            for process in error.processes:
                print(process.line)
            print(count_line(p.outcome for p in error.processes))
        print(f"{program}: {error}", file=sys.stderr)
        return int(error.status)
    except BrokenPipeError:
        # The reader went away (`katana log | head`): not an error; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitStatus.DONE)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except (MemoryError, OSError) as error:
        # The machine's own trouble, wherever it shows; what was begun has been taken back by now.
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "out of memory"
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        print(f"{program}: the system refused something: {why}{where}", file=sys.stderr)
        return int(ExitStatus.UNREACHABLE)
    return int(status)
