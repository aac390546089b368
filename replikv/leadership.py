"""Leadership among the processes of an application: named, fair, fenced. ``cluster.leading()``; rests on the map alone.

Who wants to lead puts a key of his own under the name, with a lease. The key's create_revision is his place in the
line, and later his token:

1. Whoever was made first, of the keys that are there, leads. Keys are made at one revision each, so places are never
   shared, and who is first stays first until his key is gone: those that come later stand behind him.
2. A key vanishes with its lease, and a holder stops before the cluster lets go of that (store/leases.py). So at no time
   do two lead that are not both stopped, or have stopped: see docs/leadership.md for who was stopped with SIGSTOP.
3. Tokens only grow: each leader's key was made later than that of the one before.
4. A candidate watches the one right before him and nobody else: who leaves wakes one.

His replica is all that a candidate has to ask. When his own put returned, it held every key that was made before; none
can come to stand before him after that; and what it has seen deleted is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import AsyncGenerator
from typing import Final

import structlog
import trio

from replikv.errors import (
    CompactedError,
    ConfigurationError,
    LaggedError,
    LeaseExpiredError,
    OutcomeUnknownError,
    UnavailableError,
)
from replikv.store.change import Change
from replikv.store.leases import Lease
from replikv.store.store import Store

__all__ = ["PREFIX", "Leadership", "lead"]

PREFIX: Final = "_replikv/leading/"
"""Keys are PREFIX, the name (% and / escaped as in a URL), a slash, and the lease in 16 hexadecimal digits."""

_log = structlog.get_logger(component="leadership")


@dataclasses.dataclass(frozen=True, slots=True)
class Leadership:
    """A named leadership that this process holds, inside the block that ``cluster.leading()`` opens."""

    name: str
    token: int
    """The fencing token: larger than that of everybody who led under this name before. Have whatever you write to
    refuse a smaller one than it has seen; in the map, make it a condition that ``key`` has this create_revision."""
    key: str
    """The key in ``cluster.store`` that is there as long as this process leads. Its value is the node id."""
    lease: Lease
    """The lease it rests on: keys that are put with it vanish when somebody else may lead."""

    @property
    def remaining_s(self) -> float:
        """For how long this process may rely on it, if nothing more is heard; 0 when it is over."""
        return self.lease.remaining_s


def candidates(name: str) -> str:
    """The prefix of the keys of all who lead, or want to, under a name."""
    if type(name) is not str or not name:
        raise ConfigurationError(f"a leadership has a name, a str that is not empty; not {name!r:.100}")
    return PREFIX + name.replace("%", "%25").replace("/", "%2F") + "/"


@contextlib.asynccontextmanager
async def lead(store: Store, name: str, node_id: str, ttl_s: float) -> AsyncGenerator[Leadership]:
    """As :meth:`Cluster.leading`, on the whole map."""
    prefix = candidates(name)
    leads = False
    body_error: BaseException | None = None
    while True:
        deposed = trio.CancelScope()
        try:
            async with store.lease(ttl_s) as lease:
                key = f"{prefix}{lease.id:016x}"
                token = await _stand(store, key, node_id, lease)
                await _wait_until_first(store, prefix, key, token)
                leads = True
                subscription = store.subscribe(functools.partial(_notice, deposed), prefix=key, since=store.revision)
                try:
                    with deposed:
                        yield Leadership(name, token, key, lease)
                except BaseException as exc:
                    body_error = exc
                    raise
                finally:
                    subscription.cancel()
        except (LeaseExpiredError, UnavailableError, OutcomeUnknownError) as exc:
            if leads:
                if exc is body_error or not isinstance(exc, LeaseExpiredError):
                    raise
                raise LeaseExpiredError(f"the leadership {name!r} was lost: {exc}") from None
            _log.info("candidate again", name=name, node=node_id, reason=str(exc))
            continue
        if deposed.cancelled_caught:
            raise LeaseExpiredError(f"the leadership {name!r} was lost: its key {key!r} was deleted by somebody else")
        return


async def _stand(store: Store, key: str, node_id: str, lease: Lease) -> int:
    """Make the key; its create_revision. Nobody else makes it: leases are never granted twice."""
    await store.put(key, node_id, lease=lease)
    try:
        return store.entry(key).create_revision
    except KeyError:
        raise LeaseExpiredError(f"the key {key!r} was deleted as soon as it was made") from None


async def _wait_until_first(store: Store, prefix: str, key: str, token: int) -> None:
    while True:
        # Of one moment: there is no await in between.
        revision = store.revision
        entries = [store.entry(candidate) for candidate in store.keys(prefix)]
        if not any(entry.key == key for entry in entries):
            raise LeaseExpiredError(f"the key {key!r} of a candidate was deleted by somebody else")
        before = [entry for entry in entries if entry.create_revision < token]
        if not before:
            return
        predecessor = max(before, key=lambda entry: entry.create_revision).key
        with contextlib.suppress(CompactedError, LaggedError):  # then look again
            async with store.watch(predecessor, since=revision) as changes:
                async for change in changes:
                    if change.kind != "put":
                        break


def _notice(deposed: trio.CancelScope, change: Change) -> None:
    if change.kind != "put":
        deposed.cancel()
