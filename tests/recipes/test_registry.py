"""The registry: who is there is found, who has gone is not, and who fails is passed over."""
# ruff: noqa: PT012  # a whole block is what raises

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio
import trio.testing
from clusters import id_of, peer_of, running
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv import (
    Cluster,
    CompactedError,
    ConfigurationError,
    EncodingError,
    LeaseExpiredError,
    OutcomeUnknownError,
    Settings,
)
from replikv.recipes import Balancer, Endpoint, EndpointWatch, NoEndpointError, ServiceRegistry

TTL_S = 3.0
"""Three election timeouts: a change of leader alone unlists nobody."""
EXPIRED_S = 2 * TTL_S + 3.0
"""Within this time who is cut off or dead is not listed any more, even if it led the cluster."""


def registry_of(cluster: Cluster) -> ServiceRegistry:
    return ServiceRegistry(cluster.store, ttl_s=TTL_S)


def addresses(cluster: Cluster, service: str = "payments") -> list[str]:
    return [endpoint.address for endpoint in registry_of(cluster).resolve(service)]


async def until_listed(cluster: Cluster, *wanted: str, within_s: float = EXPIRED_S) -> None:
    """Wait until exactly these addresses are."""
    with trio.fail_after(within_s):
        while addresses(cluster) != sorted(wanted):  # noqa: ASYNC110  # a test may look
            await trio.sleep(0.01)


def left_behind(cluster: Cluster) -> tuple[list[str], int]:
    """The keys that are there, and how many leases, as this replica knows."""
    return list(cluster.store), len(peer_of(cluster).replica.map.leases)


class Server:
    """A registration in a task of its own."""

    def __init__(self, cluster: Cluster, address: str, service: str = "payments") -> None:
        self._block = registry_of(cluster).register(service, address)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._scope:
                async with self._block:
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self._ended.set()

    async def stop(self) -> None:
        self._scope.cancel()
        await self._ended.wait()


async def serve(nursery: trio.Nursery, cluster: Cluster, *names: str) -> list[Server]:
    """Register these addresses."""
    servers = [Server(cluster, name) for name in names]
    for server in servers:
        await nursery.start(server.run)
    return servers


# -- those who serve ---------------------------------------------------------------------------------------------------


async def test_an_endpoint_is_listed_everywhere_while_its_block_runs(autojump_clock: trio.abc.Clock) -> None:
    """By service, with its metadata; and with the end of the block it is gone at once, with all it took."""
    async with running() as peers:
        await peers.leader()
        registry = registry_of(peers["a"])
        async with registry.register("payments", "10.0.0.5:8080", metadata={"zone": "b"}):
            async with registry.register("mails", "http://10.0.0.6/v1"):
                await peers.converge()
                for cluster in peers.all:
                    (payments,) = registry_of(cluster).resolve("payments")
                    assert ("payments", "10.0.0.5:8080", {"zone": "b"}) == (
                        payments.service,
                        payments.address,
                        payments.metadata,
                    )
                    assert ["http://10.0.0.6/v1"] == addresses(cluster, "mails")
                    assert [] == addresses(cluster, "pay")
                    assert ["mails", "payments"] == registry_of(cluster).services()
            assert ["payments"] == registry.services()
        left = trio.current_time()
        await peers.converge()
        assert ([], 0) == left_behind(peers["b"])
        assert trio.current_time() - left < 0.5


async def test_what_the_body_raises_leaves_unwrapped(autojump_clock: trio.abc.Clock) -> None:
    """An error with its cause, a group as it is; and the endpoint is gone."""
    async with Cluster("a") as cluster:
        registry = registry_of(cluster)
        cause = KeyError("cause")
        for error in (ValueError("of the body"), ExceptionGroup("of the body", [ValueError()])):
            with pytest.raises(type(error)) as caught:
                async with registry.register("payments", "here"):
                    raise error from cause
            assert caught.value is error
            assert error.__cause__ is cause
            assert [] == addresses(cluster)


async def test_a_process_that_dies_is_not_listed_any_longer(autojump_clock: trio.abc.Clock) -> None:
    """Whether it led the cluster or not; the others stay."""
    for role in ("leader", "follower"):
        async with running() as peers, trio.open_nursery() as nursery:
            leader = await peers.leader()
            victim = leader if role == "leader" else peers.without(leader)[0]
            others = peers.without(victim)
            await serve(nursery, others[0], "other")
            with contextlib.suppress(Exception):
                await nursery.start(run_until_closed, victim)
            await until_listed(others[1], "dead", "other")
            await peers.kill(id_of(victim))
            await until_listed(others[1], "other")
            await trio.sleep(10 * TTL_S)
            assert ["other"] == addresses(others[1])
            nursery.cancel_scope.cancel()


