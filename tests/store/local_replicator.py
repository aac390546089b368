"""A second implementation of the Replicator protocol, for tests: a cluster of one without consensus and without a log.

``leader`` is the state of the cluster, ``replica`` that of this process. They are the same until :meth:`fall_behind`;
:meth:`install_snapshot` brings the one to the other as a peer does it that was away for too long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from replikv.errors import ClusterClosedError
from replikv.machine import commands
from replikv.machine.envelope import CommandKind, Envelope
from replikv.machine.governance import KNOWN_VERSION, Versions, encode_upgrade
from replikv.machine.replica import Replica
from replikv.settings import Settings

NONCE = 7


class LocalReplicator:
    """Applies what was proposed since its last turn in one sweep, while it is not held."""

    def __init__(self, nursery: trio.Nursery | None = None, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.leader = Replica()
        self.replica = Replica()
        self.held = False
        self.answer_after_s = 0.0
        """How long the leader takes to answer about a lease."""
        self.sweeps = 0
        self.barriers = 0
        self._nursery = nursery
        self._open = True
        self._behind = False
        self._sequence = 0
        self._queue: list[tuple[bytes, trio.Event, list[bytes]]] = []
        # Applied by the leader, and by this replica unless it is behind: then they wait for it.
        self._applied: list[trio.Event] = []
        self._listeners: list[Callable[[], None]] = []
        self._wake = trio.Event()
        upgrade = encode_upgrade(Versions(KNOWN_VERSION, 0))
        self._apply(Envelope(CommandKind.CLUSTER, 0, 0, 0, upgrade).encode())
        result = self._apply(Envelope(CommandKind.REGISTER, 0, NONCE, 0, b"local").encode())
        self.session = int.from_bytes(result[1:])

    # -- the protocol --------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        if not self._open:
            raise ClusterClosedError("this cluster is closed")

    async def propose(self, kind: int, payload: bytes, deadline: float | None = None) -> bytes:
        self.check_open()
        done, result = trio.Event(), list[bytes]()
        self._queue.append((self._envelope(kind, payload), done, result))
        self._wake.set()
        await done.wait()
        if not result:
            raise ClusterClosedError("this cluster was closed meanwhile")
        return result[0]

    async def barrier(self) -> None:
        self.check_open()
        self.barriers += 1
        position = self.leader.position
        await trio.lowlevel.checkpoint()
        while self.replica.position < position:
            await self._wake.wait()
            self.check_open()

    async def ask_of_lease(self, lease: int, *, renew: bool) -> tuple[float, int, int]:  # no time passes
        self.check_open()
        sent = trio.current_time()
        await trio.sleep(self.answer_after_s)
        ttl_ms = self.leader.map.leases.table.get(lease, 0)
        return sent, ttl_ms, ttl_ms

    def add_listener(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        self._listeners.remove(listener)

    def start_soon(self, task: Callable[[], Awaitable[None]], name: str) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task, name=name)

    # -- the driver ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Apply what was proposed, turn by turn."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if self.held or not self._queue:
                continue
            queue, self._queue = self._queue, []
            for command, done, result in queue:
                result.append(self._apply(command))
                self._applied.append(done)
            self._answer()
            self.publish()

    def release(self) -> None:
        """End a hold."""
        self.held = False
        self._wake.set()

    def sweep(self, *payloads: bytes) -> list[bytes]:
        """Apply map commands in one sweep, now; their results."""
        results = [self._apply(Envelope(CommandKind.MAP, 0, 0, 0, payload).encode()) for payload in payloads]
        self.publish()
        return results

    def publish(self) -> None:
        """What the driver does at the end of a turn."""
        self.sweeps += 1
        for listener in self._listeners:
            listener()

    def fall_behind(self) -> None:
        """From now on this process's replica gets nothing."""
        self._behind = True

    def install_snapshot(self) -> None:
        """The cluster's state replaces this replica's, history included."""
        self.replica.restore(list(self.leader.snapshot()))
        self._behind = False
        self._answer()
        self.publish()
        self._wake.set()

    def expire(self, key: str, lease: int = 1) -> None:
        """The lease that a key was put with has ended."""
        for replica in [self.leader] if self._behind else [self.leader, self.replica]:
            replica.keyspace.commit([(key, None, lease)])
        self.publish()

    def compact(self, floor: int) -> None:
        """What the leader proposes when the history is long."""
        self.sweep(commands.encode_compact(floor))

    def close(self) -> None:
        """The cluster closes: waiters are told, nothing is accepted any more."""
        self._open = False
        for done in [done for _, done, _ in self._queue] + self._applied:
            done.set()
        self._wake.set()

    def _envelope(self, kind: int, payload: bytes) -> bytes:
        self._sequence += 1
        return Envelope(kind, self.session, self._sequence, self._sequence, payload).encode()

    def _answer(self) -> None:
        if not self._behind:
            for done in self._applied:
                done.set()
            self._applied.clear()

    def _apply(self, command: bytes) -> bytes:
        result = self.leader.apply(command)
        if not self._behind:
            assert result == self.replica.apply(command)
        return result
