"""`katana-release`: name what was built, or pack the patches that lead to it."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence, Set
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from katana_cc import __version__
from katana_cc.cli.main import Formatter, add_settings, run_reporting_errors
from katana_cc.cli.progress import progress
from katana_cc.errors import ExitStatus, StoreError, UsageError
from katana_cc.release.escaped import escaped
from katana_cc.release.naming import Ingested, ingest_staged, name_release, retire_release, unrecorded
from katana_cc.settings import export, say
from katana_cc.snapshot.place import find_store
from katana_cc.snapshot.store import Store

_MOST_TOLD: Final = 5
_RETIRED = "%s: no patches are made from it any more"


def main() -> int:
    """Entry point of `katana-release`, whose process ends with it; returns the exit status."""
    gc.disable()  # a short run that makes hundreds of thousands of small tuples and no cycles to speak of
    status = release(sys.argv[1:])
    gc.freeze()  # or the interpreter would look for cycles at its end, disabled or not
    return status


def release(argv: Sequence[str]) -> int:
    """The command, in whatever process; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="katana-release",
        description="Name the current snapshots and mark them deployed, or bundle patches.",
        formatter_class=Formatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="name the current snapshots")
    parser.add_argument(
        "--not-deployed",
        action="store_true",
        help="only name them: no patches are made from them; of a release that there is, take the mark off",
    )
    parser.add_argument(
        "--since", metavar="NAME", help="bundle all patches from NAME, and from each later release, to now"
    )
    parser.add_argument("--to", metavar="NAME", help="with --since: to the builds of release NAME, not to those of now")
    parser.add_argument(
        "-o", dest="output", metavar="DIR", type=Path, help="where the bundle goes (default: patches-since-NAME)"
    )
    parser.add_argument(
        "--sign", metavar="KEY", type=Path, help="sign all files of the bundle, and what is published (Ed25519, PEM)"
    )
    parser.add_argument(
        "--publish",
        metavar="URL",
        help="also add the patches to a mirror: a folder, or a place that fsspec writes to; `katana update` reads it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_settings(parser)
    parser.add_argument("--version", action="version", version=f"katana {__version__}")
    arguments = parser.parse_args(argv)
    return run_reporting_errors("katana-release", lambda: _run(arguments), arguments.json)


def _run(arguments: argparse.Namespace) -> ExitStatus:
    if (arguments.name is None) == (arguments.since is None):
        raise UsageError("say either NAME or --since NAME", remedy="See `katana-release --help`.")
    if arguments.since is None and (arguments.sign or arguments.publish or arguments.output or arguments.to):
        raise UsageError("--to, -o, --sign and --publish are of a bundle", remedy="add --since NAME")
    say(os.environ, arguments.set)
    export(os.environ)
    try:
        store = Store(find_store(), create=True)
    except StoreError:
        _tell_escaped(Path.cwd(), frozenset(), frozenset())
        raise
    with closing(store):  # cycles that nobody looks for would keep it open, and its log beside it
        return _run_in(store, arguments)


def _run_in(store: Store, arguments: argparse.Namespace) -> ExitStatus:
    try:
        with progress("recording", quiet=arguments.json) as shown:
            ingested = ingest_staged(store, shown)
    except StoreError:
        _tell_escaped(Path.cwd(), frozenset(), frozenset())
        raise
    _warn(ingested)
    if store.folder.name == ".katana":  # else nothing tells where the project is
        known = {row.build_id for row in store.snapshot_rows()}
        _tell_escaped(store.folder.absolute().parent, known, {gap.path for gap in store.gaps()})
    if arguments.name is not None:
        return _name(store, arguments, ingested)
    return _bundle(store, arguments)


def _bundle(store: Store, arguments: argparse.Namespace) -> ExitStatus:
    # Late: the diff would cost a third of naming a release.
    from katana_cc.release.bundle import make_bundle, write_bundle

    sign = _signer(arguments.sign)
    folder = arguments.output or Path(f"patches-since-{arguments.since}")
    with progress("comparing", quiet=arguments.json) as shown:
        bundle = make_bundle(store, arguments.since, arguments.to, shown)
    manifest = bundle.manifest
    write_bundle(bundle, folder, sign)
    if arguments.publish is not None:
        from katana_cc.release.mirror import publish, published
        from katana_cc.release.places import place

        publish(place(arguments.publish), published(bundle), sign)
    if arguments.json:
        print(json.dumps(manifest, indent=2, sort_keys=True))
        return _status(manifest)
    for patch in manifest["patches"]:
        print(f"{patch['output']}: {patch['from']} -> {patch['to']}: {patch['verdict']}: {folder / patch['file']}")
    for same in manifest["unchanged"]:
        print(f"{same['output']}: {same['release']} needs no patch")
    for lost in manifest["missing"]:
        print(f"{lost['output']}: {lost['release']}: NO PATCH, the present build is not recorded: {lost['reason']}")
    if arguments.publish is not None:
        print(f"published: {arguments.publish}")
    return _status(manifest)


def _signer(path: Path | None) -> Callable[[bytes], bytes] | None:
    """What signs with the key of a file; read before anything is made."""
    if path is None:
        return None
    from katana_cc.trust import ed25519

    try:
        pem = path.read_bytes()
    except OSError as error:
        raise UsageError(f"the key cannot be read: {error.strerror}", where=str(path)) from error
    key = ed25519.private_key(pem, str(path))
    return lambda data: ed25519.sign(key, data)


def _status(manifest: dict[str, Any]) -> ExitStatus:
    if manifest["missing"]:
        return ExitStatus.STORE
    return ExitStatus.REFUSED if any(p["verdict"] == "refused" for p in manifest["patches"]) else ExitStatus.DONE


def _name(store: Store, arguments: argparse.Namespace, ingested: Ingested) -> ExitStatus:
    if arguments.not_deployed and retire_release(store, arguments.name):
        print(
            json.dumps({"release": arguments.name, "deployed": False}) if arguments.json else _RETIRED % arguments.name
        )
        return ExitStatus.DONE
    missing = unrecorded(store)
    lost = dict(ingested.failed) | missing
    snapshots = name_release(
        store, arguments.name, deployed=not arguments.not_deployed, missing=missing, read=ingested.recorded
    )
    if arguments.json:
        outputs = [{"output": s.output, "build_id": s.build_id, "snapshot": s.id} for s in snapshots]
        gaps = [{"output": o, "reason": r} for o, r in lost.items()]
        print(json.dumps({"release": arguments.name, "outputs": outputs, "gaps": gaps}, indent=2))
        return ExitStatus.DONE
    for s in snapshots:
        print(f"{arguments.name}: {s.output} (build-id {s.build_id[:12]}, {len(s.units)} objects)")
    for output in sorted(lost.keys() - dict(ingested.failed).keys()):
        print(f"katana-release: {output} is not part of {arguments.name}: {lost[output]}", file=sys.stderr)
    return ExitStatus.DONE


def _tell_escaped(root: Path, known: Set[str], told: Set[str]) -> None:
    """What was built here and is not recorded: the commonest reason is a second compiler that was not wrapped."""
    found = [one for one in escaped(root, known) if one.path not in told]
    for one in found[:_MOST_TOLD]:
        print(f"katana-release: {one.path} is not recorded: {one.reason}", file=sys.stderr)
    if len(found) > _MOST_TOLD:
        print(f"katana-release: nor are {len(found) - _MOST_TOLD} more", file=sys.stderr)


def _warn(ingested: Ingested) -> None:
    for output, reason in ingested.failed:
        print(f"katana-release: {output} is not recorded: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