async def run_until_closed(cluster: Cluster, task_status: trio.TaskStatus[None]) -> None:
    """Whatever its end is: the process it runs in is dead."""
    with contextlib.suppress(Exception):
        await Server(cluster, "dead").run(task_status)


async def test_whoever_was_cut_off_goes_on_and_is_listed_again(autojump_clock: trio.abc.Clock) -> None:
    """Its body is not disturbed. As soon as the cluster hears it again, it is there, as it was updated last."""
    async with running(request_timeout_s=2.0) as peers:
        leader = await peers.leader()
        victim, other = peers.without(leader)
        async with registry_of(victim).register("payments", "here", metadata={"n": 1}) as registration:
            await registration.update({"n": 2})
            (first,) = registry_of(victim).resolve("payments")
            peers.network.isolate(id_of(victim))
            await until_listed(other)
            await trio.sleep(60.0)
            peers.network.heal()
            await until_listed(other, "here")
            (second,) = registry_of(other).resolve("payments")
            assert ({"n": 2}, True) == (second.metadata, second.registration > first.registration)
        await peers.converge()
        assert ([], 0) == left_behind(other)


async def test_a_change_of_leader_unlists_nobody(autojump_clock: trio.abc.Clock) -> None:
    """Ten of them, one after the other, by cutting the leader off; all the while everybody is listed on the others."""
    async with running() as peers, trio.open_nursery() as nursery:
        leader = await peers.leader()
        for cluster in peers.all:
            await serve(nursery, cluster, id_of(cluster))
        seen: set[tuple[str, ...]] = set()

        async def look(cluster: Cluster) -> None:
            async for endpoints in registry_of(cluster).watch("payments"):
                seen.add(tuple(endpoint.address for endpoint in endpoints))

        await peers.converge()
        for cluster in peers.all:
            nursery.start_soon(look, cluster)
        for _ in range(10):
            leader = await peers.leader()
            peers.network.isolate(id_of(leader))
            await peers.leader(among=[id_of(cluster) for cluster in peers.without(leader)])
            peers.network.heal()
        await trio.sleep(2 * TTL_S)
        assert {("a", "b", "c")} == seen
        nursery.cancel_scope.cancel()


async def test_an_address_belongs_to_who_registered_it_last(autojump_clock: trio.abc.Clock) -> None:
    """A process that is started again is found at once; the end of the one before takes nothing away from it."""
    async with running() as peers, trio.open_nursery() as nursery:
        await peers.leader()
        (before,) = await serve(nursery, peers["a"], "here")
        (first,) = registry_of(peers["a"]).resolve("payments")
        (after,) = await serve(nursery, peers["b"], "here")
        (second,) = registry_of(peers["b"]).resolve("payments")
        assert second.registration > first.registration
        await before.stop()
        await trio.sleep(EXPIRED_S)
        assert [second] == registry_of(peers["b"]).resolve("payments")
        await after.stop()
        await peers.converge()
        assert ([], 0) == left_behind(peers["c"])


async def test_the_metadata_can_be_replaced(autojump_clock: trio.abc.Clock) -> None:
    """What cannot be stored changes nothing. One whose address was taken over changes nothing, and is told."""
    async with Cluster("a") as cluster:
        registry = registry_of(cluster)
        async with registry.register("payments", "here") as registration:
            assert {} == registry.resolve("payments")[0].metadata
            await registration.update({"weight": 3})
            with pytest.raises(EncodingError):
                await registration.update({"weight": object()})
            assert {"weight": 3} == registration.metadata == registry.resolve("payments")[0].metadata
            async with registry.register("payments", "here", metadata={"weight": 9}):
                with pytest.raises(LeaseExpiredError, match="here is not listed for 'payments' by this registration"):
                    await registration.update({"weight": 4})
                assert {"weight": 9} == registry.resolve("payments")[0].metadata


