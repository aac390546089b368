"""One TCP connection between two peers: its handshake, its failures as one kind, and a channel over it."""

from __future__ import annotations

import errno
import math
import os
import socket as stdlib_socket
from collections import deque
from types import TracebackType
from typing import Final, Self

import trio

from replikv.errors import InternalError
from replikv.transport.base import Channel, Hello
from replikv.transport.handshake import HANDSHAKE_BYTES_MAX, Handshake
from replikv.transport.wire import (
    HEADER_BYTES,
    DeclinedError,
    FrameDecoder,
    PeerConnectionError,
    ProtocolError,
    RefusedError,
    encode_frames,
    frame_length,
)

__all__ = ["RECEIVE_BYTES_MAX", "Connection", "ConnectionLostError", "StreamChannel", "tune"]

RECEIVE_BYTES_MAX: Final = 64 * 1024
"""One read, as trio's own default. Python allocates it all before it knows how much will come: above glibc's mmap
threshold (128 KiB) that is two system calls and page faults, 30 microseconds for an acknowledgement of 60 bytes."""


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
    """A stream of bytes to another peer. Whatever goes wrong with it is a PeerConnectionError."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionLostError(_in_words(exc)) from exc

    def send_nowait(self, data: bytes) -> int:
        """Give the kernel as much of it as it takes at once; how many bytes that were.

        Must not be called while ``send`` is under way. A broken connection takes nothing: who waits on it will tell.
        """
        if not isinstance(self._stream, trio.SocketStream):
            return 0
        try:
            return os.write(self._stream.socket.fileno(), data)
        except OSError:
            return 0

    async def receive(self) -> bytes:
        """Some bytes; none at the end of the stream."""
        return await self._receive_some(RECEIVE_BYTES_MAX)

    async def shake_hands(self, handshake: Handshake) -> Hello:
        """Carry a handshake through to its end. Raises RefusedError, DeclinedError, ProtocolError, ConnectionLostError.

        Reads not a byte past it: what follows belongs to whoever uses the connection.
        """
        outgoing = handshake.start()
        while True:
            if outgoing:
                await self.send(outgoing)
            if handshake.refusal is not None:
                raise (DeclinedError if handshake.declined else RefusedError)(handshake.refusal)
            if handshake.established:
                assert handshake.theirs is not None
                return handshake.theirs
            header = await self._receive_exactly(HEADER_BYTES)
            outgoing = handshake.receive(await self._receive_exactly(frame_length(header, HANDSHAKE_BYTES_MAX)))

    def close(self) -> None:
        """Close without waiting, under whoever uses it: to them it is lost."""
        assert isinstance(self._stream, trio.SocketStream)  # what wraps one has no other way to close at once
        self._stream.socket.close()

    async def aclose(self) -> None:
        """Close at once, also when cancelled."""
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)

    async def _receive_some(self, bytes_max: int) -> bytes:
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
        self._decoder = FrameDecoder(frame_bytes_max)
        self._ready: deque[bytes] = deque()
        """Frames that came with the last read: no more bytes than one read and the frame it completed."""
        self._closed = False

    async def send(self, frame: bytes) -> None:
        """Send one frame; waits while the other side is slow."""
        self._check_open()
        if len(frame) > self._frame_bytes_max:
            raise InternalError(f"a channel's frame of {len(frame)} bytes is over {self._frame_bytes_max}")
        try:
            await self._connection.send(encode_frames([frame]))
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
