"""More processes than voters: the votes of those that are killed go to others by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import running_processes

KEYS = 6


@pytest.mark.parametrize(
    ("voters", "joiners", "kills"), [("abc", "def", 2), pytest.param("abcde", "fghijklmno", 8, marks=pytest.mark.long)]
)
async def test_killed_voters_are_replaced_without_a_hand(tmp_path: Path, voters: str, joiners: str, kills: int) -> None:
    """``kill -9`` of one voter after the other, every second time the leader, more of them than could fail at once.

    After each, there are as many voters that live as before. The history that clients of voters and learners saw is
    linearizable: nothing that was acknowledged is lost.
    """
    settings = {"voters_max": len(voters), "voter_replace_after_s": 1.0}
    if len(voters) > 3:  # so many processes are slow on two cores
        settings |= {"heartbeat_interval_s": 0.2, "election_timeout_s": 2.0, "voter_replace_after_s": 2.0}
    async with running_processes(tmp_path, voters, settings=settings) as group:
        for number in range(0, len(joiners), 3):
            await group.join(joiners[number : number + 3], via=voters)
        await group.wait_roles(voters, joiners)
        group.work([*voters, *joiners], keys=KEYS, clients=1, pause_s=0.01 * (len(voters) + len(joiners)))
        killed: list[str] = []
        for number in range(kills):
            leader = await group.leader()
            roles = (await group[leader].call("status"))["members"]
            followers = [node_id for node_id, role in roles.items() if role == "voter" and node_id != leader]
            killed.append(leader if number % 2 else followers[0])
            await group.kill(killed[-1])
            await group.wait_voters(len(voters), without=killed)
        await group.finish_work(keys=KEYS)
        assert 1 == len(await group.digests())
