"""Peers without a disk that are restarted: they come back by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import running_processes

KEYS = 6


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.long)])
async def test_peers_without_a_disk_come_back_by_themselves(tmp_path: Path, rounds: int) -> None:
    """Each is killed in turn, the leader among them, and started with the same arguments: it votes again, unasked.

    It has forgotten what it voted, so it must have joined anew. The history that clients saw is linearizable, though
    in the end no process is left of those that began it.
    """
    async with running_processes(tmp_path, durable=False) as group:
        group.work("abc", keys=KEYS)
        for _ in range(rounds):
            first = await group.leader()
            for node_id in sorted("abc", key=lambda node_id: node_id != first):
                await group.kill(node_id)
                await group.leader()
                await group.start(node_id)
                await group[node_id].call("put", key="key", value=node_id)  # it is a member, by its new name
                await group.wait_roles("abc")
                group.work(node_id, keys=KEYS)
        await group.finish_work(keys=KEYS)
        assert 1 == len(await group.digests())
