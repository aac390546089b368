"""What a run leaves behind: who writes which file of its directory, and how it is read again.

Each start of a process writes files of its own, which are flushed line by line: ``kill -9`` cuts off the last line at
the most. Times are of CLOCK_MONOTONIC, which all processes of a machine share, so they can be held against each other.

=========================  =============================================================================================
options.json               what the run was asked for
faults.jsonl               what was done to the cluster, and when
NODE.log                   what the processes of a node have logged
NODE.START.calls           operations: one line before each is called, one with its answer
NODE.START.holds           until when holders believed in their locks and leases
NODE.START.gone            when watchers saw keys of locks and leases vanish
NODE.START.watches         streams of watches (``replikv.testing.watch_validation``)
final.json                 what the peers held in the end
history.jsonl              all operations, one line each (``replikv.testing.linearizability``)
report.json                counts and verdicts
=========================  =============================================================================================
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from replikv.testing.linearizability import Call, Operation, Recorder, read_history, write_history

__all__ = ["Gone", "Hold", "Lines", "OperationFile", "read_gone", "read_holds", "read_lines", "read_operations"]


class Lines:
    """A file that lines of JSON are added to, each flushed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, line: dict[str, Any]) -> None:
        """Add one."""
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines that are whole."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]


# -- operations --------------------------------------------------------------------------------------------------------


class OperationFile:
    """Two lines for each operation: one before it is called, and one with its answer. So ``kill -9`` loses none."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._recorder = Recorder(time.monotonic)

    @contextlib.contextmanager
    def call(
        self, client: str, op: str, key: str | None = None, *, value: Any = None, expect: Any = None
    ) -> Iterator[Call]:
        """As :meth:`Recorder.call`."""
        call = self._recorder.call(client, op, key, value=value, expect=expect)
        try:
            with call:
                write_history([call.operation], self._file)
                yield call
        finally:
            write_history([call.operation], self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_operations(directory: Path) -> list[Operation]:
    """The operations of all processes, in the order of their calls. Of the lines for one, the last counts."""
    found: dict[tuple[str, float], str] = {}
    for path in sorted(directory.glob("*.calls")):
        for line in _whole_lines(path):
            record = json.loads(line)
            found[record["client"], record["call"]] = line
    return sorted(read_history(found.values()), key=lambda operation: operation.called)


# -- holders -----------------------------------------------------------------------------------------------------------


class Hold(NamedTuple):
    """Somebody held a lock, or a lease."""

    name: str
    """Of what can be held once at a time."""
    key: str
    """Is there as long as it is held."""
    token: int
    """The revision that made the key."""
    who: str
    entered: float
    believed: float
    """The last time at which he was sure to hold it, by his own clock."""


class Gone(NamedTuple):
    """A watcher saw a key vanish: at this time it had been gone, in the log, for a while."""

    key: str
    rev: int
    at: float


def read_holds(directory: Path) -> list[Hold]:
    """All of them, with the last belief of each, in the order of their tokens."""
    found: dict[tuple[str, int], Hold] = {}
    for path in sorted(directory.glob("*.holds")):
        for line in read_lines(path):
            hold = Hold(**line)
            found[hold.key, hold.token] = hold
    return sorted(found.values(), key=lambda hold: hold.token)


def read_gone(directory: Path) -> list[Gone]:
    """What all watchers saw."""
    return [Gone(**line) for path in sorted(directory.glob("*.gone")) for line in read_lines(path)]
