"""Commands on their way into the log: packed into as few entries as they fit, and proposed by the leader.

The others forward theirs to it in batches, one hop, with explicit refusals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from replikv.errors import InternalError
from replikv.machine.commands import encode_compact, encode_revoke
from replikv.machine.envelope import HEADER_BYTES, CommandKind, Envelope, pack_commands, unpack_commands
from replikv.machine.replica import Replica
from replikv.peer.compactor import Compactor
from replikv.peer.lessor import Lessor
from replikv.peer.proposals import Proposals
from replikv.peer.protocol import Forwarded, Refusal, encode_forwarded, encode_refusal
from replikv.raft.entries import NO_NODE
from replikv.raft.node import RawNode
from replikv.raft.refusals import ProposalDroppedError
from replikv.raft.roles import Role
from replikv.settings import Settings
from replikv.transport.base import Transport

__all__ = ["Handover"]

REVOKE_BYTES: Final = 64
"""What a REVOKE takes in an entry, and a little more: those of one turn must fit one."""

FORWARDED_REMEMBERED: Final = 1024
"""Forwarded batches whose numbers are remembered."""


class Batch(NamedTuple):
    """Packed commands of one source, and what to do when the core does not take them."""

    commands: bytes
    dropped: Callable[[], None]


class Handover:
    """Hands over what waits, once per turn of the driver."""

    def __init__(
        self,
        settings: Settings,
        node: RawNode,
        transport: Transport,
        replica: Replica,
        proposals: Proposals,
        lessor: Lessor,
        first_batch: int,
    ) -> None:
        self._settings = settings
        self._node = node
        self._transport = transport
        self._replica = replica
        self._proposals = proposals
        self._lessor = lessor
        self._ticks = 0
        # Batches that others forwarded to us, to be proposed in this turn.
        self._forwarded: list[Batch] = []
        # (sender, number) of the last ones: a network that duplicates must not have us refuse what we have proposed.
        self._forwarded_lately: dict[tuple[str, int], None] = {}
        # The number of the last batch forwarded, and those that may yet be refused: number -> give back. Begun at
        # random: a refusal to the process that this peer was before must not be taken for one of ours.
        self._batch = first_batch
        self._outstanding: dict[int, tuple[int, Callable[[], None]]] = {}
        # No command is handed over before this tick: the last try was refused or could not be sent.
        self._hold_until_ticks = 0
        self._compactor = Compactor(settings)
        self._log = structlog.get_logger(component="handover").bind(node=node.raft.id)

    def tick(self, ticks: int) -> None:
        """Time has passed."""
        self._ticks = ticks
        if self._node.raft.role is Role.LEADER:
            self._compactor.tick(ticks, self._replica.keyspace.revision)
        overdue = ticks - 2 * self._settings.election_ticks
        for batch in [number for number, (handed_ticks, _) in self._outstanding.items() if handed_ticks < overdue]:
            del self._outstanding[batch]

    def hold(self) -> None:
        """Hand nothing over before the next tick."""
        self._hold_until_ticks = self._ticks + 1

    def begin_anew(self) -> None:
        """Leader or term have changed."""
        self._compactor.begin_anew()
        self._hold_until_ticks = 0

    def forget_forwarded(self) -> None:
        """Everything goes again: what becomes of the batches that were forwarded does not matter any more."""
        self._outstanding.clear()

    def hand_over(self) -> None:
        """Propose what waits, or forward it."""
        raft = self._node.raft
        if raft.leader == raft.id:
            self._propose()
            return
        if self._forwarded:
            forwarded, self._forwarded = self._forwarded, []
            for batch in forwarded:
                batch.dropped()  # leadership was lost within this turn
        if raft.leader != NO_NODE and self._proposals.waiting and self._ticks >= self._hold_until_ticks:
            self._forward(raft.leader)

    def take_forwarded(self, sender: str, forwarded: Forwarded) -> None:
        """Somebody takes us for the leader."""
        try:
            for command in unpack_commands(forwarded.commands):
                if len(command) < HEADER_BYTES:
                    raise InternalError(f"a command of {len(command)} bytes is shorter than its header")
                if command[1] == CommandKind.CLUSTER:
                    raise InternalError("versions and limits are the leader's own to propose")
        except InternalError as exc:
            self._log.warning("malformed frame", sender=sender, reason=str(exc))
            return

        name = (sender, forwarded.batch)
        if name in self._forwarded_lately:
            return
        self._forwarded_lately[name] = None
        while len(self._forwarded_lately) > FORWARDED_REMEMBERED:
            del self._forwarded_lately[next(iter(self._forwarded_lately))]

        def refuse() -> None:
            self._transport.send(sender, encode_refusal(forwarded.batch, self._node.raft.leader))

        if self._node.raft.role is Role.LEADER and len(forwarded.commands) <= self._settings.entry_bytes_max:
            self._forwarded.append(Batch(forwarded.commands, refuse))
        else:
            refuse()

    def take_refusal(self, refusal: Refusal) -> None:
        """A batch of ours was not taken, and goes again."""
        found = self._outstanding.pop(refusal.batch, None)
        if found is not None:
            found[1]()
            self.hold()

    def _own_batch(self) -> Batch | None:
        """What this peer's tasks want done, as much as fits an entry."""
        proposals, settings = self._proposals, self._settings
        seals = proposals.take_seals(self._ticks)
        if seals is not None:
            return Batch(*seals)
        registration = proposals.take_registration(self._ticks)
        if registration is not None:
            return Batch(pack_commands([registration]), proposals.registration_lost)
        room = (settings.entry_bytes_max - settings.command_bytes_max) // 2
        taken, commands = proposals.take(self._ticks, room)
        session = proposals.session
        return Batch(commands, lambda: proposals.give_back(taken, session)) if taken else None

    def _propose(self) -> None:
        batches = self._forwarded
        if (floor := self._floor_command()) is not None:
            batches.append(floor)
        if revocations := self._lessor.take_revocations(1 + self._settings.entry_bytes_max // REVOKE_BYTES):
            batches.append(self._revoke_commands(revocations))
        if self._ticks >= self._hold_until_ticks:
            while self._proposals.waiting and (own := self._own_batch()) is not None:
                batches.append(own)
        if not batches:
            return
        self._forwarded = []
        entry: list[Batch] = []
        size = 0
        for batch in batches:
            if entry and size + len(batch.commands) > self._settings.entry_bytes_max:
                self._propose_entry(entry)
                entry, size = [], 0
            entry.append(batch)
            size += len(batch.commands)
        if entry:
            self._propose_entry(entry)

    def _propose_entry(self, batches: list[Batch]) -> None:
        try:
            self._node.propose(b"".join(batch.commands for batch in batches))
        except ProposalDroppedError:
            self.hold()
            for batch in batches:
                batch.dropped()

    def _forward(self, leader: str) -> None:
        while self._proposals.waiting and (own := self._own_batch()) is not None:
            self._batch += 1
            if not self._transport.send(leader, encode_forwarded(self._batch, own.commands)):
                own.dropped()
                self.hold()
                return
            self._outstanding[self._batch] = (self._ticks, own.dropped)

    def _revoke_commands(self, leases: list[int]) -> Batch:
        """The leader's commands that end leases: of no session, since ending what has ended is harmless."""
        commands = [Envelope(CommandKind.MAP, 0, 0, 0, encode_revoke(lease)).encode() for lease in leases]
        return Batch(pack_commands(commands), lambda: self._lessor.dropped(leases))

    def _floor_command(self) -> Batch | None:
        """The leader's command that moves the history floor. It is harmless when repeated, and so needs no session."""
        floor = self._compactor.floor(self._replica.keyspace)
        if floor is None:
            return None
        command = Envelope(CommandKind.MAP, 0, 0, 0, encode_compact(floor)).encode()
        return Batch(pack_commands([command]), self._compactor.dropped)
