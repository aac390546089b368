"""The election: one leads, all know who, and a leader of the past proclaims nothing."""

from __future__ import annotations

import pytest
import trio
from clusters import id_of, running
from contending import EXPIRED_S, TTL_S, Stays, left_behind, overlaps, until_in, until_keys

from replikv import Cluster, LeaseExpiredError, Put, Store
from replikv.recipes import Elected, Election, Leader

KEYS = "elections/job/"


def election_of(store: Store) -> Election:
    return Election(store, "job", ttl_s=TTL_S)


class Observer:
    """One who is told of all leaders."""

    def __init__(self, store: Store) -> None:
        self._election = election_of(store)
        self.told: list[Leader | None] = []

    async def run(self) -> None:
        async for leader in self._election.observe():
            self.told.append(leader)

    @property
    def values(self) -> list[object]:
        return [None if leader is None else leader.value for leader in self.told]


async def test_one_leads_after_the_other_and_everybody_is_told(autojump_clock: trio.abc.Clock) -> None:
    """Candidates of three processes, in the order in which they came; observers on all of them are told the same."""
    stays = Stays()
    async with running() as peers:
        await peers.leader()
        observers = {node_id: Observer(peers[node_id].store) for node_id in "abc"}
        async with trio.open_nursery() as observing:
            for observer in observers.values():
                observing.start_soon(observer.run)
            await trio.sleep(0.1)

            async def campaign(node_id: str) -> None:
                async with election_of(peers[node_id].store).campaign(node_id) as elected:
                    with stays.stay(node_id, elected.token):
                        await trio.sleep(1.0)
                        await elected.proclaim(node_id.upper())
                        await trio.sleep(1.0)

            async with trio.open_nursery() as nursery:
                for number, node_id in enumerate("cab"):
                    nursery.start_soon(campaign, node_id)
                    await until_keys(peers["a"].store, KEYS, number + 1)
            await trio.sleep(1.0)
            observing.cancel_scope.cancel()
        assert ["c", "a", "b"] == stays.order
        assert [] == overlaps(stays.done)
        for observer in observers.values():
            assert [None, "c", "C", "a", "A", "b", "B", None] == observer.values
            leaders = [leader for leader in observer.told if leader is not None]
            assert [stay.token for stay in stays.done for _ in "xX"] == [leader.token for leader in leaders]
            told = [(leader.token, leader.revision) for leader in leaders]
            assert sorted(set(told)) == told
        assert ([], 0) == left_behind(peers["a"])


async def test_who_leads_is_asked_of_the_cluster(autojump_clock: trio.abc.Clock) -> None:
    """A process that was cut off meanwhile does not answer by what it knew."""
    async with running() as peers:
        leader = await peers.leader()
        behind = (await peers.followers())[0]
        peers.network.isolate(id_of(behind))
        async with election_of(leader.store).campaign("here") as elected:
            peers.network.heal()
            assert 0 == len(behind.store)
            revision = leader.store.revision
            assert Leader("here", elected.token, revision) == await election_of(behind.store).leader()
        assert None is await election_of(behind.store).leader()


async def test_a_slow_observer_is_told_the_newest() -> None:
    """Not all that was: it is never behind by more than what it is looking at, and costs no memory."""
    async with Cluster("a") as cluster:
        election = election_of(cluster.store)
        observing = election.observe()
        assert await anext(observing) is None
        async with election.campaign(0) as elected:
            for number in range(1, 3000):
                await elected.proclaim(number)
            leader = await anext(observing)
            assert leader is not None
            assert (2999, elected.token) == (leader.value, leader.token)
            assert leader == await election.leader()
        assert await anext(observing) is None
        assert await election.leader() is None


async def test_resigning_ends_the_block_and_the_next_one_leads(autojump_clock: trio.abc.Clock) -> None:
    """From within, or by another task, which returns when the cluster knows. The block raises nothing."""
    stays = Stays()
    async with running() as peers:
        await peers.leader()
        elected: dict[str, Elected] = {}
        left: list[str] = []

        async def campaign(node_id: str) -> None:
            async with election_of(peers[node_id].store).campaign(node_id) as leading:
                elected[node_id] = leading
                with stays.stay(node_id, leading.token):
                    await trio.sleep_forever()
            left.append(node_id)

        async with trio.open_nursery() as nursery:
            for number, node_id in enumerate("ab"):
                nursery.start_soon(campaign, node_id)
                await until_keys(peers["a"].store, KEYS, number + 1)
            await until_in(stays, "a")
            await elected["a"].resign()
            assert ["a"] == left
            leader = await election_of(peers["c"].store).leader()
            assert leader is not None
            assert "b" == leader.value
            await until_in(stays, "b")
            await elected["b"].resign()
            async with election_of(peers["c"].store).campaign() as leading:
                await leading.resign()
                raise AssertionError("it does not return to the body")
        assert await election_of(peers["a"].store).leader() is None


async def test_a_leader_that_is_cut_off_is_deposed_and_proclaims_nothing(autojump_clock: trio.abc.Clock) -> None:
    """Its body is cancelled. If it is stuck and goes on, the cluster refuses what it says, and what it writes."""
    async with running() as peers:
        await peers.leader()
        stuck, other = await peers.followers()
        go_on, refused = trio.Event(), trio.Event()

        async def lead_stuck() -> None:
            async with election_of(stuck.store).campaign("stuck") as elected:
                with trio.CancelScope(shield=True):
                    await go_on.wait()
                    with pytest.raises(LeaseExpiredError):
                        await elected.proclaim("still here")
                    assert not (await stuck.store.txn([elected.claim.fence], [Put("key", 1)])).succeeded
                    refused.set()

        async def be_deposed() -> None:
            with pytest.raises(LeaseExpiredError):
                await lead_stuck()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_deposed)
            await until_keys(other.store, KEYS, 1)
            peers.network.isolate(id_of(stuck))
            with trio.fail_after(EXPIRED_S):
                async with election_of(other.store).campaign("other"):
                    peers.network.heal()
                    go_on.set()
                    await refused.wait()
                    leader = await election_of(other.store).leader()
                    assert leader is not None
                    assert "other" == leader.value


async def test_a_deposed_leader_does_not_come_back_by_proclaiming() -> None:
    """Somebody deleted its key. To put that again would make a second leader of one that does not know yet."""
    async with Cluster("a") as cluster:

        async def lead() -> None:
            async with election_of(cluster.store).campaign("a") as elected:
                with trio.CancelScope(shield=True):
                    await cluster.store.delete(elected.claim.key)
                    with pytest.raises(LeaseExpiredError, match="was deposed"):
                        await elected.proclaim("b")
                    assert [] == list(cluster.store.keys(KEYS))

        with pytest.raises(LeaseExpiredError):
            await lead()


async def test_the_bodys_exception_leaves_the_campaign_as_it_is() -> None:
    """And leadership ends with it."""
    async with Cluster("a") as cluster:
        error = KeyError("mine")
        with pytest.raises(KeyError) as caught:
            async with election_of(cluster.store).campaign():
                raise error
        assert caught.value is error
        assert ([], 0) == left_behind(cluster)


async def test_a_task_that_campaigns_is_told_when_it_campaigns_again() -> None:
    """It would wait for itself to resign."""
    async with Cluster("a") as cluster:
        election = election_of(cluster.store)
        async with election.campaign():
            with pytest.raises(RuntimeError, match="has elections/job already"):
                async with election.campaign():
                    raise AssertionError("nobody may come here")
