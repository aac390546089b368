"""A TCP proxy that misbehaves when it is told to, to stand between the peers of a deployment under test.

One :class:`TcpProxy` is the way from whoever dials it to one target, and back. Peers dial each other in both
directions, so a cluster of three has six ways; :class:`RoutedTransport` has each peer dial the others by its own::

    async with trio.open_nursery() as nursery:
        proxy = TcpProxy("127.0.0.1:7002")                     # where "b" listens
        await nursery.start(proxy.run)
        transport = RoutedTransport({"b:7002": proxy.address})  # for "a", which knows "b" by the address b:7002
        ...
        proxy.forward = Faults(drop=True)                      # nothing of what "a" says arrives at "b" any more

What is said here is what a test may rest on: faults hold from the moment they are set, for connections that are there
and for new ones; bytes arrive in order, once, or their connection ends; and memory is bounded, whatever is held up.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import math
import socket as stdlib_socket
import ssl
import struct
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

import trio

from replikv.errors import ConfigurationError
from replikv.settings import Settings
from replikv.transport.addresses import Address, parse_address
from replikv.transport.base import Channel, Hello
from replikv.transport.tcp import TcpTransport

__all__ = ["Faults", "RoutedTransport", "TcpProxy", "reserve_port"]

HOST: Final = "127.0.0.1"

CHUNK_BYTES: Final = 16 * 1024
"""One read. Small, so that a bandwidth of some kB/s is a trickle and not a drip."""

CHUNKS_MAX: Final = 256
"""Chunks under way in one direction of one connection, 4 MiB: when there are more, no more are read, and the sender's
kernel holds it up. Chunks grow then, so that a long delay costs no throughput that TCP would have had."""

CONNECTIONS_MAX: Final = 256
"""Connections at once; above it, the oldest is reset. Those that hang in a fault would add up otherwise, as nobody is
told that the other side has closed."""

Welcome: TypeAlias = Literal["serve", "hold", "refuse"]

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger: close sends RST, and forgets what was not sent."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What befalls the bytes of one direction. The default is a good network."""

    delay_s: float = 0.0
    """How much later each byte arrives."""
    bytes_per_s: float = math.inf
    """Bandwidth of all connections together."""
    drop: bool = False
    """A black hole: bytes and ends of connections are swallowed, and nobody is told. TCP lets no stream go on behind a
    gap, so a connection that has lost something is reset when this ends."""
    stall: bool = False
    """Nothing arrives while this lasts; all of it does afterwards. The sender is held up when buffers are full."""

    def __post_init__(self) -> None:
        if not 0 <= self.delay_s < math.inf:
            raise ConfigurationError(f"delay_s must be a number of seconds from 0 on, not {self.delay_s!r}")
        if not self.bytes_per_s > 0:
            raise ConfigurationError(f"bytes_per_s must be more than 0, not {self.bytes_per_s!r}: drop, or stall")


def reserve_port(host: str = HOST) -> stdlib_socket.socket:
    """A socket that is bound to a free port and never listens: while it is open, the port is its owner's.

    Whoever binds the port with SO_REUSEADDR, as trio does, may listen on it, end, and listen again: meanwhile nobody
    else is given it, and no outgoing connection takes it. (So Linux has it; elsewhere that bind may fail.)
    """
    reserved = stdlib_socket.socket()
    try:
        reserved.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        reserved.bind((host, 0))
    except BaseException:
        reserved.close()
        raise
    return reserved


