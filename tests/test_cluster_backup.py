"""A backup of a running cluster, taken by any of its peers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from clusters import id_of, running

from replikv import Backup, Cluster, ClusterClosedError, StorageError, UnavailableError
from replikv.peer.exchange import export_map
from replikv.peer.restoration import check_backup


def items_of(backup: Path) -> dict[str, Any]:
    """The map in a backup."""
    _, *lines = map(json.loads, export_map(backup))
    return {line["key"]: line["value"] for line in lines}


async def test_everything_that_was_acknowledged_is_in_it(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """By whichever peer, and on whichever it is taken: also by one that lags."""
    async with running() as peers:
        leader = await peers.leader()
        follower = peers.without(leader)[0]
        peers.network.set_faults(delay_s=(0.005, 0.02))
        for number in range(3):
            revision = await leader.store.put("n", number)
            told = await follower.backup(tmp_path / "backup")
            assert {"n": number} == items_of(tmp_path / "backup")
            assert (revision, 1, id_of(follower)) == (told.revision, told.keys, told.node_id)
        assert ["backup"] == os.listdir(tmp_path)
        status = follower.status()
        assert status.cluster_id == told.cluster_id
        assert told == check_backup(tmp_path / "backup")
        assert not told.machine


async def test_who_cannot_ask_takes_none(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Cut off, nobody knows whether he has everything."""
    async with running(request_timeout_s=2.0) as peers:
        await peers["a"].store.put("n", 1)
        behind = (await peers.followers())[0]
        peers.network.isolate(id_of(behind))
        with pytest.raises(UnavailableError):
            await behind.backup(tmp_path / "backup")
        assert [] == os.listdir(tmp_path)


async def test_a_cluster_in_memory_and_one_that_is_closed(tmp_path: Path) -> None:
    """The former may be backed up like any, the latter not at all."""
    async with Cluster("a") as cluster:
        await cluster.store.put("n", 1)
        assert isinstance(await cluster.backup(str(tmp_path / "backup")), Backup)
    assert {"n": 1} == items_of(tmp_path / "backup")
    with pytest.raises(ClusterClosedError):
        await cluster.backup(tmp_path / "other")


async def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    """The error names it, and says that it is the path that is wrong; the peer goes on."""
    async with Cluster("a") as cluster:
        with pytest.raises(StorageError, match=r"missing/backup.*; look at the path"):
            await cluster.backup(tmp_path / "missing" / "backup")
        await cluster.store.put("key", 1)
