"""Secrets and TLS over real sockets: credentials that are right, wrong, expired, missing, and bytes that change."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from certificates import OTHER_AUTHORITY, TOMORROW, YESTERDAY, anonymous_contexts, contexts, single_context

from replikv.errors import AuthenticationError, ConfigurationError
from replikv.settings import Settings
from replikv.testing.transport_fixture import RecordingReceiver
from replikv.transport.addresses import parse_address
from replikv.transport.authentication import Sealer, SharedSecret
from replikv.transport.connection import Connection, ConnectionLostError
from replikv.transport.handshake import CALL, CHANNEL, FRAMES, Initiator
from replikv.transport.tcp import HANDSHAKES_MAX, TcpTransport
from replikv.transport.tls import TlsContexts
from replikv.transport.wire import DeclinedError, RefusedError, UnauthenticatedError, encode_frames

SETTINGS = Settings(reconnect_delay_s=0.005, reconnect_delay_max_s=0.02, connect_timeout_s=5.0)
IMPATIENT = dataclasses.replace(SETTINGS, connect_timeout_s=0.3)
SECRET, OTHER = "a secret for this test only", "a secret for another test only"
STRANGER = RecordingReceiver("stranger").hello()
DEADLINE_S = 10.0

LAST_WEEK, NEXT_WEEK = YESTERDAY - (TOMORROW - YESTERDAY) * 3, TOMORROW + (TOMORROW - YESTERDAY) * 3
EXPIRED = contexts(not_before=LAST_WEEK, not_after=YESTERDAY)
NOT_YET = contexts(not_before=TOMORROW, not_after=NEXT_WEEK)
FOREIGN = contexts(authority=OTHER_AUTHORITY)
TRUSTING_OTHERS = contexts(trusted=OTHER_AUTHORITY)

Peer = tuple[TcpTransport, RecordingReceiver, str]


@contextlib.asynccontextmanager
async def serving(node_id: str, settings: Settings = SETTINGS, **credentials: Any) -> AsyncIterator[Peer]:
    """A transport with these credentials, its receiver and its address."""
    transport, receiver = TcpTransport(**credentials), RecordingReceiver(node_id)

    async def run(task_status: trio.TaskStatus[str]) -> None:
        await transport.run(receiver, listen="127.0.0.1:0", settings=settings, task_status=task_status)

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            yield transport, receiver, await nursery.start(run)
            nursery.cancel_scope.cancel()


async def wait_closed(stream: trio.abc.ReceiveStream) -> bytes:
    """What the other side still said before it closed."""
    said = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await stream.receive_some():
            said += data
    return said


@contextlib.asynccontextmanager
async def proxy(target: str) -> AsyncIterator[tuple[str, list[Any]]]:
    """An address that leads to the target, and a list to which functions of bytes are put that change what passes from
    the dialer to the target; None cuts the connection.
    """
    changes: list[Any] = []

    async def pump(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope, changing: bool) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := bytes(await source.receive_some()):
                if changing and changes:
                    change = changes.pop(0)
                    if change is None:
                        break
                    data = change(data)
                await sink.send_all(data)
        both.cancel()

    async def serve(near: trio.SocketStream) -> None:
        async with near, await trio.open_tcp_stream(*parse_address(target)) as far, trio.open_nursery() as nursery:
            nursery.start_soon(pump, near, far, nursery.cancel_scope, True)
            nursery.start_soon(pump, far, near, nursery.cancel_scope, False)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}", changes
        nursery.cancel_scope.cancel()


# -- credentials -------------------------------------------------------------------------------------------------------

MISMATCHES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another secret": ({"secret": SECRET}, {"secret": OTHER}, "do not know the same secret"),
    "no secret here": ({}, {"secret": SECRET}, "authenticates by 'hmac-sha256'"),
    "no secret there": ({"secret": SECRET}, {}, "authenticates by 'none'"),
    "certificate of another authority here": ({"tls": FOREIGN}, {"tls": contexts()}, "not accept our certificate"),
    "certificate of another authority there": ({"tls": contexts()}, {"tls": FOREIGN}, "unable to get local issuer"),
    "another authority is trusted here": ({"tls": TRUSTING_OTHERS}, {"tls": contexts()}, "certificate is not accepted"),
    "expired here": ({"tls": EXPIRED}, {"tls": contexts()}, "not accept our certificate.*EXPIRED"),
    "expired there": ({"tls": contexts()}, {"tls": EXPIRED}, "certificate has expired"),
    "not yet valid here": ({"tls": NOT_YET}, {"tls": contexts()}, "not accept our certificate"),
    "not yet valid there": ({"tls": contexts()}, {"tls": NOT_YET}, "not yet valid"),
    "no certificate here": ({"tls": anonymous_contexts()}, {"tls": contexts()}, "CERTIFICATE_REQUIRED"),
    "no certificate there": ({"tls": contexts()}, {"tls": anonymous_contexts()}, "not accept our certificate, or our"),
    "TLS is right, the secret is not": (
        {"tls": contexts(), "secret": SECRET},
        {"tls": contexts(), "secret": OTHER},
        "do not know the same secret",
    ),
    "TLS is right, the secret missing": (
        {"tls": contexts()},
        {"tls": contexts(), "secret": SECRET},
        "authenticates by",
    ),
    "the secret is right, TLS is not": (
        {"tls": FOREIGN, "secret": SECRET},
        {"tls": contexts(), "secret": SECRET},
        "not accept our certificate",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
async def test_wrong_expired_and_missing_credentials(name: str) -> None:
    """No kind of connection comes to be; the dialer is told why, nobody is admitted, and no frame is heard."""
    ours, theirs, words = MISMATCHES[name]
    async with serving("a", **ours) as (a, receiver, _), serving("b", **theirs) as (_, other, address):
        with pytest.raises(AuthenticationError, match=rf"no call to {address}: .*{words}"):
            await a.call(address, STRANGER, SETTINGS)
        a.set_peer("b", address)
        with pytest.raises(AuthenticationError, match=f"no channel to b: .*{words}"):
            await a.open_channel("b")
        await receiver.wait_event("refused", "b")
        assert not a.send("b", b"frame")
        assert receiver.events[0][2].startswith("not authenticated: ")
        assert ([], [], []) == (other.hellos, other.frames, other.strangers)
        assert [] == receiver.hellos
        assert {"refused"} == {event[0] for event in receiver.events}
        assert [] == other.events


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"tls": contexts()}),
        ({"tls": contexts()}, {}),
        ({"secret": SECRET}, {"secret": SECRET, "tls": contexts()}),
        ({"secret": SECRET, "tls": contexts()}, {"secret": SECRET}),
    ],
    ids=["plain to TLS", "TLS to plain", "secret to TLS", "TLS to secret"],
)
async def test_tls_on_one_side_only(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Nothing comes of it, and the dialer is told so in words that it understands."""
    async with serving("a", **ours) as (a, _, _), serving("b", **theirs) as (_, other, address):
        with pytest.raises(AuthenticationError, match=f"no call to {address}: .*(speaks TLS|not accept .* our TLS)"):
            await a.call(address, STRANGER, SETTINGS)
        assert ([], [], []) == (other.hellos, other.strangers, other.events)


