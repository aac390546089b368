"""Who votes: as many as are wanted, spread over the zones, each replaced when it is gone, without a hand."""

from __future__ import annotations

import functools
from pathlib import Path

import trio
from clusters import Peers, id_of, membership_of, running

from replikv import Settings

REPLACED_S = 40.0
"""Within this time a voter that is gone is replaced: ``voter_replace_after_s`` and a few election timeouts."""


async def voters(peers: Peers) -> set[str]:
    """Who votes, once all that run agree on it and no change is under way."""
    with trio.fail_after(10):
        while True:
            known = {membership_of(cluster).voters for cluster in peers.all}
            if len(known) == 1 and not any(membership_of(cluster).joint for cluster in peers.all):
                return set(known.pop())
            await trio.sleep(0.1)


async def test_voters_are_spread_over_the_zones(autojump_clock: trio.abc.Clock) -> None:
    """Of many who could vote, those are chosen that run where nobody votes yet."""

    def zone(name: str) -> Settings:
        return Settings(zone=name, voters_max=3)

    async with running("a", settings=zone("one")) as peers:
        async with trio.open_nursery() as nursery:
            for node_id, name in zip("bcdxyz", ("one", "one", "one", "two", "two", "three"), strict=True):
                nursery.start_soon(functools.partial(peers.join, node_id, settings=zone(name)))
        await peers.roles("axz", "bcdy")
        await trio.sleep(10)
        await peers.roles("axz", "bcdy")


async def test_the_zone_of_a_gone_voter_is_filled_again(autojump_clock: trio.abc.Clock) -> None:
    """By a learner of that zone, where others would do as well."""
    settings = {
        node_id: Settings(zone=zone, voters_max=3)
        for node_id, zone in zip("abcdef", ("one", "two", "three", "one", "two", "three"), strict=True)
    }
    async with running("a", settings=settings["a"]) as peers:
        for node_id in "bc":
            await peers.join(node_id, settings=settings[node_id])
        await peers.roles("abc")
        for node_id in "def":
            await peers.join(node_id, settings=settings[node_id])
        await peers.roles("abc", "def")
        await peers.kill("b")
        await peers.roles("ace", "bdf", within_s=REPLACED_S)
        await peers.kill("c")
        await peers.roles("aef", "bcd", within_s=REPLACED_S)


async def test_a_voter_that_was_replaced_comes_back_as_a_learner(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    """With its disk: its place is taken, and it takes the next one that is free."""
    async with running("abc", disks=tmp_path, voters_max=3) as peers:
        await peers.join("d")
        await peers.roles("abc", "d")
        await peers.kill("b")
        await peers.roles("acd", "b", within_s=REPLACED_S)
        await peers["a"].store.put("k", 1)
        await peers.restart("b", settings=peers.settings)
        await trio.sleep(10)
        await peers.roles("acd", "b")
        assert 1 == await peers["b"].store.get("k")
        await peers.kill("c")
        await peers.roles("abd", "c", within_s=REPLACED_S)


async def test_a_voter_that_is_away_shortly_keeps_its_vote(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """A restart or a deployment moves no votes."""
    async with running("abc", disks=tmp_path, voters_max=3) as peers:
        await peers.join("d")
        await peers.roles("abc", "d")
        for node_id in "abc":
            await peers.shutdown(node_id)
            await trio.sleep(15)
            await peers.restart(node_id, settings=peers.settings)
            await trio.sleep(5)
        await peers.roles("abc", "d")


async def test_nobody_is_demoted_where_nobody_can_take_its_place(autojump_clock: trio.abc.Clock) -> None:
    """A cluster of fewer voters survives fewer losses; a learner for good is no successor."""
    async with running("abc") as peers:
        await peers.join("d", learner=True)
        await peers.roles("abc", "d")
        await peers.kill(id_of((await peers.followers())[0]))
        await trio.sleep(120)
        await peers.roles("abc", "d")
        await peers["d"].store.put("k", 1)


async def test_two_gone_voters_are_replaced_at_once(autojump_clock: trio.abc.Clock) -> None:
    """In one joint change, while puts go on."""
    async with running("abcde") as peers:
        for node_id in "fg":
            await peers.join(node_id)
        await peers.roles("abcde", "fg")
        gone = [id_of(cluster) for cluster in (await peers.followers()) if id_of(cluster) in "abcde"][:2]
        for node_id in gone:
            await peers.kill(node_id)
        left = "".join(sorted({*"abcdefg"} - {*gone}))
        counted = 0
        async with trio.open_nursery() as nursery:

            async def count() -> None:
                nonlocal counted
                while True:
                    counted = await peers[left[0]].store.increment("n")
                    await trio.sleep(0.1)

            nursery.start_soon(count)
            await peers.roles(left, "".join(gone), within_s=REPLACED_S)
            nursery.cancel_scope.cancel()
        assert counted > 100
        assert await peers[left[-1]].store.get("n") in (counted, counted + 1)


async def test_thirty_join_and_five_voters_are_lost(autojump_clock: trio.abc.Clock) -> None:
    """One after the other: each is replaced without a hand, and nothing that was acknowledged is lost."""
    names = [f"p{number:02}" for number in range(30)]
    async with running("abcde", voter_replace_after_s=5.0) as peers:
        await peers["a"].store.put("lost", 0)
        async with trio.open_nursery() as nursery:
            for number, node_id in enumerate(names):
                nursery.start_soon(functools.partial(peers.join, node_id, via="abcde"[number % 5]))
        assert [0] * 35 == [cluster.store["lost"] for cluster in peers.all]
        assert {*"abcde"} == await voters(peers)
        everybody = {*"abcde", *names}
        for lost, node_id in enumerate("abcde", start=1):
            before = await voters(peers)
            await peers.kill(node_id)
            assert lost == await peers[names[lost]].store.increment("lost")
            with trio.fail_after(REPLACED_S):
                while node_id in await voters(peers):  # noqa: ASYNC110  # nothing to wait on
                    await trio.sleep(0.5)
            after = await voters(peers)
            assert 5 == len(after)
            assert before - {node_id} < after
        assert after < {*names}
        assert everybody == set(peers[names[0]].status().members)
        assert [5] * 30 == [await cluster.store.get("lost") for cluster in peers.all]
        await peers.converge()