class _Direction:
    """One direction: its faults, who waits for them to change, and what was done with its bytes."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.passed_bytes = 0
        self.dropped_bytes = 0
        self._changed = trio.Event()
        self._free_at = -math.inf
        """When all that was let through will have passed at the bandwidth of now."""

    def set(self, faults: Faults) -> None:
        """From now on, also for what is under way."""
        self.faults = faults
        self._free_at = -math.inf
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait_passage(self, count: int, read_at: float) -> bool:
        """Until so many bytes that were read then have arrived at the other end; False if they never do."""
        while not self.faults.drop:
            due = math.inf if self.faults.stall else read_at + self.faults.delay_s
            if due <= trio.current_time():
                break
            await self._wait_changed(due)
        if not self.faults.drop and self.faults.bytes_per_s < math.inf:
            self._free_at = max(self._free_at, trio.current_time()) + count / self.faults.bytes_per_s
            await self._wait_changed(self._free_at)
        return not self.faults.drop

    async def _wait_changed(self, until: float) -> None:
        with trio.move_on_at(until):
            await self._changed.wait()


class _Pair:
    """A dialer's connection, and the one to the target that stands for it."""

    def __init__(self, dialer: trio.SocketStream) -> None:
        self.streams = [dialer]
        self.gap = False
        """Whether something was swallowed that one of the two had sent."""
        self.over = trio.CancelScope()

    def reset(self) -> None:
        """Both ends hear RST, and the tasks end."""
        for stream in self.streams:
            with contextlib.suppress(OSError):  # reset by its other side, or closed, already
                stream.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, _RESET)
        self.close()

    def close(self) -> None:
        """Both ends hear what is on its way to them, and then the end."""
        for stream in self.streams:
            stream.socket.close()
        self.over.cancel()