@pytest.mark.parametrize(
    "credentials",
    [
        {"secret": SECRET},
        {"tls": contexts()},
        {"tls": single_context()},
        {"tls": contexts(), "secret": [OTHER, SECRET]},
    ],
    ids=["secret", "TLS", "one context", "both"],
)
async def test_right_credentials(credentials: dict[str, Any]) -> None:
    """Frames, a channel and a call."""
    async with serving("a", **credentials) as (a, receiver, _), serving("b", **credentials) as (_, other, address):
        a.set_peer("b", address)
        await receiver.wait_event("connected", "b")
        frames = [bytes([number]) * size for number, size in enumerate((0, 1, 100, 70_000, 3_000_000, 5))]
        assert all(a.send("b", frame) for frame in frames)
        assert frames == await other.wait_frames(len(frames))
        for channel in (await a.open_channel("b"), await a.call(address, STRANGER, SETTINGS)):
            for frame in (b"", b"x" * 1_000_000):
                await channel.send(frame)
                assert frame == await channel.receive()
            await channel.aclose()


# -- identity ----------------------------------------------------------------------------------------------------------


async def test_names_in_certificates() -> None:
    """With tls_names a certificate is good for its node id only, in both directions and for calls."""
    strict: dict[str, Any] = {"tls_names": True}
    async with (
        serving("a", tls=contexts("a", "also-a"), **strict) as (a, receiver, a_address),
        serving("b", tls=contexts("b"), **strict) as (b, other, b_address),
        serving("liar", tls=contexts("a"), **strict) as (liar, lied, _),
    ):
        a.set_peer("b", b_address)
        await receiver.wait_event("connected", "b")
        liar.set_peer("b", b_address)
        await lied.wait_event("refused", "b", "'liar' has shown a certificate for a, localhost, not for 'liar'")
        with pytest.raises(OSError, match="not for 'liar'"):
            await liar.open_channel("b")
        with pytest.raises(OSError, match="not for 'stranger'"):
            await liar.call(b_address, STRANGER, SETTINGS)
        b.set_peer("liar", a_address)  # a answers there, and its certificate is for another name
        with pytest.raises(OSError, match="dialed as liar and is a"):
            await b.open_channel("liar")
        assert "liar" not in {hello.node_id for hello in other.hellos}


