"""How a cluster begins and ends: as a block, in a nursery, cancelled, failing, closed."""

# ruff: noqa: PT012  # a whole block is what raises

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from clusters import addresses, id_of, peer_of, running
from steps import CancelAtStep

from replikv import (
    Cluster,
    ClusterClosedError,
    ConfigurationError,
    DataDirInUseError,
    MemoryNetwork,
    MemoryTransport,
    OutcomeUnknownError,
    Settings,
    StateMachine,
    StorageError,
)
from replikv.storage.base import StorageFullError
from replikv.storage.disk import DiskStorage
from replikv.storage.filesystem import File, OsFile, OsFileSystem
from replikv.transport.base import Receiver


class BodyError(Exception):
    pass


class Unversioned(StateMachine):
    """One that stands below the first version."""

    version = 0

    def apply(self, position: int, command: bytes) -> bytes:
        return b""

    def snapshot(self) -> Iterator[bytes]:
        return iter(())

    def restore(self, chunks: Iterable[bytes]) -> None:
        pass


# -- the block and the nursery -----------------------------------------------------------------------------------------


async def test_run_in_a_nursery_and_shutdown(autojump_clock: trio.abc.Clock) -> None:
    """Started, it works; shut down, it has ended, and says so to whoever uses it on."""
    cluster = Cluster("a")
    async with trio.open_nursery() as nursery:
        await nursery.start(cluster.run)
        await cluster.store.put("key", 1)
        await cluster.shutdown()
        await cluster.shutdown()
        with pytest.raises(ClusterClosedError):
            cluster.status()


async def test_shutdown_inside_the_block(autojump_clock: trio.abc.Clock) -> None:
    """The body goes on with a closed cluster, and the block ends as any."""
    async with Cluster("a") as cluster:
        await cluster.store.put("key", 1)
        await cluster.shutdown()
        with pytest.raises(ClusterClosedError):
            await cluster.store.put("key", 2)


async def test_once_it_has_ended_it_takes_no_turn(autojump_clock: trio.abc.Clock) -> None:
    """The transport ends with it: what a turn would start there, or send, has nowhere to go any more."""
    async with running() as peers:
        follower = (await peers.followers())[0]
        driver = peer_of(follower)._driver
        driver.tick()
        await peers.shutdown(id_of(follower))
        ticks = driver.ticks
        driver.tick()
        await trio.testing.wait_all_tasks_blocked()
        assert ticks == driver.ticks


async def test_a_cluster_runs_once(autojump_clock: trio.abc.Clock) -> None:
    """Entering it a second time, during or after the first, is an error, and disturbs nothing."""
    cluster = Cluster("a")
    async with cluster:
        with pytest.raises(ClusterClosedError, match="runs once"):
            await cluster.__aenter__()
        with pytest.raises(ClusterClosedError, match="runs once"):
            await cluster.run()
        assert 1 == await cluster.store.put("key", 1)
    with pytest.raises(ClusterClosedError, match="runs once"):
        async with cluster:
            pass


async def test_shut_down_before_the_start_it_never_starts(autojump_clock: trio.abc.Clock) -> None:
    """So that whoever gives up early needs no flag of his own."""
    cluster = Cluster("a")
    await cluster.shutdown()
    with pytest.raises(ClusterClosedError):
        await cluster.run()


EVERY_USE: dict[str, Callable[[Cluster], object]] = {
    "status": lambda cluster: cluster.status(),
    "digest": lambda cluster: cluster.digest(),
    "read": lambda cluster: cluster.store["key"],
    "iteration": lambda cluster: list(cluster.store),
    "subscribe": lambda cluster: cluster.store.subscribe(print),
}
EVERY_AWAIT: dict[str, Callable[[Cluster], Awaitable[object]]] = {
    "put": lambda cluster: cluster.store.put("key", 1),
    "get": lambda cluster: cluster.store.get("key"),
    "barrier": lambda cluster: cluster.store.barrier(),
    "wait_leader": lambda cluster: cluster.wait_leader(),
    "snapshot": lambda cluster: cluster.snapshot(),
}


