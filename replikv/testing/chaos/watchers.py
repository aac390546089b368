"""Watchers in one process, who write down what they are told, and go on from their bookmark wherever they can."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from replikv.errors import ClusterClosedError, CompactedError, LaggedError
from replikv.store.change import Change
from replikv.store.store import Store
from replikv.testing.chaos.clients import PAIRS
from replikv.testing.chaos.holders import HELD
from replikv.testing.chaos.records import Lines
from replikv.testing.watch_validation import StreamRecorder, read_streams

__all__ = ["Watchers"]

STAY_S: Final = 2.0
"""Of one watch, at most: going on by a bookmark is half of what there is to be right about."""


class Watchers:
    """Those of one process: one of all keys, who begins where the last process of the node was killed, and one of
    pairs. Both leave and come back.

    Args:
        directory: of the run.
        node_id: whose they are.
        start: the number of this process among those of the node.
    """

    def __init__(self, directory: Path, node_id: str, start: int, store: Store, chance: random.Random) -> None:
        self._directory = directory
        self._node_id = node_id
        self._start = start
        self._store = store
        self._chance = chance
        self._gone = Lines(directory / f"{node_id}.{start}.gone")
        self._told = trio.Event()
        self.revision = 0
        """Up to where the watcher of all keys was told everything."""

    async def run(self) -> None:
        """Watch until cancelled, or until the cluster is closed."""
        with (self._directory / f"{self._node_id}.{self._start}.watches").open("a", encoding="utf-8") as file:
            async with trio.open_nursery() as nursery:
                name = f"{self._node_id}.{self._start}"
                everything = StreamRecorder(f"{name}/all", file)
                nursery.start_soon(self._watch, everything, "", self._bookmark(), self._note)
                nursery.start_soon(self._watch, StreamRecorder(f"{name}/pairs", file), PAIRS, 0, _ignore)

    async def wait_told(self, revision: int) -> None:
        """Until the watcher of all keys was told everything up to there."""
        while self.revision < revision:
            await self._told.wait()

    def _bookmark(self) -> int:
        """Behind the last revision that an earlier process of this node has certainly been told all of."""
        found = 0
        for start in range(self._start):
            path = self._directory / f"{self._node_id}.{start}.watches"
            for stream in read_streams(path) if path.exists() else ():
                if stream.whole:
                    # Of the last revision there may be more.
                    changes = [event.rev - 1 for event in stream.events if event.event == "change"]
                    marks = [event.rev for event in stream.events if event.event == "progress"]
                    found = max(found, *changes[-1:], *marks[-1:], 0)
        return found

    async def _watch(
        self,
        recorder: StreamRecorder,
        prefix: str,
        bookmark: int,
        note: Callable[[Change], None],
    ) -> None:
        """Watch by ``since=``, again and again; from the state that there is, where what came before is forgotten."""
        snapshot = False
        while True:
            given = None if snapshot else bookmark
            try:
                async with self._store.watch(prefix, since=given, snapshot=snapshot, progress=True) as changes:
                    begun = self._store.revision if given is None else given
                    recorder.begin(since=begun, prefix=prefix, snapshot=snapshot)
                    with trio.move_on_after(self._chance.uniform(0.2, STAY_S)):
                        async for change in changes:
                            recorder.change(change)
                            bookmark = change.revision if change.kind == "progress" else change.revision - 1
                            note(change)
                recorder.end()
                snapshot = False
            except CompactedError as exc:
                recorder.end(exc)
                snapshot = True
            except LaggedError as exc:
                recorder.end(exc)
                bookmark, snapshot = exc.revision, False
            except ClusterClosedError:
                recorder.end()
                return

    def _note(self, change: Change) -> None:
        at = time.monotonic()
        if change.kind == "progress":
            self.revision = change.revision
        else:
            self.revision = change.revision - 1
            if change.kind != "put" and change.key.startswith(HELD):
                self._gone.write({"key": change.key, "rev": change.revision, "at": at})
        told, self._told = self._told, trio.Event()
        told.set()


def _ignore(_: Change) -> None:
    pass
