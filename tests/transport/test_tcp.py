"""TCP on real loopback sockets, against peers that misbehave."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from replikv.errors import InternalError
from replikv.settings import Settings
from replikv.testing.transport_fixture import RecordingReceiver
from replikv.transport.addresses import parse_address
from replikv.transport.base import Channel, Hello
from replikv.transport.connection import Connection, ConnectionLostError, tune
from replikv.transport.handshake import CALL, CHANNEL, FRAMES, Initiator, Responder
from replikv.transport.links import STRANGERS_MAX
from replikv.transport.tcp import CHANNELS_PER_PEER_MAX, HANDSHAKES_MAX, TcpTransport
from replikv.transport.wire import RefusedError, encode_frames

SETTINGS = Settings(reconnect_delay_s=0.005, reconnect_delay_max_s=0.02, connect_timeout_s=5.0)
IMPATIENT = dataclasses.replace(SETTINGS, connect_timeout_s=0.2)
PATIENT = dataclasses.replace(SETTINGS, connect_timeout_s=60.0)
STRANGER = RecordingReceiver("stranger").hello()


DEADLINE_S = 10.0
"""Ends a test that hangs."""


@contextlib.asynccontextmanager
async def serving(
    settings: Settings = SETTINGS, listen: str = "127.0.0.1:0"
) -> AsyncIterator[tuple[TcpTransport, RecordingReceiver, str]]:
    """A transport of node "a", its receiver and its address."""
    transport, receiver = TcpTransport(), RecordingReceiver("a")

    async def run(task_status: trio.TaskStatus[str]) -> None:
        await transport.run(receiver, listen=listen, settings=settings, task_status=task_status)

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            yield transport, receiver, await nursery.start(run)
            nursery.cancel_scope.cancel()


async def dial(address: str) -> trio.SocketStream:
    return await trio.open_tcp_stream(*parse_address(address))


async def dial_admitted(address: str, purpose: str = FRAMES, hello: Hello = STRANGER) -> trio.SocketStream:
    """A connection that the transport has admitted."""
    stream = await dial(address)
    try:
        await Connection(stream).shake_hands(Initiator(hello, purpose, lambda hello: None))
    except BaseException:
        await stream.aclose()
        raise
    return stream


@contextlib.asynccontextmanager
async def raw_peer() -> AsyncIterator[tuple[str, trio.SocketListener]]:
    """A listener that does what the test does with it."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}", listener


async def accept_admitted(listener: trio.SocketListener, node_id: str) -> trio.SocketStream:
    """The next connection, admitted under this node id."""
    stream = await listener.accept()
    hello = RecordingReceiver(node_id).hello()
    await Connection(stream).shake_hands(Responder(hello, lambda hello, purpose: None))
    return stream


async def wait_closed(stream: trio.SocketStream) -> bytes:
    """What the other side still said before it closed."""
    said = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await stream.receive_some():
            said += data
    return said


# -- strangers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\xff" * 100_000,
        struct.pack(">I", 4097),
        encode_frames([b""]),
        encode_frames([b"replikv\n\xa0"]),
        encode_frames([b"replikv\n" + b"\x9f" * 4000]),
    ],
    ids=["http", "ones", "too long", "empty", "empty map", "deep"],
)
async def test_garbage_is_hung_up_on(said: bytes) -> None:
    """Whoever does not speak the protocol is cut off without a word, and peers go on being served."""
    async with serving() as (_, receiver, address):
        async with await dial(address) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(said)
            assert b"" == await wait_closed(stream)
        async with await dial_admitted(address) as stream:
            await stream.send_all(encode_frames([b"frame"]))
            assert [b"frame"] == await receiver.wait_frames(1)


async def test_tls_where_there_is_none() -> None:
    """Whoever begins with TLS is told so as TLS says it."""
    async with serving() as (_, _, address), await dial(address) as stream:
        await stream.send_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert b"\x15\x03\x01\x00\x02\x02\x46" == await wait_closed(stream)


async def test_a_handshake_may_drip() -> None:
    """A hello that arrives byte by byte is as good as any, and frames may come in the packet of the proof."""
    async with serving() as (_, receiver, address), await dial(address) as stream:
        handshake = Initiator(STRANGER, FRAMES, lambda hello: None)
        for byte in handshake.start():
            await stream.send_all(bytes([byte]))
        challenge = bytes(await stream.receive_some())
        await stream.send_all(handshake.receive(challenge[4:]) + encode_frames([b"frame"]))
        assert [b"frame"] == await receiver.wait_frames(1)


