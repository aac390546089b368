"""Streams of committed changes: every one, once, in revision order, without a gap.

A watch reads the retained history at its reader's own pace until it has caught up; then it is *live*: the hub puts
what matches its prefix into its buffer, out of the driver's turn. Both ends of that seam are synchronous, so nothing
falls between them. A live watch whose buffer is full ends with LaggedError; what it missed is in the history.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Final

import trio

from replikv.errors import ClusterClosedError, CompactedError, LaggedError
from replikv.machine import keyspace as mvcc
from replikv.machine.keyspace import Keyspace
from replikv.machine.ranges import KeyRange
from replikv.machine.record import Record, pack_record, unpack_record, value_of
from replikv.machine.values import decode_value
from replikv.store.change import Change
from replikv.store.replicator import Replicator

__all__ = ["Watch", "WatchHub"]

SLICE_CHANGES: Final = 1024
"""Changes of the history that are looked at between two checkpoints: about 0.2 ms."""


class Watch:
    """An async iterator of changes, made by ``async with store.watch(...) as changes``.

    Iteration never ends by itself: it raises LaggedError, CompactedError or ClusterClosedError, and
    trio.ClosedResourceError once the block is left. Several tasks may iterate over one watch: each change then goes
    to one of them. A cancelled ``__anext__`` takes no change.
    """

    def __init__(self, hub: WatchHub, prefix: str, scope: str, since: int, buffer: int) -> None:
        self._hub = hub
        self.prefix = prefix
        """Of the whole key, scope included."""
        self._scope_length = len(scope)
        self._buffer = buffer
        # Every matching change up to this revision was delivered or is in _ready. Not kept up to date while live:
        # whatever the hub then offers above it is new.
        self.position = since
        self._ready: deque[mvcc.Change] = deque()
        self._state: Iterator[tuple[str, Record]] | None = None
        self._live = False
        self._error: Exception | None = None
        # Tasks that wait for a change; empty unless live.
        self._readers = trio.lowlevel.ParkingLot()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Change:
        await trio.lowlevel.checkpoint()
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self._live:
                await self._readers.park()
            else:
                self._read()
                if not self._ready and not self._live:
                    await trio.lowlevel.checkpoint()
        key, record, previous = self._ready.popleft()
        value, _, revision, _, lease = unpack_record(record)
        return Change(
            key[self._scope_length :],
            None if value is None else decode_value(value),
            None if previous is None else decode_value(value_of(previous)),
            revision,
            "put" if value is not None else "expire" if lease else "delete",
        )

    def close(self) -> None:
        """Take no more changes, and give none. Idempotent."""
        self._ready.clear()
        self.end(trio.ClosedResourceError("the watch was closed: its block was left"))

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
        taken = 0
        for key, record in itertools.islice(state, min(self._buffer, SLICE_CHANGES)):
            value, created, _, version, lease = unpack_record(record)
            self._ready.append((key, pack_record(value, created, self.position, version, lease), None))
            taken += 1
        if not taken:
            self._state = None

    def _read_history(self, keyspace: Keyspace) -> None:
        seen = 0
        if self.position < keyspace.revision:
            for revision, changes in keyspace.changes_since(self.position):
                self._ready.extend(change for change in changes if change[0].startswith(self.prefix))
                self.position = revision
                seen += len(changes)
                if seen >= SLICE_CHANGES or len(self._ready) >= self._buffer:
                    return
        self._go_live()

    def _go_live(self) -> None:
        self._live = True
        self._hub.add(self)

    # -- the hub's side: no user code, no decoding, no exceptions ------------------------------------------------------

    def offer(self, revision: int, changes: Sequence[mvcc.Change]) -> None:
        """Take all changes of one revision, or none and end as lagging.

        An empty buffer takes a revision of any size (``operations_per_command_max`` bounds it): so to go on from the
        error always makes progress.
        """
        if revision <= self.position:
            return
        ready = self._ready
        if ready and len(ready) + len(changes) > self._buffer:
            self.end(
                LaggedError(
                    f"the watch of {self.prefix!r} fell behind: {len(ready)} changes wait in its buffer of"
                    f" {self._buffer}; go on with since={revision - 1}, with a faster loop or a larger buffer",
                    revision - 1,
                )
            )
            return
        ready.extend(changes)
        if self._readers:
            self._readers.unpark_all()

    def end(self, error: Exception) -> None:
        """No more changes; readers get the error once they have taken what is ready."""
        self._error = error
        self._state = None
        if self._live:
            self._live = False
            self._hub.remove(self)
        self._readers.unpark_all()


class WatchHub:
    """Distributes what the replica has applied to the live watches, in one sweep per turn of the driver.

    What a change costs depends on the watches that match it, and on how many lengths their prefixes have: never on how
    many watches there are.
    """

    def __init__(self, replicator: Replicator) -> None:
        self._replicator = replicator
        self._closed = False
        self._live: dict[str, dict[Watch, None]] = {}
        """prefix -> the live watches of it. No empty dicts."""
        self._watches_of_length: Counter[int] = Counter()
        """How many live watches have a prefix of that length. No zeros."""
        self._lengths: list[int] = []
        """Its keys, ascending."""
        self._pin: mvcc.Pin | None = None
        """At the revision up to which the live watches have everything: a command of the same sweep may compact what
        they are yet to get. None exactly while there are no live watches."""
        self._keyspace: Keyspace | None = None
        """Whose pin that is: a snapshot that is installed comes with another."""
        replicator.add_listener(self._publish)

    @property
    def keyspace(self) -> Keyspace:
        """The replica's, as it is now."""
        return self._replicator.replica.keyspace

    def check_open(self) -> None:
        """Raise ClusterClosedError unless the cluster is open."""
        if self._closed:
            raise _closed_error()
        self._replicator.check_open()

    def open(self, prefix: str, scope: str, *, since: int | None, snapshot: bool, buffer: int) -> Watch:
        """A watch of what comes after ``since``, now by default; its caller closes it.

        ``prefix`` is that of whole keys, and begins with ``scope``. A ``since`` below the retained history is told by
        the watch's first step.
        """
        keyspace = self.keyspace
        watch = Watch(self, prefix, scope, keyspace.revision if since is None else since, buffer)
        watch.start(keyspace.scan(KeyRange(prefix=prefix)) if snapshot else None)
        return watch

    def close(self) -> None:
        """The cluster closes: every watch ends with ClusterClosedError, once its reader has what was ready."""
        self._closed = True
        self._replicator.remove_listener(self._publish)
        for watch in self._all():
            watch.end(_closed_error())

    def add(self, watch: Watch) -> None:
        """Offer the watch what is changed from now on."""
        if self._pin is None:
            self._keyspace = self.keyspace
            self._pin = self._keyspace.pin()
        self._live.setdefault(watch.prefix, {})[watch] = None
        length = len(watch.prefix)
        self._watches_of_length[length] += 1
        if self._watches_of_length[length] == 1:
            self._lengths = sorted(self._watches_of_length)

    def remove(self, watch: Watch) -> None:
        """Offer it no more."""
        watches = self._live[watch.prefix]
        del watches[watch]
        if not watches:
            del self._live[watch.prefix]
        length = len(watch.prefix)
        self._watches_of_length[length] -= 1
        if not self._watches_of_length[length]:
            del self._watches_of_length[length]
            self._lengths = sorted(self._watches_of_length)
        if not self._live and self._pin is not None:
            self._pin.release()
            self._pin = self._keyspace = None

    def _publish(self) -> None:
        if self._pin is None:
            return
        keyspace = self.keyspace
        if keyspace is not self._keyspace and not self._follow(keyspace):
            return
        if keyspace.revision == self._pin.revision:
            return
        for revision, changes in keyspace.changes_pinned(self._pin, keyspace.revision):
            self._distribute(revision, changes)
            if self._pin is None:
                return  # the last live watch has ended
        done, self._pin = self._pin, keyspace.pin()
        done.release()

    def _follow(self, keyspace: Keyspace) -> bool:
        """A snapshot was installed. It carries the retained history; a watch that needs more than that has a gap.

        Whether a live watch is left.
        """
        assert self._pin is not None
        published = self._pin.revision
        if published < keyspace.floor:
            for watch in self._all():
                if watch.position < keyspace.floor:
                    watch.end(
                        CompactedError(
                            f"this replica was replaced by a snapshot whose history begins at {keyspace.floor}; the"
                            f" watch of {watch.prefix!r} has what came until {published}: read the state anew",
                            keyspace.floor,
                        )
                    )
            if not self._live:
                return False
        self._keyspace = keyspace
        self._pin = keyspace.pin(max(published, keyspace.floor))
        return True

    def _distribute(self, revision: int, changes: mvcc.Changes) -> None:
        if len(changes) == 1:
            for watch in self._watches_of(changes[0][0]):
                watch.offer(revision, changes)
            return
        matching: dict[Watch, list[mvcc.Change]] = {}
        for change in changes:
            for watch in self._watches_of(change[0]):
                matching.setdefault(watch, []).append(change)
        for watch, own in matching.items():
            watch.offer(revision, own)

    def _watches_of(self, key: str) -> list[Watch]:
        watches: list[Watch] = []
        for length in self._lengths:
            if length > len(key):
                break
            found = self._live.get(key[:length])
            if found is not None:
                watches += found
        return watches

    def _all(self) -> list[Watch]:
        return [watch for watches in self._live.values() for watch in watches]


def _closed_error() -> ClusterClosedError:
    return ClusterClosedError("the cluster was closed: there are no more changes to watch from here")