class TcpProxy:
    """Forwards what is dialed to one target. Faults are set from outside, at any time, in the same thread.

    Args:
        target: ``host:port`` of who is dialed for each connection that comes.
        listen: what is bound, on the loopback interface by default; port 0 takes a free one. It stays this proxy's
            until ``run`` ends, also while connections are refused.

    Raises ConfigurationError for an address that makes no sense, OSError for one that cannot be bound.
    """

    def __init__(self, target: str, *, listen: str = f"{HOST}:0") -> None:
        self._target = parse_address(target)
        host, port = parse_address(listen, listening=True)
        if port:
            self._reserved = None
        else:
            self._reserved = reserve_port(host)
            port = self._reserved.getsockname()[1]
        self._address = Address(host, port)
        self._directions = (_Direction(), _Direction())
        self._welcome: Welcome = "serve"
        self._welcome_changed = trio.Event()
        self._listener: trio.SocketListener | None = None
        self._pairs: collections.OrderedDict[_Pair, None] = collections.OrderedDict()
        self._counts: collections.Counter[str] = collections.Counter()

    @property
    def address(self) -> str:
        """Where to dial it."""
        return str(self._address)

    @property
    def target(self) -> str:
        """Whom it dials. To be changed for connections that come, when whoever listens there has moved."""
        return str(self._target)

    @target.setter
    def target(self, target: str) -> None:
        self._target = parse_address(target)

    # -- faults --------------------------------------------------------------------------------------------------------

    @property
    def forward(self) -> Faults:
        """What befalls the bytes from the dialer to the target."""
        return self._directions[0].faults

    @forward.setter
    def forward(self, faults: Faults) -> None:
        self._set(self._directions[0], faults)

    @property
    def backward(self) -> Faults:
        """What befalls the bytes from the target to the dialer."""
        return self._directions[1].faults

    @backward.setter
    def backward(self, faults: Faults) -> None:
        self._set(self._directions[1], faults)

    @property
    def welcome(self) -> Welcome:
        """What happens to new connections.

        ``"serve"``: they are connected to the target, unless either direction drops: then they are held, as a packet
        of the TCP handshake would have been lost. ``"hold"``: they are accepted, and never answered (half-open).
        ``"refuse"``: nobody listens. Those that are there are not concerned; those that were held are reset when new
        ones are served again.

        Raises OSError where ``listen`` named a port, and somebody else has taken it while connections were refused.
        """
        return self._welcome

    @welcome.setter
    def welcome(self, welcome: Welcome) -> None:
        if welcome not in ("serve", "hold", "refuse"):
            raise ConfigurationError(f"new connections are served, held or refused: welcome is not {welcome!r}")
        before, self._welcome = self._welcome, welcome
        if welcome == "refuse":
            if self._listener is not None:
                self._listener.socket.close()
        elif before == "refuse" and self._listener is not None:
            self._listener = self._listen()
        changed, self._welcome_changed = self._welcome_changed, trio.Event()
        changed.set()
        self._reset_gaps()

    def heal(self) -> None:
        """No faults any more. Connections that have lost something are reset; the others go on."""
        self.forward = self.backward = Faults()
        self.welcome = "serve"

    def reset(self) -> int:
        """Break all connections with a TCP reset, at both ends; how many there were. New ones may come at once."""
        count = 0
        for pair in list(self._pairs):
            self._reset(pair)
            count += 1
        return count

    def statistics(self) -> Mapping[str, int]:
        """Counters.

        They are ``connections`` (now), ``accepted``, ``reset``, and ``forward_bytes``, ``backward_bytes``,
        ``dropped_bytes``.
        """
        forward, backward = self._directions
        return {
            "connections": len(self._pairs),
            "accepted": self._counts["accepted"],
            "reset": self._counts["reset"],
            "forward_bytes": forward.passed_bytes,
            "backward_bytes": backward.passed_bytes,
            "dropped_bytes": forward.dropped_bytes + backward.dropped_bytes,
        }

    def _set(self, direction: _Direction, faults: Faults) -> None:
        direction.set(faults)
        self._reset_gaps()

    @property
    def _lets_in(self) -> bool:
        return self._welcome == "serve" and not any(direction.faults.drop for direction in self._directions)

    def _reset_gaps(self) -> None:
        """Where there is no reason to hold them any more."""
        if self._lets_in:
            for pair in [pair for pair in self._pairs if pair.gap]:
                self._reset(pair)

    def _reset(self, pair: _Pair) -> None:
        self._counts["reset"] += 1
        self._pairs.pop(pair, None)
        pair.reset()

    # -- life ----------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and forward until cancelled; started, with the address, once it listens. To be run once.

        Cancelled, it breaks what connections there are, and leaves nothing behind. Raises OSError when the address
        cannot be bound, or descriptors run out.
        """
        try:
            self._listener = self._listen()
            async with trio.open_nursery() as nursery:
                if self._welcome == "refuse":
                    self._listener.socket.close()
                task_status.started(self.address)
                while True:
                    changed = self._welcome_changed
                    try:
                        dialer = await self._listener.accept()
                    except trio.ClosedResourceError:  # refusing
                        if self._welcome == "refuse":
                            await changed.wait()
                        continue
                    self._accept(dialer, nursery)
        finally:
            self.reset()
            if self._listener is not None:
                self._listener.socket.close()
            if self._reserved is not None:
                self._reserved.close()

    def _listen(self) -> trio.SocketListener:
        family = stdlib_socket.AF_INET6 if ":" in self._address.host else stdlib_socket.AF_INET
        listening = stdlib_socket.socket(family)
        try:
            listening.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
            listening.bind(tuple(self._address))
            listening.listen()
            return trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        except OSError as exc:
            listening.close()
            raise OSError(exc.errno, f"a proxy cannot listen on {self.address}: {exc.strerror or exc}") from exc

    def _accept(self, dialer: trio.SocketStream, nursery: trio.Nursery) -> None:
        self._counts["accepted"] += 1
        while len(self._pairs) >= CONNECTIONS_MAX:
            self._reset(next(iter(self._pairs)))
        pair = _Pair(dialer)
        self._pairs[pair] = None
        nursery.start_soon(self._serve, pair)

    async def _serve(self, pair: _Pair) -> None:
        try:
            with pair.over:
                await (self._connect(pair) if self._lets_in else self._hold(pair))
                pair.close()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):  # one side is gone: so is the other
            pass
        finally:
            self._pairs.pop(pair, None)
            pair.reset()

    async def _hold(self, pair: _Pair) -> None:
        """Swallow what the dialer says until he gives up."""
        pair.gap = True
        while data := await pair.streams[0].receive_some(CHUNK_BYTES):
            self._directions[0].dropped_bytes += len(data)

    async def _connect(self, pair: _Pair) -> None:
        """Forward until both sides have ended."""
        dialer = pair.streams[0]
        try:
            target = await trio.open_tcp_stream(*self._target)
        except OSError:  # nobody listens there: a reset is as near to a refusal as who has accepted can come
            pair.reset()
            return
        pair.streams.append(target)
        for stream in pair.streams:
            with contextlib.suppress(OSError):  # what has ended already says so when it is read
                stream.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
        forward, backward = self._directions
        async with trio.open_nursery() as nursery:
            for direction, opposite, source, sink in (
                (forward, backward, dialer, target),
                (backward, forward, target, dialer),
            ):
                send, receive = trio.open_memory_channel[tuple[float, bytes | None]](CHUNKS_MAX)
                nursery.start_soon(self._read, source, send)
                nursery.start_soon(self._write, pair, direction, opposite, receive, sink)

    @staticmethod
    async def _read(source: trio.SocketStream, send: trio.MemorySendChannel[tuple[float, bytes | None]]) -> None:
        """Queue what arrives, with the time at which it did: b"" for its end, None for a broken one."""
        data: bytes | None = None
        async with send:
            while data is None or data:
                try:
                    data = bytes(await source.receive_some(CHUNK_BYTES))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    await send.send((trio.current_time(), None))
                    return
                await send.send((trio.current_time(), data))

    @staticmethod
    async def _write(
        pair: _Pair,
        direction: _Direction,
        opposite: _Direction,
        receive: trio.MemoryReceiveChannel[tuple[float, bytes | None]],
        sink: trio.SocketStream,
    ) -> None:
        async for read_at, data in receive:
            if not await direction.wait_passage(len(data or b""), read_at) or pair.gap:
                pair.gap = True
                direction.dropped_bytes += len(data or b"")
            elif data is None:
                raise trio.BrokenResourceError("the other side has broken it")
            else:
                try:
                    await (sink.send_all(data) if data else sink.send_eof())
                except trio.BrokenResourceError:
                    if not opposite.faults.drop:
                        raise
                    pair.gap = True  # that the sink is gone is news that gets lost on its way back
                direction.passed_bytes += len(data)
        if pair.gap:  # to the other side the connection is as it was, until this is over
            await trio.sleep_forever()


class RoutedTransport(TcpTransport):
    """A :class:`~replikv.TcpTransport` that dials others by ways of its own: by proxies, through a tunnel.

    Members keep their addresses, which everybody knows them by; where this peer dials one is looked up in ``routes``,
    at each time when it is told of an address. So the two directions between two peers may be two ways. One that is
    not in ``routes`` is refused, so that no way past them goes unnoticed: an OSError for a newcomer's call, and for a
    member no connection.

    Args:
        routes: address -> where to dial it.
        secret: as :class:`~replikv.TcpTransport` takes it; and so ``tls`` and ``tls_names``.
    """

    def __init__(
        self,
        routes: Mapping[str, str],
        *,
        secret: str | bytes | Sequence[str | bytes] | None = None,
        tls: ssl.SSLContext | tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
        tls_names: bool = False,
    ) -> None:
        super().__init__(secret=secret, tls=tls, tls_names=tls_names)
        self._routes = routes

    def set_peer(self, node_id: str, address: str | None) -> None:
        """As :meth:`Transport.set_peer`."""
        super().set_peer(node_id, None if address is None else self._routes.get(address))

    async def call(self, address: str, hello: Hello, settings: Settings) -> Channel:
        """As :meth:`Transport.call`."""
        if address not in self._routes:
            raise OSError(errno.EHOSTUNREACH, f"no way to {address}: give one in routes=")
        return await super().call(self._routes[address], hello, settings)
