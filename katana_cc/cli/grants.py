"""The decisions that a person takes by name, as options: the same wherever patches are applied."""

from __future__ import annotations

import argparse

from katana_cc.patch.needs import Grant, Option


def add_grants(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "--allow-active",
        action="append",
        type=function_name,
        default=[],
        metavar="FUNCTION",
        help="replace it even while it runs: calls in progress go on in its old code",
    )
    parser.add_argument(
        "--take-initialiser",
        action="append",
        type=variable_name,
        default=[],
        metavar="VARIABLE",
        help="give it the initial value of the new build, in place of the one that lives there",
    )
    parser.add_argument(
        "--only-static",
        action="append",
        default=[],
        metavar="TYPE",
        help="state that all objects of this type are variables: none is on the heap or in a frame",
    )
    parser.add_argument(
        "--only-reached",
        action="append",
        default=[],
        metavar="TYPE",
        help="state that no object of this type is on the heap but those that pointers by their types lead to",
    )
    parser.add_argument(
        "--not-imported",
        action="append",
        type=variable_name,
        default=[],
        metavar="VARIABLE",
        help="state that no library or plug-in, now or later, uses this variable of the program by name, or knows the "
        "layout of this type",
    )
    parser.add_argument(
        "--follow",
        action="append",
        type=variable_name,
        default=[],
        metavar="NAME",
        help="when this variable, or an object of this type, moves, take every word that leads into it for a pointer, "
        "also where nothing says so",
    )


def grants_of(arguments: argparse.Namespace) -> list[Grant]:
    """What was decided."""
    granted = [Grant(Option.ALLOW_ACTIVE, name) for name in arguments.allow_active]
    granted += [Grant(Option.TAKE_INITIALISER, name) for name in arguments.take_initialiser]
    granted += [Grant(Option.ONLY_STATIC, name) for name in arguments.only_static]
    granted += [Grant(Option.ONLY_REACHED, name) for name in arguments.only_reached]
    granted += [Grant(Option.NOT_IMPORTED, name) for name in arguments.not_imported]
    granted += [Grant(Option.FOLLOW, name) for name in arguments.follow]
    return granted


def function_name(text: str) -> str:
    """For argparse: the name of a function, which is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a function")
    return text


def variable_name(text: str) -> str:
    """For argparse: the name of a variable, which is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a variable")
    return text
