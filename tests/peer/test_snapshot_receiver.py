"""A snapshot that arrives: whole or not at all, and no sender can hold the receiver for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from snapshot_channels import Follower, WatchedStorage, begin, end_of, finish, metadata_at, state

from replikv.errors import ConfigurationError
from replikv.machine.base import StateMachine
from replikv.machine.replica import Replica
from replikv.peer.snapshot_stream import CHUNK, END, GO, REFUSED, SILENCE_MAX_S, STILL, encode_had
from replikv.peer.snapshots import SnapshotTaker
from replikv.raft.entries import SnapshotMetadata
from replikv.settings import Settings
from replikv.storage.base import SnapshotWriter
from replikv.storage.memory import VolatileStorage

NOTHING_YET = encode_had(0)


@pytest.fixture
async def follower(nursery: trio.Nursery) -> Follower:
    return Follower(nursery)


@pytest.mark.parametrize(
    "frames",
    [
        [end_of([])],
        [CHUNK + b"garbage"],
        [CHUNK + bytes(100)],
        [CHUNK],
        [b"\x09"],
        [b""],
        [GO],
        [CHUNK + next(state(3).snapshot()), end_of([next(state(3).snapshot())])],
        [*(CHUNK + chunk for chunk in state(3).snapshot()), CHUNK + b"more"],
        [*(CHUNK + chunk for chunk in list(state(3).snapshot())[:-1]), end_of(list(state(3).snapshot())[:-1])],
        # An end that is not of these chunks.
        [*(CHUNK + chunk for chunk in state(3).snapshot()), END],
        [*(CHUNK + chunk for chunk in state(3).snapshot()), end_of(state(3).snapshot())[:-1] + b"\x00"],
        [*(CHUNK + chunk for chunk in state(3).snapshot()), end_of([*state(3).snapshot(), b"one more"])],
        [*(CHUNK + chunk for chunk in state(3).snapshot()), end_of(state(3, value=1).snapshot())],
    ],
    ids=range(14),
)
async def test_what_makes_no_snapshot_is_thrown_away(follower: Follower, frames: list[bytes]) -> None:
    """Cut off, out of order, garbage, or not what was sent: refused, nothing is kept, and the next one is welcome."""
    channel = await begin(follower)
    assert NOTHING_YET == await channel.receive()
    for frame in frames:
        await channel.send(frame)
    answer = await channel.receive()
    assert REFUSED == answer[:1]
    assert b"the chunks" in answer
    assert [] == follower.installed
    assert not follower.lock.locked()
    channel = await begin(follower)
    assert NOTHING_YET == await channel.receive()
    assert GO == await finish(channel, state(5))
    assert state(5).digest() == follower.replica.digest()


async def test_a_sender_that_hangs_up_before_anything_came_leaves_nothing_behind(follower: Follower) -> None:
    """There is nothing to go on from."""
    for hear in (False, True):
        channel = await begin(follower)
        if hear:
            assert NOTHING_YET == await channel.receive()
        await channel.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert not follower.lock.locked()
    channel = await begin(follower)
    assert NOTHING_YET == await channel.receive()
    assert GO == await finish(channel, state(5))


async def test_a_sender_that_hangs_up_while_it_waits_is_forgotten(follower: Follower) -> None:
    """An own snapshot is being written; whoever comes later has the place."""
    await follower.lock.acquire()
    gone = await begin(follower)
    await trio.testing.wait_all_tasks_blocked()
    await gone.aclose()
    follower.lock.release()
    channel = await begin(follower, peer="c")
    assert NOTHING_YET == await channel.receive()
    assert GO == await finish(channel, state(5))


@pytest.mark.parametrize(("term", "taken"), [(1, False), (2, True), (3, True)])
async def test_a_stalled_sender_gives_way_to_a_newer_leader(follower: Follower, term: int, taken: bool) -> None:
    """It was stopped half-way, and its connection lives: another of its term or a later one is listened to."""
    stalled = await begin(follower, term=2, peer="a")
    assert NOTHING_YET == await stalled.receive()
    await stalled.send(CHUNK + next(state(3).snapshot()))
    await trio.testing.wait_all_tasks_blocked()
    channel = await begin(follower, term=term, index=12, peer="c")
    answer = await channel.receive()
    if taken:
        assert NOTHING_YET == answer
        assert GO == await finish(channel, state(5))
        assert ["c"] == [received.sender for received in follower.installed]
        with pytest.raises(trio.EndOfChannel):
            await stalled.receive()
    else:
        assert REFUSED == answer[:1]
        assert GO == await finish(stalled, state(3), had=1)


async def test_a_silent_sender_does_not_hold_the_receiver_for_ever(
    autojump_clock: trio.abc.Clock, nursery: trio.Nursery
) -> None:
    """The follower's own snapshots wait for the same lock. One that says that it is still there is waited for."""
    follower = Follower(nursery)
    slow = await begin(follower)
    assert NOTHING_YET == await slow.receive()
    for _ in range(10):
        await trio.sleep(SILENCE_MAX_S / 2)
        await slow.send(STILL)
    assert follower.lock.locked()
    last = trio.current_time()
    with pytest.raises(trio.EndOfChannel):
        await slow.receive()
    assert trio.current_time() - last == pytest.approx(SILENCE_MAX_S)
    assert not follower.lock.locked()