@pytest.mark.parametrize(
    ("certificate", "node_id"), [("bb", "b"), ("b", "bb"), ("b", ""), ("*.b", "a.b"), ("b", "127.0.0.1")]
)
async def test_a_name_is_the_whole_name(certificate: str, node_id: str) -> None:
    """Not a part of one, nor what a pattern fits, nor the address that a certificate is for as well."""
    async with serving("a", tls=contexts("a"), tls_names=True) as (_, receiver, address):
        async with Connection(await trio.open_tcp_stream(*parse_address(address))) as connection:
            await connection.start_tls(TlsContexts(contexts(certificate), names=False).dial("127.0.0.1"))
            hello = dataclasses.replace(STRANGER, node_id=node_id)
            with pytest.raises(RefusedError, match=f"not for '{node_id}'"):
                await connection.shake_hands(Initiator(hello, FRAMES, lambda theirs: None))
        assert [] == receiver.hellos


async def test_a_certificate_without_a_name_is_for_nobody() -> None:
    """One that is for an address alone is trusted, and says nothing about who comes with it."""
    async with serving("a", tls=contexts("a"), tls_names=True) as (_, receiver, address):
        async with Connection(await trio.open_tcp_stream(*parse_address(address))) as connection:
            await connection.start_tls(TlsContexts(single_context(), names=False).dial("127.0.0.1"))
            with pytest.raises(RefusedError, match="'stranger' has shown a certificate for no name"):
                await connection.shake_hands(Initiator(STRANGER, FRAMES, lambda theirs: None))
        assert [] == receiver.hellos


@pytest.mark.parametrize("host", ["", ".b"])
def test_a_host_that_no_certificate_could_be_for(host: str) -> None:
    """A failed dial like any, and nothing worse."""
    with pytest.raises(UnauthenticatedError, match="is no name that a certificate could have"):
        TlsContexts(contexts(), names=False).dial(host)


async def test_who_answers_under_anothers_name() -> None:
    """A responder is judged by its certificate before it is asked for anything, and its refusals count for nothing."""
    async with (
        serving("a", tls=contexts("a"), tls_names=True) as (a, receiver, _),
        serving("b", tls=contexts("x")) as (_, _, address),
    ):
        a.set_peer("b", address)
        with pytest.raises(OSError, match="'b' has shown a certificate for x, localhost, not for 'b'"):
            await a.open_channel("b")
        assert [] == receiver.hellos


