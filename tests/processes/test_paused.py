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
    """SIGSTOP; writes elsewhere; SIGCONT."""
    led = victim == await group.leader()
    await group[victim].call("put", key="key", value="old")
    group[victim].signal(signal.SIGSTOP)
    others = sorted(set("abc") - {victim})
    if led:
        await group.leader(among=others)
    else:
        await trio.sleep(chance.uniform(0.5, 2.0) * ELECTION_TIMEOUT_S)
    await group[others[0]].call("put", key="key", value="new")
    await go_on(group, victim)


async def go_on(group: Group, victim: str) -> None:
    """SIGCONT: gets that have waited in its pipe, and others that come then, all see the newest write."""
    waiting = [group[victim].post("get", key="key") for _ in range(20)]
    group[victim].signal(signal.SIGCONT)
    for _ in range(5):
        waiting.append(group[victim].post("get", key="key"))
        await trio.sleep(0.01)
    with trio.fail_after(20.0):
        assert {"new"} == {await group[victim].answer(command) for command in waiting}


@pytest.mark.parametrize("lease_reads", [False, True])
@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.long)])
async def test_whoever_was_stopped_serves_no_stale_read(tmp_path: Path, rounds: int, lease_reads: bool) -> None:
    """Leaders, until another is elected, and followers; clients read in a tight loop all the while, others write.

    No get that was begun in the stopped process before, during or after returns what was overwritten before the get
    began: the history is linearizable.
    """
    chance = random.Random(5)
    settings = {"lease_reads": lease_reads, "election_timeout_s": ELECTION_TIMEOUT_S}
    async with running_processes(tmp_path, settings=settings) as group:
        group.work("abc", keys=KEYS, clients=2, pause_s=0.02)
        group.work("abc", keys=KEYS, clients=6, pause_s=0.0, only="get")
        for number in range(rounds):
            leader = await group.leader()
            await stop_for_a_while(group, leader if number % 3 < 2 else chance.choice("abc"), chance)
        await group.finish_work(keys=KEYS)
        assert 1 == len(await group.digests())


@pytest.mark.parametrize(
    ("lease_reads", "rounds"),
    [
        (True, 1),
        pytest.param(True, 10, marks=pytest.mark.long),
        pytest.param(False, 10, marks=pytest.mark.long),
    ],
)
async def test_a_leader_notices_by_itself_that_its_time_is_over(tmp_path: Path, lease_reads: bool, rounds: int) -> None:
    """The others were restarted while the leader was stopped: no message of a new leader waits for it when it goes on.

    It has only its clock to tell it that it may not answer by its lease.
    """
    settings = {"lease_reads": lease_reads, "election_timeout_s": ELECTION_TIMEOUT_S}
    async with running_processes(tmp_path, settings=settings) as group:
        for _ in range(rounds):
            leader = await group.leader()
            others = sorted(set("abc") - {leader})
            await group[leader].call("put", key="key", value="old")
            await trio.sleep(ELECTION_TIMEOUT_S)  # it has a lease by then
            group[leader].signal(signal.SIGSTOP)
            await group.kill(others)
            await group.start(others)
            await group[others[0]].call("put", key="key", value="new")
            await go_on(group, leader)