async def test_metadata_that_may_have_been_replaced_is_what_is_registered_again(autojump_clock: trio.abc.Clock) -> None:
    """Of an update that nobody knows the outcome of, the newer metadata is in force in the end."""
    async with running() as peers:
        leader = await peers.leader()
        async with registry_of(leader).register("payments", "here", metadata={"n": 1}) as registration:
            peers.network.isolate(id_of(leader))
            with pytest.raises(OutcomeUnknownError):
                await registration.update({"n": 2})
            assert {"n": 2} == registration.metadata
            peers.network.heal()
            await trio.sleep(EXPIRED_S)
            assert [{"n": 2}] == [endpoint.metadata for endpoint in registry_of(leader).resolve("payments")]


async def test_an_update_waits_for_a_registration_that_is_under_way(autojump_clock: trio.abc.Clock) -> None:
    """Else what is registered anew would be the metadata of before."""
    async with running() as peers:
        await peers.leader()
        cluster = (await peers.followers())[0]
        async with registry_of(cluster).register("payments", "here", metadata={"n": 1}) as registration:
            (before,) = (endpoint.registration for endpoint in registry_of(cluster).resolve("payments"))
            leases = peer_of(cluster).replica.map.leases
            peers.network.set_faults(delay_s=(0.05, 0.05))
            await cluster.store.revoke_lease(before)
            with trio.fail_after(EXPIRED_S):
                while not leases.table.keys() - {before}:  # noqa: ASYNC110  # a test may look
                    await trio.sleep(0.001)
            await trio.sleep(0.01)  # the lease is there, and the put on its way
            assert [] == addresses(cluster)
            await registration.update({"n": 2})
            assert [{"n": 2}] == [endpoint.metadata for endpoint in registry_of(cluster).resolve("payments")]


async def test_what_makes_no_sense_is_refused(autojump_clock: trio.abc.Clock) -> None:
    """Before anything is put; and an error of the first registration is the caller's, without a group around it."""
    async with Cluster("a") as cluster:
        registry = registry_of(cluster)
        for service in ("", "a/b"):
            with pytest.raises(ConfigurationError, match="name of one of the services"):
                registry.resolve(service)
            with pytest.raises(ConfigurationError, match="name of one of the services"):
                async with registry.register(service, "here"):
                    pytest.fail("entered")
        with pytest.raises(EncodingError):
            async with registry.register("payments", "here", metadata={"x": object()}):
                pytest.fail("entered")
        with pytest.raises(ConfigurationError, match="ttl_s"):
            ServiceRegistry(cluster.store, ttl_s=0)
        with pytest.raises(ConfigurationError, match="retry_after_s"):
            registry.balancer("payments", retry_after_s=-1)
        assert ([], 0) == left_behind(cluster)


# -- those who look ----------------------------------------------------------------------------------------------------


async def test_a_watch_tells_the_endpoints_and_then_whenever_they_change(autojump_clock: trio.abc.Clock) -> None:
    """As they are first, though there are none; on another peer; and nothing when others change, or nothing changes."""
    async with running() as peers, trio.open_nursery() as nursery:
        await peers.leader()
        told: list[list[tuple[str, dict[str, Any]]]] = []

        async def look() -> None:
            async for endpoints in registry_of(peers["b"]).watch("payments"):
                told.append([(endpoint.address, endpoint.metadata) for endpoint in endpoints])  # noqa: PERF401  # endless

        nursery.start_soon(look)
        await trio.sleep(1.0)
        async with registry_of(peers["a"]).register("payments", "one") as one:
            await trio.sleep(1.0)
            async with registry_of(peers["c"]).register("payments", "two"):
                await trio.sleep(1.0)
                async with registry_of(peers["c"]).register("mails", "three"):
                    await one.update({"n": 1})
                    await trio.sleep(1.0)
                    await one.update({"n": 1})
                    await peers["a"].store.put("other", 1)
        await trio.sleep(1.0)
        expected = [[], [("one", {})], [("one", {}), ("two", {})], [("one", {"n": 1}), ("two", {})]]
        assert expected == told[:4]
        assert [] == told[-1]
        assert len(told) <= 6
        nursery.cancel_scope.cancel()


