"""What every transport must do, as tests: subclass ``TransportSuite`` to hold your own transport to them."""

# ruff: noqa: SIM300, ARG001, ARG002, ARG005 - assertions read expected == actual; callbacks take what they are given

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

import trio

from replikv.errors import ConfigurationError
from replikv.settings import Settings
from replikv.transport.base import Channel, Hello, Transport

__all__ = ["RecordingReceiver", "RunningTransport", "TransportSuite"]

DEADLINE_S: Final = 10.0
"""For one test. They take milliseconds: this only ends one that hangs."""

S = TypeVar("S")


class RecordingReceiver:
    """A Receiver that keeps what it is told, and answers with ``admit_with`` and ``serve``, which tests replace."""

    def __init__(self, node_id: str, cluster_id: str = "test-cluster") -> None:
        self.node_id = node_id
        self.cluster_id = cluster_id
        self.frames: list[tuple[str, bytes]] = []
        self.events: list[tuple[str, ...]] = []
        """``("connected", node_id)``, ``("disconnected", node_id)``, ``("refused", node_id, reason)``."""
        self.hellos: list[Hello] = []
        self.admit_with: Callable[[Hello], str | None] = lambda hello: None
        self.on_frame: Callable[[str, bytes], None] = lambda node_id, frame: None
        self.serve: Callable[[str, Channel], Awaitable[None]] = _echo
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

    async def serve_channel(self, node_id: str, channel: Channel) -> None:
        """Have ``serve`` do it."""
        await self.serve(node_id, channel)

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


async def _echo(node_id: str, channel: Channel) -> None:
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


def _in_trio(test: Callable[[S], Awaitable[None]]) -> Callable[[S], None]:
    """Make a plain test of an async one: the suite asks for no plugin."""

    @functools.wraps(test)
    def run(suite: S) -> None:
        async def within_deadline() -> None:
            with trio.fail_after(DEADLINE_S):
                await test(suite)

        trio.run(within_deadline)

    return run


