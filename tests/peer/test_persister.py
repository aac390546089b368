"""Group commit: what queues up is made durable together, in order; what fails is never acknowledged."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NoReturn

import pytest
import trio

from replikv.errors import StorageError
from replikv.peer import persister as module
from replikv.peer.persister import Persister
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.raft.stable import MemoryStorage, Write
from replikv.storage.base import Identity, SnapshotWriter, Storage, StorageFullError


class Recorder(Storage):
    """Records batches; each waits until the test lets it through, or fails as the test says."""

    def __init__(self, *, blocking: bool = True) -> None:
        self.blocking = blocking
        self.identity = None
        self.image = MemoryStorage()
        self.batches: list[list[Write] | int] = []
        self.errors: list[StorageError] = []
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def write(self, writes: Sequence[Write]) -> None:
        self.begun.release()
        assert self.gate.wait(10.0)
        if self.errors:
            raise self.errors.pop(0)
        self.batches.append(list(writes))

    def release(self, index: int) -> None:
        self.batches.append(index)

    def draw_incarnation(self) -> NoReturn:
        raise NotImplementedError

    def initialize(self, identity: Identity, snapshot: SnapshotMetadata) -> NoReturn:
        raise NotImplementedError

    def move(self, address: str, listen: str) -> NoReturn:
        raise NotImplementedError

    def create_snapshot(self, metadata: SnapshotMetadata) -> SnapshotWriter:
        raise NotImplementedError

    def open_snapshot(self, index: int) -> contextlib.AbstractContextManager[tuple[SnapshotMetadata, Iterator[bytes]]]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Woken:
    """Counts, and lets a test wait."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def __call__(self) -> None:
        self.event.set()

    async def until(self, persister: Persister, count: int) -> list[Write]:
        """What is completed, as soon as it is so many."""
        with trio.fail_after(10.0):
            while len(persister.completed) < count:
                await self.event.wait()
                self.event = trio.Event()
        return persister.completed


