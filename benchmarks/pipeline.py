"""The bare pipeline: a durable put on a majority of three processes, and nothing else. The speed limit.

One process leads, for good; there are no terms, no elections, no log that could be read again, no sessions, no history.
What is left is what no implementation on the same footing can do without: the puts of a turn become one batch; each
command in it is encoded and has a checksum; the batch is written to a preallocated file and synced by a thread, on all
three; two followers get it over TCP, decode it, keep it in a dict and acknowledge it once it is synced; a put returns
when two of three disks have its batch and it is in the leader's dict.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

import cbor2
import trio

from benchmarks.children import Pipe, answer, run_child
from benchmarks.load import KEYS, VALUE, Window, window

__all__ = ["follow", "lead"]

FILE_BYTES: Final = 16 * 1024 * 1024
"""Written round and round; as long as a segment of replikv's write-ahead log."""

_BATCH: Final = struct.Struct(">IQ")
"""Bytes of the body, number of the batch: from 1 on, without a gap."""
_COMMAND: Final = struct.Struct(">II")
"""Bytes of the command, its checksum."""
_ACKNOWLEDGEMENT: Final = struct.Struct(">Q")
"""The number of the last batch that is on the follower's disk."""
_PUT: Final = 1

T = TypeVar("T")


class Mailbox(Generic[T]):
    """What has come in since the last look, for one task to take all at once."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._filled = trio.Event()

    def put(self, item: T) -> None:
        """Leave something for the task."""
        self._items.append(item)
        self._filled.set()

    async def take(self) -> list[T]:
        """Wait until there is something, and take all there is."""
        await self._filled.wait()
        self._filled = trio.Event()
        items, self._items = self._items, []
        return items


class Disk:
    """A file and the thread that writes to it: what has queued up during one sync shares the next."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(self._file, bytes(FILE_BYTES), 0)
        os.fsync(self._file)
        self._queue: queue.SimpleQueue[tuple[bytes, Callable[[], None]]] = queue.SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        threading.Thread(target=self._write, daemon=True).start()

    def submit(self, data: bytes, done: Callable[[], None]) -> None:
        """Queue some bytes; ``done()`` is called on the trio side once they are synced."""
        self._queue.put((data, done))

    def _write(self) -> None:
        offset = 0
        while True:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            data = b"".join(data for data, _ in batch)
            if offset + len(data) > FILE_BYTES:
                offset = 0
            os.pwrite(self._file, data, offset)
            os.fdatasync(self._file)
            offset += len(data)
            self._token.run_sync_soon(_call_all, [done for _, done in batch])


def _call_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


class Proposal(NamedTuple):
    """A put, and the task that waits for it."""

    key: str
    value: bytes
    task: trio.lowlevel.Task


