"""The one place where the watches of a process meet the replica's changes."""

from __future__ import annotations

from typing import Final

from replikv.errors import ClusterClosedError, CompactedError, ConfigurationError
from replikv.machine import keyspace as mvcc
from replikv.machine.keyspace import Keyspace
from replikv.store.replicator import Replicator
from replikv.store.watch import Watch, WatchOptions
from replikv.store.watch_index import Audience, WatchIndex

__all__ = ["WatchHub"]

SPARE_STEPS: Final = 256
"""Steps that the readers of all watches together may take, after each sweep, without a pause: some 2 ms of them."""


class WatchHub:
    """Distributes what the replica has applied to the live watches, in one sweep per turn of the driver.

    What a change costs depends on the watches that match it, never on how many there are (``store/watch_index.py``).
    What matches is gathered once for all watches of the same keys; to hand it to one of them costs a few pointers.
    """

    def __init__(self, replicator: Replicator) -> None:
        self._replicator = replicator
        self._watches_max = replicator.settings.watches_max
        self.progress_interval_s = replicator.settings.watch_progress_interval_s
        self._closed = False
        self._open = 0
        """Watches that were opened and not closed, live or not."""
        self._live = WatchIndex()
        self._pin: mvcc.Pin | None = None
        """At the revision up to which the live watches have everything: a command of the same sweep may compact what
        they are yet to get. None exactly while there are no live watches."""
        self._keyspace: Keyspace | None = None
        """Whose pin that is: a snapshot that is installed comes with another."""
        self.spare_steps = 0
        """How often readers may go on without a pause until the next sweep."""
        replicator.add_listener(self._publish)

    @property
    def keyspace(self) -> Keyspace:
        """The replica's, as it is now."""
        return self._replicator.replica.keyspace

    @property
    def published(self) -> int:
        """The revision up to which the live watches, of which there must be one, have everything."""
        assert self._pin is not None
        return self._pin.revision

    def check_open(self) -> None:
        """Raise ClusterClosedError unless the cluster is open."""
        if self._closed:
            raise _closed_error()
        self._replicator.check_open()

    def open(self, options: WatchOptions, *, since: int | None = None, snapshot: bool = False) -> Watch:
        """A watch of what comes after ``since``, now by default; its caller closes it.

        A ``since`` below the retained history is told by the watch's first step. Raises ConfigurationError when
        ``settings.watches_max`` watches are open.
        """
        if self._open >= self._watches_max:
            raise ConfigurationError(
                f"this process has {self._open} watches and subscriptions open, and watches_max allows"
                f" {self._watches_max}: leave some, watch a prefix instead of many keys, or raise watches_max"
            )
        keyspace = self.keyspace
        watch = Watch(self, options, keyspace.revision if since is None else since)
        self._open += 1
        selection = options.selection
        wanted = snapshot and (selection.kinds is None or "put" in selection.kinds)
        state = keyspace.scan(selection.keys) if wanted else iter(()) if snapshot else None
        watch.start(state)
        return watch

    def watch_closed(self) -> None:
        """One that was opened is open no more, and not live."""
        self._open -= 1

    def close(self) -> None:
        """The cluster closes: every watch ends with ClusterClosedError, once its reader has what was ready."""
        self._closed = True
        self._replicator.remove_listener(self._publish)
        for watch in list(self._live):
            watch.end(_closed_error())

    def add(self, watch: Watch) -> None:
        """Offer the watch what is changed from now on."""
        if self._pin is None:
            self._keyspace = self.keyspace
            self._pin = self._keyspace.pin()
        self._live.add(watch)

    def remove(self, watch: Watch) -> None:
        """Offer it no more."""
        self._live.remove(watch)
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
        # What matches, for each audience. Not kept with the audiences: there may be ten thousand of them, and the
        # garbage collector would look at what each was told last.
        batches: dict[Audience, list[mvcc.Change]] = {}
        audiences_of = self._live.audiences_of
        for _, changes in keyspace.changes_pinned(self._pin, keyspace.revision):
            for change in changes:
                for audience in audiences_of(change[0]):
                    batch = batches.get(audience)
                    if batch is None:
                        batches[audience] = [change]
                    else:
                        batch.append(change)
        done, self._pin = self._pin, keyspace.pin()
        done.release()
        after = done.revision
        self.spare_steps = SPARE_STEPS
        for audience, batch in batches.items():
            for watch in audience.watches[:]:  # one that lags leaves
                watch.offer(after, batch)

    def _follow(self, keyspace: Keyspace) -> bool:
        """A snapshot was installed. It carries the retained history; a watch that needs more than that has a gap.

        Whether a live watch is left.
        """
        assert self._pin is not None
        published = self._pin.revision
        if published < keyspace.floor:
            for watch in list(self._live):
                if watch.position < keyspace.floor:
                    watch.end(
                        CompactedError(
                            f"this replica was replaced by a snapshot whose history begins at {keyspace.floor}; the"
                            f" watch of {watch.selection} has what came until {published}: read the state anew",
                            keyspace.floor,
                        )
                    )
            if not self._live:
                return False
        self._keyspace = keyspace
        self._pin = keyspace.pin(max(published, keyspace.floor))
        return True


def _closed_error() -> ClusterClosedError:
    return ClusterClosedError("the cluster was closed: there are no more changes to watch from here")
