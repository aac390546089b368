"""A node: a disk and a clock that outlive the processes that run on them, one at a time."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from replikv.errors import CorruptionError, StorageError, UpgradeRequiredError
from replikv.raft.entries import NO_NODE, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.raft.stable import MemoryStorage, Write
from replikv.settings import Settings
from replikv.storage.base import Identity, StorageFullError
from replikv.storage.disk import DiskStorage
from replikv.testing.simulated_disk import PowerCut, SimulatedDisk
from replikv.testing.simulator.oracle import broken
from replikv.testing.simulator.process import Process

if TYPE_CHECKING:
    from replikv.testing.simulator.simulation import Simulation

__all__ = ["CLUSTER_ID", "Host"]

CLUSTER_ID: Final = "simulated"
_DIRECTORY: Final = Path("state")
_CALLS_AHEAD: Final = 60
"""Among how many of the next calls to a disk the one is drawn in which the power goes."""
_OLD: Final = 0.4
"""How likely a peer is to run an old program at first, if there are any."""


_WRITES_AHEAD: Final = 6


class Host:
    """One node id. Its disk may be lost and another one put in; then it comes back as another incarnation."""

    def __init__(self, simulation: Simulation, node_id: str) -> None:
        self.simulation = simulation
        self.node_id = node_id
        self.random = Random(f"{node_id} of {simulation.options.seed}")  # noqa: S311  # a function of the seed
        drift = simulation.options.drift
        self.rate = self.random.uniform(1 - drift, 1 + drift)
        """Seconds of its clock per second."""
        self.stalled_until = 0.0
        self.process: Process | None = None
        self.lost = False
        """Whether the disk is damaged: it is removed from the cluster, and comes back with an empty one."""
        self.flipped = False
        """Whether bits of the disk were flipped since it was put in."""
        self.wanted = False
        self.retired = False
        """Whether it was a member once that is removed."""
        """Whether it is to join the cluster."""
        self.joining = ""
        """The incarnation under which it was asked to be added; empty when it was not."""
        self.doubtful: Sequence[Write] = ()
        """What was being written when the process ended: it may be on disk, or not."""
        self._clock_since = 0.0
        self._clock = self._shown = self.random.random() * 100
        own = Random(f"settings of {node_id} of {simulation.options.seed}")  # noqa: S311  # a function of the seed
        self.settings = _own_limits(simulation.settings, own) if simulation.options.own_limits else simulation.settings
        self.old = simulation.options.old_peers and own.random() < _OLD
        """Whether the program that is installed knows the first version of commands only."""
        self.new_disk()

    def new_disk(self) -> None:
        """Put an empty disk in."""
        self.disk = SimulatedDisk(Random(self.random.getrandbits(64)))  # noqa: S311  # a function of the seed
        self.incarnation = f"{self.random.getrandbits(64):016x}"
        self.durable = MemoryStorage()
        self.snapshot_index = 0
        self.initialized = False
        self.lost = self.flipped = False
        self.joining = ""
        self.doubtful = ()
        self.old = self.old and self.simulation.now == 0.0  # whoever joins has the newest program

    def time(self) -> float:
        """What its clock says. If looking costs anything, it grows by that within a moment, and is overtaken again."""
        now = self.simulation.now
        self._clock += (now - self._clock_since) * self.rate
        self._clock_since = now
        if look := self.simulation.options.apply_look_s:
            self._shown = max(self._shown + look, self._clock)
            return self._shown
        return self._clock

    def leap(self, seconds: float) -> None:
        """Have the clock jump ahead."""
        self.time()
        self._clock += seconds
        self.simulation.tell(f"the clock of {self.node_id} jumps ahead by {seconds:.3f} s")

    def set_rate(self, rate: float) -> None:
        """Have the clock run otherwise from now on."""
        self.time()
        self.rate = rate

    # -- what is on the disk -------------------------------------------------------------------------------------------

    def has_written(self, writes: Sequence[Write]) -> None:
        """Storage says that these are durable."""
        self.doubtful = ()
        for write in writes:
            self.durable.apply(write)
        self.disk.calls.clear()

    def has_snapshot(self, metadata: SnapshotMetadata) -> None:
        """Storage says that this snapshot is durable."""
        self.snapshot_index = max(self.snapshot_index, metadata.index)

    def initialize(self, storage: DiskStorage, membership: Membership, snapshot: SnapshotMetadata | None) -> None:
        """Give the empty disk its identity."""
        identity = Identity(CLUSTER_ID, self.node_id, self.incarnation, f"at {self.node_id}", f"at {self.node_id}")
        metadata = snapshot or SnapshotMetadata(0, 0, membership)
        storage.initialize(identity, metadata)
        self.adopt(storage)

    def adopt(self, storage: DiskStorage) -> None:
        """The disk has an identity now; or had it already, when the power went before anybody was told."""
        metadata = storage.image.snapshot()
        self.durable = MemoryStorage()
        self.durable.install(metadata)
        self.durable.hard_state = storage.image.hard_state
        self.snapshot_index = metadata.index
        self.initialized = True

    def open(self) -> DiskStorage:
        """The storage on the disk, by the real code. Raises what that raises."""
        return DiskStorage(
            _DIRECTORY,
            segment_bytes=self.simulation.options.segment_bytes,
            filesystem=self.disk,
            prepare_ahead=False,
        )

    def _check_recovered(self, image: MemoryStorage) -> None:
        """What was opened is what was durable, and of what was being written all or nothing."""
        reasons = []
        for lately in ((), self.doubtful):
            expected = MemoryStorage()
            expected.__dict__.update(self.durable.__dict__, _entries=list(self.durable._entries))
            for write in lately:
                expected.apply(write)
            reason = _difference(image, expected, self.snapshot_index)
            if reason is None:
                self.durable = expected
                self.doubtful = ()
                snapshot = image.snapshot()
                if snapshot.index > expected.snapshot().index and (
                    snapshot.index > expected.last_index() or expected.term(snapshot.index) != snapshot.term
                ):
                    expected.install(snapshot)
                expected.hard_state = image.hard_state
                return
            reasons.append(reason)
            if not self.doubtful:
                break
        broken("durable is durable", f"{self.node_id} has lost what was synced: {'; or '.join(reasons)}")

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a process, unless there is one, or the disk is lost or empty."""
        if self.process is not None or self.lost or not self.initialized:
            return
        simulation = self.simulation
        clock, simulation.loop.clock = simulation.loop.clock, self.time
        if simulation.options.cuts_in_writes and not simulation.chaos.over and self.random.random() < 0.2:
            self.cut_power_soon()
        try:
            storage = self.open()
            if storage.identity is None:
                broken("durable is durable", f"{self.node_id} was initialized, and its disk is empty")
            self._check_recovered(storage.image)
            simulation.oracle.core.restarted(self.node_id)
            process = Process(self, storage)
            process.restore()
        except PowerCut:
            simulation.counts["power cuts while starting"] += 1
            simulation.tell(f"{self.node_id} loses power while it starts")
            self.disk.crash()
            simulation.after(self.random.uniform(0.1, 1), self.start)
            return
        except CorruptionError as exc:
            self.lose_disk(exc)
            return
        except UpgradeRequiredError:
            self.disk.kill()
            self.upgrade()
            simulation.after(0.1, self.start)
            return
        except StorageFullError:
            self.disk.kill()
            simulation.after(1.0, self.start)
            return
        except StorageError as exc:
            simulation.tell(f"{self.node_id} cannot start: {exc}")
            self.disk.kill()
            simulation.after(self.random.uniform(0.1, 1), self.start)
            return
        finally:
            simulation.loop.clock = clock
        self.process = process
        simulation.processes[self.node_id] = process
        image = storage.image
        simulation.tell(
            f"{self.node_id} starts in term {image.hard_state.term} with entries to {image.last_index()}"
            f" and a snapshot at {image.snapshot().index}"
        )
        process.begin()

    def _end_process(self) -> bool:
        process, self.process = self.process, None
        if process is None:
            return False
        if self.simulation.processes.get(self.node_id) is process:
            del self.simulation.processes[self.node_id]
        process.end()
        self.stalled_until = 0.0
        return True

    def cut_power(self, when: str) -> None:
        """What was not synced is lost, or some of it."""
        self.simulation.counts["power cuts"] += 1
        if when:
            self.simulation.counts[f"power cuts {when}"] += 1
        self.simulation.tell(f"{self.node_id} loses power {when}".rstrip())
        if self._end_process():
            self._restart_later()
        self.disk.crash()

    def kill(self) -> None:
        """The process ends at once; the system stays up."""
        self.simulation.counts["kills"] += 1
        self.simulation.tell(f"{self.node_id} is killed")
        if self._end_process():
            self._restart_later()
        self.disk.kill()

    def fail(self, error: StorageError) -> None:
        """The storage has failed: the process ends, as a peer does."""
        self.simulation.counts["peers ended by their disk"] += 1
        self.simulation.tell(f"{self.node_id} ends: {str(error).partition(';')[0]}")
        if self.disk.syncs_after_failure:
            broken("failed syncs are final", f"{self.node_id} syncs again: {self.disk.syncs_after_failure}")
        if self._end_process():
            self._restart_later()
        if self.random.random() < 0.5:
            self.disk.kill()
        else:
            self.disk.crash()

    def upgrade(self) -> None:
        """Install the newest program, and start it."""
        if self.old:
            self.old = False
            self.simulation.counts["programs upgraded"] += 1
            self.simulation.tell(f"{self.node_id} gets the newest program")
            if self.process is not None:
                self.kill()

    def lose_disk(self, error: CorruptionError) -> None:
        """Damage was found."""
        if not self.flipped:
            broken("torn is not damaged", f"{self.node_id} takes its disk for damaged, and it is not: {error}")
        self.simulation.counts["damaged disks found"] += 1
        self.simulation.tell(f"{self.node_id} has lost its disk: {str(error).partition(';')[0]}")
        self._end_process()
        self.lost = True

    def retire(self, process: Process, why: str) -> None:
        """The process was removed from the cluster: its disk is worth nothing any more."""
        if self.process is not process:
            return
        if not self.dispensable():
            self.simulation.after(1.0, self.retire, process, why)
            return
        self.simulation.counts["peers removed"] += 1
        self.simulation.tell(f"{self.node_id} leaves the cluster: {why}")
        self._end_process()
        self.retired = True
        self.simulation.oracle.left(self.node_id)
        self.new_disk()

    def dispensable(self) -> bool:
        """Whether a majority of the voters have it on their disks that it is removed.

        Until then its vote may be needed, or what it knows to be committed: whoever operates a cluster lets a removed
        peer run, or keeps its disk, until the others go on without it.
        """
        membership = self.simulation.membership
        if membership.joint or self.node_id in membership.ids:
            return False
        hosts, index = self.simulation.hosts, self.simulation.membership_index
        knowing = [node_id for node_id in membership.voters if hosts[node_id].knows(index)]
        return 2 * len(knowing) > len(membership.voters)

    def knows(self, index: int) -> bool:
        """Whether its disk says that the entry at the index is committed."""
        durable = self.durable
        return max(durable.hard_state.commit, durable.snapshot().index, self.snapshot_index) >= index

    def _restart_later(self) -> None:
        self.simulation.after(self.random.choice((0.1, 0.3, 1.0, 4.0)) * self.random.uniform(0.5, 1.5), self.start)

    # -- faults --------------------------------------------------------------------------------------------------------

    def cut_power_soon(self) -> None:
        """In the middle of one of the next calls to the disk: half of the time one of those that may tear a frame."""
        if self.random.random() < 0.5:
            self.disk.stop(self.random.choice(("pwrite", "fdatasync")), after=self.random.randrange(_WRITES_AHEAD))
        else:
            self.disk.stop(after=self.random.randrange(_CALLS_AHEAD))

    def fill_disk(self, seconds: float) -> None:
        """Nothing more fits for a while."""
        self.disk.capacity_bytes = self.disk._used_bytes() + self.random.choice((0, 1000, 5000))
        self.simulation.after(seconds, self._make_room)

    def _make_room(self) -> None:
        self.disk.capacity_bytes = None

    def fail_disk(self, operation: str) -> None:
        """One of the next calls fails."""
        self.disk.fail(errno.EIO, operation, after=self.random.randrange(5), times=1)

    def flip_bit(self) -> None:
        """Somewhere in the log or in a snapshot."""
        files = sorted(
            path for path, data in self.disk.files().items() if path.parent.name in ("wal", "snapshots") and data
        )
        path = self.random.choice(files)
        position = self.disk.rot(path)
        self.flipped = True
        self.simulation.tell(f"{self.node_id} has a bit flipped in byte {position} of {path}")


