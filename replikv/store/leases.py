"""Leases: keys that vanish with who has put them.

Time is counted twice, on two clocks that nobody compares. The leader counts from when a question to keep the lease
alive has *arrived* (peer/lessor.py says what it promises); the holder from when he has *sent* it, and a tenth less than
was granted. So as long as one clock does not run a tenth faster than the other, the holder's time is up first: he stops
before the cluster lets go. The time of day is asked nowhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import trio

from replikv.errors import (
    ClusterClosedError,
    ConfigurationError,
    LeaseExpiredError,
    ReplikvError,
    UnavailableError,
)
from replikv.machine import commands
from replikv.machine.keyvalue import no_lease
from replikv.machine.leases import TTL_MS_MAX
from replikv.store.calls import Calls

__all__ = ["Lease", "LeaseCalls", "LeaseStatus", "lease_id"]

MARGIN: Final = 0.1
"""The part of the granted time that a holder does not use: by so much may his clock be slower than the leader's."""
RENEWALS: Final = 3
"""Tries to keep a lease alive within its time: so one may be lost, and the next be late. etcd: 3."""


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseStatus:
    """A lease as the leader sees it."""

    id: int
    ttl_s: float
    """For how long it is granted whenever it is kept alive."""
    remaining_s: float
    """How long it has left, unless it is kept alive. The leader may give it longer, and never less."""
    keys: tuple[str, ...]
    """The keys attached to it, in order; in a scope those of the scope, relative to it."""


class Lease:
    """A lease that this process holds, inside the block that ``store.lease()`` opens."""

    __slots__ = ("_calls", "_ended", "_keeper", "_loss", "_scope", "_sent", "id", "ttl_s")

    def __init__(self, calls: LeaseCalls, lease: int, ttl_s: float, sent: float) -> None:
        self._calls = calls
        self.id: Final = lease
        """Its number, which is never granted again: what ``Entry.lease`` shows."""
        self.ttl_s: Final = ttl_s
        """For how long it is granted whenever it is kept alive, in seconds."""
        # When the question was sent that was answered last. The body is cancelled when the time from then is up.
        self._sent = sent
        self._scope = trio.CancelScope(deadline=self._expires)
        self._keeper = trio.CancelScope()
        # Whether it was given up; what it was lost by, if that is known.
        self._ended = False
        self._loss: ReplikvError | None = None

    def __repr__(self) -> str:
        return f"<Lease {self.id}, {self.ttl_s} s>"

    @property
    def _expires(self) -> float:
        return self._sent + self.ttl_s * (1 - MARGIN)

    @property
    def _lost(self) -> bool:
        """Whether the time is up, or was, though an answer may have come since: the body was cancelled."""
        return self._scope.cancel_called or trio.current_time() >= self._expires

    @property
    def remaining_s(self) -> float:
        """For how long the holder may rely on it, if nothing more is heard; 0 when it is over."""
        return 0.0 if self._ended or self._lost else self._expires - trio.current_time()

    async def revoke(self) -> bool:
        """End it now: its keys vanish, at one revision if they are few; whether it was there.

        The body goes on, and the block does not raise, unless it was lost before: a body that was cut short, and
        revokes on its way out, is told so all the same. Whatever becomes of this call, nobody keeps the lease alive
        any more: if it fails or is cancelled, the lease expires by itself. Raises as :meth:`Store.put`.
        """
        self._ended = True
        self._keeper.cancel()
        self._scope.deadline = math.inf
        return await self._calls.revoke_lease(self.id)

    # -- the block's ---------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        sent, ttl_ms, _ = await self._calls._replicator.ask_of_lease(self.id, renew=True)
        if not ttl_ms:
            raise LeaseExpiredError(no_lease(self.id))
        self._sent = max(self._sent, sent)
        if not self._ended:
            self._scope.deadline = self._expires

    async def _keep(self) -> None:
        """Keep it alive, in a task of the peer's: it ends with the block, or with the cluster."""
        with self._keeper:
            try:
                while True:
                    await trio.sleep_until(self._sent + self.ttl_s / RENEWALS)
                    with contextlib.suppress(UnavailableError):  # the holder's time goes on meanwhile
                        await self._renew()
            except ReplikvError as exc:
                self._lose(exc)
            finally:
                if not self._keeper.cancel_called:
                    self._lose(
                        ClusterClosedError(
                            f"the cluster was closed while lease {self.id} was held: nobody keeps it alive any more"
                        )
                    )

    def _lose(self, loss: ReplikvError) -> None:
        if self._loss is None and not self._ended:  # an answer may come that was on its way when it was revoked
            self._loss = loss
            self._scope.cancel()

    async def _let_go(self) -> None:
        """Revoke it, if there is time; if not, it expires by itself."""
        self._keeper.cancel()
        if self._ended or not self.remaining_s:
            return
        self._ended = True
        timeout_s = self._calls._settings.shutdown_timeout_s
        with trio.move_on_after(timeout_s, shield=True), contextlib.suppress(ReplikvError):
            await self._calls.revoke_lease(self.id)

    def _error(self) -> ReplikvError | None:
        """What the block raises that was left without an error, though the lease was lost.

        Also where the body has revoked it since: its scope has taken a cancellation, and nobody else tells of that.
        """
        if not self._lost or (self._ended and not self._scope.cancel_called):
            return None
        if isinstance(self._loss, LeaseExpiredError):
            return LeaseExpiredError(f"lease {self.id} is gone: it was revoked by somebody else, or has expired")
        return self._loss or LeaseExpiredError(
            f"lease {self.id} could not be kept alive: no leader has answered in the last"
            f" {self.ttl_s * (1 - MARGIN):g} s; the cluster deletes its keys, if it has not done so yet"
        )


