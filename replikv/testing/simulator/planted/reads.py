"""Bugs of linearizable reads, by ReadIndex and under a lease."""

# ruff: noqa: ARG001, ARG005 - a function in the place of another takes what that takes

from __future__ import annotations

import math

from replikv.raft import reading, replication
from replikv.raft.core import Raft
from replikv.raft.lease import ReadLease
from replikv.raft.roles import Role
from replikv.testing.simulator.patching import Patch
from replikv.testing.simulator.planted.catalogue import CALM, bug

__all__: list[str] = []


@bug(seeds=40, clients=8, think_s=0.1, crashes=0.5, partitions=0.5)
def answer_reads_before_the_first_commit(patch: Patch) -> None:
    """A new leader does not wait for an entry of its own term (thesis 6.4, step 1; etcd#7331)."""
    patch.set(replication, "committed_in_own_term", lambda raft: True)


@bug(partitions=0.5, clients=8)
def answer_reads_without_asking(patch: Patch) -> None:
    """A leader answers reads at once, though it may be none any more (thesis 6.4)."""
    patch.set(
        reading, "add_read", lambda raft, asker, context: reading._answer(raft, asker, context, raft.log.committed)
    )


@bug(CALM | {"peers": 3, "depositions": 0.3, "late": 0.1, "reads": 0.9, "clients": 8, "think_s": 0.1})
def answer_reads_at_the_index_of_their_answer(patch: Patch) -> None:
    """A follower serves a read as soon as it is asked, by what it knows to be committed itself (thesis 6.4)."""

    def wrong(self: Raft, context: int) -> bool:
        if self.role is Role.LEADER:
            reading.add_read(self, self.id, context)
        else:
            reading._answer(self, self.id, context, self.log.committed)
        return True

    patch.set(Raft, "read_index", wrong)


@bug(
    CALM | {"peers": 3, "depositions": 0.3, "late": 0.3, "drift": 0.3, "reads": 0.9, "clients": 8, "think_s": 0.1},
    seeds=100,
)
def confirm_reads_by_old_heartbeats(patch: Patch) -> None:
    """The answer to any heartbeat confirms all reads (etcd's TestReadOnlyDuplicateRequest)."""

    def wrong(raft: Raft, node_id: str, position: int) -> None:
        right(raft, node_id, raft.reads.position)

    right = patch.set(reading, "acknowledge", wrong)


@bug(
    CALM
    | {
        "peers": 5,
        "partitions": 1.5,
        "heartbeat_s": 0.1,
        "election_heartbeats": 10,
        "reads": 0.9,
        "clients": 8,
        "think_s": 0.1,
    },
    seeds=60,
)
def confirm_reads_by_one_answer(patch: Patch) -> None:
    """Whoever is answered by anybody takes himself for the leader (thesis 6.4, step 3)."""

    def wrong(raft: Raft) -> int:
        return max((position for node, position in raft.reads.acknowledged.items() if node != raft.id), default=0)

    patch.set(reading, "_confirmed_position", wrong)


@bug(CALM | {"peers": 3, "depositions": 0.3, "lease_reads": True, "reads": 0.9, "clients": 8, "think_s": 0.1})
def keep_the_lease_of_a_deposed_leader(patch: Patch) -> None:
    """A lease that was confirmed once does not end while nobody tells its leader (thesis 6.4.1; tikv#964)."""
    patch.set(ReadLease, "holds", lambda self, now: now is not None and self.expires > -math.inf)