async def test_wrong_version() -> None:
    """A peer of another version range is told both ranges, and not admitted."""
    async with serving() as (_, receiver, address), await dial(address) as stream:
        future = dataclasses.replace(STRANGER, protocol_min=8, protocol_max=9)
        with pytest.raises(RefusedError, match=r"1 to 1.*8 to 9"):
            await Connection(stream).shake_hands(Initiator(future, FRAMES, lambda hello: None))
        assert [] == receiver.hellos


@pytest.mark.parametrize("said", [b"", b"\x00", struct.pack(">I", 4096) + b"replikv\n"], ids=["none", "some", "more"])
async def test_a_handshake_that_never_ends(said: bytes) -> None:
    """Whoever stalls in the handshake is cut off after connect_timeout_s."""
    async with serving(IMPATIENT) as (_, _, address), await dial(address) as stream:
        if said:
            await stream.send_all(said)
        began = trio.current_time()
        assert b"" == await wait_closed(stream)
        assert 0.1 < trio.current_time() - began < 2.0


async def test_silent_connections_do_not_keep_peers_out() -> None:
    """Of too many that do not finish their handshake the oldest go at once, one for each, and a peer still gets in."""
    async with serving(PATIENT) as (_, receiver, address), contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(await dial(address)) for _ in range(HANDSHAKES_MAX + 5)]
        for oldest in silent[:5]:
            assert b"" == await wait_closed(oldest)
        stream = await stack.enter_async_context(await dial_admitted(address))
        await stream.send_all(encode_frames([b"frame"]))
        assert [b"frame"] == await receiver.wait_frames(1)
        assert b"" == await wait_closed(silent[5])
        await expect_open(silent[6], silent[-1])


async def test_who_has_finished_keeps_nobody_out() -> None:
    """However many were admitted since: the bound is on those that are not."""
    async with serving(PATIENT) as (_, _, address), await dial(address) as slow:
        for _ in range(HANDSHAKES_MAX + 1):
            async with await dial_admitted(address):
                pass
        await expect_open(slow)
        await Connection(slow).shake_hands(Initiator(STRANGER, FRAMES, lambda hello: None))


async def expect_open(*streams: trio.SocketStream) -> None:
    """What has closed them would have by now."""
    await trio.testing.wait_all_tasks_blocked()
    for stream in streams:
        with trio.move_on_after(0) as scope:
            await wait_closed(stream)
        assert scope.cancelled_caught


# -- admitted peers that misbehave -------------------------------------------------------------------------------------


async def test_an_oversize_frame_ends_the_connection() -> None:
    """A header over the limit is enough to be cut off: its frame is not waited for."""
    async with serving() as (_, receiver, address), await dial_admitted(address) as stream:
        await stream.send_all(encode_frames([b"good"]) + struct.pack(">I", SETTINGS.frame_bytes_max + 1))
        assert b"" == await wait_closed(stream)
        assert len(receiver.frames) <= 1


async def test_a_newer_connection_takes_the_place_of_the_older() -> None:
    """A peer that dials again has lost its first connection, even where that one looks alive (half-open)."""
    async with (
        serving() as (_, receiver, address),
        await dial_admitted(address) as older,
        await dial_admitted(address) as newer,
    ):
        assert b"" == await wait_closed(older)
        await newer.send_all(encode_frames([b"newer"]))
        assert [b"newer"] == await receiver.wait_frames(1)


async def test_a_responder_that_talks() -> None:
    """Bytes on the connection that is ours to send on end it; the peer is dialed again."""
    async with serving() as (transport, receiver, _), raw_peer() as (address, listener):
        transport.set_peer("b", address)
        async with await accept_admitted(listener, "b") as stream:
            await stream.send_all(b"?")
            await receiver.wait_event("disconnected", "b")
        async with await accept_admitted(listener, "b"):
            await receiver.wait_event("connected", "b", times=2)


async def test_a_peer_that_hangs_up_is_noticed_at_once() -> None:
    """The end of a connection that nothing is being sent on is noticed without sending."""
    async with serving() as (transport, receiver, _), raw_peer() as (address, listener):
        transport.set_peer("b", address)
        async with await accept_admitted(listener, "b"):
            await receiver.wait_event("connected", "b")
        await receiver.wait_event("disconnected", "b")


