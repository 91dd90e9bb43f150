"""Patch objects named on the command line, their signatures checked: the same wherever one is applied."""

from __future__ import annotations

import argparse
from pathlib import Path

from katana_cc.patch.codec import decode
from katana_cc.patch.files import contents
from katana_cc.patch.model import PatchObject
from katana_cc.trust.policy import Policy, policy, signature_of


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "--require-signature", action="store_true", help="refuse what is not signed by a key that this host trusts"
    )
    parser.add_argument(
        "--trusted",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="a folder of public keys, as files *.pem (beside /etc/katana/trusted.d and KATANA_TRUSTED)",
    )


def policy_of(arguments: argparse.Namespace) -> Policy:
    """What the options, the environment and the host say."""
    return policy(arguments.trusted, arguments.require_signature)


def read_signed(path: str, trust: Policy) -> tuple[bytes, PatchObject]:
    """The bytes of a patch object and what they hold; its signature is looked at before anything in it is.

    Raises:
        KatanaError: as `contents`, `Policy.check` and `decode` do.
    """
    data = contents(path)
    trust.check(data, signature_of(Path(path)), path)
    return data, decode(data, path)
