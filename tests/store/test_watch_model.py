"""Watches against a model: whatever happens, a reader's streams add up to every change after his first revision."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from local_replicator import LocalReplicator

from replikv.errors import CompactedError, LaggedError
from replikv.machine import commands
from replikv.machine.values import encode_value
from replikv.store.change import Change
from replikv.store.store import Store
from replikv.store.watch import Watch
from replikv.store.watch_hub import WatchHub

Write: TypeAlias = tuple[str, dict[str, int] | str]

KEYS = st.sampled_from(["", "a", "aa", "ab", "b", "ba"])
PREFIXES = st.sampled_from(["", "a", "aa", "b", "c"])
WRITES = st.one_of(
    st.tuples(st.just("update"), st.dictionaries(KEYS, st.integers(0, 9), min_size=1, max_size=4)),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("delete_prefix"), PREFIXES),
)
OPEN = st.tuples(
    st.just("open"), PREFIXES, st.none() | st.integers(-4, 12), st.sampled_from([False, False, True]), st.integers(1, 9)
)
SWEEP = st.tuples(st.just("sweep"), st.lists(WRITES, min_size=1, max_size=8), st.none() | st.integers(0, 5))
READ = st.tuples(st.just("read"), st.integers(0, 9), st.integers(1, 6))
STEPS = st.one_of(
    SWEEP, SWEEP, READ, READ, OPEN, st.tuples(st.just("fall_behind")), st.tuples(st.just("install_snapshot"))
)


@dataclasses.dataclass
class Reader:
    """Who watches a prefix, and opens his watch again when it ends."""

    prefix: str
    buffer: int
    since: int
    """Everything up to this revision he knows."""
    watch: Watch
    state: list[Change]
    """What he is to see before that: the state as of ``since``."""
    seen: list[Change] = dataclasses.field(default_factory=list)
    """From ``watch``."""


class World:
    """The model beside the real thing."""

    def __init__(self) -> None:
        self.replicator = LocalReplicator()
        self.store = Store(self.replicator, WatchHub(self.replicator))
        self.contents: dict[str, int] = {}
        self.changes: list[Change] = []
        self.revision = 0
        self.readers: list[Reader] = []

    def write(self, writes: list[Write], compacted: int | None) -> None:
        """Many commands in one sweep; then perhaps one that leaves only so many revisions of history."""
        payloads = [self._write(kind, argument) for kind, argument in writes]
        if compacted is not None:
            payloads.append(commands.encode_compact(max(0, self.revision - compacted)))
        self.replicator.sweep(*payloads)
        assert self.revision == self.replicator.leader.keyspace.revision

    def _write(self, kind: str, argument: Any) -> bytes:
        if kind == "update":
            self._change(argument)
            return commands.encode_update({k.encode(): encode_value(v, 100) for k, v in argument.items()})
        if kind == "delete":
            self._change({argument: None} if argument in self.contents else {})
            return commands.encode_delete(argument.encode())
        self._change({key: None for key in sorted(self.contents) if key.startswith(argument)})
        return commands.encode_delete_prefix(argument.encode(), 100)

    def _change(self, values: dict[str, int | None]) -> None:
        self.revision += bool(values)
        for key, value in values.items():
            previous = self.contents.pop(key, None)
            if value is not None:
                self.contents[key] = value
            kind: Any = "put" if value is not None else "delete"
            self.changes.append(Change(key, value, previous, self.revision, kind))

    def open(self, prefix: str, back: int | None, snapshot: bool, buffer: int) -> None:
        """Begin to watch now, or some revisions ago or ahead, or with the state."""
        keyspace = self.replicator.replica.keyspace
        since = keyspace.revision if back is None or snapshot else max(keyspace.floor, keyspace.revision - back)
        watch = self.store._hub.open(
            prefix, "", since=None if snapshot or back is None else since, snapshot=snapshot, buffer=buffer
        )
        newest = {change.key: change for change in self.changes if change.revision <= since and snapshot}
        state = [
            Change(key, newest[key].value, None, since, "put")
            for key in sorted(newest)
            if newest[key].kind == "put" and key.startswith(prefix)
        ]
        self.readers.append(Reader(prefix, buffer, since, watch, state))

    def expected(self, reader: Reader, until: int) -> list[Change]:
        """What he is to see up to a revision."""
        return reader.state + [
            change
            for change in self.changes
            if reader.since < change.revision <= until and change.key.startswith(reader.prefix)
        ]

    async def read(self, reader: Reader, count: int) -> bool:
        """Take up to so many changes, and stop in the middle of waiting for one. Whether there were any."""
        before = len(reader.seen)

        async def steps() -> None:
            for _ in range(count):
                reader.seen.append(await anext(reader.watch))

        async def read() -> None:
            try:
                await steps()
            except LaggedError as exc:
                self.resume(reader, exc.revision, whole=True)
            except CompactedError as exc:
                self.resume(reader, exc.revision, whole=False)

        async with trio.open_nursery() as tasks:
            tasks.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        expected = self.expected(reader, self.revision)
        assert expected[: len(reader.seen)] == reader.seen
        return len(reader.seen) != before

    def resume(self, reader: Reader, revision: int, *, whole: bool) -> None:
        """Go on from the revision of an error; after LaggedError nothing may be missing up to it."""
        expected = self.expected(reader, revision)
        if whole:
            assert expected == reader.seen
        else:
            assert expected[: len(reader.seen)] == reader.seen
            assert revision <= self.replicator.replica.keyspace.floor
            assert revision > max([reader.since, *(change.revision for change in reader.seen[:-1])])
        reader.watch.close()
        reader.since, reader.state, reader.seen = revision, [], []
        reader.watch = self.store._hub.open(reader.prefix, "", since=revision, snapshot=False, buffer=reader.buffer)


@settings(max_examples=100, deadline=None)
@given(first=st.lists(OPEN, min_size=1, max_size=4), steps=st.lists(STEPS, min_size=3, max_size=30))
async def test_streams_equal_the_models(first: list[tuple[Any, ...]], steps: list[tuple[Any, ...]]) -> None:
    """Puts, deletes, compactions, snapshots installed, slow readers, cancelled steps: no gap, no repetition, no other
    order, right values before and after; and once everything is quiet, everybody has everything.
    """
    world = World()
    for step in [*first, *steps]:
        match step:
            case ("sweep", writes, compacted):
                world.write(writes, compacted)
            case ("fall_behind",):
                world.replicator.fall_behind()
            case ("install_snapshot",):
                world.replicator.install_snapshot()
            case ("open", prefix, back, snapshot, buffer):
                world.open(prefix, back, snapshot, buffer)
            case ("read", index, count) if world.readers:
                await world.read(world.readers[index % len(world.readers)], count)
    world.replicator.install_snapshot()
    for reader in world.readers:
        for _ in range(10):  # an error is no end: it is resumed from
            while await world.read(reader, 100):
                pass
        assert world.expected(reader, world.revision) == reader.seen
        reader.watch.close()
    assert world.store._hub._pin is None
