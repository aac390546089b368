"""A process that is stopped and goes on: it must not believe that nothing has happened meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path

import trio
from processes import running_processes


async def test_a_leader_that_was_stopped_serves_no_stale_read(tmp_path: Path) -> None:
    """Its first act when it goes on is to answer gets that wait in its pipe, and others: all see the newer write."""
    async with running_processes(tmp_path) as group:
        for number in range(3):
            leader = await group.leader()
            await group[leader].call("put", key="key", value=f"{number} old")
            group[leader].signal(signal.SIGSTOP)
            other = next(node_id for node_id in "abc" if node_id != leader)
            await group[other].call("put", key="key", value=f"{number} new")
            waiting = [group[leader].post("get", key="key") for _ in range(20)]
            group[leader].signal(signal.SIGCONT)
            for _ in range(5):
                waiting.append(group[leader].post("get", key="key"))
                await trio.sleep(0.01)
            with trio.fail_after(20.0):
                assert {f"{number} new"} == {await group[leader].answer(command) for command in waiting}
            await group.leader()
        assert 1 == len(await group.digests())