async def test_a_cluster_that_is_not_open_says_so(autojump_clock: trio.abc.Clock) -> None:
    """Before the block and after it: ClusterClosedError from everything but is_leader, which is False."""
    cluster = Cluster("a")
    for when in ("before", "after"):
        assert not cluster.is_leader
        for name, use in EVERY_USE.items():
            with pytest.raises(ClusterClosedError):
                pytest.fail(f"{name} {when}: {use(cluster)!r}")
        for name, call in EVERY_AWAIT.items():
            with pytest.raises(ClusterClosedError):
                pytest.fail(f"{name} {when}: {await call(cluster)!r}")
        if when == "before":
            async with cluster:
                pass


@pytest.mark.parametrize("name", ["put", "get", "barrier", "wait_leader"])
async def test_who_waits_when_the_cluster_closes_is_told(autojump_clock: trio.abc.Clock, name: str) -> None:
    """No leader, so none of them has left this peer: ClusterClosedError, at once."""
    cluster = Cluster("a", members=addresses("abc"), transport=MemoryTransport())
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(ClusterClosedError):
                await EVERY_AWAIT[name](cluster)

        async with cluster:
            for _ in range(3):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
        assert await settled(nursery)


async def test_a_put_under_way_when_the_cluster_closes_is_no_failure(autojump_clock: trio.abc.Clock) -> None:
    """It is in the log, and may have a future there: OutcomeUnknownError, never an error that says no."""
    async with running() as peers:
        leader = await peers.leader()
        await leader.store.put("key", 1)
        peers.network.isolate(id_of(leader))
        async with trio.open_nursery() as nursery:

            async def put() -> None:
                with pytest.raises(OutcomeUnknownError, match="closed"):
                    await leader.store.put("key", 2)

            nursery.start_soon(put)
            await trio.testing.wait_all_tasks_blocked()
            await peers.shutdown(id_of(leader))


async def test_a_watch_ends_with_the_cluster(autojump_clock: trio.abc.Clock) -> None:
    """Its reader gets what was ready, and then ClusterClosedError: never a silent end."""
    closing = trio.Event()
    async with trio.open_nursery() as nursery:
        async with Cluster("a") as cluster:

            async def watch() -> None:
                async with cluster.store.watch() as changes:
                    await closing.wait()
                    assert 1 == (await anext(changes)).value
                    with pytest.raises(ClusterClosedError):
                        await anext(changes)

            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            await cluster.store.put("key", 1)
        closing.set()
        assert await settled(nursery)


async def settled(nursery: trio.Nursery) -> bool:
    with trio.move_on_after(1.0):
        while nursery.child_tasks:  # noqa: ASYNC110  # nothing to wait on
            await trio.sleep(0.1)
    return not nursery.child_tasks


# -- errors of the body ------------------------------------------------------------------------------------------------


async def test_an_exception_of_the_body_leaves_as_it_is(autojump_clock: trio.abc.Clock) -> None:
    """The same object, in no group; the cluster is closed by then."""
    error = BodyError("mine")
    cluster = Cluster("a")
    with pytest.raises(BodyError) as caught:
        async with cluster:
            raise error
    assert error is caught.value
    with pytest.raises(ClusterClosedError):
        cluster.status()


async def test_a_group_of_the_body_leaves_as_it_is(autojump_clock: trio.abc.Clock) -> None:
    """Of a nursery in the body: it is neither flattened nor wrapped again."""
    error = ExceptionGroup("mine", [BodyError("one"), BodyError("two")])
    with pytest.raises(ExceptionGroup) as caught:
        async with Cluster("a"):
            raise error
    assert error is caught.value


