"""Who offers which service, and where: found by all, gone with its process.

The keys are ``services/SERVICE/ADDRESS`` of the store that the registry is made of, each attached to the lease of the
registration that has put it last. A key belongs to one lease, so of two registrations of an address the later one
counts, and the end of the earlier one takes nothing away.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import math
from collections.abc import AsyncGenerator
from typing import Any

import structlog
import trio

from replikv import (
    ClusterClosedError,
    Compare,
    ConfigurationError,
    EncodingError,
    LeaseExpiredError,
    Put,
    QuotaExceededError,
    ReplikvError,
    Store,
    UnavailableError,
)
from replikv.recipes.arguments import check_seconds
from replikv.recipes.changes import wait_changed
from replikv.recipes.names import check_store, home

__all__ = ["Balancer", "Endpoint", "EndpointWatch", "NoEndpointError", "Registration", "ServiceRegistry"]

log = structlog.get_logger(__name__)


class NoEndpointError(ReplikvError, LookupError):
    """Nobody offers the service, as far as this process's replica knows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service is offered."""

    service: str
    address: str
    metadata: dict[str, Any] = dataclasses.field(hash=False)
    """What was registered with it: a zone, a version, a weight. The reader's own copy."""
    registration: int
    """The lease it lives by: another one each time that somebody registers."""


class ServiceRegistry:
    """Services and their endpoints.

    ::

        registry = ServiceRegistry(cluster.store)

        async with registry.register("payments", "10.0.0.5:8080", metadata={"zone": "b"}):
            await serve(...)

        registry.resolve("payments")  # [Endpoint(service='payments', address='10.0.0.5:8080', ...)]

        payments = registry.balancer("payments")
        async with payments.endpoint() as endpoint:
            await call(endpoint.address)

    Lookups are reads of this process's replica: no I/O, and they go on while the cluster has no leader. What they find
    was registered; whether somebody answers there, only a call can tell.

    Args:
        store: the map, or a scope of it. Keys begin with ``services/`` there.
        ttl_s: how long a process that died, or was cut off, is still listed. 10: longer than an election and a pause;
            the failures until then are what the balancer is for.
    """

    def __init__(self, store: Store, *, ttl_s: float = 10.0) -> None:
        check_store(store)
        check_seconds("ttl_s", ttl_s)
        self._store = store
        self._ttl_s = ttl_s

    # -- those who serve -----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def register(
        self, service: str, address: str, *, metadata: dict[str, Any] | None = None
    ) -> AsyncGenerator[Registration]:
        """Offer a service while the block runs. Entered when a majority knows; left, the endpoint is gone at once.

        When the process dies instead, or is cut off, the endpoint vanishes within ``ttl_s``. The block goes on all the
        same: a server that the cluster cannot hear may serve well. Once it can be heard again, it is registered anew.

        An address is registered once: who registers one that is there already takes it over. So a process that was
        killed and started again is found again at once.

        An exception of the body leaves unwrapped. Cancelled, it leaves nothing behind for longer than ``ttl_s``.

        Args:
            service: a name without "/".
            address: whatever those who call need: any text.
            metadata: plain data.

        Raises:
            ConfigurationError: the service has no name that is one, or the address is no str.
            EncodingError: the metadata is no plain data, or too large.
            UnavailableError, OutcomeUnknownError: at the beginning: it could not be registered.
        """
        if type(address) is not str:
            raise ConfigurationError(f"an address must be a str, not {address!r:.100}")
        registration = Registration(
            self._store, self._ttl_s, home(self._store, "services", service), service, address, metadata
        )
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            # Caught here and raised outside: so it leaves the nursery without a group around it.
            try:
                await nursery.start(registration._keep)
                yield registration
            except BaseException as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    # -- those who call ------------------------------------------------------------------------------------------------

    def resolve(self, service: str) -> list[Endpoint]:
        """The endpoints of a service, by address, as this process's replica has them; empty if there are none. O(n)."""
        prefix = home(self._store, "services", service)
        found = []
        for key in self._store.keys(prefix):
            entry = self._store.entry(key)
            found.append(Endpoint(service, key[len(prefix) :], entry.value, entry.lease or 0))
        return found

    def services(self) -> list[str]:
        """The names of the services that have endpoints, as this process's replica has them."""
        return sorted({key.split("/", 2)[1] for key in self._store.keys("services/")})

    def watch(self, service: str) -> EndpointWatch:
        """The endpoints as they are, and as they are again whenever that has changed.

        ::

            async for endpoints in registry.watch("payments"):
                ...

        The first step returns at once. A slow reader sees the newest state, not every one. It ends with
        ClusterClosedError only. Nothing is to be closed: between two steps it costs nothing.
        """
        return EndpointWatch(self, self._store, service)

    def balancer(self, service: str, *, retry_after_s: float = 5.0) -> Balancer:
        """Who is to be called next, one after the other, but for those that have just failed: a :class:`Balancer`.

        Args:
            service: the name.
            retry_after_s: how long one that failed is passed over. 5: half the time after which a dead process vanishes
                by itself.
        """
        return Balancer(self, self._store, service, retry_after_s)


