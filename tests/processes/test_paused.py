"""A process that is stopped and goes on must not believe that nothing has happened meanwhile, leases or not."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import trio
from processes import Group, running_processes

KEYS = 2
ELECTION_TIMEOUT_S = 0.5


async def stop_for_a_while(group: Group, victim: str, chance: random.Random) -> None:
    """SIGSTOP; writes elsewhere, and gets that wait in the victim's pipe; SIGCONT: all of them see the newest write."""
    led = victim == await group.leader()
    await group[victim].call("put", key="key", value="old")
    group[victim].signal(signal.SIGSTOP)
    others = sorted(set("abc") - {victim})
    if led:
        await group.leader(among=others)
    else:
        await trio.sleep(chance.uniform(0.5, 2.0) * ELECTION_TIMEOUT_S)
    await group[others[0]].call("put", key="key", value="new")
    waiting = [group[victim].post("get", key="key") for _ in range(20)]
    group[victim].signal(signal.SIGCONT)
    for _ in range(5):
        waiting.append(group[victim].post("get", key="key"))
        await trio.sleep(0.01)
    with trio.fail_after(20.0):
        assert {"new"} == {await group[victim].answer(command) for command in waiting}


@pytest.mark.parametrize("lease_reads", [False, True])
@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.long)])
async def test_whoever_was_stopped_serves_no_stale_read(tmp_path: Path, rounds: int, lease_reads: bool) -> None:
    """Leaders, until another is elected, and followers; clients read in a tight loop all the while, others write.

    No get that was begun in the stopped process before, during or after returns what was overwritten before the get
    began: the history is linearizable.
    """
    chance = random.Random(5)
    settings = {"lease_reads": lease_reads, "election_timeout_s": ELECTION_TIMEOUT_S}
    async with running_processes(tmp_path, settings=settings) as group:
        group.work("abc", keys=KEYS, clients=2, pause_s=0.02)
        group.work("abc", keys=KEYS, clients=2, pause_s=0.0, only="get")
        for number in range(rounds):
            leader = await group.leader()
            await stop_for_a_while(group, leader if number % 3 < 2 else chance.choice("abc"), chance)
        await group.finish_work(keys=KEYS)
        assert 1 == len(await group.digests())
