"""Storms find bugs: each of these was made somewhere once, is planted here, and breaks the invariant that it should.

A storm that does not notice a broken core would prove nothing of a right one. Each bug is looked for in a few seeds: it
is a failure of the storms, not of the core, when none of them finds it. Rarer ones (a lease that is kept too long, say)
have tests of their own, where each step is laid out by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from storms import STEPS, Storm

from replikv.raft import changer, elections, invariants, leader, progress, reading, reconfiguration, replication
from replikv.raft.core import Raft
from replikv.raft.entries import NO_NODE, Entry, HardState
from replikv.raft.lease import ReadLease
from replikv.raft.log import RaftLog
from replikv.raft.membership import Membership, MembershipChange
from replikv.raft.messages import AppendEntriesResponse, Message, RequestVote
from replikv.raft.node import RawNode
from replikv.raft.progress import Progress
from replikv.raft.quorum import VoteResult, committed_index
from replikv.raft.stable import MemoryStorage

Plant = Callable[[pytest.MonkeyPatch], None]
SEEDS = 300
"""Most bugs show within ten seeds, the rarest in one of a hundred."""


def electing_by_one_vote(patch: pytest.MonkeyPatch) -> None:
    """Whoever has one vote has won (5.2)."""

    def wrong(voters: Any, outgoing: Any, votes: Any) -> VoteResult:
        return VoteResult.WON if any(votes.get(voter) for voter in voters) else VoteResult.PENDING

    patch.setattr(progress, "joint_vote_result", wrong)


def counting_one_half(patch: pytest.MonkeyPatch) -> None:
    """Commits in a joint configuration forget the outgoing voters (thesis 4.3)."""
    patch.setattr(progress, "joint_committed_index", lambda voters, outgoing, match: committed_index(voters, match))


def counting_half(patch: pytest.MonkeyPatch) -> None:
    """Half of the voters are a majority (openraft#1802)."""

    def wrong(voters: Any, outgoing: Any, match: Any) -> int:
        acknowledged = sorted(
            (match(voter) if callable(match) else match.get(voter, 0) for voter in voters), reverse=True
        )
        return int(acknowledged[max(len(acknowledged) // 2 - 1, 0)])

    patch.setattr(progress, "joint_committed_index", wrong)


def voting_without_looking_at_the_log(patch: pytest.MonkeyPatch) -> None:
    """Anybody's log is good enough (paper 5.4.1)."""
    patch.setattr(RaftLog, "is_up_to_date", lambda self, index, term: True)


def voting_twice(patch: pytest.MonkeyPatch) -> None:
    """A vote is forgotten as soon as somebody else asks (5.2)."""
    right = elections.handle_request

    def wrong(raft: Raft, message: RequestVote) -> None:
        if not message.pre_vote:
            raft.vote = raft.leader = NO_NODE
        right(raft, message)

    patch.setattr(elections, "handle_request", wrong)


def forgetting_the_vote(patch: pytest.MonkeyPatch) -> None:
    """A restart keeps the term and loses the vote (PySyncObj)."""
    right = MemoryStorage.initial_state

    def wrong(self: MemoryStorage) -> tuple[HardState, Membership]:
        hard_state, membership = right(self)
        return hard_state._replace(vote=NO_NODE), membership

    patch.setattr(MemoryStorage, "initial_state", wrong)


def answering_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    """Votes and acknowledgements leave with everything else (figure 2)."""
    right = Raft.send

    def wrong(self: Raft, message: Message) -> None:
        right(self, message)
        for waiting in [waiting for waiting in self.messages_after_append if waiting.to != self.id]:
            self.messages_after_append.remove(waiting)
            self.messages.append(waiting)

    patch.setattr(Raft, "send", wrong)


def saving_no_term(patch: pytest.MonkeyPatch) -> None:
    """Term and vote are saved with the next entries only."""
    patch.setattr(RawNode, "_vote_changed", lambda self: False)


def appending_anywhere(patch: pytest.MonkeyPatch) -> None:
    """A follower takes entries without looking at what is before them (5.3)."""
    right = RaftLog.maybe_append

    def wrong(self: RaftLog, index: int, term: int, entries: Any, committed: int) -> int | None:
        if index <= self.last_index() and index >= self.first_index() - 1:
            term = self.term(index)
        return right(self, index, term, entries, committed)

    patch.setattr(RaftLog, "maybe_append", wrong)


def taking_a_rejection_for_an_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    """The leader looks at the index of an answer and not at what it says."""

    def wrong(raft: Raft, known: Progress, message: AppendEntriesResponse) -> None:
        leader._handle_acknowledgement(raft, known, message)

    patch.setattr(leader, "_handle_reject", wrong)


def committing_backwards(patch: pytest.MonkeyPatch) -> None:
    """A follower takes over any commit index it is told (nebula#2405)."""

    def wrong(self: RaftLog, index: int) -> None:
        self.committed = max(min(index, self.last_index()), self.applying)

    patch.setattr(RaftLog, "commit_to", wrong)


def giving_in_to_a_follower(patch: pytest.MonkeyPatch) -> None:
    """A leader whose append is rejected drops its own last entry (5.3: never)."""
    right = leader._handle_reject

    def wrong(raft: Raft, known: Progress, message: AppendEntriesResponse) -> None:
        unstable = raft.log.unstable
        if unstable.entries and raft.log.committed < raft.log.last_index():
            unstable.entries.pop()
            unstable.offset_in_progress = min(unstable.offset_in_progress, unstable.offset + len(unstable.entries))
        right(raft, known, message)

    patch.setattr(leader, "_handle_reject", wrong)


def letting_learners_campaign(patch: pytest.MonkeyPatch) -> None:
    """Whoever is a member may."""
    patch.setattr(elections, "promotable", lambda raft: raft.id in raft.tracker.progress)


def changing_several_voters_at_once(patch: pytest.MonkeyPatch) -> None:
    """Any change takes the simple way (thesis 4.3; the bug of 2015)."""

    def wrong(membership: Membership, change: MembershipChange, index: int) -> Membership:
        if membership.joint or not change.changes or change.only_updates:
            return right(membership, change, index)
        after = changer._Sets(membership)
        after.take(change.changes)
        return after.membership(membership, change.changes, index)

    right = changer.apply_change
    patch.setattr(changer, "apply_change", wrong)


def changing_while_a_change_is_under_way(patch: pytest.MonkeyPatch) -> None:
    """A change is taken without a look at what is not applied yet (thesis 4.1)."""
    patch.setattr(reconfiguration, "check", lambda raft, change: None)


def taking_back_an_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    """An acknowledgement that comes late counts instead of a newer one (PySyncObj#167)."""
    right = Progress.maybe_update

    def wrong(self: Progress, index: int) -> bool:
        self.match = min(self.match, index)
        return right(self, index)

    patch.setattr(Progress, "maybe_update", wrong)


def missing_a_change(patch: pytest.MonkeyPatch) -> None:
    """One node applies no removals."""
    right = reconfiguration.apply

    def wrong(raft: Raft, entry: Entry) -> Membership:
        if raft.id == "2" and b"remove" in entry.data:
            raft.membership_index = entry.index
            return raft.membership
        return right(raft, entry)

    patch.setattr(reconfiguration, "apply", wrong)


def reading_without_asking(patch: pytest.MonkeyPatch) -> None:
    """A leader answers at once (thesis 6.4)."""
    patch.setattr(
        reading, "add_read", lambda raft, asker, context: reading._answer(raft, asker, context, raft.log.committed)
    )


def reading_before_the_first_commit(patch: pytest.MonkeyPatch) -> None:
    """A new leader does not wait for an entry of its own term (thesis 6.4, step 1; etcd#7331)."""
    patch.setattr(replication, "committed_in_own_term", lambda raft: True)


def believing_late_answers(patch: pytest.MonkeyPatch) -> None:
    """The answer to any heartbeat confirms all reads (TestReadOnlyDuplicateRequest)."""
    right = reading.acknowledge
    patch.setattr(reading, "acknowledge", lambda raft, node_id, position: right(raft, node_id, raft.reads.position))


def leasing_in_ticks(patch: pytest.MonkeyPatch) -> None:
    """The lease stands still while the process does (tikv#964)."""
    patch.setattr(ReadLease, "holds", lambda self, now: now is not None and self.expires > 0)


PLANTS: list[tuple[Plant, str, int]] = [
    (electing_by_one_vote, "election safety", 0),
    (voting_twice, "one vote per term", 1),
    (giving_in_to_a_follower, "leader append-only", 0),
    (appending_anywhere, "log matching", 1),
    (voting_without_looking_at_the_log, "leader completeness", 4),
    (counting_one_half, "leader completeness", 132),
    (counting_half, "state machine safety", 6),
    (committing_backwards, "monotonic positions", 1),
    (taking_back_an_acknowledgement, "monotonic positions", 0),
    (answering_before_the_sync, "durable before told", 0),
    (saving_no_term, "durable before told", 0),
    (forgetting_the_vote, "durable before told", 0),
    (taking_a_rejection_for_an_acknowledgement, "true acknowledgements", 0),
    (missing_a_change, "one configuration", 4),
    (changing_while_a_change_is_under_way, "one change at a time", 0),
    (changing_several_voters_at_once, "quorum overlap", 4),
    (letting_learners_campaign, "voters and learners", 7),
    (reading_without_asking, "linearizable reads", 1),
    (reading_before_the_first_commit, "linearizable reads", 49),
    (believing_late_answers, "linearizable reads", 1),
    (leasing_in_ticks, "linearizable reads", 1),
]
"""The bug, the invariant that it breaks, and the seed to begin with: where it last showed, which saves time."""


@pytest.mark.parametrize(("plant", "invariant", "first"), PLANTS, ids=[plant.__name__ for plant, *_ in PLANTS])
def test_a_planted_bug_is_found(plant: Plant, invariant: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storm breaks the invariant that is meant to notice it."""
    plant(monkeypatch)
    noticed = []
    for seed in range(first, first + SEEDS):
        try:
            Storm(seed).run(STEPS)
        except Exception as exc:  # some bugs are noticed by the core itself, in one storm or another
            if str(exc).startswith(f"{invariant}: "):
                return
            noticed.append(f"{seed}: {exc!r}")
    pytest.fail(f"no storm in {SEEDS} broke {invariant}; noticed otherwise: {noticed[:10]}")


def test_each_invariant_has_a_bug_that_breaks_it() -> None:
    """Those that the table of invariants.py tells."""
    _, table, _ = re.split(r"^=+  =+$", invariants.__doc__ or "", flags=re.MULTILINE)[:3]
    told = {line.partition("  ")[0] for line in table.strip().splitlines() if not line.startswith(" ")}

    assert told == {invariant for _, invariant, _ in PLANTS}
