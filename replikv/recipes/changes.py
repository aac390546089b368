"""Waiting for a change, for those who then look at the local replica anyway."""

from __future__ import annotations

from collections.abc import Callable

from replikv import Change, CompactedError, LaggedError, Store

__all__ = ["wait_changed"]


def _any_change(_: Change) -> bool:
    return True


async def wait_changed(
    store: Store, prefix: str, *, since: int, wanted: Callable[[Change], bool] = _any_change
) -> None:
    """Return when a key with this prefix was changed after revision ``since``, in a way that is wanted.

    Look at the replica, note ``store.revision``, and wait, with no await between: then no change is missed. It returns
    too early when there were too many to tell, or the history does not reach back to ``since`` any more: so look again.
    Cancelling it leaves nothing behind.
    """
    try:
        # Coalesced: of a key that was changed many times, only how it is now matters to who looks at it now.
        async with store.watch(prefix, since=since, coalesce=True, previous=False) as changes:
            async for change in changes:
                if wanted(change):
                    return
    except (CompactedError, LaggedError):
        return
