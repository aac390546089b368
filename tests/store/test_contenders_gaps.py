"""Contenders on a replica that is told less than all: what a block goes by then."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from local_replicator import LocalReplicator

from replikv.errors import LeaseExpiredError
from replikv.machine import commands
from replikv.machine.envelope import CommandKind
from replikv.store.contenders import Contenders
from replikv.store.store import Store

PUT = commands.encode_put(b"other", b"\x01")


async def skip(replicator: LocalReplicator, *payloads: bytes) -> None:
    """These are applied elsewhere, and what they did comes here in a snapshot without the history of it."""
    replicator.fall_behind()
    replicator.sweep(*payloads, PUT)
    replicator.compact(replicator.leader.keyspace.revision)
    replicator.install_snapshot()
    await trio.testing.wait_all_tasks_blocked()


async def test_a_key_that_went_unseen_ends_the_block(
    store: Store, replicator: LocalReplicator, autojump_clock: trio.abc.Clock
) -> None:
    """A snapshot whose history begins later has no word of it: who stood by that key is told all the same."""
    with trio.fail_after(5.0), pytest.raises(LeaseExpiredError, match="is gone"):  # noqa: PT012  # the block is the point
        async with Contenders(store, "line/", 60.0).join() as claim:
            await skip(replicator, commands.encode_delete(claim.key.encode()))
            await trio.sleep_forever()


async def test_a_snapshot_with_the_key_in_it_ends_nothing(
    store: Store, replicator: LocalReplicator, autojump_clock: trio.abc.Clock
) -> None:
    """Nor does it make the block deaf: what becomes of the key later is told."""
    inside = False
    with trio.fail_after(5.0), pytest.raises(LeaseExpiredError, match="deleted by somebody"):  # noqa: PT012  # as above
        async with Contenders(store, "line/", 60.0).join() as claim:
            await skip(replicator)
            inside = True
            await store.delete(claim.key)
            await trio.sleep_forever()
    assert inside


async def test_whoever_waits_looks_again_behind_a_gap(
    nursery: trio.Nursery, store: Store, replicator: LocalReplicator, autojump_clock: trio.abc.Clock
) -> None:
    """That those ahead are gone may be what was not told; or they are not, and then it goes on waiting."""
    contenders = Contenders(store, "line/", 60.0)
    turn = trio.Event()

    async def wait() -> None:
        async with contenders.join() as claim:
            await contenders.wait_turn(claim)
            turn.set()
            await trio.sleep_forever()

    with trio.fail_after(5.0):
        async with contenders.join() as first:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await skip(replicator)
            assert not turn.is_set()
            with pytest.raises(LeaseExpiredError):  # noqa: PT012  # the block is the point
                async with contenders.join() as other:
                    await skip(replicator, commands.encode_delete(other.key.encode()))
                    await trio.sleep_forever()
            assert first.key in store
            assert not turn.is_set()
        await turn.wait()


async def test_a_key_that_goes_in_the_sweep_that_puts_it(
    store: Store, replicator: LocalReplicator, autojump_clock: trio.abc.Clock
) -> None:
    """Nobody tells of it later: whoever comes in looks once whether he is in line at all."""

    def delete() -> None:
        for key in list(store.keys("line/")):
            replicator.sweep(commands.encode_delete(key.encode()))

    replicator.add_listener(delete)
    with trio.fail_after(5.0), pytest.raises(LeaseExpiredError, match="is gone"):
        async with Contenders(store, "line/", 60.0).join():
            pytest.fail("the block must not be entered")


async def test_whoever_comes_needs_no_history(
    nursery: trio.Nursery, store: Store, replicator: LocalReplicator, autojump_clock: trio.abc.Clock
) -> None:
    """It may be cut behind one's own key in the very sweep that puts it: to come in does not fail for that."""
    joined = trio.Event()

    async def join() -> None:
        async with Contenders(store, "line/", 60.0).join():
            joined.set()

    def hold() -> None:
        replicator.held = True

    replicator.add_listener(hold)  # after the next sweep, which grants the lease
    nursery.start_soon(join)
    await trio.testing.wait_all_tasks_blocked()
    for payload in (PUT, commands.encode_compact(1 << 32)):
        nursery.start_soon(replicator.propose, CommandKind.MAP, payload)
        await trio.testing.wait_all_tasks_blocked()
    replicator.remove_listener(hold)
    replicator.release()
    with trio.fail_after(5.0):
        await joined.wait()
    assert 2 == replicator.replica.keyspace.floor
