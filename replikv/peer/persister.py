"""Group commit: one thread that makes durable, together, whatever has queued up while it was busy."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

import structlog
import trio

from replikv.raft.stable import Write
from replikv.storage.base import Storage, StorageFullError

__all__ = ["Persister"]

FULL_RETRY_S = 0.5
"""How often a full disk is tried again. Nothing was written, so trying again is sound."""

BATCH_BYTES_MAX = 16 * 1024 * 1024
"""What one sync covers at the most; more waits for the next one."""


class Persister:
    """Hands writes to the storage in order, and hands them back when they are durable.

    Invariant: ``completed`` gets writes in the order of ``submit``, each once, and only after its sync. After a failure
    nothing completes any more, and ``run`` raises it.
    """

    def __init__(self, storage: Storage, wake: Callable[[], None], shutdown_timeout_s: float) -> None:
        self._storage = storage
        self._shutdown_timeout_s = shutdown_timeout_s
        self._wake = wake
        self._queue: queue.SimpleQueue[Write | int | None] = queue.SimpleQueue()
        # Durable, not yet taken by the driver.
        self.completed: list[Write] = []
        self.full = False
        """Whether the disk is full just now: nothing is acknowledged until there is room."""
        # Writes in the queue or in the thread: while there are any, one without content has to keep its place.
        self._outstanding = 0
        self._stopping = False
        self._thread_ended = threading.Event()
        self._thread_scope = trio.CancelScope(shield=True)
        self.abandoned = False
        """Whether the disk did not answer while the peer was leaving: the thread still has the storage in its hands."""
        self._log = structlog.get_logger(component="persister")

    def submit(self, write: Write) -> None:
        """Queue a write. Without a disk it is durable, such as it is, at once."""
        if not self._storage.blocking:
            self._storage.write([write])
        elif write.must_sync or self._outstanding:
            self._outstanding += 1
            self._queue.put(write)
            time.sleep(0)  # let go of the interpreter's lock: the thread should write while this turn goes on
            return
        self.completed.append(write)
        self._wake()

    def release(self, index: int) -> None:
        """Let the storage delete what only holds entries up to ``index``, after the writes queued so far."""
        if not self._storage.blocking:
            self._storage.release(index)
        else:
            self._queue.put(index)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled; what is queued by then is still written, for ``shutdown_timeout_s`` at the most.

        Raises StorageError.
        """
        if not self._storage.blocking:
            task_status.started()
            await trio.sleep_forever()
        token = trio.lowlevel.current_trio_token()
        # A limiter of its own: the application may keep all of trio's default threads busy.
        limiter = trio.CapacityLimiter(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_thread, token, limiter)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._stopping = True
                self._queue.put(None)
                with trio.CancelScope(shield=True):
                    # Waited for by a thread, in real time: a mock clock would not wait for a disk.
                    wait = self._thread_ended.wait
                    if not await trio.to_thread.run_sync(wait, self._shutdown_timeout_s, limiter=limiter):
                        self.abandoned = True
                        self._thread_scope.cancel()

    async def _run_thread(self, token: trio.lowlevel.TrioToken, limiter: trio.CapacityLimiter) -> None:
        with self._thread_scope:
            await trio.to_thread.run_sync(self._write_until_told, token, abandon_on_cancel=True, limiter=limiter)

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _write_until_told(self, token: trio.lowlevel.TrioToken) -> None:
        try:
            more = True
            while more:
                batch, released, more = self._gather()
                if batch:
                    if not self._write(batch, token):
                        return  # and nothing behind it: the log must not have a gap
                    token.run_sync_soon(self._complete, batch)
                if released:
                    self._storage.release(released)
        finally:
            self._thread_ended.set()

    def _gather(self) -> tuple[list[Write], int, bool]:
        """Wait for something to do, then take what there is: writes, the index to release, and whether to go on."""
        batch: list[Write] = []
        size = released = 0
        item = self._queue.get()
        while True:
            if item is None:
                return batch, released, False
            if isinstance(item, Write):
                batch.append(item)
                size += sum(len(entry.data) for entry in item.entries)
            else:
                released = max(released, item)
            if size >= BATCH_BYTES_MAX:
                return batch, released, True
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, released, True

    def _write(self, batch: Sequence[Write], token: trio.lowlevel.TrioToken) -> bool:
        """Whether the batch is durable. It is not when the peer leaves while the disk is full: nobody was told so."""
        durable = [write for write in batch if write.must_sync]
        while durable:
            try:
                self._storage.write(durable)
            except StorageFullError as exc:
                if self._stopping:
                    return False
                token.run_sync_soon(self._report_full, str(exc))
                time.sleep(FULL_RETRY_S)  # in the thread, which has nothing else to do
            else:
                break
        return True

    # -- on the loop ---------------------------------------------------------------------------------------------------

    def _complete(self, batch: list[Write]) -> None:
        self.full = False
        self._outstanding -= len(batch)
        self.completed += batch
        self._wake()

    def _report_full(self, reason: str) -> None:
        if not self.full:
            self._log.warning("disk full", reason=reason)
        self.full = True
