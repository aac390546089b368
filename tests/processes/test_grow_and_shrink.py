"""A cluster grows and shrinks under load, with no failed operation but those of a peer that was removed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from processes import Group, running_processes

KEYS = 6


async def choose_removal(group: Group, cases: Iterator[tuple[str, str]]) -> tuple[str, str]:
    """Who asks for the removal of whom."""
    leader = await group.leader()
    followers = sorted(set(group.running) - {leader})
    asks, removed = next(cases)
    if asks == removed == "follower":
        return followers[0], followers[0]
    if (asks, removed) == ("follower", "other follower"):
        return followers[0], followers[-1]
    return (leader if asks == "leader" else followers[0]), (leader if removed == "leader" else followers[-1])


@pytest.mark.parametrize(
    ("rounds", "lease_reads"),
    [(1, False), pytest.param(10, False, marks=pytest.mark.long), pytest.param(10, True, marks=pytest.mark.long)],
)
async def test_a_cluster_grows_and_shrinks_under_load(tmp_path: Path, rounds: int, lease_reads: bool) -> None:
    """From one voter to five and back to one, removed by followers and leaders, leaders and themselves among them.

    Clients of all peers work all the time. The history that they saw is linearizable, every operation of a peer that
    stayed succeeded, and whoever was removed ends with RemovedError. Later rounds have those join anew.
    """
    cases = itertools.cycle(
        [("follower", "leader"), ("leader", "follower"), ("leader", "leader"), ("follower", "follower")]
    )
    async with running_processes(tmp_path, "a", settings={"lease_reads": lease_reads}) as group:
        group.work("a", keys=KEYS)
        members = ["a"]
        for _ in range(rounds):
            while len(members) < 5:
                joining = sorted(set("abcde") - set(members))[:2]
                await group.join(joining, via=members)
                members += joining
                group.work(joining, keys=KEYS)
                await group.wait_roles(members)
            while len(members) > 1:
                asks, removed = await choose_removal(group, cases)
                await group[asks].call("remove_member", node_id=removed)
                await group.forget(removed)
                members.remove(removed)
                await group.wait_roles(members)
                await trio.sleep(0.2)
        history = await group.finish_work(keys=KEYS)
    assert {"put", "get", "cas", "delete", "increment"} == {operation.op for operation in history}
    assert {*"abcde"} == {str(operation.client)[0] for operation in history}