async def test_a_snapshot_that_is_being_swapped_in_is_not_disturbed(nursery: trio.Nursery) -> None:
    """It is durable and on its way into the log: whoever comes then waits until it is installed."""
    follower = Follower(nursery, install=False)
    channel = await begin(follower, term=1)
    assert NOTHING_YET == await channel.receive()
    nursery.start_soon(finish, channel, state(3))
    await trio.testing.wait_all_tasks_blocked()
    assert 1 == len(follower.installed)
    other = await begin(follower, term=2, index=20, peer="c")
    await trio.testing.wait_all_tasks_blocked()
    assert 1 == len(other.sent)
    follower.installed[0].done.set()
    assert NOTHING_YET == await other.receive()


async def test_an_own_snapshot_waits_until_one_received_is_installed(nursery: trio.Nursery) -> None:
    """It was begun before, and is older: so it is not written at all, and whoever waits for it hears of its end."""
    follower = Follower(nursery, install=False)
    taken: list[SnapshotMetadata] = []
    ended = trio.Event()
    taker = SnapshotTaker(follower.storage, Settings(), follower.lock, taken.append, ended.set)
    nursery.start_soon(taker.run)
    channel = await begin(follower, index=9)
    assert NOTHING_YET == await channel.receive()
    taker.begin(metadata_at(5), state(2).snapshot())
    nursery.start_soon(finish, channel, state(3))
    await trio.testing.wait_all_tasks_blocked()
    (received,) = follower.installed
    assert taker.busy
    follower.storage.image.install(received.metadata)
    received.done.set()
    await trio.testing.wait_all_tasks_blocked()
    assert [] == taken
    assert ended.is_set()
    assert not taker.busy


@pytest.mark.parametrize("after", [0, 1, 5])
async def test_a_snapshot_that_finds_no_room_is_refused(nursery: trio.Nursery, after: int) -> None:
    """At once or in the middle: nothing stays, and the next one is taken from the beginning when there is room."""
    storage = WatchedStorage()
    storage.chunks_until_full = after
    follower = Follower(nursery, storage=storage)
    channel = await begin(follower)
    answer = await channel.receive()
    if after:
        assert NOTHING_YET == answer
        answer = await finish(channel, state(1000))
    assert REFUSED + b"the disk is full" == answer
    assert [] == follower.installed
    assert 0 == storage.open_writers
    storage.chunks_until_full = None
    channel = await begin(follower)
    assert NOTHING_YET == await channel.receive()
    assert GO == await finish(channel, state(5))


class SlowStorage(VolatileStorage):
    """Has a disk, whose first commit of a snapshot takes until the test opens the gate."""

    blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.committing = threading.Event()
        self.gate = threading.Event()

    def create_snapshot(self, metadata: SnapshotMetadata) -> SnapshotWriter:
        return SlowWriter(self, super().create_snapshot(metadata))


class SlowWriter(SnapshotWriter):
    def __init__(self, storage: SlowStorage, writer: SnapshotWriter) -> None:
        self._storage = storage
        self._writer = writer

    def write(self, chunk: bytes) -> None:
        self._writer.write(chunk)

    def commit(self) -> None:
        self._storage.committing.set()
        assert self._storage.gate.wait(10.0)
        self._writer.commit()

    def abort(self) -> None:
        self._writer.abort()


async def test_a_snapshot_in_its_last_sync_is_installed(nursery: trio.Nursery) -> None:
    """No cancellation ends a sync: whoever comes then is too late, and is the one to heed for all who come after."""
    storage = SlowStorage()
    follower = Follower(nursery, storage=storage)
    with trio.fail_after(10.0):
        first = await begin(follower, term=1, peer="a")
        assert NOTHING_YET == await first.receive()
        for chunk in state(3).snapshot():
            await first.send(CHUNK + chunk)
        await first.send(end_of(state(3).snapshot()))
        assert await trio.to_thread.run_sync(storage.committing.wait, 10.0)
        same = await begin(follower, term=2, peer="c")
        await trio.testing.wait_all_tasks_blocked()
        assert REFUSED == (await (await begin(follower, term=1, peer="a")).receive())[:1]
        newer = await begin(follower, term=2, index=12, peer="d")
        assert REFUSED == (await same.receive())[:1]
        storage.gate.set()
        assert GO == await first.receive()
        assert NOTHING_YET == await newer.receive()
        assert GO == await finish(newer, state(5))
    assert ["a", "d"] == [received.sender for received in follower.installed]


async def test_a_peer_that_stops_throws_away_what_it_has() -> None:
    """In the middle of a snapshot; the lock is free, and nothing is open."""
    storage = WatchedStorage()
    async with trio.open_nursery() as nursery:
        follower = Follower(nursery, storage=storage)
        channel = await begin(follower)
        assert NOTHING_YET == await channel.receive()
        await channel.send(CHUNK + next(state(3).snapshot()))
        await trio.testing.wait_all_tasks_blocked()
        assert 1 == storage.open_writers
        nursery.cancel_scope.cancel()
    assert 0 == storage.open_writers
    assert not follower.lock.locked()


class Machine(StateMachine):
    def apply(self, position: int, command: bytes) -> bytes:
        return b""

    def snapshot(self) -> Iterator[bytes]:
        return iter([b"state"])

    def restore(self, chunks: object) -> None:
        pass


async def test_a_snapshot_that_needs_another_machine_is_the_end_of_the_peer() -> None:
    """Whoever configured it must hear of it."""
    storage = WatchedStorage()
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigurationError, match="machine="), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            follower = Follower(nursery, storage=storage)
            channel = await begin(follower)
            assert NOTHING_YET == await channel.receive()
            await channel.send(CHUNK + next(Replica(Machine()).snapshot()))
            await trio.sleep_forever()
    assert 0 == storage.open_writers
