"""Clusters whose peers share one process and a network in memory: quick under a mock clock, with faults at will."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterable

import trio

from replikv import Cluster, MemoryNetwork, MemoryTransport, RemovedError, Settings
from replikv.machine.envelope import CommandKind, Envelope, pack_commands
from replikv.peer.peer import Peer

HEALED_S = 10.0
"""Within this time after the last fault every peer follows one leader, and has everything: ten election timeouts."""


def addresses(node_ids: Iterable[str]) -> dict[str, str]:
    return {node_id: f"memory-{node_id}" for node_id in node_ids}


class Peers:
    """The clusters of all peers, by node id."""

    def __init__(self, node_ids: str, settings: Settings, network: MemoryNetwork, nursery: trio.Nursery) -> None:
        self.members = addresses(node_ids)
        self.settings = settings
        self.network = network
        self._nursery = nursery
        self._clusters: dict[str, Cluster] = {}
        self.removed: dict[str, RemovedError] = {}

    def __getitem__(self, node_id: str) -> Cluster:
        return self._clusters[node_id]

    @property
    def all(self) -> list[Cluster]:
        return list(self._clusters.values())

    def make(self, node_id: str, settings: Settings | None = None) -> Cluster:
        """A cluster for the peer that is not started."""
        return Cluster(
            node_id,
            members=self.members,
            transport=MemoryTransport(self.network),
            settings=settings or self.settings,
        )

    async def join(
        self, node_id: str, *, via: str = "a", learner: bool = False, settings: Settings | None = None
    ) -> Cluster:
        """Start a peer that joins by the members named in ``via``."""
        cluster = Cluster(
            node_id,
            address=f"memory-{node_id}",
            join=[f"memory-{member}" for member in via],
            learner=learner,
            transport=MemoryTransport(self.network),
            settings=settings or self.settings,
        )
        await self._run(node_id, cluster)
        return cluster

    async def roles(self, voters: str, learners: str = "", *, within_s: float = HEALED_S) -> None:
        """Wait until every peer that runs knows exactly these voters and learners."""
        wanted = dict.fromkeys(voters, "voter") | dict.fromkeys(learners, "learner")
        with trio.fail_after(within_s):
            while True:
                known = [{i: m.role for i, m in cluster.status().members.items()} for cluster in self.all]
                if all(wanted == members for members in known):
                    return
                await trio.sleep(0.05)

    async def start(self, node_id: str, settings: Settings | None = None) -> Cluster:
        cluster = self.make(node_id, settings)
        await self._run(node_id, cluster)
        return cluster

    async def _run(self, node_id: str, cluster: Cluster) -> None:
        async def run(task_status: trio.TaskStatus[None]) -> None:
            try:
                await cluster.run(task_status=task_status)
            except RemovedError as exc:
                self.removed[node_id] = exc
                self._clusters.pop(node_id, None)

        await self._nursery.start(run)
        self._clusters[node_id] = cluster

    async def shutdown(self, node_id: str) -> None:
        await self._clusters.pop(node_id).shutdown()

    async def leader(self, *, among: Iterable[str] | None = None) -> Cluster:
        """The leader, once it and a majority that it is not cut off from agree on who that is."""
        ids = list(self._clusters if among is None else among)
        with trio.fail_after(HEALED_S):
            while True:
                told = {self._clusters[node_id].status().leader for node_id in ids}
                leader = next(iter(told))
                if len(told) == 1 and leader in ids and self._clusters[leader].is_leader:
                    return self._clusters[leader]
                await trio.sleep(0.05)

    async def followers(self) -> list[Cluster]:
        return self.without(await self.leader())

    def without(self, one: Cluster) -> list[Cluster]:
        return [cluster for cluster in self.all if cluster is not one]

    async def converge(self) -> str:
        """The digest that all have in common, once all have applied equally much."""
        with trio.fail_after(HEALED_S):
            while len({peer_of(cluster).replica.position for cluster in self.all}) > 1:  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.05)
        digests = {cluster.digest() for cluster in self.all}
        assert len(digests) == 1, digests
        return digests.pop()[1]


@contextlib.asynccontextmanager
async def running(
    node_ids: str = "abc", *, absent: str = "", seed: int = 0, settings: Settings | None = None, **changes: float
) -> AsyncIterator[Peers]:
    """Peers of these names, started but for the absent ones; shut down at the end. ``changes`` are to the settings."""
    network = MemoryNetwork(seed)
    async with trio.open_nursery() as nursery:
        peers = Peers(node_ids, dataclasses.replace(settings or Settings(), **changes), network, nursery)  # type: ignore[arg-type]  # by name
        for node_id in node_ids:
            if node_id not in absent:
                await peers.start(node_id)
        yield peers
        for cluster in peers.all:
            await cluster.shutdown()


def peer_of(cluster: Cluster) -> Peer:
    """The peer inside, for what only a test wants to see or do."""
    assert cluster._peer is not None
    return cluster._peer


def id_of(cluster: Cluster) -> str:
    return cluster.status().node_id


async def open_sessions(leader: Cluster, count: int) -> None:
    """As if ``count`` peers had started meanwhile."""
    driver = peer_of(leader)._driver
    commands = [Envelope(CommandKind.REGISTER, 0, nonce, 0, b"other").encode() for nonce in range(1, count + 1)]
    index = driver.node.propose(pack_commands(commands))
    driver.wake()
    while driver.applier.index < index:  # noqa: ASYNC110  # nothing to wait on
        await trio.sleep(0.01)