async def test_a_slow_peer_delays_nobody_and_is_bounded() -> None:
    """A peer that reads nothing fills its outbox to the bound; another one's frames go on meanwhile."""
    async with serving() as (a, receiver, _), serving_as("b") as (other, b_address), raw_peer() as (address, listener):
        a.set_peer("slow", address)
        async with await accept_admitted(listener, "slow"):
            await receiver.wait_event("connected", "slow")
            a.set_peer("b", b_address)
            await receiver.wait_event("connected", "b")
            frame = bytes(SETTINGS.frame_bytes_max)
            while a.send("slow", frame):
                await trio.lowlevel.checkpoint()
            assert SETTINGS.outbox_bytes_max // 2 < a.statistics()["slow"]["queued_bytes"] <= SETTINGS.outbox_bytes_max
            a.send("b", b"frame")
            assert [b"frame"] == await other.wait_frames(1)
            assert not a.send("slow", frame)
            assert 0 == a.statistics()["b"]["dropped_frames"]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="no TCP_USER_TIMEOUT on this system")
async def test_a_connection_that_takes_nothing_dies() -> None:
    """A half-open connection, frames queued, is given up after about connect_timeout_s, and what it held is freed."""
    async with serving(IMPATIENT) as (transport, receiver, _), raw_peer() as (address, listener):
        transport.set_peer("b", address)
        async with await accept_admitted(listener, "b"):
            await receiver.wait_event("connected", "b")
            for _ in range(3):
                transport.send("b", bytes(SETTINGS.frame_bytes_max))
            await receiver.wait_event("disconnected", "b")
            assert 0 == transport.statistics()["b"]["queued_bytes"]


@contextlib.asynccontextmanager
async def serving_as(node_id: str) -> AsyncIterator[tuple[RecordingReceiver, str]]:
    """Another peer that behaves."""
    receiver = RecordingReceiver(node_id)

    async def run(task_status: trio.TaskStatus[str]) -> None:
        await TcpTransport().run(receiver, listen="127.0.0.1:0", settings=SETTINGS, task_status=task_status)

    async with trio.open_nursery() as nursery:
        yield receiver, await nursery.start(run)
        nursery.cancel_scope.cancel()


# -- dialing -----------------------------------------------------------------------------------------------------------


async def test_a_responder_that_never_answers() -> None:
    """A dial gives up after connect_timeout_s, in words for a channel."""
    async with serving(IMPATIENT) as (transport, _, _), raw_peer() as (address, _):
        transport.set_peer("b", address)
        with pytest.raises(OSError, match=r"did not answer within 0\.2 s"):
            await transport.open_channel("b")


async def test_a_port_that_nobody_listens_on() -> None:
    """Nobody there is said with the reason of the system."""
    async with serving() as (transport, _, _):
        async with raw_peer() as (address, _):
            pass
        transport.set_peer("b", address)
        with pytest.raises(OSError, match=r"cannot be reached: .*refused"):
            await transport.open_channel("b")


async def test_a_frame_over_the_limit_is_our_bug() -> None:
    """What the other side would cut us off for is not sent."""
    async with serving() as (transport, receiver, _), raw_peer() as (address, listener):
        transport.set_peer("b", address)
        async with await accept_admitted(listener, "b"):
            await receiver.wait_event("connected", "b")
            with pytest.raises(InternalError, match="frame_bytes_max"):
                transport.send("b", bytes(SETTINGS.frame_bytes_max + 1))
    async with serving() as (transport, _, _), serving_as("b") as (_, address):
        channel = await transport.call(address, STRANGER, SETTINGS)
        with pytest.raises(InternalError, match="a channel's frame of"):
            await channel.send(bytes(SETTINGS.frame_bytes_max + 1))
        await channel.aclose()


# -- listening ---------------------------------------------------------------------------------------------------------


async def test_a_name_is_listened_on_at_all_its_addresses() -> None:
    """A name with a free port has the same port at each of its addresses, and keeps its name."""
    async with serving(listen="localhost:0") as (_, receiver, address):
        host, port = parse_address(address)
        assert "localhost" == host
        reached = 0
        for resolved in {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}:
            with contextlib.suppress(OSError):  # ::1 where IPv6 is switched off
                async with await trio.open_tcp_stream(resolved, port) as stream:
                    await Connection(stream).shake_hands(Initiator(STRANGER, FRAMES, lambda hello: None))
                    reached += 1
        assert reached == len(receiver.hellos)
        assert reached >= 1


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "no-such-host.invalid:7001"])
async def test_an_address_of_somebody_else(listen: str) -> None:
    """What cannot be bound is an OSError that names it."""
    with pytest.raises(OSError, match=f"cannot listen on {listen.rpartition(':')[0]}"):
        await TcpTransport().run(RecordingReceiver("a"), listen=listen, settings=SETTINGS)