async def test_a_slow_reader_of_a_watch_is_told_the_newest_state_alone(autojump_clock: trio.abc.Clock) -> None:
    """A thousand changes later, though the history has forgotten them; and a cancelled step loses nothing."""
    with trio.fail_after(600.0):
        async with Cluster("a", settings=Settings(history_revisions=100)) as cluster:
            watch = registry_of(cluster).watch("payments")
            assert [] == await anext(watch)
            await nothing_to_tell(watch)
            async with registry_of(cluster).register("payments", "here") as registration:
                for number in range(1000):
                    await registration.update({"n": number})
                await trio.sleep(10.0)
                with pytest.raises(CompactedError):
                    await cluster.store.get("key", revision=1)
                assert [{"n": 999}] == [endpoint.metadata for endpoint in await anext(watch)]
                await nothing_to_tell(watch)
                await registration.update({"n": "last"})
                assert [{"n": "last"}] == [endpoint.metadata for endpoint in await anext(watch)]


async def test_what_a_watch_told_is_the_readers_own(autojump_clock: trio.abc.Clock) -> None:
    """Whatever he does to it, he is told of what has changed, and of nothing else."""
    async with Cluster("a") as cluster:
        watch = registry_of(cluster).watch("payments")
        async with registry_of(cluster).register("payments", "here", metadata={"n": 1}) as registration:
            endpoints = await anext(watch)
            endpoints[0].metadata["n"] = 2
            endpoints.clear()
            await registration.update({"n": 1})
            await nothing_to_tell(watch)
            await registration.update({"n": 2})
            assert [{"n": 2}] == [endpoint.metadata for endpoint in await anext(watch)]


async def nothing_to_tell(watch: EndpointWatch) -> None:
    with trio.move_on_after(1.0) as waiting:
        await anext(watch)
    assert waiting.cancelled_caught


# -- those who call ----------------------------------------------------------------------------------------------------


def picked(balancer: Balancer, count: int) -> str:
    return "".join(balancer.pick().address for _ in range(count))


async def test_endpoints_are_picked_by_turns_as_they_come_and_go(autojump_clock: trio.abc.Clock) -> None:
    """In the order of their addresses, from behind the last one that was picked."""
    async with Cluster("a") as cluster, trio.open_nursery() as nursery:
        balancer = registry_of(cluster).balancer("payments")
        with pytest.raises(NoEndpointError, match="nobody offers 'payments'"):
            balancer.pick()
        with pytest.raises(LookupError):
            balancer.pick()
        await serve(nursery, cluster, "a", "c")
        assert "acac" == picked(balancer, 4)
        (b,) = await serve(nursery, cluster, "b")
        assert "abca" == picked(balancer, 4)
        await b.stop()
        assert "cac" == picked(balancer, 3)
        nursery.cancel_scope.cancel()


async def test_who_failed_is_passed_over_for_a_time(autojump_clock: trio.abc.Clock) -> None:
    """Unless nothing else is left: then the one that failed longest ago is tried. After that time it has its turn."""
    async with Cluster("a") as cluster, trio.open_nursery() as nursery:
        await serve(nursery, cluster, "a", "b", "c")
        balancer = registry_of(cluster).balancer("payments", retry_after_s=5.0)

        async def fail() -> str:
            with contextlib.suppress(OSError):
                async with balancer.endpoint() as endpoint:
                    raise OSError
            return endpoint.address

        assert "a" == await fail()
        assert "bcbc" == picked(balancer, 4)
        await trio.sleep(1.0)
        assert "b" == await fail()
        assert "ccc" == picked(balancer, 3)
        await trio.sleep(1.0)
        assert "c" == await fail()
        assert "a" == await fail()  # two seconds ago; and now it is the last that failed
        assert "b" == balancer.pick().address
        async with balancer.endpoint() as endpoint:
            assert "b" == endpoint.address  # and it works
        assert "bbb" == picked(balancer, 3)
        await trio.sleep(4.9)
        assert "bb" == picked(balancer, 2)
        await trio.sleep(0.2)
        assert "cabc" == picked(balancer, 4)
        nursery.cancel_scope.cancel()


async def test_nobody_is_passed_over_for_no_time(autojump_clock: trio.abc.Clock) -> None:
    """With 0, one that failed is next when its turn comes; with more, from when that time is over."""
    async with Cluster("a") as cluster, trio.open_nursery() as nursery:
        for address in ("one", "two"):
            await nursery.start(Server(cluster, address).run)
        for retry_after_s in (0.0, 2.0):
            balancer = registry_of(cluster).balancer("payments", retry_after_s=retry_after_s)
            balancer.report_failure(balancer.pick())
            await trio.sleep(retry_after_s)
            assert ["two", "one", "two"] == [balancer.pick().address for _ in range(3)]
        nursery.cancel_scope.cancel()


