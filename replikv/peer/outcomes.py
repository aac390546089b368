"""What became of a command: settled by a SEAL, which answers with its result or makes it never applicable.

A seal is no command of a session: it takes no sequence, so it may be asked by anybody who knows the token, by a peer
without a session too, and a second one changes nothing. Whoever asks finds the answer by a random number in the seal.
So it goes again whenever it may have been lost, as proposals do, and needs no memory of what was answered before.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import outcome
import trio

from replikv.errors import OutcomeUnknownError, UnavailableError
from replikv.machine.envelope import HEADER, CommandKind, Envelope, Status

__all__ = ["Outcome", "Seals", "outcome_of"]

SEALS_PER_BATCH: Final = 1024
"""So that a batch of them is far smaller than an entry may be: 45 kB."""

NONCE_BIT: Final = 1 << 62
"""Set in every number that stands in a seal: no sequence of a session ever gets so far."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command. True when it was applied."""

    applied: bool
    """Whether it took effect. If not, it never will."""
    result: bytes = b""
    """Of a command that was applied: what ``propose`` would have returned; for one of the map, the bytes of its result
    as ``docs/format.md`` has them."""
    reason: str = ""
    """Of one that was not applied: why."""

    def __bool__(self) -> bool:
        return self.applied


def outcome_of(token: tuple[int, int], answer: bytes) -> Outcome:
    """The outcome that the answer of a seal tells.

    Raises:
        OutcomeUnknownError: nobody can tell any more.
        UnavailableError: it is too early to tell.
    """
    session, sequence = token
    status = answer[0]
    if status == Status.OK:
        return Outcome(True, answer[1:])
    if status == Status.SEALED:
        return Outcome(False, reason="it had not been applied when this was asked, and never will be")
    if status == Status.UNKNOWN_SESSION:
        raise OutcomeUnknownError(
            f"nobody can tell any more whether command {sequence} was applied: its session {session} is not known, or"
            " was evicted for others (Settings.sessions_max); it will not be applied from now on: read what it was to"
            " change",
            token,
        )
    if status == Status.STALE:
        raise OutcomeUnknownError(
            f"nobody can tell any more whether command {sequence} of session {session} was applied: its peer was told,"
            " or has sent many others since; it will not be applied from now on: read what it was to change",
            token,
        )
    if status == Status.BEYOND_WINDOW:
        raise UnavailableError(
            f"command {sequence} is far ahead of what its session {session} has sent: its outcome cannot be settled"
            " yet: check the token, or ask again later"
        )
    # Every other one is the answer that the command itself was given: read, and refused by all replicas alike.
    return Outcome(False, reason=answer[1:].decode(errors="replace") or Status(status).name)


class Seal:
    """A task that waits for the outcome of one command."""

    __slots__ = ("deadline", "handed_ticks", "task", "token")

    def __init__(self, token: tuple[int, int], task: trio.lowlevel.Task, deadline: float) -> None:
        self.token = token
        self.task = task
        self.deadline = deadline
        # None while it is to be handed over.
        self.handed_ticks: int | None = None


class Seals:
    """The seals of this peer's tasks on their way through the log. Each has a task that waits."""

    def __init__(self, randomness: random.Random) -> None:
        self._random = randomness
        # By the random number in it. Removed when its task is told, or has gone.
        self._seals: dict[int, Seal] = {}

    def __len__(self) -> int:
        return len(self._seals)

    async def ask(self, token: tuple[int, int], deadline: float) -> bytes:
        """The answer of a seal of that command. The driver must be woken before.

        Cancelled, the command may be settled all the same.
        """
        seal = Seal(token, trio.lowlevel.current_task(), deadline)
        nonce = NONCE_BIT | self._random.getrandbits(62)
        self._seals[nonce] = seal

        def abort(_: object) -> trio.lowlevel.Abort:
            self._seals.pop(nonce, None)
            return trio.lowlevel.Abort.SUCCEEDED

        answer: bytes = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    @property
    def waiting(self) -> bool:
        """Whether some are to be handed over. O(seals)."""
        return any(seal.handed_ticks is None for seal in self._seals.values())

    def take(self, now_ticks: int, session: int, below: int) -> tuple[list[int], list[bytes]]:
        """What to hand over now: the numbers, and the commands. ``below`` is the mark of the own ``session``."""
        nonces: list[int] = []
        commands: list[bytes] = []
        for nonce, seal in self._seals.items():
            if seal.handed_ticks is None:
                seal.handed_ticks = now_ticks
                owner, target = seal.token
                mark = below if owner == session else 0
                nonces.append(nonce)
                commands.append(Envelope(CommandKind.SEAL, owner, nonce, mark, target.to_bytes(8)).encode())
                if len(nonces) == SEALS_PER_BATCH:
                    break
        return nonces, commands

    def give_back(self, nonces: Iterable[int]) -> None:
        """These were not taken by whom they were handed to: they go again."""
        for nonce in nonces:
            if nonce in self._seals:
                self._seals[nonce].handed_ticks = None

    def hand_all_again(self) -> None:
        """Whatever is under way may be lost."""
        self.give_back(self._seals)

    def hand_overdue_again(self, before_ticks: int) -> None:
        """What was handed over before that tick and has no answer yet goes again."""
        for seal in self._seals.values():
            if seal.handed_ticks is not None and seal.handed_ticks < before_ticks:
                seal.handed_ticks = None

    def applied(self, commands: Sequence[bytes], results: Sequence[bytes]) -> None:
        """The replica has applied these commands of the log."""
        for command, result in zip(commands, results, strict=True):
            if len(command) >= HEADER.size and command[1] == CommandKind.SEAL:
                seal = self._seals.pop(HEADER.unpack_from(command)[4], None)
                if seal is not None:
                    trio.lowlevel.reschedule(seal.task, outcome.Value(result))

    def expire(self, now: float, error: Callable[[], Exception]) -> None:
        """Tell everybody whose time is up."""
        for nonce in [nonce for nonce, seal in self._seals.items() if seal.deadline <= now]:
            trio.lowlevel.reschedule(self._seals.pop(nonce).task, outcome.Error(error()))
