"""Peers without a disk: what they know is gone with their process, and they come back by themselves, as learners."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from clusters import Peers, id_of, membership_of, peer_of, running

from replikv import (
    Change,
    ClusterClosedError,
    CompactedError,
    Hello,
    OutcomeUnknownError,
    UnavailableError,
)


async def rejoined(peers: Peers, node_id: str) -> None:
    """Wait until the peer lives under the incarnation that the others know."""
    with trio.fail_after(60):
        while True:
            own = peer_of(peers[node_id]).identity.incarnation
            known = {membership_of(c).members[node_id].incarnation for c in peers.all if c is not peers[node_id]}
            if known == {own}:
                return
            await trio.sleep(0.05)


async def test_again_and_again(autojump_clock: trio.abc.Clock) -> None:
    """Each time it is let in, gets everything, and votes again."""
    async with running("abc") as peers:
        await peers["a"].store.put("n", 0)
        for round_ in range(1, 6):
            node_id = "abc"[round_ % 3]
            await peers.kill(node_id)
            back = await peers.start(node_id)
            assert round_ == await back.store.increment("n")
            assert round_ == back.store["n"]
            await peers.roles("abc", within_s=30)
        await peers.converge()


@pytest.mark.parametrize("hands_over", [True, False])
async def test_the_leader_comes_back(autojump_clock: trio.abc.Clock, hands_over: bool) -> None:
    """Whether it had time to hand over or not."""
    async with running("abc") as peers:
        leader = id_of(await peers.leader())
        await peers["a"].store.put("k", 1)
        await (peers.shutdown if hands_over else peers.kill)(leader)
        back = await peers.start(leader)
        assert 1 == await back.store.get("k")
        await peers.roles("abc", within_s=30)


async def test_two_of_five_at_once(autojump_clock: trio.abc.Clock) -> None:
    """A minority, leader included: what was acknowledged stays."""
    async with running("abcde") as peers:
        leader = id_of(await peers.leader())
        other = next(node_id for node_id in "abcde" if node_id != leader)
        for value in range(20):
            await peers["a"].store.put(f"k{value}", value)
        await peers.kill(leader)
        await peers.kill(other)
        async with trio.open_nursery() as nursery:
            for node_id in (leader, other):
                nursery.start_soon(peers.start, node_id)
        for node_id in (leader, other):
            for value in range(20):
                assert value == await peers[node_id].store.get(f"k{value}")
        await peers.roles("abcde", within_s=30)
        await peers.converge()


async def test_puts_that_were_begun_before(autojump_clock: trio.abc.Clock) -> None:
    """From the first moment on it may be used: what is asked of it is done once, when it is a member again."""
    async with running("abc") as peers:
        await peers["a"].store.put("n", 0)
        await trio.sleep(2)
        await peers.kill("b")
        back = await peers.start("b")
        store = back.store
        results: list[int] = []

        async def increment() -> None:
            results.append(await back.store.increment("n"))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(increment)
            for _ in range(20):
                await trio.sleep(0.02)
                nursery.start_soon(increment)
        await rejoined(peers, "b")
        assert [*range(1, 71)] == sorted(results)
        assert store is back.store
        assert 70 == store["n"] == await peers["a"].store.get("n")


async def test_a_watch_that_was_opened_before(autojump_clock: trio.abc.Clock) -> None:
    """It goes on over the state that arrives: each change once, in order; also a callback's."""
    async with running("abc") as peers:
        for value in range(5):
            await peers["a"].store.put("k", value)
        await trio.sleep(2)
        await peers.kill("b")
        back = await peers.start("b")
        watched: list[tuple[int, object]] = []
        called: list[tuple[int, object]] = []

        def take(change: Change) -> None:
            called.append((change.revision, change.value))

        def take_watched(change: Change) -> None:
            watched.append((change.revision, change.value))

        back.store.subscribe(take)
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async with back.store.watch(since=0) as changes:
                    async for change in changes:
                        take_watched(change)

            nursery.start_soon(watch)
            for value in range(5, 10):
                await peers["a"].store.put("k", value)
                await trio.sleep(0.1)
            await rejoined(peers, "b")
            await back.store.put("k", 10)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        everything = [(value + 1, value) for value in range(11)]
        assert everything == watched
        assert everything == called  # its replica was empty when it began: what arrives is all news


async def test_a_watch_that_cannot_go_on_is_told(autojump_clock: trio.abc.Clock) -> None:
    """What it would have to be given is not kept any more: CompactedError with the revision, not a gap."""
    async with running("abc", history_revisions=10) as peers:
        for value in range(100):
            await peers["a"].store.put("k", value)
        await trio.sleep(2)
        await peers.kill("b")
        back = await peers.start("b")
        async with back.store.watch(since=0) as changes:
            with trio.fail_after(30), pytest.raises(CompactedError) as caught:
                await anext(aiter(changes))
        assert caught.value.revision > 50
        assert 100 == await back.store.put("k", 99) - 1


