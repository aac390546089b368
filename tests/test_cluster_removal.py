"""Members that are removed, or replaced many at once: what they are told, and what becomes of calls when leaders go."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from clusters import Peers, id_of, membership_of, peer_of, running

from replikv import (
    Cluster,
    ClusterClosedError,
    ConfigurationError,
    OutcomeUnknownError,
    RemovedError,
    UnavailableError,
)
from replikv.peer.requests import Denial, Denied, encode_answer
from replikv.transport.base import Channel


async def removed(cluster: Cluster, *, within_s: float = 30.0) -> str:
    """Run a peer that is no member any more: how it ends."""
    with trio.fail_after(within_s), pytest.raises(RemovedError) as caught:
        async with cluster:
            await trio.sleep_forever()
    return str(caught.value)


# -- who is removed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", ["nobody", "everybody"])
async def test_who_was_down_when_it_was_removed(autojump_clock: trio.abc.Clock, tmp_path: Path, restarted: str) -> None:
    """It is told when it comes back, and each time again; until then it is a member, as far as it knows."""
    async with running("abc", disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        await trio.sleep(5)
        gone = id_of((await peers.followers())[0])
        await peers.shutdown(gone)
        await (await peers.leader()).remove_member(gone)
        await peers.roles("".join(sorted({*"abc"} - {gone})))
        if restarted == "everybody":
            for node_id in sorted({*"abc"} - {gone}):
                await peers.shutdown(node_id)
            for node_id in sorted({*"abc"} - {gone}):
                await peers.restart(node_id)
            await peers.leader()
        for _ in range(2):
            assert "with an empty data_dir and join=" in await removed(peers.make(None, data_dir=tmp_path / gone))
        joined = await peers.join(gone, via="abc", data_dir=tmp_path / "anew")
        assert 1 == joined.store["k"]
        await peers.roles("abc")


async def test_a_removed_peer_without_a_disk_stays_away(autojump_clock: trio.abc.Clock) -> None:
    """With members= it is what it was before: removed. With join= it may come anew."""
    async with running("abc") as peers:
        await peers["a"].store.put("k", 1)
        await trio.sleep(2)
        await peers["b"].remove_member("c")
        await trio.sleep(5)
        assert ["c"] == list(peers.removed)
        assert "with an empty data_dir and join=" in await removed(peers.make("c"))
        joined = await peers.join("c")
        assert 1 == joined.store["k"]
        await peers.roles("abc")


async def test_the_body_is_cancelled(autojump_clock: trio.abc.Clock) -> None:
    """RemovedError leaves the block as it is, and the body has its time to clean up."""
    async with running("ab") as peers:
        steps: list[str] = []

        async def body() -> None:
            async with peers.make_joining("c"):
                steps.append("entered")
                try:
                    await trio.sleep_forever()
                finally:
                    steps.append("cleaned up")

        async def run() -> None:
            with pytest.raises(RemovedError, match=r"c was removed from the cluster.*join="):
                await body()
            steps.append("left")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await peers.roles("abc")
            await peers["a"].remove_member("c")
        assert ["entered", "cleaned up", "left"] == steps


async def test_what_a_removed_peer_was_doing(autojump_clock: trio.abc.Clock) -> None:
    """Each of its calls ends: done, surely not done, or unknown. Which of them were done tells no other story."""
    async with running("abc") as peers:
        joined = await peers.join("d")
        await peers.roles("abcd")
        done: list[int] = []
        unknown: list[int] = []
        refused: list[int] = []

        async def put(number: int) -> None:
            try:
                await joined.store.put(f"k{number:03}", number)
                done.append(number)
            except OutcomeUnknownError:
                unknown.append(number)
            except (ClusterClosedError, UnavailableError):
                refused.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(peers["a"].remove_member, "d")
            for number in range(200):
                nursery.start_soon(put, number)
                await trio.sleep(0.005)
        assert [*range(200)] == sorted(done + unknown + refused)
        assert done
        assert refused
        applied = set(dict(peers["a"].store.local).values())
        assert {*done} <= applied
        assert applied <= {*done, *unknown}
        await trio.sleep(2)
        assert ["d"] == list(peers.removed)


async def test_a_removed_learner_and_a_removed_stranger(autojump_clock: trio.abc.Clock) -> None:
    """Learners go like voters; twice is a mistake."""
    async with running("abc") as peers:
        await peers.join("d", learner=True)
        await peers["d"].remove_member("d")
        await trio.sleep(5)
        assert ["d"] == list(peers.removed)
        with pytest.raises(ConfigurationError, match="'d' is no member of this cluster: a, b, c are"):
            await peers["b"].remove_member("d")


# -- many at once ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def counting(peers: Peers, *node_ids: str) -> AsyncIterator[list[int]]:
    """Increments go on at these peers meanwhile; none is lost, none is done twice."""
    counted: list[int] = []
    unknown = 0

    async def count(node_id: str) -> None:
        nonlocal unknown
        while True:
            try:
                counted.append(await peers[node_id].store.increment("n"))
            except OutcomeUnknownError:
                unknown += 1
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        for node_id in node_ids:
            nursery.start_soon(count, node_id)
        yield counted
        nursery.cancel_scope.cancel()
    assert len(counted) == len(set(counted))
    total = await peers[node_ids[0]].store.get("n")
    assert max(counted) <= total <= len(counted) + unknown + len(node_ids)  # those cancelled may have been done


async def test_three_are_replaced_in_one_change(autojump_clock: trio.abc.Clock) -> None:
    """Whichever of them leads, and puts go on."""
    async with running("abc") as peers:
        for node_id in "xyz":
            await peers.join(node_id, learner=True)
        await peers.roles("abc", "xyz")
        async with counting(peers, "x", "y") as counted:
            await trio.sleep(1)
            await peers["x"].change_members(promote="xyz", remove="abc")
            assert {*"xyz"} == set(peers["x"].status().members)
            assert not membership_of(peers["x"]).joint
            await trio.sleep(5)
        assert len(counted) > 100
        assert {*"abc"} == set(peers.removed)
        await peers.roles("xyz")
        await peers.converge()


async def test_a_second_change_meanwhile_is_refused(autojump_clock: trio.abc.Clock) -> None:
    """With what to do; surely nothing of it is done. One after the other both may."""
    async with running("abc") as peers:
        for node_id in "de":
            await peers.join(node_id, learner=True)
        await peers.roles("abc", "de")
        leader = await peers.leader()
        follower = (await peers.followers())[0]
        peers.network.set_faults(delay_s=(0.05, 0.05))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leader.promote, "d")
            await trio.sleep(0.02)
            for cluster in (leader, follower):
                with pytest.raises(UnavailableError, match="another change of the membership is under way: try again"):
                    await cluster.remove_member("e")
        assert {*"abcde"} == set(leader.status().members)
        await follower.remove_member("e")
        await peers.roles("abcd")


@pytest.mark.parametrize("kill_after_s", [0.0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.2, 0.3])
@pytest.mark.parametrize("cut_off", [False, True])
async def test_the_leader_is_lost_in_the_middle(
    autojump_clock: trio.abc.Clock, kill_after_s: float, cut_off: bool
) -> None:
    """Killed or cut off at any point: the call returns and it is so, or says rightly what is known of it."""
    async with running("abcde", request_timeout_s=8.0) as peers:
        await peers.join("x", learner=True)
        await peers.roles("abcde", "x")
        leader = id_of(await peers.leader())
        others = sorted({*"abcde"} - {leader})
        peers.network.set_faults(delay_s=(0.02, 0.03))
        outcome: list[str] = []

        async def change() -> None:
            try:
                await peers[others[0]].change_members(promote=["x"], remove=[others[1]])
                outcome.append("done")
                assert {*"abcdex"} - {others[1]} == set(peers[others[0]].status().members)
            except OutcomeUnknownError:
                outcome.append("unknown")
            except UnavailableError:
                outcome.append("surely not")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            await trio.sleep(kill_after_s)
            if cut_off:
                peers.network.isolate(leader)
            else:
                await peers.kill(leader)
        peers.network.heal()
        await trio.sleep(10)
        left = [cluster for cluster in peers.all if id_of(cluster) != others[1]]
        known = {membership_of(cluster).voters for cluster in left}
        assert 1 == len(known)
        done = known == {frozenset({*"abcdex"} - {others[1]})}
        assert done or known == {frozenset("abcde")}
        assert outcome in (["done"], ["unknown"]) if done else outcome in (["surely not"], ["unknown"])
        await peers[others[0]].store.put("k", 1)


async def test_a_change_without_a_quorum(autojump_clock: trio.abc.Clock) -> None:
    """Where it may have been proposed it is unknown, and where it cannot have been it surely is not done."""
    async with running("abc", request_timeout_s=5.0) as peers:
        await peers.join("x", learner=True)
        await peers.roles("abc", "x")
        leader = await peers.leader()
        follower = (await peers.followers())[0]
        others = {*"abcx"} - {id_of(leader), id_of(follower)}
        # The leader hears its follower, and the others do not: proposed on it, and never committed.
        for node_id in others:
            peers.network.isolate(node_id)
        peers.network.cut(id_of(follower), id_of(leader))
        started = trio.current_time()
        with pytest.raises(OutcomeUnknownError, match="it may change yet"):
            await leader.remove_member("x", force=True)
        assert trio.current_time() - started <= 5.0
        with pytest.raises(UnavailableError, match="surely nothing was changed"):
            await follower.promote("x")
        peers.network.heal()
        await trio.sleep(10)
        await peers["a"].store.put("k", 1)


async def test_an_answer_that_is_lost(autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change was made, and nobody heard: asked again, what is done already is no mistake."""
    async with running("abc") as peers:
        await peers.join("x", learner=True)
        await peers.roles("abc", "x")
        leader = await peers.leader()
        follower = (await peers.followers())[0]
        reconfigurator = peer_of(leader)._alive.reconfigurator
        serve = reconfigurator.serve
        served = 0

        async def lose_the_first(node_id: str, channel: Any, frame: bytes) -> None:
            nonlocal served
            served += 1
            if served > 1:
                await serve(node_id, channel, frame)
                return
            silent = trio.testing.memory_stream_pair()[0]  # takes the answer, and tells nobody

            class Nowhere:
                async def send(self, frame: bytes) -> None:
                    await silent.send_all(frame)

            await serve(node_id, Nowhere(), frame)  # type: ignore[arg-type]  # all that is called

        monkeypatch.setattr(reconfigurator, "serve", lose_the_first)
        await follower.remove_member("x")
        assert 2 == served
        assert {*"abc"} == set(follower.status().members)
        with pytest.raises(ConfigurationError, match="no member"):
            await follower.remove_member("x")


