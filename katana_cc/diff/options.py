"""The options of a link that change what names mean, read from the linker's arguments.

Only such as make code of unchanged objects behave differently.  Source: ld(1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """`wrapped` names of --wrap; `defined` SYMBOL=EXPRESSION of --defsym; `scripts` that were given with -T; whether
    identical code may be folded (`icf`)."""

    wrapped: frozenset[str] = frozenset()
    defined: frozenset[str] = frozenset()
    scripts: tuple[str, ...] = ()
    entry: tuple[str, ...] = ()
    icf: bool = False


_VALUED = {
    "--wrap": "wrapped", "-wrap": "wrapped", "--defsym": "defined", "-defsym": "defined", "-T": "scripts",
    "--script": "scripts", "-e": "entry", "--entry": "entry", "-init": "entry", "-fini": "entry", "--icf": "icf",
}  # fmt: skip


def link_options(arguments: Sequence[str]) -> LinkOptions:
    """The options in a linker's argument list."""
    found: dict[str, list[str]] = {"wrapped": [], "defined": [], "scripts": [], "entry": [], "icf": []}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        kind = _VALUED.get(name)
        if kind is None:
            continue
        found[kind].append(value if equals else next(words, ""))
    return LinkOptions(
        frozenset(found["wrapped"]), frozenset(found["defined"]), tuple(found["scripts"]), tuple(found["entry"]),
        any(v != "none" for v in found["icf"]),
    )  # fmt: skip
