"""The side of the map that tells: watches and subscriptions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager

import trio

from replikv.errors import CompactedError, ConfigurationError
from replikv.store.arguments import check_count
from replikv.store.calls import Calls
from replikv.store.change import Change, Kind
from replikv.store.replicator import Replicator
from replikv.store.selection import select
from replikv.store.subscriptions import Subscription
from replikv.store.watch import Watch, WatchOptions
from replikv.store.watch_hub import WatchHub

__all__ = ["Watching"]


class Watching(Calls):
    """What is told of changes as this process's replica applies them."""

    __slots__ = ("_hub",)

    def __init__(self, replicator: Replicator, hub: WatchHub, prefix: str) -> None:
        super().__init__(replicator, prefix)
        self._hub = hub

    def watch(
        self,
        prefix: str = "",
        *,
        key: str | None = None,
        start: str | None = None,
        stop: str | None = None,
        kinds: Iterable[Kind] | None = None,
        previous: bool = True,
        progress: bool = False,
        coalesce: bool = False,
        since: int | None = None,
        snapshot: bool = False,
        buffer: int = 1024,
    ) -> AbstractAsyncContextManager[Watch]:
        """Every committed change of the keys that begin with ``prefix``: once, in revision order, without a gap.

        ::

            async with store.watch("feature/", since=bookmark) as changes:
                async for change in changes:
                    ...

        From the moment the block is entered, nothing is missed. Neither a change of leader, nor a snapshot that is
        installed under the watch, nor a restart with ``since=`` the last revision one was done with makes a gap.

        Args:
            prefix: "" for all keys (of the scope).
            key: this key only; then neither prefix nor range.
            start: only keys from this one on; with ``stop``, ``prefix`` or both, those that fit all of them.
            stop: only keys below this one.
            kinds: only changes of these kinds, as in ``{"delete", "expire"}``; all by default. The state of
                ``snapshot`` are puts.
            previous: whether ``Change.previous`` is wanted. Without it, it is None, and need not be decoded.
            progress: marks, too: changes of kind "progress"; everything up to their revision has been told before them.
                There is one at the end of the state, one when the history is read and what comes is told as it comes,
                and one whenever there was nothing to tell for ``settings.watch_progress_interval_s`` while others
                changed other keys. A mark is as good for ``since=`` as a change, and keeps up with the history.
            coalesce: of the changes to one key that wait for the reader, only the newest, at its own revision, with the
                value before the oldest of them as ``previous`` (and ``created`` likewise). So many changes of few keys
                never make a reader lag. Revisions still ascend, but a reader may see a part of an ``update`` whose
                other keys were changed again.
            since: what came after this revision, out of the retained history at the reader's pace. One that this
                replica has not reached yet is waited for: what came until then is not shown again to who has seen it
                on another peer. By default: what comes after the block is entered.
            snapshot: first the state as it is when the block is entered, as puts without a previous value, in key
                order, all with the revision of that state; then what comes after it. Not together with ``since``.
            buffer: changes that wait for the reader; a single revision may be larger.

        Raises:
            CompactedError: ``since`` is below the retained history, when the block is entered; or the reader was so
                slow that the history went past him, from the iterator.
            LaggedError: from the iterator; the buffer was full. ``since=error.revision`` goes on without a gap.
            ConfigurationError: arguments that contradict each other; or ``settings.watches_max`` watches are open in
                this process, when the block is entered.
            ClusterClosedError: at the start, or from the iterator, which never just ends.
        """
        selection = select(self._prefix, prefix, key, start, stop, kinds)
        options = WatchOptions(selection, self._prefix, check_count("buffer", buffer, 1), previous, progress, coalesce)
        _check_since(since)
        if snapshot and since is not None:
            raise ConfigurationError("snapshot=True begins with the present state, since= with the past: choose one")
        return self._watching(options, since, snapshot)

    @contextlib.asynccontextmanager
    async def _watching(self, options: WatchOptions, since: int | None, snapshot: bool) -> AsyncGenerator[Watch]:
        await trio.lowlevel.checkpoint()
        self._check_retained(since)
        watch = self._hub.open(options, since=since, snapshot=snapshot)
        try:
            yield watch
        finally:
            watch.close()

    def subscribe(
        self,
        callback: Callable[[Change], object],
        *,
        prefix: str = "",
        key: str | None = None,
        start: str | None = None,
        stop: str | None = None,
        kinds: Iterable[Kind] | None = None,
        previous: bool = True,
        progress: bool = False,
        coalesce: bool = False,
        since: int | None = None,
        buffer: int = 1024,
        on_error: Callable[[Exception], object] | None = None,
    ) -> Subscription:
        """Call ``callback(change)`` for each change, as :meth:`watch` would give it, from this call on.

        Both callbacks may be plain or async functions. They run in a task of the subscription's own, one call at a
        time, in order; a slow one delays nobody else. One that raises is logged, ``on_error`` is told, and it goes on
        with the next change: no change is told twice. For the state as it is now, read it: what is read of this
        process's replica just before this call, without an ``await`` between, is what the first change follows.

        A callback that does not keep up (``on_error`` gets the LaggedError) is told of what it missed out of the
        retained history. Only where that is gone, too (CompactedError), changes are missed: it goes on from the oldest
        revision that is left, ``error.revision``. The subscription ends with the cluster, or by its ``cancel()``.

        Raises CompactedError for a ``since`` below the retained history, ConfigurationError as ``watch`` does, and
        ClusterClosedError.
        """
        selection = select(self._prefix, prefix, key, start, stop, kinds)
        options = WatchOptions(selection, self._prefix, check_count("buffer", buffer, 1), previous, progress, coalesce)
        _check_since(since)
        if not callable(callback):
            raise ConfigurationError(f"callback must be callable, not {callback!r}")
        self._hub.check_open()
        self._check_retained(since)

        def open_watch(since: int | None) -> Watch:
            return self._hub.open(options, since=since)

        subscription = Subscription(open_watch, since, callback, on_error)
        self._replicator.start_soon(subscription.run, f"subscription to {selection}")
        return subscription

    def _check_retained(self, since: int | None) -> None:
        floor = self._keyspace().floor
        if since is not None and since < floor:
            raise CompactedError(
                f"the changes since revision {since} are no longer retained, the history begins at {floor}:"
                " read the state anew, with snapshot=True for example",
                floor,
            )


def _check_since(since: int | None) -> None:
    if since is not None:
        check_count("since", since, 0)