@pytest.mark.skipif(sys.platform != "linux", reason="the options have other names elsewhere")
async def test_sockets_are_tuned() -> None:
    """No Nagle, keepalive on, and silence ends a connection after the seconds asked for."""
    async with raw_peer() as (address, _), await dial(address) as stream:
        tune(stream, 5.0)
        options = {
            name: stream.getsockopt(level, option)
            for name, level, option in (
                ("nodelay", socket.IPPROTO_TCP, socket.TCP_NODELAY),
                ("keepalive", socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                ("idle_s", socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                ("silence_ms", socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            )
        }
        assert {"nodelay": 1, "keepalive": 1, "idle_s": 2, "silence_ms": 5000} == options
    with pytest.raises(ConnectionLostError):
        tune(stream, 5.0)


# -- channels ----------------------------------------------------------------------------------------------------------


async def test_a_channel_that_ends_within_a_frame_is_broken() -> None:
    """Half a frame and then the end is no clean end."""
    async with serving() as (_, receiver, address):
        outcome: list[str] = []
        ended = trio.Event()

        async def receive(node_id: str, channel: Any) -> None:
            try:
                await channel.receive()
            except (trio.BrokenResourceError, trio.EndOfChannel) as exc:
                outcome.append(type(exc).__name__)
            ended.set()

        receiver.serve = receive
        for said in (encode_frames([b"frame"])[:-1], b""):
            async with await dial_admitted(address, CHANNEL) as stream:
                await stream.send_all(said)
            await ended.wait()
            ended = trio.Event()
        assert ["BrokenResourceError", "EndOfChannel"] == outcome


async def test_a_channel_that_comes_too_late() -> None:
    """A dial that is answered when the transport has stopped gives no channel, and leaves no connection."""
    transport = TcpTransport()

    async def run(task_status: trio.TaskStatus[str]) -> None:
        await transport.run(RecordingReceiver("a"), listen="127.0.0.1:0", settings=PATIENT, task_status=task_status)

    async def open_channel() -> None:
        with pytest.raises(OSError, match="the transport has stopped"):
            await transport.open_channel("b")

    with trio.fail_after(DEADLINE_S):
        async with raw_peer() as (address, listener), trio.open_nursery() as opening:
            transport.set_peer("b", address)
            async with trio.open_nursery() as running:
                await running.start(run)
                of_the_link = await listener.accept()
                opening.start_soon(open_channel)
                of_the_channel = await listener.accept()
                running.cancel_scope.cancel()
            async with of_the_link, of_the_channel:
                hello = RecordingReceiver("b").hello()
                await Connection(of_the_channel).shake_hands(Responder(hello, lambda hello, purpose: None))
                assert b"" == await wait_closed(of_the_channel)


async def test_channels_of_a_peer_are_bounded() -> None:
    """One more than CHANNELS_PER_PEER_MAX is refused, and there is room again when one is closed."""
    async with serving() as (_, _, address), contextlib.AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(await dial_admitted(address, CHANNEL)) for _ in range(CHANNELS_PER_PEER_MAX)
        ]
        with pytest.raises(RefusedError, match="channels open already"):
            await dial_admitted(address, CHANNEL)
        async with await dial_admitted(address, CHANNEL, dataclasses.replace(STRANGER, node_id="another")):
            pass
        await streams[0].send_eof()
        assert b"" == await wait_closed(streams[0])
        async with await dial_admitted(address, CHANNEL):
            pass


async def test_a_forgotten_peer_is_hung_up_on_at_once() -> None:
    """What a peer has sent and we have not read when it is dropped, is not heard any more."""
    async with serving() as (transport, receiver, address), await dial_admitted(address) as stream:
        await stream.send_all(encode_frames([b"before"]))
        assert [b"before"] == await receiver.wait_frames(1)
        os.write(
            stream.socket.fileno(), encode_frames([b"after"])
        )  # no checkpoint: it is there, and nobody has read it
        transport.set_peer("stranger", None)
        assert b"" == await wait_closed(stream)
        assert [("stranger", b"before")] == receiver.frames


async def test_a_forgotten_peer_waits_for_no_server() -> None:
    """Its channel is closed while whoever serves it is at something else; that one ends by itself, and run goes on."""
    async with serving() as (transport, receiver, address):
        done, outcome = trio.Event(), list[str]()

        async def busy(node_id: str, channel: Channel) -> None:
            await done.wait()
            try:
                await channel.send(b"frame")
            except trio.BrokenResourceError:
                outcome.append(node_id)
                raise

        receiver.serve = busy
        async with await dial_admitted(address, CHANNEL) as stream:
            transport.set_peer("stranger", None)
            assert b"" == await wait_closed(stream)
        done.set()
        async with await dial_admitted(address) as stream:
            await stream.send_all(encode_frames([b"frame"]))
            assert [b"frame"] == await receiver.wait_frames(1)
        assert ["stranger"] == outcome


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_callers_at_once_are_bounded() -> None:
    """Of many that call at the same time exactly STRANGERS_MAX are served; the others hear why not."""
    async with serving() as (_, receiver, address):
        channels, refusals = list[Channel](), list[str]()

        async def call() -> None:
            try:
                channels.append(await TcpTransport().call(address, STRANGER, SETTINGS))
            except OSError as exc:
                refusals.append(str(exc))

        async with trio.open_nursery() as nursery:
            for _ in range(2 * STRANGERS_MAX):
                nursery.start_soon(call)
        assert (STRANGERS_MAX, STRANGERS_MAX) == (len(channels), len(refusals))
        assert all(f"{STRANGERS_MAX} strangers are being answered already" in refusal for refusal in refusals)
        for purpose in (FRAMES, CHANNEL):  # as a member
            async with await dial_admitted(address, purpose):
                pass
        for channel in channels:
            await channel.aclose()
        assert [STRANGER] * STRANGERS_MAX == receiver.strangers


async def test_callers_take_no_room_from_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONNECTIONS_MAX counts members only."""
    monkeypatch.setattr("replikv.transport.tcp.CONNECTIONS_MAX", 1)
    async with (
        serving() as (_, _, address),
        await dial_admitted(address, CALL),
        await dial_admitted(address),
        await dial_admitted(address, CALL),
    ):
        with pytest.raises(RefusedError, match="1 connections are open already"):
            await dial_admitted(address, CHANNEL)


async def test_a_call_to_another_version() -> None:
    """Versions are agreed on as for members, and a refusal is an OSError in the responder's words."""
    async with serving() as (transport, receiver, address):
        future = dataclasses.replace(STRANGER, protocol_min=8, protocol_max=9)
        with pytest.raises(OSError, match=f"no call to {address}: .*1 to 1.*8 to 9"):
            await transport.call(address, future, SETTINGS)
        assert [] == receiver.strangers


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (None, r"did not answer within 0\.2 s"),
        (b"", "hung up during the handshake"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the limit is 4096"),
        (encode_frames([b"hello"]), "not a replikv peer"),
    ],
    ids=["nothing", "hangs up", "http", "frame"],
)
async def test_a_call_to_who_is_no_peer(said: bytes | None, words: str) -> None:
    """Whatever listens there, a call ends within connect_timeout_s, in words, and its connection is closed."""
    with trio.fail_after(DEADLINE_S):
        async with raw_peer() as (address, listener), trio.open_nursery() as nursery:

            async def answer() -> None:
                async with await listener.accept() as stream:
                    hello = await stream.receive_some()
                    if said is not None:
                        await stream.send_all(said)
                        with contextlib.suppress(trio.BrokenResourceError):
                            await stream.send_eof()
                    assert hello
                    assert b"" == await wait_closed(stream)

            nursery.start_soon(answer)
            with pytest.raises(OSError, match=words):
                await TcpTransport().call(address, STRANGER, IMPATIENT)


async def test_a_call_that_is_cancelled_leaves_nothing() -> None:
    """The other side sees the connection closed."""
    with trio.fail_after(DEADLINE_S):
        async with raw_peer() as (address, listener), trio.open_nursery() as nursery:
            nursery.start_soon(TcpTransport().call, address, STRANGER, SETTINGS)
            async with await listener.accept() as stream:
                await stream.receive_some()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    assert b"" == await wait_closed(stream)


async def test_a_caller_that_misbehaves() -> None:
    """A frame over the limit ends the call, and only that."""
    async with serving() as (_, receiver, address):
        async with await dial_admitted(address, CALL) as stream:
            await stream.send_all(struct.pack(">I", SETTINGS.frame_bytes_max + 1))
            assert b"" == await wait_closed(stream)
        async with await dial_admitted(address) as stream:
            await stream.send_all(encode_frames([b"frame"]))
            assert [b"frame"] == await receiver.wait_frames(1)
