"""Holders: they have leases granted and kept alive, attach keys to them, take locks by them, and let them lapse."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

import outcome

from replikv.errors import (
    EncodingError,
    LeaseExpiredError,
    OutcomeUnknownError,
    QuotaExceededError,
    UnavailableError,
)
from replikv.store.leases import MARGIN, RENEWALS
from replikv.store.txn import Compare, Put
from replikv.testing.simulator.loop import Errand
from replikv.testing.simulator.tenures import Tenure

if TYPE_CHECKING:
    from replikv.testing.simulator.process import Process
    from replikv.testing.simulator.simulation import Simulation

__all__ = ["Holder"]

_EXPECTED: Final = (UnavailableError, OutcomeUnknownError, LeaseExpiredError, QuotaExceededError)
_NAP_S: Final = 1.0
"""How long nobody looks up, at most: whether the faults have ended."""
_LOOK_S: Final = 0.05
"""How often those who wait for a lock look whether it is free."""
_KEYS: Final = 4
"""Holders attach, and detach, the same few keys."""


class Holder:
    """One lease after the other, until the faults have ended: then all leases are left to expire."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.name = name
        self.random = Random(f"{name} of {simulation.options.seed}")  # noqa: S311  # a function of the seed
        self._tenures = simulation.tenures
        self._number = 0
        self._period = 1 / RENEWALS
        """Which part of its time a lease is kept alive after."""
        self._errand: Errand | None = None
        self._tenure: Tenure | None = None
        simulation.after(self.random.random(), self._begin)

    def _begin(self) -> None:
        simulation = self.simulation
        processes = list(simulation.processes.values())
        if not processes:
            simulation.after(0.5, self._begin)
        elif not simulation.chaos.over:
            leader = simulation.operator.leader()
            # A leader that is deposed is told so later than anybody else by its own tasks.
            process = leader if leader is not None and self.random.random() < 0.3 else self.random.choice(processes)
            self._errand = errand = Errand(simulation.loop, self._hold(process), self._done, process.later)
            process.ended.append(lambda: self._left_alone(errand))
            process.later(0.0, errand.start)

    def _left_alone(self, errand: Errand) -> None:
        if errand is self._errand and not errand.over:
            errand.forget()
            self._again()

    def _done(self, answer: outcome.Outcome[None]) -> None:
        if isinstance(answer, outcome.Error):
            error = answer.error
            too_early = isinstance(error, EncodingError) and "upgrade this cluster" in str(error)
            if not isinstance(error, _EXPECTED) and not too_early:
                raise error
            self.simulation.counts[f"holders told {type(error).__name__}"] += 1
        self._again()

    def _again(self) -> None:
        if self._tenure is not None:
            self._tenure.over = True
        self.simulation.after(self.random.random(), self._begin)

    def close(self) -> None:
        """The run is over."""
        if self._errand is not None and not self._errand.over:
            self._errand.forget()

    # -- one lease -----------------------------------------------------------------------------------------------------

    async def _hold(self, process: Process) -> None:
        simulation, random = self.simulation, self.random
        tenure = self._tenure = await self._grant(process)
        until = simulation.now + random.expovariate(1 / (3 * tenure.ttl_s))

        def goes_on() -> bool:
            return simulation.now < until and not simulation.chaos.over

        if random.random() < 0.7:
            await self._lock(tenure, goes_on)
        else:
            await self._attach(tenure, goes_on)
        if not simulation.chaos.over and random.random() < 0.5:
            tenure.over = True
            await process.store.revoke_lease(tenure.lease)

    async def _grant(self, process: Process) -> Tenure:
        simulation, clock = self.simulation, process.host.time
        ttl_s = simulation.options.lease_ttl_s * self.random.choice((1.0, 1.0, 1.5))
        # Some ask when their time is about up, and the leader may be about to end it.
        self._period = 1 / RENEWALS if self.random.random() < 0.8 else self.random.uniform(0.9, 1.2)
        asked, sent = simulation.now, clock()
        lease = await process.store.grant_lease(ttl_s)
        simulation.tell(f"{self.name} at {process.node_id} has lease {lease} of {ttl_s} s")
        self._tenures.promised(lease, ttl_s, asked)
        tenure = Tenure(process, lease, ttl_s, sent + ttl_s * (1 - MARGIN))
        self._tenures.believed(tenure)
        if clock() - sent > ttl_s / 2:
            await self._renew(tenure)
        return tenure

    async def _renew(self, tenure: Tenure) -> None:
        process = tenure.process
        sent, ttl_ms, _ = await process.store._replicator.ask_of_lease(tenure.lease, renew=True)
        if not ttl_ms:
            tenure.over = True
            raise LeaseExpiredError(f"lease {tenure.lease} is gone")
        self._tenures.promised(tenure.lease, ttl_ms / 1000, process.lessee.sent_at[sent])
        self.simulation.counts["leases kept alive"] += 1
        if not tenure.believed():
            tenure.over = True  # whoever was told that his time was up does not take it back
            raise LeaseExpiredError(f"lease {tenure.lease} was not kept alive in time")
        tenure.expires = max(tenure.expires, sent + ttl_ms / 1000 * (1 - MARGIN))
        self._tenures.believed(tenure)

    async def _wait(self, tenure: Tenure, seconds: float) -> None:
        """Some time passes, and the lease is kept alive meanwhile; not when all is calm, where leases are to end."""
        clock, loop = tenure.process.host.time, self.simulation.loop
        until = clock() + seconds
        period = tenure.ttl_s * self._period
        while (now := clock()) < until and not self.simulation.chaos.over:
            due = tenure.expires - tenure.ttl_s * (1 - MARGIN) + period
            if now >= due:
                await self._renew_if_possible(tenure)
                due = now + period
            await loop.sleep(min(max(min(until, due) - clock(), 0.01), _NAP_S))

    async def _renew_if_possible(self, tenure: Tenure) -> None:
        try:
            await self._renew(tenure)
        except UnavailableError:
            if not tenure.believed():
                raise

    async def _attach(self, tenure: Tenure, goes_on: Callable[[], bool]) -> None:
        """Keys that come and go with a lease."""
        store, random, lease = tenure.process.store, self.random, tenure.lease
        if random.random() < 0.2:
            # More than some clusters delete by one command.
            for keys in (range(6), range(6, 6 + random.randint(1, 6))):
                await store.update({f"l{self.name}/{number}": number for number in keys}, lease=lease)
        while goes_on():
            key = f"l{random.randrange(_KEYS)}"
            kind = random.random()
            if kind < 0.6:
                self._number += 1
                await store.put(key, f"{self.name}-{self._number}", lease=lease)
            elif kind < 0.75:
                await store.attach(key, lease)
            elif kind < 0.9:
                await store.detach(key)
            else:
                await store.delete(key)
            await self._wait(tenure, random.expovariate(2 / tenure.ttl_s))

    async def _lock(self, tenure: Tenure, goes_on: Callable[[], bool]) -> None:
        """A lock: a key that is made by who finds none, attached to his lease. Its create revision is his token."""
        store, random = tenure.process.store, self.random
        lock = f"k{random.randrange(self.simulation.options.locks)}"
        self._number += 1
        me = f"{self.name}-{self._number}"
        while goes_on():
            if lock in store:  # as far as this replica knows
                await self._wait(tenure, _LOOK_S)
                continue
            taken = await store.txn([Compare.version(lock, "==", 0)], [Put(lock, me, lease=tenure.lease)])
            if taken and tenure.believed():
                token = taken.revision
                self._tenures.acquired(lock, tenure, token)
                await self._use(lock, token, tenure, goes_on)
                return
            await self._wait(tenure, random.uniform(0.02, 0.2))

    async def _use(self, lock: str, token: int, tenure: Tenure, goes_on: Callable[[], bool]) -> None:
        """What is done under a lock names the token."""
        store = tenure.process.store
        while goes_on():
            await self._wait(tenure, self.random.expovariate(2 / tenure.ttl_s))
            fence = Compare.create_revision(lock, "==", token)
            written = await store.txn([fence], [Put(f"f{lock}", token)])
            if written:
                self._tenures.wrote(lock, token, written.revision)
            else:
                tenure.over = True
                return