async def test_a_cancellation_from_outside_is_no_failure_of_the_endpoint(autojump_clock: trio.abc.Clock) -> None:
    """A timeout inside the block is one."""
    async with Cluster("a") as cluster, trio.open_nursery() as nursery:
        await serve(nursery, cluster, "a", "b")
        balancer = registry_of(cluster).balancer("payments")
        with trio.move_on_after(1.0):
            async with balancer.endpoint():
                await trio.sleep_forever()
        assert "bab" == picked(balancer, 3)
        with pytest.raises(trio.TooSlowError):
            async with balancer.endpoint():
                with trio.fail_after(1.0):
                    await trio.sleep_forever()
        assert "bbb" == picked(balancer, 3)
        nursery.cancel_scope.cancel()


async def test_who_registers_anew_begins_with_a_clean_slate(autojump_clock: trio.abc.Clock) -> None:
    """It failed, was started again at the same address, and is picked at once."""
    async with Cluster("a") as cluster, trio.open_nursery() as nursery:
        _, b = await serve(nursery, cluster, "a", "b")
        balancer = registry_of(cluster).balancer("payments")
        for endpoint in registry_of(cluster).resolve("payments"):
            if endpoint.address == "b":
                balancer.report_failure(endpoint)
        assert "aa" == picked(balancer, 2)
        await b.stop()
        await serve(nursery, cluster, "b")
        assert "ba" == picked(balancer, 2)
        nursery.cancel_scope.cancel()


async def test_a_call_waits_for_the_first_endpoint(autojump_clock: trio.abc.Clock) -> None:
    """As long as there is none; registered on another peer."""
    async with running() as peers, trio.open_nursery() as nursery:
        await peers.leader()
        called_at = []

        async def call() -> None:
            async with registry_of(peers["a"]).balancer("payments").endpoint() as endpoint:
                called_at.append((endpoint.address, trio.current_time()))

        nursery.start_soon(call)
        await trio.sleep(60.0)
        assert [] == called_at
        registered = trio.current_time()
        async with registry_of(peers["b"]).register("payments", "here"):
            await trio.sleep(1.0)
        ((address, at),) = called_at
        assert "here" == address
        assert at - registered < 0.5


# -- the balancer and a model ------------------------------------------------------------------------------------------


STEPS = st.one_of(
    st.tuples(st.just("list"), st.frozensets(st.sampled_from("abcde"))),
    st.tuples(st.just("fail"), st.sampled_from("abcde")),
    st.tuples(st.just("sleep"), st.integers(1, 7)),
    st.tuples(st.just("pick"), st.integers(1, 3)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_picks_are_fair_among_those_that_have_not_failed(steps: list[tuple[str, Any]]) -> None:
    """So many rounds give each of them so many picks; with none of them left, it is the one that failed longest ago."""
    trio.run(pick_as_the_model, steps, clock=trio.testing.MockClock(autojump_threshold=0))


async def pick_as_the_model(steps: list[tuple[str, Any]]) -> None:
    listed: frozenset[str] = frozenset()
    failed: dict[str, float] = {}
    async with Cluster("a") as cluster:
        balancer = registry_of(cluster).balancer("payments", retry_after_s=5.0)
        for step in [("list", frozenset("abc")), *steps, ("pick", 2)]:
            match step:
                case ("list", wanted):
                    for name in listed - wanted:
                        await cluster.store.delete(f"services/payments/{name}")
                    await cluster.store.update({f"services/payments/{name}": {} for name in wanted - listed})
                    listed = wanted
                    if listed:
                        balancer.pick()  # so it has seen who is there
                    failed = {name: at for name, at in failed.items() if name in listed} if listed else failed
                case ("fail", name) if name in listed:
                    balancer.report_failure(Endpoint("payments", name, {}, 0))
                    failed[name] = trio.current_time()
                case ("sleep", seconds):
                    await trio.sleep(seconds)
                case ("pick", rounds) if listed:
                    fit = {name for name in listed if trio.current_time() >= failed.get(name, -9.0) + 5.0}
                    last = fit or {min(sorted(failed), key=failed.__getitem__)}
                    picks = sorted(picked(balancer, rounds * len(last)))
                    assert sorted(list(last) * rounds) == picks
