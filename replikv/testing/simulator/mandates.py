"""What a leader and a candidate rest on: the word of a majority, which they were told, and still are.

The invariants of the cores see what nodes believe and what they write. These see what was *said*: an election that was
won by counting wrongly may be of no consequence for a thousand runs, and is one wrong commit away from all the others.
"""

from __future__ import annotations

from collections.abc import Mapping

from replikv.errors import InternalError
from replikv.raft.core import Raft
from replikv.raft.invariants import Invariants
from replikv.raft.membership import Membership
from replikv.raft.messages import Message, RequestVote, RequestVoteResponse
from replikv.raft.quorum import VoteResult, joint_vote_result
from replikv.raft.roles import Role
from replikv.raft.stable import StableStorage

__all__ = ["Mandates"]

_CONFIGURATIONS = 3
"""A candidate may have applied changes since it counted: a joint one is entered and left within a turn."""


class Mandates(Invariants):
    """The invariants of the cores, and those of elections."""

    def __init__(self) -> None:
        super().__init__()
        # (term, candidate, whether before a campaign) -> who has told it yes.
        self._told_yes: dict[tuple[int, str, bool], set[str]] = {}
        # Node id -> the last term whose election it was held to.
        self._elected: dict[str, int] = {}
        # Node id -> (term, configuration) in which it leads, and the tick since when.
        self._leading: dict[str, tuple[tuple[int, int], int]] = {}

    def observe(self, raft: Raft) -> None:
        """Look at a core; at a new leader, whether a majority has elected it (paper 5.2)."""
        super().observe(raft)
        if raft.role is Role.LEADER and self._elected.get(raft.id) != raft.term:
            self._elected[raft.id] = raft.term
            self._expect_majority("elected by a majority", raft, raft.term, pre_vote=False)

    def observe_sent(self, message: Message, storage: StableStorage) -> None:
        """Look at a message; at a candidate's, whether it was told that it would be elected (thesis 9.6)."""
        super().observe_sent(message, storage)
        if isinstance(message, RequestVoteResponse) and not message.reject:
            self._told_yes.setdefault((message.term, message.to, message.pre_vote), set()).add(message.sender)
        elif isinstance(message, RequestVote) and not message.pre_vote and not message.transfer:
            candidate = self._seen[message.sender].core
            if candidate.config.pre_vote:
                self._expect_majority("asked before campaigns", candidate, message.term, pre_vote=True)

    def observe_heard(self, raft: Raft, ticks: int, heard: Mapping[str, int]) -> None:
        """Look at a leader that has had ``ticks``, and has ``heard`` others at theirs: whether it still may be one.

        It looks once per election timeout, so it leads on for at most two without a majority (thesis 6.2).
        """
        leading = (raft.term, raft.membership_index)
        began, since = self._leading.get(raft.id, (None, 0))
        if raft.role is not Role.LEADER or began != leading or raft.transferee or ticks < since:
            self._leading[raft.id] = leading, ticks
            return
        lately = ticks - 2 * raft.config.election_ticks
        if lately <= since:
            return
        membership = raft.membership
        hearing = {node_id for node_id, tick in heard.items() if tick >= lately} | {raft.id}
        if not membership.is_voter(raft.id) or not _majority(membership, hearing):
            _broken(
                "heard by a majority",
                f"{raft.id} leads term {raft.term} of {raft.tracker.voters()} since tick {since}, is at {ticks},"
                f" and has heard {sorted(hearing)} since {lately}",
            )

    def restarted(self, node_id: str) -> None:
        """As of the cores."""
        super().restarted(node_id)
        self._leading.pop(node_id, None)
        self._elected.pop(node_id, None)

    def _expect_majority(self, invariant: str, raft: Raft, term: int, *, pre_vote: bool) -> None:
        yes = self._told_yes.get((term, raft.id, pre_vote), set()) | {raft.id}
        indexes = sorted(index for index in self._memberships if index <= raft.membership_index)
        known = [self._memberships[index] for index in indexes[-_CONFIGURATIONS:]]
        if not any(_majority(membership, yes) for membership in (raft.membership, *known)):
            _broken(
                invariant,
                f"{raft.id} stands for term {term} of {raft.tracker.voters()}, and only {sorted(yes)} have told it yes",
            )


def _majority(membership: Membership, some: set[str]) -> bool:
    result = joint_vote_result(membership.voters, membership.outgoing, dict.fromkeys(some, True))
    return result is VoteResult.WON


def _broken(invariant: str, what: str) -> None:
    raise InternalError(f"{invariant}: {what}")
