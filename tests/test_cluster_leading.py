"""``cluster.leading``: one at a time, in the order of coming, each with a larger token."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
import trio
from clusters import id_of, running
from test_cluster_leases import disturb

from replikv import Cluster, ClusterClosedError, ConfigurationError, Leadership, LeaseExpiredError
from replikv.leadership import PREFIX


def candidates(cluster: Cluster) -> list[str]:
    """Who leads or wants to, as this peer sees it, in the order in which they came."""
    entries = [cluster.store.entry(key) for key in cluster.store.keys(PREFIX)]
    return [entry.value for entry in sorted(entries, key=lambda entry: entry.create_revision)]


async def test_a_block_runs_while_it_leads(autojump_clock: trio.abc.Clock) -> None:
    """Its key is there as long, under its lease; the token is the key's create_revision."""
    async with running() as peers:
        cluster = peers["a"]
        async with cluster.leading("job") as leadership:
            entry = cluster.store.entry(leadership.key)
            assert ("job", "a") == (leadership.name, entry.value)
            assert (leadership.token, leadership.lease.id) == (entry.create_revision, entry.lease)
            await trio.sleep(60.0)
            assert 5.0 <= leadership.remaining_s <= 9.0
            assert ["a"] == candidates(cluster)
        assert 0.0 == leadership.remaining_s
        assert [] == candidates(cluster)


async def test_leaders_follow_in_the_order_in_which_they_came(autojump_clock: trio.abc.Clock) -> None:
    """Whichever peer they are on, and two of one peer are two; tokens grow."""
    async with running() as peers:
        await peers.leader()
        led: list[tuple[int, int]] = []
        leading = 0

        async def lead(number: int, cluster: Cluster) -> None:
            nonlocal leading
            async with cluster.leading("job") as leadership:
                assert 0 == leading
                leading += 1
                led.append((number, leadership.token))
                await trio.sleep(1.0)
                leading -= 1

        async with trio.open_nursery() as nursery:
            for number in range(9):
                nursery.start_soon(lead, number, peers.all[number % 3])
                await trio.sleep(0.3)
        assert list(range(9)) == [number for number, _ in led]
        assert sorted({token for _, token in led}) == [token for _, token in led]


async def test_names_are_leaderships_of_their_own(autojump_clock: trio.abc.Clock) -> None:
    """Also one that begins with another, or looks like the key of a candidate."""
    async with running("a") as peers:
        cluster = peers["a"]
        names = ["job", "job/1", "job%2F1", f"job/{2:016x}", "größe", "j"]
        with trio.fail_after(5.0):
            async with contextlib.AsyncExitStack() as stack:
                tokens = [(await stack.enter_async_context(cluster.leading(name))).token for name in names]
        assert sorted(set(tokens)) == tokens


@pytest.mark.parametrize("name", ["", None, 1, b"job"])
async def test_a_name_is_checked(autojump_clock: trio.abc.Clock, name: Any) -> None:
    """ConfigurationError, before anything is proposed."""
    async with running("a") as peers:
        with pytest.raises(ConfigurationError, match="a leadership has a name"):
            await peers["a"].leading(name).__aenter__()


async def test_losing_it_cancels_the_body_before_another_leads(autojump_clock: trio.abc.Clock) -> None:
    """Cut off: the block raises LeaseExpiredError first, and the next one enters his after that."""
    async with running() as peers:
        first, second = await peers.followers()
        entered = trio.Event()

        async def lead() -> None:
            async with second.leading("job", ttl_s=5.0) as leadership:
                tokens.append(leadership.token)
                entered.set()

        tokens: list[int] = []
        async with trio.open_nursery() as nursery:
            with pytest.raises(LeaseExpiredError, match="the leadership 'job' was lost: lease"):  # noqa: PT012
                async with first.leading("job", ttl_s=5.0) as leadership:
                    tokens.append(leadership.token)
                    nursery.start_soon(lead)
                    await trio.sleep(5.0)
                    peers.network.isolate(id_of(first))
                    await trio.sleep_forever()
            assert not entered.is_set()
        assert tokens[0] < tokens[1]


