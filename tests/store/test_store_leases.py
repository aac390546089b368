"""Leases as the map's users see them, over a cluster of one: arguments, keys, and what a block leaves behind."""

from __future__ import annotations

import math

import pytest
import trio
from local_replicator import LocalReplicator

from replikv.errors import ClusterClosedError, ConfigurationError, LeaseExpiredError
from replikv.machine import commands
from replikv.machine.replica import Replica
from replikv.settings import Settings
from replikv.store.entry import ABSENT
from replikv.store.leases import LeaseStatus
from replikv.store.store import Store


async def test_whatever_sets_a_key_takes_a_lease(store: Store) -> None:
    """By its block's object or by its number; what is put again without one stays for good."""
    async with store.lease(ttl_s=5) as lease:
        await store.put("put", 1, lease=lease)
        await store.put("number", 1, lease=lease.id)
        await store.update({"update/1": 1, "update/2": 2}, lease=lease)
        assert 1 == await store.setdefault("setdefault", 1, lease=lease)
        assert await store.compare_and_set("compare", ABSENT, 1, lease=lease)
        assert await store.replace("replace", 1, revision=0, lease=lease)
        await store.put("kept", 1, lease=lease)
        await store.put("kept", 2)
        keys = ("compare", "number", "put", "replace", "setdefault", "update/1", "update/2")
        assert dict.fromkeys(keys, lease.id) == {
            key: store.entry(key).lease for key in store if store.entry(key).lease is not None
        }
        assert LeaseStatus(lease.id, 5.0, 5.0, keys) == await store.time_to_live(lease.id)
        assert "<Lease 1, 5 s>" == repr(lease)
    assert {"kept": 2} == dict(store.items())
    assert 0.0 == lease.remaining_s


async def test_compare_and_set_to_nothing_needs_no_lease(store: Store) -> None:
    """A key that is removed is attached to nothing."""
    async with store.lease() as lease:
        await store.put("key", 1, lease=lease)
        assert await store.compare_and_set("key", 1, ABSENT, lease=lease)
    assert 2 == store.revision


async def test_a_lease_is_never_granted_for_less_than_was_asked_for(store: Store) -> None:
    """What is less than a millisecond is rounded up."""
    assert 1.001 == (await store.time_to_live(await store.grant_lease(1.0001))).ttl_s
    assert 2.5 == (await store.time_to_live(await store.grant_lease(2.5))).ttl_s


async def test_attach_and_detach(store: Store) -> None:
    """A key may come to a lease later, and leave it again, with its value; False where there is no key."""
    await store.put("key", 1)
    lease = await store.grant_lease(10)
    assert await store.attach("key", lease)
    assert not await store.attach("other", lease)
    assert (1, lease) == (store["key"], store.entry("key").lease)
    assert await store.detach("key")
    assert not await store.detach("other")
    assert await store.revoke_lease(lease)
    assert (1, None) == (store["key"], store.entry("key").lease)


async def test_the_calls_on_a_lease_that_is_gone(store: Store) -> None:
    """Revoking it again says so; everything else raises LeaseExpiredError."""
    lease = await store.grant_lease(10)
    assert 10.0 == await store.keep_alive(lease)
    assert await store.revoke_lease(lease)
    assert not await store.revoke_lease(lease)
    for call in (
        store.keep_alive(lease),
        store.time_to_live(lease),
        store.put("key", 1, lease=lease),
        store.attach("key", lease),
    ):
        with pytest.raises(LeaseExpiredError, match=f"there is no lease {lease}"):
            await call


async def test_revoking_many_keys_takes_several_steps(nursery: trio.Nursery) -> None:
    """All of them are gone when it returns."""
    replicator = LocalReplicator(nursery)
    nursery.start_soon(replicator.run)
    store = Store(replicator, None)  # type: ignore[arg-type]  # nobody watches
    lease = await store.grant_lease(10)
    for start in range(0, 3000, 1000):
        await store.update({f"{number:04}": 0 for number in range(start, start + 1000)}, lease=lease)
    assert await store.revoke_lease(lease)
    assert 0 == len(store)