async def test_what_cannot_be_done_in_time_is_told(autojump_clock: trio.abc.Clock) -> None:
    """Nobody lets it in, as there is no quorum: what is asked of it meanwhile ends with an error, in time."""
    async with running("abc") as peers:
        await peers["a"].store.put("k", 1)
        await trio.sleep(2)
        leader = id_of(await peers.leader())
        back, alone = (id_of(cluster) for cluster in await peers.followers())
        await peers.kill(leader)
        await peers.kill(back)
        again = await peers.start(back)
        await trio.sleep(5)
        started = trio.current_time()
        with pytest.raises((UnavailableError, OutcomeUnknownError)):
            await again.store.put("k", 2)
        with pytest.raises(UnavailableError):
            await again.store.get("k")
        assert trio.current_time() - started <= 2 * peers.settings.request_timeout_s
        with trio.move_on_after(5) as scope:
            await again.wait_leader()
        assert scope.cancelled_caught
        (reason,) = again.doctor()
        assert reason.startswith("joining for ")
        with pytest.raises(UnavailableError):
            await again.remove_member(alone)
        started = trio.current_time()
        await peers.shutdown(back)
        assert trio.current_time() - started <= peers.settings.shutdown_timeout_s


async def test_it_is_shut_down_while_it_waits(autojump_clock: trio.abc.Clock) -> None:
    """Whoever waits for an answer is told."""
    async with running("abc") as peers, trio.open_nursery() as nursery:
        await peers["a"].store.put("k", 1)
        await trio.sleep(2)
        await peers.kill("c")
        await peers.kill("b")
        again = await peers.start("b")
        await trio.sleep(2)
        errors: list[type[Exception]] = []

        async def put() -> None:
            with pytest.raises((ClusterClosedError, OutcomeUnknownError)) as caught:
                await again.store.put("k", 2)
            errors.append(caught.type)

        nursery.start_soon(put)
        await trio.testing.wait_all_tasks_blocked()
        await peers.shutdown("b")
        await trio.testing.wait_all_tasks_blocked()
        assert 1 == len(errors)


async def test_who_joined_comes_back_by_joining(autojump_clock: trio.abc.Clock) -> None:
    """With the same command line: as what it was, a learner for good too."""
    async with running("abc") as peers:
        await peers["a"].store.put("k", 1)
        await peers.join("d", learner=True)
        await peers.join("e")
        await peers.roles("abce", "d")
        for node_id, learner in (("d", True), ("e", False)):
            await peers.kill(node_id)
            back = await peers.join(node_id, via="bc", learner=learner)
            assert 1 == back.store["k"]
        await trio.sleep(10)
        await peers.roles("abce", "d")


async def test_at_another_address(autojump_clock: trio.abc.Clock) -> None:
    """It says where it is to be found when it joins."""
    async with running("abc") as peers:
        await peers["a"].store.put("k", 1)
        await peers.join("d")
        await peers.roles("abcd")
        await peers.kill("d")
        await peers.join("d", address="elsewhere")
        await peers.roles("abcd", within_s=30)
        assert ["elsewhere"] * 4 == [cluster.status().members["d"].address for cluster in peers.all]
        await peers["d"].store.put("k", 2)


async def test_nobody_goes_on_hearing_the_former_life(autojump_clock: trio.abc.Clock) -> None:
    """Who had admitted it under its former incarnation, and dropped what it said from then on, admits it anew."""
    async with running("abcde", absent="e") as peers:
        await peers.leader(among="abcd")
        await peers["a"].store.put("k", 1)
        await trio.sleep(1)
        await peers.kill("b")
        peers.network.partition("e", "acd")  # e starts for the first time, and for a moment hears b only
        peers.network.partition("b", "acd")
        await peers.start("e")
        await peers.start("b")
        await trio.sleep(0.5)
        peers.network.heal()
        await rejoined(peers, "b")
        await trio.sleep(5)
        assert not peer_of(peers["e"])._alive.admission.contradicted("b")
        await (await peers.leader()).transfer_leadership("e")
        await peers["b"].store.put("k", 2)
        await trio.sleep(2)
        assert [] == peers["e"].doctor()


async def test_a_late_word_on_the_former_life_ends_nothing(autojump_clock: trio.abc.Clock) -> None:
    """A refusal names both incarnations, the one that is known and the one that is refused: by then the former."""
    async with running("abc") as peers:
        await peers["a"].store.put("k", 1)
        await trio.sleep(1)
        await peers.kill("b")
        await peers.start("b")
        await rejoined(peers, "b")
        peer, other = peer_of(peers["b"]), peer_of(peers["c"])
        incarnation = peer.identity.incarnation
        former = Hello(cluster_id=other.identity.cluster_id, node_id="b", incarnation="f" * 32, address="memory-b")
        reason = other.admit(former)
        assert reason is not None
        assert incarnation[:8] in reason
        peer.refused("c", reason)
        await trio.sleep(15)
        assert incarnation == peer_of(peers["b"]).identity.incarnation
