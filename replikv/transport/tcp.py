"""Peers over TCP: each side dials the other for what it sends, and once more for every channel."""

from __future__ import annotations

import errno
import functools
import random
import ssl
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

import structlog
import trio

from replikv.errors import AuthenticationError, ConfigurationError
from replikv.settings import Settings
from replikv.transport.addresses import Address, parse_address
from replikv.transport.authentication import SharedSecret
from replikv.transport.base import Channel, Hello, Receiver
from replikv.transport.connection import Connection, ConnectionLostError, StreamChannel, tune
from replikv.transport.handshake import CALL, CHANNEL, FRAMES, Initiator, Responder
from replikv.transport.links import Link, LinkedTransport, admit_expected, admit_stranger
from replikv.transport.outbox import Outbox
from replikv.transport.tls import TlsContexts
from replikv.transport.wire import PeerConnectionError, RefusedError, UnauthenticatedError

__all__ = ["TcpTransport"]

log = structlog.get_logger(__name__)

HANDSHAKES_MAX: Final = 64
"""Accepted connections that are not admitted yet; above, the oldest goes. OpenSSH's MaxStartups: 100; ours take
milliseconds where nothing is wrong, so whoever has waited longest is the least likely to finish.
"""

CONNECTIONS_MAX: Final = 1024
"""Connections of members in all: 50 processes use about 100."""

CHANNELS_PER_PEER_MAX: Final = 8
"""Channels that one peer may have open here; a snapshot takes one."""

PORT_ATTEMPTS_MAX: Final = 8
"""How often a free port is drawn for a name of several addresses until it is free on all of them."""


