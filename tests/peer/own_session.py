"""A peer's session over a replica, whose log a test keeps: what is handed over, and when it is applied."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator

import trio
import trio.testing

from replikv.errors import UnavailableError
from replikv.machine.base import StateMachine
from replikv.machine.commands import encode_increment
from replikv.machine.envelope import CommandKind, Envelope, pack_commands, unpack_commands
from replikv.machine.replica import Replica
from replikv.peer.proposals import Proposals

NEVER = float("inf")
PLENTY = 1 << 30


def surely_not() -> Exception:
    return UnavailableError("surely not")


class Counted(StateMachine):
    """How often each command was applied."""

    def __init__(self) -> None:
        self.times: Counter[bytes] = Counter()

    def apply(self, position: int, command: bytes) -> bytes:
        self.times[command] += 1
        return b""

    def snapshot(self) -> Iterator[bytes]:
        return iter(())

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Nobody asks."""


class Peer:
    """Proposals over a replica, whose log the test keeps: what is handed over, and when it is applied."""

    def __init__(self, nursery: trio.Nursery, in_flight_max: int = 2048) -> None:
        self.proposals = Proposals("a", in_flight_max, random.Random(1))
        self.counted = Counted()
        self.replica = Replica(self.counted)
        self.results: dict[int, object] = {}
        self.scopes: dict[int, trio.CancelScope] = {}
        self._nursery = nursery

    async def put(self, number: int, *, deadline: float = NEVER, by: int | None = None) -> None:
        """Have a task put a number; returns once it waits. What comes of it goes into ``results``."""
        kind = CommandKind.CUSTOM if by is None else CommandKind.MAP
        payload = b"%d" % number if by is None else encode_increment(b"n", bytes([by]))
        scope = self.scopes[number] = trio.CancelScope()

        async def wait() -> None:
            with scope:
                try:
                    self.results[number] = await self.proposals.submit(kind, payload, deadline)
                except Exception as exc:
                    self.results[number] = exc
            if scope.cancelled_caught:
                self.results[number] = "cancelled"

        self._nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()

    async def cancel(self, number: int) -> None:
        self.scopes[number].cancel()
        await trio.testing.wait_all_tasks_blocked()

    def register(self, ticks: int = 0) -> None:
        command = self.proposals.take_registration(ticks)
        assert command is not None
        self.apply(pack_commands([command]))

    def take(self, ticks: int = 0, bytes_max: int = PLENTY) -> bytes:
        return self.proposals.take(ticks, bytes_max)[1]

    def apply(self, data: bytes) -> None:
        commands = unpack_commands(data)
        self.proposals.applied(commands, self.replica.apply_many(commands))

    async def settled(self) -> dict[int, object]:
        await trio.testing.wait_all_tasks_blocked()
        return self.results


def sequences(data: bytes) -> list[int]:
    return [Envelope.decode(command).sequence for command in unpack_commands(data)]


def mark(data: bytes) -> int:
    """The acknowledged-below mark, which all commands of a batch have in common."""
    (mark,) = {Envelope.decode(command).acknowledged_below for command in unpack_commands(data)}
    return mark


def forget_session(peer: Peer) -> None:
    peer.replica.sessions.table.clear()
