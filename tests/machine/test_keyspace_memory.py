"""What keys and changes cost is what docs/history.md says, and what limits count: the stated bytes are enough."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Iterator

import pytest

from replikv.machine.keyspace import CHANGE_BYTES, KEY_BYTES, Keyspace

KEYS = 10_000
AT_ONCE = 500
VALUE_BYTES = 100


def put_all(keyspace: Keyspace) -> None:
    for first in range(0, KEYS, AT_ONCE):
        keyspace.commit([(f"{number:020}", bytes(VALUE_BYTES), 0) for number in range(first, first + AT_ONCE)])


def forget(keyspace: Keyspace) -> None:
    keyspace.compact(keyspace.revision)
    while keyspace.trim(sys.maxsize):
        pass


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def traced_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.usefixtures("traced")
def test_keys_and_changes_take_what_is_stated() -> None:
    """A key: its characters, its value and KEY_BYTES. A retained change: likewise, and CHANGE_BYTES. No more, and not
    so much less that a limit in bytes would be reached at half of what it allows.
    """
    before = traced_bytes()
    keyspace = Keyspace()
    put_all(keyspace)
    forget(keyspace)
    keys_bytes = traced_bytes() - before
    stated = KEYS * (20 + VALUE_BYTES + KEY_BYTES)
    assert stated * 0.95 < keyspace.state_bytes < stated * 1.05
    assert stated / 2 < keys_bytes <= stated

    put_all(keyspace)
    changes_bytes = traced_bytes() - before - keys_bytes
    stated = KEYS * (20 + VALUE_BYTES + CHANGE_BYTES)
    assert stated / 2 < changes_bytes <= stated
    assert stated * 0.9 < keyspace.history_bytes <= stated * 1.1

    forget(keyspace)
    assert abs(traced_bytes() - before - keys_bytes) < keys_bytes / 10, "the history was forgotten, and is still held"
