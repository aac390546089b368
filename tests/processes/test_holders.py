"""Locks and elections among real processes, some of which are killed, stopped, or wrong about the time.

The judge reads what holders noted: every write of the map under a fence that the cluster took, with its revision and
the holder's token. In the order of revisions, tokens must never go down: then nobody wrote who had been followed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import signal
from pathlib import Path

import pytest
import trio
from processes import Group, running_processes

TTL_S = 2.0
"""Four election timeouts."""
YEARS_S = 3.0 * 365 * 86400


@dataclasses.dataclass
class Stay:
    """One holder, as far as it has noted before it went on or was killed."""

    pid: int
    token: int
    came: float
    last: float
    over: bool = False
    written: list[int] = dataclasses.field(default_factory=list)
    """Revisions of writes that the cluster took."""
    refused: int = 0


def read_stays(directory: Path) -> list[Stay]:
    """What holders of all processes have noted; a line that was cut off by a kill does not count."""
    stays: dict[str, Stay] = {}
    for path in sorted(directory.glob("*.stays")):
        for line in path.read_text("utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):
                continue
            note = json.loads(line)
            pid = int(note["stay"].partition("/")[0])
            stay = stays.setdefault(note["stay"], Stay(pid, note["token"], note["at"], note["at"]))
            stay.last = note["at"]
            match note["event"]:
                case "wrote":
                    stay.written.append(note["revision"])
                case "refused":
                    stay.refused += 1
                case "out":
                    stay.over = True
    return list(stays.values())


def judge_tokens(stays: list[Stay]) -> None:
    """No two holders have one token, and nobody wrote after one with a greater."""
    tokens = [stay.token for stay in stays]
    assert len(set(tokens)) == len(tokens)
    written = sorted((revision, stay.token) for stay in stays for revision in stay.written)
    for (revision, token), (later_revision, later_token) in itertools.pairwise(written):
        assert token <= later_token, f"{later_token} wrote at {later_revision}, after {token} had at {revision}"


def judge_times(stays: list[Stay]) -> None:
    """Nobody was in while another was: for processes that ran, with clocks that do."""
    in_order = sorted(stays, key=lambda stay: stay.came)
    for stay, later in itertools.pairwise(in_order):
        assert stay.last <= later.came, f"{later} came before {stay} had left"


async def holder(group: Group) -> str:
    """A process that is in just now."""
    with trio.fail_after(30.0):
        while True:
            inside = {stay.pid for stay in read_stays(group.directory) if not stay.over}
            for node_id, process in group.running.items():
                if process.pid in inside:
                    return node_id
            await trio.sleep(0.01)


async def until_in(group: Group, pid: int, *, writes: int = 1) -> None:
    """Wait until this process is in, or has been, and has written so often."""
    with trio.fail_after(30.0):
        while True:
            own = [stay for stay in read_stays(group.directory) if stay.pid == pid]
            if any(len(stay.written) >= writes and (writes == 1 or not stay.over) for stay in own):
                return
            await trio.sleep(0.02)


async def until_followed(group: Group) -> None:
    """Wait until others have been in and have written."""
    newest = max(stay.token for stay in read_stays(group.directory))
    with trio.fail_after(30.0):
        while True:
            later = [stay for stay in read_stays(group.directory) if stay.token > newest and stay.written]
            if len(later) >= 3:
                return
            await trio.sleep(0.05)


def contend(group: Group, node_ids: str, recipe: str, *, careless: bool = False, tasks: int = 2) -> dict[str, int]:
    """Have these processes contend; the numbers of the answers to come."""
    return {
        node_id: group[node_id].post("hold_by_turns", recipe=recipe, tasks=tasks, ttl_s=TTL_S, careless=careless)
        for node_id in node_ids
    }


async def finish(group: Group, answers: dict[str, int]) -> list[Stay]:
    """Have all stop, and wait until they have; what they noted. Each process that lives got in."""
    for process in group.running.values():
        await process.call("stop_holding")
    with trio.fail_after(30.0):
        for node_id, answer in answers.items():
            await group[node_id].answer(answer)
    stays = read_stays(group.directory)
    for process in group.running.values():
        assert any(stay.pid == process.pid and stay.written for stay in stays)
    assert 1 == len(await group.digests())
    items = await next(iter(group.running.values())).call("items")
    assert ["resource"] == [key for key in items if not key.startswith("_")], "a contender left its key behind"
    return stays


@pytest.mark.parametrize(
    ("recipe", "rounds"),
    [
        ("lock", 1),
        pytest.param("lock", 30, marks=pytest.mark.long),
        pytest.param("election", 30, marks=pytest.mark.long),
    ],
)
async def test_holders_exclude_each_other_while_processes_are_killed(tmp_path: Path, recipe: str, rounds: int) -> None:
    """``kill -9``, by turns of the cluster's leader and of who holds it: in time and by token, nobody meets another."""
    chance = random.Random(7)
    async with running_processes(tmp_path, program="holder.py") as group:
        await group.leader()
        answers = contend(group, "abc", recipe)
        for number in range(rounds):
            await trio.sleep(chance.uniform(0.3, 0.8))
            victim = await (group.leader() if number % 2 else holder(group))
            await group.kill([victim])
            await until_followed(group)
            await group.start([victim])
            answers |= contend(group, victim, recipe)
        await trio.sleep(TTL_S)
        stays = await finish(group, answers)
    judge_tokens(stays)
    judge_times(stays)


