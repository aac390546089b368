"""A cluster of cores in bad weather: a pure function of a seed.

Messages are lost, repeated and overtaken; links are cut; disks and state machines lag; nodes crash with part of their
writes on disk, stop for a while, and start again; members change and leadership is handed over in between. Every step
is held to the invariants, every read to what was committed when it was asked for. Then the sky clears, and the cluster
has to elect, commit and agree again.

``python tests/raft/storms.py SEED [STEPS]`` runs one of them, and tells its last steps.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from random import Random
from typing import Any

from network import voters
from restartable import Node, State

from replikv.raft.entries import NO_NODE, EntryKind, SnapshotMetadata
from replikv.raft.invariants import Invariants
from replikv.raft.membership import ChangeKind, MemberChange, Membership, MembershipChange, Transition
from replikv.raft.messages import HeartbeatResponse, InstallSnapshot, Message, RequestVote
from replikv.raft.refusals import ProposalDroppedError
from replikv.raft.roles import Role

NODES = "12345"
STEPS = 400
"""Enough for some elections, changes and crashes; most of what goes wrong does so in few steps."""

TRACE_LINES = 60


class Storm:
    """The weather, and who is out in it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.lease = random.random() < 0.4
        config = {
            "pre_vote": random.random() < 0.6,
            "check_quorum": self.lease or random.random() < 0.6,
            "read_lease": self.lease,
            "message_bytes_max": random.choice([None, 60, 400]),
            "inflight_messages_max": random.choice([2, 256]),
            "applying_bytes_max": random.choice([None, 100]),
            "commit_rides_along": random.random() < 0.5,
            "uncommitted_bytes_max": random.choice([None, 200]),
            "election_ticks": random.choice([4, 8]),
        }
        self.config = config
        first = voters(*NODES[: random.choice([1, 2, 3, 3, 3])])
        self.nodes = {node_id: Node(node_id, first, config, random) for node_id in NODES}
        self.invariants = Invariants()
        self.now = 0
        self.air: list[Message] = []
        self.cut: set[tuple[str, str]] = set()
        # Index -> the state there, of every snapshot that was taken.
        self.snapshots: dict[int, State] = {}
        # The highest index that any node knew to be committed.
        self.committed = 0
        # What was seen of what a storm is for.
        self.seen: collections.Counter[str] = collections.Counter()
        self.trace: collections.deque[object] = collections.deque(maxlen=TRACE_LINES)
        self.loss = random.choice([0.0, 0.02, 0.1])
        self.repeat = random.choice([0.0, 0.05])
        self.ordered = random.random() < 0.3
        self._number = 0
        self._actions, self._weights = zip(
            *(
                (self.deliver, 50),
                (self.tick, 25 if self.lease else 14),
                (self.write, 30),
                (self.apply, 20),
                (self.propose, 14),
                (self.read, 8),
                (self.change, 7),
                (self.transfer, 2),
                (self.crash, 2.5),
                (self.snapshot, 6),
                (self.weather, 2),
                (self.stop, 1),
                (self.lull, 3),
                (self.depose, 3),
                (self.rift, 2),
                (self.campaign, 1),
                (self.lose_connection, 1),
            ),
            strict=True,
        )

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """The storm, and then the calm. Raises whatever breaks, with the last steps in its notes."""
        try:
            for node in self.nodes.values():
                self.invariants.observe(node.node.raft)
            for action in self.random.choices(self._actions, self._weights, k=steps):
                action()
            self.calm()
        except BaseException as exc:
            exc.add_note("\n".join([f"seed {self.seed}, the last steps:", *map(str, self.trace)]))
            raise

    def calm(self) -> None:
        """Nothing is lost any more: somebody leads, commits, and all members agree."""
        self.trace.append("calm")
        self.cut.clear()
        for node in self.nodes.values():
            node.stopped_until = 0
        # Whoever sends a snapshot learns sooner or later that it was lost.
        for node in self.nodes.values():
            for to in NODES:
                node.node.report_snapshot(to, failed=True)
        self.loss = self.repeat = 0.0
        self.ordered = True
        proposed = 0
        for round_ in range(400):
            self.now += 1
            newest = max((node.node.raft for node in self.nodes.values()), key=lambda raft: raft.membership_index)
            members = newest.membership.ids
            known = any(
                node.node.raft.role is Role.LEADER and node.node.raft.membership_index == newest.membership_index
                for node in self.nodes.values()
            )
            for node in self.nodes.values():
                # Who is no member any more may not know it, and campaigns for ever where nobody sticks to a leader. But
                # until a leader knows it, the others may need him: his newer term unseats one that nobody answers.
                if node.id in members or self.config["check_quorum"] or not known:
                    self._time(node)
                    node.node.tick()
                    self._take(node)
            self._settle()
            leaders = [
                node for node in self.nodes.values() if node.id in members and node.node.raft.role is Role.LEADER
            ]
            if round_ > 50 and leaders and not proposed:
                leader = max(leaders, key=lambda node: node.node.raft.term)
                try:
                    proposed = leader.node.propose(b"calm")
                except ProposalDroppedError:
                    continue
                self._take(leader)
                self._settle()
            if leaders and any(leader.node.snapshot_wanted for leader in leaders):
                for leader in leaders:
                    self._snapshot(leader, compact=False)
            if proposed and self._agreed(members, proposed):
                return
        states = [
            (node.id, node.node.raft.role, node.node.raft.term, node.node.raft.log) for node in self.nodes.values()
        ]
        raise AssertionError(f"the cluster does not recover: {newest.membership} {states}")

    def _agreed(self, members: frozenset[str], index: int) -> bool:
        nodes = [self.nodes[node_id] for node_id in members]
        return (
            all(node.state.index >= index for node in nodes)
            and len({(node.state.index, node.state.digest) for node in nodes}) == 1
            and not any(node.node.raft.membership.auto_leave for node in nodes)
        )

    def _settle(self) -> None:
        for _ in range(10_000):
            for node in self.nodes.values():
                while node.writes or node.committed:
                    self._write(node)
                    self._apply(node)
            if not self.air:
                return
            self._deliver(self.air.pop(0))
        raise AssertionError("the cluster does not fall silent")

    # -- actions -------------------------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Some messages arrive, are lost, or arrive and are still there."""
        if not self.air:
            self.tick()
        for _ in range(min(self.random.randint(1, 8), len(self.air))):
            self._deliver_one()

    def _deliver_one(self) -> None:
        position = 0 if self.ordered else self.random.randrange(len(self.air))
        message = self.air.pop(position)
        if self.nodes[message.to].stopped_until > self.now:
            self.air.append(message)  # waits at its door, and is overtaken
            return
        if self.random.random() < self.repeat:
            self.air.append(message)
        if self.random.random() >= self.loss:
            self._deliver(message)

    def tick(self) -> None:
        """Time passes: for one node, or, where clocks matter, for all alike."""
        if self.lease:
            self.now += 1
            for node in self.nodes.values():
                if node.stopped_until == self.now and self.random.random() < 0.5:
                    self._read(node)  # the first thing that a process does when it goes on
                if node.stopped_until <= self.now:
                    self._tick(node)
        else:
            self.now += 1
            node = self._some_node()
            for _ in range(self.random.randint(1, 3)):
                self._tick(node)

    def write(self) -> None:
        """Disks complete a write."""
        for node in self.nodes.values():
            if node.stopped_until <= self.now and self.random.random() < 0.5:
                self._write(node)

    def apply(self) -> None:
        """State machines take the next entries."""
        for node in self.nodes.values():
            if node.stopped_until <= self.now and self.random.random() < 0.5:
                self._apply(node)

    def propose(self) -> None:
        """Somebody proposes at who takes himself for the leader."""
        node = self._leader()
        if node is not None:
            self._propose(node)

    def _propose(self, node: Node) -> None:
        self._number += 1
        self._time(node)
        self._try(node, "propose", lambda: node.node.propose(b"%d" % self._number * self.random.choice([1, 1, 20])))

    def read(self) -> None:
        """Somebody asks for a read position, most often who takes himself for the leader."""
        self._read(self._leader() or self._some_node() if self.random.random() < 0.7 else self._some_node())

    def _read(self, node: Node) -> None:
        self._number += 1
        self._time(node)
        self.trace.append(f"{node.id} reads {self._number} at {self.committed}")
        self.invariants.read_asked(node.id, self._number)
        raft = node.node.raft
        self.seen["reads under a lease"] += raft.role is Role.LEADER and raft.lease.holds(raft.now)
        node.node.read_index(self._number)
        self._take(node)

    def change(self) -> None:
        """Some change of the members that leaves a voter."""
        node = self._leader()
        if node is None:
            return
        membership = node.node.raft.membership
        if membership.joint and self.random.random() < 0.7:
            changes = []
        elif membership.learners and self.random.random() < 0.5:
            changes = [MemberChange(ChangeKind.ADD_VOTER, self.random.choice(sorted(membership.learners)))]
        elif self.random.random() < 0.3:
            changes = self._replacement(membership)
        else:
            changes = [
                MemberChange(
                    self.random.choice(list(ChangeKind)), self.random.choice(NODES), address=f"at {self._number}"
                )
                for _ in range(self.random.choice([1, 1, 2, 3]))
            ]
        self._change(node, changes)

    def _change(self, node: Node, changes: list[MemberChange]) -> None:
        transition = self.random.choice(list(Transition))
        self._time(node)
        described = " ".join(f"{change.kind} {change.node_id}" for change in changes)
        made = MembershipChange(tuple(changes), transition)
        self._try(node, f"change {transition} {described}", lambda: node.node.propose_membership(made))

    def _replacement(self, membership: Membership) -> list[MemberChange]:
        """All that makes voters of some nodes, and learners or strangers of the voters there are."""
        wanted = set(self.random.sample(NODES, self.random.choice([1, 2, 3, 3])))
        gone = self.random.choice([ChangeKind.REMOVE, ChangeKind.REMOVE, ChangeKind.ADD_LEARNER])
        come = [MemberChange(ChangeKind.ADD_VOTER, node_id) for node_id in sorted(wanted - membership.voters)]
        return come + [MemberChange(gone, node_id) for node_id in sorted(membership.voters - wanted)]

    def transfer(self) -> None:
        """Leadership is to be handed over."""
        node = self._some_node()
        to = self.random.choice(NODES)
        self.trace.append(f"{node.id} wants {to} to lead")
        self._time(node)
        node.node.transfer_leadership(to)
        self._take(node)

    def crash(self) -> None:
        """A node starts again, with some of its writes on disk that it has not heard of."""
        node = self._some_node()
        durable = self.random.randint(0, len(node.writes))
        self.seen["crashes that lost writes"] += durable < len(node.writes)
        self.trace.append(f"{node.id} crashes, {durable} of {len(node.writes)} writes are on its disk")
        for write in list(node.writes)[:durable]:
            node.storage.apply(write)
        self._start(node)

    def snapshot(self) -> None:
        """A node compacts its log."""
        self._snapshot(self._some_node(), compact=True)

    def weather(self) -> None:
        """Links are cut, or heal."""
        self.cut.clear()
        if self.random.random() < 0.4:
            one_side = set(self.random.sample(NODES, self.random.choice([1, 1, 2])))
            leader = self._leader()
            if leader is not None and self.random.random() < 0.5:
                one_side = {leader.id} | (one_side if self.random.random() < 0.3 else set())
            one_way = self.random.random() < 0.2
            for sender in NODES:
                for to in NODES:
                    if (sender in one_side) != (to in one_side) and (sender in one_side or not one_way):
                        self.cut.add((sender, to))
        self.trace.append(f"cut: {sorted(self.cut)}")

    def stop(self) -> None:
        """A process stands still for a while."""
        node = self._leader() or self._some_node()
        election = node.node.raft.config.election_ticks
        node.stopped_until = self.now + self.random.randint(1, 4 * election)
        self.seen["pauses of a leader"] += node.node.raft.role is Role.LEADER
        self.trace.append(f"{node.id} stands still until {node.stopped_until}")

    def depose(self) -> None:
        """The leader is cut off, or stands still, while the others go on without it; then somebody reads there."""
        leader = self._leader()
        if leader is None:
            return
        election = leader.node.raft.config.election_ticks
        if self.random.random() < 0.5:
            self._tick(leader)  # its heartbeats are answered, and it may have a lease
            self.lull()
        self._tick(leader)  # its heartbeats are on their way, and the answers wait
        ticks = self.random.randint(election // 2, 3 * election)
        if self.random.random() < 0.4:
            leader.node.transfer_leadership(self.random.choice(NODES))
            self._take(leader)
            ticks = self.random.randint(1, election)
        self.trace.append(f"{leader.id} is left behind for {ticks} ticks")
        if self.random.random() < 0.5:
            leader.stopped_until = self.now + ticks + 1
        else:
            self.cut |= {link for other in NODES for link in ((leader.id, other), (other, leader.id))}
            for _ in range(self.random.choice([0, 0, 1, 3])):
                self._propose(leader)  # what the others will never have
        impatient = self.random.choice([None, None, *(node for node in self.nodes.values() if node is not leader)])
        for _ in range(ticks):
            if impatient is not None:
                self._campaign(impatient)
            self.tick()
            self.lull()
        self.propose()
        self.lull()
        leader.stopped_until = min(leader.stopped_until, self.now)
        late = [message for message in self.air if message.to == leader.id and isinstance(message, HeartbeatResponse)]
        for message in late if self.random.random() < 0.5 else ():
            self._deliver(message)
        self._read(leader)

    def rift(self) -> None:
        """Old and new voters lose each other while their configuration changes, and each side goes on as far as it can.

        With halves that decided alone, or with changes that do not wait for each other, both sides would.
        """
        leader = self._leader()
        if leader is None:
            return
        raft = leader.node.raft
        if not raft.membership.joint:
            self._change(leader, self._replacement(raft.membership))
            # Up to when some have applied the change, and others do not know yet that it is committed.
            self.lull(self.random.randint(0, 5))
        side = set(raft.membership.voters - raft.membership.outgoing if raft.membership.joint else "45")
        side |= {leader.id} if self.random.random() < 0.5 else set()
        for node_id in NODES:
            if self.random.random() < 0.1:
                side ^= {node_id}
        self.trace.append(f"{sorted(side)} are on the other side")
        self.cut = {(one, other) for one in NODES for other in NODES if (one in side) != (other in side)}
        for _ in range(self.random.randint(raft.config.election_ticks, 3 * raft.config.election_ticks)):
            for node in self.nodes.values() if not self.lease else ():
                if node.stopped_until <= self.now and self.random.random() < 0.7:
                    self._tick(node)
            self.tick()
            self.lull()
            if self.random.random() < 0.2:
                self.propose()
        if self.random.random() < 0.7:
            self.cut.clear()

    def campaign(self) -> None:
        """Somebody is told to campaign, though nothing is wrong."""
        self._campaign(self._some_node())

    def _campaign(self, node: Node) -> None:
        self.trace.append(f"{node.id} campaigns")
        self._time(node)
        node.node.campaign()
        self._take(node)

    def lose_connection(self) -> None:
        """A transport tells that messages were lost, a sender of snapshots that it gave up or got through."""
        node, to = self._some_node(), self.random.choice(NODES)
        if self.random.random() < 0.5:
            node.node.report_unreachable(to)
        else:
            node.node.report_snapshot(to, failed=self.random.random() < 0.7)
        self._take(node)

    def lull(self, rounds: int = 2) -> None:
        """What is in the air arrives, and what lags catches up."""
        for _ in range(rounds):
            air, self.air = self.air, []
            for message in air:
                if self.nodes[message.to].stopped_until > self.now:
                    self.air.append(message)
                elif self.random.random() >= self.loss:
                    self._deliver(message)
            for node in self.nodes.values():
                if node.stopped_until > self.now:
                    continue
                for _ in range(len(node.writes)):
                    self._write(node)
                self._apply(node)

    # -- one node ------------------------------------------------------------------------------------------------------

    def _some_node(self) -> Node:
        for _ in range(10):
            node = self.nodes[self.random.choice(NODES)]
            if node.stopped_until <= self.now:
                break
        return node

    def _leader(self) -> Node | None:
        leaders = [
            node
            for node in self.nodes.values()
            if node.node.raft.role is Role.LEADER and node.stopped_until <= self.now
        ]
        return self.random.choice(leaders) if leaders else None

    def _start(self, node: Node) -> None:
        self.invariants.restarted(node.id)
        node.start(self.snapshots)
        self.invariants.observe(node.node.raft)

    def _time(self, node: Node) -> None:
        if self.lease:
            node.node.tell_time(float(self.now))

    def _try(self, node: Node, what: str, proposal: Any) -> None:
        try:
            self.trace.append(f"{node.id} {what}: {proposal()}")
        except ProposalDroppedError as exc:
            self.trace.append(f"{node.id} {what}: {exc}")
        self._take(node)

    def _tick(self, node: Node) -> None:
        self._time(node)
        node.node.tick()
        self._take(node)

    def _deliver(self, message: Message) -> None:
        if (message.sender, message.to) in self.cut:
            return
        node = self.nodes[message.to]
        self.trace.append(message)
        self._time(node)
        node.node.step(message)
        self._take(node)

    def _write(self, node: Node) -> None:
        if not node.writes:
            return
        write = node.writes.popleft()
        node.storage.apply(write)
        outgoing = node.node.persisted(write)
        self.invariants.observe(node.node.raft)
        self._send(node, outgoing)
        if write.snapshot is not None:
            self.seen["snapshots installed"] += 1
            node.state = dataclasses.replace(self.snapshots[write.snapshot.index])
            node.committed.clear()
            node.node.installed(write.snapshot.index)
        self._take(node)

    def _apply(self, node: Node) -> None:
        if not node.committed:
            return
        done = [node.committed.popleft() for _ in range(self.random.randint(1, len(node.committed)))]
        self.invariants.observe_applied(node.id, done)
        for entry in done:
            node.state.apply(entry)
            if entry.kind == EntryKind.MEMBERSHIP:
                before = node.node.raft.membership
                membership = node.node.apply_membership(entry)
                self._see_change(before, membership)
                self.trace.append(f"{node.id} applies {entry.index}: {_described(membership)}")
                self.invariants.observe(node.node.raft)
        node.node.applied(done)
        self._take(node)

    def _see_change(self, before: Membership, after: Membership) -> None:
        if after.joint and not before.joint:
            come, gone = after.voters - after.outgoing, after.outgoing - after.voters
            self.seen["joint replacements of several"] += len(come) > 1 and len(gone) > 1
            self.seen["joint demotions"] += bool(after.learners_next)
        self.seen["joint configurations left"] += before.joint and not after.joint
        self.seen["promotions"] += bool(before.learners & after.voters)

    def _snapshot(self, node: Node, *, compact: bool) -> None:
        index = node.state.index
        if index <= node.storage.snapshot().index or node.node.raft.log.has_unstable_snapshot():
            return
        known = self.snapshots.setdefault(index, dataclasses.replace(node.state))
        assert known == node.state, f"states differ at {index}"
        raft = node.node.raft
        node.storage.record_snapshot(SnapshotMetadata(index, raft.log.term(index), raft.membership))
        if compact and self.random.random() < 0.8:
            first = node.storage.first_index()
            node.storage.compact(self.random.randint(min(first, index), index))
        self.invariants.observe(raft)

    def _take(self, node: Node) -> None:
        raft = node.node.raft
        self.invariants.observe(raft)
        while node.node.has_ready():
            ready = node.node.ready()
            self._send(node, ready.messages)
            for read in ready.reads:
                self.seen["reads answered"] += self.invariants.read_answered(node.id, read)
            if ready.write is not None:
                node.writes.append(ready.write)
            node.committed.extend(ready.committed)
            self.invariants.observe(raft)
        if raft.commit_untold and self.random.random() < 0.5:
            node.node.tell_commit()
            self._send(node, node.node.ready().messages)
        self.committed = max(self.committed, raft.log.committed)

    def _send(self, node: Node, messages: Any) -> None:
        for message in messages:
            self.invariants.observe_sent(message, node.storage)
            self.seen[type(message).__name__] += 1
            self.seen["campaigns by transfer"] += isinstance(message, RequestVote) and message.transfer
            if isinstance(message, InstallSnapshot):
                assert message.snapshot.index in self.snapshots or message.snapshot.index == 0
            if message.to in self.nodes and message.to != NO_NODE:
                self.air.append(message)


def _described(membership: Membership) -> str:
    return (
        f"{''.join(sorted(membership.voters))}&{''.join(sorted(membership.outgoing))}"
        f" learners {''.join(sorted(membership.learners))}+{''.join(sorted(membership.learners_next))}"
    )


if __name__ == "__main__":
    Storm(int(sys.argv[1])).run(int(sys.argv[2]) if len(sys.argv) > 2 else STEPS)
