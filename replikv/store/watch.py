"""Streams of committed changes: every one that is asked for, once, in revision order, without a gap.

A watch reads the retained history at its reader's own pace until it has caught up; then it is *live*: the hub hands
what matches to it, out of the driver's turn. Both ends of that seam are synchronous, so nothing falls between them. A
live watch whose buffer is full ends with LaggedError; what it missed is in the history.

Values are decoded by the reader's step, never in the driver's turn.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import outcome
import trio

from replikv.errors import ClusterClosedError, CompactedError, InternalError, LaggedError
from replikv.machine import keyspace as mvcc
from replikv.machine.keyspace import Keyspace
from replikv.machine.record import Record, mod_revision_of, pack_record, unpack_record, value_of
from replikv.machine.values import decode_value
from replikv.store.change import Change
from replikv.store.pending import Coalesced
from replikv.store.selection import Selection, kind_of

if TYPE_CHECKING:
    from replikv.store.watch_hub import WatchHub

__all__ = ["Watch", "WatchOptions"]

SLICE_CHANGES: Final = 1024
"""Changes of the history that are looked at between two checkpoints: about 0.2 ms."""

RUN_S: Final = 0.001
"""How long a reader goes on without a pause, while the hub has steps to spare; with what he does meanwhile."""


@dataclasses.dataclass(frozen=True, slots=True)
class WatchOptions:
    """What a watch is to tell, and how."""

    selection: Selection
    scope: str = ""
    """What is left out of the keys that are told, at their beginning."""
    buffer: int = 1024
    """Changes that wait for the reader, at the most; a single revision may have more."""
    previous: bool = True
    """Whether values before are decoded and told."""
    progress: bool = False
    coalesce: bool = False


class Watch:
    """An async iterator of changes, made by ``async with store.watch(...) as changes``.

    Iteration never ends by itself: it raises LaggedError, CompactedError or ClusterClosedError, and
    trio.ClosedResourceError once the block is left. Several tasks may iterate over one watch: each change then goes
    to one of them. A cancelled ``__anext__`` takes no change.

    Each step is a checkpoint. One that finds a change ready may go on at once, without a turn of other tasks: for a
    millisecond at most, and so often only that all readers of a peer together cost its other tasks little. A reader
    whom every change cost a turn would never keep up with commands that are applied by the dozen in each.
    """

    __slots__ = (
        "_abort",
        "_closed",
        "_error",
        "_hub",
        "_kinds",
        "_live",
        "_mark_due",
        "_marked",
        "_options",
        "_pause_at",
        "_progress",
        "_ready",
        "_scope_length",
        "_since",
        "_sleeper",
        "_sleepers",
        "_state",
        "_told",
        "position",
    )

    def __init__(self, hub: WatchHub, options: WatchOptions, since: int) -> None:
        self._hub = hub
        self._options = options
        # Three of the options again: what every change needs. With many watches, each look elsewhere misses the caches.
        self._kinds = options.selection.kinds
        self._scope_length = len(options.scope)
        self._progress = options.progress
        # Every matching change up to this revision was delivered or is in _ready. Not kept up to date while live:
        # whatever the hub then offers above it is new.
        self.position = since
        # Whatever changed has a greater revision; the state that a watch may begin with has this one.
        self._since = since
        # What waits for a reader. None until something has to: most watches only ever have readers that wait.
        self._ready: deque[mvcc.Change] | Coalesced | None = None
        self._state: Iterator[tuple[str, Record]] | None = None
        self._live = False
        self._closed = False
        self._error: Exception | None = None
        # Tasks that wait for a change, first come first; empty unless live.
        self._sleepers: list[trio.lowlevel.Task] = []
        # Who went to sleep last, and what wakes it when it is cancelled: made once for a reader, or the garbage
        # collector would have more objects to look at with every change.
        self._sleeper: trio.lowlevel.Task | None = None
        self._abort: Callable[[object], trio.lowlevel.Abort] = _unused
        # When a reader is to let others go on, though a change is ready.
        self._pause_at = 0.0
        # The revision of the last change or mark that was told; that of the last mark; and whether another is to come
        # once nothing is ready.
        self._told = since
        self._marked = -1
        self._mark_due = False

    @property
    def selection(self) -> Selection:
        """What it tells of."""
        return self._options.selection

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Change:
        if self._ready:
            await self._go_on()
        elif self._mark_due or not self._live:
            await self._pause()
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self._mark_due and (mark := self._mark()) is not None:
                return mark
            if not self._live:
                self._read()
                if not self._ready and not self._live:
                    await self._pause()
                continue
            change = await (self._sleep_for(self._hub.progress_interval_s) if self._progress else self._sleep())
            if change is not None and not self._closed:
                return self._tell(*change)
        return self._tell(*self._ready.popleft())

    async def _go_on(self) -> None:
        """A checkpoint before a change that is ready: a turn of other tasks, unless there are steps to spare."""
        hub = self._hub
        if hub.spare_steps > 0 and trio.current_time() < self._pause_at:
            hub.spare_steps -= 1
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await self._pause()

    async def _pause(self) -> None:
        await trio.lowlevel.checkpoint()
        self._pause_at = trio.current_time() + RUN_S

    def _sleep(self) -> Awaitable[mvcc.Change | None]:
        """Wait for a change: one that was handed over, or None when some may be ready, or it is the end."""
        task = trio.lowlevel.current_task()
        self._sleepers.append(task)
        if task is not self._sleeper:
            self._sleeper, self._abort = task, functools.partial(_wake, self._sleepers, task)
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105  # the caller's: no frame for this one

    async def _sleep_for(self, seconds: float) -> mvcc.Change | None:
        """As :meth:`_sleep`; when there was nothing within that time, a mark may be due."""
        with trio.move_on_after(seconds) as waiting:
            return await self._sleep()
        if waiting.cancelled_caught and self._live and self._hub.published > self._told:
            self._mark_due = True
        return None

    def _tell(self, key: str, record: Record, replaced: Record | None) -> Change:
        value, _, revision, _, lease = unpack_record(record)
        self._told = revision
        return Change(
            key[self._scope_length :],
            None if value is None else decode_value(value),
            None if replaced is None or not self._options.previous else decode_value(value_of(replaced)),
            revision,
            "put" if value is not None else "expire" if lease else "delete",
            value is not None and replaced is None and revision > self._since,
        )

    def _mark(self) -> Change | None:
        """The mark that is due, while nothing is ready: so whatever matches up to its revision was told before it.

        None if it would repeat the last one, and while the replica is not yet where the reader has been before: from a
        mark below ``since`` he would be told things twice.
        """
        revision = self._hub.published if self._live else self.position
        if revision < self.position:
            return None
        self._mark_due = False
        if revision == self._marked:
            return None
        self._told = self._marked = revision
        return Change("", None, None, revision, "progress")

    def close(self) -> None:
        """Take no more changes, and give none. Idempotent."""
        if not self._closed:
            self._closed = True
            self._ready = None
            self.end(trio.ClosedResourceError("the watch was closed: its block was left"))
            self._hub.watch_closed()

    # -- the history's side --------------------------------------------------------------------------------------------

    def start(self, state: Iterator[tuple[str, Record]] | None) -> None:
        """Begin: with the state as of ``position`` if it is given, with the history if there is any behind it, or live
        at once: what is changed from here on is seen."""
        self._state = state
        if state is None and self.position >= self._hub.keyspace.revision:
            self._go_live()

    def _read(self) -> None:
        """Fill ``_ready`` with the next slice, whole revisions only, or go live at the history's end."""
        try:
            self._hub.check_open()
            if self._state is not None:
                self._read_state(self._state)
            else:
                self._read_history(self._hub.keyspace)
        except (CompactedError, ClusterClosedError) as exc:
            self._error = exc

    def _read_state(self, state: Iterator[tuple[str, Record]]) -> None:
        """The state is one batch of one revision, cut into slices: a reader goes on behind it when he has all of it."""
        batch = [
            (key, _as_of(record, self.position), None)
            for key, record in itertools.islice(state, min(self._options.buffer, SLICE_CHANGES))
        ]
        self._queue().extend(batch)
        if not batch:
            self._state = None
            self._mark_due = self._progress

    def _read_history(self, keyspace: Keyspace) -> None:
        seen = 0
        selection, ready = self.selection, self._queue()
        if self.position < keyspace.revision:
            for revision, changes in keyspace.changes_since(self.position):
                ready.extend([change for change in changes if change[0] in selection and selection.takes(change[1])])
                self.position = revision
                seen += len(changes)
                if seen >= SLICE_CHANGES or len(ready) >= self._options.buffer:
                    return
        self._go_live()

    def _go_live(self) -> None:
        self._live = True
        self._hub.add(self)
        self._mark_due = self._progress

    # -- the hub's side: no user code, no decoding, no exceptions ------------------------------------------------------

    def offer(self, after: int, batch: Sequence[mvcc.Change]) -> None:
        """Take the changes of one sweep to keys of the selection: whole revisions above ``after``, in order.

        What does not fit ends the watch as lagging, at the revision before.
        """
        if after < self.position:  # the reader was ahead of this replica
            batch = [change for change in batch if mod_revision_of(change[1]) > self.position]
        if self._kinds is not None:
            batch = [change for change in batch if kind_of(change[1]) in self._kinds]
        sleepers = self._sleepers
        if len(batch) == 1 and sleepers and not self._ready:
            trio.lowlevel.reschedule(sleepers.pop(0), outcome.Value(batch[0]))
            return
        ready = self._queue()
        if len(ready) + len(batch) <= self._options.buffer:
            ready.extend(batch)
        else:
            self._take_what_fits(ready, batch)
        for _ in range(min(len(ready), len(sleepers))):
            trio.lowlevel.reschedule(sleepers.pop(0))

    def _queue(self) -> deque[mvcc.Change] | Coalesced:
        ready = self._ready
        if ready is None:
            ready = self._ready = Coalesced() if self._options.coalesce else deque()
        return ready

    def _take_what_fits(self, ready: deque[mvcc.Change] | Coalesced, batch: Sequence[mvcc.Change]) -> None:
        """Take all changes of a revision, or none and end.

        An empty buffer takes a revision of any size (``operations_per_command_max`` bounds it): so to go on from the
        error always makes progress.
        """
        buffer = self._options.buffer
        for revision, group in itertools.groupby(batch, lambda change: mod_revision_of(change[1])):
            changes = list(group)
            growth = ready.growth(changes) if isinstance(ready, Coalesced) else len(changes)
            if ready and growth and len(ready) + growth > buffer:
                self.end(
                    LaggedError(
                        f"the watch of {self.selection} fell behind: {len(ready)} changes wait in its buffer of"
                        f" {buffer}; go on with since={revision - 1}, with a faster loop or a larger buffer",
                        revision - 1,
                    )
                )
                return
            ready.extend(changes)

    def end(self, error: Exception) -> None:
        """No more changes; readers get the error once they have taken what is ready."""
        self._error = error
        self._state = None
        self._mark_due = False
        if self._live:
            self._live = False
            self._hub.remove(self)
        sleepers = self._sleepers[:]
        self._sleepers.clear()  # in place: who waits holds it
        for task in sleepers:
            trio.lowlevel.reschedule(task)


def _wake(sleepers: list[trio.lowlevel.Task], task: trio.lowlevel.Task, _: object) -> trio.lowlevel.Abort:
    """A task that slept is cancelled."""
    sleepers.remove(task)
    return trio.lowlevel.Abort.SUCCEEDED


def _unused(_: object) -> trio.lowlevel.Abort:
    raise InternalError("nobody has gone to sleep")


def _as_of(record: Record, revision: int) -> Record:
    """The record as one of the state at a revision."""
    value, created, _, version, lease = unpack_record(record)
    return pack_record(value, created, revision, version, lease)
