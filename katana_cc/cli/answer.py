"""`katana answer`."""

from __future__ import annotations

import argparse
import json
import sys

from katana_cc.errors import ExitStatus, UsageError
from katana_cc.release.emit import emit_patches
from katana_cc.snapshot.answers import question, read_answers, write_answers
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `katana answer`."""
    parser.add_argument("field", nargs="?", metavar="TYPE.FIELD", help="a field of the old build: 'struct conn.port'")
    parser.add_argument("new", nargs="?", metavar="NEW", help="what it is called now")
    parser.add_argument("--gone", action="store_true", help="it was not renamed: it is gone")
    parser.add_argument("--forget", action="store_true", help="take the answer back")
    parser.add_argument("--json", action="store_true", help="print JSON: a list of answers")


def run(arguments: argparse.Namespace) -> ExitStatus:
    """Remember an answer and make the patches anew that it matters to; without one, print those there are."""
    store = Store(find_store())
    answers = read_answers(store.folder)
    if arguments.field is None:
        if arguments.gone or arguments.forget:
            raise UsageError("say of which TYPE.FIELD", remedy="See `katana answer --help`.")
        _print(answers, as_json=arguments.json)
        return ExitStatus.DONE
    if sum((arguments.new is not None, arguments.gone, arguments.forget)) != 1:
        raise UsageError(
            "say what the field is called now, or --gone, or --forget", remedy="See `katana answer --help`."
        )
    asked = question(arguments.field)
    if arguments.forget:
        if answers.pop(asked, None) is None:
            raise UsageError(f"there is no answer for {'.'.join(asked)}", remedy="`katana answer` lists them.")
    else:
        answers[asked] = arguments.new or ""
    write_answers(store.folder, answers)
    lines = []
    for output in dict.fromkeys(r.output for r in store.patches()):
        newest = store.latest(output)
        if newest is not None:
            lines += list(emit_patches(store, store.snapshot(newest.id)))
    if arguments.json:
        _print(answers, as_json=True)
    for line in lines:
        print(line, file=sys.stderr if arguments.json else sys.stdout)
    return ExitStatus.DONE


def _print(answers: dict[tuple[str, str], str], *, as_json: bool) -> None:
    if as_json:
        rows = [{"type": kind, "field": field, "now": new or None} for (kind, field), new in sorted(answers.items())]
        print(json.dumps(rows, indent=2))
        return
    for (kind, field), new in sorted(answers.items()):
        print(f"{kind}.{field}: {new or 'gone'}")
