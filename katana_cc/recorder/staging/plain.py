"""Hashing, JSON and text without the imports they usually cost: `json` takes five milliseconds, `hashlib` two."""

from __future__ import annotations

try:
    from _json import encode_basestring_ascii as _quote
    from _sha1 import sha1  # type: ignore[import-not-found]
except ImportError:  # not CPython, or one built without them
    from hashlib import sha1
    from json.encoder import encode_basestring_ascii as _quote


def digest(data: bytes) -> str:
    """The SHA-1 of some bytes, in hex.  It names things; nothing rests on its strength."""
    return str(sha1(data).hexdigest())


def text(path: bytes) -> str:
    """A path as JSON holds it: a byte that is no UTF-8 becomes a lone surrogate (PEP 383)."""
    return path.decode("utf-8", "surrogateescape")


def to_json(value: object) -> str:
    """JSON of dicts, lists, strings, integers, booleans and None; bytes are paths, which `os.fsencode` gives back."""
    if isinstance(value, str):  # the most frequent first: there are thousands of values a link
        return _quote(value)
    if isinstance(value, bytes):
        return _quote(text(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join([f"{to_json(key)}: {to_json(item)}" for key, item in value.items()]) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join([to_json(item) for item in value]) + "]"
    return "null" if value is None else str(value)