async def test_a_leader_whose_key_is_deleted_is_deposed(autojump_clock: trio.abc.Clock) -> None:
    """By an operator, say: the body is cancelled as soon as its peer hears of it."""
    async with running() as peers:
        first, second = peers["a"], peers["b"]
        with pytest.raises(LeaseExpiredError, match="was deleted by somebody else"):  # noqa: PT012
            async with first.leading("job") as leadership:
                await second.store.delete(leadership.key)
                with trio.fail_after(1.0):
                    await trio.sleep_forever()
        await peers.converge()
        assert 0 == len(first.store)


async def test_a_candidate_whose_key_is_deleted_stands_again(autojump_clock: trio.abc.Clock) -> None:
    """At the end of the line; nothing leaves the block that he has not entered."""
    async with running("a") as peers:
        cluster = peers["a"]
        async with trio.open_nursery() as nursery:
            async with cluster.leading("job") as leadership:
                nursery.start_soon(lead_once, cluster)
                await trio.sleep(1.0)
                (waiting,) = set(cluster.store.keys(PREFIX)) - {leadership.key}
                await cluster.store.delete(waiting)
            with trio.fail_after(1.0):
                async with cluster.leading("job"):
                    pass
        assert [] == candidates(cluster)


async def lead_once(cluster: Cluster) -> None:
    async with cluster.leading("job"):
        pass


async def test_to_stop_waiting_leaves_nothing_behind(autojump_clock: trio.abc.Clock) -> None:
    """Neither key nor lease; those behind go on waiting for those before."""
    async with running() as peers:
        led = []

        async def lead(name: str, scope: trio.CancelScope) -> None:
            with scope:
                async with peers[name].leading("job"):
                    led.append(name)

        async with trio.open_nursery() as nursery, peers["a"].leading("job"):
            scopes = {name: trio.CancelScope() for name in "bc"}
            for name, scope in scopes.items():
                nursery.start_soon(lead, name, scope)
                await trio.sleep(0.5)
            assert ["a", "b", "c"] == candidates(peers["a"])
            scopes["b"].cancel()
            await trio.sleep(0.5)
            assert ["a", "c"] == candidates(peers["a"])
            assert [] == led
        assert ["c"] == led
        await peers.converge()
        assert 0 == len(peers["a"].store)


