"""RawNode: the core as a machine with an input side and an output side.

Put things in with ``step``, ``tick``, ``propose``, ``propose_membership``, ``transfer_leadership``, ``campaign`` and
``read_index``; then take one ``Ready`` and act on all of it. Taking it is accepting it: nothing is handed out twice.

What to do with a Ready, in this order where it matters:

1.  Send ``messages`` at any time. They rest on nothing that is not durable, so the leader's appends travel while its
    own write is under way (thesis 10.2.1).
2.  Make ``write`` durable, after all earlier ones; then take it over into the storage that the core reads, and call
    ``persisted``, which tells what may be sent now. Writes of an older term, or of entries replaced meanwhile, change
    nothing when they complete late.
3.  Apply ``committed`` in order, membership entries by ``apply_membership`` in their turn, and call ``applied``. Only
    durable entries are ever handed out, so that applied state is never ahead of the own log.
4.  Serve ``reads`` once their index is applied.
"""

from __future__ import annotations

import math
from collections import deque
from random import Random
from typing import NamedTuple

from replikv.errors import InternalError
from replikv.raft import leader, replication, transfer
from replikv.raft.core import Config, Raft
from replikv.raft.entries import NO_NODE, Entry, HardState
from replikv.raft.membership import Membership, MembershipChange
from replikv.raft.messages import Message
from replikv.raft.reads import ReadState
from replikv.raft.roles import Role
from replikv.raft.stable import StableStorage, Write

__all__ = ["RawNode", "Ready"]


class Ready(NamedTuple):
    """Everything that has to be done before the core can go further."""

    messages: tuple[Message, ...]
    write: Write | None
    """None when nothing has to be durable and nothing waits for it."""
    committed: tuple[Entry, ...]
    reads: tuple[ReadState, ...]


