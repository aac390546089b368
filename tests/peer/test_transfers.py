"""A snapshot on its way from one peer to another: whole or not at all, and no sender can hold the receiver for ever."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest
import trio
import trio.testing

from replikv.machine.commands import encode_put
from replikv.machine.envelope import CommandKind, Envelope
from replikv.machine.replica import Replica
from replikv.peer.protocol import SnapshotHeader, encode_snapshot_header
from replikv.peer.snapshots import SnapshotTaker
from replikv.peer.transfers import CHUNK, END, GO, REFUSED, ReceivedSnapshot, SnapshotReceiver, SnapshotSender
from replikv.raft.entries import SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.settings import Settings
from replikv.storage.base import Identity, SnapshotWriter, StorageFullError
from replikv.storage.memory import VolatileStorage
from replikv.transport.base import Channel, Receiver, Transport

MEMBERSHIP = Membership.of_voters({"a": "a", "b": "b"})


class MemoryChannel(Channel):
    """One end of a pair."""

    def __init__(self, outgoing: trio.MemorySendChannel[bytes], incoming: trio.MemoryReceiveChannel[bytes]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, frame: bytes) -> None:
        await self._outgoing.send(frame)

    async def receive(self) -> bytes:
        return await self._incoming.receive()

    async def aclose(self) -> None:
        self._outgoing.close()
        self._incoming.close()


def channel_pair() -> tuple[MemoryChannel, MemoryChannel]:
    there_in, there_out = trio.open_memory_channel[bytes](4)
    back_in, back_out = trio.open_memory_channel[bytes](4)
    return MemoryChannel(there_in, back_out), MemoryChannel(back_in, there_out)


class Follower:
    """A receiver over a storage and a replica; ``installed`` are the snapshots it was told to swap in."""

    def __init__(self, nursery: trio.Nursery, *, install: bool = True, storage: VolatileStorage | None = None) -> None:
        self.storage = storage or VolatileStorage()
        self.storage.initialize(Identity("cluster", "b", "b1", "b", "b"), SnapshotMetadata(0, 0, MEMBERSHIP))
        self.replica = Replica()
        self.lock = trio.Lock()
        self.installed: list[ReceivedSnapshot] = []
        self._nursery = nursery
        self._swap = install
        self._receiver = SnapshotReceiver(self.storage, self.replica, self.lock, self._install)

    def _install(self, received: ReceivedSnapshot) -> None:
        self.installed.append(received)
        if self._swap:
            received.restorer.finish()
            self.storage.image.install(received.metadata)
            received.done.set()

    def accept(self, sender: str = "a") -> MemoryChannel:
        """The sender's end of a new channel."""
        ours, theirs = channel_pair()
        self._nursery.start_soon(self._serve, sender, theirs)
        return ours

    async def _serve(self, sender: str, channel: MemoryChannel) -> None:
        try:
            await self._receiver.receive(sender, channel, "b")
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel):
            pass  # as a transport does
        finally:
            await channel.aclose()


class OneWay(Transport):
    """Opens channels to one follower."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.opened: list[MemoryChannel] = []

    async def open_channel(self, node_id: str) -> Channel:
        if node_id != "b":
            raise OSError(f"no way to {node_id}")
        channel = self.follower.accept()
        self.opened.append(channel)
        return channel

    async def run(
        self,
        receiver: Receiver,
        *,
        listen: str,
        settings: Settings,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        raise NotImplementedError

    def set_peer(self, node_id: str, address: str | None) -> None:
        raise NotImplementedError

    def send(self, node_id: str, frame: bytes) -> bool:
        raise NotImplementedError

    def statistics(self) -> Mapping[str, Mapping[str, int]]:
        raise NotImplementedError


def state(keys: int) -> Replica:
    replica = Replica()
    for number in range(keys):
        replica.apply(Envelope(CommandKind.MAP, 0, 0, 0, encode_put(b"%d" % number, b"\x41" + bytes(1))).encode())
    return replica


def stored(replica: Replica, index: int) -> VolatileStorage:
    """A leader's storage with a snapshot of the state."""
    storage = VolatileStorage()
    metadata = SnapshotMetadata(index, 1, MEMBERSHIP)
    writer = storage.create_snapshot(metadata)
    for chunk in replica.snapshot():
        writer.write(chunk)
    writer.commit()
    return storage


@pytest.fixture
async def follower(nursery: trio.Nursery) -> Follower:
    return Follower(nursery)


def sender(storage: VolatileStorage, transport: Transport) -> tuple[SnapshotSender, list[tuple[str, bool]]]:
    reports: list[tuple[str, bool]] = []
    return SnapshotSender(storage, transport, Settings(), lambda *report: reports.append(report)), reports


async def begin(follower: Follower, *, term: int = 1, index: int = 9, peer: str = "a") -> MemoryChannel:
    """A channel on which a snapshot was announced."""
    channel = follower.accept(peer)
    await channel.send(encode_snapshot_header(SnapshotHeader(term, SnapshotMetadata(index, 1, MEMBERSHIP))))
    return channel


