"""What every transport must do about channels, as tests; ``TransportSuite`` has them all."""

# ruff: noqa: SIM300, ARG001, ARG005 - assertions read expected == actual; callbacks take what they are given

from __future__ import annotations

import contextlib
import dataclasses
from typing import Final

import trio

from replikv.errors import ConfigurationError
from replikv.testing.transport_fixture import TransportFixture, echo, in_trio, raises
from replikv.transport.base import Channel, Hello

__all__ = ["ChannelSuite"]

STRANGERS_MAX: Final = 1000
"""No transport should serve so many at once."""

CALLER: Final = Hello(cluster_id="", node_id="newcomer", incarnation="incarnation of a newcomer", address="somewhere")
"""What somebody who wants to join says, before it knows which cluster."""


class ChannelSuite(TransportFixture):
    """Channels between peers, and calls of strangers."""

    # -- channels ------------------------------------------------------------------------------------------------------

    @in_trio
    async def test_a_channel_carries_frames_both_ways(self) -> None:
        """Every frame comes whole and in order, and closing is the end for the other side."""
        async with self.running("a", "b") as (a, b):
            ended = trio.Event()
            served: list[str] = []

            async def echo_until_end(node_id: str, channel: Channel) -> None:
                served.append(node_id)
                with contextlib.suppress(trio.EndOfChannel):
                    await echo(node_id, channel)
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
            with raises(trio.ClosedResourceError):
                await channel.send(b"")

    @in_trio
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
            with raises(trio.EndOfChannel):
                await channel.receive()
            await channel.aclose()

    @in_trio
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

    @in_trio
    async def test_a_channel_to_nobody(self) -> None:
        """A peer that is unknown, or refuses, or does not listen, is an OSError."""
        async with self.running("a", "b") as (a, b):
            with raises(OSError):
                await a.transport.open_channel("b")
            b.receiver.admit_with = lambda hello: "not today"
            a.transport.set_peer("b", b.address)
            with raises(OSError, "not today"):
                await a.transport.open_channel("b")
            await b.stop()
            with raises(OSError):
                await a.transport.open_channel("b")

    @in_trio
    async def test_a_channel_does_not_outlive_run(self) -> None:
        """Whoever waits on a channel of a transport that ends, on either side, is told."""
        for stopped in (0, 1):
            async with self.running("a", "b") as peers:
                a, b = peers
                a.transport.set_peer("b", b.address)
                channel = await a.transport.open_channel("b")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(peers[stopped].stop)
                    with raises((trio.BrokenResourceError, trio.EndOfChannel)):
                        await channel.receive()
                await channel.aclose()

    @in_trio
    async def test_a_channel_closed_under_its_receiver(self) -> None:
        """Whoever waits on a channel that its own side closes is told that, not that it broke."""
        async with self.running("a", "b") as (a, b):
            a.transport.set_peer("b", b.address)
            channel = await a.transport.open_channel("b")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.aclose)
                with raises(trio.ClosedResourceError):
                    await channel.receive()

    @in_trio
    async def test_a_channel_that_breaks_harms_nobody(self) -> None:
        """A server of a channel that raises trio's resource errors ends the channel, not the transport."""
        async with self.running("a", "b") as (a, b):

            async def give_up(node_id: str, channel: Channel) -> None:
                raise trio.BrokenResourceError

            b.receiver.serve = give_up
            await a.connect(b)
            channel = await a.transport.open_channel("b")
            with raises((trio.BrokenResourceError, trio.EndOfChannel)):
                await channel.receive()
            await channel.aclose()
            a.transport.send("b", b"frame")
            assert [b"frame"] == await b.receiver.wait_frames(1)

    @in_trio
    async def test_a_channel_of_a_forgotten_peer_breaks(self) -> None:
        """set_peer(None) ends the channels that the peer has opened, on both sides, and no others."""
        async with self.running("a", "b", "c") as (a, b, c):
            broken: list[str] = []

            async def keep_what_breaks(node_id: str, channel: Channel) -> None:
                try:
                    await echo(node_id, channel)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    broken.append(node_id)
                    raise

            b.receiver.serve = keep_what_breaks
            channels: list[Channel] = []
            for opener, server in ((a, b), (c, b), (a, c), (b, c)):
                opener.transport.set_peer(server.receiver.node_id, server.address)
                channels.append(await opener.transport.open_channel(server.receiver.node_id))
                await channels[-1].send(b"frame")
                assert b"frame" == await channels[-1].receive()
            b.transport.set_peer("a", None)
            doomed, *spared = channels
            with raises((trio.BrokenResourceError, trio.EndOfChannel)):
                await doomed.receive()
            for channel in spared:
                await channel.send(b"frame")
                assert b"frame" == await channel.receive()
            assert ["a"] == broken
            for channel in channels:
                await channel.aclose()

    # -- calls ---------------------------------------------------------------------------------------------------------

    @in_trio
    async def test_a_call_without_run(self) -> None:
        """Who does not run yet is served as a stranger: frames go both ways, and nobody was asked to admit anybody."""
        async with self.running("b") as (b,):
            channel = await self.make_transport("a").call(b.address, CALLER, self.settings)
            for size in (0, 1, 70_000, self.settings.frame_bytes_max):
                await channel.send(bytes(size))
                assert size == len(await channel.receive())
            await channel.aclose()
            assert ([CALLER], [], []) == (b.receiver.strangers, b.receiver.hellos, b.receiver.events)
            with raises(trio.ClosedResourceError):
                await channel.send(b"")

    @in_trio
    async def test_who_may_call(self) -> None:
        """Whoever speaks the protocol: no admission, no cluster and no node id stands in the way, not even the own."""
        async with self.running("b") as (b,):
            b.receiver.admit_with = lambda hello: "nobody comes in"
            callers = [
                CALLER,
                dataclasses.replace(CALLER, cluster_id="another"),
                dataclasses.replace(CALLER, cluster_id=b.receiver.cluster_id),
                dataclasses.replace(CALLER, cluster_id=b.receiver.cluster_id, node_id="b"),
            ]
            for caller in callers:
                channel = await self.make_transport("a").call(b.address, caller, self.settings)
                await channel.send(b"frame")
                assert b"frame" == await channel.receive()
                await channel.aclose()
            assert callers == b.receiver.strangers

    @in_trio
    async def test_a_call_beside_run(self) -> None:
        """A call is apart from what the callers' transports run: it outlives them, and set_peer(None), both."""
        async with self.running("a", "b") as (a, b):
            a.receiver.admit_with = lambda hello: "nobody comes in"
            channel = await a.transport.call(b.address, a.receiver.hello(), self.settings)
            b.transport.set_peer("a", None)
            await channel.send(b"frame")
            assert b"frame" == await channel.receive()
            assert [] == a.receiver.hellos
            await a.stop()
            await channel.send(b"frame")
            assert b"frame" == await channel.receive()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(b.stop)
                with raises((trio.BrokenResourceError, trio.EndOfChannel)):
                    await channel.receive()
            await channel.aclose()

    @in_trio
    async def test_a_call_ends_when_its_server_is_done(self) -> None:
        """What was said is received, then the end; one that breaks harms nobody."""
        async with self.running("b") as (b,):
            transport = self.make_transport("a")

            async def say_one(hello: Hello, channel: Channel) -> None:
                await channel.send(b"one")

            async def give_up(hello: Hello, channel: Channel) -> None:
                raise trio.BrokenResourceError

            b.receiver.serve_call = give_up
            channel = await transport.call(b.address, CALLER, self.settings)
            with raises((trio.BrokenResourceError, trio.EndOfChannel)):
                await channel.receive()
            await channel.aclose()
            b.receiver.serve_call = say_one
            channel = await transport.call(b.address, CALLER, self.settings)
            assert b"one" == await channel.receive()
            with raises(trio.EndOfChannel):
                await channel.receive()
            await channel.aclose()

    @in_trio
    async def test_a_call_to_nobody(self) -> None:
        """Where nobody listens it is an OSError that names the address; what is no address, a ConfigurationError."""
        async with self.running("b") as (b,):
            await b.stop()
            transport = self.make_transport("a")
            with raises(OSError, b.address):
                await transport.call(b.address, CALLER, self.settings)
            with raises(ConfigurationError):
                await transport.call("", CALLER, self.settings)

    @in_trio
    async def test_strangers_are_bounded(self) -> None:
        """Too many callers are refused in words, peers come in meanwhile, and callers again once one has gone."""
        async with self.running("a", "b") as (a, b):
            caller = self.make_transport("c")
            channels: list[Channel] = []

            async def call() -> None:
                channels.append(await caller.call(b.address, CALLER, self.settings))

            with raises(OSError):
                for _ in range(STRANGERS_MAX):
                    await call()
            await a.connect(b)
            await b.receiver.wait_until(lambda: len(b.receiver.strangers) >= len(channels))
            served = len(channels)
            assert served == len(b.receiver.strangers)
            await channels.pop().aclose()
            while len(channels) < served:
                with contextlib.suppress(OSError):
                    await call()
            for channel in channels:
                await channel.aclose()
