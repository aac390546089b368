"""Rounds of linearizable reads: who shares one, who waits for the next, and when they go on."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from replikv.errors import UnavailableError
from replikv.peer.barriers import ROUNDS_MAX, Barriers

NEVER = float("inf")


def unavailable() -> Exception:
    return UnavailableError("time is up")


class Waiters:
    """Tasks that wait for barriers, by name; what became of them is in ``ends``."""

    def __init__(self, barriers: Barriers, nursery: trio.Nursery) -> None:
        self.ends: dict[str, object] = {}
        self.scopes: dict[str, trio.CancelScope] = {}
        self._barriers = barriers
        self._nursery = nursery

    async def add(self, *names: str, deadline: float = NEVER) -> None:
        for name in names:
            self._nursery.start_soon(self._wait, name, deadline)
            await trio.testing.wait_all_tasks_blocked()

    async def _wait(self, name: str, deadline: float) -> None:
        with trio.CancelScope() as scope:
            self.scopes[name] = scope
            try:
                await self._barriers.wait(deadline)
                self.ends[name] = "fresh"
            except UnavailableError:
                self.ends[name] = "unavailable"
        if scope.cancelled_caught:
            self.ends[name] = "cancelled"

    async def settled(self) -> dict[str, object]:
        await trio.testing.wait_all_tasks_blocked()
        return self.ends


@pytest.fixture
def barriers() -> Barriers:
    return Barriers(0)


@pytest.fixture
async def waiters(barriers: Barriers, nursery: trio.Nursery) -> Waiters:
    return Waiters(barriers, nursery)


def begin(barriers: Barriers, ticks: int = 0) -> int:
    context = barriers.begin_round(ticks)
    assert context is not None
    return context


async def test_all_that_wait_share_a_round(barriers: Barriers, waiters: Waiters) -> None:
    """They go on when its index is applied, not before."""
    assert barriers.begin_round(0) is None  # nobody waits
    await waiters.add("a", "b")
    context = begin(barriers)
    assert barriers.begin_round(0) is None
    barriers.release(100)
    assert {} == await waiters.settled()
    barriers.confirm(context, 7)
    barriers.release(6)
    assert {} == await waiters.settled()
    barriers.release(7)
    assert {"a": "fresh", "b": "fresh"} == await waiters.settled()


async def test_who_comes_after_a_round_began_waits_for_the_next(barriers: Barriers, waiters: Waiters) -> None:
    """The leader may have answered before the call: such an answer proves nothing about it."""
    await waiters.add("early")
    first = begin(barriers)
    await waiters.add("late")
    barriers.confirm(first, 1)
    barriers.release(1)
    assert {"early": "fresh"} == await waiters.settled()
    second = begin(barriers)
    assert second != first
    barriers.confirm(second, 1)
    barriers.release(1)
    assert {"early": "fresh", "late": "fresh"} == await waiters.settled()


async def test_rounds_are_bounded(barriers: Barriers, waiters: Waiters) -> None:
    """Whoever comes while enough are under way waits, and shares one later."""
    contexts = []
    for number in range(ROUNDS_MAX):
        await waiters.add(f"{number}")
        contexts.append(begin(barriers))
    await waiters.add("x", "y")
    assert barriers.begin_round(0) is None
    barriers.confirm(contexts[0], 1)
    shared = begin(barriers)
    barriers.confirm(shared, 2)
    barriers.release(2)
    assert {"0", "x", "y"} == set(await waiters.settled())


async def test_rounds_confirmed_out_of_order(barriers: Barriers, waiters: Waiters) -> None:
    """Each waits for its own index."""
    await waiters.add("a")
    first = begin(barriers)
    await waiters.add("b")
    second = begin(barriers)
    barriers.confirm(second, 5)
    barriers.confirm(first, 9)
    barriers.release(5)
    assert {"b": "fresh"} == await waiters.settled()
    barriers.release(9)
    assert {"a": "fresh", "b": "fresh"} == await waiters.settled()


async def test_two_rounds_at_one_index(barriers: Barriers, waiters: Waiters) -> None:
    """Both go on."""
    await waiters.add("a")
    first = begin(barriers)
    await waiters.add("b")
    second = begin(barriers)
    barriers.confirm(second, 5)
    barriers.confirm(first, 5)
    barriers.release(5)
    assert {"a": "fresh", "b": "fresh"} == await waiters.settled()


async def test_an_answer_to_a_round_given_up_is_ignored(barriers: Barriers, waiters: Waiters) -> None:
    """Its waiters joined another; contexts are never used again."""
    await waiters.add("a")
    first = begin(barriers)
    barriers.give_up_rounds()
    second = begin(barriers)
    barriers.confirm(first, 1)
    barriers.confirm(999, 1)
    barriers.release(1)
    assert {} == await waiters.settled()
    barriers.confirm(second, 1)
    barriers.confirm(second, 1)
    barriers.release(1)
    assert {"a": "fresh"} == await waiters.settled()


async def test_overdue_rounds_are_given_up_alone(barriers: Barriers, waiters: Waiters) -> None:
    """Those that began before the tick."""
    await waiters.add("a")
    begin(barriers, ticks=1)
    await waiters.add("b")
    young = begin(barriers, ticks=3)
    barriers.give_up_rounds(before_ticks=3)
    assert begin(barriers, ticks=5) > young
    barriers.confirm(young, 1)
    barriers.release(1)
    assert {"b": "fresh"} == await waiters.settled()


async def test_given_up_they_keep_their_place(barriers: Barriers, waiters: Waiters) -> None:
    """Deadlines ascend among those who wait: the first to time out is found first."""
    await waiters.add("a", deadline=1.0)
    begin(barriers)
    await waiters.add("b", deadline=2.0)
    begin(barriers)
    await waiters.add("c", deadline=3.0)
    barriers.give_up_rounds()
    barriers.expire(1.0, unavailable)
    assert {"a": "unavailable"} == await waiters.settled()
    barriers.expire(2.5, unavailable)
    assert {"a": "unavailable", "b": "unavailable"} == await waiters.settled()
    barriers.confirm(begin(barriers), 1)
    barriers.release(1)
    assert "fresh" == (await waiters.settled())["c"]


@pytest.mark.parametrize("stage", ["waiting", "asked", "confirmed"])
async def test_time_is_up_at_every_stage(barriers: Barriers, waiters: Waiters, stage: str) -> None:
    """Also when the answer has come and the replica does not get there."""
    await waiters.add("a", deadline=1.0)
    await waiters.add("b", deadline=2.0)
    if stage != "waiting":
        context = begin(barriers)
        if stage == "confirmed":
            barriers.confirm(context, 5)
    barriers.expire(0.9, unavailable)
    assert {} == await waiters.settled()
    barriers.expire(1.0, unavailable)
    assert {"a": "unavailable"} == await waiters.settled()
    if stage == "confirmed":
        barriers.release(5)
        assert {"a": "unavailable", "b": "fresh"} == await waiters.settled()


@pytest.mark.parametrize("stage", ["waiting", "asked", "confirmed"])
async def test_cancelled_at_every_stage(barriers: Barriers, waiters: Waiters, stage: str) -> None:
    """It is gone at once; the others of its round go on."""
    await waiters.add("a", "b")
    context = 0
    if stage != "waiting":
        context = begin(barriers)
        if stage == "confirmed":
            barriers.confirm(context, 5)
    waiters.scopes["a"].cancel()
    assert {"a": "cancelled"} == await waiters.settled()
    if stage != "confirmed":
        barriers.confirm(context or begin(barriers), 5)
    barriers.release(5)
    assert {"a": "cancelled", "b": "fresh"} == await waiters.settled()


async def test_nobody_is_asked_for_who_is_gone(barriers: Barriers, waiters: Waiters) -> None:
    """All that waited were cancelled: there is no round."""
    await waiters.add("a")
    waiters.scopes["a"].cancel()
    await waiters.settled()
    assert barriers.begin_round(0) is None


async def test_when_the_peer_stops_everybody_is_told(barriers: Barriers, waiters: Waiters) -> None:
    """Whatever they wait for."""
    await waiters.add("confirmed")
    barriers.confirm(begin(barriers), 5)
    await waiters.add("asked")
    begin(barriers)
    await waiters.add("waiting")
    barriers.fail_all(unavailable)
    assert dict.fromkeys(("confirmed", "asked", "waiting"), "unavailable") == await waiters.settled()


async def test_contexts_begin_where_the_process_says(nursery: trio.Nursery) -> None:
    """At a number of its own: so an answer to the process before finds nobody who waits for it."""
    first, second = Barriers(10), Barriers(1 << 61)
    contexts = []
    for barriers in (first, second):
        waiters = Waiters(barriers, nursery)
        await waiters.add("a")
        contexts.append(begin(barriers))
    assert [11, (1 << 61) + 1] == contexts
    second.confirm(contexts[0], 1)
    second.release(1)
    assert {} == await waiters.settled()
    nursery.cancel_scope.cancel()
