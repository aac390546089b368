"""Callbacks for changes: each subscription is a task of its own that reads a watch."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from replikv.errors import ClusterClosedError, CompactedError, LaggedError
from replikv.store.change import Change
from replikv.store.watch import Watch

__all__ = ["Subscription"]

log = structlog.get_logger(__name__)


class Subscription:
    """A callback that is told of changes, until :meth:`cancel` or until the cluster closes. Made by ``subscribe``.

    The callback is called for one change at a time, in order. Where the watch below it ends, it is opened again: after
    a LaggedError nothing is lost, the history is read; after a CompactedError what lay between was forgotten by the
    cluster itself. The latter is the one place where changes are missed, and ``on_error`` is told in both cases.
    """

    def __init__(
        self,
        open_watch: Callable[[int | None], Watch],
        since: int | None,
        callback: Callable[[Change], object],
        on_error: Callable[[Exception], object] | None,
    ) -> None:
        self._open_watch = open_watch
        self._callback = callback
        self._on_error = on_error
        # Opened here and not by the task: what is put after subscribe() has returned is told.
        self._watch = open_watch(since)
        self._scope = trio.CancelScope()

    def cancel(self) -> None:
        """Call back no more. A callback that is at an ``await`` is cancelled there; may be called from the callback."""
        self._scope.cancel()
        self._watch.close()

    async def run(self) -> None:
        """The subscription's task."""
        try:
            with self._scope:
                while True:
                    try:
                        await self._deliver()
                    except BaseExceptionGroup as group:
                        # A nursery of the callback's was cancelled, and something in it failed on its way out.
                        cancelled, failed = group.split(trio.Cancelled)
                        if failed is not None:
                            log.exception("a subscription's callback failed", exc_info=failed)
                        if cancelled is not None:
                            raise cancelled from None
        except (ClusterClosedError, trio.ClosedResourceError):
            pass  # the end of every subscription; the second when cancel() overtakes a change that just came
        finally:
            self._watch.close()

    async def _deliver(self) -> None:
        try:
            async for change in self._watch:
                try:
                    await _call(self._callback, change)
                except Exception as exc:
                    log.exception("a subscription's callback failed", key=change.key, revision=change.revision)
                    await self._tell(exc)
        except (LaggedError, CompactedError) as exc:
            log.warning("a subscription fell behind", reason=str(exc), goes_on_from=exc.revision)
            self._watch.close()  # first: there may be no room for one more
            self._watch = self._open_watch(exc.revision)
            await self._tell(exc)

    async def _tell(self, error: Exception) -> None:
        if self._on_error is None:
            return
        try:
            await _call(self._on_error, error)
        except Exception:
            log.exception("a subscription's on_error failed", error=repr(error))


async def _call(function: Callable[[Any], object], argument: object) -> None:
    result = function(argument)
    if inspect.isawaitable(result):
        awaitable: Awaitable[object] = result
        await awaitable
