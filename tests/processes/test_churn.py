"""Everything that happens to members, in any order: they join, go, are killed, stopped, moved, and come back."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import trio
from processes import CommandError, Group, running_processes

KEYS = 6
NODE_IDS = "abcdefg"
VOTERS_MIN = 3
VOTERS_MAX = 5
"""The default of the settings; with more members than that some learn only, and who votes is chance."""


async def join(group: Group, chance: random.Random) -> None:
    """One that is no member joins, by any other, which may be learning still itself."""
    absent = sorted(set(NODE_IDS) - set(group.running))
    if absent:
        node_id = chance.choice(absent)
        await group.join(node_id, via=sorted(group.running))
        group.work(node_id, keys=KEYS)


async def remove(group: Group, chance: random.Random) -> None:
    """Any one asks for the removal of any one, itself perhaps."""
    if len(group.running) > VOTERS_MIN:
        asks, removed = chance.choice(sorted(group.running)), chance.choice(sorted(group.running))
        try:
            await group[asks].call("remove_member", node_id=removed)
        except CommandError as exc:
            if (asks, exc.args[0]) != (removed, "ended"):  # with RemovedError, before its answer was out
                raise
        await group.forget(removed)


async def restart(group: Group, chance: random.Random) -> None:
    """Killed, and started again."""
    node_id = chance.choice(sorted(group.running))
    await group.kill(node_id)
    await group.start(node_id)
    group.work(node_id, keys=KEYS)


async def move(group: Group, chance: random.Random) -> None:
    """Killed, and started elsewhere."""
    node_id = chance.choice(sorted(group.running))
    await group.kill(node_id)
    await group.move(node_id)
    group.work(node_id, keys=KEYS)


async def pause(group: Group, chance: random.Random) -> None:
    """Stopped for up to three election timeouts."""
    process = group[chance.choice(sorted(group.running))]
    process.signal(signal.SIGSTOP)
    await trio.sleep(chance.uniform(0.0, 1.5))
    process.signal(signal.SIGCONT)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
async def test_churn_loses_nothing(tmp_path: Path, seed: int) -> None:
    """One thing after the other, each begun as soon as a leader is there and, where they are few, all vote.

    No operation of those who live fails, and what clients saw is linearizable. Logs are short, so that who comes back
    needs a snapshot, and reads go by leases.
    """
    chance = random.Random(seed)
    settings = {"lease_reads": True, "snapshot_log_entries": 50, "trailing_entries": 10, "voter_replace_after_s": 1.0}
    async with running_processes(tmp_path, settings=settings) as group:
        group.work("abc", keys=KEYS)
        for _ in range(30):
            action = chance.choice([join, join, remove, restart, move, pause])
            await action(group, chance)
            await group.leader()
            if len(group.running) <= VOTERS_MAX:
                await group.wait_roles(group.running)
        await group.finish_work(keys=KEYS)
        assert 1 == len(await group.digests())
