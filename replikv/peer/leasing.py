"""Leases between this peer's tasks and the leader, whoever that is: questions out, answers in, turn by turn."""

from __future__ import annotations

import trio

from replikv.peer.lessee import Lessee
from replikv.peer.lessor import Lessor
from replikv.peer.protocol import LeaseAnswers, LeaseQuestions, encode_lease_answers, encode_lease_questions
from replikv.raft.entries import NO_NODE
from replikv.raft.node import RawNode
from replikv.raft.roles import Role
from replikv.transport.base import Transport

__all__ = ["Leasing"]


class Leasing:
    """The driver's part in leases."""

    def __init__(self, node: RawNode, transport: Transport, lessee: Lessee, lessor: Lessor) -> None:
        self._node = node
        self._transport = transport
        self.lessee = lessee
        """What this peer asks."""
        self.lessor = lessor
        """What it says as the leader."""

    def take(self, sender: str, content: LeaseQuestions | LeaseAnswers) -> None:
        """A frame about leases has arrived."""
        if isinstance(content, LeaseAnswers):
            self.lessee.answered(content)
        elif self._node.raft.role is Role.LEADER:
            self.lessor.take(sender, content, trio.current_time())

    def ask(self, ticks: int) -> None:
        """Ask the leader what waits to be asked; and as the leader, have it confirmed for what others have asked."""
        raft = self._node.raft
        if raft.leader == NO_NODE:
            return
        while self.lessee.waiting and (questions := self.lessee.take(ticks, trio.current_time())) is not None:
            if raft.leader == raft.id:
                self.take(raft.id, questions)
            else:
                self._transport.send(raft.leader, encode_lease_questions(questions))  # asked again, if it gets lost
        if raft.role is Role.LEADER and self.lessor.waiting:
            context = self.lessor.begin_round(trio.current_time())
            if context is not None:
                self._node.read_index(context)

    def answer(self, applied: int) -> None:
        """Everything up to this index is applied: answer what has waited for that."""
        if not self.lessor.answerable(applied):
            return
        for asker, answers in self.lessor.release(applied, trio.current_time()):
            if asker == self._node.raft.id:
                self.lessee.answered(answers)
            else:
                self._transport.send(asker, encode_lease_answers(answers))
