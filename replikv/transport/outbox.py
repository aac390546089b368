"""Frames on their way to one peer: a queue that is bounded in bytes, and emptied many frames at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import trio

__all__ = ["FRAME_OVERHEAD_BYTES", "Outbox"]

FRAME_OVERHEAD_BYTES: Final = 64
"""What a queued frame costs beside its bytes: header, bytes object, slot. So empty frames are bounded as well."""

BATCH_BYTES_MAX: Final = 512 * 1024
"""One ``send_all``: enough that small frames share system calls, and little enough to copy in well under 1 ms."""


class Outbox:
    """A bounded queue with one reader. Frames that do not fit are refused, never waited for: Raft sends them again.

    An empty outbox takes any frame, so the largest one always gets through.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._frames: deque[bytes] = deque()
        self._in_hand_bytes = 0
        """What the reader took last: it counts as queued until the reader comes back for more."""
        self.queued_bytes = 0
        """The cost of ``_frames``, and of what is in hand."""
        self._rest = b""
        """What is left of a frame whose beginning has gone out without the reader: it goes first."""
        self._wakeup: trio.Event | None = None
        """Set by the next ``put``; there while the reader waits."""

    @property
    def empty(self) -> bool:
        """Whether nothing is queued, nor in the reader's hand."""
        return not self.queued_bytes

    def put(self, frame: bytes) -> bool:
        """Queue a frame; False when there is no room."""
        cost = len(frame) + FRAME_OVERHEAD_BYTES
        if self.queued_bytes and self.queued_bytes + cost > self._bytes_max:
            return False
        self.queued_bytes += cost
        self._frames.append(frame)
        self._wake()
        return True

    def put_rest(self, rest: bytes) -> None:
        """Queue what is left of a frame that was encoded already. The outbox must be empty."""
        self.queued_bytes += len(rest)
        self._rest = rest
        self._wake()

    async def take(self, encode: Callable[[Iterable[bytes]], bytes]) -> bytes:
        """The next frames, whole and encoded as they go over the wire, at least one. Cancelling it loses nothing."""
        self._settle()
        while not self._frames and not self._rest:  # again, when they were cleared between the wake-up and our turn
            self._wakeup = trio.Event()
            await self._wakeup.wait()
        if self._rest:
            rest, self._rest = self._rest, b""
            self._in_hand_bytes = len(rest)
            return rest
        batch = [self._frames.popleft()]
        batch_bytes = len(batch[0])
        while self._frames and batch_bytes + len(self._frames[0]) <= BATCH_BYTES_MAX:
            frame = self._frames.popleft()
            batch_bytes += len(frame)
            batch.append(frame)
        self._in_hand_bytes = batch_bytes + len(batch) * FRAME_OVERHEAD_BYTES
        return encode(batch)

    def clear(self) -> int:
        """Forget everything; how many frames that were still queued."""
        forgotten = len(self._frames) + bool(self._rest)
        self._frames.clear()
        self._rest = b""
        self.queued_bytes = self._in_hand_bytes = 0
        return forgotten

    def _wake(self) -> None:
        if self._wakeup is not None:
            self._wakeup.set()
            self._wakeup = None

    def _settle(self) -> None:
        self.queued_bytes -= self._in_hand_bytes
        self._in_hand_bytes = 0
