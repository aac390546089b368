"""What this peer's tasks ask the leader about leases: to keep one alive, or how long it has left.

A question changes nothing that is in the log, so asking it again is always sound: when the leader has changed, when the
connection broke, when an answer is overdue. Each time it goes out under a new number, and the answer tells when the
question under its number was sent: from then on the lease is granted. Answers to earlier numbers are taken, too, or a
leader that is slower than we are patient would never be heard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import outcome
import trio

from replikv.peer.protocol import LeaseAnswers, LeaseQuestions

__all__ = ["Lessee"]

QUESTIONS_PER_FRAME: Final = 4096
FORGOTTEN_AFTER: Final = 4
"""Times the patience after which an answer is not waited for any more."""


class Question:
    """One task that waits for an answer about one lease."""

    __slots__ = ("deadline", "lease", "renew", "task")

    def __init__(self, lease: int, renew: bool, task: trio.lowlevel.Task, deadline: float) -> None:
        self.lease = lease
        self.renew = renew
        # None when the task is gone: cancelled, answered, or told that time was up.
        self.task: trio.lowlevel.Task | None = task
        self.deadline = deadline


class Sent:
    """A frame full of questions that has no answer yet, or not to all of them."""

    __slots__ = ("asked_again", "at", "questions", "ticks")

    def __init__(self, ticks: int, at: float, questions: list[Question]) -> None:
        self.ticks = ticks
        self.at = at
        self.questions = questions
        # Whether they have gone out under another number since.
        self.asked_again = False


class Lessee:
    """The questions in flight."""

    def __init__(self, first_number: int) -> None:
        self._waiting: deque[Question] = deque()
        # Number -> what was asked under it. Numbers begin at random in each process: an answer to the process that this
        # peer was before must not be taken for one of ours.
        self._sent: dict[int, Sent] = {}
        self._number = first_number

    async def ask(self, lease: int, *, renew: bool, deadline: float) -> tuple[float, int, int]:
        """When the question was sent; for how many milliseconds the lease is granted from then on, 0 if it is not
        there; how many it has left as the leader counts. The driver must be woken. Cancelling leaves nothing behind.
        """
        question = Question(lease, renew, trio.lowlevel.current_task(), deadline)
        self._waiting.append(question)

        def abort(_: object) -> trio.lowlevel.Abort:
            question.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        answer: tuple[float, int, int] = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    # -- the driver's --------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether there may be anything to ask."""
        return bool(self._waiting)

    def take(self, now_ticks: int, now: float) -> LeaseQuestions | None:
        """What to ask the leader now, before anything else is done: they count as sent at ``now``."""
        taken: list[Question] = []
        while self._waiting and len(taken) < QUESTIONS_PER_FRAME:
            question = self._waiting.popleft()
            if question.task is not None:
                taken.append(question)
        if not taken:
            return None
        self._number += 1
        self._sent[self._number] = Sent(now_ticks, now, taken)
        return LeaseQuestions(self._number, tuple((question.lease, question.renew) for question in taken))

    def answered(self, answers: LeaseAnswers) -> None:
        """The leader has answered. Unknown numbers are old answers; what is left out waits on."""
        sent = self._sent.get(answers.number)
        if sent is None:
            return
        found = {lease: (ttl_ms, left_ms) for lease, ttl_ms, left_ms in answers.items}
        for question in sent.questions:
            if question.lease in found:
                self._wake(question, outcome.Value((sent.at, *found[question.lease])))
        sent.questions[:] = [question for question in sent.questions if question.task is not None]
        if not sent.questions:
            del self._sent[answers.number]

    def ask_again(self) -> None:
        """The leader has changed, or the way to it: whatever has no answer yet goes again."""
        for sent in self._sent.values():
            self._ask_again(sent)

    def tick(self, now_ticks: int, patience_ticks: int) -> None:
        """What was asked that long ago goes again; what was asked much longer ago is not waited for any more."""
        for number, sent in list(self._sent.items()):
            if sent.ticks >= now_ticks - patience_ticks:
                return
            self._ask_again(sent)
            if sent.ticks < now_ticks - FORGOTTEN_AFTER * patience_ticks:
                del self._sent[number]

    def _ask_again(self, sent: Sent) -> None:
        if not sent.asked_again:
            sent.asked_again = True
            self._waiting.extend(question for question in sent.questions if question.task is not None)

    def expire(self, now: float, error: Callable[[], Exception]) -> None:
        """Tell everybody whose time is up."""
        groups: list[Iterable[Question]] = [self._waiting, *(sent.questions for sent in self._sent.values())]
        for group in groups:
            for question in group:
                if question.deadline <= now and question.task is not None:
                    self._wake(question, outcome.Error(error()))
        while self._waiting and self._waiting[0].task is None:
            self._waiting.popleft()

    def fail_all(self, error: Callable[[], Exception]) -> None:
        """The peer stops: tell everybody."""
        self.expire(float("inf"), error)

    @staticmethod
    def _wake(question: Question, result: outcome.Outcome[tuple[float, int, int]]) -> None:
        task, question.task = question.task, None
        if task is not None:
            trio.lowlevel.reschedule(task, result)