def lease_id(lease: Lease | int | None) -> int:
    """The number of a lease as it stands in commands, 0 for none.

    Raises LeaseExpiredError for one whose block has ended or whose time is up, ConfigurationError for what is no lease.
    """
    if lease is None:
        return 0
    if isinstance(lease, Lease):
        if not lease.remaining_s:
            raise LeaseExpiredError(f"lease {lease.id} is over: its block has been left, or its time is up")
        return lease.id
    if type(lease) is not int or not 0 < lease < 1 << 64:
        raise ConfigurationError(
            f"a lease is what 'async with store.lease() as lease' or grant_lease() gave, not {lease!r:.100}"
        )
    return lease


class LeaseCalls(Calls):
    """The map's operations on leases."""

    __slots__ = ()

    def lease(self, ttl_s: float = 10.0) -> AbstractAsyncContextManager[Lease]:
        """A lease for the time of a block: keys that are put with it vanish when the block ends or this process dies.

        ::

            async with store.lease(ttl_s=10) as lease:
                await store.put("services/a", "10.0.0.1:80", lease=lease)
                ...

        It is kept alive in the background, by whichever leader. The holder counts from when he sent the question that
        was answered last, and uses nine tenths of the time that was granted. When that is up, because the cluster could
        not be reached, the body is cancelled, *before* the cluster lets go of the keys, and the block raises
        LeaseExpiredError. So it does when the lease was revoked by somebody else. A process that is stopped cannot stop
        what it does: where that matters, fence (docs/leadership.md).

        Leaving the block revokes the lease, also when it is cancelled, shielded for at most
        ``settings.shutdown_timeout_s``; if that does not succeed, it expires by itself. An exception of the body leaves
        unwrapped. When the cluster closes under it, the body is cancelled and the block raises ClusterClosedError.
        Cancelled while it is entered, it leaves nothing behind that does not expire.

        Args:
            ttl_s: how long the keys outlive a process that died. Longer than ``settings.election_timeout_s`` times
                three, or a change of leader may cost it; at least two heartbeats.

        Raises as :meth:`put` when it is entered; QuotaExceededError when there are too many leases.
        """
        return self._leased(ttl_s)

    @contextlib.asynccontextmanager
    async def _leased(self, ttl_s: float) -> AsyncGenerator[Lease]:
        sent = trio.current_time()
        lease = Lease(self, await self.grant_lease(ttl_s), ttl_s, sent)
        if trio.current_time() - sent > ttl_s / 2:  # it took so long that the body would have little of it
            await lease._renew()
        self._replicator.start_soon(lease._keep, f"lease {lease.id}")
        try:
            with lease._scope:
                yield lease
        finally:
            error = lease._error()
            await lease._let_go()
        if error is not None:
            raise error

    async def grant_lease(self, ttl_s: float) -> int:
        """A new lease that nobody keeps alive by himself: its id. For who wants to call :meth:`keep_alive` on his own.

        It expires ``ttl_s`` after this call at the earliest. Cancelled, there may be a lease that nobody knows of until
        it has expired. Raises as :meth:`put`; QuotaExceededError when there are too many.
        """
        payload = commands.encode_grant(self._ttl_ms(ttl_s))
        return commands.decode_grant_result(await self._run(payload))

    async def keep_alive(self, lease: Lease | int) -> float:
        """Grant a lease its full time again: so many seconds from when this was called.

        Nothing is written for it. Count from before the call, and a little less: your clock is not the leader's. Raises
        LeaseExpiredError if it is not there any more, UnavailableError if the leader could not be asked in time: it may
        have been kept alive all the same. Cancelling it leaves nothing behind.
        """
        number = lease_id(lease)
        _, ttl_ms, _ = await self._replicator.ask_of_lease(number, renew=True)
        if not ttl_ms:
            raise LeaseExpiredError(no_lease(number))
        return ttl_ms / 1000

    async def revoke_lease(self, lease: Lease | int) -> bool:
        """End a lease and delete the keys attached to it; whether it was there.

        Up to ``settings.operations_per_command_max`` keys vanish at one revision; more go in several steps, and nothing
        can be attached to it from the first on. Should that be interrupted, the leader goes on with it.
        """
        payload = commands.encode_revoke(lease_id(lease))
        begun = False
        while True:
            try:
                step = commands.decode_delete_prefix_result(await self._run(payload))
            except LeaseExpiredError:
                return begun
            if not step.more:
                return True
            begun = True

    async def time_to_live(self, lease: Lease | int) -> LeaseStatus:
        """What the leader knows of a lease, and the keys attached to it; does not keep it alive.

        Raises LeaseExpiredError if it is not there, UnavailableError. Cancelling it leaves nothing behind.
        """
        number = lease_id(lease)
        _, ttl_ms, left_ms = await self._replicator.ask_of_lease(number, renew=False)
        if not ttl_ms:
            raise LeaseExpiredError(no_lease(number))
        await self._replicator.barrier()
        prefix = self._prefix
        keys = tuple(key[len(prefix) :] for key in self._keyspace().attachments.keys(number) if key.startswith(prefix))
        return LeaseStatus(number, ttl_ms / 1000, left_ms / 1000, keys)

    async def attach(self, key: str, lease: Lease | int) -> bool:
        """Attach a key to a lease, and detach it from the one it had; whether the key was there. Its value stays.

        A revision, unless it was attached to that one already. Raises as :meth:`put`.
        """
        payload = commands.encode_attach(self._key(key), lease_id(lease))
        return commands.decode_outcome_result(await self._run(payload)).done

    async def detach(self, key: str) -> bool:
        """Have a key outlive its lease; whether the key was there. Its value stays."""
        payload = commands.encode_attach(self._key(key), 0)
        return commands.decode_outcome_result(await self._run(payload)).done

    async def _lease(self, lease: Lease | int | None) -> int:
        """As :func:`lease_id`, for commands that are older than leases.

        Before the first UPGRADE such a command must not name one: members that do not know leases would not look
        whether it is there, and those that do refuse it. There are none then, so nobody misses anything.
        """
        number = lease_id(lease)
        if number and not self._replicator.replica.governance.versions.commands:
            await self._replicator.barrier()  # perhaps it is this replica only that has not come so far
            if not self._replicator.replica.governance.versions.commands:
                raise LeaseExpiredError(no_lease(number))
        return number

    def _ttl_ms(self, ttl_s: Any) -> int:
        least = 2 * self._settings.heartbeat_interval_s
        if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not least <= ttl_s <= TTL_MS_MAX / 1000:
            raise ConfigurationError(
                f"ttl_s must be a number of seconds from {least:g} (two heartbeats) to {TTL_MS_MAX // 1000},"
                f" not {ttl_s!r}"
            )
        return math.ceil(ttl_s * 1000)
