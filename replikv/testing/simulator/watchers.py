"""Those who look on: watchers of every kind, over the real watches of a process, and followers of all bytes."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Final

import outcome

from replikv.errors import CompactedError, LaggedError
from replikv.machine.keyspace import Changes
from replikv.machine.record import HEAD, Record, value_of
from replikv.machine.values import decode_value
from replikv.store.change import Change
from replikv.store.selection import kind_of, select
from replikv.store.watch import Watch, WatchOptions
from replikv.testing.simulator.loop import Errand
from replikv.testing.simulator.oracle import broken
from replikv.testing.watch_validation import ChangeHistory, HistoryChange, StreamEvent, WatchStream

if TYPE_CHECKING:
    from replikv.testing.simulator.process import Process
    from replikv.testing.simulator.simulation import Simulation

__all__ = ["Follower", "Watcher", "history_of"]

_ASKED: Final[tuple[dict[str, Any], ...]] = (
    {},
    {},
    {"prefix": "r"},
    {"prefix": "l"},
    {"key": "r0"},
    {"key": "k0"},
    {"start": "k", "stop": "n1"},
    {"prefix": "n", "start": "n1"},
)
_KINDS: Final = (None, None, None, ("put",), ("delete", "expire"), ("expire",))


class Watcher:
    """Reads one watch after the other, each from where the last one ended, and leaves a record of all it was told."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.name = name
        self.random = random = Random(f"{name} of {simulation.options.seed}")  # noqa: S311  # a function of the seed
        self._asked = random.choice(_ASKED)
        self._kinds = random.choice(_KINDS)
        self._previous = random.random() < 0.8
        self._progress = random.random() < 0.5
        self._buffer = simulation.options.watch_buffer
        self._slow = random.choice((0.0, 0.0, 0.1, 0.4))
        self._bookmark: int | None = None
        """Everything up to it was told. None before anything was, and when it lies below the history."""
        self._process: Process | None = None
        self._errand: Errand | None = None
        self._watch: Watch | None = None
        self._stream: WatchStream | None = None
        simulation.after(random.random(), self._begin)

    def _begin(self) -> None:
        simulation = self.simulation
        processes = list(simulation.processes.values())
        if not processes:
            simulation.after(0.5, self._begin)
            return
        self._process = process = self.random.choice(processes)
        self._errand = errand = Errand(simulation.loop, self._read(process), self._done, process.later)
        process.ended.append(lambda: self._left_alone(errand))
        process.later(0.0, errand.start)

    def _left_alone(self, errand: Errand) -> None:
        if errand is self._errand and not errand.over:
            errand.forget()
            self._again()

    def _done(self, answer: outcome.Outcome[None]) -> None:
        answer.unwrap()
        self._again()

    def _again(self) -> None:
        self._watch = self._process = None
        self.simulation.after(self.random.random(), self._begin)

    def close(self) -> None:
        """The run is over."""
        if self._errand is not None and not self._errand.over:
            self._errand.forget()

    async def _read(self, process: Process) -> None:
        simulation, random = self.simulation, self.random
        kinds: Any = self._kinds
        snapshot = self._bookmark is None and random.random() < 0.5
        asked = {"prefix": "", "key": None, "start": None, "stop": None, **self._asked}
        selection = select("", kinds=kinds, **asked)
        options = WatchOptions(selection, "", self._buffer, self._previous, self._progress)
        since = self._bookmark
        self._watch = watch = process.hub.open(options, since=since, snapshot=snapshot)
        stream = self._stream = WatchStream(
            watcher=self.name,
            stream=len(simulation.streams) + 1,
            since=watch.position,
            kinds=kinds,
            previous=self._previous,
            snapshot=snapshot,
            **asked,
        )
        simulation.streams.append(stream)
        simulation.tell(f"{self.name} watches at {process.node_id} from {stream.since} on")
        if not snapshot:
            self._bookmark = stream.since
        try:
            async for change in watch:
                self._note(stream, change)
                if random.random() < self._slow:
                    await simulation.loop.sleep(random.expovariate(2.0))
                elif random.random() < 0.002:
                    return
        except CompactedError as exc:
            simulation.counts["watches compacted"] += 1
            stream.events.append(StreamEvent(event="compacted", rev=exc.revision))
            self._bookmark = None
        except LaggedError as exc:
            simulation.counts["watches lagged"] += 1
            stream.events.append(StreamEvent(event="lagged", rev=exc.revision))
            self._bookmark = exc.revision
        finally:
            watch.close()

    def _note(self, stream: WatchStream, change: Change) -> None:
        revision = change.revision
        if change.kind == "progress":
            self.simulation.counts["marks of progress"] += 1
            stream.events.append(StreamEvent(event="progress", rev=revision))
            self._bookmark = revision
            return
        self.simulation.counts["changes watched"] += 1
        stream.events.append(
            StreamEvent(
                event="change",
                rev=revision,
                kind=change.kind,
                key=change.key,
                value=change.value,
                previous=change.previous,
                created=change.created,
            )
        )
        if revision > stream.since:
            self._bookmark = revision - 1  # there may be more of it

    def finish(self) -> WatchStream | None:
        """All is well, and nothing more happens: whoever waits for more was told of all that his process has published.

        His stream, with a mark that says so; None if he does not wait for more.
        """
        process, watch, stream = self._process, self._watch, self._stream
        if process is None or watch is None or stream is None or not watch._sleepers or watch._ready:
            return None
        self.simulation.counts["watchers up to date"] += 1
        mark = StreamEvent(event="progress", rev=max(process.replica.keyspace.revision, watch.position))
        return WatchStream(
            **{name: getattr(stream, name) for name in stream.__slots__ if name != "events"},
            events=[*stream.events, mark],
        )