async def finish(channel: MemoryChannel, replica: Replica) -> bytes:
    """Send the chunks; the last answer."""
    for chunk in replica.snapshot():
        await channel.send(CHUNK + chunk)
    await channel.send(END)
    return await channel.receive()


async def test_a_snapshot_arrives_whole(follower: Follower) -> None:
    """The receiver has the sender's state, durable; the sender reports it, and may send another."""
    leader = state(1000)
    sending, reports = sender(stored(leader, 9), OneWay(follower))
    await sending.send("b", 3, 9)
    assert [("b", False)] == reports
    assert set() == sending.sending
    assert leader.digest() == follower.replica.digest()
    (received,) = follower.installed
    assert ("a", 3, SnapshotMetadata(9, 1, MEMBERSHIP)) == (received.sender, received.term, received.metadata)
    with follower.storage.open_snapshot(9) as (_, chunks):
        assert list(leader.snapshot()) == list(chunks)


async def test_an_unreachable_follower_is_reported(follower: Follower) -> None:
    """It is no error: the core tries again when it sees fit."""
    sending, reports = sender(stored(state(1), 9), OneWay(follower))
    await sending.send("c", 1, 9)
    assert [("c", True)] == reports


async def test_one_snapshot_at_a_time_goes_to_a_follower(follower: Follower, nursery: trio.Nursery) -> None:
    """The core may ask again meanwhile; the attempt under way answers for both."""
    sending, reports = sender(stored(state(10), 9), OneWay(follower))
    await follower.lock.acquire()
    nursery.start_soon(sending.send, "b", 1, 9)
    await trio.testing.wait_all_tasks_blocked()
    await sending.send("b", 1, 9)
    assert [] == reports
    follower.lock.release()
    await trio.testing.wait_all_tasks_blocked()
    assert [("b", False)] == reports


async def test_a_follower_that_has_as_much_refuses(follower: Follower) -> None:
    """Its own snapshot is not replaced by an older one."""
    await finish(await begin(follower, index=9), state(10))
    await trio.testing.wait_all_tasks_blocked()
    sending, reports = sender(stored(state(1), 9), OneWay(follower))
    await sending.send("b", 1, 9)
    assert [("b", True)] == reports
    assert 1 == len(follower.installed)


@pytest.mark.parametrize(
    "frames",
    [
        [END],
        [CHUNK + b"garbage"],
        [CHUNK + bytes(100)],
        [CHUNK],
        [b"\x09"],
        [b""],
        [GO],
        [CHUNK + next(state(3).snapshot()), END],
        [*(CHUNK + chunk for chunk in state(3).snapshot()), CHUNK + b"more"],
        [*(CHUNK + chunk for chunk in list(state(3).snapshot())[:-1]), END],
    ],
    ids=range(10),
)
async def test_what_makes_no_snapshot_is_thrown_away(follower: Follower, frames: list[bytes]) -> None:
    """Cut off, out of order or garbage: refused, nothing is installed or stored, and the next one is welcome."""
    channel = await begin(follower)
    assert GO == await channel.receive()
    for frame in frames:
        await channel.send(frame)
    assert REFUSED == (await channel.receive())[:1]
    assert [] == follower.installed
    channel = await begin(follower)
    assert GO == await channel.receive()
    assert GO == await finish(channel, state(5))
    assert state(5).digest() == follower.replica.digest()


@pytest.mark.parametrize("frame", [b"", b"garbage", b"\x40", bytes(100)])
async def test_a_channel_that_announces_nothing_is_closed(follower: Follower, frame: bytes) -> None:
    """It is none of ours."""
    channel = follower.accept()
    await channel.send(frame)
    with pytest.raises(trio.EndOfChannel):
        await channel.receive()


@pytest.mark.parametrize("at", ["announced", "begun", "halfway"])
async def test_a_sender_that_hangs_up_leaves_nothing_behind(follower: Follower, at: str) -> None:
    """Wherever it happens."""
    channel = await begin(follower)
    if at != "announced":
        assert GO == await channel.receive()
    if at == "halfway":
        await channel.send(CHUNK + next(state(3).snapshot()))
    await channel.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert not follower.lock.locked()
    channel = await begin(follower)
    assert GO == await channel.receive()
    assert GO == await finish(channel, state(5))


