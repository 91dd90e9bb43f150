"""What a person has said of questions that no build can decide: which fields of a struct were renamed.

Kept as text, `answers` in the store's folder, one a line, so that it can be read, copied to another store and kept with
the sources:

    struct conn.port -> number
    struct conn.flags ->

The field `port` of struct conn is called `number` now; `flags` is gone, and what stands in its place is another one.
Types are called as the diff calls them, with or without their keyword.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from katana_cc.errors import StoreError, UsageError
from katana_cc.snapshot.words import plain, remedy_for

_ARROW: Final = " ->"
_KEYWORDS: Final = ("struct ", "class ", "union ")

Answers = dict[tuple[str, str], str]
"""(type without keyword, old field) → new field; "" for one that is gone."""


def question(text: str) -> tuple[str, str]:
    """(type, field) of `struct conn.port`.

    Raises:
        UsageError: it is not of that form.
    """
    name = text.strip()
    for keyword in _KEYWORDS:
        name = name.removeprefix(keyword)
    kind, dot, field = name.rpartition(".")
    if not (dot and kind.strip() and field.strip()):
        raise UsageError(f"`{text}` is no field of a type", remedy="Say it as TYPE.FIELD: 'struct conn.port'.")
    return kind.strip(), field.strip()


def read_answers(folder: Path) -> Answers:
    """The answers in a store's folder.

    Raises:
        StoreError: the file cannot be read, or a line is none.
    """
    path = folder / "answers"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        why = plain(error) if isinstance(error, OSError) else "it is no text"
        raise StoreError(f"the answers cannot be read: {why}", where=str(path)) from error
    found: Answers = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        left, arrow, right = line.partition(_ARROW)
        try:
            if not arrow:
                raise UsageError("there is no `->`")
            found[question(left)] = right.strip()
        except UsageError as error:
            remedy = "Write TYPE.OLD -> NEW, or TYPE.OLD -> for a field that is gone."
            raise StoreError(f"line {number} is no answer: {error.what}", where=str(path), remedy=remedy) from error
    return found


def write_answers(folder: Path, answers: Mapping[tuple[str, str], str]) -> None:
    """Keep answers, the whole file at once.

    Raises:
        StoreError: it cannot be written.
    """
    path = folder / "answers"
    lines = [f"{kind}.{field}{_ARROW} {new}".rstrip() + "\n" for (kind, field), new in sorted(answers.items())]
    try:
        temporary = path.with_name(".answers.new")
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        what = f"the answers cannot be written: {plain(error)}"
        raise StoreError(what, where=str(path), remedy=remedy_for(error)) from error