async def test_a_member_may_not_speak_for_another() -> None:
    """Whoever has a certificate, but not this one, has nothing to say about who was removed."""
    async with serving("a", tls=contexts("a"), tls_names=True) as (a, receiver, _), trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def refuse(stream: trio.SocketStream) -> None:
            async with Connection(stream) as connection:
                await connection.start_tls(TlsContexts(contexts("x"), names=False).accept())
                await connection.receive()
                body = b"replikv\n\xa2dkindgrefusalfreasonkremoved: ha"
                await connection.send(connection.encode([body]))
                await connection.receive()

        nursery.start_soon(trio.serve_listeners, refuse, [listener])
        a.set_peer("b", f"127.0.0.1:{listener.socket.getsockname()[1]}")
        await receiver.wait_event("refused", "b")
        assert receiver.events[0][2].startswith("not authenticated: ")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("certificate", "heard"), [("b", True), ("x", False)], ids=["its own", "another"])
async def test_who_turns_away_must_be_who_he_says(certificate: str, heard: bool) -> None:
    """A dialer that refuses us is believed to be the one that its certificate is for, and no other."""
    async with serving("a", tls=contexts("a"), tls_names=True) as (_, receiver, address):
        async with Connection(await trio.open_tcp_stream(*parse_address(address))) as connection:
            await connection.start_tls(TlsContexts(contexts(certificate), names=False).dial("127.0.0.1"))
            hello = RecordingReceiver("b").hello()
            with pytest.raises(DeclinedError):
                await connection.shake_hands(Initiator(hello, FRAMES, lambda theirs: "removed: ha"))
            with contextlib.suppress(ConnectionLostError):
                assert b"" == await connection.receive()
        assert ([("turned away", "b", "removed: ha")] if heard else []) == receiver.events


async def test_the_host_of_a_certificate() -> None:
    """A context that checks host names has the address that was dialed in the certificate, or refuses."""
    elsewhere = single_context()  # for 127.0.0.1 only
    async with serving("a", tls=contexts()) as (a, _, _), serving("b", tls=elsewhere) as (_, _, address):
        assert "127.0.0.1" == parse_address(address).host
        with pytest.raises(AuthenticationError, match="not valid for 'localhost'"):
            await a.call(address.replace("127.0.0.1", "localhost"), STRANGER, SETTINGS)
        channel = await a.call(address, STRANGER, SETTINGS)
        await channel.aclose()


def lax(side: int) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    pair = contexts()
    pair[side].check_hostname = False
    pair[side].verify_mode = ssl.CERT_OPTIONAL if side == 0 else ssl.CERT_NONE
    return pair


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tls": contexts()[0]}, "PROTOCOL_TLS_SERVER for the dialing side"),
        ({"tls": contexts()[1]}, "PROTOCOL_TLS_CLIENT for the accepting side"),
        ({"tls": contexts()[::-1]}, "PROTOCOL_TLS_CLIENT for the accepting side"),
        ({"tls": lax(0)}, "accepting context of tls has verify_mode CERT_OPTIONAL"),
        ({"tls": lax(1)}, "dialing context of tls has verify_mode CERT_NONE"),
        ({"tls": contexts() + contexts()}, "or a tuple of two"),
        ({"tls": "cert.pem"}, "or a tuple of two"),
        ({"tls": ()}, "or a tuple of two"),
        ({"tls_names": True}, "without tls="),
        ({"secret": ""}, "has 0 bytes"),
        ({"secret": SECRET[:15]}, "has 15 bytes"),
        ({"secret": []}, "0 alternatives"),
    ],
)
def test_credentials_that_protect_nothing(arguments: dict[str, Any], words: str) -> None:
    """What would let anybody in is said when the transport is made, never ignored."""
    with pytest.raises(ConfigurationError, match=words):
        TcpTransport(**arguments)