async def test_who_is_first_again_leads_though_the_one_between_was_first_before(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The one whom a candidate watches leaves before the one in front of that: he looks again, and waits on."""
    async with running("a") as peers:
        cluster = peers["a"]
        order: list[str] = []
        scope = trio.CancelScope()

        async def lead(name: str, within: trio.CancelScope) -> None:
            with within:
                async with cluster.leading("job"):
                    order.append(name)

        async with trio.open_nursery() as nursery, cluster.leading("job"):
            nursery.start_soon(lead, "second", scope)
            await trio.sleep(0.5)
            nursery.start_soon(lead, "third", trio.CancelScope())
            await trio.sleep(0.5)
            scope.cancel()
            await trio.sleep(5.0)
            assert [] == order
        assert ["third"] == order


async def test_whoever_waits_goes_on_waiting_without_a_quorum(autojump_clock: trio.abc.Clock) -> None:
    """Longer than any time to live or timeout: he leads when there is a quorum again."""
    async with running() as peers:
        cluster = (await peers.followers())[0]
        peers.network.isolate(id_of(cluster))
        async with trio.open_nursery() as nursery:
            led = trio.Event()

            async def lead() -> None:
                async with cluster.leading("job"):
                    led.set()

            nursery.start_soon(lead)
            await trio.sleep(60.0)
            assert not led.is_set()
            peers.network.heal()
            with trio.fail_after(20.0):
                await led.wait()


async def test_an_error_of_the_body_leaves_as_it_is(autojump_clock: trio.abc.Clock) -> None:
    """In no group, whatever it is, one that a lost leadership raises included; and it has resigned."""
    async with running("a") as peers:
        for error in (LookupError("own"), LeaseExpiredError("of another lease"), TimeoutError("own")):
            with pytest.raises(type(error)) as caught:  # the block is the point
                async with peers["a"].leading("job"):
                    raise error
            assert caught.value is error
        assert [] == candidates(peers["a"])


async def test_a_cluster_that_is_closed_ends_the_block(autojump_clock: trio.abc.Clock) -> None:
    """ClusterClosedError, for who leads and for who waits; and for who comes later."""
    async with running("a") as peers:
        cluster = peers["a"]
        ends: list[str] = []

        async def lead() -> None:
            try:
                async with cluster.leading("job"):
                    ends.append("leads")
                    await trio.sleep_forever()
            except ClusterClosedError:
                ends.append("closed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lead)
            await trio.sleep(1.0)
            nursery.start_soon(lead)
            await trio.sleep(1.0)
            await peers.shutdown("a")
        assert ["leads", "closed", "closed"] == ends
        with pytest.raises(ClusterClosedError):
            await cluster.leading("job").__aenter__()


async def test_a_deposed_leaders_write_is_refused(autojump_clock: trio.abc.Clock) -> None:
    """What is fenced takes no smaller token than it has seen; here a value in the map that holds the last one."""
    async with running() as peers:
        first, second = await peers.followers()

        async def write(cluster: Cluster, leadership: Leadership, value: str) -> bool:
            """Only if nobody with a larger token has."""
            while True:
                entry = cluster.store.entry("fenced") if "fenced" in cluster.store else None
                if entry is not None and entry.value["token"] > leadership.token:
                    return False
                revision = 0 if entry is None else entry.mod_revision
                new = {"token": leadership.token, "value": value}
                if await cluster.store.replace("fenced", new, revision=revision):
                    return True
                await cluster.store.barrier()

        with pytest.raises(LeaseExpiredError):  # noqa: PT012  # the block is the point
            async with first.leading("job", ttl_s=3.0) as old:
                assert await write(first, old, "old")
                peers.network.isolate(id_of(first))
                await trio.sleep_forever()
        async with second.leading("job", ttl_s=3.0) as new:
            assert await write(second, new, "new")
            peers.network.heal()
            await first.store.barrier()
            assert not await write(first, old, "too late")
        assert "new" == first.store["fenced"]["value"]


async def test_leadership_does_not_depend_on_callers_clocks(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known elsewhere as: a lock that depends on its callers' clocks.

    Whoever asks for the time of day here is told another century each time, another than his neighbour: the leader
    keeps his leadership, and loses it when he is cut off, as ever; the next one waits as long as ever.
    """
    chance = random.Random(1)
    monkeypatch.setattr("time.time", lambda: chance.uniform(0.0, 4e9))
    monkeypatch.setattr("time.time_ns", lambda: chance.randrange(4 * 10**18))
    async with running() as peers:
        first, second = await peers.followers()
        with pytest.raises(LeaseExpiredError):  # noqa: PT012  # the block is the point
            async with first.leading("job", ttl_s=4.0) as old:
                await trio.sleep(60.0)
                peers.network.isolate(id_of(first))
                cut = trio.current_time()
                await trio.sleep_forever()
        assert 2.0 <= trio.current_time() - cut <= 3.6
        async with second.leading("job", ttl_s=4.0) as new:
            assert 2.6 <= trio.current_time() - cut <= 5.0
            assert old.token < new.token


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 10))])
async def test_one_at_a_time_however_the_network_fares(autojump_clock: trio.abc.Clock, seed: int) -> None:
    """Peers are cut off, the cluster's leader more often than others, under processes that compete.

    At no time two are in their blocks, tokens only grow, and everybody has his turn.
    """
    chance = random.Random(seed)
    leading: set[str] = set()
    led: list[tuple[int, str]] = []

    async def compete(cluster: Cluster) -> None:
        while True:
            try:
                async with cluster.leading("job", ttl_s=3.0) as leadership:
                    assert set() == leading
                    leading.add(id_of(cluster))
                    led.append((leadership.token, id_of(cluster)))
                    try:
                        await trio.sleep(chance.uniform(0.1, 6.0))
                    finally:
                        leading.discard(id_of(cluster))
            except LeaseExpiredError:
                continue

    async with running("abc", seed=seed, request_timeout_s=4.0) as peers:
        peers.network.set_faults(loss=0.02, delay_s=(0.0, 0.05))
        with trio.move_on_after(120.0):
            async with trio.open_nursery() as nursery:
                for cluster in peers.all:
                    nursery.start_soon(compete, cluster)
                await disturb(peers, chance)
        peers.network.heal()
        peers.network.set_faults()
    assert sorted(led) == led
    assert len(led) > 10
    assert {"a", "b", "c"} == {node_id for _, node_id in led}
