"""Questions about leases on their way to the leader: asked again as often as it takes, answered once."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from replikv.errors import UnavailableError
from replikv.peer.lessee import QUESTIONS_PER_FRAME, Lessee
from replikv.peer.protocol import LeaseAnswers, LeaseQuestions

NEVER = float("inf")


def unavailable() -> Exception:
    return UnavailableError("time is up")


class Askers:
    """Tasks that ask about leases, by lease; what became of them is in ``ends``."""

    def __init__(self, lessee: Lessee, nursery: trio.Nursery) -> None:
        self.ends: dict[int, object] = {}
        self.scopes: dict[int, trio.CancelScope] = {}
        self._lessee = lessee
        self._nursery = nursery

    async def ask(self, *leases: int, deadline: float = NEVER) -> None:
        for lease in leases:
            self._nursery.start_soon(self._ask, lease, deadline)
        await trio.testing.wait_all_tasks_blocked()

    async def _ask(self, lease: int, deadline: float) -> None:
        with trio.CancelScope() as scope:
            self.scopes[lease] = scope
            try:
                self.ends[lease] = await self._lessee.ask(lease, renew=True, deadline=deadline)
            except UnavailableError:
                self.ends[lease] = "unavailable"
        if scope.cancelled_caught:
            self.ends[lease] = "cancelled"

    async def settled(self) -> dict[int, object]:
        await trio.testing.wait_all_tasks_blocked()
        return self.ends


@pytest.fixture
def lessee() -> Lessee:
    return Lessee(0)


@pytest.fixture
async def askers(lessee: Lessee, nursery: trio.Nursery) -> Askers:
    return Askers(lessee, nursery)


def take(lessee: Lessee, *, ticks: int = 0, now: float = 0.0) -> LeaseQuestions:
    questions = lessee.take(ticks, now)
    assert questions is not None
    return questions


async def test_who_asks_in_a_turn_shares_a_frame(lessee: Lessee, askers: Askers) -> None:
    """Each gets his own answer, with the time at which the frame was sent."""
    await askers.ask(1, 2)
    questions = take(lessee, now=7.0)
    assert {(1, True), (2, True)} == set(questions.items)
    assert lessee.take(0, 8.0) is None
    lessee.answered(LeaseAnswers(questions.number, ((1, 5000, 4000), (2, 0, 0))))
    assert {1: (7.0, 5000, 4000), 2: (7.0, 0, 0)} == await askers.settled()


@pytest.mark.parametrize("late", [False, True])
async def test_an_answer_counts_from_when_its_own_question_was_sent(lessee: Lessee, askers: Askers, late: bool) -> None:
    """Asked again, the answer to the first question may still come: it counts from then, and the other changes nothing.

    But of a question of long ago nothing is known any more.
    """
    await askers.ask(1)
    first = take(lessee, ticks=1, now=1.0)
    lessee.tick(3, 2)
    assert lessee.take(3, 1.5) is None  # not overdue
    lessee.tick(4, 2)
    second = take(lessee, ticks=4, now=2.0)
    lessee.tick(10 if late else 9, 2)
    lessee.answered(LeaseAnswers(first.number, ((1, 5000, 5000),)))
    assert ({} if late else {1: (1.0, 5000, 5000)}) == await askers.settled()
    lessee.answered(LeaseAnswers(second.number, ((1, 6000, 6000),)))
    assert {1: (2.0, 6000, 6000) if late else (1.0, 5000, 5000)} == await askers.settled()


async def test_an_overdue_question_is_asked_again_once_each_time(lessee: Lessee, askers: Askers) -> None:
    """Not once per tick: a leader that is slow must not be asked ever more."""
    await askers.ask(1)
    asked = 0
    for ticks in range(40):
        lessee.tick(ticks, 10)
        asked += lessee.take(ticks, 0.0) is not None
    assert 4 == asked


async def test_what_is_left_out_waits_on(lessee: Lessee, askers: Askers) -> None:
    """Until it is overdue, and is asked again; the others have their answers."""
    await askers.ask(1, 2)
    questions = take(lessee)
    lessee.answered(LeaseAnswers(questions.number, ((2, 5000, 5000),)))
    assert {2: (0.0, 5000, 5000)} == await askers.settled()
    lessee.ask_again()
    again = take(lessee, now=3.0)
    assert ((1, True),) == again.items
    lessee.answered(LeaseAnswers(again.number, ((1, 0, 0),)))
    assert (3.0, 0, 0) == (await askers.settled())[1]


async def test_a_cancelled_question_leaves_nothing_behind(lessee: Lessee, askers: Askers) -> None:
    """Before it was sent it never is; after that its answer finds nobody."""
    await askers.ask(1, 2)
    askers.scopes[1].cancel()
    await askers.settled()
    questions = take(lessee)
    assert ((2, True),) == questions.items
    askers.scopes[2].cancel()
    assert {1: "cancelled", 2: "cancelled"} == await askers.settled()
    lessee.answered(LeaseAnswers(questions.number, ((2, 5000, 5000),)))
    lessee.ask_again()
    assert lessee.take(0, 0.0) is None


async def test_time_is_up_wherever_a_question_is(lessee: Lessee, askers: Askers) -> None:
    """Sent, or not sent yet; those that have time wait on. The end of the peer ends all."""
    await askers.ask(1, 2, deadline=5.0)
    take(lessee)
    await askers.ask(3, deadline=5.0)
    await askers.ask(4, deadline=6.0)
    lessee.expire(5.0, unavailable)
    assert dict.fromkeys((1, 2, 3), "unavailable") == await askers.settled()
    lessee.fail_all(unavailable)
    assert dict.fromkeys((1, 2, 3, 4), "unavailable") == await askers.settled()


async def test_frames_are_bounded(lessee: Lessee, askers: Askers) -> None:
    """More questions than that go in several."""
    await askers.ask(*range(1, QUESTIONS_PER_FRAME + 2))
    assert [QUESTIONS_PER_FRAME, 1] == [len(take(lessee).items), len(take(lessee).items)]
    lessee.fail_all(unavailable)
