"""The first snapshot of a process that joins: on an empty storage, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from snapshot_channels import (
    Follower,
    MemoryChannel,
    OneWay,
    WatchedStorage,
    channel_pair,
    end_of,
    metadata_at,
    sender,
    state,
    stored,
)

from replikv.errors import InternalError
from replikv.machine.replica import Replica
from replikv.peer.protocol import SnapshotHeader, encode_forwarded, encode_snapshot_header
from replikv.peer.snapshot_receiver import receive_first
from replikv.peer.snapshot_stream import ANSWER_MAX_S, CHUNK, SILENCE_MAX_S, STILL, TransferError
from replikv.raft.entries import SnapshotMetadata
from replikv.storage.base import Identity, Storage, StorageFullError
from replikv.storage.disk import DiskStorage

IDENTITY = Identity("cluster", "d", "d1", "d", "d")
HEADER = encode_snapshot_header(SnapshotHeader(3, metadata_at(9)))
CHUNKS = list(state(1000).snapshot())


@pytest.fixture(params=["memory", "disk"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "memory":
        yield WatchedStorage()
    else:
        with contextlib.closing(DiskStorage(tmp_path, segment_bytes=4096, prepare_ahead=False)) as disk:
            yield disk


async def send_first(nursery: trio.Nursery, channel: MemoryChannel) -> None:
    """As a member does that was asked to."""
    sending, _ = sender(stored(state(1000), 9), OneWay(Follower(nursery)))
    with contextlib.suppress(trio.BrokenResourceError, trio.EndOfChannel, TransferError):
        await sending.send_over(channel, 3, 9, "d")
    await channel.aclose()


def expect_empty(storage: Storage, directory: Path) -> None:
    assert storage.identity is None
    assert [] == [path for path in (directory / "snapshots").glob("*") if path.is_file()]
    if isinstance(storage, WatchedStorage):
        assert 0 == storage.open_writers
    with pytest.raises(InternalError):
        storage.initialize(IDENTITY, metadata_at(9))


async def test_an_empty_storage_gets_its_first_snapshot(nursery: trio.Nursery, storage: Storage) -> None:
    """It can be initialized with what was received, and begins with that state."""
    ours, theirs = channel_pair()
    nursery.start_soon(send_first, nursery, ours)
    metadata = await receive_first(theirs, storage)
    assert metadata_at(9) == metadata
    storage.initialize(IDENTITY, metadata)
    replica = Replica()
    with storage.open_snapshot(9) as (_, chunks):
        replica.restore(chunks)
    assert state(1000).digest() == replica.digest()
    assert metadata == storage.image.snapshot()


@pytest.mark.parametrize("frames", [0, 1, 3, len(CHUNKS) + 1])
async def test_a_channel_that_breaks_leaves_an_empty_storage(
    nursery: trio.Nursery, storage: Storage, tmp_path: Path, frames: int
) -> None:
    """Wherever it breaks; the next attempt is from the beginning, and works."""
    ours, theirs = channel_pair()
    ours.frames_left = frames
    nursery.start_soon(send_first, nursery, ours)
    with pytest.raises(TransferError, match="the channel broke"):
        await receive_first(theirs, storage)
    expect_empty(storage, tmp_path)
    ours, theirs = channel_pair()
    nursery.start_soon(send_first, nursery, ours)
    assert metadata_at(9) == await receive_first(theirs, storage)
    assert len(CHUNKS) == ours.chunks_sent


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"garbage"],
        [encode_forwarded(1, b"")],
        [HEADER, b"garbage"],
        [HEADER, end_of(CHUNKS)],
        [HEADER, CHUNK + CHUNKS[0], end_of(CHUNKS)],
        [HEADER, CHUNK + CHUNKS[0], CHUNK + CHUNKS[2], end_of(CHUNKS[:2])],
    ],
    ids=range(7),
)
async def test_what_is_no_snapshot_leaves_an_empty_storage(
    nursery: trio.Nursery, storage: Storage, tmp_path: Path, frames: list[bytes]
) -> None:
    """Garbage, or not the chunks that were sent."""
    ours, theirs = channel_pair()
    for frame in frames:
        await ours.send(frame)
    with pytest.raises(TransferError):
        await receive_first(theirs, storage)
    expect_empty(storage, tmp_path)


@pytest.mark.parametrize(("frames", "limit_s"), [([], ANSWER_MAX_S), ([HEADER, CHUNK + CHUNKS[0]], SILENCE_MAX_S)])
async def test_a_silent_sender_is_given_up(
    autojump_clock: trio.abc.Clock, tmp_path: Path, frames: list[bytes], limit_s: float
) -> None:
    """One that says that it is still there is not."""
    storage = WatchedStorage()
    ours, theirs = channel_pair()
    started = trio.current_time()

    async def send() -> None:
        for frame in [STILL, *frames, STILL]:
            await trio.sleep(5.0)
            await ours.send(frame)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with pytest.raises(TransferError, match="sent nothing"):
            await receive_first(theirs, storage)
    assert trio.current_time() - started == pytest.approx(5.0 * (2 + len(frames)) + limit_s)
    expect_empty(storage, tmp_path)


async def test_a_joiner_that_is_cancelled_leaves_an_empty_storage(storage: Storage, tmp_path: Path) -> None:
    """In the middle of a chunk's way."""
    ours, theirs = channel_pair()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_first, theirs, storage)
            for frame in [HEADER, *(CHUNK + chunk for chunk in CHUNKS[:5])]:
                await ours.send(frame)
            await ours.receive()
            await trio.testing.wait_all_tasks_blocked(0.01)
            scope.cancel()
    expect_empty(storage, tmp_path)


async def test_a_joiner_without_room_says_so(nursery: trio.Nursery, tmp_path: Path) -> None:
    """The disk is the caller's: it hears of it as it is."""
    storage = WatchedStorage()
    for chunks in (0, 5):
        storage.chunks_until_full = chunks
        ours, theirs = channel_pair()
        nursery.start_soon(send_first, nursery, ours)
        with pytest.raises(StorageFullError):
            await receive_first(theirs, storage)
        await theirs.aclose()
        expect_empty(storage, tmp_path)


async def test_whoever_has_an_identity_does_not_join() -> None:
    """Its log would contradict the snapshot."""
    storage = WatchedStorage()
    storage.initialize(IDENTITY, SnapshotMetadata(0, 0, metadata_at(0).membership))
    with pytest.raises(InternalError, match="belongs to d"):
        await receive_first(channel_pair()[0], storage)


async def test_the_sender_may_be_gone_by_the_end(nursery: trio.Nursery) -> None:
    """Once all is there and durable, nothing more is needed of it."""
    storage = WatchedStorage()
    ours, theirs = channel_pair()

    async def send() -> None:
        await ours.send(HEADER)
        for chunk in CHUNKS:
            await ours.send(CHUNK + chunk)
        await ours.send(end_of(CHUNKS))
        await ours.receive()
        await ours.aclose()

    nursery.start_soon(send)
    assert metadata_at(9) == await receive_first(theirs, storage)
