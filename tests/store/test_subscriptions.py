"""Subscriptions: callbacks in a task of their own."""

from __future__ import annotations

import functools

import pytest
import structlog.testing
import trio
import trio.testing
from local_replicator import LocalReplicator

from replikv.errors import ClusterClosedError, CompactedError, ConfigurationError, LaggedError
from replikv.machine import commands
from replikv.machine.values import encode_value
from replikv.store.change import Change
from replikv.store.store import Store
from replikv.store.watch_hub import WatchHub

settle = trio.testing.wait_all_tasks_blocked


def puts(first: int, last: int) -> list[bytes]:
    return [commands.encode_put(b"key", encode_value(number, 100)) for number in range(first, last + 1)]


class Notes:
    """Callbacks that write down what they are told."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.errors: list[Exception] = []

    @property
    def revisions(self) -> list[int]:
        return [change.revision for change in self.changes]


async def test_callback_is_told_of_every_change_from_the_call_on(store: Store) -> None:
    """In order, of the prefix only; without an await between the call and the first change."""
    notes = Notes()
    await store.put("a/old", 0)
    store.subscribe(notes.changes.append, prefix="a/")
    await store.put("a/x", 1)
    await store.update({"a/x": 2, "b": 3})
    await store.delete("a/x")
    await settle()
    assert [
        Change("a/x", 1, None, 2, "put", created=True),
        Change("a/x", 2, 1, 3, "put"),
        Change("a/x", None, 2, 4, "delete"),
    ] == notes.changes


async def test_since_begins_in_the_history(store: Store, replicator: LocalReplicator) -> None:
    """As of a watch; below the retained history the call itself raises."""
    notes = Notes()
    replicator.sweep(*puts(1, 5))
    store.subscribe(notes.changes.append, since=3)
    await store.put("key", 6)
    await settle()
    assert notes.revisions == [4, 5, 6]
    replicator.compact(4)
    with pytest.raises(CompactedError) as caught:
        store.subscribe(notes.changes.append, since=3)
    assert caught.value.revision == 4


async def test_scoped_subscription_has_relative_keys(store: Store) -> None:
    """And its prefix is relative, too."""
    notes = Notes()
    store.scoped("a/").subscribe(notes.changes.append, prefix="b")
    await store.update({"a/b": 1, "a/c": 2, "b": 3})
    await settle()
    assert [Change("b", 1, None, 1, "put", created=True)] == notes.changes


async def test_callbacks_may_be_async_and_run_one_at_a_time(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    """The next change waits until the callback is done with the one before; other tasks do not."""
    running, finished = 0, list[int]()

    async def callback(extra: str, change: Change) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await trio.sleep(1)
        running -= 1
        finished.append(change.revision)

    store.subscribe(functools.partial(callback, "extra"))
    started = trio.current_time()
    for number in range(5):
        await store.put("key", number)
    assert trio.current_time() == started
    await trio.sleep(10)
    assert finished == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_callback_that_raises_is_told_and_goes_on(store: Store, asynchronous: bool) -> None:
    """It is logged, on_error gets the exception, and the next change comes; other subscriptions notice nothing."""
    notes, others = Notes(), Notes()
    failure = RuntimeError("mine")

    def callback(change: Change) -> None:
        notes.changes.append(change)
        if change.revision == 2:
            raise failure

    async def async_callback(change: Change) -> None:
        await trio.lowlevel.checkpoint()
        callback(change)

    async def async_on_error(error: Exception) -> None:
        await trio.lowlevel.checkpoint()
        notes.errors.append(error)

    with structlog.testing.capture_logs() as logs:
        if asynchronous:
            store.subscribe(async_callback, on_error=async_on_error)
        else:
            store.subscribe(callback, on_error=notes.errors.append)
        store.subscribe(others.changes.append)
        for number in range(3):
            await store.put("key", number)
        await settle()
    assert notes.revisions == others.revisions == [1, 2, 3]
    assert [failure] == notes.errors
    assert [("error", "key", 2)] == [(entry["log_level"], entry["key"], entry["revision"]) for entry in logs]


async def test_on_error_that_raises_is_logged(store: Store) -> None:
    """It ends nothing either."""
    notes = Notes()

    def callback(change: Change) -> None:
        notes.changes.append(change)
        raise RuntimeError("mine")

    def on_error(error: Exception) -> None:
        raise ValueError("and mine")

    with structlog.testing.capture_logs() as logs:
        store.subscribe(callback, on_error=on_error)
        await store.put("key", 1)
        await store.put("key", 2)
        await settle()
    assert notes.revisions == [1, 2]
    assert [entry["log_level"] for entry in logs] == ["error"] * 4


async def test_slow_callback_loses_nothing(store: Store, replicator: LocalReplicator) -> None:
    """on_error is told that it lagged; what it missed is read from the history."""
    notes = Notes()
    with structlog.testing.capture_logs() as logs:
        store.subscribe(notes.changes.append, buffer=3, on_error=notes.errors.append)
        replicator.sweep(*puts(1, 50))
        await settle()
        replicator.sweep(*puts(51, 60))
        await settle()
    assert notes.revisions == list(range(1, 61))
    assert [(LaggedError, 3), (LaggedError, 53)] == [(type(error), error.revision) for error in notes.errors]  # type: ignore[attr-defined]  # the types stand beside
    assert [entry["log_level"] for entry in logs] == ["warning"] * 2


async def test_only_what_the_cluster_forgot_is_missed(store: Store, replicator: LocalReplicator) -> None:
    """on_error is told from where it goes on: the oldest revision that is left."""
    notes = Notes()
    with structlog.testing.capture_logs():
        store.subscribe(notes.changes.append, buffer=3, on_error=notes.errors.append)
        replicator.sweep(*puts(1, 50), commands.encode_compact(40))
        await settle()
    assert notes.revisions == [1, 2, 3, *range(41, 51)]
    assert [LaggedError, CompactedError] == [type(error) for error in notes.errors]
    assert isinstance(notes.errors[1], CompactedError)
    assert notes.errors[1].revision == 40


async def test_floor_that_moves_before_it_goes_on_is_no_end(store: Store, replicator: LocalReplicator) -> None:
    """The revision of an error may be compacted by the time its reader gets to it: told again, then on."""
    notes = Notes()
    with structlog.testing.capture_logs():
        store.subscribe(notes.changes.append, on_error=notes.errors.append)
        replicator.sweep(*puts(1, 2))
        replicator.fall_behind()
        replicator.sweep(*puts(3, 10), commands.encode_compact(5))
        replicator.install_snapshot()
        replicator.sweep(*puts(11, 20), commands.encode_compact(15))
        await settle()
    assert notes.revisions == [1, 2, 16, 17, 18, 19, 20]
    assert [5, 15] == [error.revision for error in notes.errors if isinstance(error, CompactedError)]


async def test_cancelled_subscription_calls_back_no_more(
    store: Store, hub: WatchHub, replicator: LocalReplicator
) -> None:
    """Not for changes that are buffered already, either; cancelling twice is fine, and nothing stays behind."""
    notes = Notes()
    subscription = store.subscribe(notes.changes.append)
    await settle()
    replicator.sweep(*puts(1, 3))
    subscription.cancel()
    subscription.cancel()
    replicator.sweep(*puts(4, 5))
    await settle()
    assert notes.changes == []
    assert not hub._live


async def test_subscription_may_be_cancelled_before_its_task_begins(store: Store, hub: WatchHub) -> None:
    """At once after the call."""
    notes = Notes()
    store.subscribe(notes.changes.append).cancel()
    await store.put("key", 1)
    await settle()
    assert notes.changes == []
    assert not hub._live


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_callback_may_cancel_its_own_subscription(store: Store, asynchronous: bool) -> None:
    """A plain one runs to its end, an async one to its next await."""
    notes = Notes()

    def callback(change: Change) -> None:
        subscription.cancel()
        notes.changes.append(change)

    async def async_callback(change: Change) -> None:
        callback(change)
        await trio.lowlevel.checkpoint()
        pytest.fail("it was cancelled")

    subscription = store.subscribe(async_callback if asynchronous else callback)
    for number in range(3):
        await store.put("key", number)
    await settle()
    assert notes.revisions == [1]


async def test_callback_may_use_the_store(store: Store) -> None:
    """It is a task like any other: it may write, and subscribe."""
    notes = Notes()

    async def copy(change: Change) -> None:
        await store.put("copy/" + change.key, change.value)

    store.subscribe(copy, prefix="a")
    store.subscribe(notes.changes.append, prefix="copy/")
    await store.put("a", 1)
    await settle()
    assert [Change("copy/a", 1, None, 2, "put", created=True)] == notes.changes


async def test_closing_cluster_ends_subscriptions_quietly(
    store: Store, hub: WatchHub, replicator: LocalReplicator
) -> None:
    """on_error is not told: it is no error. A new one is refused."""
    notes = Notes()
    with structlog.testing.capture_logs() as logs:
        store.subscribe(notes.changes.append, on_error=notes.errors.append)
        await store.put("key", 1)
        replicator.close()
        hub.close()
        await settle()
    assert notes.revisions == [1]
    assert notes.errors == []
    assert logs == []
    with pytest.raises(ClusterClosedError):
        store.subscribe(notes.changes.append)


@pytest.mark.parametrize("end", ["cancelled", "closed"])
@pytest.mark.parametrize("failing", ["callback", "on_error"])
async def test_what_fails_while_a_callback_is_cancelled_stays_inside(end: str, failing: str) -> None:
    """A nursery of the callback's raises it in a group with the cancellation: it is logged, and ends nothing else."""
    notes = Notes()

    async def fail_on_the_way_out() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("mine")

    async def with_nursery(_: object) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_on_the_way_out)
            nursery.start_soon(trio.sleep_forever)

    def fail(_: Change) -> None:
        raise RuntimeError("mine, too")

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            replicator = LocalReplicator(nursery)
            nursery.start_soon(replicator.run)
            store = Store(replicator, WatchHub(replicator))
            if failing == "callback":
                subscription = store.subscribe(with_nursery)
            else:
                subscription = store.subscribe(fail, on_error=with_nursery)
            store.subscribe(notes.changes.append)
            await store.put("key", 1)
            await settle()
            logs.clear()
            if end == "cancelled":
                subscription.cancel()
                await store.put("key", 2)
                await settle()
            nursery.cancel_scope.cancel()
    assert ([1, 2] if end == "cancelled" else [1]) == notes.revisions
    (entry,) = logs
    assert "error" == entry["log_level"]
    assert "[ValueError('mine')]" in repr(entry["exc_info"])


async def test_callback_must_be_callable(store: Store) -> None:
    """Seen at the call, not at the first change."""
    with pytest.raises(ConfigurationError, match="callable"):
        store.subscribe("no function")  # type: ignore[arg-type]  # the mistake under test
