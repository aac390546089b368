"""More peers than voters, several to a process, none of them with a disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from processes import Process, free_addresses, running_processes


@pytest.mark.parametrize(
    ("voters", "crowds", "each", "kills"),
    [pytest.param(*size, marks=pytest.mark.long) for size in (("abc", 2, 3, 1), ("abcde", 5, 6, 5))],
)
async def test_peers_in_memory_take_the_votes_of_those_that_are_lost(
    tmp_path: Path, voters: str, crowds: int, each: int, kills: int
) -> None:
    """Thirty join five voters, in ten processes; then every one of the first voters is killed, one after the other.

    Each vote goes to one of the thirty, without a hand. What all of them have counted is there in the end, and their
    replicas are equal.
    """
    settings = {"voters_max": len(voters), "voter_replace_after_s": 2.0}
    settings |= {"heartbeat_interval_s": 0.2, "election_timeout_s": 2.0}
    async with running_processes(tmp_path, voters, durable=False, settings=settings) as group:
        join = list(group.members.values())
        processes: list[Process] = []
        try:
            async with trio.open_nursery() as nursery:
                for crowd in range(crowds):
                    peers = free_addresses(f"{crowd}{number}" for number in range(each))
                    arguments = {"peers": peers, "join": join, "settings": settings}
                    process = Process(arguments, tmp_path / f"crowd{crowd}.log", program="crowd.py")
                    processes.append(process)
                    nursery.start_soon(process.listen, {})
                    await process.ready.wait()
                    assert not process.ended.is_set(), process.said()
                everybody = len(voters) + crowds * each
                await group.wait_status("members", lambda members: len(members) == everybody)
                killed: list[str] = []
                for number in range(kills):
                    first = min(group.running)
                    leader = (await group[first].call("status"))["leader"]  # one of the thirty, it may be
                    killed.append(leader if number % 2 and leader in group.running else first)
                    await group.kill(killed[-1])
                    await voted(processes, len(voters), killed)
                for process in processes:
                    await process.call("stop")
                await trio.sleep(2.0)
                done = sum([await process.call("done") for process in processes])
                digests = {tuple(digest) for process in processes for digest in await process.call("digests")}
                assert 1 == len(digests), digests
                counted = {await process.call("counted") for process in processes}
                assert 1 == len(counted)
                assert 0 < done <= min(counted)
                nursery.cancel_scope.cancel()
        finally:
            for process in processes:
                process.end()


async def voted(processes: list[Process], count: int, without: list[str]) -> None:
    """Wait until every peer of the crowds knows so many voters, and none of those that were killed among them."""
    with trio.fail_after(60):
        while True:
            told = [roles for process in processes for roles in await process.call("roles")]
            voters = [{node_id for node_id, role in roles.items() if role == "voter"} for roles in told]
            if all(len(ids) == count and ids.isdisjoint(without) for ids in voters):
                return
            await trio.sleep(0.1)