class TcpTransport(LinkedTransport):
    """Peers over TCP. Addresses are ``host:port``; names are resolved anew at each dial.

    Listens on every address that the host of ``listen`` resolves to, and on nothing else; port 0 takes a free one, the
    same on all of them. Who may talk to the peer is said here, alike for all peers of a cluster:

    Args:
        secret: what they all know, 16 bytes at least: both sides of a connection prove that they do, and every frame is
            sealed, so that it can neither be changed nor repeated. It does not encrypt. Several while it is changed:
            any that both sides know will do.
        tls: everything is encrypted, and both sides show a certificate of an authority that the other trusts: a context
            for accepting and one for dialing, or one of ``ssl.PROTOCOL_TLS`` for both. Both must ask for certificates.
        tls_names: whether a certificate must be for the node id that its owner comes with (as a DNS name). Without,
            whoever has a certificate that is trusted may come as any member.

    Raises:
        ConfigurationError: a secret that is too short, or contexts that would let in whoever has no certificate.
    """

    def __init__(
        self,
        *,
        secret: str | bytes | Sequence[str | bytes] | None = None,
        tls: ssl.SSLContext | tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
        tls_names: bool = False,
    ) -> None:
        self._secret = None if secret is None else SharedSecret(secret)
        self._tls = None if tls is None else TlsContexts(tls, names=tls_names)
        if tls_names and tls is None:
            raise ConfigurationError(
                "tls_names=True asks for the names of certificates, and there are none without tls="
            )
        super().__init__()
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._receiver: Receiver | None = None
        self._settings = Settings()
        self._handshakes: dict[trio.CancelScope, None] = {}
        """Accepted and not yet admitted, oldest first."""
        self._accepted: dict[Connection, _Visit] = {}
        """What others have dialed and we admitted, from the moment of admission: not one too many gets in, and none is
        missed when its peer is dropped."""
        self._channels_out: weakref.WeakSet[Connection] = weakref.WeakSet()
        """Under channels that we opened: they live in the tasks of whoever uses them, and end with ``run``."""

    async def run(
        self,
        receiver: Receiver,
        *,
        listen: str,
        settings: Settings,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen, dial and deliver until cancelled; then every socket is closed.

        What the receiver raises ends it, in an exception group; what a connection does never.
        """
        address = parse_address(listen, listening=True)
        listeners = await _listen(address)
        self._receiver, self._settings = receiver, settings
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._start_links()
                bound = Address(address.host, listeners[0].socket.getsockname()[1])
                task_status.started(str(bound))
                await trio.serve_listeners(self._accept, listeners)
        finally:
            self._nursery = None
            with trio.CancelScope(shield=True):
                for listener in listeners:
                    await trio.aclose_forcefully(listener)
                for connection in list(self._channels_out):
                    await connection.aclose()

    async def open_channel(self, node_id: str) -> Channel:
        """A connection of its own to the peer, with a handshake of its own. Raises OSError, AuthenticationError."""
        address = self._addresses.get(node_id)
        if self._nursery is None or address is None:
            raise OSError(errno.EHOSTUNREACH, f"no channel to {node_id}: its address is not known, or we do not run")
        try:
            connection = await self._dial_peer(node_id, address, CHANNEL)
        except UnauthenticatedError as exc:
            raise AuthenticationError(f"no channel to {node_id}: {exc}") from exc
        except PeerConnectionError as exc:
            raise OSError(errno.ECONNREFUSED, f"no channel to {node_id}: {exc}") from exc
        if self._nursery is None:
            await connection.aclose()
            raise OSError(errno.EHOSTUNREACH, f"no channel to {node_id}: the transport has stopped")
        self._channels_out.add(connection)
        return StreamChannel(connection, self._settings.frame_bytes_max)

    async def call(self, address: str, hello: Hello, settings: Settings) -> Channel:
        """A connection of its own to whoever listens there. Raises ConfigurationError, OSError, AuthenticationError.

        Bounded by these settings: dial and handshake by ``connect_timeout_s``, frames by ``frame_bytes_max``.
        """
        try:
            connection = await self._dial(address, lambda: hello, CALL, lambda _: None, settings.connect_timeout_s)
        except UnauthenticatedError as exc:
            raise AuthenticationError(f"no call to {address}: {exc}") from exc
        except PeerConnectionError as exc:
            raise OSError(errno.ECONNREFUSED, f"no call to {address}: {exc}") from exc
        return StreamChannel(connection, settings.frame_bytes_max)

    # -- dialing -------------------------------------------------------------------------------------------------------

    def check_address(self, address: str) -> None:
        """As :meth:`Transport.check_address`."""
        parse_address(address)

    def _make_link(self, node_id: str) -> Link:
        assert self._receiver is not None
        return _TcpLink(self._dial_peer, node_id, self._receiver, self._settings, self._random)

    async def _dial_peer(self, node_id: str, address: str, purpose: str) -> Connection:
        """A connection that both sides admitted. Raises PeerConnectionError."""
        receiver = self._receiver
        assert receiver is not None
        admit = functools.partial(admit_expected, receiver, node_id, address)
        return await self._dial(address, receiver.hello, purpose, admit, self._settings.connect_timeout_s)

    async def _dial(
        self,
        address: str,
        hello: Callable[[], Hello],
        purpose: str,
        admit: Callable[[Hello], str | None],
        timeout_s: float,
    ) -> Connection:
        """A connection whose handshake is done, all within so many seconds. Raises PeerConnectionError.

        The hello is asked for once there is a connection: what it says of us is true then.
        """
        with trio.move_on_after(timeout_s):
            host, port = parse_address(address)
            try:
                stream = await trio.open_tcp_stream(host, port)
            except OSError as exc:
                raise ConnectionLostError(f"{address} cannot be reached: {_dial_failure(exc)}") from exc
            connection = Connection(stream)
            try:
                tune(stream, timeout_s)
                if self._tls is not None:
                    await connection.start_tls(self._tls.dial(host))
                await connection.shake_hands(
                    Initiator(
                        hello(), purpose, lambda theirs: connection.objection(theirs) or admit(theirs), self._secret
                    )
                )
            except BaseException:
                await connection.aclose()
                raise
            return connection
        raise ConnectionLostError(f"{address} did not answer within {timeout_s} s")

    # -- accepting -----------------------------------------------------------------------------------------------------

    async def _accept(self, stream: trio.SocketStream) -> None:
        async with Connection(stream) as connection:
            try:
                tune(stream, self._settings.connect_timeout_s)
                hello, purpose = await self._shake_hands(connection)
            except PeerConnectionError as fault:
                log.info("connection not admitted", reason=str(fault))
            else:
                await self._serve(connection, hello, purpose)
            finally:
                self._accepted.pop(connection, None)

    async def _shake_hands(self, connection: Connection) -> tuple[Hello, str]:
        """Who dialed, and what for. Raises PeerConnectionError."""
        assert self._receiver is not None
        if len(self._handshakes) >= HANDSHAKES_MAX:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
        with trio.move_on_after(self._settings.connect_timeout_s) as scope:
            self._handshakes[scope] = None
            try:
                if self._tls is not None:
                    await connection.start_tls(self._tls.accept())
                handshake = Responder(self._receiver.hello(), functools.partial(self._admit, connection), self._secret)
                try:
                    return await connection.shake_hands(handshake), handshake.purpose
                except RefusedError as refusal:
                    if handshake.theirs is not None and connection.objection(handshake.theirs) is None:
                        self._receiver.turned_away(handshake.theirs, str(refusal))
                    raise
            finally:
                self._handshakes.pop(scope, None)
        raise ConnectionLostError("its handshake took too long")

    def _admit(self, connection: Connection, hello: Hello, purpose: str) -> str | None:
        reason = connection.objection(hello) or self._judge(hello, purpose)
        if reason is None:
            visit = _Visit(hello.node_id, purpose)
            if purpose == FRAMES:  # the former one is half-open then, and its machine may never tell
                self._close(visit)
            self._accepted[connection] = visit
        return reason

    def _judge(self, hello: Hello, purpose: str) -> str | None:
        assert self._receiver is not None
        visits = list(self._accepted.values())
        strangers = sum(visit.purpose == CALL for visit in visits)
        if purpose == CALL:
            return admit_stranger(strangers)
        if len(visits) - strangers >= CONNECTIONS_MAX:
            return f"{CONNECTIONS_MAX} connections are open already"
        if purpose == CHANNEL and visits.count(_Visit(hello.node_id, CHANNEL)) >= CHANNELS_PER_PEER_MAX:
            return f"{hello.node_id} has {CHANNELS_PER_PEER_MAX} channels open already"
        return self._receiver.admit(hello)

    def _hang_up(self, node_id: str) -> None:
        self._close(_Visit(node_id, FRAMES), _Visit(node_id, CHANNEL))

    def _close(self, *visits: _Visit) -> None:
        """Close the connections of these visits under the tasks that serve them: to those they break."""
        for connection in [connection for connection, visit in self._accepted.items() if visit in visits]:
            connection.close()

    async def _serve(self, connection: Connection, hello: Hello, purpose: str) -> None:
        assert self._receiver is not None
        if purpose == FRAMES:
            await self._receive_frames(connection, hello.node_id)
            return
        channel = StreamChannel(connection, self._settings.frame_bytes_max)
        try:
            if purpose == CALL:
                await self._receiver.serve_stranger(hello, channel)
            else:
                await self._receiver.serve_channel(hello.node_id, channel)
        except trio.EndOfChannel:
            pass
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            log.info("channel lost", node_id=hello.node_id, purpose=purpose, reason=str(exc))

    async def _receive_frames(self, connection: Connection, node_id: str) -> None:
        """Hand frames on until the connection ends."""
        assert self._receiver is not None
        receive, decoder = self._receiver.receive, connection.decoder(self._settings.frame_bytes_max)
        while True:
            try:
                data = await connection.receive()
                frames = decoder.feed(data)
            except PeerConnectionError as fault:
                log.info("connection of peer lost", node_id=node_id, reason=str(fault))
                return
            if not data:
                return
            self._count_received(node_id, len(frames))
            for frame in frames:
                receive(node_id, frame)


class _Visit(NamedTuple):
    """Who has dialed us, and what for."""

    node_id: str
    purpose: str


Dial: TypeAlias = Callable[[str, str, str], Awaitable[Connection]]


class _TcpLink(Link):
    """A dialed connection that our frames go out on. Nothing comes in on it but its end."""

    def __init__(self, dial: Dial, node_id: str, receiver: Receiver, settings: Settings, chance: random.Random) -> None:
        super().__init__(node_id, receiver, settings, chance)
        self._dial = dial
        self._outbox = Outbox(settings.outbox_bytes_max)
        self._connection: Connection | None = None
        """The connection that frames go out on, while there is one."""

    @property
    def queued_bytes(self) -> int:
        return self._outbox.queued_bytes

    def _enqueue(self, frame: bytes) -> bool:
        # What finds nothing before it goes out at once: to wait for the writer's turn would cost each message a round
        # of the event loop, and a commit has four messages one after the other.
        if not self._outbox.empty or self._connection is None:
            return self._outbox.put(frame)
        data = self._connection.encode([frame])
        sent = self._connection.send_nowait(data)
        if sent < len(data):
            self._outbox.put_rest(data[sent:])
        return True

    def _discard(self) -> int:
        return self._outbox.clear()

    async def _connect_and_hold(self, address: str) -> None:
        async with await self._dial(self.node_id, address, FRAMES) as connection:
            self._connection = connection
            try:
                self._up()
                faults: list[PeerConnectionError] = []
                async with trio.open_nursery() as nursery:
                    for work in (self._write, self._watch):
                        nursery.start_soon(self._until_fault, work, connection, faults, nursery.cancel_scope)
            finally:
                self._connection = None
            raise faults[0]

    @staticmethod
    async def _until_fault(
        work: Callable[[Connection], Awaitable[None]],
        connection: Connection,
        faults: list[PeerConnectionError],
        both: trio.CancelScope,
    ) -> None:
        try:
            await work(connection)
        except PeerConnectionError as fault:
            faults.append(fault)
            both.cancel()

    async def _write(self, connection: Connection) -> None:
        while True:
            await connection.send(await self._outbox.take(connection.encode))

    @staticmethod
    async def _watch(connection: Connection) -> None:
        if await connection.receive():
            raise ConnectionLostError("the other side sends on a connection that is ours to send on")
        raise ConnectionLostError("the other side has closed the connection")


# -- sockets -----------------------------------------------------------------------------------------------------------


def _dial_failure(exc: OSError) -> str:
    """What went wrong with each resolved address; trio's own message says only that something did."""
    attempts = exc.__cause__
    if isinstance(attempts, BaseExceptionGroup):
        return ", ".join(dict.fromkeys(str(attempt) for attempt in attempts.exceptions))
    return str(attempts or exc)


async def _listen(address: Address) -> list[trio.SocketListener]:
    """Listen on everything that the host resolves to. Raises OSError, which names the address."""
    try:
        resolved = await trio.socket.getaddrinfo(
            address.host, address.port, type=trio.socket.SOCK_STREAM, flags=trio.socket.AI_PASSIVE
        )
        hosts = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in resolved))
        for _ in range(PORT_ATTEMPTS_MAX - 1):
            try:
                return await _listen_on_each(hosts, address.port)
            except OSError as exc:
                if address.port or exc.errno != errno.EADDRINUSE:
                    raise
        return await _listen_on_each(hosts, address.port)
    except OSError as exc:
        raise OSError(exc.errno, f"cannot listen on {address}: {exc.strerror or exc}") from exc


async def _listen_on_each(hosts: list[str], port: int) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    absent: list[OSError] = []
    try:
        for host in hosts:
            try:
                listeners += await trio.open_tcp_listeners(port, host=host)
            except OSError as exc:
                if exc.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                    raise
                absent.append(exc)  # "localhost" names ::1 also where IPv6 is switched off
            else:
                port = listeners[0].socket.getsockname()[1]
        if not listeners:
            raise absent[0]
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners
