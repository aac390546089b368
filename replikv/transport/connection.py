"""One TCP connection between two peers: its TLS, its handshake, its failures as one kind, and a channel over it."""

from __future__ import annotations

import errno
import math
import os
import socket as stdlib_socket
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

import trio

from replikv.errors import InternalError
from replikv.transport.authentication import SealedFrameDecoder, Sealer
from replikv.transport.base import Channel, Hello
from replikv.transport.handshake import HANDSHAKE_BYTES_MAX, MAGIC, REFUSAL_WITHOUT_TLS, Handshake
from replikv.transport.tls import TlsSession
from replikv.transport.wire import (
    HEADER_BYTES,
    DeclinedError,
    FrameDecoder,
    PeerConnectionError,
    ProtocolError,
    RefusedError,
    UnauthenticatedError,
    encode_frames,
    frame_length,
)

__all__ = ["RECEIVE_BYTES_MAX", "Connection", "ConnectionLostError", "StreamChannel", "tune"]

RECEIVE_BYTES_MAX: Final = 64 * 1024
"""One read, as trio's own default. Python allocates it all before it knows how much will come: above glibc's mmap
threshold (128 KiB) that is two system calls and page faults, 30 microseconds for an acknowledgement of 60 bytes."""

TLS_RECORDS: Final = (b"\x15\x03", b"\x16\x03")
"""How an alert and a handshake of TLS begin: as frames they would be far over the limit."""

TLS_ALERT: Final = b"\x15\x03\x01\x00\x02\x02\x46"
"""Fatal: protocol_version (RFC 8446, section 6). What those understand who begin with TLS where there is none."""


class ConnectionLostError(PeerConnectionError):
    """The connection broke, or never came to be."""


def tune(stream: trio.SocketStream, dead_after_s: float) -> None:
    """Have the kernel end a connection whose other side has been silent for so long. Raises ConnectionLostError.

    Nobody else notices a peer whose machine vanished (openraft#1770), and what is queued for it holds memory.
    """
    probe_s = max(1, math.ceil(dead_after_s / 3))
    try:
        stream.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
        stream.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", probe_s),
            ("TCP_KEEPINTVL", probe_s),
            ("TCP_KEEPCNT", 2),
            ("TCP_USER_TIMEOUT", max(1, math.ceil(dead_after_s * 1000))),
        ):
            option = getattr(stdlib_socket, name, None)  # none of these is everywhere
            if option is not None:
                stream.setsockopt(stdlib_socket.IPPROTO_TCP, option, value)
    except OSError as exc:
        raise ConnectionLostError(str(exc)) from exc


class Connection:
    """A stream of frames to another peer. Whatever goes wrong with it is a PeerConnectionError.

    What is sent is first encoded, sealed and encrypted as the connection has it: it must then be sent, whole and in the
    order in which it was encoded.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._tls: TlsSession | None = None
        self._plain = b""
        """What was decrypted, and not received yet."""
        self._key_of_theirs = b""
        self._encode: Callable[[Iterable[bytes]], bytes] = encode_frames

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def encode(self, frames: Iterable[bytes]) -> bytes:
        """The frames as they go over the wire, after all that was encoded before."""
        data = self._encode(frames)
        return data if self._tls is None else self._encrypt(data)

    def decoder(self, limit: int) -> FrameDecoder:
        """What cuts the bytes received after the handshake into frames, and checks their seals. Ask once."""
        return SealedFrameDecoder(limit, self._key_of_theirs) if self._key_of_theirs else FrameDecoder(limit)

    async def send(self, encoded: bytes) -> None:
        """Send all of it."""
        try:
            await self._stream.send_all(encoded)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionLostError(_in_words(exc)) from exc

    def send_nowait(self, encoded: bytes) -> int:
        """Give the kernel as much of it as it takes at once; how many bytes that were.

        Must not be called while ``send`` is under way. A broken connection takes nothing: who waits on it will tell.
        """
        try:
            return os.write(self._stream.socket.fileno(), encoded)
        except OSError:
            return 0

    async def receive(self) -> bytes:
        """Some bytes; none at the end of the stream."""
        try:
            return await self._receive_some(RECEIVE_BYTES_MAX)
        except UnauthenticatedError as exc:  # the other side is authentic since the handshake: its bytes were changed
            raise ConnectionLostError(str(exc)) from exc

    async def start_tls(self, session: TlsSession) -> None:
        """Encrypt from now on. Raises UnauthenticatedError, ConnectionLostError."""
        fault = session.shake_hands(b"")
        while True:
            outgoing = session.outgoing()
            if outgoing:
                await self.send(outgoing)
            if fault is not None:
                raise fault
            if session.established:
                break
            data = await self._receive_raw(RECEIVE_BYTES_MAX)
            if not data:
                raise ConnectionLostError("the other side hung up during the TLS handshake")
            if data.startswith(MAGIC, HEADER_BYTES):
                await self.send(REFUSAL_WITHOUT_TLS)
                raise UnauthenticatedError("the other side speaks no TLS, and this one does: configure both alike")
            fault = session.shake_hands(data)
        self._tls = session
        self._plain = session.decrypt(b"") or b""  # what came in the packet of its last words

    async def shake_hands(self, handshake: Handshake) -> Hello:
        """Carry a handshake through to its end. Raises PeerConnectionError: RefusedError, DeclinedError, ProtocolError,
        UnauthenticatedError, ConnectionLostError.

        Reads not a byte past it: what follows belongs to whoever uses the connection.
        """
        outgoing = handshake.start()
        while True:
            if outgoing:
                await self.send(outgoing if self._tls is None else self._encrypt(outgoing))
            if handshake.refusal is not None:
                raise self._refused(handshake, handshake.refusal)
            if handshake.established:
                assert handshake.theirs is not None
                if handshake.keys is not None:
                    key_of_ours, self._key_of_theirs = handshake.keys
                    self._encode = Sealer(key_of_ours).encode
                return handshake.theirs
            header = await self._receive_exactly(HEADER_BYTES)
            if header.startswith(TLS_RECORDS):
                if self._tls is None:
                    await self.send(TLS_ALERT)
                raise UnauthenticatedError("the other side speaks TLS, and this one does not: configure both alike")
            outgoing = handshake.receive(await self._receive_exactly(frame_length(header, HANDSHAKE_BYTES_MAX)))

    def objection(self, hello: Hello) -> str | None:
        """Why whoever says this of itself is not the one that its certificate is for."""
        return None if self._tls is None else self._tls.objection(hello)

    def close(self) -> None:
        """Close without waiting, under whoever uses it: to them it is lost."""
        self._stream.socket.close()

    async def aclose(self) -> None:
        """Close at once, also when cancelled."""
        if self._tls is not None:
            self.send_nowait(self._tls.farewell())
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)

    def _encrypt(self, data: bytes) -> bytes:
        assert self._tls is not None
        encrypted = self._tls.encrypt(data) if data else b""
        if encrypted is None:
            self.close()
            return b""
        return encrypted

    def _refused(self, handshake: Handshake, sentence: str) -> PeerConnectionError:
        # Whoever has not told its name yet has no certificate for it.
        nameless = self._tls is not None and self._tls.names and handshake.theirs is None
        if not (handshake.unauthenticated or nameless):
            return (DeclinedError if handshake.declined else RefusedError)(sentence)
        return UnauthenticatedError(
            sentence if handshake.declined else f"the other side refuses, and does not prove who it is: {sentence}"
        )

    async def _receive_some(self, bytes_max: int) -> bytes:
        if self._tls is None:
            return await self._receive_raw(bytes_max)
        while not self._plain:
            data = await self._receive_raw(RECEIVE_BYTES_MAX)
            plain = self._tls.decrypt(data)
            if plain is None:
                return b""
            if not data and not plain:
                raise ConnectionLostError("the connection was cut off: it ended without the end of TLS")
            self._plain = plain
        taken, self._plain = self._plain[:bytes_max], self._plain[bytes_max:]
        return taken

    async def _receive_raw(self, bytes_max: int) -> bytes:
        try:
            return bytes(await self._stream.receive_some(bytes_max))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionLostError(_in_words(exc)) from exc

    async def _receive_exactly(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            data = await self._receive_some(count - len(received))
            if not data:
                raise ConnectionLostError("the other side hung up during the handshake")
            received += data
        return received


def _in_words(exc: Exception) -> str:
    cause = exc.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.ETIMEDOUT:
        return "the other side has been silent for too long"
    return str(cause or exc) or "the connection broke"


class StreamChannel(Channel):
    """A channel over a connection whose handshake is done."""

    def __init__(self, connection: Connection, frame_bytes_max: int) -> None:
        self._connection = connection
        self._frame_bytes_max = frame_bytes_max
        self._decoder = connection.decoder(frame_bytes_max)
        self._ready: deque[bytes] = deque()
        """Frames that came with the last read: no more bytes than one read and the frame it completed."""
        self._closed = False

    async def send(self, frame: bytes) -> None:
        """Send one frame; waits while the other side is slow."""
        self._check_open()
        if len(frame) > self._frame_bytes_max:
            raise InternalError(f"a channel's frame of {len(frame)} bytes is over {self._frame_bytes_max}")
        try:
            await self._connection.send(self._connection.encode([frame]))
        except PeerConnectionError as exc:
            raise self._failure(exc) from exc

    async def receive(self) -> bytes:
        """The next frame, whole."""
        self._check_open()
        while not self._ready:
            try:
                data = await self._connection.receive()
                self._ready.extend(self._decoder.feed(data))
                if not data and not self._decoder.at_boundary:
                    raise ProtocolError("the channel ended within a frame")
            except PeerConnectionError as exc:
                raise self._failure(exc) from exc
            if not data:
                raise trio.EndOfChannel
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Close; what this side still receives or sends raises trio.ClosedResourceError."""
        self._closed = True
        await self._connection.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this channel was closed by this side")

    def _failure(self, fault: PeerConnectionError) -> Exception:
        """Closed if we did it; broken if it was done to us, the end of ``Transport.run`` included."""
        if self._closed:
            return trio.ClosedResourceError("this channel was closed by this side")
        return trio.BrokenResourceError(str(fault))
