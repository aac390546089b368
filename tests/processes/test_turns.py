"""Processes that are killed and stopped while they compete for a leadership: one at a time, fenced, and on it goes."""

from __future__ import annotations

import itertools
import random
import signal
from pathlib import Path

import pytest
import trio
from processes import SETTLED_S, Group, running_processes
from turns import read_turns

TTL_S = 1.5


async def holder(group: Group) -> str:
    """Who leads the job, as soon as somebody does."""
    with trio.fail_after(SETTLED_S):
        while True:
            for node_id, process in group.running.items():
                leads = await process.call("leads")
                if leads:
                    return node_id
            await trio.sleep(0.01)


@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.long)])
async def test_one_leads_at_a_time_whoever_is_killed_or_stopped(tmp_path: Path, rounds: int) -> None:
    """The holder and the cluster's leader, in turn, are killed with -9, or stopped for longer than the time to live.

    At no time two believe that they lead, by their own clocks and blocks; each has a larger token than the one before;
    and when it is over, everybody leads again.
    """
    chance = random.Random(rounds)
    async with running_processes(tmp_path) as group:
        for process in group.running.values():
            await process.call("contend", ttl_s=TTL_S)
        for number in range(rounds):
            await trio.sleep(chance.uniform(0.2, 1.0))
            victim = await holder(group) if number % 2 else await group.leader()
            if number % 4 < 2:
                await group.kill(victim)
                await trio.sleep(chance.uniform(0.0, 2 * TTL_S))
                await group.start(victim)
                await group[victim].call("contend", ttl_s=TTL_S)
            else:
                group[victim].signal(signal.SIGSTOP)
                await trio.sleep(chance.uniform(1.1, 2.0) * TTL_S)
                group[victim].signal(signal.SIGCONT)
        living = {f"{node_id}-{process.pid}" for node_id, process in group.running.items()}
        newest = read_turns(tmp_path)[-1].token
        with trio.fail_after(SETTLED_S):
            while living - {turn.who for turn in read_turns(tmp_path) if turn.token > newest}:  # noqa: ASYNC110
                await trio.sleep(0.1)
        for process in group.running.values():
            await process.call("stop_contending")
        turns = read_turns(tmp_path)
        for older, newer in itertools.pairwise(turns):
            assert older.believed < newer.entered, (older, newer)
        assert len(turns) > rounds
        await group.leader()
        assert {} == await group["a"].call("items")


async def test_a_write_of_a_deposed_leader_is_refused(tmp_path: Path) -> None:
    """It was stopped in the middle of its body, until after another had led: its token is smaller by then.

    And as soon as it looks at anything else, its block ends.
    """
    async with running_processes(tmp_path) as group:
        await group.leader()
        late = group["a"].post("write_late", ttl_s=TTL_S)
        await trio.sleep(1.0)
        group["a"].signal(signal.SIGSTOP)
        await group["b"].call("contend", ttl_s=TTL_S)
        await wait_leads(group, "b")
        await trio.sleep(0.5)
        (tmp_path / "go-on").touch()
        group["a"].signal(signal.SIGCONT)
        with trio.fail_after(SETTLED_S):
            answer = await group["a"].answer(late)
        assert [True, False] == answer["taken"]
        assert "the leadership 'job' was lost" in answer["ended"]


async def wait_leads(group: Group, node_id: str) -> None:
    with trio.fail_after(SETTLED_S):
        while not await group[node_id].call("leads"):  # noqa: ASYNC110  # another process
            await trio.sleep(0.01)
