"""Bugs of changes of the membership, joint configurations and learners."""

# ruff: noqa: ARG005 - a function in the place of another takes what that takes

from __future__ import annotations

import dataclasses

from replikv.raft import changer, leader, progress, reconfiguration
from replikv.raft.core import Raft
from replikv.raft.entries import HardState
from replikv.raft.membership import Membership, MembershipChange
from replikv.raft.progress import Tracker
from replikv.raft.quorum import committed_index, vote_result
from replikv.raft.stable import MemoryStorage
from replikv.testing.simulator.patching import Patch
from replikv.testing.simulator.planted.catalogue import bug

__all__: list[str] = []


@bug(seeds=30, changes=0.8, partitions=0.3, spares=2, peers=4, bit_flips=0)
def count_one_majority_in_a_joint_change(patch: Patch) -> None:
    """Commits in a joint configuration forget the outgoing voters (thesis 4.3)."""
    patch.set(progress, "joint_committed_index", lambda voters, outgoing, match: committed_index(voters, match))


@bug(seeds=60, depositions=1, changes=2, spares=2, peers=5, write_s=0.05, bit_flips=0)
def forget_the_outgoing_voters_in_elections(patch: Patch) -> None:
    """Whoever has the votes of the new half of a joint configuration has won (thesis 4.3)."""
    patch.set(progress, "joint_vote_result", lambda voters, outgoing, votes: vote_result(voters, votes))


@bug(seeds=30, changes=1, spares=2, crashes=0.5, snapshot_log_entries=8, peers=5, bit_flips=0)
def forget_the_outgoing_voters_at_restart(patch: Patch) -> None:
    """A peer that starts from a snapshot taken in a joint configuration knows the new half of it only."""

    def wrong(self: MemoryStorage) -> tuple[HardState, Membership]:
        hard_state, membership = right(self)
        if not membership.joint:
            return hard_state, membership
        left = membership.outgoing - membership.voters
        members = {one: record for one, record in membership.members.items() if one not in left}
        return hard_state, dataclasses.replace(
            membership, outgoing=frozenset(), learners_next=frozenset(), auto_leave=False, members=members
        )

    right = patch.set(MemoryStorage, "initial_state", wrong)


@bug(changes=0.8, spares=2, bit_flips=0)
def let_a_learners_ack_count(patch: Patch) -> None:
    """Whoever gets the log counts for its majority."""

    def wrong(self: progress.Tracker) -> int:
        matches = sorted((one.match for one in self.progress.values()), reverse=True)
        return matches[len(self.membership.voters) // 2] if matches else 0

    patch.set(progress.Tracker, "committed_index", wrong)


@bug(changes=4, spares=2, peers=5, write_s=0.05, bit_flips=0)
def let_a_second_change_in(patch: Patch) -> None:
    """The membership may be changed while another change is not applied yet (thesis 4.1)."""
    patch.set(reconfiguration, "check", lambda raft, change: None)


@bug(changes=4, spares=2, peers=5, depositions=0.5, write_s=0.05, bit_flips=0)
def change_before_the_first_commit_of_the_term(patch: Patch) -> None:
    """A new leader takes a change without knowing whether its log has one already (raft-dev, 2015; copycat#23)."""

    def wrong(self: Raft) -> None:
        right(self)
        self.pending_membership_index = 0

    right = patch.set(Raft, "become_leader", wrong)


@bug(changes=0.8, spares=2, bit_flips=0)
def change_several_voters_at_once(patch: Patch) -> None:
    """Any change takes the simple way, also one of several voters (thesis 4.3)."""

    def wrong(membership: Membership, change: MembershipChange, index: int) -> Membership:
        if membership.joint or not change.changes or change.only_updates:
            changed: Membership = right(membership, change, index)
            return changed
        after = changer._Sets(membership)
        after.take(change.changes)
        return after.membership(membership, change.changes, index)

    right = patch.set(changer, "apply_change", wrong)


@bug(seeds=30, changes=1.5, transfers=2, spares=2, peers=5, write_s=0.05, delay_s=0.02, bit_flips=0)
def leave_a_joint_configuration_at_once_or_never(patch: Patch) -> None:
    """Nobody leaves it but who leads when it is entered, and has no transfer under way (etcd#12136)."""

    def wrong(raft: Raft) -> None:
        if raft.membership_index == raft.log.applied:
            right(raft)

    right = patch.set(reconfiguration, "leave_if_due", wrong)


@bug(seeds=30, changes=0.8, spares=2, bit_flips=0)
def keep_counting_who_was_removed(patch: Patch) -> None:
    """A removed voter stays one for those who count (thesis 4.2)."""

    def wrong(self: Tracker, membership: Membership, next_index: int) -> None:
        removed = self.membership.voters - membership.ids
        right(self, dataclasses.replace(membership, voters=membership.voters | removed), next_index)

    right = patch.set(Tracker, "switch", wrong)


@bug(changes=0.8, spares=2, peers=3, bit_flips=0)
def lead_on_after_removal(patch: Patch) -> None:
    """A leader that is no voter any more neither hands over nor steps down (thesis 4.2.2)."""
    patch.set(reconfiguration, "_step_aside", lambda raft: None)
    patch.set(leader, "_still_leading", lambda raft: True)