def _own_limits(settings: Settings, random: Random) -> Settings:
    """Limits that are reached; those of another peer are others."""
    return dataclasses.replace(
        settings,
        keys_max=random.choice([10, 20, settings.keys_max]),
        state_bytes_max=random.choice([6000, settings.state_bytes_max]),
        leases_max=random.choice([2, 4, settings.leases_max]),
        sessions_max=random.choice([3, settings.sessions_max]),
        operations_per_command_max=random.choice([8, 12, settings.operations_per_command_max]),
    )


def _difference(image: MemoryStorage, expected: MemoryStorage, snapshot_index: int) -> str | None:
    """What is not as expected; None if all is well."""
    snapshot = image.snapshot()
    if snapshot.index < snapshot_index:
        return f"a snapshot at {snapshot_index}, and there is one at {snapshot.index}"
    term, vote, _ = expected.hard_state
    last_index = expected.last_index()
    if snapshot.index > expected.snapshot().index:
        if snapshot.index > last_index or expected.term(snapshot.index) != snapshot.term:
            last_index = snapshot.index
        if snapshot.term > term:
            term, vote = snapshot.term, NO_NODE
    if image.hard_state[:2] != (term, vote):
        return f"term {term} and vote {vote!r}, and there are {image.hard_state[:2]}"
    if image.last_index() != last_index:
        return f"entries up to {last_index}, and there are those up to {image.last_index()}"
    first = max(image.first_index(), expected.first_index())
    for index in range(first, min(last_index, expected.last_index()) + 1):
        if image.entries(index, index + 1) != expected.entries(index, index + 1):
            return f"entry {index}, and there is another one"
    return None
