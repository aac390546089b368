"""A queue and a registry among real processes, which are killed and stopped; judged by what they noted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import trio
from processes import SETTLED_S, Group, running_processes

LEASE_S = 2.0
"""Four election timeouts."""
TTL_S = 4.0
"""A lease is kept alive three times in that: one that ends by itself ends after more than two thirds of it."""

# -- the queue ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Item:
    """What is known of one."""

    begun: bool = False
    put: bool = False
    refused: bool = False
    stays: dict[int, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    """Number of the delivery -> notes of those who say they had it."""
    acknowledged: list[int] = dataclasses.field(default_factory=list)
    """The deliveries that were acknowledged."""


def read_items(directory: Path) -> dict[str, Item]:
    """What all processes have noted; a line that was cut off by a kill does not count."""
    items: dict[str, Item] = {}
    lines = [line for path in directory.glob("*.work") for line in path.read_text("utf-8").splitlines(keepends=True)]
    for note in (json.loads(line) for line in lines if line.endswith("\n")):
        item = items.setdefault(note["item"], Item())
        match note["event"]:
            case "putting":
                item.begun = True
            case "put":
                item.put = True
            case "refused":
                item.refused = True
            case "in" | "out":
                item.stays.setdefault(note["count"], []).append(note)
            case "acknowledged":
                item.acknowledged.append(note["count"])
    return items


def judge(items: dict[str, Item], stopped: Collection[int]) -> None:
    """What the queue promises. Nobody can keep who was ``stopped`` from believing for a moment that it has an item."""
    for name, item in items.items():
        assert item.begun, f"{name}: nobody has put it"
        assert item.stays or not item.put, f"{name}: was put, and never delivered"
        assert not (item.stays and item.refused), f"{name}: was surely not put, and delivered"
        assert len(item.acknowledged) <= 1, f"{name}: acknowledged twice"
        assert not item.acknowledged or max(item.stays) == item.acknowledged[0], f"{name}: delivered when acknowledged"
        for count, notes in item.stays.items():
            assert 1 == len({note["pid"] for note in notes}), f"{name}: delivery {count} to two"
            assert 1 == sum(note["event"] == "in" for note in notes), f"{name}: delivery {count} twice"
        for (_, one), (_, other) in itertools.pairwise(sorted(item.stays.items())):
            if one[0]["pid"] not in stopped:
                assert one[-1]["at"] <= other[0]["at"], f"{name}: in two hands"


async def holder(group: Group) -> str:
    """A process that has an item in hand just now."""
    with trio.fail_after(SETTLED_S):
        while True:
            last = {path.stem: path.read_text("utf-8").splitlines()[-3:] for path in group.directory.glob("*.work")}
            for node_id in group.running:
                if any('"event": "in"' in line for line in last.get(node_id, ())):
                    return node_id
            await trio.sleep(0.01)


async def work(group: Group, node_id: str) -> None:
    await group[node_id].call("produce", tasks=2)
    await group[node_id].call("consume", tasks=3, visibility_s=LEASE_S)


@pytest.mark.parametrize("rounds", [3, pytest.param(45, marks=pytest.mark.long)])
async def test_work_is_done_whatever_becomes_of_the_processes(tmp_path: Path, rounds: int) -> None:
    """By turns ``kill -9`` for the leader, SIGSTOP for longer than a lease for a consumer, ``kill -9`` for a consumer.

    Every item whose put has returned is delivered at least once, the acknowledged ones never again, and none is left.
    """
    chance = random.Random(3)
    stopped: set[int] = set()
    async with running_processes(tmp_path, program="worker.py") as group:
        await group.leader()
        for node_id in "abc":
            await work(group, node_id)
        for number in range(rounds):
            await trio.sleep(chance.uniform(0.3, 0.8))
            victim = await (group.leader() if number % 3 == 0 else holder(group))
            if number % 3 == 1:
                stopped.add(group[victim].pid)
                group[victim].signal(signal.SIGSTOP)
                await trio.sleep(LEASE_S + chance.uniform(0.5, 1.5))
                group[victim].signal(signal.SIGCONT)
            else:
                await group.kill([victim])
                await trio.sleep(chance.uniform(0.0, 1.0))
                await group.start([victim])
                await work(group, victim)
            await group.leader()
        for process in group.running.values():
            await process.call("stop_producing")
        with trio.fail_after(SETTLED_S):
            while await group["a"].call("size"):  # noqa: ASYNC110  # another process tells
                await trio.sleep(0.05)
        for process in group.running.values():
            await process.call("stop_consuming")
        assert 1 == len(await group.digests())
    items = read_items(tmp_path)
    judge(items, stopped)
    assert sum(item.put for item in items.values()) > 50 * rounds
    assert any(max(item.stays, default=0) > 1 for item in items.values())


# -- the registry ------------------------------------------------------------------------------------------------------


async def listed_after_s(group: Group) -> float:
    """How long it takes until all that run list each other, and nobody else."""
    began = time.monotonic()
    running = sorted(group.running)
    answers = [(process, process.post("wait_endpoints", addresses=running)) for process in group.running.values()]
    with trio.fail_after(SETTLED_S):
        seen: list[float] = [await process.answer(number) for process, number in answers]
        return max(seen) - began


async def test_a_killed_process_is_unlisted_in_time_and_one_that_leaves_at_once(tmp_path: Path) -> None:
    """A follower by ``kill -9``: on all others within the time of its lease. The leader, too, once there is another."""
    at_once_s = TTL_S / 2

    async def serve(node_id: str) -> None:
        await group[node_id].call("serve", address=node_id, ttl_s=TTL_S)
        assert await listed_after_s(group) < at_once_s

    async with running_processes(tmp_path, program="worker.py") as group:
        leader = await group.leader()
        killed, leaving = sorted(set("abc") - {leader})
        for node_id in "abc":
            await group[node_id].call("serve", address=node_id, ttl_s=TTL_S)
        assert await listed_after_s(group) < at_once_s
        await group.kill([killed])
        assert await listed_after_s(group) < TTL_S + 1.0  # and what a busy machine takes
        await group.start([killed])
        await serve(killed)
        process = group.running.pop(leaving)
        process.leave()
        assert await listed_after_s(group) < at_once_s
        await process.ended.wait()
        process.end()
        await group.start([leaving])
        await serve(leaving)
        await group.kill([await group.leader()])
        assert await listed_after_s(group) < 2 * TTL_S + 3.0
