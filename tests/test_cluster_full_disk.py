"""A disk that is full stops a peer from acknowledging, and the cluster goes on under another leader."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
import trio

from replikv import Cluster, MemoryNetwork, MemoryTransport, Settings
from replikv.storage.base import StorageFullError
from replikv.storage.disk import DiskStorage
from replikv.storage.filesystem import File, OsFile, OsFileSystem

MEMBERS = {"a": "memory-a", "b": "memory-b", "c": "memory-c"}
SETTINGS = Settings(heartbeat_interval_s=0.05, election_timeout_s=0.5)


class Disks(OsFileSystem):
    """One disk for each data directory, any of which may be full."""

    def __init__(self) -> None:
        self.full: set[str] = set()

    def is_full(self, path: Path) -> bool:
        return not self.full.isdisjoint(path.parts)

    def open(self, path: Path, *, create: bool = False) -> File:
        super().open(path, create=create).close()
        return FileOnDisk(path, self)


class FileOnDisk(OsFile):
    def __init__(self, path: Path, disks: Disks) -> None:
        super().__init__(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._disks = disks

    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        if self._disks.is_full(self.path):
            raise StorageFullError(f"cannot write {self.path}: No space left on device")
        super().pwrite(data, offset)


async def test_a_leader_without_room_hands_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Puts of the others go on; its own wait, and are done when there is room. Its doctor says why."""
    disks = Disks()
    monkeypatch.setattr("replikv.startup.DiskStorage", functools.partial(DiskStorage, filesystem=disks))
    network = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        clusters = {}
        for node_id in MEMBERS:
            clusters[node_id] = Cluster(
                node_id,
                members=MEMBERS,
                data_dir=tmp_path / node_id,
                transport=MemoryTransport(network),
                settings=SETTINGS,
            )
            await nursery.start(clusters[node_id].run)
        with trio.fail_after(20):
            leader = await clusters["a"].wait_leader()
            await clusters[leader].store.put("k", 0)
            disks.full = {leader}
            others = [clusters[node_id] for node_id in MEMBERS if node_id != leader]
            nursery.start_soon(clusters[leader].store.put, "own", 1)
            while leader in {other.status().leader for other in others}:  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.05)
            for number in range(20):
                await others[number % 2].store.put("k", number)
            assert any("disk" in reason and "full" in reason for reason in clusters[leader].doctor())
            disks.full = set()
            await clusters[leader].store.barrier()
            assert 19 == clusters[leader].store["k"]
            while clusters[leader].store.local.get("own") != 1:  # noqa: ASYNC110  # nothing to wait on
                await trio.sleep(0.05)
        for cluster in clusters.values():
            await cluster.shutdown()
