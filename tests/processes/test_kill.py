"""``kill -9`` under load: what was acknowledged is there, and what a follower acknowledged is on its disk."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from processes import Group, running_processes

from replikv.storage.disk import DiskStorage


async def victims_of(group: Group, number: int, chance: random.Random) -> list[str]:
    """Whom to kill: by turns the leader, any one, and all at once."""
    match number % 3:
        case 0:
            return [await group.leader()]
        case 1:
            return [chance.choice("abc")]
        case _:
            return ["a", "b", "c"]


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.long)])
async def test_kill_nine_loses_nothing_that_was_acknowledged(tmp_path: Path, rounds: int) -> None:
    """The leader, any peer, all three at once, under load from all of them, time and again.

    After each: every acknowledged write is read from every peer. At the end the replicas are equal.
    """
    chance = random.Random(9)
    async with running_processes(tmp_path) as group:
        await group.leader()
        for number in range(rounds):
            for node_id, process in group.running.items():
                await process.call("load", clients=16, prefix=f"{number}/{node_id}")
            await trio.sleep(chance.uniform(0.2, 0.6))
            victims = await victims_of(group, number, chance)
            await group.kill(victims)
            await trio.sleep(chance.uniform(0.0, 0.3))
            await group.start(victims)
            for node_id in set("abc") - set(victims):
                await group[node_id].call("stop_load")
            await group.leader()
            with trio.fail_after(30.0):
                for node_id in "abc":
                    items = await group[node_id].call("items")
                    acknowledged = group.acknowledged
                    lost = {key: (items.get(key), n) for key, n in acknowledged.items() if items.get(key, 0) < n}
                    assert {} == lost, f"lost on {node_id} in round {number}, after killing {victims}"
        assert len(group.acknowledged) > 16 * rounds
        assert 1 == len(await group.digests())


async def test_a_follower_never_has_less_than_it_acknowledged(tmp_path: Path) -> None:
    """512 puts in flight, and a follower killed under them: its log on disk reaches what the leader knew it to have.

    PySyncObj acknowledged appends that it had not written.
    """
    async with running_processes(tmp_path) as group:
        loaded = await group.leader()
        await group[loaded].call("load", clients=512, prefix="key")
        for number in range(3):
            await trio.sleep(0.4)
            matched = 0
            while not matched:  # a machine that is busy may have elected another, or be about to
                leader = await group.leader()
                followers = [node_id for node_id in "abc" if node_id not in (loaded, leader)]
                victim = followers[number % len(followers)]
                matched = (await group[leader].call("status"))["match"].get(victim, 0)
            await group.kill([victim])
            disk = DiskStorage(tmp_path / victim)
            on_disk = disk.image.last_index()
            disk.close()
            assert matched <= on_disk
            await group.start([victim])
        await group[loaded].call("stop_load")
        items = await group[victim].call("items")
        assert all(items[key] >= number for key, number in group.acknowledged.items())
        assert 512 == len(group.acknowledged)
