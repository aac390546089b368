"""Streams of committed changes: every one that is asked for, once, in revision order, without a gap.

A watch reads the retained history at its reader's own pace until it has caught up; then it is *live*: the hub hands
what matches to it, out of the driver's turn. Both ends of that seam are synchronous, so nothing falls between them. A
live watch whose buffer is full ends with LaggedError; what it missed is in the history.

Values are decoded by the reader's step, never in the driver's turn.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import trio

from replikv.errors import ClusterClosedError, CompactedError, LaggedError
from replikv.machine import keyspace as mvcc
from replikv.machine.keyspace import Keyspace
from replikv.machine.record import Record, mod_revision_of, pack_record, unpack_record, value_of
from replikv.machine.values import decode_value
from replikv.store.change import Change
from replikv.store.pending import Coalesced
from replikv.store.selection import Selection

if TYPE_CHECKING:
    from replikv.store.watch_hub import WatchHub

__all__ = ["Watch", "WatchOptions"]

SLICE_CHANGES: Final = 1024
"""Changes of the history that are looked at between two checkpoints: about 0.2 ms."""

RUN_S: Final = 0.001
"""How long a reader goes on without a pause, while the hub has steps to spare: what he does with a change counts, too."""


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
        "_closed",
        "_error",
        "_hub",
        "_live",
        "_mark_due",
        "_options",
        "_pause_at",
        "_ready",
        "_since",
        "_sleepers",
        "_state",
        "_told",
        "position",
        "selection",
    )

    def __init__(self, hub: WatchHub, options: WatchOptions, since: int) -> None:
        self._hub = hub
        self._options = options
        self.selection = options.selection
        # Every matching change up to this revision was delivered or is in _ready. Not kept up to date while live:
        # whatever the hub then offers above it is new.
        self.position = since
        # Whatever changed has a greater revision; the state that a watch may begin with has this one.
        self._since = since
        self._ready: deque[mvcc.Change] | Coalesced = Coalesced() if options.coalesce else deque()
        self._state: Iterator[tuple[str, Record]] | None = None
        self._live = False
        self._closed = False
        self._error: Exception | None = None
        # Tasks that wait for a change, first come first; empty unless live.
        self._sleepers: list[trio.lowlevel.Task] = []
        # When a reader is to let others go on, though a change is ready.
        self._pause_at = 0.0
        # The revision of the last change or mark that was told; and whether a mark is to come once nothing is ready.
        self._told = since
        self._mark_due = False

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Change:
        if self._ready and self._hub.spare_steps > 0 and trio.current_time() < self._pause_at:
            self._hub.spare_steps -= 1
            await trio.lowlevel.checkpoint_if_cancelled()
        elif self._ready or self._mark_due or not self._live:
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
            elif not self._options.progress:
                await self._sleep()
            elif not await self._sleep_for(self._hub.progress_interval_s):
                self._mark_due = self._mark_due or self._hub.published > self._told
        return self._tell(*self._ready.popleft())

    async def _pause(self) -> None:
        await trio.lowlevel.checkpoint()
        self._pause_at = trio.current_time() + RUN_S

    async def _sleep(self) -> None:
        """Wait for a change, or for the end. Another reader of this watch may be quicker."""
        task = trio.lowlevel.current_task()
        sleepers = self._sleepers
        sleepers.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            sleepers.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        self._pause_at = trio.current_time() + RUN_S

    async def _sleep_for(self, seconds: float) -> bool:
        """Whether there was anything within that time."""
        with trio.move_on_after(seconds) as waiting:
            await self._sleep()
        return not waiting.cancelled_caught

    def _tell(self, key: str, record: Record, replaced: Record | None) -> Change:
        options = self._options
        value, _, revision, _, lease = unpack_record(record)
        self._told = revision
        return Change(
            key[len(options.scope) :],
            None if value is None else decode_value(value),
            None if replaced is None or not options.previous else decode_value(value_of(replaced)),
            revision,
            "put" if value is not None else "expire" if lease else "delete",
            value is not None and replaced is None and revision > self._since,
        )

    def _mark(self) -> Change | None:
        """The mark that is due; None while the replica is not yet where the reader has been before."""
        revision = self._hub.published if self._live else self.position
        if revision < self.position:
            return None
        self._mark_due = False
        self._told = revision
        return Change("", None, None, revision, "progress")

    def close(self) -> None:
        """Take no more changes, and give none. Idempotent."""
        if not self._closed:
            self._closed = True
            self._ready.clear()
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
        self._ready.extend(batch)
        if not batch:
            self._state = None
            self._mark_due = self._options.progress

    def _read_history(self, keyspace: Keyspace) -> None:
        seen = 0
        selection, ready = self.selection, self._ready
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
        self._mark_due = self._options.progress

    # -- the hub's side: no user code, no decoding, no exceptions ------------------------------------------------------

    def offer(self, batch: Sequence[mvcc.Change]) -> None:
        """Take the changes of one sweep to keys of the selection: whole revisions, in order.

        What does not fit ends the watch as lagging, at the revision before.
        """
        if mod_revision_of(batch[0][1]) <= self.position:  # the reader was ahead of this replica
            batch = [change for change in batch if mod_revision_of(change[1]) > self.position]
        if self.selection.kinds is not None:
            batch = [change for change in batch if self.selection.takes(change[1])]
        if len(self._ready) + len(batch) <= self._options.buffer:
            self._ready.extend(batch)
        else:
            self._take_what_fits(batch)
        for _ in range(min(len(self._ready), len(self._sleepers))):
            trio.lowlevel.reschedule(self._sleepers.pop(0))

    def _take_what_fits(self, batch: Sequence[mvcc.Change]) -> None:
        """Take all changes of a revision, or none and end.

        An empty buffer takes a revision of any size (``operations_per_command_max`` bounds it): so to go on from the
        error always makes progress.
        """
        ready, buffer = self._ready, self._options.buffer
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


def _as_of(record: Record, revision: int) -> Record:
    """The record as one of the state at a revision."""
    value, created, _, version, lease = unpack_record(record)
    return pack_record(value, created, revision, version, lease)
