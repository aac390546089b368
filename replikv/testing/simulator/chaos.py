"""Whatever goes wrong, when it does; and the operator, who changes the membership and replaces what is lost."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

from replikv.errors import StorageError
from replikv.raft import changer
from replikv.raft.entries import EntryKind, SnapshotMetadata
from replikv.raft.membership import ChangeKind, MemberChange, Membership, MembershipChange, Transition
from replikv.raft.refusals import ProposalDroppedError
from replikv.raft.roles import Role
from replikv.testing.simulated_disk import PowerCut
from replikv.testing.simulator.host import Host
from replikv.testing.simulator.process import Process

if TYPE_CHECKING:
    from replikv.testing.simulator.simulation import Simulation

__all__ = ["FAULTS", "Chaos", "Operator"]

_CUTS: Final = frozenset({"partitions", "one_way", "bridges", "flaps", "depositions"})

FAULTS: Final = frozenset(
    {
        "partitions",
        "one_way",
        "bridges",
        "flaps",
        "depositions",
        "resets",
        "crashes",
        "cuts_in_writes",
        "stalls",
        "clock_jumps",
        "clocks that change",
        "full_disks",
        "failing_syncs",
        "failing_writes",
        "bit_flips",
        "bits flipped",
        "transfers",
        "snapshots",
        "kills",
        "power cuts",
        "power cuts in the middle of a call",
        "power cuts while joining",
        "power cuts while starting",
        "frames cut off",
        "frames late",
        "frames lost",
        "frames not taken",
        "frames repeated",
        "membership changes proposed",
        "operations cancelled",
        "programs upgraded",
        "writes without room",
    }
)
"""What a run counts of what befell it, by kind."""


class Chaos:
    """Faults at random moments, each kind at its rate, until :meth:`end`."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.random = Random(f"chaos of {simulation.options.seed}")  # noqa: S311  # a function of the seed
        self.over = False
        options = simulation.options
        for name, fault in (
            ("partitions", self._partition),
            ("one_way", self._one_way),
            ("bridges", self._bridge),
            ("flaps", self._flap),
            ("depositions", self._depose),
            ("resets", self._reset),
            ("crashes", self._crash),
            ("cuts_in_writes", self._cut_in_write),
            ("stalls", self._stall),
            ("clock_jumps", self._leap),
            ("full_disks", self._full_disk),
            ("failing_syncs", self._failing_sync),
            ("failing_writes", self._failing_write),
            ("bit_flips", self._bit_flip),
            ("transfers", self._transfer),
            ("snapshots", self._snapshot),
        ):
            rate = getattr(options, name)
            if rate:
                self._again(rate, fault, name)
        if options.drift:
            self._again(0.1, self._drift, "clocks that change")
        for host in simulation.hosts.values():
            simulation.after(self.random.uniform(0.1, 0.9) * options.chaos_s, host.upgrade)

    def end(self) -> None:
        """No more faults, and those that last end."""
        self.over = True
        simulation = self.simulation
        simulation.network.heal()
        for host in simulation.hosts.values():
            host.disk.heal()
            host.disk.capacity_bytes = None
            host.set_rate(1.0)
            host.upgrade()
            host.start()

    def _again(self, rate: float, fault: Callable[[], None], name: str) -> None:
        self.simulation.after(self.random.expovariate(rate), self._strike, rate, fault, name)

    def _strike(self, rate: float, fault: Callable[[], None], name: str) -> None:
        if not self.over:
            # Mostly one cut at a time: whoever is cut off from all sides has nobody to disagree with.
            if name not in _CUTS or not self.simulation.network.cut or self.random.random() < 0.2:
                self.simulation.counts[name] += 1
                fault()
            self._again(rate, fault, name)

    def _seconds(self) -> float:
        """How long something lasts."""
        return self.random.choice((0.3, 1.0, 3.0)) * self.random.uniform(0.5, 1.5)

    def _some(self) -> Process | None:
        """A process; the leader more often than others."""
        processes = list(self.simulation.processes.values())
        leaders = [process for process in processes if process.node.raft.role is Role.LEADER]
        if leaders and self.random.random() < 0.4:
            return self.random.choice(leaders)
        return self.random.choice(processes) if processes else None

    # -- the network ---------------------------------------------------------------------------------------------------

    def _sides(self) -> tuple[list[str], list[str]]:
        ids = list(self.simulation.processes)
        if len(ids) < 2:
            return [], []
        one = self._some()
        some = self.random.sample(ids, self.random.randint(1, max(1, len(ids) // 2)))
        if one is not None and self.random.random() < 0.5:
            some = list(dict.fromkeys([one.node_id, *some[:-1]]))
        return some, [node_id for node_id in ids if node_id not in some]

    def _partition(self) -> None:
        some, others = self._sides()
        links = [link for one in some for other in others for link in ((one, other), (other, one))]
        self.simulation.network.part(links, self._seconds(), "partition")

    def _one_way(self) -> None:
        some, others = self._sides()
        links = [(one, other) for one in some for other in others]
        if self.random.random() < 0.5:
            links = [(other, one) for one, other in links]
        self.simulation.network.part(links, self._seconds(), "one way")

    def _bridge(self) -> None:
        """Two sides that only one node reaches both of."""
        ids = list(self.simulation.processes)
        if len(ids) < 3:
            return
        self.random.shuffle(ids)
        half = len(ids) // 2
        left, right = ids[1 : half + 1], ids[half + 1 :]
        links = [link for one in left for other in right for link in ((one, other), (other, one))]
        self.simulation.network.part(links, self._seconds(), f"bridge over {ids[0]}")

    def _flap(self) -> None:
        some, others = self._sides()
        links = [link for one in some for other in others for link in ((one, other), (other, one))]
        at = 0.0
        for _ in range(self.random.randint(2, 6)):
            self.simulation.after(at, self.simulation.network.part, links, self.random.uniform(0.05, 0.4), "flap")
            at += self.random.uniform(0.2, 1.0)

    def _depose(self) -> None:
        """The leader is cut off for long enough that others elect another one."""
        leader = self.simulation.operator.leader()
        if leader is None:
            return
        one = leader.node_id
        links = [
            link
            for other in self.simulation.hosts
            if other != one
            for link in ((one, other), (other, one))
            if link[0] == one or self.random.random() < 0.8
        ]
        seconds = self.simulation.settings.election_timeout_s * self.random.uniform(1.5, 4)
        self.simulation.network.part(links, seconds, f"{one} deposed")

    def _reset(self) -> None:
        pairs = [(one.node_id, other) for one in self.simulation.processes.values() for other in one.connections]
        if pairs:
            self.simulation.network.disconnect(*self.random.choice(pairs))

    # -- processes -----------------------------------------------------------------------------------------------------

    def _crash(self) -> None:
        process = self._some()
        everybody = self.random.random() < 0.1
        for one in list(self.simulation.processes.values()) if everybody else [process]:
            if one is not None and self.random.random() < 0.7:
                one.host.cut_power("")
            elif one is not None:
                one.host.kill()

    def _cut_in_write(self) -> None:
        process = self._some()
        if process is not None:
            process.host.cut_power_soon()

    def _stall(self) -> None:
        process = self._some()
        if process is None:
            return
        simulation = self.simulation
        # Never less than before: what waits for the end of a stall would be overtaken by what came after it.
        process.host.stalled_until = max(process.host.stalled_until, simulation.now + self._seconds())
        simulation.tell(f"{process.node_id} stands still until {process.host.stalled_until:.3f}")
        if self.random.random() < 0.3:
            # It goes on where nobody can tell it what has changed.
            seconds = process.host.stalled_until - simulation.now + self.random.uniform(0.1, 1.5)
            others = [node_id for node_id in simulation.hosts if node_id != process.node_id]
            links = [link for other in others for link in ((process.node_id, other), (other, process.node_id))]
            simulation.network.part(links, seconds, f"{process.node_id} stalled and cut off")

    def _leap(self) -> None:
        process = self._some()
        if process is not None:
            process.host.leap(self.simulation.settings.election_timeout_s * self.random.choice((1.2, 3, 30)))

    def _drift(self) -> None:
        process = self._some()
        drift = self.simulation.options.drift
        if process is not None:
            process.host.set_rate(self.random.uniform(1 - drift, 1 + drift))

    # -- disks ---------------------------------------------------------------------------------------------------------

    def _full_disk(self) -> None:
        process = self._some()
        if process is not None:
            self.simulation.tell(f"{process.node_id} has a full disk")
            process.host.fill_disk(self._seconds())

    def _failing_sync(self) -> None:
        process = self._some()
        if process is not None:
            operation = self.random.choice(("fdatasync", "fdatasync", "fsync", "sync_directory"))
            self.simulation.tell(f"{process.node_id} is to fail at {operation}")
            process.host.fail_disk(operation)

    def _failing_write(self) -> None:
        process = self._some()
        if process is not None:
            operation = self.random.choice(("pwrite", "pwrite", "rename", "create", "unlink", "pread"))
            self.simulation.tell(f"{process.node_id} is to fail at {operation}")
            process.host.fail_disk(operation)

    def _bit_flip(self) -> None:
        """On the disk of a peer that can be spared, while it is off."""
        simulation = self.simulation
        hosts = [host for host in simulation.hosts.values() if host.initialized and not host.lost]
        if not hosts or any(host.flipped for host in simulation.hosts.values()) or not _settled(simulation):
            return
        host = self.random.choice(hosts)
        membership = simulation.membership
        if membership.joint or (host.node_id in membership.voters and len(membership.voters) < 3):
            return
        if host.process is not None:
            if self.random.random() < 0.5:
                host.cut_power("")
            else:
                host.kill()
        simulation.counts["bits flipped"] += 1
        host.flip_bit()

    # -- the cluster's own ---------------------------------------------------------------------------------------------

    def _transfer(self) -> None:
        process = self._some()
        if process is not None:
            to = self.random.choice(list(self.simulation.hosts))
            self.simulation.tell(f"{process.node_id} is to hand over to {to}")
            process.run(_hand_over, process, to)

    def _snapshot(self) -> None:
        process = self._some()
        if process is not None:
            process.driver.snapshot_wanted = True
            process.run(process.driver.wake)


def _hand_over(process: Process, to: str) -> None:
    process.node.transfer_leadership(to)
    process.driver.wake()


def _settled(simulation: Simulation) -> bool:
    """Whether no change of the membership is on its way, in no log."""
    for host in simulation.hosts.values():
        durable = host.durable
        last = durable.last_index()
        first = max(durable.first_index(), simulation.applied_by_all() + 1)
        if any(entry.kind == EntryKind.MEMBERSHIP for entry in durable.entries(first, last + 1) if first <= last):
            return False
        process = host.process
        if process is not None:
            raft = process.node.raft
            if raft.pending_membership_index > raft.log.applied or raft.membership.voters != (
                simulation.membership.voters
            ):
                return False
    return True


class Operator:
    """Asks the leader for changes of the membership, and brings newcomers in."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.random = Random(f"operator of {simulation.options.seed}")  # noqa: S311  # a function of the seed
        if simulation.options.changes:
            simulation.after(self.random.expovariate(simulation.options.changes), self._change)
        simulation.after(0.5, self._look)

    def leader(self) -> Process | None:
        """Who leads in the newest term, as far as is known."""
        leaders = [one for one in self.simulation.processes.values() if one.node.raft.role is Role.LEADER]
        return max(leaders, key=lambda one: one.node.raft.term, default=None)

    def _look(self) -> None:
        """Remove what is lost; add and start who waits for it."""
        leader = self.leader()
        if leader is not None:
            membership = leader.node.raft.membership
            if membership.joint and not membership.auto_leave and self.simulation.chaos.over:
                self._propose(leader, [], forced=True)
            for host in self.simulation.hosts.values():
                if host.lost and host.node_id in membership.ids:
                    self._propose(leader, [MemberChange(ChangeKind.REMOVE, host.node_id)], forced=True)
                elif host.lost:
                    self.simulation.oracle.left(host.node_id)
                    host.new_disk()
                    self.simulation.counts["lost disks replaced"] += 1
                    self._join(leader, host)
                elif host.joining or (not host.initialized and host.wanted):
                    self._join(leader, host)
        self.simulation.after(0.5, self._look)

    def _join(self, leader: Process, host: Host) -> None:
        if self.simulation.options.plain:
            self._join_plainly(leader, host)
            return
        if host.initialized:
            host.joining = ""
            return
        record = leader.node.raft.membership.members.get(host.node_id)
        if record is None:
            host.joining = host.incarnation
            address = f"at {host.node_id}"
            self._propose(
                leader, [MemberChange(ChangeKind.ADD_LEARNER, host.node_id, address, host.incarnation, {})], forced=True
            )
        elif record.incarnation == host.incarnation:
            self._send_first(leader, host)
        elif record.incarnation:
            # It was removed, or is to be, under another one.
            self._propose(leader, [MemberChange(ChangeKind.REMOVE, host.node_id)], forced=True)

    def _join_plainly(self, leader: Process, host: Host) -> None:
        """Start a newcomer that has nothing but the first membership, and have it added: it is sent the whole log."""
        if host.node_id in leader.node.raft.membership.ids:
            host.joining = ""
            return
        if not host.initialized:
            storage = host.open()
            host.initialize(storage, self.simulation.first_membership, None)
            storage.close()
            host.joining, host.wanted = host.incarnation, False
            self.simulation.counts["peers joined"] += 1
            host.start()
        change = MemberChange(ChangeKind.ADD_LEARNER, host.node_id, f"at {host.node_id}", host.incarnation, {})
        self._propose(leader, [change], forced=True)

    def _send_first(self, leader: Process, host: Host) -> None:
        """Bring a newcomer a snapshot that knows it; it may lose power meanwhile, and begins anew then."""
        image = leader.storage.image
        record = image.snapshot().membership.members.get(host.node_id)
        if record is None or record.incarnation != host.incarnation:
            leader.driver.snapshot_wanted = True
            leader.run(leader.driver.wake)
            return
        if not self.simulation.network.passes(leader.node_id, host.node_id) or leader.stalled:
            return
        leader.run(self._copy, leader, host)

    def _copy(self, leader: Process, host: Host) -> None:
        with leader.storage.open_snapshot(leader.storage.image.snapshot().index) as (metadata, chunks):
            content = list(chunks)
        if host.simulation.options.cuts_in_writes and not host.simulation.chaos.over and host.random.random() < 0.2:
            host.cut_power_soon()
        try:
            _install_first(host, metadata, content)
        except PowerCut:
            host.simulation.counts["power cuts while joining"] += 1
            host.disk.crash()
            return
        except StorageError:
            host.disk.kill()
            return
        host.joining = ""
        host.wanted = False
        self.simulation.counts["peers joined"] += 1
        self.simulation.tell(f"{host.node_id} joins with a snapshot at {metadata.index}")
        host.start()

    def _change(self) -> None:
        options = self.simulation.options
        leader = self.leader()
        if leader is not None and not self.simulation.chaos.over:
            self._change_something(leader)
        self.simulation.after(self.random.expovariate(options.changes), self._change)

    def _change_something(self, leader: Process) -> None:
        random = self.random
        membership = leader.node.raft.membership
        strangers = [host for host in self.simulation.hosts.values() if host.node_id not in membership.ids]
        if membership.joint:
            # Whoever left for it each time would hide a leader that does not (etcd#12136).
            if not membership.auto_leave or random.random() < 0.1:
                self._propose(leader, [])
        elif strangers and random.random() < 0.4:
            host = random.choice(strangers)
            if not host.initialized and not (self.simulation.options.plain and host.retired):
                host.wanted = True
                self._join(leader, host)
        elif membership.learners and random.random() < 0.5:
            self._propose(leader, [MemberChange(ChangeKind.ADD_VOTER, random.choice(sorted(membership.learners)))])
        elif self.simulation.options.plain:
            self._propose(leader, [MemberChange(ChangeKind.REMOVE, random.choice(sorted(membership.ids)))])
        else:
            changes = []
            for node_id in random.sample(sorted(membership.ids), min(len(membership.ids), random.choice((1, 1, 2, 3)))):
                kinds = [ChangeKind.REMOVE, ChangeKind.ADD_LEARNER]
                if node_id in membership.learners:
                    kinds.append(ChangeKind.ADD_VOTER)
                changes.append(MemberChange(random.choice(kinds), node_id))
            self._propose(leader, changes)

    def _propose(self, leader: Process, changes: list[MemberChange], *, forced: bool = False) -> None:
        leader.run(self._propose_there, leader, changes, forced)

    def _propose_there(self, leader: Process, changes: list[MemberChange], forced: bool) -> None:
        simulation = self.simulation
        in_one_step = forced or simulation.options.plain
        transition = Transition.AUTO if in_one_step else self.random.choice(list(Transition))
        change = MembershipChange(tuple(changes), transition)
        membership = leader.node.raft.membership
        try:
            after = changer.apply_change(membership, change, 0)
            if not self._can_spare(after) or (not forced and leader.driver.steward.objection(after.voters)):
                return
            leader.node.propose_membership(change)
        except ProposalDroppedError:
            return
        leader.driver.wake()
        described = " ".join(f"{one.kind} {one.node_id}" for one in changes) or "leave the joint configuration"
        simulation.counts["membership changes proposed"] += 1
        simulation.tell(f"{leader.node_id} is to {described} ({transition})")

    def _can_spare(self, after: Membership) -> bool:
        """Whether those whose disks are whole have a majority of the voters, and of the outgoing ones."""
        hosts = self.simulation.hosts
        for voters in (after.voters, after.outgoing):
            whole = [node_id for node_id in voters if hosts[node_id].initialized and not hosts[node_id].flipped]
            if voters and 2 * len(whole) <= len(voters):
                return False
        return bool(after.voters)


def _install_first(host: Host, metadata: SnapshotMetadata, chunks: list[bytes]) -> None:
    storage = host.open()
    if storage.identity is not None:
        host.adopt(storage)
        storage.close()
        return
    writer = storage.create_snapshot(metadata)
    for chunk in chunks:
        writer.write(chunk)
    writer.commit()
    host.initialize(storage, metadata.membership, metadata)
    storage.close()
