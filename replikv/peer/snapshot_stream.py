"""The snapshot channel, as both of its ends see it (``docs/format.md``): what is said on it, and how long one waits.

The exchange: header -> how many chunks are there already, or a refusal; the chunks after those, end -> installed, or a
refusal. The end carries the number of all chunks and a digest of them. The receiver compares before anything comes of
what it has: two senders whose chunks differ, one of which went on where the other one broke off, are found out.

Nobody waits for ever for a process that was stopped while its connection lives: who has nothing to send for a while
says that it is still there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import Final

import trio

from replikv.transport.base import Channel

__all__ = [
    "ANSWER_MAX_S",
    "BROKEN",
    "CHUNK",
    "END",
    "GO",
    "REFUSED",
    "SILENCE_MAX_S",
    "STILL",
    "STILL_S",
    "ChunkDigest",
    "RefusedError",
    "SilenceError",
    "Transfer",
    "TransferError",
    "encode_had",
    "receive_frame",
    "received_go",
    "received_had",
    "send_frame",
]

# The first byte of a frame behind the header. The numbers are on the wire: never change one.
REFUSED: Final = b"\x00"
GO: Final = b"\x01"
CHUNK: Final = b"\x02"
END: Final = b"\x03"
STILL: Final = b"\x04"
"""Nothing to send yet, but still there."""

SILENCE_MAX_S: Final = 10.0
"""How long a sender may be silent, and a receiver take nothing. Chunks are small, and come from and go to a disk."""

STILL_S: Final = SILENCE_MAX_S / 4
"""After how long a sender that has to wait says that it is there."""

ANSWER_MAX_S: Final = 60.0
"""How long an answer may take. The receiver may have to finish a snapshot of its own first, or sync and install this
one, and is silent meanwhile: that takes seconds, and a process that was stopped must not keep a sender from others."""

_HAD: Final = struct.Struct(">Q")
_DIGEST: Final = struct.Struct(">Q32s")  # chunks, SHA-256 over them
_LENGTH: Final = struct.Struct(">Q")


class TransferError(Exception):
    """A snapshot did not get across; the message says why."""


class RefusedError(TransferError):
    """The other side would not take the snapshot, or does not speak as we do."""


class SilenceError(TransferError):
    """Nothing came, or nothing was taken, for too long: as good as a channel that broke."""


BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel, SilenceError)
"""The channel is over, and nothing is wrong with what came through it."""


@dataclasses.dataclass(slots=True, eq=False)
class Transfer:
    """A snapshot under way, for whoever asks why that takes so long. Times are trio's."""

    since: float
    """When it was asked for."""
    waiting: bool
    """Whether others have to be served first."""
    moved_bytes: int = 0
    """Bytes of chunks that went over the wire."""
    moved_at: float = dataclasses.field(init=False)
    """When the last chunk did, or else ``since``."""

    def __post_init__(self) -> None:
        self.moved_at = self.since

    def moved(self, size: int) -> None:
        """A chunk went over the wire."""
        self.moved_bytes += size
        self.moved_at = trio.current_time()


class ChunkDigest:
    """Counts chunks, and hashes them, each behind its length: the same as ``Replica.digest``."""

    def __init__(self) -> None:
        self.chunks = 0
        self._sha256 = hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        """Take the next chunk in."""
        self.chunks += 1
        self._sha256.update(_LENGTH.pack(len(chunk)))
        self._sha256.update(chunk)

    def end(self) -> bytes:
        """The frame that ends these chunks."""
        return END + _DIGEST.pack(self.chunks, self._sha256.digest())


async def send_frame(channel: Channel, frame: bytes) -> None:
    """Send one frame. Raises SilenceError when the other side takes nothing, and trio's resource errors."""
    with trio.move_on_after(SILENCE_MAX_S) as patience:
        await channel.send(frame)
    if patience.cancelled_caught:
        raise SilenceError(f"the other side has taken nothing for {SILENCE_MAX_S} s")


async def receive_frame(channel: Channel, limit_s: float) -> bytes:
    """The next frame that says something. Raises SilenceError after ``limit_s``, and trio's resource errors."""
    frame = STILL
    while frame == STILL:
        with trio.move_on_after(limit_s) as patience:
            frame = await channel.receive()
        if patience.cancelled_caught:
            raise SilenceError(f"the other side has sent nothing for {limit_s} s")
    return frame


def encode_had(chunks: int) -> bytes:
    """The receiver's answer to a header: go on, behind so many chunks."""
    return GO + _HAD.pack(chunks)


def received_had(frame: bytes) -> int:
    """How many chunks the receiver has already. Raises RefusedError."""
    if frame[:1] != GO or len(frame) != len(GO) + _HAD.size:
        raise _refusal(frame)
    chunks: int = _HAD.unpack_from(frame, len(GO))[0]
    return chunks


def received_go(frame: bytes) -> None:
    """Raise RefusedError unless the receiver has installed it."""
    if frame != GO:
        raise _refusal(frame)


def _refusal(frame: bytes) -> RefusedError:
    if frame[:1] == REFUSED:
        return RefusedError(frame[1:].decode(errors="replace"))
    return RefusedError(f"an answer of {len(frame)} bytes that is none: {frame[:32]!r}")
