"""Both ends of snapshots that travel, over channels in memory which break where the test says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import trio

from replikv.machine.commands import encode_put
from replikv.machine.envelope import CommandKind, Envelope
from replikv.machine.replica import Replica
from replikv.peer.protocol import SnapshotHeader, decode, encode_snapshot_header
from replikv.peer.snapshot_receiver import ReceivedSnapshot, SnapshotReceiver
from replikv.peer.snapshot_sender import SnapshotSender
from replikv.peer.snapshot_stream import CHUNK, STILL, ChunkDigest
from replikv.raft.entries import SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.settings import Settings
from replikv.storage.base import Identity, SnapshotWriter, Storage, StorageFullError
from replikv.storage.memory import VolatileStorage
from replikv.transport.base import Channel, Hello, Receiver, Transport

MEMBERSHIP = Membership.of_voters({"a": "a", "b": "b"})


def metadata_at(index: int) -> SnapshotMetadata:
    return SnapshotMetadata(index, 1, MEMBERSHIP)


class MemoryChannel(Channel):
    """One end of a pair. ``sent`` is what went out; after ``frames_left`` more it breaks, for both ends."""

    def __init__(self, outgoing: trio.MemorySendChannel[bytes], incoming: trio.MemoryReceiveChannel[bytes]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self.sent: list[bytes] = []
        self.sent_at: list[float] = []
        self.frames_left: int | None = None

    async def send(self, frame: bytes) -> None:
        if self.frames_left is not None:
            if self.frames_left == 0:
                await self.aclose()
                raise trio.BrokenResourceError("it was to break here")
            self.frames_left -= 1
        await self._outgoing.send(frame)
        self.sent.append(frame)
        self.sent_at.append(trio.current_time())

    async def receive(self) -> bytes:
        return await self._incoming.receive()

    async def aclose(self) -> None:
        self._outgoing.close()
        self._incoming.close()

    @property
    def chunks_sent(self) -> int:
        return sum(frame[:1] == CHUNK for frame in self.sent)

    @property
    def signs_of_life(self) -> int:
        return self.sent.count(STILL)


def channel_pair() -> tuple[MemoryChannel, MemoryChannel]:
    there_in, there_out = trio.open_memory_channel[bytes](4)
    back_in, back_out = trio.open_memory_channel[bytes](4)
    return MemoryChannel(there_in, back_out), MemoryChannel(back_in, there_out)


class Follower:
    """A receiver over a storage and a replica; ``installed`` are the snapshots it was told to swap in."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        install: bool = True,
        storage: VolatileStorage | None = None,
        settings: Settings | None = None,
        replica: Replica | None = None,
    ) -> None:
        self.storage = storage or WatchedStorage()
        self.storage.initialize(Identity("cluster", "b", "b1", "b", "b"), metadata_at(0))
        self.replica = replica or Replica()
        self.lock = trio.Lock()
        self.installed: list[ReceivedSnapshot] = []
        # Indexes of those that were offered though there was one as new.
        self.known: list[int] = []
        self._nursery = nursery
        self._swap = install
        self.receiver = SnapshotReceiver(self.storage, self.replica, settings or Settings(), self.lock, self._install)
        nursery.start_soon(self.receiver.run)

    def _install(self, received: ReceivedSnapshot) -> None:
        if received.restorer is None:
            self.known.append(received.metadata.index)
            return
        self.installed.append(received)
        if self._swap:
            received.restorer.finish()
            self.storage.image.install(received.metadata)
            received.done.set()

    def accept(self, sender: str = "a") -> MemoryChannel:
        """The sender's end of a new channel, on which a header comes first."""
        ours, theirs = channel_pair()
        self._nursery.start_soon(self._serve, sender, theirs)
        return ours

    async def _serve(self, sender: str, channel: MemoryChannel) -> None:
        try:
            header = decode(await channel.receive(), sender, "b")
            assert isinstance(header, SnapshotHeader)
            await self.receiver.receive(sender, channel, header)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel):
            pass  # as a transport does
        finally:
            await channel.aclose()


