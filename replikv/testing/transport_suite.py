"""What every transport must do, as tests: subclass ``TransportSuite`` to hold your own transport to them."""

# ruff: noqa: SIM300, ARG001, ARG005 - assertions read expected == actual; callbacks take what they are given

from __future__ import annotations

import functools

import trio

from replikv.errors import ConfigurationError
from replikv.testing.channel_suite import ChannelSuite
from replikv.testing.transport_fixture import RecordingReceiver, RunningTransport, in_trio, raises

__all__ = ["TransportSuite"]


class TransportSuite(ChannelSuite):
    """The contract of ``Transport``, for your own one to be held to.

    In a test module of yours::

        class TestMyTransport(TransportSuite):
            def make_transport(self, node_id):
                return MyTransport(...)

    Each test makes its transports anew, so a network that they share is best made in ``setup_method``.
    """

    # -- frames --------------------------------------------------------------------------------------------------------

    @in_trio
    async def test_frames_arrive_whole_and_in_order(self) -> None:
        """Frames of every size up to the limit arrive as they were sent, under the sender's id."""
        async with self.running("a", "b") as (a, b):
            await a.connect(b)
            sizes = [0, 1, 3, 4, 5, 1000, 65_536, 200_000, self.settings.frame_bytes_max, 2]
            sent = [bytes([number]) * size for number, size in enumerate(sizes)]
            assert all(a.transport.send("b", frame) for frame in sent)
            await b.receiver.wait_frames(len(sent))
            assert [("a", frame) for frame in sent] == b.receiver.frames

    @in_trio
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

    @in_trio
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

    @in_trio
    async def test_send_to_nobody_is_a_drop(self) -> None:
        """Frames for a peer that is unknown, or not connected, are dropped and said to be."""
        async with self.running("a") as (a,):
            assert not a.transport.send("b", b"frame")
            a.transport.set_peer("b", a.address)  # a itself: never admitted as b
            assert not a.transport.send("b", b"frame")
            with trio.move_on_after(0.2):
                await a.receiver.wait_event("connected", "b")
            assert not a.transport.send("b", b"frame")

    @in_trio
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

    @in_trio
    async def test_empty_frames_are_bounded_too(self) -> None:
        """Frames without bytes do not fill the memory either."""
        async with self.running("a", "b") as (a, b):
            await a.connect(b)
            assert any(not a.transport.send("b", b"") for _ in range(self.settings.outbox_bytes_max))

    @in_trio
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

    @in_trio
    async def test_each_side_hears_the_others_hello(self) -> None:
        """Dialer and responder are asked to admit the other, with all that it says of itself."""
        async with self.running("a", "b") as (a, b):
            await a.connect(b)
            assert [b.receiver.hello()] == a.receiver.hellos
            assert [a.receiver.hello()] == b.receiver.hellos

    @in_trio
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

    @in_trio
    async def test_dialer_refuses(self) -> None:
        """A dialer that will not have the responder tells it why, and tries again now and then."""
        async with self.running("a", "b") as (a, b):
            a.receiver.admit_with = lambda hello: f"{hello.node_id} is of another cluster"
            a.transport.set_peer("b", b.address)
            await a.receiver.wait_until(lambda: len(a.receiver.hellos) >= 2)
            await b.receiver.wait_event("turned away", times=2)
            assert [] == a.receiver.events
            assert {("turned away", "a", "b is of another cluster")} == set(b.receiver.events)
            assert not a.transport.send("b", b"frame")
            a.receiver.admit_with = lambda hello: None
            await a.receiver.wait_event("connected", "b")

    @in_trio
    async def test_another_peer_at_the_address(self) -> None:
        """Whoever answers under another id than the one dialed is not taken for it."""
        async with self.running("a", "b") as (a, b):
            a.transport.set_peer("c", b.address)
            with trio.move_on_after(0.2):
                await a.receiver.wait_event("connected", "c")
            assert [] == a.receiver.events
            assert not a.transport.send("c", b"frame")

    # -- coming and going ----------------------------------------------------------------------------------------------

    @in_trio
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

    @in_trio
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

    @in_trio
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

    @in_trio
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

    @in_trio
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

    @in_trio
    async def test_an_address_that_is_taken(self) -> None:
        """Listening where another one listens is an OSError."""
        async with self.running("a") as (a,):
            with raises(OSError):
                await self.make_transport("b").run(RecordingReceiver("b"), listen=a.address, settings=self.settings)

    @in_trio
    async def test_an_address_that_is_none(self) -> None:
        """An address that cannot be understood is a ConfigurationError, to listen on as to dial."""
        transport = self.make_transport("a")
        with raises(ConfigurationError):
            await transport.run(RecordingReceiver("a"), listen="", settings=self.settings)
        with raises(ConfigurationError):
            transport.set_peer("b", "")

    @in_trio
    async def test_a_receiver_thatraises(self) -> None:
        """A bug of the receiver ends run with that error: nobody swallows it."""

        class PlantedError(Exception):
            pass

        def fail(node_id: str, frame: bytes) -> None:
            raise PlantedError

        async with self.running("a") as (a,):
            with raises(PlantedError):
                async with self.running("b") as (b,):
                    b.receiver.on_frame = fail
                    await a.connect(b)
                    a.transport.send("b", b"frame")
                    await trio.sleep_forever()

    @in_trio
    async def test_a_forgotten_peer_notices(self) -> None:
        """set_peer(None) hangs up on the peer's own connection, too: it dials again, and is judged again."""
        async with self.running("a", "b", "c") as (a, b, c):
            await a.connect(b)
            await c.connect(b)
            b.receiver.admit_with = lambda hello: "removed" if hello.node_id == "a" else None
            b.transport.set_peer("a", None)
            a.transport.send("b", b"too late")
            await a.receiver.wait_event("refused", "b", "removed")
            assert ["connected", "disconnected", "refused"] == [event[0] for event in a.receiver.events][:3]
            c.transport.send("b", b"frame")
            assert [b"frame"] == await b.receiver.wait_frames(1)
            assert [("connected", "b")] == c.receiver.events
            b.receiver.admit_with = lambda hello: None
            await a.receiver.wait_event("connected", "b", times=2)
            a.transport.send("b", b"again")
            assert [b"frame", b"again"] == await b.receiver.wait_frames(2)

    @in_trio
    async def test_forgetting_a_peer_that_is_heard(self) -> None:
        """set_peer(None) within receive ends the connection that the frame came over, and nothing else."""
        async with self.running("a", "b") as (a, b):
            b.receiver.on_frame = lambda node_id, frame: b.transport.set_peer(node_id, None)
            await a.connect(b)
            for times in (2, 3):
                a.transport.send("b", b"frame")
                await a.receiver.wait_event("connected", "b", times=times)
            assert [b"frame", b"frame"] == await b.receiver.wait_frames(2)