class Registration:
    """A service that is being offered: what ``async with registry.register(...)`` gives."""

    def __init__(
        self, store: Store, ttl_s: float, prefix: str, service: str, address: str, metadata: dict[str, Any] | None
    ) -> None:
        self.service = service
        self.address = address
        self.metadata = dict(metadata or {})
        """As it was given last."""
        self._store = store
        self._ttl_s = ttl_s
        self._key = prefix + address
        self._lease = 0
        # Puts of the key, one at a time: the newest metadata is put last.
        self._writing = trio.Lock()

    def __repr__(self) -> str:
        return f"<Registration of {self.service!r} at {self.address!r}>"

    async def update(self, metadata: dict[str, Any]) -> None:
        """Replace the metadata; those who watch are told.

        Cancelled, or after OutcomeUnknownError, it may have been replaced.

        Raises:
            EncodingError, QuotaExceededError, UnavailableError: it stays as it was.
            LeaseExpiredError: the endpoint is not listed by this registration just now: this process was cut off, and
                will list it again, with the new metadata, when it can; or somebody else has taken the address over.
        """
        async with self._writing:
            before, self.metadata = self.metadata, dict(metadata)
            try:
                done = await self._store.txn(
                    [Compare.lease(self._key, "==", self._lease)], [Put(self._key, self.metadata, self._lease)]
                )
            except (EncodingError, QuotaExceededError, UnavailableError):
                self.metadata = before
                raise
        if not done.succeeded:
            raise LeaseExpiredError(
                f"{self.address} is not listed for {self.service!r} by this registration: it is again, as soon as the"
                " cluster can be reached, unless somebody else has registered the address"
            )

    async def _keep(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Register, and again whenever the lease is lost, until cancelled. The first time, errors are the caller's."""
        begun = False
        while True:
            try:
                async with self._store.lease(self._ttl_s) as lease:
                    async with self._writing:
                        await self._store.put(self._key, self.metadata, lease=lease)
                        self._lease = lease.id
                    if not begun:
                        begun = True
                        task_status.started()
                    await trio.sleep_forever()
            except ClusterClosedError:
                if not begun:
                    raise
                return
            except ReplikvError as exc:
                if not begun:
                    raise
                log.warning("a service is not listed for now", service=self.service, address=self.address, why=str(exc))
                if not isinstance(exc, LeaseExpiredError):
                    await trio.sleep(self._ttl_s / 10)


class EndpointWatch:
    """An async iterator of lists of endpoints, made by ``registry.watch(service)``."""

    def __init__(self, registry: ServiceRegistry, store: Store, service: str) -> None:
        self._registry = registry
        self._store = store
        self._service = service
        self._prefix = home(self._store, "services", service)
        self._revision = 0
        """What was told is the state as of this revision of the replica, or later."""
        self._told: list[Endpoint] | None = None

    def __aiter__(self) -> EndpointWatch:
        return self

    async def __anext__(self) -> list[Endpoint]:
        if self._told is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._wait()
        while True:
            endpoints = self._registry.resolve(self._service)
            self._revision = self._store.revision
            if endpoints != self._told:
                self._told = endpoints
                return self._registry.resolve(self._service)  # a copy of its own
            await self._wait()

    async def _wait(self) -> None:
        await wait_changed(self._store, self._prefix, since=self._revision)


class Balancer:
    """Picks endpoints of a service by turns: made by ``registry.balancer(service)``. One per process and service.

    One that failed is passed over for ``retry_after_s`` by trio's clock, unless nothing else is left: then the turn is
    that of the one that failed longest ago. Whoever registers anew at its address begins with a clean slate.

    What failed is known to this process only: whom it cannot reach, others may. Picks are reads of the local replica.
    """

    def __init__(self, registry: ServiceRegistry, store: Store, service: str, retry_after_s: float) -> None:
        check_seconds("retry_after_s", retry_after_s, or_zero=True)
        self._registry = registry
        self._store = store
        self._service = service
        self._prefix = home(self._store, "services", service)
        self._retry_after_s = retry_after_s
        self._last = ""
        """The address that was picked last: the next one is the first behind it."""
        self._failed: dict[tuple[str, int], float] = {}
        """When those failed that are still there, by address and registration."""

    def pick(self) -> Endpoint:
        """The next endpoint. O(n). Raises NoEndpointError if there is none at all."""
        endpoints = self._registry.resolve(self._service)
        if not endpoints:
            raise NoEndpointError(
                f"nobody offers {self._service!r}: wait for it, or ask registry.services() what there is"
            )
        now = trio.current_time()
        self._failed = {name: self._failed[name] for name in map(_name, endpoints) if name in self._failed}
        fit = [e for e in endpoints if now >= self._failed.get(_name(e), -math.inf) + self._retry_after_s]
        if fit:
            chosen = fit[bisect.bisect(fit, self._last, key=lambda endpoint: endpoint.address) % len(fit)]
        else:
            chosen = min(endpoints, key=lambda endpoint: self._failed[_name(endpoint)])
        self._last = chosen.address
        return chosen

    def report_failure(self, endpoint: Endpoint) -> None:
        """Pass it over for a while, from now on."""
        self._failed[_name(endpoint)] = trio.current_time()

    def report_success(self, endpoint: Endpoint) -> None:
        """Whatever was reported of it, it works."""
        self._failed.pop(_name(endpoint), None)

    @contextlib.asynccontextmanager
    async def endpoint(self) -> AsyncGenerator[Endpoint]:
        """The next endpoint, for a call; waits while there is none at all.

        An exception of the body counts as a failure. A timeout counts if it is inside::

            async with payments.endpoint() as endpoint:
                with trio.fail_after(1.0):
                    await call(endpoint.address)

        while a cancellation from outside says nothing about the endpoint, and changes nothing.
        """
        await trio.lowlevel.checkpoint()
        while True:
            revision = self._store.revision
            try:
                endpoint = self.pick()
                break
            except NoEndpointError:
                await wait_changed(self._store, self._prefix, since=revision)
        try:
            yield endpoint
        except Exception:
            self.report_failure(endpoint)
            raise
        self.report_success(endpoint)


def _name(endpoint: Endpoint) -> tuple[str, int]:
    return endpoint.address, endpoint.registration