# -- before authentication ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credentials", [{"secret": SECRET}, {"tls": contexts()}], ids=["secret", "TLS"])
@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 600,
        b"\xff" * 100_000,
        struct.pack(">I", 2**32 - 1) * 2,
        encode_frames([b"replikv\n" + b"\x9f" * 4000]),
        encode_frames([b"replikv\n\xa2dkindgrefusalfreasonkremoved: ha"]),
        encode_frames([b"replikv\n\xa2dkindeproofeproofX " + b"x" * 32]),
    ],
    ids=["http", "tls", "ones", "oversize", "deep", "refusal", "proof"],
)
async def test_garbage_before_authentication(said: bytes, credentials: dict[str, Any]) -> None:
    """Whoever has no credentials is hung up on, and peers go on being served."""
    async with serving("a", **credentials) as (_, receiver, address), serving("b", **credentials) as (b, other, _):
        async with await trio.open_tcp_stream(*parse_address(address)) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(said)
            await wait_closed(stream)
        assert ([], [], []) == (receiver.hellos, receiver.frames, receiver.events)
        b.set_peer("a", address)
        await other.wait_event("connected", "a")


@pytest.mark.parametrize("purpose", [FRAMES, CHANNEL, CALL])
async def test_frames_before_authentication(purpose: str) -> None:
    """Frames behind a hello, in the place of the proof, are not looked at."""
    async with (
        serving("a", secret=SECRET) as (_, receiver, address),
        await trio.open_tcp_stream(*parse_address(address)) as stream,
    ):
        hello = Initiator(STRANGER, purpose, lambda theirs: None, SharedSecret(OTHER)).start()
        await stream.send_all(hello + encode_frames([b"frame"] * 10))
        await wait_closed(stream)
        assert ([], [], []) == (receiver.hellos, receiver.frames, receiver.strangers)


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"], ids=["none", "a byte", "some"])
async def test_a_tls_handshake_that_never_ends(said: bytes) -> None:
    """Whoever stalls before TLS is there is cut off after connect_timeout_s."""
    async with (
        serving("a", IMPATIENT, tls=contexts()) as (_, _, address),
        await trio.open_tcp_stream(*parse_address(address)) as stream,
    ):
        if said:
            await stream.send_all(said)
        began = trio.current_time()
        await wait_closed(stream)
        assert 0.1 < trio.current_time() - began < 3.0


@pytest.mark.parametrize("credentials", [{"secret": SECRET}, {"tls": contexts()}], ids=["secret", "TLS"])
async def test_a_slow_loris(credentials: dict[str, Any]) -> None:
    """A byte now and then does not prolong a handshake: all of it has connect_timeout_s."""
    async with (
        serving("a", IMPATIENT, **credentials) as (_, _, address),
        await trio.open_tcp_stream(*parse_address(address)) as stream,
    ):
        began = trio.current_time()
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in (
                b"\x00\x00\x0f\x00replikv\n" if "secret" in credentials else b"\x16\x03\x01\x02\x00\x01\x00\x01"
            ):
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.02)
            await wait_closed(stream)
        assert 0.1 < trio.current_time() - began < 3.0


@pytest.mark.parametrize("credentials", [{"secret": SECRET}, {"tls": contexts()}], ids=["secret", "TLS"])
async def test_a_responder_that_never_answers(credentials: dict[str, Any]) -> None:
    """A dial to a half-open address gives up after connect_timeout_s."""
    with trio.fail_after(DEADLINE_S):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
            with pytest.raises(OSError, match=r"did not answer within 0\.3 s"):
                await TcpTransport(**credentials).call(address, STRANGER, IMPATIENT)


@pytest.mark.parametrize("credentials", [{"secret": SECRET}, {"tls": contexts()}], ids=["secret", "TLS"])
async def test_the_unauthenticated_are_bounded(credentials: dict[str, Any]) -> None:
    """Of too many that do not prove themselves the oldest goes, and a peer still gets in."""
    async with (
        serving("a", **credentials) as (_, _, address),
        serving("b", **credentials) as (b, other, _),
        contextlib.AsyncExitStack() as stack,
    ):
        silent = [
            await stack.enter_async_context(await trio.open_tcp_stream(*parse_address(address)))
            for _ in range(HANDSHAKES_MAX + 1)
        ]
        await wait_closed(silent[0])
        b.set_peer("a", address)
        await other.wait_event("connected", "a")