@pytest.mark.parametrize("ttl_s", [0, -1, 0.19, math.nan, math.inf, 1e9, "10", None, True])
async def test_a_time_to_live_is_checked(store: Store, ttl_s: float) -> None:
    """A number of seconds, of at least two heartbeats and at most 49 days; the error names both."""
    with pytest.raises(ConfigurationError, match=r"ttl_s must be a number of seconds from 0\.2 .* to 4294967"):
        await store.grant_lease(ttl_s)
    with pytest.raises(ConfigurationError, match="ttl_s"):
        await store.lease(ttl_s).__aenter__()


@pytest.mark.parametrize("lease", [0, -1, 1 << 64, True, "1", 1.0])
async def test_a_lease_is_checked(store: Store, lease: int) -> None:
    """Whatever is no lease is refused before anything is proposed."""
    position = store._replicator.replica.position
    for call in (
        store.put("key", 1, lease=lease),
        store.update({"key": 1}, lease=lease),
        store.attach("key", lease),
        store.keep_alive(lease),
        store.revoke_lease(lease),
        store.time_to_live(lease),
    ):
        with pytest.raises(ConfigurationError, match="a lease is what"):
            await call
    assert position == store._replicator.replica.position


async def test_no_command_names_a_lease_before_all_know_them(store: Store, replicator: LocalReplicator) -> None:
    """Older members would attach the key to whatever is named, and replicas would differ: it is refused here."""
    replicator.leader, replicator.replica = Replica(), Replica()  # of a cluster that has members of an older version
    for call in (
        store.put("key", 1, lease=1),
        store.update({"key": 1}, lease=1),
        store.setdefault("key", 1, lease=1),
        store.compare_and_set("key", ABSENT, 1, lease=1),
        store.replace("key", 1, revision=0, lease=1),
    ):
        with pytest.raises(LeaseExpiredError, match="there is no lease 1"):
            await call
    assert 0 == replicator.leader.position