@contextlib.asynccontextmanager
async def running(storage: Storage, *, shutdown_timeout_s: float = 10.0) -> AsyncIterator[tuple[Persister, Woken]]:
    woken = Woken()
    persister = Persister(storage, woken, shutdown_timeout_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(persister.run)
        yield persister, woken
        nursery.cancel_scope.cancel()


def write(number: int) -> Write:
    return Write(HardState(number), (Entry(number, 1, b"x"),))


async def test_what_queues_up_is_one_batch() -> None:
    """While the first is being synced, the others wait, and then share one sync; completed in the order submitted."""
    storage = Recorder()
    writes = [write(number) for number in range(10)]
    async with running(storage) as (persister, woken):
        storage.gate.clear()
        persister.submit(writes[0])
        await trio.to_thread.run_sync(storage.begun.acquire)
        for one in writes[1:]:
            persister.submit(one)
        assert [] == persister.completed
        storage.gate.set()
        assert writes == await woken.until(persister, 10)
    assert [writes[:1], writes[1:]] == storage.batches


async def test_a_write_without_content_keeps_its_place_and_costs_no_sync() -> None:
    """Its responses rest on the writes before it; with none before it, they may leave at once."""
    storage = Recorder()
    empty = Write()
    async with running(storage) as (persister, woken):
        persister.submit(empty)
        assert [empty] == persister.completed
        storage.gate.clear()
        persister.submit(write(1))
        persister.submit(empty)
        assert 1 == len(persister.completed)
        storage.gate.set()
        assert [empty, write(1), empty] == await woken.until(persister, 3)
    assert [[write(1)]] == storage.batches


async def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than fits waits for the next sync."""
    monkeypatch.setattr(module, "BATCH_BYTES_MAX", 3)
    storage = Recorder()
    async with running(storage) as (persister, woken):
        storage.gate.clear()
        persister.submit(write(0))
        await trio.to_thread.run_sync(storage.begun.acquire)
        for number in range(1, 8):
            persister.submit(write(number))
        storage.gate.set()
        await woken.until(persister, 8)
    assert [1, 3, 3, 1] == [len(batch) for batch in storage.batches if isinstance(batch, list)]


async def test_release_comes_after_the_writes_before_it() -> None:
    """What a snapshot covers goes only once the log says that there is a snapshot."""
    storage = Recorder()
    async with running(storage) as (persister, woken):
        storage.gate.clear()
        persister.submit(write(1))
        await trio.to_thread.run_sync(storage.begun.acquire)
        persister.submit(write(2))
        persister.release(5)
        persister.release(7)
        persister.submit(write(3))
        storage.gate.set()
        await woken.until(persister, 3)
    assert [[write(1)], [write(2), write(3)], 7] == storage.batches


async def test_a_full_disk_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is acknowledged while there is no room, nothing is lost, and it goes on by itself."""
    monkeypatch.setattr(module, "FULL_RETRY_S", 0.001)
    storage = Recorder()
    storage.errors = [StorageFullError("no room") for _ in range(3)]
    async with running(storage) as (persister, woken):
        persister.submit(write(1))
        assert [write(1)] == await woken.until(persister, 1)
        assert not persister.full
    assert [[write(1)]] == storage.batches


async def test_a_full_disk_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """For whoever is asked why nothing gets done."""
    monkeypatch.setattr(module, "FULL_RETRY_S", 0.001)
    storage = Recorder()
    async with running(storage) as (persister, woken):
        storage.errors = [StorageFullError("no room")] * 100_000
        persister.submit(write(1))
        with trio.fail_after(10.0):
            while not persister.full:  # noqa: ASYNC110  # told without a wake
                await trio.sleep(0.001)
        storage.errors = []
        await woken.until(persister, 1)
        assert not persister.full


async def test_a_failure_ends_it_and_completes_nothing() -> None:
    """Nobody knows what is on the disk: neither this batch nor a later one is ever acknowledged, or tried again."""
    storage = Recorder()
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the block is what raises
        async with running(storage) as (persister, woken):
            persister.submit(write(1))
            await woken.until(persister, 1)
            storage.errors = [StorageError("input/output error")]
            persister.submit(write(2))
            persister.submit(write(3))
            await trio.sleep_forever()
    assert caught.group_contains(StorageError, match="input/output")
    assert [write(1)] == persister.completed
    assert [[write(1)]] == storage.batches


async def test_what_is_queued_when_it_ends_is_still_written() -> None:
    """A peer that closes has on disk whatever it has told the log."""
    storage = Recorder()
    async with running(storage) as (persister, _):
        storage.gate.clear()
        persister.submit(write(1))
        await trio.to_thread.run_sync(storage.begun.acquire)
        persister.submit(write(2))
        threading.Timer(0.02, storage.gate.set).start()
    assert [write(1), write(2)] == [one for batch in storage.batches if isinstance(batch, list) for one in batch]


class NoRoomFor(Recorder):
    """A disk with room for everything but one write, which is a large one, say."""

    def __init__(self, large: Write) -> None:
        super().__init__()
        self.large = large

    def write(self, writes: Sequence[Write]) -> None:
        if self.large in writes:
            self.errors = [StorageFullError("no room")]
        super().write(writes)


async def test_what_is_queued_behind_a_write_that_finds_no_room_is_not_written_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Leaving while the disk is full: a log with a gap, or a commit index past its end, would never open again."""
    monkeypatch.setattr(module, "FULL_RETRY_S", 0.01)
    storage = NoRoomFor(write(1))
    async with running(storage) as (persister, _):
        persister.submit(write(1))
        await trio.to_thread.run_sync(storage.begun.acquire)
        persister.submit(write(2))
    assert [] == storage.batches
    assert [] == persister.completed
    assert not persister.abandoned


async def test_a_disk_that_hangs_is_left_behind() -> None:
    """Leaving takes no longer than it may; the thread, which cannot be ended, ends when the disk answers."""
    storage = Recorder()
    with trio.fail_after(10.0):
        async with running(storage, shutdown_timeout_s=0.02) as (persister, _):
            storage.gate.clear()
            persister.submit(write(1))
            await trio.to_thread.run_sync(storage.begun.acquire)
        assert persister.abandoned
        assert [] == persister.completed
        storage.gate.set()
        assert await trio.to_thread.run_sync(persister._thread_ended.wait, 10.0)
    assert [[write(1)]] == storage.batches


async def test_without_a_disk_a_write_is_complete_at_once() -> None:
    """In the caller's own turn, and no thread is there."""
    storage = Recorder(blocking=False)
    async with running(storage) as (persister, _):
        persister.submit(write(1))
        persister.release(1)
        assert [write(1)] == persister.completed
        assert [[write(1)], 1] == storage.batches
