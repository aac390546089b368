"""One of many leads, and all know what it proclaims."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

import trio

from replikv import Claim, CompactedError, Contenders, LaggedError, LeaseExpiredError, Put, Store
from replikv.recipes.acquiring import Holders, nearest
from replikv.recipes.names import home

__all__ = ["Elected", "Election", "Leader", "Leaders"]


@dataclasses.dataclass(frozen=True, slots=True)
class Leader:
    """Who leads, as others see it."""

    value: Any
    """What it proclaims."""
    token: int
    """Its fencing token: a later leader has a greater one."""
    revision: int
    """Of the proclamation."""


class Elected:
    """What the leader has in hand, in the block of :meth:`Election.campaign`."""

    def __init__(self, store: Store, claim: Claim, scope: trio.CancelScope) -> None:
        self.claim = claim
        """The key that says so, its token and its fence."""
        self._store = store
        self._scope = scope
        self._ended = trio.Event()

    @property
    def token(self) -> int:
        """A fencing token: greater than that of every leader before."""
        return self.claim.token

    async def proclaim(self, value: Any) -> int:
        """Tell everybody something else; the revision of that.

        LeaseExpiredError, and nobody is told, if another may lead by now. Cancelled, it may have been told.
        """
        put = Put(self.claim.key, value, lease=self.claim.lease)
        done = await self._store.txn([self.claim.fence], [put])
        if not done.succeeded:
            raise LeaseExpiredError(f"{self.claim.key} is gone: this leader was deposed, and proclaims nothing more")
        return done.revision

    async def resign(self) -> None:
        """Give up leading: the body is cancelled, the block ends as if the body had, and the next one leads.

        From within the body it does not return; for other tasks, when the cluster knows.
        """
        self._scope.cancel()
        await self._ended.wait()


class Leaders:
    """An async iterator: who leads now, then whoever leads, or proclaims something else, later; None for nobody.

    It tells what is, not all that was: what lasted shortly while its reader was busy may be left out, and the newest
    never is. Tokens, and revisions of one token, only grow. It has nothing to close.
    """

    def __init__(self, store: Store, contenders: Contenders) -> None:
        self._store = store
        self._contenders = contenders
        self._told: Leader | None = None
        self._begun = False

    def __aiter__(self) -> Leaders:
        return self

    async def __anext__(self) -> Leader | None:
        await trio.lowlevel.checkpoint()
        while True:
            with contextlib.suppress(LaggedError, CompactedError):
                async with self._store.watch(self._contenders.prefix, previous=False) as changes:
                    while (leader := leader_of(self._contenders)) == self._told and self._begun:
                        await anext(changes)
                    self._begun, self._told = True, leader
                    return leader


class Election:
    """Candidates of all processes, one of whom leads: the one who has waited longest.

    ::

        election = Election(store, "scheduler")
        async with election.campaign({"url": "http://10.0.0.1:8000"}) as elected:
            ...  # leads

        async for leader in election.observe():
            ...  # leader.value["url"], or None while nobody leads

    The same promises as :class:`Lock` makes, whose holder leads: the body is cancelled and LeaseExpiredError raised
    when leadership is lost, and ``elected.claim.fence`` has the cluster refuse what comes too late. To lead without
    telling anybody anything, ``cluster.leading(name)`` is enough.

    Args:
        store: the map; its keys are below ``elections/NAME/`` in it.
        name: the same wherever it is used. No slash.
        ttl_s: how long the cluster waits for a leader that is gone.
    """

    def __init__(self, store: Store, name: str, *, ttl_s: float = 10.0) -> None:
        self._store = store
        self._holders = Holders(store, home(store, "elections", name), ttl_s)

    @contextlib.asynccontextmanager
    async def campaign(self, value: Any = None) -> AsyncGenerator[Elected]:
        """Run the block when this candidate leads, proclaiming ``value``. Leaving it is to resign.

        Cancelled while waiting, it is no candidate any more. A task that campaigns already gets RuntimeError.
        """
        elected = None
        try:
            async with self._holders.hold(nearest, value) as claim:
                with trio.CancelScope() as scope:
                    elected = Elected(self._store, claim, scope)
                    yield elected
        finally:
            if elected is not None:
                elected._ended.set()

    def observe(self) -> Leaders:
        """Who leads and what it proclaims, from now on, as this process's replica comes to know it."""
        return Leaders(self._store, self._holders.contenders)

    async def leader(self) -> Leader | None:
        """Who leads now, or None; linearizable."""
        await self._store.barrier()
        return leader_of(self._holders.contenders)


def leader_of(contenders: Contenders) -> Leader | None:
    """The first in line, as this replica knows."""
    entries = contenders.all()
    return Leader(entries[0].value, entries[0].create_revision, entries[0].mod_revision) if entries else None