# -- after authentication ----------------------------------------------------------------------------------------------


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def twice(data: bytes) -> bytes:
    return data + data


@pytest.mark.parametrize("credentials", [{"secret": SECRET}, {"tls": contexts()}], ids=["secret", "TLS"])
@pytest.mark.parametrize("change", [flip, twice], ids=["flipped", "repeated"])
async def test_frames_that_change_on_the_way(change: Any, credentials: dict[str, Any]) -> None:
    """A frame that somebody in between has changed or repeated is not heard: the connection ends, and is made anew."""
    async with (
        serving("a", **credentials) as (a, receiver, _),
        serving("b", **credentials) as (_, other, address),
        proxy(address) as (through, changes),
    ):
        a.set_peer("b", through)
        await receiver.wait_event("connected", "b")
        a.send("b", b"good" * 100)
        assert [b"good" * 100] == await other.wait_frames(1)
        changes.append(change)
        a.send("b", b"evil" * 100)
        await receiver.wait_event("connected", "b", times=2)
        a.send("b", b"good" * 50)
        await other.wait_until(lambda: ("a", b"good" * 50) in other.frames)
        assert {b"good" * 100, b"good" * 50} >= {frame for _, frame in other.frames} - {b"evil" * 100}
        assert "refused" not in {event[0] for event in receiver.events}
        assert sum(frame == b"evil" * 100 for _, frame in other.frames) <= (change is twice)


@contextlib.asynccontextmanager
async def dialed_by_hand(address: str, purpose: str, tls: bool) -> AsyncIterator[tuple[Connection, Sealer, Any]]:
    """A connection that was admitted; what seals its frames by the format; and what encrypts them, where TLS does."""
    stream = await trio.open_tcp_stream(*parse_address(address))
    async with Connection(stream) as connection:
        session = TlsContexts(contexts("stranger"), names=False).dial("127.0.0.1") if tls else None
        if session is not None:
            await connection.start_tls(session)
        handshake = Initiator(STRANGER, purpose, lambda theirs: None, SharedSecret(SECRET))
        await connection.shake_hands(handshake)
        assert handshake.keys is not None
        yield connection, Sealer(handshake.keys[0]), (lambda data: data) if session is None else session.encrypt


@pytest.mark.parametrize("tls", [False, True], ids=["secret", "both"])
@pytest.mark.parametrize("purpose", [FRAMES, CHANNEL, CALL])
async def test_every_kind_of_connection_is_sealed(purpose: str, tls: bool) -> None:
    """By the key of whoever sends, with TLS around it or without; what was changed or repeated is heard on none."""
    credentials: dict[str, Any] = {"secret": SECRET} | ({"tls": contexts("a")} if tls else {})
    async with serving("a", **credentials) as (_, receiver, address):
        hear, heard = trio.open_memory_channel[bytes](10)

        async def listen(_who: Any, channel: Any) -> None:
            while True:
                hear.send_nowait(await channel.receive())

        receiver.serve = receiver.serve_call = listen
        receiver.on_frame = lambda _node_id, frame: hear.send_nowait(frame)
        for spoil in (flip, twice):
            async with dialed_by_hand(address, purpose, tls) as (connection, sealer, encrypt):
                await connection.send(encrypt(sealer.encode([b"one", b"two"])))
                assert [b"one", b"two"] == [await heard.receive(), await heard.receive()]
                await connection.send(encrypt(spoil(sealer.encode([b"three"]))))
                with contextlib.suppress(ConnectionLostError):
                    assert b"" == await connection.receive()
            assert heard.statistics().current_buffer_used <= (spoil is twice)  # the first of the two is a good one


