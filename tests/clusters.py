"""Clusters whose peers share one process and a network in memory: quick under a mock clock, with faults at will."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio

from replikv import Cluster, InternalError, MemoryNetwork, MemoryTransport, RemovedError, Settings
from replikv.machine.envelope import CommandKind, Envelope, pack_commands
from replikv.peer.peer import Peer
from replikv.raft.membership import MemberRecord, Membership
from replikv.storage.disk import DiskStorage
from replikv.storage.filesystem import File, OsFile, OsFileSystem

HEALED_S = 10.0
"""Within this time after the last fault every peer follows one leader, and has everything: ten election timeouts."""


def addresses(node_ids: Iterable[str]) -> dict[str, str]:
    return {node_id: f"memory-{node_id}" for node_id in node_ids}


class UnsyncedFile(OsFile):
    def fdatasync(self) -> None:
        pass

    def fsync(self) -> None:
        pass


class UnsyncedFileSystem(OsFileSystem):
    """The real one, without the syncs: what takes a test milliseconds each, and only matters to who cuts the power."""

    def open(self, path: Path, *, create: bool = False) -> File:
        file = super().open(path, create=create)
        assert isinstance(file, OsFile)
        return UnsyncedFile(path, file._descriptor)

    def sync_directory(self, path: Path) -> None:
        pass


class QuickDisk(DiskStorage):
    """A directory whose calls are made at once, where they are called for: a mock clock does not wait for threads."""

    blocking = False

    def __init__(self, directory: Path, *, segment_bytes: int, snapshots_kept: int) -> None:
        super().__init__(
            directory,
            segment_bytes=min(segment_bytes, 64 * 1024),
            snapshots_kept=snapshots_kept,
            filesystem=UnsyncedFileSystem(),
            prepare_ahead=False,
        )


async def call_at_once(call: Callable[..., Any], *args: Any, **_: Any) -> Any:
    """In place of a thread."""
    await trio.lowlevel.checkpoint()
    return call(*args)


class Peers:
    """The clusters of all peers, by node id. With ``disks``, each has a data directory below it."""

    def __init__(
        self, node_ids: str, settings: Settings, network: MemoryNetwork, nursery: trio.Nursery, disks: Path | None
    ) -> None:
        self.members = addresses(node_ids)
        self.settings = settings
        self.network = network
        self._nursery = nursery
        self._disks = disks
        self._clusters: dict[str, Cluster] = {}
        self.removed: dict[str, RemovedError] = {}
        self.may_diverge = False
        """Whether peers may end because their replica differs from the others'; those go to ``diverged``."""
        self.diverged: dict[str, InternalError] = {}

    def __getitem__(self, node_id: str) -> Cluster:
        return self._clusters[node_id]

    @property
    def all(self) -> list[Cluster]:
        return list(self._clusters.values())

    def make(self, node_id: str | None, settings: Settings | None = None, **arguments: Any) -> Cluster:
        """A cluster for the peer that is not started: one of the first members, unless the arguments say otherwise."""
        if node_id is not None and "join" not in arguments:
            arguments.setdefault("members", self.members)
        if node_id is not None and self._disks is not None:
            arguments.setdefault("data_dir", self._disks / node_id)
        return Cluster(
            node_id,
            transport=MemoryTransport(self.network),
            settings=settings or self.settings,
            **arguments,
        )

    def make_joining(
        self, node_id: str, *, via: str = "a", settings: Settings | None = None, **arguments: Any
    ) -> Cluster:
        """A cluster for a peer that joins by the members named in ``via``; not started."""
        arguments.setdefault("address", f"memory-{node_id}")
        return self.make(node_id, settings, join=[f"memory-{member}" for member in via], **arguments)

    async def join(
        self, node_id: str, *, via: str = "a", settings: Settings | None = None, **arguments: Any
    ) -> Cluster:
        """Start a peer that joins by the members named in ``via``."""
        cluster = self.make_joining(node_id, via=via, settings=settings, **arguments)
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

    async def start(self, node_id: str, settings: Settings | None = None, **arguments: Any) -> Cluster:
        cluster = self.make(node_id, settings, **arguments)
        await self._run(node_id, cluster)
        return cluster

    async def restart(self, node_id: str, **arguments: Any) -> Cluster:
        """Start a peer again that has a disk: what that says is enough."""
        assert self._disks is not None
        cluster = self.make(None, data_dir=self._disks / node_id, **arguments)
        await self._run(node_id, cluster)
        return cluster

    async def _run(self, node_id: str, cluster: Cluster) -> None:
        async def run(task_status: trio.TaskStatus[None]) -> None:
            try:
                await cluster.run(task_status=task_status)
            except RemovedError as exc:
                self.removed[node_id] = exc
                self._clusters.pop(node_id, None)
            except InternalError as exc:
                if not self.may_diverge:
                    raise
                self.diverged[node_id] = exc
                self._clusters.pop(node_id, None)

        await self._nursery.start(run)
        self._clusters[node_id] = cluster

    async def shutdown(self, node_id: str) -> None:
        await self._clusters.pop(node_id).shutdown()

    async def kill(self, node_id: str) -> None:
        """End it without a word to anybody, as a killed process ends: a leader hands nothing over."""
        peer_of(self._clusters[node_id])._alive.running = False
        await self.shutdown(node_id)

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
    node_ids: str = "abc",
    *,
    absent: str = "",
    seed: int = 0,
    settings: Settings | None = None,
    disks: Path | None = None,
    **changes: float,
) -> AsyncIterator[Peers]:
    """Peers of these names, started but for the absent ones; shut down at the end. ``changes`` are to the settings.

    With ``disks`` they keep their state in directories below it, and nobody should leave this block by a thread: calls
    that may block are made at once, so that a mock clock cannot run away meanwhile.
    """
    network = MemoryNetwork(seed)
    async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
        if disks is not None:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr("replikv.startup.DiskStorage", QuickDisk)
            patch.setattr(trio.to_thread, "run_sync", call_at_once)
        changed = dataclasses.replace(settings or Settings(), **changes)  # type: ignore[arg-type]  # by name
        peers = Peers(node_ids, changed, network, nursery, disks)
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


def membership_of(cluster: Cluster) -> Membership:
    """The configuration that the peer has applied."""
    return peer_of(cluster)._alive.admission.membership


def record_of(cluster: Cluster, node_id: str) -> MemberRecord:
    """What the peer knows of a member."""
    return membership_of(cluster).members[node_id]


async def open_sessions(leader: Cluster, count: int) -> None:
    """As if ``count`` peers had started meanwhile."""
    driver = peer_of(leader)._driver
    commands = [Envelope(CommandKind.REGISTER, 0, nonce, 0, b"other").encode() for nonce in range(1, count + 1)]
    index = driver.node.propose(pack_commands(commands))
    driver.wake()
    while driver.applier.index < index:  # noqa: ASYNC110  # nothing to wait on
        await trio.sleep(0.01)
