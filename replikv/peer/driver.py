"""The driver: the one task that owns consensus.

Everybody else puts things into its inbox and wakes it. Each turn takes all that has arrived (finished writes, frames,
ticks), steps the core, hands over the commands that wait, packed into as few entries as they fit, takes what the core
wants done, and applies what is committed. So consensus is paid per turn, not per command. A turn never awaits: nothing
sees the state between two steps, and no cancellation can end one half-way.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence

import structlog
import trio

from replikv.errors import ClusterClosedError, InternalError, UnavailableError
from replikv.machine.replica import Replica
from replikv.peer.admission import Admission
from replikv.peer.applier import Applier
from replikv.peer.auditor import Auditor
from replikv.peer.barriers import Barriers
from replikv.peer.governor import Governor
from replikv.peer.handover import Handover
from replikv.peer.lease_clock import LeaseClock
from replikv.peer.leasing import Leasing
from replikv.peer.lessee import Lessee
from replikv.peer.lessor import Lessor
from replikv.peer.persister import Persister
from replikv.peer.proposals import Proposals
from replikv.peer.protocol import (
    Digest,
    Forwarded,
    LeaseAnswers,
    LeaseQuestions,
    MalformedFrameError,
    Moved,
    Refusal,
    SnapshotHeader,
    decode,
    encode_message,
)
from replikv.peer.snapshot_receiver import ReceivedSnapshot
from replikv.peer.snapshots import SnapshotTaker, compactable_index, keepable_index
from replikv.peer.steward import Steward
from replikv.raft.entries import NO_NODE, Entry, EntryKind, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.messages import AppendEntries, InstallSnapshot, Message
from replikv.raft.node import RawNode
from replikv.raft.roles import Role
from replikv.settings import Settings
from replikv.storage.base import Storage
from replikv.transport.base import Transport

__all__ = ["Driver"]

CHANGES_REMEMBERED = 16
"""Changes of the membership whose place in the log is remembered: one is under way at a time."""

TRIMMED_PER_TICK = 500
"""Changes below the history floor that are freed per tick, beside those that every command frees: about 1 ms."""


class Driver:
    """Consensus, storage, transport and replica of one peer, turn by turn."""

    def __init__(
        self,
        *,
        node_id: str,
        settings: Settings,
        node: RawNode,
        storage: Storage,
        transport: Transport,
        replica: Replica,
        admission: Admission,
        proposals: Proposals,
        barriers: Barriers,
        lessee: Lessee,
        listeners: list[Callable[[], None]],
        send_snapshot: Callable[[str, int, int], None],
        membership_applied: Callable[[Membership], None],
        moved: Callable[[Moved], None],
        randomness: random.Random,
    ) -> None:
        self.node_id = node_id
        self.settings = settings
        self.node = node
        self.replica = replica
        self.admission = admission
        self.proposals = proposals
        self.barriers = barriers
        self.steward = Steward(node, admission, settings)
        self.governor = Governor(settings, node, replica, admission)
        self.auditor = Auditor(node_id, replica, admission, transport)
        lessor = Lessor(replica, settings.election_timeout_s, 1 << 63 | randomness.getrandbits(62))
        self.leasing = Leasing(node, transport, lessee, lessor)
        self._handover = Handover(settings, node, transport, replica, proposals, lessor, randomness.getrandbits(62))
        self.persister = Persister(storage, self.wake, settings.shutdown_timeout_s)
        self.snapshot_lock = trio.Lock()
        self.taker = SnapshotTaker(
            storage, settings, self.snapshot_lock, self._snapshot_taken, self._tell_snapshot_ended
        )
        snapshot = storage.image.snapshot()
        self.applier = Applier(replica, snapshot.index, snapshot.term, self.proposals.applied, self._apply_membership)
        self.listeners = listeners
        """Called after commands were applied or a snapshot was installed."""
        self.leader_changed = trio.Event()
        """Set, and replaced by a new one, whenever the leader or the term has changed."""
        self.membership_changed = trio.Event()
        """Set, and replaced by a new one, whenever a change of the membership was applied, or the leader or the term.
        """
        self.applied_changes: deque[tuple[int, int]] = deque(maxlen=CHANGES_REMEMBERED)
        """(index, term) of the last changes of the membership that were applied."""
        self.snapshot_ended = trio.Event()
        """Set, and replaced by a new one, whenever a snapshot was taken or received, or came to nothing."""
        self.snapshot_wanted = False
        """Whether to take a snapshot at the next chance, due or not."""
        self.ended = False
        """Whether there are no more turns."""
        self.ticks = 0
        self._storage = storage
        self._image = storage.image
        self._transport = transport
        self._send_snapshot = send_snapshot
        self._membership_applied = membership_applied
        self._moved = moved
        self._clock = LeaseClock(settings.heartbeat_interval_s)
        self._woken = trio.Event()
        # -- the inbox --
        self._frames: list[tuple[str, bytes]] = []
        self._received: list[ReceivedSnapshot] = []
        self._ticks_due = 0
        # -- under way --
        # The snapshot that the core has taken and that is on its way into the log.
        self._installing: ReceivedSnapshot | None = None
        # What was applied since the last snapshot was begun.
        self._log_bytes = 0
        self._log_entries = 0
        # (term, leader) as of the last turn.
        self._route = (node.raft.term, node.raft.leader)
        self._role = node.raft.role
        self._log = structlog.get_logger(component="driver").bind(node=node_id, term=node.raft.term)

    # -- the inbox -----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have a turn soon."""
        self._woken.set()

    def receive(self, sender: str, frame: bytes) -> None:
        """A frame has arrived."""
        self._frames.append((sender, frame))
        self._woken.set()

    def tick(self) -> None:
        """A heartbeat interval has passed."""
        self._ticks_due = 1  # after a pause, one tick: time that nobody could use must not start an election
        self._woken.set()

    def install(self, received: ReceivedSnapshot) -> None:
        """A snapshot was received and is durable."""
        self._received.append(received)
        self._woken.set()

    def connected(self, node_id: str) -> None:
        """Frames to the node get through again: what was lost before goes again."""
        if node_id == self.node.raft.leader:
            self._hand_all_again()
        self._woken.set()

    def disconnected(self, node_id: str) -> None:
        """Frames to the node may have been lost."""
        self.node.report_unreachable(node_id)
        self._woken.set()

    def snapshot_sent(self, node_id: str, failed: bool) -> None:
        """An attempt to send a snapshot is over."""
        self.node.report_snapshot(node_id, failed=failed)
        self._woken.set()

    def deadline(self) -> float:
        """When an operation that begins now has to be answered, at the latest.

        Ticks look at deadlines, so this is one tick early: the caller is told within ``request_timeout_s``.
        """
        return trio.current_time() + self.settings.request_timeout_s - self.settings.heartbeat_interval_s

    # -- turns ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn after turn until cancelled. Raises InternalError when an invariant breaks."""
        while True:
            await self._woken.wait()
            if self.node.commit_untold:
                # Those who were answered are about to send more: what they send takes the commit index along.
                await trio.lowlevel.checkpoint()
            if trio.current_effective_deadline() == -math.inf:
                await trio.lowlevel.checkpoint()  # cancelled, and so is the transport: no turn without it
            self._woken = trio.Event()
            self._turn()

    def end(self) -> None:
        """There are no more turns: wake whoever waits for what they would bring."""
        self.ended = True
        self.leader_changed.set()
        self.membership_changed.set()
        self.snapshot_ended.set()

    def _turn(self) -> None:
        node = self.node
        raft = node.raft
        commit_untold = raft.commit_untold
        if self.settings.lease_reads and self.admission.promises_alike:
            # Everything that is taken in this turn has arrived before this look at the clock.
            node.tell_time(self._clock.now())
        if self._frames:
            self._take_frames()
        if self._received:
            self._take_received_snapshots()
        if self._ticks_due:
            self._ticks_due = 0
            self._tick()
        self._note_route()
        if raft.role is Role.LEADER:
            self.governor.look(self.ticks)
        self._handover.hand_over()
        if commit_untold:
            node.tell_commit()
        self._begin_reads()
        self._work()
        self._note_route()
        self._apply()
        self._begin_snapshot()

    def _take_frames(self) -> None:
        frames, self._frames = self._frames, []
        heard = self.steward.heard
        for sender, frame in frames:
            heard[sender] = self.ticks
            try:
                content = decode(frame, sender, self.node_id)
            except MalformedFrameError as exc:
                self._log.warning("malformed frame", sender=sender, reason=str(exc))
                continue
            if isinstance(content, Message):
                self.node.step(content)
            elif isinstance(content, Forwarded):
                self._handover.take_forwarded(sender, content)
            elif isinstance(content, Refusal):
                self._handover.take_refusal(content)
            elif isinstance(content, LeaseQuestions | LeaseAnswers):
                self.leasing.take(sender, content)
            elif isinstance(content, Moved):
                self._moved(content)
            elif isinstance(content, Digest):
                self.auditor.take(sender, content)
            elif isinstance(content, SnapshotHeader):
                self._log.warning("malformed frame", sender=sender, reason="a snapshot belongs on a channel")

    def _tick(self) -> None:
        self.ticks += 1
        self.node.tick()
        now = trio.current_time()
        self.proposals.expire(now, self._unavailable, self._why_unanswered)
        self.barriers.expire(now, self._unanswered)
        self.leasing.lessee.expire(now, self._unasked)
        election_ticks = self.settings.election_ticks
        self.proposals.hand_overdue_again(self.ticks - 2 * election_ticks)
        self.barriers.give_up_rounds(self.ticks - max(2, election_ticks // 2))
        self.leasing.lessee.tick(self.ticks, election_ticks)
        self._handover.tick(self.ticks)
        if self.node.raft.role is Role.LEADER:
            self.steward.tick(self.ticks)
            self.leasing.lessor.tick(now, may_end=self.applier.term == self.node.raft.term)
            if self.persister.full:
                self.node.transfer_leadership(self.node.successor())  # one with room can go on
        self.auditor.tick()
        self.replica.trim(TRIMMED_PER_TICK)

    def _note_route(self) -> None:
        raft = self.node.raft
        route = (raft.term, raft.leader)
        if route == self._route and raft.role is self._role:
            return
        self._log = self._log.bind(term=raft.term)
        if raft.role is not self._role and Role.LEADER in (raft.role, self._role):
            self._log.info("leadership", role=str(raft.role))
        elif raft.leader not in (NO_NODE, self.node_id):
            self._log.info("leader", leader=raft.leader)
        self._role = raft.role
        if route != self._route:
            self._route = route
            self._handover.begin_anew()
            self.leasing.lessor.begin_anew()
            self._hand_all_again()
            changed, self.leader_changed = self.leader_changed, trio.Event()
            changed.set()
            self._tell_membership_changed()

    def _hand_all_again(self) -> None:
        self.proposals.hand_all_again()
        self.barriers.give_up_rounds()
        self.leasing.lessee.ask_again()
        self._handover.forget_forwarded()

    # -- reads ---------------------------------------------------------------------------------------------------------

    def _begin_reads(self) -> None:
        if self.node.raft.leader == NO_NODE:
            return
        context = self.barriers.begin_round(self.ticks)
        if context is not None:
            self.node.read_index(context)
        self.leasing.ask(self.ticks)

    # -- what the core wants done --------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Do what the core wants done, until it wants nothing more."""
        node, persister = self.node, self.persister
        if persister.completed:
            self._take_completed()
        while node.has_ready():
            ready = node.ready()
            for message in ready.messages:
                self._send(message)
            for read in ready.reads:
                self.barriers.confirm(read.context, read.index)
                self.leasing.lessor.confirm(read.context, read.index)
            if ready.committed:
                self.applier.add(ready.committed)
            if ready.write is not None:
                self._note_bindings(ready.write.entries)
                persister.submit(ready.write)
            if persister.completed:
                self._take_completed()

    def _take_completed(self) -> None:
        completed, self.persister.completed = self.persister.completed, []
        for write in completed:
            self._image.apply(write)
            outgoing = self.node.persisted(write)
            if write.snapshot is not None:
                self._finish_install(write.snapshot)
            for message in outgoing:
                self._send(message)

    def _send(self, message: Message) -> None:
        if isinstance(message, InstallSnapshot):
            self._send_snapshot(message.to, message.term, message.snapshot.index)
        elif not self._transport.send(message.to, encode_message(message)) and isinstance(message, AppendEntries):
            self.node.report_unreachable(message.to)

    # -- applying ------------------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        if self.applier.behind:
            done = self.applier.apply(trio.current_time() + self.settings.apply_slice_s, trio.current_time)
            self.node.applied(done)
            self.admission.applied_index = self.applier.index
            if self.proposals.crowded:
                self.proposals.crowded = False
                self._handover.hold()
            self._log_bytes += sum(entry.size for entry in done)
            self._log_entries += len(done)
            for listener in self.listeners:
                listener()
            if self.applier.behind or self.node.has_ready():
                self._woken.set()
        if self.node.raft.commit_untold:
            self._woken.set()
        self.barriers.release(self.applier.index)
        self.leasing.answer(self.applier.index)

    def _apply_membership(self, entry: Entry) -> None:
        self._set_membership(self.node.apply_membership(entry))
        self.applied_changes.append((entry.index, entry.term))
        self._log.debug("membership", index=entry.index)

    def _note_bindings(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.kind == EntryKind.MEMBERSHIP:
                self.admission.note(entry)

    def _set_membership(self, membership: Membership) -> None:
        self.admission.membership = membership
        heard = self.steward.heard
        for node_id in heard.keys() - membership.ids:
            del heard[node_id]
        self._membership_applied(membership)
        self._tell_membership_changed()

    def _tell_membership_changed(self) -> None:
        changed, self.membership_changed = self.membership_changed, trio.Event()
        changed.set()

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def _begin_snapshot(self) -> None:
        if not self.applier.at_boundary or self.taker.busy or self._installing is not None:
            return
        if self.snapshot_wanted or self.node.snapshot_wanted or self.taker.due(self._log_bytes, self._log_entries):
            self.snapshot_wanted = False
            self._log_bytes = self._log_entries = 0
            metadata = SnapshotMetadata(self.applier.index, self.applier.term, self.admission.membership)
            self.taker.begin(metadata, self.replica.snapshot(breaths=True))

    async def take_snapshot(self, index: int) -> None:
        """Return when there is a durable snapshot at ``index`` or later. Cancelling does not undo it.

        Raises StorageError when there is no room, ClusterClosedError when the driver has ended.
        """
        while self._image.snapshot().index < index:
            if self.ended:
                raise ClusterClosedError(f"{self.node_id} was closed before the snapshot was taken")
            self.snapshot_wanted = True
            self.wake()
            await self.snapshot_ended.wait()
            if self.taker.failure is not None:
                raise self.taker.failure

    def restored(self) -> None:
        """The replica was rebuilt from the newest snapshot: commands of ours that came with it are answered."""
        self.proposals.find_in(self.replica.sessions)
        for listener in self.listeners:
            listener()

    def _snapshot_taken(self, metadata: SnapshotMetadata) -> None:
        if metadata.index <= self._image.snapshot().index:
            return  # one that was received meanwhile is newer
        self._image.record_snapshot(metadata)
        index = self._needed_by_followers(compactable_index(self._image, self.settings))
        if index >= self._image.first_index():
            self._image.compact(index)
            self.persister.release(index)

    def _needed_by_followers(self, index: int) -> int:
        """Up to where the log may go, ``index`` at the most, when followers that are there still need what comes next:
        who is being sent a snapshot has to find the log where that ends. Bounded by ``settings.catch_up_log_bytes``.
        """
        raft = self.node.raft
        if raft.role is not Role.LEADER:
            return index
        lately = self.ticks - self.settings.election_ticks
        needed = [
            max(progress.match, progress.pending_snapshot)
            for node_id, progress in raft.tracker.progress.items()
            if node_id != self.node_id and self.steward.heard.get(node_id, 0) >= lately
        ]
        return keepable_index(self._image, min(needed, default=index), index, self.settings)

    def _tell_snapshot_ended(self) -> None:
        ended, self.snapshot_ended = self.snapshot_ended, trio.Event()
        ended.set()

    def _take_received_snapshots(self) -> None:
        received, self._received = self._received, []
        for snapshot in received:
            metadata = snapshot.metadata
            self.node.step(
                InstallSnapshot(to=self.node_id, sender=snapshot.sender, term=snapshot.term, snapshot=metadata)
            )
            if self.node.raft.log.unstable.snapshot == metadata and self._installing is None:
                self._installing = snapshot
            else:
                snapshot.done.set()  # the log had caught up meanwhile

    def _finish_install(self, metadata: SnapshotMetadata) -> None:
        installing, self._installing = self._installing, None
        if installing is None or installing.restorer is None or installing.metadata != metadata:
            raise InternalError(f"a snapshot at {metadata.index} is in the log, but its state is not at hand")
        installing.restorer.finish()
        self.applier.installed(metadata.index, metadata.term)
        self.admission.applied_index = metadata.index
        self.node.installed(metadata.index)
        self._set_membership(metadata.membership)
        self._log_bytes = self._log_entries = 0
        self.proposals.find_in(self.replica.sessions)
        self.persister.release(metadata.index)
        for listener in self.listeners:
            listener()
        self._tell_snapshot_ended()
        installing.done.set()
        self._log.info("snapshot installed", index=metadata.index, sender=installing.sender)

    # -- why not -------------------------------------------------------------------------------------------------------

    def _unavailable(self) -> Exception:
        return UnavailableError(
            f"not applied within {self.settings.request_timeout_s} s: {self.why()};"
            " nothing was changed, so it is safe to try again"
        )

    def _unanswered(self) -> Exception:
        return UnavailableError(
            f"no linearizable read within {self.settings.request_timeout_s} s: {self.why()};"
            " this process's replica can still be read without await"
        )

    def _unasked(self) -> Exception:
        return UnavailableError(
            f"no answer about a lease within {self.settings.request_timeout_s} s: {self.why()};"
            " it may have been kept alive, and it is safe to try again"
        )

    def _why_unanswered(self) -> str:
        return f"no answer within {self.settings.request_timeout_s} s: {self.why()}"

    def disk_room(self) -> tuple[int | None, int]:
        """Bytes free on the disk, None if that is not known; and what the log and a snapshot will take next."""
        return self._storage.free_bytes(), 2 * self.settings.wal_segment_bytes + self.taker.last_bytes

    def why(self) -> str:
        """Why nothing gets done, as far as this peer knows."""
        missing = self.missing()
        raft = self.node.raft
        voters = self.admission.membership.voters
        absent = f"{len(missing)} of {len(voters)} voters cannot be reached from {self.node_id}: {', '.join(missing)}"
        if self.persister.full:
            return f"the disk of {self.node_id} is full"
        if raft.leader == NO_NODE:
            return f"no leader; {absent}" if missing else "no leader yet: an election is under way"
        if missing:
            return f"{raft.leader} leads, as far as {self.node_id} knows; {absent}"
        return f"{raft.leader} leads and every voter is connected: the cluster is slower than the load"

    def missing(self) -> list[str]:
        """The voters that this peer has no connection to, or has not heard where it should have.

        Without a leader everybody answers votes, and those are asked for at least every two election timeouts; a leader
        is answered at every heartbeat. One follower of a leader does not hear of another.
        """
        statistics = self._transport.statistics()
        following = self.node.raft.leader not in (NO_NODE, self.node_id)
        silent_before = self.ticks - 2 * self.settings.election_ticks
        absent = []
        for node_id in sorted(self.admission.membership.voters - {self.node_id}):
            connected = node_id in statistics and bool(statistics[node_id]["connected"])
            silent = not following and self.steward.heard.get(node_id, 0) < silent_before
            if silent or not connected:
                absent.append(node_id)
        return absent
