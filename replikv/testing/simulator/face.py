"""What the map's face asks of the peer under it, answered by a simulated process: see replikv/store/replicator.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from replikv.errors import ClusterClosedError
from replikv.machine.replica import Replica
from replikv.settings import Settings

if TYPE_CHECKING:
    from replikv.testing.simulator.process import Process

__all__ = ["Face"]


class Face:
    """A :class:`replikv.store.replicator.Replicator`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.settings: Settings = process.settings
        self.replica: Replica = process.replica

    def check_open(self) -> None:
        """As the protocol has it."""
        if self._process.over:
            raise ClusterClosedError(f"{self._process.node_id} has ended")

    async def propose(self, kind: int, payload: bytes, deadline: float | None = None) -> bytes:
        """As the protocol has it."""
        driver = self._process.driver
        driver.wake()
        if deadline is None:
            return await driver.proposals.submit(kind, payload, driver.deadline())
        return await driver.proposals.submit_hurried(kind, payload, deadline)

    async def barrier(self) -> None:
        """As the protocol has it."""
        driver = self._process.driver
        driver.wake()
        await driver.barriers.wait(driver.deadline())

    async def ask_of_lease(self, lease: int, *, renew: bool) -> tuple[float, int, int]:
        """As the protocol has it."""
        driver = self._process.driver
        driver.wake()
        return await driver.leasing.lessee.ask(lease, renew=renew, deadline=driver.deadline())

    def add_listener(self, listener: Callable[[], None]) -> None:
        """As the protocol has it."""
        self._process.listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """As the protocol has it."""
        self._process.listeners.remove(listener)

    def start_soon(self, task: Callable[[], Awaitable[None]], name: str) -> None:
        """No task of a peer's own runs in a simulation: subscriptions and the blocks of leases have no part in it."""
        raise NotImplementedError(f"{name} would be a task")
