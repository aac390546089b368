"""Do the streams of watches tell the history of the map? A validator, and the form in which streams are recorded.

::

    recorder = StreamRecorder("w1", file)
    async with store.watch("config/", since=bookmark, progress=True) as changes:
        recorder.begin(since=bookmark, prefix="config/")
        async for change in changes:
            recorder.change(change)
    ...
    streams = read_streams("streams.jsonl")
    violations = validate(streams, ChangeHistory.of_streams(everything))
    assert not violations, violations

``streams`` has what is recorded, and its lines of JSON; ``history`` what really changed; ``validation`` holds the one
against the other. ``python -m replikv.testing.watch_validation FILE...`` validates files; docs/watch-validation.md has
the form of the lines, and the nine properties.
"""

from __future__ import annotations

from replikv.testing.watch_validation.history import ChangeHistory, HistoryChange
from replikv.testing.watch_validation.streams import (
    StreamEvent,
    StreamRecorder,
    WatchStream,
    read_streams,
    write_streams,
)
from replikv.testing.watch_validation.validation import PROPERTIES, Violation, validate

__all__ = [
    "PROPERTIES",
    "ChangeHistory",
    "HistoryChange",
    "StreamEvent",
    "StreamRecorder",
    "Violation",
    "WatchStream",
    "read_streams",
    "validate",
    "write_streams",
]
