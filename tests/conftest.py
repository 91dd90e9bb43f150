"""Which tests run: KATANA_TESTS is `sample` (if it is not set), `rest` or `all`.

A test made for three toolchains or more runs in one of six in the sample, in others each time, so that every
toolchain meets a share of all tests; which they are never changes.  The rest are the others, and whatever is marked
`rest`.
"""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Hashable
from typing import Final

import pytest
from hypothesis import settings

from tests.support.project import Variant

_MANY: Final = 3  # toolchains of a test, or more, of which
_OF_EACH: Final = 6  # one in so many is in the sample, and one at least

# How long an example takes says more about the machine than about the code.
settings.register_profile("katana", deadline=None)
settings.load_profile("katana")


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marks mean."""
    # A job in the background ignores Ctrl-C, and so would all that it starts: tests of it would test nothing.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "rest: not in the sample that `make test` takes")
    # Of the group "all processes" are tests that leave what a later katana made in some process for a while, and those
    # that want nothing to be amiss in any.
    config.addinivalue_line("markers", "situation(kind, text, outcome): see tests/live/situations.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for."""
    asked = os.environ.get("KATANA_TESTS", "sample")
    if asked not in ("sample", "rest", "all"):
        raise pytest.UsageError(f"KATANA_TESTS={asked}: sample, rest or all")
    if asked == "all" or any("[" in word for word in config.args):  # one that is named is meant
        return
    left_out = _rest(items) if asked == "sample" else set(items) - _rest(items)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def _rest(items: list[pytest.Item]) -> set[pytest.Item]:
    """What is not in the sample."""
    groups: dict[Hashable, list[pytest.Item]] = {}
    for item in items:
        call = getattr(item, "callspec", None)
        values: dict[str, object] = call.params if call is not None else {}
        if any(isinstance(value, Variant) for value in values.values()):
            others = [(name, repr(value)) for name, value in values.items() if not isinstance(value, Variant)]
            groups.setdefault((item.nodeid.partition("[")[0], *others), []).append(item)
    rest = {item for item in items if item.get_closest_marker("rest")}
    for test, its in groups.items():
        if len(its) >= _MANY:
            first = zlib.crc32(repr(test).encode()) % min(len(its), _OF_EACH)
            rest.update(item for n, item in enumerate(its) if n % _OF_EACH != first)
    return rest
