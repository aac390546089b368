"""This peer's commands on their way through the log: exactly-once, in order, bounded, each with an answer.

A command is *queued* until it is handed over (appended to the own log as the leader, or forwarded to it), *handed*
until its result is known here, and *unsettled* when its caller has gone before that. The session's acknowledged-below
mark is the lowest sequence that is handed or unsettled: results that somebody may still ask for are kept by every
replica (thesis 6.3), and no more than half a window of the forgotten kind.

Handing over again is always sound: a replica applies a sequence once. So whenever a command may have been lost (the
leader changed, a connection broke, a batch was refused, an answer is overdue) it is simply handed over again, until
its time is up.
"""

from __future__ import annotations

import math
import random
import struct
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import outcome
import trio

from replikv.errors import InternalError, OutcomeUnknownError, UnavailableError
from replikv.machine.envelope import CommandKind, Envelope, Status, pack_commands, pack_head
from replikv.machine.sessions import WINDOW, Sessions
from replikv.peer.outcomes import Seals

__all__ = ["Proposal", "Proposals"]

_session_and_sequence: Final = struct.Struct(">QQ").unpack_from
_SESSION_AT: Final = 4  # where session and sequence stand in the envelope
_FAILED: Final = int(Status.FAILED)  # an IntEnum member costs an attribute look-up per command
_UNKNOWN_COMMAND: Final = int(Status.UNKNOWN_COMMAND)
UNSETTLED_MAX: Final = WINDOW // 2


class Proposal:
    """One command of a task that waits for its result."""

    __slots__ = ("attempts", "deadline", "handed_ticks", "kind", "payload", "sequence", "task")

    def __init__(self, kind: int, payload: bytes, task: trio.lowlevel.Task, deadline: float) -> None:
        self.kind = kind
        self.payload = payload
        # None when the caller has gone.
        self.task: trio.lowlevel.Task | None = task
        self.deadline = deadline
        # 0 until it is handed over for the first time.
        self.sequence = 0
        # How often it was handed over, less the times it surely was not taken: 0 means surely not applied.
        self.attempts = 0
        self.handed_ticks = 0


