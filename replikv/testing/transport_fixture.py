"""What suites for transports stand on: transports that run, and receivers that keep what they are told."""

# ruff: noqa: ARG002, ARG005 - overridden methods and callbacks take what they are given

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

import trio

from replikv.settings import Settings
from replikv.transport.base import Channel, Hello, Transport

__all__ = ["RecordingReceiver", "RunningTransport", "TransportFixture", "echo", "in_trio", "raises"]

DEADLINE_S: Final = 10.0
"""For one test. They take milliseconds: this only ends one that hangs."""

S = TypeVar("S")


class RecordingReceiver:
    """A Receiver that keeps what it is told, and answers with what tests replace: ``admit_with``, ``serve`` (channels)
    and ``serve_call``.
    """

    def __init__(self, node_id: str, cluster_id: str = "test-cluster") -> None:
        self.node_id = node_id
        self.cluster_id = cluster_id
        self.frames: list[tuple[str, bytes]] = []
        self.events: list[tuple[str, ...]] = []
        """``("connected", node_id)``, ``("disconnected", node_id)``, ``("refused", node_id, reason)``."""
        self.hellos: list[Hello] = []
        self.admit_with: Callable[[Hello], str | None] = lambda hello: None
        self.on_frame: Callable[[str, bytes], None] = lambda node_id, frame: None
        self.serve: Callable[[str, Channel], Awaitable[None]] = echo
        self.strangers: list[Hello] = []
        """Who has called."""
        self.serve_call: Callable[[Hello, Channel], Awaitable[None]] = echo
        self._changed = trio.Event()

    def hello(self) -> Hello:
        """Who we are; the attributes are there to be seen at the other side."""
        return Hello(
            cluster_id=self.cluster_id,
            node_id=self.node_id,
            incarnation=f"incarnation of {self.node_id}",
            bound_index=7,
            address=f"address of {self.node_id}",
            attributes={"colour": "green"},
        )

    def admit(self, hello: Hello) -> str | None:
        """Keep it, and answer."""
        self.hellos.append(hello)
        self._notify()
        return self.admit_with(hello)

    def receive(self, node_id: str, frame: bytes) -> None:
        """Keep the frame."""
        self.frames.append((node_id, frame))
        self._notify()
        self.on_frame(node_id, frame)

    def connected(self, node_id: str) -> None:
        """Keep the event."""
        self._event("connected", node_id)

    def disconnected(self, node_id: str) -> None:
        """Keep the event."""
        self._event("disconnected", node_id)

    def refused(self, node_id: str, reason: str) -> None:
        """Keep the event."""
        self._event("refused", node_id, reason)

    def turned_away(self, hello: Hello, reason: str) -> None:
        """Keep the event."""
        self._event("turned away", hello.node_id, reason)

    async def serve_channel(self, node_id: str, channel: Channel) -> None:
        """Have ``serve`` do it."""
        await self.serve(node_id, channel)

    async def serve_stranger(self, hello: Hello, channel: Channel) -> None:
        """Keep who it is, and have ``serve_call`` do it."""
        self.strangers.append(hello)
        self._notify()
        await self.serve_call(hello, channel)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once it holds; looked at whenever something was recorded."""
        while not condition():
            self._changed = trio.Event()
            await self._changed.wait()

    async def wait_event(self, *event: str, times: int = 1) -> None:
        """Return once these words began so many events."""
        await self.wait_until(lambda: sum(told[: len(event)] == event for told in self.events) >= times)

    async def wait_frames(self, count: int) -> list[bytes]:
        """The frames so far, once there are this many."""
        await self.wait_until(lambda: len(self.frames) >= count)
        return [frame for _, frame in self.frames]

    def _event(self, *event: str) -> None:
        self.events.append(event)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()


async def echo(_who: str | Hello, channel: Channel) -> None:
    """Send back whatever comes, until the other side closes."""
    while True:
        await channel.send(await channel.receive())


class RunningTransport:
    """A transport that runs, its receiver, and where it can be dialed."""

    def __init__(
        self, transport: Transport, receiver: RecordingReceiver, scope: trio.CancelScope, address: str
    ) -> None:
        self.transport = transport
        self.receiver = receiver
        self.address = address
        self.scope = scope
        self.ended = trio.Event()

    async def stop(self) -> None:
        """Cancel ``run``, and wait until it has returned."""
        self.scope.cancel()
        await self.ended.wait()

    async def connect(self, *others: RunningTransport) -> None:
        """Have it dial the others, and wait until it may send to them."""
        for other in others:
            self.transport.set_peer(other.receiver.node_id, other.address)
        for other in others:
            await self.receiver.wait_event("connected", other.receiver.node_id)


def in_trio(test: Callable[[S], Awaitable[None]]) -> Callable[[S], None]:
    """Make a plain test of an async one: the suite asks for no plugin."""

    @functools.wraps(test)
    def run(suite: S) -> None:
        async def within_deadline() -> None:
            with trio.fail_after(DEADLINE_S):
                await test(suite)

        trio.run(within_deadline)

    return run


class TransportFixture:
    """Has transports of one kind run; what a suite overrides to say which."""

    settings = Settings(
        value_bytes_max=8 * 1024,
        key_bytes_max=1024,
        command_bytes_max=16 * 1024,
        entry_bytes_max=32 * 1024,
        message_bytes_max=16 * 1024,
        snapshot_chunk_bytes=16 * 1024,
        frame_bytes_max=256 * 1024,
        outbox_bytes_max=1024 * 1024,
        connect_timeout_s=2.0,
        reconnect_delay_s=0.005,
        reconnect_delay_max_s=0.02,
    )
    """Small limits, so that tests reach them, and short pauses."""

    def make_transport(self, node_id: str) -> Transport:
        """A transport that has not run, one that can reach the others of the same test."""
        raise NotImplementedError("a suite for a transport overrides make_transport")

    def listen_address(self, node_id: str) -> str:
        """What it listens on; the address that ``run`` starts with is what others dial."""
        return "127.0.0.1:0"

    @contextlib.asynccontextmanager
    async def running(self, *node_ids: str) -> AsyncIterator[list[RunningTransport]]:
        """Transports that run and do not know of each other yet."""
        async with trio.open_nursery() as nursery:
            yield [await self.start(nursery, RecordingReceiver(node_id)) for node_id in node_ids]
            nursery.cancel_scope.cancel()

    async def start(
        self, nursery: trio.Nursery, receiver: RecordingReceiver, listen: str | None = None
    ) -> RunningTransport:
        """One more transport that runs."""
        transport = self.make_transport(receiver.node_id)
        listen = self.listen_address(receiver.node_id) if listen is None else listen
        running = RunningTransport(transport, receiver, trio.CancelScope(), "")

        async def run(task_status: trio.TaskStatus[str]) -> None:
            try:
                with running.scope:
                    await transport.run(receiver, listen=listen, settings=self.settings, task_status=task_status)
            finally:
                running.ended.set()

        running.address = await nursery.start(run)
        return running


@contextlib.contextmanager
def raises(kind: type[BaseException] | tuple[type[BaseException], ...], text: str = "") -> Iterator[None]:
    """Like ``pytest.raises``, which is not asked for here; looks into exception groups."""
    try:
        yield
    except BaseException as exc:
        matching: Any = exc
        while isinstance(matching, BaseExceptionGroup) and len(matching.exceptions) == 1:
            matching = matching.exceptions[0]
        if not isinstance(matching, kind):
            raise
        assert text in str(matching), f"{text!r} is not in {matching!r}"
    else:
        raise AssertionError(f"{kind} was not raised")
