"""Who becomes leader: campaigns, votes, and who may ask for them (paper 5.2, 5.4.1; thesis 4.2.3, 9.6).

Functions on a ``Raft``, called by core.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replikv.raft.entries import NO_NODE, Entry, EntryKind
from replikv.raft.messages import RequestVote, RequestVoteResponse
from replikv.raft.quorum import VoteResult
from replikv.raft.roles import Role

if TYPE_CHECKING:
    from replikv.raft.core import Raft

__all__: list[str] = []

SCAN_PAGE_BYTES = 1 << 20
"""How much of the log is looked at in one go; etcd: 1 MiB as well."""


def promotable(raft: Raft) -> bool:
    """Whether the node may campaign: a voter with a state to stand on."""
    progress = raft.tracker.progress.get(raft.id)
    return progress is not None and not progress.is_learner and raft.log.unstable.snapshot is None


def campaign(raft: Raft, *, transfer: bool) -> None:
    """Try to become leader, now; see ``Raft.campaign``."""
    if raft.role is Role.LEADER or not promotable(raft) or unapplied_membership_change(raft):
        return
    if transfer:
        _request_votes(raft, transfer=True)
    elif not promised_not_to_vote(raft):
        _request_votes(raft, pre_vote=raft.config.pre_vote)


def unapplied_membership_change(raft: Raft) -> bool:
    """Whether a committed change is not applied yet: the node would count votes of a configuration that is left."""
    found = False

    def look(entries: list[Entry]) -> bool:
        nonlocal found
        found = any(entry.kind == EntryKind.MEMBERSHIP for entry in entries)
        return not found

    low = max(raft.log.applied + 1, raft.log.first_index())
    if low <= raft.log.committed:
        raft.log.scan(low, raft.log.committed + 1, SCAN_PAGE_BYTES, look)
    return found


def sticks_to_leader(raft: Raft) -> bool:
    """Whether the node has heard from a leader too lately to listen to a candidate of a newer term (thesis 4.2.3)."""
    return (
        raft.config.check_quorum and raft.leader != NO_NODE and raft.election_elapsed < raft.config.election_ticks
    ) or promised_not_to_vote(raft)


def promised_not_to_vote(raft: Raft) -> bool:
    """Whether a leader may be reading under a lease that rests on this node's last answer to it (thesis 6.4.1).

    Unlike plain stickiness this outlives a restart and a newer term heard of elsewhere: after both the node knows no
    leader, but the one it answered may still count on it.
    """
    return raft.config.read_lease and raft.leader_silence < raft.config.election_ticks


def _request_votes(raft: Raft, *, pre_vote: bool = False, transfer: bool = False) -> None:
    if pre_vote:
        raft.become_pre_candidate()
    else:
        raft.become_candidate()
    term = raft.term + 1 if pre_vote else raft.term
    last_index, last_term = raft.log.last_entry_id()
    commit = raft.log.committed
    commit_term = raft.log.term(commit)
    for node_id in raft.tracker.voters():
        if node_id == raft.id:
            raft.send(RequestVoteResponse(to=raft.id, term=term, pre_vote=pre_vote))
        else:
            raft.send(
                RequestVote(
                    to=node_id,
                    term=term,
                    last_index=last_index,
                    last_term=last_term,
                    pre_vote=pre_vote,
                    transfer=transfer,
                    commit=commit,
                    commit_term=commit_term,
                )
            )


def handle_request(raft: Raft, message: RequestVote) -> None:
    """Somebody asks for this node's vote. Whoever asks: a node that is no member yet by our configuration may be one
    by its own, and a learner's vote counts for a candidate that knows it as a voter (thesis 4.2.2).
    """
    # A vote for somebody else in this term stands; so does a known leader. A pre-vote of a later term binds nobody: as
    # many as ask may be told yes.
    free = (
        raft.vote == message.sender
        or (raft.vote == NO_NODE and raft.leader == NO_NODE)
        or (message.pre_vote and message.term > raft.term)
    )
    if not message.transfer and promised_not_to_vote(raft) and raft.vote != message.sender:
        return
    if free and raft.log.is_up_to_date(message.last_index, message.last_term):
        raft.send(RequestVoteResponse(to=message.sender, term=message.term, pre_vote=message.pre_vote))
        if not message.pre_vote:
            raft.election_elapsed = 0
            raft.vote = message.sender
    else:
        _learn_commit(raft, message)
        raft.send(
            RequestVoteResponse(
                to=message.sender,
                reject=True,
                pre_vote=message.pre_vote,
                commit=raft.log.committed,
                commit_term=raft.log.term(raft.log.committed),
            )
        )


def _learn_commit(raft: Raft, message: RequestVote | RequestVoteResponse) -> bool:
    """Take over what a candidate or a voter knows to be committed, if the own log has it; whether that is news.

    Members that were demoted or removed by an entry that only they know to be committed may have longer logs than the
    voters that are left: they do not campaign, and grant nobody their votes. So the others learn here that those votes
    do not count any more. (raft-rs does the same: "commit by vote".)
    """
    return raft.role is not Role.LEADER and raft.log.maybe_commit(message.commit, message.commit_term)


def record_vote(raft: Raft, message: RequestVoteResponse) -> bool | None:
    """Count an answer: whether the election is won; None while it is open, or when the answer is not to the point.

    A pre-vote that is won goes on as an election at once; a lost one ends as a follower.
    """
    if _learn_commit(raft, message) and unapplied_membership_change(raft):
        raft.become_follower(raft.term, NO_NODE)
        return False
    if message.pre_vote is not (raft.role is Role.PRE_CANDIDATE):
        return None
    if message.pre_vote and not message.reject and message.term != raft.term + 1:
        return None  # it was told for a campaign that another one has overtaken
    raft.tracker.record_vote(message.sender, not message.reject)
    result = raft.tracker.tally()
    if result is VoteResult.PENDING:
        return None
    if result is VoteResult.LOST:
        # Also for a lost pre-vote the term stays: the voter's own may be higher, but then it came with it.
        raft.become_follower(raft.term, NO_NODE)
        return False
    if raft.role is Role.PRE_CANDIDATE:
        _request_votes(raft)
        return None
    return True