@pytest.mark.parametrize(("term", "taken"), [(1, False), (2, True), (3, True)])
async def test_a_stalled_sender_gives_way_to_a_newer_leader(follower: Follower, term: int, taken: bool) -> None:
    """It was stopped half-way, and its connection lives: another of its term or a later one is listened to."""
    stalled = await begin(follower, term=2, peer="a")
    assert GO == await stalled.receive()
    await stalled.send(CHUNK + next(state(3).snapshot()))
    await trio.testing.wait_all_tasks_blocked()
    channel = await begin(follower, term=term, peer="c")
    answer = await channel.receive()
    if taken:
        assert GO == answer
        assert GO == await finish(channel, state(5))
        assert ["c"] == [received.sender for received in follower.installed]
        with pytest.raises(trio.EndOfChannel):
            await stalled.receive()
    else:
        assert REFUSED == answer[:1]
        for chunk in list(state(3).snapshot())[1:]:
            await stalled.send(CHUNK + chunk)
        await stalled.send(END)
        assert GO == await stalled.receive()


async def test_a_stalled_sender_does_not_hold_the_receiver_for_ever(
    autojump_clock: trio.abc.Clock, nursery: trio.Nursery
) -> None:
    """The follower's own snapshots wait for the same lock: it is given up when nothing has come for a while."""
    follower = Follower(nursery)
    stalled = await begin(follower)
    assert GO == await stalled.receive()
    await trio.testing.wait_all_tasks_blocked()
    assert follower.lock.locked()
    with trio.fail_after(60.0), pytest.raises(trio.EndOfChannel):
        await stalled.receive()
    assert not follower.lock.locked()


async def test_a_snapshot_that_is_being_swapped_in_is_not_disturbed(nursery: trio.Nursery) -> None:
    """It is durable and on its way into the log: whoever comes then waits until it is installed."""
    follower = Follower(nursery, install=False)
    channel = await begin(follower, term=1)
    assert GO == await channel.receive()
    for chunk in state(3).snapshot():
        await channel.send(CHUNK + chunk)
    await channel.send(END)
    await trio.testing.wait_all_tasks_blocked()
    assert 1 == len(follower.installed)
    other = await begin(follower, term=2, index=20, peer="c")
    await trio.testing.wait_all_tasks_blocked()
    follower.installed[0].done.set()
    assert GO == await channel.receive()
    assert GO == await other.receive()


async def test_an_own_snapshot_waits_until_one_received_is_installed(nursery: trio.Nursery) -> None:
    """It was begun before, and is older: so it is not written at all, and whoever waits for it hears of its end."""
    follower = Follower(nursery, install=False)
    taken: list[SnapshotMetadata] = []
    ended = trio.Event()
    taker = SnapshotTaker(follower.storage, Settings(), follower.lock, taken.append, ended.set)
    nursery.start_soon(taker.run)
    channel = await begin(follower, index=9)
    assert GO == await channel.receive()
    taker.begin(SnapshotMetadata(5, 1, MEMBERSHIP), state(2).snapshot())
    for chunk in state(3).snapshot():
        await channel.send(CHUNK + chunk)
    await channel.send(END)
    await trio.testing.wait_all_tasks_blocked()
    (received,) = follower.installed
    assert taker.busy
    follower.storage.image.install(received.metadata)
    received.done.set()
    assert GO == await channel.receive()
    await trio.testing.wait_all_tasks_blocked()
    assert [] == taken
    assert ended.is_set()
    assert not taker.busy


class FullStorage(VolatileStorage):
    """Has no room for snapshots while the test says so."""

    full = True

    def create_snapshot(self, metadata: SnapshotMetadata) -> SnapshotWriter:
        if self.full:
            raise StorageFullError("no room")
        return super().create_snapshot(metadata)


async def test_a_snapshot_that_finds_no_room_is_refused(nursery: trio.Nursery) -> None:
    """The follower goes on with what it has, and takes the next one when there is room."""
    storage = FullStorage()
    follower = Follower(nursery, storage=storage)
    channel = await begin(follower)
    assert GO == await channel.receive()
    assert REFUSED + b"the disk is full" == await channel.receive()
    assert [] == follower.installed
    storage.full = False
    channel = await begin(follower)
    assert GO == await channel.receive()
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


async def test_a_transfer_that_gave_way_during_its_last_sync_installs_nothing(nursery: trio.Nursery) -> None:
    """No cancellation ends a sync. The one that took its place is the one under way then, for all who come later."""
    storage = SlowStorage()
    follower = Follower(nursery, storage=storage)
    with trio.fail_after(10.0):
        first = await begin(follower, term=1, peer="a")
        assert GO == await first.receive()
        for chunk in state(3).snapshot():
            await first.send(CHUNK + chunk)
        await first.send(END)
        assert await trio.to_thread.run_sync(storage.committing.wait, 10.0)
        second = await begin(follower, term=2, peer="c")
        await trio.testing.wait_all_tasks_blocked()
        storage.gate.set()
        with pytest.raises(trio.EndOfChannel):
            await first.receive()
        assert GO == await second.receive()
        assert [] == follower.installed
        assert REFUSED == (await (await begin(follower, term=1, peer="a")).receive())[:1]
        assert GO == await finish(second, state(5))
    assert ["c"] == [received.sender for received in follower.installed]
