"""A follower that was away for longer than the log goes back: it catches up by a snapshot, and nobody waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from processes import running_processes

PAUSE_MAX_S = 0.05


@pytest.mark.parametrize("keys", [4_000, pytest.param(100_000, marks=pytest.mark.long)])
async def test_a_follower_catches_up_under_load(tmp_path: Path, keys: int) -> None:
    """Two puts of every key go by while it is away, and load goes on when it is back: it gets the snapshot, and all.

    No peer's loop pauses for more than 50 ms of its process's own CPU meanwhile, and the leader stays. At the end the
    replicas are equal.
    """
    settings = {
        "heartbeat_interval_s": 0.1,
        "election_timeout_s": 1.0,
        "snapshot_log_entries": 20,
        "trailing_entries": 5,
        "catch_up_log_bytes": 4 * 1024 * 1024,
    }
    async with running_processes(tmp_path, settings=settings) as group:
        leader = await group.leader()
        away = next(node_id for node_id in "abc" if node_id != leader)
        last_index = (await group[away].call("status"))["last_index"]
        await group.kill(away)
        await group[leader].call("fill", keys=keys, clients=64, value_bytes=100)
        status = await group[leader].call("status")
        assert status["first_index"] > last_index + 1
        await group[leader].call("measure_pauses")
        await group[leader].call("load", clients=64, prefix="load")
        await group.start(away)
        await group[away].call("measure_pauses")
        await group.wait_status("applied_index", lambda applied: applied >= status["last_index"])
        await trio.sleep(0.5)
        await group[leader].call("stop_load")
        pauses = {node_id: await group[node_id].call("pauses") for node_id in (leader, away)}
        assert (leader, status["term"]) == (await group.leader(), (await group[leader].call("status"))["term"])
        assert max(pause["own_s"] for pause in pauses.values()) <= PAUSE_MAX_S, pauses
        items = await group[away].call("items")
        assert all(items[key] >= number for key, number in group.acknowledged.items())
        assert 64 == len(group.acknowledged)
        assert 1 == len(await group.digests())