class Proposals:
    """The session of this peer and the commands in it.

    Invariants: sequences are handed out from 1 upwards, once each; ``low`` is the lowest sequence that is in ``handed``
    or ``unsettled`` (or the next one); ``next_sequence - low`` never exceeds the window; deadlines in ``queue`` and in
    ``handed`` ascend, but for those in ``hurried``.
    """

    def __init__(self, node_id: str, in_flight_max: int, randomness: random.Random) -> None:
        self._node_id = node_id
        self._in_flight_max = min(in_flight_max, UNSETTLED_MAX)
        self._random = randomness
        self._queue: deque[Proposal] = deque()
        self._handed: dict[int, Proposal] = {}
        # Those whose deadline is earlier than that of an operation that begins when they do.
        self._hurried: dict[Proposal, None] = {}
        # Commands to hand over once more, before new ones.
        self._again: deque[Proposal] = deque()
        # Sequence -> until when it holds the mark: for ever, if somebody was given its token and may ask what became of
        # it. Nobody asks what became of one whose caller was cancelled: it is here until it is seen applied, so that
        # the mark does not overtake an attempt that is under way; or until its time is up, as that may have been lost.
        # One that comes later than that is refused by every replica.
        self._unsettled: dict[int, float] = {}
        self.crowded = False
        """Set when the replicas keep too many results of ours to take more: the next try should wait a little."""
        # The position at which the session was registered; 0 without one.
        self.session = 0
        self._nonce = randomness.getrandbits(63)
        self._registration_handed_ticks: int | None = None
        self._next_sequence = 1
        self._low = 1
        self._seals = Seals(randomness)

    # -- the caller's --------------------------------------------------------------------------------------------------

    def submit(self, kind: int, payload: bytes, deadline: float) -> Coroutine[Any, Any, bytes]:
        """Queue a command and wait for its result. The driver must be woken before.

        Cancelled before it was handed over, it never will be; after that it may be applied, once.
        """
        return self._submit(Proposal(kind, payload, trio.lowlevel.current_task(), deadline))

    async def submit_hurried(self, kind: int, payload: bytes, deadline: float) -> bytes:
        """As :meth:`submit`, with any deadline, not one that ascends from call to call."""
        proposal = Proposal(kind, payload, trio.lowlevel.current_task(), deadline)
        self._hurried[proposal] = None
        try:
            return await self._submit(proposal)
        finally:
            del self._hurried[proposal]

    async def _submit(self, proposal: Proposal) -> bytes:
        self._queue.append(proposal)

        def abort(_: object) -> trio.lowlevel.Abort:
            proposal.task = None
            proposal.payload = b""
            if proposal.sequence:
                self._leave_unsettled(proposal, token=False)
            return trio.lowlevel.Abort.SUCCEEDED

        result: bytes = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    async def settle(self, token: tuple[int, int], deadline: float) -> bytes:
        """The answer of a seal: see outcomes.py. The driver must be woken before.

        What is settled may be forgotten: it need not hold the mark any more.
        """
        answer = await self._seals.ask(token, deadline)
        session, sequence = token
        if session == self.session:
            self._unsettled.pop(sequence, None)
        return answer

    # -- handing over --------------------------------------------------------------------------------------------------

    def take(self, now_ticks: int, bytes_max: int) -> tuple[list[Proposal], bytes]:
        """What to hand over now, and its commands packed as in an entry: what must go again first, then what is new.

        Bounded by ``bytes_max`` of payload (one is always let through), by the window and by the limit in flight.
        Without a session nothing is taken: see :meth:`take_registration`.
        """
        taken: list[Proposal] = []
        if not self.session:
            return taken, b""
        size = 0
        again, handed, queue = self._again, self._handed, self._queue
        while again and size < bytes_max:
            proposal = again.popleft()
            if proposal.task is not None and proposal.sequence in handed:
                size += len(proposal.payload)
                taken.append(proposal)
        low = self._advance_low()
        sequence = self._next_sequence
        room = min(self._in_flight_max - len(handed), low + WINDOW - sequence)
        while queue and size < bytes_max and room > 0:
            proposal = queue.popleft()
            if proposal.task is None:
                continue
            proposal.sequence = sequence
            handed[sequence] = proposal
            size += len(proposal.payload)
            taken.append(proposal)
            sequence += 1
            room -= 1
        self._next_sequence = sequence
        return taken, self._pack(taken, low, now_ticks)

    def _pack(self, proposals: list[Proposal], low: int, now_ticks: int) -> bytes:
        session = self.session
        parts: list[bytes] = []
        for proposal in proposals:
            proposal.attempts += 1
            proposal.handed_ticks = now_ticks
            payload = proposal.payload
            parts += (pack_head(len(payload), proposal.kind, session, proposal.sequence, low), payload)
        return b"".join(parts)

    def take_seals(self, now_ticks: int) -> tuple[bytes, Callable[[], None]] | None:
        """The seals to hand over now, packed as in an entry, and what to do when they are not taken; or None."""
        if not self._seals.waiting:
            return None
        nonces, commands = self._seals.take(now_ticks, self.session, self._advance_low())
        return pack_commands(commands), lambda: self._seals.give_back(nonces)

    def take_registration(self, now_ticks: int) -> bytes | None:
        """The command that registers this peer's session, unless there is one or it is on its way."""
        if self.session or self._registration_handed_ticks is not None:
            return None
        self._registration_handed_ticks = now_ticks
        return Envelope(CommandKind.REGISTER, 0, self._nonce, 0, self._node_id.encode()).encode()

    def give_back(self, proposals: Sequence[Proposal], session: int) -> None:
        """These surely were not taken by whom they were handed to: they go again, and this attempt does not count.

        ``session`` is that in which they were taken out: of attempts in a later one the refusal says nothing.
        """
        if session != self.session:
            return
        for proposal in proposals:
            if proposal.sequence in self._handed:
                proposal.attempts -= 1
        self._again.extend(proposals)

    def registration_lost(self) -> None:
        """The registration was not taken, or its answer is overdue."""
        self._registration_handed_ticks = None

    def hand_all_again(self) -> None:
        """The leader has changed, or the way to it: whatever is under way may be lost."""
        self._again = deque(self._handed.values())
        self._registration_handed_ticks = None
        self._seals.hand_all_again()

    def hand_overdue_again(self, before_ticks: int) -> None:
        """What was handed over before that tick and has no answer yet goes again."""
        self._seals.hand_overdue_again(before_ticks)
        first = next(iter(self._handed.values()), None)
        if first is not None and first.handed_ticks < before_ticks and not self._again:
            self._again = deque(p for p in self._handed.values() if p.handed_ticks < before_ticks)
        if self._registration_handed_ticks is not None and self._registration_handed_ticks < before_ticks:
            self._registration_handed_ticks = None

    @property
    def waiting(self) -> bool:
        """Whether anything could be handed over now."""
        if self._seals and self._seals.waiting:
            return True
        if not self.session:
            return self._registration_handed_ticks is None
        return bool(self._again) or (bool(self._queue) and len(self._handed) < self._in_flight_max)

    @property
    def in_flight(self) -> int:
        """Commands handed over and without an answer."""
        return len(self._handed)

    # -- answers -------------------------------------------------------------------------------------------------------

    def applied(self, commands: Sequence[bytes], results: Sequence[bytes]) -> None:
        """The replica has applied these commands of the log; those of this session are answered."""
        if self._seals:
            self._seals.applied(commands, results)
        if not self.session:
            self._find_registration(commands, results)
            return
        session, handed = self.session, self._handed
        reschedule, value = trio.lowlevel.reschedule, outcome.Value
        for command, result in zip(commands, results, strict=True):
            owner, sequence = _session_and_sequence(command, _SESSION_AT)
            if owner != session:
                continue
            if (proposal := handed.get(sequence)) is None:
                if self._unsettled.get(sequence, math.inf) < math.inf:
                    del self._unsettled[sequence]
                continue
            if result[0] <= _FAILED:  # _answer's first case, for the many
                del handed[sequence]
                proposal.payload = b""  # the batch that it was forwarded in may be remembered for a while
                task = proposal.task
                if task is not None:
                    proposal.task = None
                    reschedule(task, value(result))
                continue
            self._answer(proposal, result)
            if self.session != session:
                return  # the session is gone, and what follows of it was refused alike

    def _answer(self, proposal: Proposal, result: bytes) -> None:
        status = result[0]
        if status <= _FAILED or status >= _UNKNOWN_COMMAND:
            del self._handed[proposal.sequence]
            task, proposal.task = proposal.task, None
            if task is not None:
                trio.lowlevel.reschedule(task, outcome.Value(result))
        elif status == Status.UNKNOWN_SESSION:
            # Everything that was applied before this in the log was answered before: so nothing that is still handed
            # has been applied, nor will it be. It may safely go again, in a new session.
            self._begin_anew(list(self._handed.values()))
        elif status == Status.BEYOND_WINDOW:
            # Too much is kept for us until we acknowledge it: what nobody waits for any more goes first.
            proposal.attempts -= 1
            self._again.append(proposal)
            self._unsettled.clear()
            self.crowded = True
        elif status == Status.SEALED:
            del self._handed[proposal.sequence]
            sealed = (
                f"command {proposal.sequence} of session {self.session} was not applied, and never will be: somebody"
            )
            self._fail(
                proposal, UnavailableError(f"{sealed} asked for its outcome before; it is safe to send it again")
            )
        else:
            error = InternalError(f"command {proposal.sequence} of session {self.session}: {Status(status).name}")
            del self._handed[proposal.sequence]
            self._fail(proposal, error)

    def _begin_anew(self, proposals: list[Proposal]) -> None:
        for proposal in reversed(proposals):
            if proposal.task is not None:
                proposal.sequence = proposal.attempts = 0
                self._queue.appendleft(proposal)
        self._handed.clear()
        self._again.clear()
        self._unsettled.clear()
        self.session = 0
        self._nonce = self._random.getrandbits(63)
        self._registration_handed_ticks = None
        self._next_sequence = self._low = 1

    def _find_registration(self, commands: Sequence[bytes], results: Sequence[bytes]) -> None:
        wanted = (0, self._nonce)
        for command, result in zip(commands, results, strict=True):
            if (
                _session_and_sequence(command, _SESSION_AT) == wanted
                and command[1] == CommandKind.REGISTER
                and result[0] == Status.OK
            ):
                self._open_session(int.from_bytes(result[1:9]))
                return

    def _open_session(self, session: int) -> None:
        self.session = session
        self._next_sequence = self._low = 1

    def find_in(self, sessions: Sessions) -> None:
        """A snapshot was installed: commands that came with it are answered from its session table."""
        if not self.session:
            found = sessions.find(self._nonce, self._node_id)
            if found is not None:
                self._open_session(found)
            return
        if self.session not in sessions.table:
            # Evicted somewhere in what was skipped: what is handed may have been applied before that.
            lost, session = list(self._handed.values()), self.session
            self._begin_anew([])
            for proposal in lost:
                self._fail(proposal, self._unknown(session, proposal.sequence, "its session was evicted meanwhile"))
            return
        for proposal in list(self._handed.values()):
            result = sessions.result(self.session, proposal.sequence)
            if result is not None:
                self._answer(proposal, result)

    # -- the end of waiting --------------------------------------------------------------------------------------------

    def expire(self, now: float, surely_not: Callable[[], Exception], why: Callable[[], str]) -> None:
        """Tell everybody whose time is up: ``surely_not`` makes the error of who was never handed over."""
        self._seals.expire(
            now, lambda: UnavailableError(f"the outcome is not settled: {why()}; ask again, which is harmless")
        )
        queue = self._queue
        while queue and (queue[0].task is None or queue[0].deadline <= now):
            self._fail(queue.popleft(), surely_not)
        while self._handed:
            proposal = next(iter(self._handed.values()))
            if proposal.task is not None and proposal.deadline > now:
                break
            self._give_up(proposal, surely_not, why)
        for sequence in [sequence for sequence, until in self._unsettled.items() if until <= now < math.inf]:
            del self._unsettled[sequence]
        for proposal in [each for each in self._hurried if each.deadline <= now]:
            if self._handed.get(proposal.sequence) is proposal:
                self._give_up(proposal, surely_not, why)
            else:
                self._fail(proposal, surely_not)  # it stays in the queue, where nobody takes it any more

    def _give_up(self, proposal: Proposal, surely_not: Callable[[], Exception], why: Callable[[], str]) -> None:
        if proposal.attempts == 0:
            del self._handed[proposal.sequence]
            self._fail(proposal, surely_not)
        else:
            task = proposal.task
            self._leave_unsettled(proposal, token=task is not None)
            proposal.task = task
            self._fail(proposal, self._unknown(self.session, proposal.sequence, why()))

    def fail_all(self, surely_not: Callable[[], Exception], why: str) -> None:
        """The peer stops: tell everybody."""
        self._seals.expire(float("inf"), surely_not)
        self.expire(float("inf"), surely_not, lambda: why)

    def _fail(self, proposal: Proposal, error: Exception | Callable[[], Exception]) -> None:
        task, proposal.task = proposal.task, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Error(error if isinstance(error, Exception) else error()))

    @staticmethod
    def _unknown(session: int, sequence: int, why: str) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"command {sequence} of session {session} may have been applied, or may yet be: {why};"
            " settle that with cluster.outcome(error.token) before you send it again",
            (session, sequence),
        )

    def _leave_unsettled(self, proposal: Proposal, *, token: bool) -> None:
        if self._handed.pop(proposal.sequence, None) is None or proposal.attempts == 0:
            return
        self._unsettled[proposal.sequence] = math.inf if token else proposal.deadline
        # Oldest first: a dict keeps the order, and callers leave in about the order of their sequences.
        while self._unsettled and self._next_sequence - next(iter(self._unsettled)) > UNSETTLED_MAX:
            del self._unsettled[next(iter(self._unsettled))]

    def _advance_low(self) -> int:
        low = self._low
        handed, unsettled, end = self._handed, self._unsettled, self._next_sequence
        while low < end and low not in handed and low not in unsettled:
            low += 1
        if end - low > UNSETTLED_MAX:
            # Forgotten callers must not hold the window: their results may go.
            for sequence in [s for s in unsettled if end - s > UNSETTLED_MAX]:
                del unsettled[sequence]
            while low < end and low not in handed and low not in unsettled:
                low += 1
        self._low = low
        return low
