"""Peers without a disk that are restarted: they come back by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import running_processes

KEYS = 6


@pytest.mark.parametrize("restarts", [2, pytest.param(30, marks=pytest.mark.long)])
async def test_peers_without_a_disk_come_back_by_themselves(tmp_path: Path, restarts: int) -> None:
    """By turns the leader and another are killed and started with the same arguments: they vote again, unasked.

    Each has forgotten what it voted, so it must have joined anew. The history that clients saw is linearizable, though
    in the long run no process is left of those that began it.
    """
    async with running_processes(tmp_path, durable=False) as group:
        group.work("abc", keys=KEYS)
        for number in range(restarts):
            leader = await group.leader()
            followers = sorted(set("abc") - {leader})
            node_id = followers[number % 4 // 2] if number % 2 else leader
            await group.kill(node_id)
            await group.start(node_id)
            await group[node_id].call("put", key="key", value=number)  # under its new incarnation it is a member
            await group.wait_roles("abc")
            group.work(node_id, keys=KEYS)
        await group.finish_work(keys=KEYS)
        assert 1 == len(await group.digests())
