"""What really changed, revision by revision: what streams are held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final

from replikv.testing.watch_validation.streams import StreamEvent, WatchStream

__all__ = ["ChangeHistory", "HistoryChange"]


@dataclasses.dataclass(frozen=True, slots=True)
class HistoryChange:
    """One key at one revision."""

    rev: int
    key: str
    kind: str
    """put, delete or expire."""
    value: Any = None
    previous: Any = None
    """The value before; None if there was none."""
    created: bool = False
    """Whether the put made the key."""


class ChangeHistory:
    """The changes of each revision. Revisions have no gap: one that is not among them, up to the newest, is unknown.

    What was before a change is taken from the changes before it, and believed of the change itself only where those are
    not known.

    Args:
        changes: in any order; of one revision all or none. Raises ValueError where two of one revision and key differ.
    """

    def __init__(self, changes: Iterable[HistoryChange]) -> None:
        self._revisions: dict[int, dict[str, HistoryChange]] = {}
        for change in changes:
            known = self._revisions.setdefault(change.rev, {}).setdefault(change.key, change)
            if (known.kind, known.value) != (change.kind, change.value):
                raise ValueError(f"two histories: {known} and {change}")
        self.newest: Final = max(self._revisions, default=0)
        self._chain()

    @classmethod
    def of_streams(cls, streams: Iterable[WatchStream]) -> ChangeHistory:
        """What streams of all changes of all keys told together, as a watch does that begins at 0 in the end.

        Of the last revision of each there may have been more, unless a mark came behind it: it is left out. Raises
        ValueError for a stream that leaves some out, and for two that contradict each other.
        """
        changes = []
        for stream in streams:
            if not stream.whole:
                raise ValueError(f"{stream} is not of all changes of all keys: no history can be made of it")
            marks = [event.rev for event in stream.events if event.event in {"progress", "lagged"}]
            told = [event for event in stream.events if event.event == "change" and event.rev > stream.since]
            end = max([*marks, max((event.rev for event in told), default=0) - 1])
            changes += [
                HistoryChange(one.rev, str(one.key), str(one.kind), one.value, one.previous, one.created)
                for one in told
                if one.rev <= end
            ]
        return cls(changes)

    def as_stream(self, watcher: str) -> WatchStream:
        """What a watch of everything from 0 on would tell, and a mark. Of it :meth:`of_streams` makes this again."""
        changes = (change for rev in sorted(self._revisions) for change in self._revisions[rev].values())
        told = [
            StreamEvent(
                event="change",
                rev=one.rev,
                kind=one.kind,
                key=one.key,
                value=one.value,
                previous=one.previous,
                created=one.created,
            )
            for one in changes
        ]
        return WatchStream(watcher=watcher, events=[*told, StreamEvent(event="progress", rev=self.newest)])

    def at(self, rev: int) -> Mapping[str, HistoryChange] | None:
        """Key -> change; None for a revision of which nothing is known."""
        return self._revisions.get(rev)

    @property
    def unknown(self) -> list[int]:
        """The revisions up to the newest of which nothing is known."""
        return [rev for rev in range(1, self.newest + 1) if rev not in self._revisions]

    def state(self, rev: int) -> dict[str, Any] | None:
        """Key -> value at a revision; None if an earlier one is not known."""
        found: dict[str, Any] = {}
        for each in range(1, rev + 1):
            changes = self._revisions.get(each)
            if changes is None:
                return None
            for change in changes.values():
                if change.kind == "put":
                    found[change.key] = change.value
                else:
                    found.pop(change.key, None)
        return found

    def _chain(self) -> None:
        """Tell each change what was before it."""
        values: dict[str, Any] = {}
        # Keys of which it is known whether they are there: all of them, until a revision is missing.
        known: set[str] | None = None
        last = 0
        for rev in sorted(self._revisions):
            if rev != last + 1:
                values, known = {}, set()
            last = rev
            for key, change in self._revisions[rev].items():
                if known is None or key in known:
                    created = change.kind == "put" and key not in values
                    found = dataclasses.replace(change, previous=values.get(key), created=created)
                    self._revisions[rev][key] = found
                if known is not None:
                    known.add(key)
                if change.kind == "put":
                    values[key] = change.value
                else:
                    values.pop(key, None)