class RawNode:
    """One node of a Raft cluster, without any I/O."""

    def __init__(self, config: Config, storage: StableStorage, random: Random) -> None:
        self.raft = Raft(config, storage, random)
        # What was handed out last: the difference to what is now makes the next write.
        self._hard_state: HardState = self.raft.hard_state
        # The writes handed out and not completed, in order, each with the term and the end of the log as of then.
        self._writes: deque[tuple[Write, int, tuple[int, int]]] = deque()
        # Whether a membership was applied whose commit is not on its way to disk yet. Whoever it removed may be gone
        # before long: a restart that knows less would need its vote, or what it knows to be committed.
        self._change_unsaved = False
        # The last time that was told.
        self._told = -math.inf

    # -- input ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One tick of the clock has passed."""
        self.raft.tick()

    def step(self, message: Message) -> None:
        """A message has arrived."""
        self.raft.step(message)

    def campaign(self) -> None:
        """Try to become leader without waiting for the election timeout."""
        self.raft.campaign()

    def propose(self, data: bytes) -> int:
        """Append one entry; its index. Raises ProposalDroppedError when this node does not lead or has no room."""
        return self.raft.propose(data)

    def propose_membership(self, change: MembershipChange) -> int:
        """Append a membership change; its index.

        Raises ChangePendingError while another may be under way, InvalidChangeError when it makes no sense for the
        configuration in force, ProposalDroppedError as for any proposal. None of these enters the log.
        """
        return self.raft.propose_membership(change)

    def transfer_leadership(self, to: str) -> bool:
        """Hand leadership over, or ask the leader to. False when nothing will come of it: ``to`` is no other voter, or
        there is no leader to ask.

        It is given up after an election timeout; ``transferring`` tells. Until then the leader refuses proposals.
        """
        return self.raft.transfer_leadership(to)

    @property
    def transferring(self) -> str:
        """The node that this leader is handing over to; NO_NODE while it is not."""
        return self.raft.transferee

    def successor(self) -> str:
        """Whom this leader had best hand over to: the voter that lacks least; NO_NODE when none was heard of."""
        return transfer.successor(self.raft) if self.raft.role is Role.LEADER else NO_NODE

    def tell_time(self, now: float) -> None:
        """Say what time it is, in ticks of a monotonic clock; only ``Config.read_lease`` needs it.

        It holds for what is put in until the next ``ready``. Look at the clock *after* that has arrived, reads of this
        node and messages of others alike: what was asked before ``now`` may be answered under a lease that lasts
        beyond it, however long the process stands still in between. Raises InternalError when time goes back.
        """
        if now < self._told:
            raise InternalError(f"{self.raft.id}: the time went back from {self._told} to {now}")
        self.raft.now = self._told = now

    def read_index(self, context: int) -> bool:
        """Ask for a linearizable read position under the caller's number ``context``. False when there is no leader."""
        return self.raft.read_index(context)

    @property
    def commit_untold(self) -> bool:
        """Whether followers wait to be told a commit index; see ``Config.commit_rides_along``."""
        return self.raft.commit_untold

    def tell_commit(self) -> None:
        """Tell the commit index now, unless entries have carried it since."""
        if self.raft.commit_untold:
            replication.broadcast_append(self.raft)

    @property
    def snapshot_wanted(self) -> bool:
        """Whether a member waits for a snapshot that knows it: take one of the state as of now."""
        index = self.raft.snapshot_wanted_index
        return index > 0 and index > self.raft.log.snapshot().index

    def report_unreachable(self, node_id: str) -> None:
        """Messages to the node were lost, or its connection was."""
        if self.raft.role is Role.LEADER:
            replication.report_unreachable(self.raft, node_id)

    def report_snapshot(self, node_id: str, *, failed: bool) -> None:
        """What became of the snapshot that an InstallSnapshot asked to send."""
        if self.raft.role is Role.LEADER:
            replication.report_snapshot(self.raft, node_id, failed=failed)

    # -- output --------------------------------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether there is anything to do."""
        raft = self.raft
        return bool(
            raft.messages
            or raft.messages_after_append
            or raft.read_states
            or self._vote_changed()
            or self._change_unsaved
            or raft.log.has_next_unstable_entries()
            or raft.log.has_next_unstable_snapshot()
            or raft.log.has_next_committed_entries(allow_unstable=False)
        )

    def _vote_changed(self) -> bool:
        term, vote, _ = self._hard_state
        return self.raft.term != term or self.raft.vote != vote

    def ready(self) -> Ready:
        """Take everything there is to do."""
        raft = self.raft
        raft.now = None
        messages, raft.messages = tuple(raft.messages), []
        reads, raft.read_states = tuple(raft.read_states), []
        write = self._take_write()
        committed = raft.log.next_committed_entries(allow_unstable=False)
        if committed:
            raft.log.accept_applying(committed[-1].index, sum(entry.size for entry in committed), allow_unstable=False)
        return Ready(messages, write, tuple(committed), reads)

    def _take_write(self) -> Write | None:
        raft = self.raft
        vote_changed = self._vote_changed()
        if not (
            raft.messages_after_append
            or vote_changed
            or self._change_unsaved
            or raft.log.has_next_unstable_entries()
            or raft.log.has_next_unstable_snapshot()
        ):
            return None
        entries = tuple(raft.log.next_unstable_entries())
        snapshot = raft.log.next_unstable_snapshot()
        responses, raft.messages_after_append = tuple(raft.messages_after_append), []
        hard_state = raft.hard_state
        # A commit index alone is worth no sync, but for that of a membership: it is found again from the leader. It
        # rides along with what is.
        worth_it = bool(entries or snapshot or self._change_unsaved)
        self._change_unsaved = False
        if vote_changed or (worth_it and hard_state != self._hard_state):
            self._hard_state = hard_state
            write = Write(hard_state, entries, snapshot, responses)
        elif entries or snapshot or responses:
            write = Write(None, entries, snapshot, responses)
        else:
            return None
        raft.log.accept_unstable()
        self._writes.append((write, raft.term, raft.log.last_entry_id()))
        return write

    def persisted(self, write: Write) -> list[Message]:
        """The write, and all before it, are durable and in the storage; the messages that may be sent now.

        Raises InternalError for another write than the oldest one that was handed out.
        """
        raft = self.raft
        if not self._writes or self._writes[0][0] is not write:
            raise InternalError(f"{raft.id}: writes must be completed one by one, in the order they were handed out")
        _, term, last_entry_id = self._writes.popleft()
        if write.snapshot is not None:
            raft.log.stable_snapshot_to(write.snapshot.index)
        # An entry may be replaced by another leader's, and come back with a third, while the first write of it is still
        # under way: its completion then says nothing about what storage holds after the writes in between (ABA). Within
        # a term no entry comes back. A newer term is a write by itself, which vouches for all that was there with it.
        if term == raft.term:
            raft.log.stable_to(*last_entry_id)
        outgoing: list[Message] = []
        for response in write.responses:
            if response.to == raft.id:
                raft.step(response)
            else:
                outgoing.append(response)
        return outgoing

    def apply_membership(self, entry: Entry) -> Membership:
        """Apply a committed MEMBERSHIP entry; the configuration from now on."""
        self._change_unsaved = True
        return self.raft.apply_membership(entry)

    def applied(self, entries: tuple[Entry, ...] | list[Entry]) -> None:
        """These committed entries are applied: a first part, in order, of what ``ready`` has handed out."""
        if entries:
            self.raft.applied_to(entries[-1].index, sum(entry.size for entry in entries))
            leader.reduce_uncommitted(self.raft, list(entries))

    def installed(self, index: int) -> None:
        """The state of a received snapshot at ``index`` is in place of the applied state."""
        self.raft.applied_to(index, 0)
