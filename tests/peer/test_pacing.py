"""A rate that is kept, and turns that come in order."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from replikv.peer.pacing import BURST_S, Pacer, Turns


async def test_bytes_are_spread_over_time(autojump_clock: trio.abc.Clock) -> None:
    """Whoever sleeps until its time comes keeps to the rate, however large the pieces; a little may go at once."""
    pacer = Pacer(1000)
    started = trio.current_time()
    for size in (50, 100, 4000, 1, 849):
        await trio.sleep_until(pacer.reserve(size))
    await trio.sleep_until(pacer.reserve(0))
    assert trio.current_time() - started == pytest.approx(5.0 - BURST_S)


async def test_a_pause_is_made_up_for_only_in_part(autojump_clock: trio.abc.Clock) -> None:
    """So that sleeps that end late do not lower the rate; and nobody saves up for a flood."""
    pacer = Pacer(1000)
    await trio.sleep_until(pacer.reserve(1000))
    await trio.sleep(60.0)
    now = trio.current_time()
    dues = [pacer.reserve(20) - now for _ in range(8)]
    assert 6 == sum(due <= 1e-9 for due in dues)
    assert dues[-1] == pytest.approx(0.04)


async def test_turns_come_in_the_order_of_asking(nursery: trio.Nursery) -> None:
    """So many at once; whoever gives up while waiting is passed over, and takes no turn along."""
    turns = Turns(2)
    having: list[str] = []
    scopes = {name: trio.CancelScope() for name in "abcdef"}

    async def have(name: str) -> None:
        with scopes[name]:
            async with turns.turn():
                having.append(name)
                await trio.sleep_forever()

    for name in "abcdef":
        nursery.start_soon(have, name)
        await trio.testing.wait_all_tasks_blocked()
    assert ["a", "b"] == having
    scopes["c"].cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert ["a", "b"] == having
    scopes["b"].cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert ["a", "b", "d"] == having
    for name in "aef":
        scopes[name].cancel()
    await trio.testing.wait_all_tasks_blocked()
    scopes["d"].cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert ["a", "b", "d"] == having
    async with turns.turn(), turns.turn():
        pass


async def test_a_turn_and_a_cancellation_at_once_lose_no_turn() -> None:
    """Whoever is given a turn in the moment in which it gives up passes it on."""
    turns = Turns(1)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                async with turns.turn():
                    await trio.sleep_forever()

            async with turns.turn():
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    with trio.fail_after(1.0):
        async with turns.turn():
            pass


async def test_whoever_waits_may_say_so(autojump_clock: trio.abc.Clock, nursery: trio.Nursery) -> None:
    """From time to time, and keeps its place; whoever cannot say so leaves it."""
    turns = Turns(1)
    said: list[float] = []
    gone = False
    order: list[str] = []

    async def reassure() -> None:
        if gone:
            raise OSError("nobody listens")
        said.append(trio.current_time() - started)

    async def patient() -> None:
        async with turns.turn(reassure, 2.0):
            order.append("patient")

    async def other() -> None:
        async with turns.turn():
            order.append("other")

    started = trio.current_time()
    async with turns.turn():
        nursery.start_soon(patient)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(other)
        await trio.sleep(5.0)
        assert [2.0, 4.0] == said
    await trio.testing.wait_all_tasks_blocked()
    assert ["patient", "other"] == order
    gone = True
    async with turns.turn():
        with pytest.raises(OSError, match="nobody listens"):
            await patient()
    async with turns.turn():
        pass
