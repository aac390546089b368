"""The lessor: until when each lease is granted, and which of them are to end. Works on the leader alone.

Time is counted here and nowhere else: the table of leases (machine/leases.py) says for how long each is granted, and
nothing of when. So no clock decides what a replica does, and none has to agree with another: whoever leads counts on
his own, and may count too long, but never too short. What is promised:

    Whoever was told that his lease is kept alive has it for its whole time, counted from when he *sent* the question.

Rules:

1. *A new leader grants every lease its full time*, from its first tick as the leader. What an earlier one has promised
   it cannot know. It need not: that one had its leadership confirmed by a majority after the question had arrived, so
   this one was elected later still, and counts from then.
2. *So does one that was stalled*: a tick that comes more than an election timeout after the last, whether the process
   was stopped or the time jumped, and a confirmation that takes so long. The questions that came meanwhile may be
   waiting where nobody has looked yet, or could not come.
3. *A question to keep a lease alive counts from when it is taken*, so from after it was sent, whether or not it can be
   answered. It is answered once a majority has confirmed, by a message sent after that, that this peer still leads
   (ReadIndex), and it has applied all that was committed until then. Then no newer leader counts from an earlier
   moment; and a lease that a command in the log has ended is not there any more. All questions of a turn share a round.
4. *A lease ends by a command only* (REVOKE), which the leader puts into its own log, of no session, and never forwards.
   From when it has done so it answers no question about that lease, unless the command was surely not taken: it is not
   known whether it will be committed. If it is, by whomever, whoever answers later has applied it: see 3.
5. *Nothing ends before this leader has applied an entry of its own term*, and *for no lease before a majority has
   confirmed the leader since the lease was due*. A leader without a quorum ends nothing. And whatever was waiting in
   this peer's sockets when it woke up has been taken before the others' answers, which came behind it. Neither asks
   for a write: a disk that is slow delays the ends of leases, and no keep-alive.
6. *A lease with more keys than one command deletes* is ending (its time to live is 0) until the last is gone. Whoever
   leads goes on with it.

The deadlines are a heap, in which a renewed lease is put right only when it comes to the top: a question costs a dict
look-up, and a tick in which nothing is due the same.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import Final, NamedTuple

from replikv.machine.replica import Replica
from replikv.peer.protocol import LeaseAnswers, LeaseQuestions

__all__ = ["Lessor"]

ROUNDS_MAX: Final = 2
"""Rounds under way at once: one that is being confirmed, and one for what came since."""
QUESTIONS_MAX: Final = 65_536
"""Leases that may wait for a round; questions above are dropped, and asked again by who waits."""
LOOKED_AT_PER_TICK: Final = 1024
"""Deadlines that have passed and are looked at in one tick: about a millisecond. They may be those of leases that were
renewed since; and an end that is proposed cannot be taken back, while the others may yet be renewed."""
REVOKES_PER_LEASE: Final = 16
"""Commands for one large lease that are on their way at once."""
GONE_KEPT: Final = 64
"""Deadlines of leases that are gone by now which are not worth a look through all of them."""


class Round(NamedTuple):
    """Questions that share a confirmation of the leader."""

    began: float
    questions: list[tuple[str, LeaseQuestions]]


class Lessor:
    """Deadlines and questions of one leadership; does nothing on a peer that does not lead.

    Invariant: the heap has one item for each lease in ``_deadlines``, with a deadline at or before the true one.
    """

    def __init__(self, replica: Replica, stall_s: float, first_context: int) -> None:
        self._replica = replica
        self._stall_s = stall_s
        # Of the last round. Barriers have numbers of their own, and both ignore what they do not know.
        self._context = first_context
        self.begin_anew()

    def begin_anew(self) -> None:
        """Leader or term have changed."""
        self._deadlines: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []
        # The newest lease that has a deadline, or had.
        self._newest = 0
        self._ticked = -math.inf
        # Lease -> deadline, of those whose end is on its way into the log.
        self._proposed: dict[int, float] = {}
        # Lease that is ending -> how many keys it had when its commands were proposed.
        self._ending: dict[int, int] = {}
        self._revocations: list[int] = []
        self._waiting: list[tuple[str, LeaseQuestions]] = []
        self._questions = 0
        # Context -> round, in the order in which they began.
        self._rounds: dict[int, Round] = {}
        # (index that must be applied, questions): ascending.
        self._confirmed: deque[tuple[int, list[tuple[str, LeaseQuestions]]]] = deque()
        # When the newest round began that was confirmed; and whether one is needed for what is due.
        self._confirmed_at = -math.inf
        self._due = False

    # -- questions -----------------------------------------------------------------------------------------------------

    def take(self, asker: str, questions: LeaseQuestions, now: float) -> None:
        """Somebody asks; ``now`` is after his question has arrived."""
        if self._questions + len(questions.items) > QUESTIONS_MAX:
            return
        self._questions += len(questions.items)
        self._waiting.append((asker, questions))
        table, deadlines = self._replica.map.leases.table, self._deadlines
        for lease, renew in questions.items:
            if renew and lease in deadlines:
                deadlines[lease] = max(deadlines[lease], now + table.get(lease, 0) / 1000)

    @property
    def waiting(self) -> bool:
        """Whether anything waits for a confirmation that is not under way."""
        return self._due or bool(self._waiting)

    def begin_round(self, now: float) -> int | None:
        """A context to have this leader confirmed with; None when nothing waits for it or enough are under way."""
        if not self.waiting or len(self._rounds) >= ROUNDS_MAX:
            return None
        self._context += 1
        self._rounds[self._context] = Round(now, self._waiting)
        self._waiting = []
        self._due = False
        return self._context

    def confirm(self, context: int, index: int) -> None:
        """The round is confirmed: its questions are answered when ``index`` is applied."""
        found = self._rounds.pop(context, None)
        if found is not None:
            self._confirmed_at = max(self._confirmed_at, found.began)
            self._confirmed.append((index, found.questions))

    def answerable(self, applied: int) -> bool:
        """Whether :meth:`release` has anything to give."""
        return bool(self._confirmed) and self._confirmed[0][0] <= applied

    def release(self, applied: int, now: float) -> list[tuple[str, LeaseAnswers]]:
        """The answers whose index is applied, each with who asked."""
        answers: list[tuple[str, LeaseAnswers]] = []
        while self.answerable(applied):
            for asker, questions in self._confirmed.popleft()[1]:
                self._questions -= len(questions.items)
                items = tuple(self._answer(lease, now) for lease, _ in questions.items if not self._doomed(lease))
                answers.append((asker, LeaseAnswers(questions.number, items)))
        return answers

    def _doomed(self, lease: int) -> bool:
        """Whether a command that ends it is on its way, of which nobody knows whether it will be committed."""
        return lease in self._proposed and self._replica.map.leases.alive(lease)

    def _answer(self, lease: int, now: float) -> tuple[int, int, int]:
        ttl_ms = self._replica.map.leases.table.get(lease, 0)
        if not ttl_ms:
            return lease, 0, 0
        deadline = self._deadlines.get(lease)  # one that was just granted gets its deadline at the next tick
        left_ms = ttl_ms if deadline is None else min(ttl_ms, max(0, round((deadline - now) * 1000)))
        return lease, ttl_ms, left_ms

    # -- time ----------------------------------------------------------------------------------------------------------

    def tick(self, now: float, *, may_end: bool) -> None:
        """A tick of the leader. ``may_end``: it has applied an entry of its own term."""
        stalled = now - self._ticked > self._stall_s
        self._ticked = now
        if self._rounds and now - next(iter(self._rounds.values())).began > self._stall_s:
            for given_up in self._rounds.values():
                self._questions -= sum(len(questions.items) for _, questions in given_up.questions)
            self._rounds.clear()
            stalled = True
        if stalled or len(self._deadlines) > 2 * len(self._replica.map.leases) + GONE_KEPT:
            self._rebuild(now, anew=stalled)
        self._note_new(now)
        if may_end:
            for lease in [lease for lease in self._proposed if not self._doomed(lease)]:
                del self._proposed[lease]
            self._end_due(now)
            self._go_on_ending()

    def _rebuild(self, now: float, *, anew: bool) -> None:
        """Drop the leases that are gone; ``anew``: grant all others their full time."""
        table, deadlines = self._replica.map.leases.table, self._deadlines
        self._deadlines = {
            lease: now + table[lease] / 1000 if anew else deadline
            for lease, deadline in deadlines.items()
            if table.get(lease)
        }
        self._heap = [(deadline, lease) for lease, deadline in self._deadlines.items()]
        heapq.heapify(self._heap)

    def _note_new(self, now: float) -> None:
        leases = self._replica.map.leases
        for lease in reversed(leases.table):
            if lease <= self._newest:
                break
            if ttl_ms := leases.table[lease]:
                self._set(lease, now + ttl_ms / 1000)
        self._newest = leases.next_id - 1

    def _set(self, lease: int, deadline: float) -> None:
        self._deadlines[lease] = deadline
        heapq.heappush(self._heap, (deadline, lease))

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _end_due(self, now: float) -> None:
        """End what was due before the last confirmation began; for the rest, another one is needed."""
        table, deadlines, heap = self._replica.map.leases.table, self._deadlines, self._heap
        self._due = False
        for _ in range(LOOKED_AT_PER_TICK):
            if not heap or heap[0][0] > now:
                return
            noted, lease = heap[0]
            if not table.get(lease):
                heapq.heappop(heap)
                del deadlines[lease]
            elif deadlines[lease] > noted:
                heapq.heapreplace(heap, (deadlines[lease], lease))
            elif noted <= self._confirmed_at:
                heapq.heappop(heap)
                self._proposed[lease] = deadlines.pop(lease)
                self._propose(lease, self._replica.map.keyspace.attachments.count(lease))
            else:
                self._due = not self._rounds
                return

    def _go_on_ending(self) -> None:
        """With the leases that some of the keys of are deleted, by a command of ours or of somebody who did not go on.

        When fewer are left than there were, the commands that were proposed are applied, and did not do it.
        """
        ending, keyspace = self._replica.map.leases.ending, self._replica.map.keyspace
        if self._ending:
            self._ending = {lease: keys for lease, keys in self._ending.items() if lease in ending}
        for lease in ending:
            keys = keyspace.attachments.count(lease)
            if lease not in self._ending or keys < self._ending[lease]:
                self._ending[lease] = keys
                self._propose(lease, keys)
                if len(self._revocations) >= 2 * LOOKED_AT_PER_TICK:
                    return

    def _propose(self, lease: int, keys: int) -> None:
        """End it by as many commands as its keys take."""
        commands = -(-keys // self._replica.governance.limits.operations)
        self._revocations += [lease] * min(max(1, commands), REVOKES_PER_LEASE)

    def take_revocations(self, most: int) -> list[int]:
        """The leases to end now, each as often as a REVOKE of it is to be proposed; the rest another time.

        About ``most`` in all: those of one lease are not parted, since they are dropped together or not at all.
        """
        waiting = self._revocations
        if not waiting:
            return waiting
        while most < len(waiting) and waiting[most] == waiting[most - 1]:
            most += 1
        revocations, self._revocations = waiting[:most], waiting[most:]
        return revocations

    def dropped(self, revocations: list[int]) -> None:
        """These were surely not taken into the log: they may be renewed again, or are tried again."""
        for lease in revocations:
            self._ending.pop(lease, None)
            deadline = self._proposed.pop(lease, None)
            if deadline is not None:
                self._set(lease, deadline)