async def test_a_channel_that_is_cut_off_is_told_from_one_that_ended() -> None:
    """With TLS nobody in between can end a channel without its breaking."""
    async with (
        serving("a", tls=contexts()) as (a, _, _),
        serving("b", tls=contexts()) as (_, other, address),
        proxy(address) as (through, changes),
    ):
        outcome: list[str] = []
        ended = trio.Event()

        async def receive(node_id: str, channel: Any) -> None:
            try:
                while True:
                    await channel.receive()
            except (trio.BrokenResourceError, trio.EndOfChannel) as exc:
                outcome.append(type(exc).__name__)
            ended.set()

        other.serve = receive
        a.set_peer("b", through)
        for cut in (False, True):
            channel = await a.open_channel("b")
            await channel.send(b"frame")
            if cut:
                changes.append(None)
                await channel.send(b"lost")
            await channel.aclose()
            await ended.wait()
            ended = trio.Event()
        assert ["EndOfChannel", "BrokenResourceError"] == outcome


async def test_sending_on_a_broken_session_harms_nobody() -> None:
    """A frame for a connection whose TLS has just failed is a lost one, as any that is on its way then."""
    async with (
        serving("a", tls=contexts()) as (a, receiver, _),
        serving("b", tls=contexts()) as (_, other, address),
    ):
        a.set_peer("b", address)
        await receiver.wait_event("connected", "b")
        link: Any = a._links["b"]
        with pytest.raises(Exception, match="TLS"):
            link._connection._tls.decrypt(b"\x17\x03\x03\x00\x20" + b"garbage" * 10)
        a.send("b", b"frame")
        await receiver.wait_event("connected", "b", times=2)
        a.send("b", b"frame")
        assert [b"frame"] == await other.wait_frames(1)


# -- connections that are dead -----------------------------------------------------------------------------------------

TCP_REPAIR = 19  # of linux/tcp.h: a socket that is closed under it says nothing to the other side


async def vanish(stream: trio.SocketStream) -> None:
    """As if the machine at this end had lost its power."""
    try:
        stream.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    except OSError as exc:
        pytest.skip(f"this system does not let a connection vanish: {exc}")
    await stream.aclose()


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="no keepalive options on this system")
async def test_54_dead_connection_kept() -> None:
    """A silent connection whose other end has vanished is noticed by the kernel's probes, and what it held is freed."""
    settings = dataclasses.replace(SETTINGS, connect_timeout_s=1.0)
    async with serving("a", settings, secret=SECRET) as (a, _, address):
        streams = []
        for purpose in (FRAMES, CHANNEL, CALL):
            streams.append(await trio.open_tcp_stream(*parse_address(address)))
            handshake = Initiator(STRANGER, purpose, lambda theirs: None, SharedSecret(SECRET))
            await Connection(streams[-1]).shake_hands(handshake)
        await trio.sleep(0.3)  # all is acknowledged: nothing but a probe can find out
        assert 3 == len(a._accepted)
        for stream in streams:
            await vanish(stream)
        began = trio.current_time()
        while a._accepted:  # noqa: ASYNC110 # it tells nobody
            await trio.sleep(0.02)
        assert 0.3 < trio.current_time() - began < 5.0


async def test_54_a_dead_connection_is_not_used_again() -> None:
    """A peer that comes back dials anew, and is heard at once over the new connection, the dead one still open."""
    async with serving("a", secret=SECRET) as (_, receiver, address), contextlib.AsyncExitStack() as stack:
        streams = []
        for number in range(3):
            stream = await stack.enter_async_context(await trio.open_tcp_stream(*parse_address(address)))
            streams.append(stream)
            connection = Connection(stream)
            await connection.shake_hands(Initiator(STRANGER, FRAMES, lambda theirs: None, SharedSecret(SECRET)))
            os.write(stream.socket.fileno(), connection.encode([b"%d" % number]))
            await receiver.wait_frames(number + 1)
        for stream in streams[:2]:
            assert b"" == await wait_closed(stream)