def history_of(changes: dict[int, Changes | None]) -> ChangeHistory:
    """What all replicas agree on, as watches tell it."""
    return ChangeHistory(
        HistoryChange(
            revision,
            key,
            kind_of(record),
            _decode(record),
            None if previous is None else _decode(previous),
            kind_of(record) == "put" and previous is None,
        )
        for revision, changed in changes.items()
        for key, record, previous in changed or ()
    )


def _decode(record: Record) -> Any:
    value = value_of(record)
    return decode_value(value) if value else None


class Follower:
    """Follows the bytes of all changes of one replica, and goes on with another one when its process ends."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.random = Random(f"follower of {simulation.options.seed}")  # noqa: S311  # a function of the seed
        self.revision = 0
        self._map: dict[str, bytes] = {}
        self._process: Process | None = None
        simulation.after(self.random.random(), self._attach)

    def _attach(self) -> None:
        processes = list(self.simulation.processes.values())
        if not processes:
            self.simulation.after(0.5, self._attach)
            return
        self._process = process = self.random.choice(processes)
        process.listeners.append(self._read)
        process.ended.append(self._detached)
        self._read()

    def _detached(self) -> None:
        self._process = None
        self.simulation.after(self.random.random(), self._attach)

    def _read(self) -> None:
        process = self._process
        assert process is not None
        keyspace = process.replica.keyspace
        if keyspace.revision <= self.revision:
            return  # it lags behind what was seen elsewhere
        oracle = self.simulation.oracle
        try:
            changes_since = keyspace.changes_since(self.revision)
        except CompactedError:
            self.simulation.counts["followers that began anew"] += 1
            self._map = dict(keyspace.scan())
            self.revision = keyspace.revision
            return
        for revision, changes in changes_since:
            if revision != self.revision + 1:
                broken("equal changes", f"revision {revision} of {process.node_id} follows {self.revision}")
            oracle.compare_changes(process.node_id, revision, changes)
            for key, record, previous in changes:
                if self._map.get(key) != previous:
                    broken("equal changes", f"{process.node_id} had another {key!r} before {revision} than was seen")
                if HEAD.unpack_from(record)[4]:
                    self._map[key] = record
                else:
                    self._map.pop(key, None)
            self.revision = revision

    def finish(self) -> None:
        """All is well, and nothing more happens: it must have been told of everything that its replica has."""
        process = self._process
        if process is None:
            return
        keyspace = process.replica.keyspace
        if self.revision < keyspace.revision:
            broken("watches", f"a listener was told up to {self.revision}, and {keyspace.revision} is there")
        if self.revision == keyspace.revision and self._map != dict(keyspace.scan()):
            broken("equal changes", f"{process.node_id} has another map at {self.revision} than its changes make")
