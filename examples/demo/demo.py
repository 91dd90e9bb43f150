"""Patch a multi-threaded server while clients talk to it, and take the patch out again.  Every step is checked.

The server (`server/`) is ordinary C with an ordinary Makefile; it is copied to a temporary folder and built with
`CC=katana-cc make`, nothing else.  Run by `make demo`; exits 0 only when all is as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COMMANDS = Path(sys.executable).parent
PATIENCE = 30.0  # seconds for anything that should take a moment

# The bug: MEAN throws the fraction away.  The fix rounds to hundredths, in a new function, and counts its answers: the
# struct that holds the live counters gains a field.
FIX = (
    (
        "    long requests;\n} counters;\n",
        "    long requests;\n    long means;\n} counters;\n\n"
        "/* The mean in hundredths, rounded half away from zero. */\n"
        "static __attribute__((noinline)) long mean_hundredths(const struct entry *entry)\n"
        "{\n"
        "    long total = entry->total * 100, half = entry->samples / 2;\n"
        "    return entry->samples ? (total + (total < 0 ? -half : half)) / entry->samples : 0;\n"
        "}\n",
    ),
    (
        "    long mean = entry->samples ? entry->total / entry->samples : 0;\n",
        "    long mean = mean_hundredths(entry);\n    __atomic_add_fetch(&counters.means, 1, __ATOMIC_RELAXED);\n",
    ),
    (
        '    return snprintf(out, size, "%ld\\n", mean);\n',
        '    return snprintf(out, size, "%s%ld.%02ld\\n", mean < 0 ? "-" : "", labs(mean) / 100, labs(mean) % 100);\n',
    ),
    (
        '    return snprintf(out, size, "requests=%ld keys=%ld\\n", '
        "__atomic_load_n(&counters.requests, __ATOMIC_RELAXED),\n                    store_keys());\n",
        '    return snprintf(out, size, "requests=%ld keys=%ld means=%ld\\n", '
        "__atomic_load_n(&counters.requests, __ATOMIC_RELAXED),\n"
        "                    store_keys(), __atomic_load_n(&counters.means, __ATOMIC_RELAXED));\n",
    ),
)

# What `katana apply` says of one process.
APPLIED = re.compile(
    r"pid \d+ \(\S+\): applied(?: after \d+ tries)?: .* stopped for (?P<pause>[\d.]+) ms\n  moved counters .*"
)


class Deviation(Exception):
    """Something is not as it should be."""


class Show:
    """What the watcher sees: numbered steps, commands as typed, what they printed."""

    def __init__(self) -> None:
        self._steps = 0
        bold = sys.stdout.isatty()
        self._on, self._dim, self._off = ("\033[1m", "\033[2m", "\033[0m") if bold else ("", "", "")

    def step(self, text: str) -> None:
        self._steps += 1
        print(f"\n{self._on}{self._steps}. {text}{self._off}", flush=True)

    def command(self, text: str) -> None:
        print(f"   {self._on}$ {text}{self._off}", flush=True)

    def output(self, text: str) -> None:
        for line in text.rstrip("\n").splitlines():
            print(f"   {line}", flush=True)

    def check(self, holds: bool, text: str) -> None:
        """A claim, held against what was seen."""
        if not holds:
            raise Deviation(text)
        print(f"   {self._dim}ok:{self._off} {text}", flush=True)


class Client:
    """One connection to the server: a line asked, a line answered."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._stream = self._socket.makefile("rw", encoding="ascii", newline="\n")
        self.asked = 0

    def ask(self, request: str) -> str:
        self._stream.write(request + "\n")
        self._stream.flush()
        self.asked += 1
        return self._stream.readline().rstrip("\n")

    def stats(self) -> dict[str, int]:
        return {name: int(value) for name, value in (pair.split("=") for pair in self.ask("STATS").split())}


