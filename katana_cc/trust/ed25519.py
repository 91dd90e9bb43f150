"""Ed25519 signatures (RFC 8032): the one importer of `cryptography`.

Keys are PEM files as openssl makes them (PKCS #8, and SubjectPublicKeyInfo: RFC 8410), and a signature is its 64 bytes
and nothing else, so that other tools sign and verify the same: `openssl pkeyutl -verify -rawin`.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: TID251 - the one importer
from cryptography.hazmat.primitives import serialization  # noqa: TID251
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey  # noqa: TID251

from katana_cc.errors import UsageError

SIZE: Final = 64  # of a signature, in bytes
_REMEDY: Final = (
    "Make one with `openssl genpkey -algorithm ed25519 -out KEY`; `openssl pkey -in KEY -pubout` is its public half."
)


def private_key(pem: bytes, where: str) -> Ed25519PrivateKey:
    """The key of a PEM file without a passphrase.

    Raises:
        UsageError: it holds none, or one of another kind.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except TypeError:
        raise UsageError(
            "the key is kept under a passphrase, which nobody is there to type",
            where=where,
            remedy="Give one without, readable by the build alone.",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError("it is no private key", where=where, remedy=_REMEDY) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError("it is a private key, but none of Ed25519", where=where, remedy=_REMEDY)
    return key


def public_key(pem: bytes, where: str) -> Ed25519PublicKey:
    """The public key of a PEM file.

    Raises:
        UsageError: it holds none, or one of another kind.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError("it is no public key", where=where, remedy=_REMEDY) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError("it is a public key, but none of Ed25519", where=where, remedy=_REMEDY)
    return key


def sign(key: Ed25519PrivateKey, data: bytes) -> bytes:
    """The signature, of `SIZE` bytes; always the same for the same data."""
    return key.sign(data)


def is_signed(key: Ed25519PublicKey, data: bytes, signature: bytes) -> bool:
    """Whether a signature is this key's, of exactly this data."""
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True