@pytest.mark.parametrize("nested", [False, True])
async def test_cancelled_from_outside_it_closes_and_is_cancelled(autojump_clock: trio.abc.Clock, nested: bool) -> None:
    """Also with a nursery in the body, whose cancellations come in a group."""
    cluster = Cluster("a")
    with trio.move_on_after(1.0) as scope:
        async with cluster:
            await cluster.store.put("key", 1)
            if nested:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    nursery.start_soon(trio.sleep_forever)
            else:
                await trio.sleep_forever()
    assert scope.cancelled_caught
    with pytest.raises(ClusterClosedError):
        cluster.status()


async def test_an_error_of_a_body_that_is_cancelled_is_not_lost(autojump_clock: trio.abc.Clock) -> None:
    """It leaves as it is, also where the cancellation reaches the peer on its way out."""
    error = BodyError("mine")
    with pytest.raises(BodyError) as caught, trio.CancelScope() as scope:
        async with Cluster("a"):
            scope.cancel()
            raise error
    assert error is caught.value


async def test_cancelled_while_it_starts(tmp_path: Path) -> None:
    """Nothing is left open: the directory can be used at once."""
    with trio.CancelScope() as scope:
        scope.cancel()
        async with Cluster("a", data_dir=tmp_path):
            pytest.fail("entered")
    assert scope.cancelled_caught
    async with Cluster("a", data_dir=tmp_path) as cluster:
        await cluster.store.put("key", 1)


@pytest.mark.parametrize("attempt", range(5))  # tasks take turns in an order of chance
async def test_cancelled_at_any_step_of_its_start(autojump_clock: trio.abc.Clock, attempt: int) -> None:
    """A body that is entered has an open cluster for all it begins with: nothing but Cancelled comes of it."""
    for step in itertools.count(1):
        cancelling = CancelAtStep(step)
        with cancelling.counting():
            async with Cluster("a") as cluster:
                assert "a" == cluster.status().node_id
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cluster.store.put, "key", 1)
                    cluster.store.subscribe(id)
        if cancelling.too_late:
            break
    assert step > 20


@pytest.mark.parametrize("on_disk", [False, True])
async def test_cancelled_from_outside_the_body_may_clean_up(tmp_path: Path, on_disk: bool) -> None:
    """In a shield: the cluster is there for as long as the body is, and closed after it."""
    data_dir = tmp_path if on_disk else None
    with trio.CancelScope() as scope:
        async with Cluster("a", data_dir=data_dir) as cluster:
            await cluster.store.put("lock", "mine")
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                    assert await cluster.store.delete("lock")
    assert scope.cancelled_caught
    with pytest.raises(ClusterClosedError):
        cluster.status()


# -- a failing peer ----------------------------------------------------------------------------------------------------


class FailingDisk(OsFileSystem):
    """A disk whose syncs fail once it is told to, and that may be full."""

    def __init__(self) -> None:
        self.broken = False
        self.full = False

    def open(self, path: Path, *, create: bool = False) -> File:
        super().open(path, create=create).close()
        return FailingFile(path, self)


class FailingFile(OsFile):
    def __init__(self, path: Path, disk: FailingDisk) -> None:
        super().__init__(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._disk = disk

    def pwrite(self, data: bytes | bytearray, offset: int) -> None:
        if self._disk.full:
            raise StorageFullError(f"cannot write {self.path}: No space left on device")
        super().pwrite(data, offset)

    def fdatasync(self) -> None:
        if self._disk.broken:
            raise StorageError(f"cannot sync {self.path}: Input/output error")
        super().fdatasync()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    """Under every data directory that is opened from here on."""
    disk = FailingDisk()
    monkeypatch.setattr("replikv.startup.DiskStorage", functools.partial(DiskStorage, filesystem=disk))
    return disk


async def sleep_in_nursery(_: Cluster) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(trio.sleep_forever)


async def put_on(cluster: Cluster) -> None:
    while True:
        await cluster.store.put("key", 2)


async def read_on(cluster: Cluster) -> None:
    while True:
        assert 1 == cluster.store["key"]
        await trio.lowlevel.checkpoint()


async def put_in_nursery(cluster: Cluster) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put_on, cluster)
        nursery.start_soon(put_on, cluster)
        nursery.start_soon(read_on, cluster)


