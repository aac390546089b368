"""Watches against a model: whatever happens, a reader's streams add up to what he asked for after his first revision.

What watches promise, as etcd's robustness tests name it, is held in :meth:`Reader.check`, after every read of every
reader: bookmarkable, ordered, unique, atomic, reliable, resumable; the right previous value, the right mark of
creation, and the filters right.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from typing import Any, TypeAlias

import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_replicator import LocalReplicator

from replikv.errors import CompactedError, LaggedError
from replikv.machine import commands
from replikv.machine.values import encode_value
from replikv.store.change import Change
from replikv.store.entry import ABSENT
from replikv.store.store import Store
from replikv.store.watch import Watch
from replikv.store.watch_hub import WatchHub

Write: TypeAlias = tuple[str, dict[str, int | None] | str]

NAMES = ["", "a", "aa", "ab", "b", "ba"]
KEYS = st.sampled_from(NAMES)
PREFIXES = st.sampled_from(["", "a", "aa", "b", "c"])
BOUNDS = st.none() | st.sampled_from(["", "a", "ab", "abc", "b"])
VALUES = st.none() | st.integers(0, 9)
WRITES = st.one_of(
    st.tuples(st.just("update"), st.dictionaries(KEYS, VALUES, min_size=1, max_size=4)),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("delete_prefix"), PREFIXES),
)
SELECTIONS = st.one_of(
    st.fixed_dictionaries({"prefix": PREFIXES}),
    st.fixed_dictionaries({"key": KEYS}),
    st.fixed_dictionaries({"prefix": PREFIXES, "start": BOUNDS, "stop": BOUNDS}),
)
WAYS = st.fixed_dictionaries(
    {
        "kinds": st.none() | st.sets(st.sampled_from(["put", "delete", "expire"]), min_size=1),
        "previous": st.booleans(),
        "progress": st.booleans(),
        "coalesce": st.booleans(),
        "buffer": st.integers(1, 9),
    }
)
OPEN = st.tuples(
    st.just("open"), SELECTIONS, WAYS, st.none() | st.integers(-4, 12), st.sampled_from([False, False, True])
)
SWEEP = st.tuples(st.just("sweep"), st.lists(WRITES, min_size=1, max_size=8), st.none() | st.integers(0, 5))
READ = st.tuples(st.just("read"), st.integers(0, 9), st.integers(1, 6), st.booleans())
STEPS = st.one_of(
    SWEEP,
    SWEEP,
    READ,
    READ,
    OPEN,
    st.tuples(st.just("expire"), KEYS),
    st.tuples(st.just("fall_behind")),
    st.tuples(st.just("install_snapshot")),
)


def newest(changes: Iterable[Change]) -> dict[str, int]:
    """Key -> the revision of the last change to it."""
    return {change.key: change.revision for change in changes}


@dataclasses.dataclass
class Reader:
    """Who watches, and opens his watch again when it ends."""

    arguments: dict[str, Any]
    since: int
    """Everything up to this revision he knows."""
    watch: Watch
    state: list[Change]
    """What he is to see before that: the state as of ``since``."""
    seen: list[Change] = dataclasses.field(default_factory=list)
    """From ``watch``, marks of progress included."""

    def wants(self, change: Change) -> bool:
        """The filters, spelled out."""
        named = self.arguments
        return (
            change.key == named["key"]
            if "key" in named
            else change.key.startswith(named["prefix"])
            and (named.get("start") or "") <= change.key
            and (named.get("stop") is None or change.key < named["stop"])
        ) and (named["kinds"] is None or change.kind in named["kinds"])

    def expected(self, changes: list[Change], until: int) -> list[Change]:
        """Every single change that he asked for, up to a revision."""
        found = self.state + [change for change in changes if self.since < change.revision <= until]
        wanted = [change for change in found if self.wants(change)]
        if self.arguments["previous"]:
            return wanted
        return [dataclasses.replace(change, previous=None) for change in wanted]

    @property
    def told(self) -> list[Change]:
        """Without the marks."""
        return [change for change in self.seen if change.kind != "progress"]

    def check(self, changes: list[Change]) -> None:
        """What was seen is the beginning of what is to be seen, and each mark stands where it says."""
        expected = self.expected(changes, 10**9)
        if self.arguments["coalesce"]:
            self._check_coalesced(expected)
        else:
            assert expected[: len(self.told)] == self.told
        self._check_marks(expected)

    def check_complete(self, changes: list[Change], until: int) -> None:
        """Nothing is missing up to a revision, and nothing is there beyond."""
        expected = self.expected(changes, until)
        if self.arguments["coalesce"]:
            assert newest(expected) == newest(self.told)
        else:
            assert expected == self.told

    def _check_coalesced(self, expected: list[Change]) -> None:
        """Some of the changes are left out, each for a newer one of its key that comes with what it replaced."""
        assert sorted(change.revision for change in self.told) == [change.revision for change in self.told]
        for key in NAMES:
            own = [change for change in expected if change.key == key]
            for told in self.told:
                if told.key != key:
                    continue
                first = own[0]
                while own[0].revision != told.revision:
                    del own[0]
                change = own.pop(0)
                created = change.kind == "put" and first.created
                assert dataclasses.replace(change, previous=first.previous, created=created) == told

    def _check_marks(self, expected: list[Change]) -> None:
        last = -1
        for index, mark in enumerate(self.seen):
            if mark.kind != "progress":
                continue
            assert self.arguments["progress"]
            assert Change("", None, None, mark.revision, "progress") == mark
            assert last < mark.revision
            assert self.since <= mark.revision
            last = mark.revision
            due = [change for change in expected if change.revision <= mark.revision]
            before = [change for change in self.seen[:index] if change.kind != "progress"]
            if self.arguments["coalesce"]:
                assert newest(due) == newest(before)
            else:
                assert due == before
            assert all(change.revision > mark.revision for change in self.seen[index + 1 :])


class World:
    """The model beside the real thing."""

    def __init__(self, clock: trio.testing.MockClock, blocks: contextlib.AsyncExitStack) -> None:
        self.clock = clock
        self.blocks = blocks
        self.replicator = LocalReplicator()
        self.store = Store(self.replicator, WatchHub(self.replicator))
        self.contents: dict[str, int | None] = {}
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
            self._change({argument: ABSENT} if argument in self.contents else {})
            return commands.encode_delete(argument.encode())
        self._change({key: ABSENT for key in sorted(self.contents) if key.startswith(argument)})
        return commands.encode_delete_prefix(argument.encode(), 100)

    def expire(self, key: str) -> None:
        """A key goes with its lease, if it is there."""
        if key in self.contents:
            self._change({key: ABSENT}, "expire")
            self.replicator.expire(key)

    def _change(self, values: dict[str, Any], gone: Any = "delete") -> None:
        self.revision += bool(values)
        for key, value in values.items():
            created = value is not ABSENT and key not in self.contents
            previous = self.contents.pop(key, None)
            if value is ABSENT:
                self.changes.append(Change(key, None, previous, self.revision, gone))
            else:
                self.contents[key] = value
                self.changes.append(Change(key, value, previous, self.revision, "put", created))

    async def open(self, arguments: dict[str, Any], back: int | None, snapshot: bool) -> None:
        """Begin to watch now, or some revisions ago or ahead, or with the state."""
        keyspace = self.replicator.replica.keyspace
        since = keyspace.revision if back is None or snapshot else max(keyspace.floor, keyspace.revision - back)
        asked = None if snapshot or back is None else since
        watch = await self.blocks.enter_async_context(self.store.watch(**arguments, since=asked, snapshot=snapshot))
        last = {change.key: change for change in self.changes if change.revision <= since and snapshot}
        state = [Change(key, last[key].value, None, since, "put") for key in sorted(last) if last[key].kind == "put"]
        self.readers.append(Reader(arguments, since, watch, state))

    async def read(self, reader: Reader, count: int, patient: bool) -> bool:
        """Take up to so many changes, and stop in the middle of waiting for one. Whether there were any."""
        before = len(reader.seen)
        errors: list[LaggedError | CompactedError] = []

        async def read() -> None:
            try:
                for _ in range(count):
                    reader.seen.append(await anext(reader.watch))
            except (LaggedError, CompactedError) as exc:
                errors.append(exc)

        async with trio.open_nursery() as tasks:
            tasks.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            if patient:
                self.clock.jump(20.0)
                await trio.testing.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        reader.check(self.changes)
        found = len(reader.seen) != before
        for error in errors:
            self.resume(reader, error)
        return found

    def resume(self, reader: Reader, error: LaggedError | CompactedError) -> None:
        """Go on from the revision of an error; after LaggedError nothing may be missing up to it."""
        revision = error.revision
        if isinstance(error, LaggedError):
            reader.check_complete(self.changes, revision)
            assert not (reader.arguments["coalesce"] and reader.arguments["buffer"] >= len(NAMES))
        else:
            assert revision <= self.replicator.replica.keyspace.floor
            assert revision > max([reader.since, *(change.revision for change in reader.told[:-1])])
        reader.watch.close()
        reader.since, reader.state, reader.seen = revision, [], []
        # As a subscription does: what is compacted by now is told by the first step.
        reader.watch = self.store._hub.open(reader.watch._options, since=revision)
        self.blocks.callback(reader.watch.close)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.lists(OPEN, min_size=1, max_size=4), steps=st.lists(STEPS, min_size=3, max_size=30))
async def test_streams_equal_the_models(
    mock_clock: trio.testing.MockClock, first: list[tuple[Any, ...]], steps: list[tuple[Any, ...]]
) -> None:
    """Puts, deletes, expiries, compactions, snapshots installed, slow readers, cancelled steps, every filter and
    option: no gap, no repetition, no other order, right values before and after, marks where they belong; and once
    everything is quiet, everybody has everything.
    """
    async with contextlib.AsyncExitStack() as blocks:
        world = World(mock_clock, blocks)
        for step in [*first, *steps]:
            match step:
                case ("sweep", writes, compacted):
                    world.write(writes, compacted)
                case ("expire", key):
                    world.expire(key)
                case ("fall_behind",):
                    world.replicator.fall_behind()
                case ("install_snapshot",):
                    world.replicator.install_snapshot()
                case ("open", selection, way, back, snapshot):
                    await world.open(selection | way, back, snapshot)
                case ("read", index, count, patient) if world.readers:
                    await world.read(world.readers[index % len(world.readers)], count, patient)
        world.replicator.install_snapshot()
        for reader in world.readers:
            for _ in range(10):  # an error is no end: it is resumed from
                while await world.read(reader, 100, patient=True):
                    pass
            reader.check_complete(world.changes, world.revision)
            if reader.arguments["progress"] and reader.since <= world.revision:
                assert world.revision == reader.seen[-1].revision
    assert world.store._hub._pin is None
    assert 0 == world.store._hub._open