async def test_a_replica_that_is_behind_asks_before_it_says_that_there_are_no_leases(
    store: Store, replicator: LocalReplicator, nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    """A process that has just started may be told of a lease before its replica has heard of any."""
    lease = await store.grant_lease(10)
    replicator.replica = Replica()
    replicator.fall_behind()
    put: list[int] = []

    async def put_with_lease() -> None:
        put.append(await store.put("key", 1, lease=lease))

    nursery.start_soon(put_with_lease)
    await trio.testing.wait_all_tasks_blocked()
    replicator.install_snapshot()
    await trio.testing.wait_all_tasks_blocked()
    assert [1] == put
    assert lease == store.entry("key").lease


async def test_the_keys_of_a_lease_are_those_of_now(
    store: Store, replicator: LocalReplicator, nursery: trio.Nursery
) -> None:
    """Of the cluster's, though this process's replica is behind: it is waited for."""
    lease = await store.grant_lease(10)
    replicator.fall_behind()
    replicator.sweep(commands.encode_put(b"key", b"\x01", lease))
    found: list[LeaseStatus] = []

    async def ask() -> None:
        found.append(await store.time_to_live(lease))

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    assert [] == found
    replicator.install_snapshot()
    await trio.testing.wait_all_tasks_blocked()
    assert [("key",)] == [status.keys for status in found]


async def test_a_lease_is_over_with_its_block(store: Store) -> None:
    """To put with it afterwards is refused here, whether or not the cluster has heard of the end."""
    async with store.lease() as lease:
        pass
    position = store._replicator.replica.position
    with pytest.raises(LeaseExpiredError, match=r"lease 1 is over"):
        await store.put("key", 1, lease=lease)
    assert position == store._replicator.replica.position


async def test_in_a_scope_keys_are_relative(store: Store) -> None:
    """Leases are of the whole map: a scope takes them from anywhere, and tells of its own keys only."""
    scope = store.scoped("scope/")
    async with store.lease() as lease:
        await scope.put("in", 1, lease=lease)
        await store.put("out", 1, lease=lease)
        await store.put("scope/attached", 1)
        assert await scope.attach("attached", lease)
        assert ("attached", "in") == (await scope.time_to_live(lease.id)).keys
        assert ("out", "scope/attached", "scope/in") == (await store.time_to_live(lease.id)).keys
    async with scope.lease() as lease:
        await store.put("out", 1, lease=lease)
    assert 0 == len(store)


async def test_an_error_of_the_body_leaves_as_it_is(store: Store) -> None:
    """In no group; the lease is revoked first."""
    error = LookupError("the body's own")
    with pytest.raises(LookupError) as caught:  # noqa: PT012  # the block is the point
        async with store.lease() as lease:
            await store.put("key", 1, lease=lease)
            raise error
    assert caught.value is error
    assert 0 == len(store)


async def test_a_cancelled_body_revokes_all_the_same(store: Store) -> None:
    """Shielded, so the keys are gone when the cancellation goes on."""
    with trio.CancelScope() as scope:
        async with store.lease() as lease:
            await store.put("key", 1, lease=lease)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert 0 == len(store)


async def test_leaving_waits_for_the_revocation_for_a_bounded_time(
    replicator: LocalReplicator, store: Store, autojump_clock: trio.abc.Clock, settings: Settings
) -> None:
    """Where the cluster does not answer, the block ends after ``shutdown_timeout_s``, without an error of its own."""
    async with store.lease(ttl_s=60):
        replicator.held = True
        left = trio.current_time()
    assert settings.shutdown_timeout_s == trio.current_time() - left
    replicator.release()


async def test_a_lease_that_was_granted_slowly_is_kept_alive_first(
    replicator: LocalReplicator, nursery: trio.Nursery, store: Store, autojump_clock: trio.abc.Clock
) -> None:
    """Whoever enters has most of his time, however long it took until he was granted it."""

    async def release() -> None:
        await trio.sleep(8)
        replicator.release()

    replicator.held = True
    nursery.start_soon(release)
    async with store.lease(ttl_s=5) as lease:
        assert 4.5 == lease.remaining_s
        await trio.sleep(20)


async def test_the_holder_counts_from_before_it_was_granted(
    replicator: LocalReplicator, nursery: trio.Nursery, store: Store, autojump_clock: trio.abc.Clock
) -> None:
    """The leader may have granted it at once, and the answer have been on its way ever since."""

    async def release() -> None:
        await trio.sleep(2)
        replicator.release()

    replicator.held = True
    nursery.start_soon(release)
    async with store.lease(ttl_s=5) as lease:
        assert pytest.approx(4.5 - 2.0) == lease.remaining_s


async def test_the_holder_counts_from_when_he_asked(
    replicator: LocalReplicator, store: Store, autojump_clock: trio.abc.Clock
) -> None:
    """Not from when the answer came: for all he knows the leader has counted since he asked. A tenth is left out."""
    async with store.lease(ttl_s=6) as lease:
        replicator.answer_after_s = 2.0
        await trio.sleep(4.0)  # asked after 2 s, answered 2 s later
        await trio.testing.wait_all_tasks_blocked()
        assert pytest.approx(5.4 - 2.0) == lease.remaining_s


async def test_answers_that_come_too_late_do_not_help(
    replicator: LocalReplicator, store: Store, autojump_clock: trio.abc.Clock
) -> None:
    """Each is older, when it comes, than the holder's time is long: the body is cancelled, nine tenths after asking."""
    with pytest.raises(LeaseExpiredError, match=r"in the last 5\.4 s"):  # noqa: PT012  # the block is the point
        async with store.lease(ttl_s=6):
            started = trio.current_time()
            replicator.answer_after_s = 5.5
            await trio.sleep_forever()
    assert pytest.approx(5.4) == trio.current_time() - started


async def test_a_lease_may_be_revoked_within_its_block(store: Store) -> None:
    """Its keys vanish, the body goes on, and the block raises nothing."""
    async with store.lease() as lease:
        await store.put("key", 1, lease=lease)
        assert await lease.revoke()
        assert (0, 0.0) == (len(store), lease.remaining_s)
        assert not await lease.revoke()


async def test_who_revokes_on_his_way_out_is_told_of_the_loss(
    store: Store, replicator: LocalReplicator, autojump_clock: trio.abc.Clock
) -> None:
    """A body that was cut short is not taken for done because it has tidied up: the block raises all the same."""
    done = False
    with pytest.raises(LeaseExpiredError, match="lease 1 is gone"):  # noqa: PT012  # the block is the point
        async with store.lease(ttl_s=3) as lease:
            replicator.sweep(commands.encode_revoke(lease.id))
            try:
                await trio.sleep_forever()
                done = True
            finally:
                await lease.revoke()
    assert not done


@pytest.mark.parametrize("ttl_ms", [0, 3000])
async def test_who_has_revoked_goes_on_whatever_was_on_its_way(
    store: Store,
    replicator: LocalReplicator,
    autojump_clock: trio.abc.Clock,
    monkeypatch: pytest.MonkeyPatch,
    ttl_ms: int,
) -> None:
    """An answer may come in the moment in which it is revoked: that the lease is gone, or kept alive for a while more.

    Nothing is lost by it then, now or when that while is over.
    """
    arrived = trio.Event()

    async def ask_of_lease(lease: int, *, renew: bool) -> tuple[float, int, int]:
        sent = trio.current_time()
        await arrived.wait()
        return sent, ttl_ms, ttl_ms

    monkeypatch.setattr(replicator, "ask_of_lease", ask_of_lease)
    done = False
    async with store.lease(ttl_s=3) as lease:
        await trio.sleep(2)
        arrived.set()
        assert await lease.revoke()
        await trio.sleep(10)
        done = True
    assert done


async def test_who_finds_his_lease_gone_stops(store: Store, autojump_clock: trio.abc.Clock) -> None:
    """Somebody else revoked it: the next question tells, a third of the time later at most."""
    started = trio.current_time()
    with pytest.raises(LeaseExpiredError, match="lease 1 is gone"):  # noqa: PT012  # the block is the point
        async with store.lease(ttl_s=9) as lease:
            await store.revoke_lease(lease.id)
            await trio.sleep_forever()
    assert trio.current_time() - started <= 3.1


async def test_a_cluster_that_is_closed_takes_its_blocks_along(
    replicator: LocalReplicator, store: Store, autojump_clock: trio.abc.Clock
) -> None:
    """The body is cancelled: nobody keeps the lease alive any more."""
    with pytest.raises(ClusterClosedError):  # noqa: PT012  # the block is the point
        async with store.lease(ttl_s=9):
            replicator.close()
            await trio.sleep_forever()


async def test_a_body_that_blocks_for_too_long_is_told(store: Store, mock_clock: trio.testing.MockClock) -> None:
    """It never came to a checkpoint, so nothing could cancel it: the block raises at its end all the same."""
    with pytest.raises(LeaseExpiredError, match="could not be kept alive"):
        async with store.lease(ttl_s=5):
            mock_clock.jump(4.6)


async def test_the_time_of_day_is_not_asked(
    store: Store, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known elsewhere as: a lock that depends on its callers' clocks. Ours may jump to and fro."""
    times = iter(range(10**9, 0, -(10**7)))
    monkeypatch.setattr("time.time", lambda: float(next(times)))
    monkeypatch.setattr("time.time_ns", lambda: next(times) * 10**9)
    async with store.lease(ttl_s=3) as lease:
        await store.put("key", 1, lease=lease)
        await trio.sleep(30)
        assert 1.5 <= lease.remaining_s <= 2.7