class TransportSuite:
    """The contract of ``Transport``, for your own one to be held to.

    In a test module of yours::

        class TestMyTransport(TransportSuite):
            def make_transport(self, node_id):
                return MyTransport(...)

    Each test makes its transports anew, so a network that they share is best made in ``setup_method``.
    """

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

    # -- frames --------------------------------------------------------------------------------------------------------

    @_in_trio
    async def test_frames_arrive_whole_and_in_order(self) -> None:
        """Frames of every size up to the limit arrive as they were sent, under the sender's id."""
        async with self.running("a", "b") as (a, b):
            await a.connect(b)
            sizes = [0, 1, 3, 4, 5, 1000, 65_536, 200_000, self.settings.frame_bytes_max, 2]
            sent = [bytes([number]) * size for number, size in enumerate(sizes)]
            assert all(a.transport.send("b", frame) for frame in sent)
            await b.receiver.wait_frames(len(sent))
            assert [("a", frame) for frame in sent] == b.receiver.frames

    @_in_trio
    async def test_both_directions_and_several_peers(self) -> None:
        """Each of three peers hears each other one, and nobody hears himself."""
        async with self.running("a", "b", "c") as peers:
            for peer in peers:
                await peer.connect(*(other for other in peers if other is not peer))
            for peer in peers:
                for other in peers:
                    peer.transport.send(other.receiver.node_id, f"{peer.receiver.node_id}>".encode())
            for peer in peers:
                await peer.receiver.wait_frames(2)
                others = {other.receiver.node_id for other in peers if other is not peer}
                assert {(other, f"{other}>".encode()) for other in others} == set(peer.receiver.frames)

    @_in_trio
    async def test_receive_is_never_called_within_send(self) -> None:
        """A receiver that answers from within receive is not called again before it has returned."""
        async with self.running("a", "b") as (a, b):
            depth = deepest = 0

            def answer_through(peer: RunningTransport, node_id: str, frame: bytes) -> None:
                nonlocal depth, deepest
                depth += 1
                deepest = max(deepest, depth)
                if len(frame) < 20:
                    peer.transport.send(node_id, frame + b".")
                depth -= 1

            a.receiver.on_frame = functools.partial(answer_through, a)
            b.receiver.on_frame = functools.partial(answer_through, b)
            await a.connect(b)
            await b.connect(a)
            a.transport.send("b", b"")
            assert [] == b.receiver.frames
            await a.receiver.wait_until(lambda: any(len(frame) >= 19 for _, frame in a.receiver.frames))
            assert 1 == deepest

    @_in_trio
    async def test_send_to_nobody_is_a_drop(self) -> None:
        """Frames for a peer that is unknown, or not connected, are dropped and said to be."""
        async with self.running("a") as (a,):
            assert not a.transport.send("b", b"frame")
            a.transport.set_peer("b", a.address)  # a itself: never admitted as b
            assert not a.transport.send("b", b"frame")
            with trio.move_on_after(0.2):
                await a.receiver.wait_event("connected", "b")
            assert not a.transport.send("b", b"frame")

    @_in_trio
    async def test_outbox_is_bounded(self) -> None:
        """A burst is taken up to the bound in bytes, the rest refused; what was taken arrives, then more fits."""
        async with self.running("a", "b") as (a, b):
            await a.connect(b)
            frame = bytes(100_000)
            taken = sum(a.transport.send("b", frame) for _ in range(50))
            statistics = a.transport.statistics()["b"]
            assert 0 < taken < 50
            assert statistics["queued_bytes"] <= self.settings.outbox_bytes_max
            assert 50 - taken == statistics["dropped_frames"]
            await b.receiver.wait_frames(taken)
            while a.transport.statistics()["b"]["queued_bytes"]:
                await trio.lowlevel.checkpoint()
            assert a.transport.send("b", frame)

    @_in_trio
    async def test_empty_frames_are_bounded_too(self) -> None:
        """Frames without bytes do not fill the memory either."""
        async with self.running("a", "b") as (a, b):
            await a.connect(b)
            assert any(not a.transport.send("b", b"") for _ in range(self.settings.outbox_bytes_max))

    @_in_trio
    async def test_statistics(self) -> None:
        """The five counters, of each peer that has an address."""
        async with self.running("a", "b") as (a, b):
            await a.connect(b)
            await b.connect(a)
            a.transport.send("b", b"frame")
            await b.receiver.wait_frames(1)
            names = {"connected", "queued_bytes", "sent_frames", "dropped_frames", "received_frames"}
            assert {"b": names} == {peer: set(counters) for peer, counters in a.transport.statistics().items()}
            assert (1, 1) == (
                a.transport.statistics()["b"]["sent_frames"],
                b.transport.statistics()["a"]["received_frames"],
            )

    # -- who is who ----------------------------------------------------------------------------------------------------

    @_in_trio
    async def test_each_side_hears_the_others_hello(self) -> None:
        """Dialer and responder are asked to admit the other, with all that it says of itself."""
        async with self.running("a", "b") as (a, b):
            await a.connect(b)
            assert [b.receiver.hello()] == a.receiver.hellos
            assert [a.receiver.hello()] == b.receiver.hellos

    @_in_trio
    async def test_responder_refuses(self) -> None:
        """The dialer hears the responder's sentence, is never connected, and gets in once the responder relents."""
        async with self.running("a", "b") as (a, b):
            b.receiver.admit_with = lambda hello: f"{hello.node_id} has lost its disk"
            a.transport.set_peer("b", b.address)
            await a.receiver.wait_event("refused", "b", times=2)
            assert {("refused", "b", "a has lost its disk")} == set(a.receiver.events)
            assert not a.transport.send("b", b"frame")
            b.receiver.admit_with = lambda hello: None
            await a.receiver.wait_event("connected", "b")

    @_in_trio
    async def test_dialer_refuses(self) -> None:
        """A dialer that will not have the responder tries again now and then; nobody refused the dialer itself."""
        async with self.running("a", "b") as (a, b):
            a.receiver.admit_with = lambda hello: f"{hello.node_id} is of another cluster"
            a.transport.set_peer("b", b.address)
            await a.receiver.wait_until(lambda: len(a.receiver.hellos) >= 2)
            assert [] == a.receiver.events
            assert [] == b.receiver.events
            assert not a.transport.send("b", b"frame")
            a.receiver.admit_with = lambda hello: None
            await a.receiver.wait_event("connected", "b")

    @_in_trio
    async def test_another_peer_at_the_address(self) -> None:
        """Whoever answers under another id than the one dialed is not taken for it."""
        async with self.running("a", "b") as (a, b):
            a.transport.set_peer("c", b.address)
            with trio.move_on_after(0.2):
                await a.receiver.wait_event("connected", "c")
            assert [] == a.receiver.events
            assert not a.transport.send("c", b"frame")

    # -- coming and going ----------------------------------------------------------------------------------------------

    @_in_trio
    async def test_peers_set_before_run_are_dialed(self) -> None:
        """set_peer before run is as good as during it."""
        async with self.running("b") as (b,), trio.open_nursery() as nursery:
            transport, receiver = self.make_transport("a"), RecordingReceiver("a")
            transport.set_peer("b", b.address)

            async def run(task_status: trio.TaskStatus[str]) -> None:
                listen = self.listen_address("a")
                await transport.run(receiver, listen=listen, settings=self.settings, task_status=task_status)

            await nursery.start(run)
            await receiver.wait_event("connected", "b")
            nursery.cancel_scope.cancel()

    @_in_trio
    async def test_reconnects_to_a_restarted_peer(self) -> None:
        """The end of a peer is told once, and so is its return at the same address."""
        async with trio.open_nursery() as nursery:
            a = await self.start(nursery, RecordingReceiver("a"))
            b = await self.start(nursery, RecordingReceiver("b"))
            await a.connect(b)
            await b.stop()
            await a.receiver.wait_event("disconnected", "b")
            assert not a.transport.send("b", b"lost")
            again = await self.start(nursery, RecordingReceiver("b"), listen=b.address)
            await a.receiver.wait_event("connected", "b", times=2)
            assert a.transport.send("b", b"found")
            assert [b"found"] == await again.receiver.wait_frames(1)
            assert ["connected", "disconnected", "connected"] == [event[0] for event in a.receiver.events]
            nursery.cancel_scope.cancel()

    @_in_trio
    async def test_a_forgotten_peer(self) -> None:
        """set_peer(None) drops the connection, and setting it again brings it back."""
        async with self.running("a", "b") as (a, b):
            await a.connect(b)
            a.transport.set_peer("b", None)
            assert not a.transport.send("b", b"dropped")
            assert {} == a.transport.statistics()
            await a.receiver.wait_event("disconnected", "b")
            a.transport.set_peer("b", b.address)
            await a.receiver.wait_event("connected", "b", times=2)
            a.transport.send("b", b"arrives")
            assert [b"arrives"] == await b.receiver.wait_frames(1)

    @_in_trio
    async def test_the_same_address_again_changes_nothing(self) -> None:
        """A membership that names the same address keeps the connection, and a new address ends it."""
        async with self.running("a", "b") as (a, b):
            await a.connect(b)
            a.transport.set_peer("b", b.address)
            a.transport.send("b", b"frame")
            await b.receiver.wait_frames(1)
            assert [("connected", "b")] == a.receiver.events
            await b.stop()
            async with self.running("b") as (moved,):
                a.transport.set_peer("b", moved.address)
                await a.receiver.wait_event("connected", "b", times=2)

    @_in_trio
    async def test_a_cancelled_run_leaves_nothing(self) -> None:
        """Once run has returned its address is free, and whoever it was connected to knows."""
        async with trio.open_nursery() as nursery:
            a = await self.start(nursery, RecordingReceiver("a"))
            b = await self.start(nursery, RecordingReceiver("b"))
            await a.connect(b)
            await b.connect(a)
            await a.stop()
            await b.receiver.wait_event("disconnected", "a")
            await self.start(nursery, RecordingReceiver("a"), listen=a.address)
            nursery.cancel_scope.cancel()

    @_in_trio
    async def test_an_address_that_is_taken(self) -> None:
        """Listening where another one listens is an OSError."""
        async with self.running("a") as (a,):
            with _raises(OSError):
                await self.make_transport("b").run(RecordingReceiver("b"), listen=a.address, settings=self.settings)

    @_in_trio
    async def test_an_address_that_is_none(self) -> None:
        """An address that cannot be understood is a ConfigurationError, to listen on as to dial."""
        transport = self.make_transport("a")
        with _raises(ConfigurationError):
            await transport.run(RecordingReceiver("a"), listen="", settings=self.settings)
        with _raises(ConfigurationError):
            transport.set_peer("b", "")

    @_in_trio
    async def test_a_receiver_that_raises(self) -> None:
        """A bug of the receiver ends run with that error: nobody swallows it."""

        class PlantedError(Exception):
            pass

        def fail(node_id: str, frame: bytes) -> None:
            raise PlantedError

        async with self.running("a") as (a,):
            with _raises(PlantedError):
                async with self.running("b") as (b,):
                    b.receiver.on_frame = fail
                    await a.connect(b)
                    a.transport.send("b", b"frame")
                    await trio.sleep_forever()

    # -- channels ------------------------------------------------------------------------------------------------------

    @_in_trio
    async def test_a_channel_carries_frames_both_ways(self) -> None:
        """Every frame comes whole and in order, and closing is the end for the other side."""
        async with self.running("a", "b") as (a, b):
            ended = trio.Event()
            served: list[str] = []

            async def echo_until_end(node_id: str, channel: Channel) -> None:
                served.append(node_id)
                with contextlib.suppress(trio.EndOfChannel):
                    await _echo(node_id, channel)
                ended.set()

            b.receiver.serve = echo_until_end
            a.transport.set_peer("b", b.address)
            channel = await a.transport.open_channel("b")
            for size in (0, 1, 70_000, self.settings.frame_bytes_max):
                await channel.send(bytes(size))
                assert size == len(await channel.receive())
            await channel.aclose()
            await ended.wait()
            assert ["a"] == served
            with _raises(trio.ClosedResourceError):
                await channel.send(b"")

    @_in_trio
    async def test_a_channel_ends_when_its_server_returns(self) -> None:
        """What was sent is received, then the end."""
        async with self.running("a", "b") as (a, b):

            async def say_two(node_id: str, channel: Channel) -> None:
                await channel.send(b"one")
                await channel.send(b"two")

            b.receiver.serve = say_two
            a.transport.set_peer("b", b.address)
            channel = await a.transport.open_channel("b")
            assert [b"one", b"two"] == [await channel.receive(), await channel.receive()]
            with _raises(trio.EndOfChannel):
                await channel.receive()
            await channel.aclose()

    @_in_trio
    async def test_a_channel_waits_for_a_slow_reader(self) -> None:
        """Sending does not return for ever where nobody receives, and frames go on beside it."""
        async with self.running("a", "b") as (a, b):

            async def never_read(node_id: str, channel: Channel) -> None:
                await trio.sleep_forever()

            b.receiver.serve = never_read
            await a.connect(b)
            channel = await a.transport.open_channel("b")
            stuck = trio.Event()

            async def fill() -> None:
                chunk = bytes(self.settings.frame_bytes_max)
                for _ in range(10_000):
                    with trio.move_on_after(0.2) as scope:
                        await channel.send(chunk)
                    if scope.cancelled_caught:
                        stuck.set()
                        return

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fill)
                a.transport.send("b", b"frame")
                await b.receiver.wait_frames(1)
                await stuck.wait()
            await channel.aclose()

    @_in_trio
    async def test_a_channel_to_nobody(self) -> None:
        """A peer that is unknown, or refuses, or does not listen, is an OSError."""
        async with self.running("a", "b") as (a, b):
            with _raises(OSError):
                await a.transport.open_channel("b")
            b.receiver.admit_with = lambda hello: "not today"
            a.transport.set_peer("b", b.address)
            with _raises(OSError, "not today"):
                await a.transport.open_channel("b")
            await b.stop()
            with _raises(OSError):
                await a.transport.open_channel("b")

    @_in_trio
    async def test_a_channel_does_not_outlive_run(self) -> None:
        """Whoever waits on a channel of a transport that ends, on either side, is told."""
        for stopped in (0, 1):
            async with self.running("a", "b") as peers:
                a, b = peers
                a.transport.set_peer("b", b.address)
                channel = await a.transport.open_channel("b")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(peers[stopped].stop)
                    with _raises((trio.BrokenResourceError, trio.EndOfChannel)):
                        await channel.receive()
                await channel.aclose()

    @_in_trio
    async def test_a_channel_that_breaks_harms_nobody(self) -> None:
        """A server of a channel that raises trio's resource errors ends the channel, not the transport."""
        async with self.running("a", "b") as (a, b):

            async def give_up(node_id: str, channel: Channel) -> None:
                raise trio.BrokenResourceError

            b.receiver.serve = give_up
            await a.connect(b)
            channel = await a.transport.open_channel("b")
            with _raises((trio.BrokenResourceError, trio.EndOfChannel)):
                await channel.receive()
            await channel.aclose()
            a.transport.send("b", b"frame")
            assert [b"frame"] == await b.receiver.wait_frames(1)


@contextlib.contextmanager
def _raises(kind: type[BaseException] | tuple[type[BaseException], ...], text: str = "") -> Iterator[None]:
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