class OneWay(Transport):
    """Opens channels to one follower. ``frames`` of each attempt get through, and all of those that come after."""

    def __init__(self, follower: Follower, frames: Iterable[int] = ()) -> None:
        self.follower = follower
        self.opened: list[MemoryChannel] = []
        self._frames = list(frames)

    async def open_channel(self, node_id: str) -> Channel:
        if node_id == "nobody":
            raise OSError(f"no way to {node_id}")
        channel = self.follower.accept()
        if self._frames:
            channel.frames_left = self._frames.pop(0)
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

    async def call(self, address: str, hello: Hello, settings: Settings) -> Channel:
        raise NotImplementedError

    def statistics(self) -> Mapping[str, Mapping[str, int]]:
        raise NotImplementedError


class WatchedStorage(VolatileStorage):
    """Knows how many snapshots are begun, and neither committed nor thrown away: one at the most, as is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.open_writers = 0
        self.chunks_until_full: int | None = None
        """After so many chunks there is no room any more."""

    def create_snapshot(self, metadata: SnapshotMetadata) -> SnapshotWriter:
        assert self.open_writers == 0
        if self.chunks_until_full == 0:
            raise StorageFullError("no room")
        self.open_writers += 1
        return _WatchedWriter(self, super().create_snapshot(metadata))


class _WatchedWriter(SnapshotWriter):
    def __init__(self, storage: WatchedStorage, writer: SnapshotWriter) -> None:
        self._storage = storage
        self._writer = writer
        self._open = True

    def write(self, chunk: bytes) -> None:
        if self._storage.chunks_until_full is not None:
            if self._storage.chunks_until_full == 0:
                raise StorageFullError("no room")
            self._storage.chunks_until_full -= 1
        self._writer.write(chunk)

    def commit(self) -> None:
        self._writer.commit()
        self._close()

    def abort(self) -> None:
        self._writer.abort()
        self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._storage.open_writers -= 1


def state(keys: int, value: int = 0) -> Replica:
    """128 keys make a chunk, beside the four that are always there."""
    replica = Replica()
    for number in range(keys):
        replica.apply(Envelope(CommandKind.MAP, 0, 0, 0, encode_put(b"%d" % number, bytes([0x41, value]))).encode())
    return replica


def stored(replica: Replica, index: int) -> VolatileStorage:
    """A leader's storage with a snapshot of the state."""
    storage = VolatileStorage()
    store(storage, list(replica.snapshot()), index)
    return storage


def store(storage: Storage, chunks: Iterable[bytes], index: int) -> None:
    writer = storage.create_snapshot(metadata_at(index))
    for chunk in chunks:
        writer.write(chunk)
    writer.commit()


def sender(
    storage: VolatileStorage, transport: Transport, settings: Settings | None = None
) -> tuple[SnapshotSender, list[tuple[str, bool]]]:
    reports: list[tuple[str, bool]] = []
    return SnapshotSender(storage, transport, settings or Settings(), lambda *report: reports.append(report)), reports


async def begin(follower: Follower, *, term: int = 1, index: int = 9, peer: str = "a") -> MemoryChannel:
    """A channel on which a snapshot was announced."""
    channel = follower.accept(peer)
    await channel.send(encode_snapshot_header(SnapshotHeader(term, metadata_at(index))))
    return channel


def end_of(chunks: Iterable[bytes]) -> bytes:
    """The frame that ends these chunks."""
    digest = ChunkDigest()
    for chunk in chunks:
        digest.add(chunk)
    return digest.end()


async def finish(channel: MemoryChannel, replica: Replica, *, had: int = 0) -> bytes:
    """Send the chunks that are missing; the last answer."""
    chunks = list(replica.snapshot())
    for chunk in chunks[had:]:
        await channel.send(CHUNK + chunk)
    await channel.send(end_of(chunks))
    return await channel.receive()
