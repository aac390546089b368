"""A follower that takes nothing costs the leader no more memory than the settings say."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from processes import running_processes

MIB = 1 << 20
SETTINGS = {
    "inflight_bytes_max": 4 * MIB,
    "snapshot_log_bytes": 8 * MIB,
    "trailing_bytes": 1 * MIB,
    "catch_up_log_bytes": 8 * MIB,
    "history_bytes_max": 8 * MIB,
}
HELD_MAX = 64 * MIB
"""What the settings add up to, and what Python's allocator does not give back."""


@pytest.mark.parametrize("fills", [8, pytest.param(60, marks=pytest.mark.long)])
async def test_a_follower_that_takes_nothing_costs_bounded_memory(tmp_path: Path, fills: int) -> None:
    """It is stopped with its connections up, while many times more is put than the leader may hold for it."""
    written = {"keys": 100, "clients": 32, "value_bytes": 64 * 1024}
    async with running_processes(tmp_path, settings=SETTINGS) as group:
        leader = await group.leader()
        follower = min({*"abc"} - {leader})
        await group[leader].call("fill", **written)
        before = await group[leader].call("resident_bytes")
        group[follower].signal(signal.SIGSTOP)
        for _ in range(fills):
            await group[leader].call("fill", **written)
        held = await group[leader].call("resident_bytes") - before
        group[follower].signal(signal.SIGCONT)
        assert held < HELD_MAX
        assert 1 == len(await group.digests())