async def watch_on(cluster: Cluster) -> None:
    async with cluster.store.watch() as changes:
        async for _ in changes:
            pass


async def hold_on(cluster: Cluster) -> None:
    async with cluster.store.lease():
        await trio.sleep_forever()


async def put_on_under_a_lease(cluster: Cluster) -> None:
    async with cluster.store.lease():
        await put_in_nursery(cluster)


async def lead_on(cluster: Cluster) -> None:
    async with cluster.leading("job"):
        await trio.sleep_forever()


@pytest.mark.parametrize(
    "body",
    [sleep_in_nursery, put_on, put_in_nursery, read_on, watch_on, hold_on, put_on_under_a_lease, lead_on],
)
async def test_a_failing_disk_ends_the_body_and_leaves_as_itself(
    disk: FailingDisk, tmp_path: Path, body: Callable[[Cluster], Awaitable[None]]
) -> None:
    """Whatever the body waits in, and be it in a call that fails with the disk: what leaves is the disk's error."""
    async with trio.open_nursery() as nursery:
        with pytest.raises(StorageError, match="cannot sync"):
            async with Cluster("a", data_dir=tmp_path) as cluster:
                await cluster.store.put("key", 1)
                disk.broken = True
                nursery.start_soon(put_in_vain, cluster)
                await body(cluster)


async def put_in_vain(cluster: Cluster) -> None:
    with pytest.raises(OutcomeUnknownError):
        await cluster.store.put("key", 2)