@pytest.mark.parametrize(
    ("recipe", "rounds"),
    [
        ("election", 1),
        pytest.param("lock", 15, marks=pytest.mark.long),
        pytest.param("election", 15, marks=pytest.mark.long),
    ],
)
async def test_a_holder_that_was_stopped_writes_nothing_when_it_goes_on(
    tmp_path: Path, recipe: str, rounds: int
) -> None:
    """SIGSTOP until others have followed, SIGCONT: it writes on as if nothing had been, and is refused."""
    async with running_processes(tmp_path, program="holder.py") as group:
        await group.leader()
        answers: dict[str, int] = {}
        for number in range(rounds):
            victim = "abc"[number % 3]
            process = group[victim]
            stuck = process.post("hold", recipe=recipe, ttl_s=TTL_S)
            await until_in(group, process.pid, writes=20)  # others of this process write less
            if not answers:
                answers = contend(group, "abc", recipe)
            process.signal(signal.SIGSTOP)
            await until_followed(group)
            process.signal(signal.SIGCONT)
            with trio.fail_after(30.0):
                await process.answer(stuck)
            assert 1 + number == sum(stay.refused for stay in read_stays(tmp_path))
        stays = await finish(group, answers)
    judge_tokens(stays)


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.long)])
async def test_a_lock_must_not_depend_on_callers_clocks(tmp_path: Path, rounds: int) -> None:
    """One clock is years ahead and runs twice as fast, one is years behind and five times slower.

    The first one does not take the lock from who holds it. The second one writes nothing when it has lost it, though it
    believes that it has it for five times its time. (Where callers tell the time, who is ahead ends everybody's locks.)
    """
    clocks = {"b": {"ahead_s": YEARS_S, "rate": 2.0}, "c": {"ahead_s": -YEARS_S, "rate": 0.2}}
    async with running_processes(tmp_path, program="holder.py", clocks=clocks) as group:
        for number in range(rounds):
            holding = group["a"].post("hold", recipe="lock", ttl_s=5 * TTL_S, seconds=TTL_S)
            await until_in(group, group["a"].pid, writes=2)
            [steady] = [stay for stay in read_stays(tmp_path) if not stay.over]
            slow = group["c"].post("hold", recipe="lock", ttl_s=TTL_S)
            fast = group["b"].post("hold", recipe="lock", ttl_s=TTL_S, seconds=0.5)
            with trio.fail_after(60.0):
                for node_id, answer in (("a", holding), ("b", fast), ("c", slow)):
                    await group[node_id].answer(answer)
            stays = read_stays(tmp_path)
            judge_tokens(stays)
            [steady] = [stay for stay in stays if stay.token == steady.token]
            assert 0 == steady.refused
            assert all(stay.came >= steady.last for stay in stays if stay.token > steady.token)
            assert 1 + number == sum(stay.refused for stay in stays if stay.pid == group["c"].pid)
