"""What watches promise, held against what happened: nine properties, as etcd's robustness tests name them.

================  ==================================================================================================
bookmarkable      behind a mark of progress comes nothing up to its revision, and before it everything up to there
ordered           revisions never go back
unique            no change is told twice
atomic            of a revision all changes are told that were asked for, or none
reliable          no revision is left out between two that were told, and nothing is told that did not happen
resumable         what comes after ``since`` is told from there on, none of it missing, nothing from before; and a watch
                  is refused as compacted only for what it had not told yet
previous          the value before is the one that was there
created           a put is said to have made the key exactly if it was not there
filtered          of keys, ranges and kinds only those that were asked for
================  ==================================================================================================

A stream may break off after any change: its reader was killed, or had enough. So of the last revision that it tells
some changes may be missing, unless a mark or an error says that it has told all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final

from replikv.testing.watch_validation.history import ChangeHistory, HistoryChange
from replikv.testing.watch_validation.streams import StreamEvent, WatchStream

__all__ = ["PROPERTIES", "Violation", "validate"]

PROPERTIES: Final = (
    "bookmarkable",
    "ordered",
    "unique",
    "atomic",
    "reliable",
    "resumable",
    "previous",
    "created",
    "filtered",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Violation:
    """A property that does not hold."""

    property: str
    """One of PROPERTIES."""
    watcher: str
    stream: int
    what: str

    def __str__(self) -> str:
        return f"{self.property}: stream {self.stream} of {self.watcher} {self.what}"


def validate(streams: Iterable[WatchStream], history: ChangeHistory) -> list[Violation]:
    """What is wrong with the streams; empty if all is well. O(revisions that each stream spans).

    Of revisions that the history does not know, up to its newest, streams are not held to what they tell.
    """
    return [violation for stream in streams for violation in _Validation(stream, history).run()]


class _Validation:
    """Of one stream."""

    def __init__(self, stream: WatchStream, history: ChangeHistory) -> None:
        self._stream = stream
        self._history = history
        self._violations: list[Violation] = []
        # Revision -> keys, of what was told behind ``since``.
        self._told: dict[int, set[str]] = {}
        # The state that a stream with ``snapshot`` begins with: key -> value.
        self._state: dict[str, Any] = {}
        # Of the last change or mark; and of the greatest mark.
        self._last = stream.since
        self._marked = stream.since
        # Whether anything followed the state.
        self._begun = not stream.snapshot

    def run(self) -> list[Violation]:
        """Look at each event, and then for what is missing."""
        for event in self._stream.events:
            if event.event == "change":
                self._change(event)
            elif event.event == "progress":
                self._mark(event)
            elif event.event == "lagged":
                self._begun = True
                self._marked = max(self._marked, event.rev)
            elif event.event == "compacted" and event.rev <= max(self._last, self._marked):
                self._tell("resumable", f"is refused as compacted up to {event.rev}, and had come to {self._last}")
        if self._stream.snapshot:
            self._check_state()
        self._check_missing()
        return self._violations

    def _tell(self, name: str, what: str) -> None:
        self._violations.append(Violation(name, self._stream.watcher, self._stream.stream, what))

    # -- what is told --------------------------------------------------------------------------------------------------

    def _change(self, event: StreamEvent) -> None:
        stream, rev, key = self._stream, event.rev, str(event.key)
        if key not in stream or (stream.kinds is not None and event.kind not in stream.kinds):
            self._tell("filtered", f"tells of {event}, which was not asked for")
            return
        if stream.snapshot and rev == stream.since and not self._begun:
            self._state_change(event)
            return
        self._begun = True
        keys = self._told.setdefault(rev, set())
        if key in keys:
            self._tell("unique", f"tells of {event} twice")
            return
        keys.add(key)
        if rev <= stream.since:
            self._tell("resumable", f"was to begin after {stream.since}, and tells of {event}")
        elif rev <= self._marked:
            self._tell("bookmarkable", f"tells of {event} behind a mark at {self._marked}")
        elif rev < self._last:
            self._tell("ordered", f"tells of {event} after {self._last}")
        self._last = max(self._last, rev)
        self._compare(event)

    def _compare(self, event: StreamEvent) -> None:
        changes = self._history.at(event.rev)
        if changes is None:
            if event.rev > self._history.newest or event.rev < 1:
                self._tell("reliable", f"tells of {event}, and the newest revision is {self._history.newest}")
            return
        found = changes.get(str(event.key))
        if found is None or found.kind != event.kind or not _same(found.value, event.value):
            self._tell("reliable", f"tells of {event}, and {found or 'nothing of the kind'} happened")
            return
        wanted = found.previous if self._stream.previous else None
        if not _same(wanted, event.previous):
            self._tell("previous", f"tells of {event} after {event.previous!r:.60}, and it was {wanted!r:.60}")
        if found.created is not event.created:
            self._tell("created", f"tells of {event}, created: {event.created}, which is not so")

    def _mark(self, event: StreamEvent) -> None:
        self._begun = True
        if event.rev < max(self._last, self._marked):
            self._tell("bookmarkable", f"has a mark at {event.rev} after {max(self._last, self._marked)}")
        self._marked = max(self._marked, event.rev)

    # -- the state that it begins with ---------------------------------------------------------------------------------

    def _state_change(self, event: StreamEvent) -> None:
        key = str(event.key)
        if key in self._state:
            self._tell("unique", f"tells of {event} twice, in the state that it begins with")
        elif event.kind != "put":
            self._tell("reliable", f"tells of {event} in the state that it begins with")
        elif self._state and key < next(reversed(self._state)):
            self._tell("ordered", f"tells of {event} after the key {next(reversed(self._state))!r}, in the state")
        self._state[key] = event.value
        if event.previous is not None:
            self._tell("previous", f"has a value before {event}, which is of the state that it begins with")
        if event.created:
            self._tell("created", f"says that {event} made the key, which is of the state that it begins with")

    def _check_state(self) -> None:
        stream = self._stream
        found = self._history.state(stream.since) if stream.kinds is None or "put" in stream.kinds else {}
        if found is None:
            return
        wanted = {key: value for key, value in found.items() if key in stream}
        for key, value in self._state.items():
            if key not in wanted or not _same(wanted[key], value):
                self._tell("reliable", f"begins with {key!r} as {value!r:.60} at {stream.since}, which is not so")
        missing = sorted(wanted.keys() - self._state.keys())
        if missing and self._begun:
            self._tell("reliable", f"begins with a state at {stream.since} without {missing}")

    # -- what is missing -----------------------------------------------------------------------------------------------

    def _check_missing(self) -> None:
        stream, history = self._stream, self._history
        told = sorted(rev for rev in self._told if rev > stream.since)
        first, last = (told[0], told[-1]) if told else (0, 0)
        for rev in range(stream.since + 1, min(max(last - 1, self._marked), history.newest) + 1):
            keys = self._told.get(rev, set())
            missing = [one for one in (history.at(rev) or {}).values() if self._wants(one) and one.key not in keys]
            if not missing:
                continue
            described = ", ".join(f"{one.kind} {one.key!r}" for one in missing[:3])
            if keys:
                self._tell("atomic", f"tells of a part of revision {rev}, without {described}")
            elif rev > last:
                self._tell("bookmarkable", f"has a mark at {self._marked}, and did not tell of {described} at {rev}")
            elif rev < first:
                self._tell("resumable", f"was to begin after {stream.since}, and leaves out {described} at {rev}")
            else:
                self._tell("reliable", f"leaves out {described} at {rev}, and goes on")

    def _wants(self, change: HistoryChange) -> bool:
        kinds = self._stream.kinds
        return change.key in self._stream and (kinds is None or change.kind in kinds)


def _same(one: Any, other: Any) -> bool:
    """Equal, and 1 is not True."""
    return type(one) is type(other) and bool(one == other)