async def test_both_failing_leave_as_a_group(disk: FailingDisk, tmp_path: Path) -> None:
    """The body's own error, and the disk's: neither hides the other."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Cluster("a", data_dir=tmp_path) as cluster:
            await cluster.store.put("key", 1)
            disk.broken = True
            try:
                await cluster.store.put("key", 2)
                await trio.sleep_forever()
            finally:
                raise BodyError
    assert [BodyError, StorageError] == [type(error) for error in caught.value.exceptions]


async def test_a_failing_disk_leaves_run_as_itself(disk: FailingDisk, tmp_path: Path) -> None:
    """In a nursery of the caller's, in that nursery's group and no other."""
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            cluster = Cluster("a", data_dir=tmp_path)
            await nursery.start(cluster.run)
            await cluster.store.put("key", 1)
            disk.broken = True
            await put_on(cluster)
    assert any(isinstance(error, StorageError) for error in caught.value.exceptions)
    with pytest.raises(ClusterClosedError):
        cluster.status()


async def test_nothing_is_acknowledged_once_a_sync_has_failed(disk: FailingDisk, tmp_path: Path) -> None:
    """What was in flight ends with an unknown outcome; the disk has it or not; what was acknowledged it has."""
    acknowledged = 0
    with pytest.raises(StorageError):
        async with Cluster("a", data_dir=tmp_path) as cluster:
            for number in range(20):
                disk.broken = number == 10
                await cluster.store.put("n", number)
                acknowledged = number
    assert 9 == acknowledged
    disk.broken = False
    async with Cluster("a", data_dir=tmp_path) as cluster:
        assert await cluster.store.get("n") in (9, 10)


async def test_a_disk_that_is_full_when_a_snapshot_is_taken_ends_nobody(disk: FailingDisk, tmp_path: Path) -> None:
    """Whoever asked for it is told; the peer goes on, and takes one when there is room."""
    async with Cluster("a", data_dir=tmp_path) as cluster:
        await cluster.store.put("key", 1)
        disk.full = True
        with trio.fail_after(10.0), pytest.raises(StorageError, match="No space"):
            await cluster.snapshot()
        disk.full = False
        assert 2 == await cluster.store.increment("key")
        with trio.fail_after(10.0):
            await cluster.snapshot()
    async with Cluster(data_dir=tmp_path) as cluster:
        assert 2 == await cluster.store.get("key")


class FailingTransport(MemoryTransport):
    """Has a bug, a second after the start."""

    async def run(
        self,
        receiver: Receiver,
        *,
        listen: str,
        settings: Settings,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        task_status.started(listen)
        await trio.sleep(1.0)
        raise RuntimeError("the transport is broken")


async def test_a_failing_transport_leaves_as_itself(autojump_clock: trio.abc.Clock) -> None:
    """Never a half-dead peer that goes on in silence."""
    with pytest.raises(RuntimeError, match="the transport is broken"):
        async with Cluster("a", transport=FailingTransport()):
            await trio.sleep_forever()


async def test_an_address_that_is_taken_fails_the_start(autojump_clock: trio.abc.Clock) -> None:
    """The block is not entered."""
    network = MemoryNetwork()
    async with Cluster("a", transport=MemoryTransport(network)):
        with pytest.raises(OSError, match="listen"):
            async with Cluster("a", transport=MemoryTransport(network)):
                pytest.fail("entered")


# -- the disk and the arguments ----------------------------------------------------------------------------------------


async def test_a_directory_alone_is_enough_to_start_again(tmp_path: Path) -> None:
    """Who it is, who the members are, and all that was put."""
    async with Cluster("a", data_dir=tmp_path) as cluster:
        await cluster.store.put("key", {"nested": [1, 2]})
        before = cluster.status()
        entries = [cluster.store.entry(key) for key in cluster.store]
    async with Cluster(data_dir=tmp_path) as cluster:
        assert "a" == await cluster.wait_leader()
        assert {"nested": [1, 2]} == await cluster.store.get("key")
        assert before.cluster_id == cluster.status().cluster_id
        assert before.members == cluster.status().members
        assert entries == [cluster.store.entry(key) for key in cluster.store]


async def test_it_starts_again_from_a_snapshot(tmp_path: Path) -> None:
    """What the log no longer has is in the snapshot; revisions and history go on."""
    settings = Settings(trailing_entries=1)
    async with Cluster("a", data_dir=tmp_path, settings=settings) as cluster:
        for number in range(20):
            await cluster.store.put("key", number)
        await cluster.snapshot()
        await cluster.store.put("key", "last")
        assert cluster.status().first_index > 15
    async with Cluster(data_dir=tmp_path, settings=settings) as cluster:
        assert "last" == await cluster.store.get("key")
        assert 21 == cluster.store.revision
        assert 5 == await cluster.store.get("key", revision=6)
        assert 22 == await cluster.store.put("key", "more")


async def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    """The second cluster does not start, the first does not notice, and the body that tried goes on."""
    revision = 0
    async with Cluster("a", data_dir=tmp_path) as cluster:
        with pytest.raises(DataDirInUseError, match=str(tmp_path)):
            async with Cluster("a", data_dir=tmp_path):
                pytest.fail("entered")
        revision = await cluster.store.put("key", 1)
    assert 1 == revision


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"node_id": "b", "members": {"b": "m-b", "c": "m-c"}}, ("'b'", "'a'")),
        ({"node_id": "b"}, ("'b'", "'a'")),
        ({"members": {"a": "m-a", "b": "m-b"}}, ("'b'", "cluster")),
        ({"members": {"a": "elsewhere", "b": "m-b", "c": "m-c"}}, ("elsewhere", "m-a")),
        ({"members": {"a": "m-a", "b": "m-b", "c": "m-c"}, "settings": Settings(cluster_name="x")}, ("'x'", "cluster")),
    ],
)
async def test_arguments_that_contradict_the_disk(
    tmp_path: Path, arguments: dict[str, object], named: tuple[str, str]
) -> None:
    """ConfigurationError that names the directory, what was said and what the disk says."""
    members = {"a": "m-a", "b": "m-b", "c": "m-c"}
    async with Cluster("a", members=members, data_dir=tmp_path, transport=MemoryTransport()):
        pass
    with pytest.raises(ConfigurationError) as caught:
        async with Cluster(data_dir=tmp_path, transport=MemoryTransport(), **arguments):  # type: ignore[arg-type]  # by name
            pytest.fail("entered")
    for word in (*named, str(tmp_path)):
        assert word in str(caught.value)
    async with Cluster("a", members=members, data_dir=tmp_path, transport=MemoryTransport()):
        pass  # the directory is as it was, and not locked


async def test_another_address_moves_the_peer(tmp_path: Path) -> None:
    """It is no contradiction: the disk knows the new one from then on, and what is bound follows it."""
    async with Cluster("a", address="m-a", data_dir=tmp_path, transport=MemoryTransport()):
        pass
    async with Cluster(data_dir=tmp_path, address="elsewhere", transport=MemoryTransport()) as cluster:
        await cluster.store.put("key", 1)
    network = MemoryNetwork()
    async with Cluster(data_dir=tmp_path, transport=MemoryTransport(network)) as cluster:
        identity = peer_of(cluster).identity
        assert ("elsewhere", "elsewhere") == (identity.address, identity.listen)
        assert ["elsewhere"] == list(network._listening)


async def test_what_is_bound_apart_stays_so(tmp_path: Path) -> None:
    """Who listens elsewhere than others dial goes on to, wherever it moves; and what is bound may change alone."""
    async with Cluster("a", address="m-a", listen="any", data_dir=tmp_path, transport=MemoryTransport()):
        pass
    async with Cluster(data_dir=tmp_path, address="elsewhere", transport=MemoryTransport()) as cluster:
        assert ("elsewhere", "any") == (peer_of(cluster).identity.address, peer_of(cluster).identity.listen)
    async with Cluster(data_dir=tmp_path, listen="other", transport=MemoryTransport()) as cluster:
        assert ("elsewhere", "other") == (peer_of(cluster).identity.address, peer_of(cluster).identity.listen)


async def test_the_first_start_needs_a_name(tmp_path: Path) -> None:
    """An empty directory says nothing: the error says so, and that it is empty."""
    with pytest.raises(ConfigurationError, match="first start"):
        async with Cluster(data_dir=tmp_path):
            pytest.fail("entered")


async def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    """The error points at the path, and not at the disk."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file: File exists; look at the path"):
        async with Cluster("a", data_dir=tmp_path / "file"):
            pytest.fail("entered")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "node_id is missing"),
        ({"node_id": ""}, "node id"),
        ({"node_id": 5}, "node id"),
        ({"node_id": "a" * 129}, "node id"),
        ({"node_id": "a", "members": {}}, "empty"),
        ({"node_id": "a", "members": {"b": "x"}}, "not among"),
        ({"node_id": "a", "members": {"a": ""}}, "address"),
        ({"node_id": "a", "members": {"a": 5}}, "address"),
        ({"node_id": "a", "members": {"a": "x", "b": "x"}}, "same address"),
        ({"node_id": "a", "members": {"a": "x"}, "address": "y"}, "contradicts"),
        ({"node_id": "a", "members": ["a", "b"]}, r"members must be a dict.*not \['a', 'b'\]"),
        ({"node_id": "a", "settings": {"zone": "b"}}, "settings must be a Settings.*not {'zone': 'b'}"),
        ({"node_id": "a", "machine": list}, "machine must be an instance of a subclass of StateMachine"),
        ({"node_id": "a", "machine": Unversioned()}, "a version of at least 1, an int, not 0"),
        ({"node_id": "a", "data_dir": 5}, "data_dir must be a path, not 5"),
    ],
)
def test_arguments_that_contradict_each_other(arguments: dict[str, object], match: str) -> None:
    """Refused when the cluster is made: nothing has been opened."""
    with pytest.raises(ConfigurationError, match=match):
        Cluster(**arguments)  # type: ignore[arg-type]  # the mistakes under test
