"""Those who want one thing, in the order in which they came: what leaderships, locks and semaphores are made of.

A contender is a key under a lease of its own. All of it rests on three rules:

1. A key's name holds the id of its lease, which no other lease ever has. So it is made once, and its create revision,
   the *token*, is its place: the same on every replica, and greater than that of everybody who came before.
2. A contender looks around when its replica has applied its own key, hence everything of a smaller revision. So it
   sees whoever is ahead of it, and nobody comes to be ahead of it later: those ahead only become fewer.
3. It waits for keys to go. One goes when its owner lets go, or when the cluster ends its lease; which is the leader's
   to decide, by the leader's clock. No clock of a contender takes part in whose turn it is.

So tokens grow from holder to holder, where holders exclude each other: as long as the key with the smaller token is
there, the greater one waits for it; and once it is gone, it is gone for ever.

Whose turn it is, is what replicas agree on; whether a process knows that its turn is *over* takes a clock, its own: the
block of ``store.lease`` is cancelled before the cluster ends the lease, if that clock runs and the process does. Where
that is not good enough, the token is: see :attr:`Claim.fence`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import Any, TypeAlias

import trio

from replikv.errors import CompactedError, LaggedError, LeaseExpiredError
from replikv.store.change import Change, Kind
from replikv.store.entry import Entry
from replikv.store.leases import Lease
from replikv.store.store import Store
from replikv.store.txn import Compare

__all__ = ["Claim", "Contenders", "Rule", "nearest"]

Rule: TypeAlias = Callable[[Sequence[Entry]], Sequence[Entry]]
"""Of those ahead, in order, the ones to wait for: while all of them are there, it is not one's turn. If none, it is."""


def nearest(ahead: Sequence[Entry]) -> Sequence[Entry]:
    """The rule of who excludes everybody: wait for the last one ahead, and no other, so that nobody wakes in vain."""
    return ahead[-1:]


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """What a contender, or the holder of a lock, has in hand: the key that says so, in the store it was made with."""

    key: str
    token: int
    """The key's create revision. Of two holders that exclude each other, the later has the greater."""
    lease: Lease
    """What the key is kept by. ``lease.remaining_s`` is how long, at the least, if no more renewals arrive."""

    @property
    def fence(self) -> Compare:
        """True for as long as the claim stands: the first of the compares of a transaction that must not come too late.

        ::

            await store.txn([held.fence], [Put("report", "done")])

        The cluster decides that when it applies the transaction, so it is refused (``succeeded`` is False) once the
        claim has been lost, even if this process does not know that yet. In the store (the scope) of the claim.
        """
        return Compare.create_revision(self.key, "==", self.token)


class Contenders:
    """All who want what the keys under a prefix stand for; for recipes of your own.

    ::

        contenders = Contenders(store, "leases-of-rooms/12/", ttl_s=10)
        async with contenders.join("ann") as claim:
            await contenders.wait_turn(claim)
            ...  # alone

    Args:
        store: the map.
        prefix: of the contenders' keys and nothing else; it ends with a separator.
        ttl_s: how long the cluster waits for a contender that is gone.
    """

    def __init__(self, store: Store, prefix: str, ttl_s: float) -> None:
        self._store = store
        self._prefix = prefix
        self._ttl_s = ttl_s

    @property
    def prefix(self) -> str:
        """Of their keys."""
        return self._prefix

    # -- who is there, as this process's replica knows -----------------------------------------------------------------

    def all(self) -> list[Entry]:
        """Everybody, in the order in which they came. O(n log n)."""
        entries = [self._store.entry(key) for key in self._store.keys(self._prefix)]
        return sorted(entries, key=lambda entry: entry.create_revision)

    def ahead_of(self, claim: Claim) -> list[Entry]:
        """Those who came before, in order. Raises LeaseExpiredError if the claim stands no more."""
        self.entry_of(claim)
        return [entry for entry in self.all() if entry.create_revision < claim.token]

    def entry_of(self, claim: Claim) -> Entry:
        """The claim's own. Raises LeaseExpiredError if it stands no more."""
        if not self._stands(claim):
            raise _lost(claim.key, None)
        return self._store.entry(claim.key)

    def _stands(self, claim: Claim) -> bool:
        store = self._store
        return claim.key in store and store.entry(claim.key).create_revision == claim.token

    # -- taking part ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def join(self, value: Any = None, *, kind: str = "") -> AsyncGenerator[Claim]:
        """Be one of them, in the last place at first, for the time of a block.

        The key holds ``value``; its name begins with ``kind``, behind the prefix. When the lease cannot be kept, the
        body is cancelled *before* the cluster lets go; when somebody deletes the key, as soon as this process's replica
        knows. Then the block raises LeaseExpiredError. Leaving the block deletes the key, also when it is cancelled,
        shielded for a moment; if that does not succeed, the lease expires by itself. An exception of the body leaves as
        it is.

        Raises as ``store.lease`` and ``store.put`` when it is entered.
        """
        async with self._store.lease(self._ttl_s) as lease:
            key = f"{self._prefix}{kind}{lease.id:016x}"
            token = await self._store.put(key, value, lease=lease)
            claim = Claim(key, token, lease)
            body = trio.CancelScope()
            losses: list[Kind | None] = []

            def lose(change: Change) -> None:
                losses.append(change.kind)
                body.cancel()

            def look(_: Exception) -> None:
                # Not all is told: a snapshot has replaced this replica, whose history begins behind what was told last.
                if not self._stands(claim):
                    losses.append(None)
                    body.cancel()

            told = self._store.subscribe(lose, key=key, kinds=("delete", "expire"), previous=False, on_error=look)
            try:
                self.entry_of(claim)  # after this, it is told
                with body:
                    yield claim
            finally:
                told.cancel()
            if losses:
                raise _lost(key, losses[0])

    async def wait_turn(self, claim: Claim, rule: Rule = nearest) -> None:
        """Return when the rule finds nobody to wait for: by default, when all who came before are gone."""
        await trio.lowlevel.checkpoint()
        while entries := rule(self.ahead_of(claim)):
            await self.wait_gone([entry.key for entry in entries])

    async def wait_gone(self, keys: Collection[str]) -> None:
        """Return when one of these keys of contenders is gone; or earlier, so look again. Cancelling leaves nothing.

        A single key is watched alone, so whoever lets go wakes only who was next; for several, all keys are watched.
        """
        key = next(iter(keys)) if len(keys) == 1 else None
        prefix = self._prefix if key is None else ""
        # In replikv a watch is of this process's own replica: nothing is sent for it, however many wait.
        with contextlib.suppress(LaggedError, CompactedError):
            async with self._store.watch(prefix, key=key, kinds=("delete", "expire"), previous=False) as changes:
                if any(key not in self._store for key in keys):  # before the watch began; after that, it tells
                    return
                async for change in changes:
                    if change.key in keys:
                        return


def _lost(key: str, kind: Kind | None) -> LeaseExpiredError:
    reasons = {"delete": "was deleted by somebody else", "expire": "has gone with its lease"}
    reason = "is gone" if kind is None else reasons[kind]
    return LeaseExpiredError(f"the key {key!r} {reason}, and with it the place in line that it stood for: ask again")
