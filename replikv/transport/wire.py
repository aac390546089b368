"""Frames as bytes in, bytes out, no I/O: a length of four bytes, and so many bytes that nothing here looks into.

``docs/format.md`` has the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

__all__ = [
    "HEADER_BYTES",
    "DeclinedError",
    "FrameDecoder",
    "PeerConnectionError",
    "ProtocolError",
    "RefusedError",
    "UnauthenticatedError",
    "encode_frames",
    "frame_length",
]

HEADER: Final = struct.Struct(">I")
HEADER_BYTES: Final = HEADER.size


class PeerConnectionError(Exception):
    """A connection is over, for a reason in words. Stays inside the transport: the peer above hears callbacks."""


class ProtocolError(PeerConnectionError):
    """The other side sent bytes that are not of this protocol. The connection is closed without an answer."""


class RefusedError(PeerConnectionError):
    """The other side would not have us; the message is its sentence."""


class DeclinedError(PeerConnectionError):
    """We would not have the other side; the message is our sentence."""


class UnauthenticatedError(PeerConnectionError):
    """One side did not prove to the other that it may talk to this cluster; the message is our sentence.

    What the other side says of it, or of anything, is not to be acted on.
    """


def encode_frames(frames: Iterable[bytes]) -> bytes:
    """The frames as they go over the wire, in one piece."""
    pieces: list[bytes] = []
    for frame in frames:
        pieces.append(HEADER.pack(len(frame)))
        pieces.append(frame)
    return b"".join(pieces)


def frame_length(header: bytes | bytearray | memoryview, limit: int, offset: int = 0) -> int:
    """The length that a header announces. Raises ProtocolError when it is over the limit."""
    length: int = HEADER.unpack_from(header, offset)[0]
    if length > limit:
        raise ProtocolError(f"a frame of {length} bytes was announced, the limit is {limit}")
    return length


class FrameDecoder:
    """Cuts a stream of bytes into frames, in time linear in the bytes.

    A header over the limit raises before a byte of its frame is kept, and what is kept is what has arrived: a peer that
    announces much and sends little costs little.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._partial = bytearray()
        """The beginning of one frame, header included: never empty but between frames."""
        self._wanted = HEADER_BYTES
        """How long ``_partial`` must be to go on: its header, or, once that is known, its whole frame."""

    @property
    def at_boundary(self) -> bool:
        """Whether the stream may end here without cutting a frame."""
        return not self._partial

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that these bytes complete. Raises ProtocolError; the decoder is then good for nothing."""
        frames: list[bytes] = []
        position = self._resume(data, frames) if self._partial else 0
        end = len(data)
        while end - position >= HEADER_BYTES:
            stop = position + HEADER_BYTES + frame_length(data, self._limit, position)
            if stop > end:
                self._wanted = stop - position
                break
            frames.append(data[position + HEADER_BYTES : stop])
            position = stop
        if position < end:
            self._partial += memoryview(data)[position:]
        return frames

    def _resume(self, data: bytes, frames: list[bytes]) -> int:
        """Complete the partial frame as far as the bytes go; how many of them that took."""
        partial, taken = self._partial, 0
        while True:
            missing = self._wanted - len(partial)
            partial += memoryview(data)[taken : taken + missing]
            taken = min(taken + missing, len(data))
            if len(partial) < self._wanted:
                return taken
            if self._wanted == HEADER_BYTES:
                self._wanted += frame_length(partial, self._limit)
            if len(partial) == self._wanted:
                frames.append(bytes(memoryview(partial)[HEADER_BYTES:]))
                partial.clear()
                self._wanted = HEADER_BYTES
                return taken