async def test_a_change_that_may_come_about_yet_is_never_called_undone(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one attempt nothing is known: whatever a later one is refused for, the first may be in the log."""
    async with running() as peers:
        leader = await peers.leader()
        served = 0

        async def say_nothing_and_then_no(node_id: str, channel: Channel, frame: bytes) -> None:
            nonlocal served
            served += 1
            if served > 1:
                await channel.send(encode_answer(Denied(Denial.LATER, "another change is under way")))

        monkeypatch.setattr(peer_of(leader)._alive.reconfigurator, "serve", say_nothing_and_then_no)
        with pytest.raises(OutcomeUnknownError, match="it may change yet"):
            await peers.without(leader)[0].remove_member(id_of(peers.without(leader)[1]))
        assert served > 1


async def test_a_caller_that_falls_behind(autojump_clock: trio.abc.Clock) -> None:
    """The leader has made the change, and this peer does not hear of it in time: not "surely not done"."""
    async with running("abc", request_timeout_s=5.0) as peers:
        await peers.join("x", learner=True)
        await peers.roles("abc", "x")
        leader = await peers.leader()
        follower = (await peers.followers())[0]
        driver = peer_of(follower)._alive.driver
        take, driver._take_frames = driver._take_frames, lambda: None  # type: ignore[method-assign]  # deaf to the log
        with pytest.raises(OutcomeUnknownError, match=r"the membership was changed, but .* has not applied entry"):
            await follower.remove_member("x")
        assert {*"abc"} == set(leader.status().members)
        driver._take_frames = take  # type: ignore[method-assign]
        await peers.roles("abc")


async def test_removed_and_named_again_before_it_heard_of_either(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    """Its disk is as good as it was: it replays both, and goes on."""
    async with running("abc", disks=tmp_path) as peers:
        await peers["a"].store.put("k", 1)
        await peers.join("d")
        await peers.roles("abcd", within_s=30)
        await peers.shutdown("d")
        await trio.sleep(1.5)
        await peers["a"].remove_member("d")
        await peers["a"].add_member("d", "memory-d", learner=True)
        back = await peers.restart("d")
        await trio.sleep(10)
        assert {} == peers.removed
        await back.store.put("k", 2)
        assert "learner" == back.status().members["d"].role


async def test_what_a_removed_process_has_dialed_is_closed_when_its_id_is_named_again(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    """It may be stopped, and go on later: nothing that it says counts as the other's."""
    async with running("abc", disks=tmp_path) as peers:
        leader = await peers.leader()
        await leader.store.put("k", 1)
        await peers.join("d")
        await peers.roles("abcd", within_s=30)
        for node_id in "abc":
            peers.network.cut(node_id, "d")  # as if d were stopped: its connections stay up
        await leader.remove_member("d", force=True)
        await leader.add_member("d", "memory-d2", learner=True)
        incoming = peer_of(leader)._transport._incoming  # type: ignore[attr-defined]  # a MemoryTransport
        assert [] == [session for session in incoming if session.sender == "d" and session.open]