class Leader:
    """The process that puts."""

    def __init__(self, disk: Disk, followers: list[trio.SocketStream]) -> None:
        self._disk = disk
        self._followers = followers
        self._replica: dict[str, bytes] = {}
        self._proposed = Mailbox[Proposal]()
        self._outboxes = [Mailbox[bytes]() for _ in followers]
        # The newest batch on each disk: the followers', and last the own.
        self._synced = [0] * (len(followers) + 1)
        # The newest batch that is on a majority of them, and the proposals of those after it.
        self._committed = 0
        self._uncommitted: deque[list[Proposal]] = deque()

    async def put(self, key: str) -> None:
        """Set a key; on a majority's disks and in the dict when this returns. Not to be cancelled."""
        self._proposed.put(Proposal(key, VALUE, trio.lowlevel.current_task()))
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    async def run(self) -> None:
        """Batch, send and count acknowledgements until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._batch)
            for number, stream in enumerate(self._followers):
                nursery.start_soon(self._send, stream, self._outboxes[number])
                nursery.start_soon(self._receive, stream, number)

    async def _batch(self) -> None:
        number = 0
        while True:
            proposals = await self._proposed.take()
            parts: list[bytes] = []
            for key, value, _ in proposals:
                command = cbor2.dumps((_PUT, key, value))
                parts += (_COMMAND.pack(len(command), zlib.crc32(command)), command)
            body = b"".join(parts)
            number += 1
            self._uncommitted.append(proposals)
            for outbox in self._outboxes:
                outbox.put(_BATCH.pack(len(body), number) + body)
            self._disk.submit(body, partial(self._note, -1, number))

    @staticmethod
    async def _send(stream: trio.SocketStream, outbox: Mailbox[bytes]) -> None:
        while True:
            await stream.send_all(b"".join(await outbox.take()))

    async def _receive(self, stream: trio.SocketStream, follower: int) -> None:
        data = b""
        async for chunk in stream:
            data += chunk
            whole = len(data) // _ACKNOWLEDGEMENT.size * _ACKNOWLEDGEMENT.size
            if whole:
                (number,) = _ACKNOWLEDGEMENT.unpack_from(data, whole - _ACKNOWLEDGEMENT.size)
                data = data[whole:]
                self._note(follower, number)

    def _note(self, disk: int, number: int) -> None:
        """Everything up to this batch is on that disk."""
        self._synced[disk] = number
        replica = self._replica
        majority = sorted(self._synced)[len(self._synced) // 2]
        while self._committed < majority:
            self._committed += 1
            for key, value, task in self._uncommitted.popleft():
                replica[key] = value
                trio.lowlevel.reschedule(task)


# -- the processes -----------------------------------------------------------------------------------------------------


def lead(pipe: Pipe, path: Path) -> None:
    """The leader's process."""
    run_child(_lead, pipe, path)


def follow(pipe: Pipe, path: Path) -> None:
    """A follower's process."""
    run_child(_follow, pipe, path)


async def _lead(pipe: Pipe, path: Path) -> None:
    async with trio.open_nursery() as nursery:
        leader: Leader

        async def connect(ports: list[int]) -> None:
            nonlocal leader
            streams = [await trio.open_tcp_stream("127.0.0.1", port) for port in ports]
            for stream in streams:
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            leader = Leader(Disk(path), streams)
            nursery.start_soon(leader.run)

        async def fill() -> None:
            async with trio.open_nursery() as clients:
                for key in KEYS:
                    clients.start_soon(leader.put, key)

        async def put(concurrency: int, seconds: float) -> Window:
            return await window(leader.put, concurrency, seconds)

        await answer(pipe, {"connect": connect, "fill": fill, "put": put})
        nursery.cancel_scope.cancel()


async def _follow(pipe: Pipe, path: Path) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def port() -> int:
        number: int = listener.socket.getsockname()[1]
        return number

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_replicate, listener, Disk(path))
        await answer(pipe, {"port": port})
        nursery.cancel_scope.cancel()


async def _replicate(listener: trio.SocketListener, disk: Disk) -> None:
    async with await listener.accept() as stream, trio.open_nursery() as nursery:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        synced = Mailbox[int]()
        nursery.start_soon(_acknowledge, stream, synced)
        replica: dict[str, bytes] = {}
        data = bytearray()
        async for chunk in stream:
            data += chunk
            while len(data) >= _BATCH.size:
                length, number = _BATCH.unpack_from(data)
                end = _BATCH.size + length
                if len(data) < end:
                    break
                body = bytes(data[_BATCH.size : end])
                del data[:end]
                disk.submit(body, partial(synced.put, number))
                _apply(replica, body)
        nursery.cancel_scope.cancel()


async def _acknowledge(stream: trio.SocketStream, synced: Mailbox[int]) -> None:
    while True:
        await stream.send_all(_ACKNOWLEDGEMENT.pack((await synced.take())[-1]))


def _apply(replica: dict[str, bytes], body: bytes) -> None:
    position = 0
    while position < len(body):
        length, _ = _COMMAND.unpack_from(body, position)
        position += _COMMAND.size
        _, key, value = cbor2.loads(body[position : position + length])
        replica[key] = value
        position += length