class Demo:
    """The run, step by step."""

    def __init__(self, folder: Path, show: Show, connections: int, workers: int) -> None:
        self.folder = folder
        self.show = show
        self.connections = connections
        self.workers = workers
        # Of the caller's make and katana nothing may come in: the demo has its own store.
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "KATANA_", "CFLAGS", "LDFLAGS"))
        }
        self.environment = kept | {"PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}", "CC": "katana-cc"}

    def run(self, *command: str, shown: str | None = None, expected: int = 0) -> str:
        """Run a command as a person would, which has to end with this status; its standard output."""
        if shown != "":
            self.show.command(shown or " ".join(command))
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=2 * PATIENCE
        )
        if shown != "":
            self.show.output(done.stdout + done.stderr)
        if done.returncode != expected:
            said = "" if shown != "" else f"\n{done.stdout}{done.stderr}"
            raise Deviation(f"`{' '.join(command)}` ended with status {done.returncode}{said}")
        return done.stdout + done.stderr if command[0] == "make" else done.stdout

    def answer_as_json(self, *command: str) -> Any:
        """What a command says with --json, for this script only."""
        return json.loads(self.run(*command, "--json", shown=""))

    @contextlib.contextmanager
    def started(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """A process that goes on beside this one, and is gone afterwards whatever happens."""
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        text = process.stdout.readline().strip()
        if not text:
            raise Deviation(f"process {process.pid} ended before it was ready")
        return text

    def build(self) -> None:
        self.show.step("Build the server as always, only with CC=katana-cc, and name what was built")
        self.run("make", shown="CC=katana-cc make")
        self.run("katana-release", "v1.0")

    def whole(self) -> None:
        """The demo."""
        self.build()
        with self.started("./server", str(self.workers)) as server:
            port = int(self.line(server).split()[1])
            self.show.step(f"Run it: {self.workers} worker threads, {self.connections} clients that check every answer")
            self.show.output(f"server: process {server.pid}, port {port}")
            with self.started("./load", str(port), str(self.connections)) as load:
                self.show.check(self.line(load) == "ready", "all clients are served")
                client = Client(port)
                before = self.bug(client)
                patch = self.fix()
                pause = self.apply(patch, server.pid)
                self.after(client, before)
                self.revert(client, server.pid)
                self.settle(client, load, pause)
                self.show.check(server.poll() is None, "the server never stopped")

    def bug(self, client: Client) -> dict[str, int]:
        self.show.step("It has a bug: the mean of 1 and 2 is not 1")
        for number in (1, 2):
            self.show.check(client.ask(f"ADD demo {number}") == "OK", f"ADD demo {number}")
        mean = client.ask("MEAN demo")
        self.show.check(mean == "1", f"MEAN demo: {mean}")
        before = client.stats()
        self.show.check("means" not in before, f"STATS: {before}")
        return before

    def fix(self) -> str:
        self.show.step("Fix the source, and build again")
        source = self.folder / "commands.c"
        old = new = source.read_text()
        for wrong, right in FIX:
            if new.count(wrong) != 1:
                raise Deviation(f"commands.c does not hold exactly once: {wrong!r}")
            new = new.replace(wrong, right)
        source.write_text(new)
        changed = difflib.unified_diff(old.splitlines(), new.splitlines(), "commands.c", "commands.c", n=0, lineterm="")
        self.show.output("\n".join(line for line in changed if not line.startswith("@@")))
        said = self.run("make", shown="CC=katana-cc make")
        self.show.check("katana: " in said, "the link left a patch object, and one line that says so")
        found = self.answer_as_json("katana", "patches")
        self.show.check(len(found) == 1 and found[0]["verdict"] == "safe", "`katana patches` knows it, as safe")
        path = os.path.relpath(found[0]["path"], self.folder)
        self.run("katana", "explain", path)
        return path

    def apply(self, patch: str, pid: int) -> float:
        self.show.step("Put it into the running server, under load")
        said = self.run("katana", "apply", patch, "--pid", str(pid))
        found = APPLIED.fullmatch(said.strip())
        if found is None:
            raise Deviation("`katana apply` does not say that the patch is in")
        pause = float(found["pause"])
        status = self.run("katana", "status", "--pid", str(pid))
        self.show.check("v1.0" in status, "`katana status` tells it")
        return pause

    def after(self, client: Client, before: dict[str, int]) -> None:
        self.show.step("The same process answers rightly, and remembers everything")
        mean = client.ask("MEAN demo")
        self.show.check(mean == "1.50", f"MEAN demo: {mean}")
        after = client.stats()
        self.show.check(after["means"] == 1, f"the new field of the live counters counts: {after}")
        self.show.check(after["requests"] > before["requests"], "the field beside it went on from its old value")
        self.show.check(after["keys"] == before["keys"], "every key is still there")

    def revert(self, client: Client, pid: int) -> None:
        self.show.step("Take it out again; the old layout has no room for the new counter, which has to be said")
        self.run("katana", "revert", "--pid", str(pid), expected=3)
        self.run("katana", "revert", "--pid", str(pid), "--discard", "counters")
        mean = client.ask("MEAN demo")
        self.show.check(mean == "1", f"MEAN demo: {mean}, the old answer")
        self.show.check("means" not in client.stats(), "STATS is the old one too")

    def settle(self, client: Client, load: subprocess.Popen[str], pause: float) -> None:
        self.show.step("Stop the clients, and count")
        output, _ = load.communicate("", timeout=PATIENCE)
        result = json.loads(output)
        self.show.output(
            f"{result['requests']} requests, {result['errors']} errors; answer times: mean {result['mean_ms']} ms, "
            f"longest {result['max_ms']} ms; the threads stood still for {pause:.2f} ms when the patch went in"
        )
        self.show.check(result["errors"] == 0, "no answer was wrong, none was missing")
        total, theirs, mine = client.stats()["requests"], result["requests"], client.asked
        self.show.check(
            total == theirs + mine, f"the server counted {total} requests: {theirs} + our {mine}, none lost"
        )


def main() -> int:
    """Run the demo; 0 when everything was as it should be."""
    parser = argparse.ArgumentParser(description="Patch a running server under load, and take the patch out again.")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--keep", action="store_true", help="leave the folder for a look")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _frame: sys.exit(128 + n))  # so that the way out below is taken
    folder = Path(tempfile.mkdtemp(prefix="katana-demo-"))
    began = time.monotonic()
    try:
        shutil.copytree(
            HERE / "server", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.o", "server", "load")
        )
        Demo(folder, Show(), options.connections, options.workers).whole()
    except (Deviation, subprocess.TimeoutExpired, OSError, ValueError, KeyError) as error:
        print(f"\nexamples/demo: {error}", file=sys.stderr)
        return 1
    finally:
        if options.keep:
            print(f"\nkept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\nDone in {time.monotonic() - began:.0f} s: all as it should be.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
