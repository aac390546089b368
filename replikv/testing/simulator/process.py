"""One process of a peer: the real driver and all that it owns, over a simulated network, writer and clock.

It runs the turns that :class:`replikv.peer.driver.Driver` runs under trio, and looks at everything that happens in
them. It ends in the middle of whatever it does, or of whatever the disk does for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final

from replikv.errors import CorruptionError, StorageError, UpgradeRequiredError
from replikv.machine.governance import Versions
from replikv.machine.replica import Replica
from replikv.peer.admission import COMMANDS, LEASE, Admission
from replikv.peer.applier import Applier
from replikv.peer.barriers import Barriers
from replikv.peer.driver import Driver
from replikv.peer.lessee import Lessee
from replikv.peer.life import core_config
from replikv.peer.proposals import Proposals
from replikv.peer.protocol import LeaseQuestions, Moved
from replikv.peer.snapshot_receiver import ReceivedSnapshot
from replikv.raft.entries import Entry, EntryKind
from replikv.raft.membership import Membership
from replikv.raft.messages import Message
from replikv.raft.node import RawNode
from replikv.raft.reads import ReadState
from replikv.settings import Settings
from replikv.storage.disk import DiskStorage
from replikv.store.store import Store
from replikv.store.watch_hub import WatchHub
from replikv.testing.simulated_disk import PowerCut
from replikv.testing.simulator.face import Face
from replikv.testing.simulator.network import Wire
from replikv.testing.simulator.transfers import Transfer
from replikv.testing.simulator.writer import Taker, Writer

if TYPE_CHECKING:
    from replikv.testing.simulator.host import Host
    from replikv.testing.simulator.simulation import Simulation

__all__ = ["Process"]

_COMMANDS: Final = EntryKind.COMMANDS


class _Clock:
    """Stands for :class:`replikv.peer.lease_clock.LeaseClock`."""

    def __init__(self, host: Host, tick_s: float) -> None:
        self._host = host
        self._tick_s = tick_s

    def now(self) -> float:
        return self._host.time() / self._tick_s


class _Woken:
    """Stands for the event that the driver is woken by, and is used for all turns."""

    __slots__ = ("up",)

    def __init__(self) -> None:
        self.up = False

    def set(self) -> None:
        self.up = True


class _Barriers(Barriers):
    """Tells which reads are asked and answered."""

    process: Process

    def begin_round(self, now_ticks: int) -> int | None:
        context = super().begin_round(now_ticks)
        if context is not None:
            self.process.simulation.oracle.core.read_asked(self.process.node_id, context)
        return context

    def confirm(self, context: int, index: int) -> None:
        oracle = self.process.simulation.oracle
        oracle.observe(self.process)
        if oracle.core.read_answered(self.process.node_id, ReadState(context, index)):
            self.process.simulation.counts["reads confirmed"] += 1
        super().confirm(context, index)


class _Lessee(Lessee):
    """Tells when questions were sent, on the clock of the simulation."""

    simulation: Simulation

    def __init__(self, first_number: int) -> None:
        super().__init__(first_number)
        self.sent_at: dict[float, float] = {}

    def take(self, now_ticks: int, now: float) -> LeaseQuestions | None:
        questions = super().take(now_ticks, now)
        if questions is not None:
            self.sent_at[now] = self.simulation.now
        return questions


class _Applier(Applier):
    """Tells what is applied. Stops within entries, too, which have few commands here."""

    commands_per_look = 1
    process: Process

    def add(self, entries: Sequence[Entry]) -> None:
        if entries:
            self.process.simulation.oracle.committed(self.process, entries)
        super().add(entries)

    def apply(self, until: float, clock: Callable[[], float]) -> list[Entry]:
        done = super().apply(until, clock)
        if done:
            self.process.simulation.oracle.core.observe_applied(self.process.node_id, done)
        return done


class _Driver(Driver):
    """Tells what is sent."""

    process: Process

    def _send(self, message: Message) -> None:
        process = self.process
        process.simulation.oracle.core.observe_sent(message, process.storage.image)
        super()._send(message)

    def _apply(self) -> None:
        if self.applier.behind:
            self.process.simulation.oracle.observe(self.process)  # what is applied is committed before
        super()._apply()


class Process:
    """From its start until :meth:`end`."""

    def __init__(self, host: Host, storage: DiskStorage) -> None:
        assert storage.identity is not None
        self.host = host
        self.node_id = host.node_id
        self.simulation = simulation = host.simulation
        self.options = simulation.options
        self.settings: Settings = host.settings
        settings = self.settings
        self.random = host.random
        self.storage = storage
        self.over = False
        self.digested_index = -1
        self.led = (0, 0)
        """The term that it has last led in, and what it took for committed then."""
        self.connections: dict[str, Process] = {}
        self.strangers: dict[str, float] = {}
        self.listeners: list[Callable[[], None]] = []
        self.ended: list[Callable[[], None]] = []
        """Called when it has ended."""
        self.snapshot_locked = False
        self.reception: Transfer | None = None
        self.installing: ReceivedSnapshot | None = None
        self.sending: set[str] = set()
        self._turn_due = False
        self._woken = _Woken()
        self._refused = False
        image = storage.image
        snapshot = image.snapshot()
        self.replica: Replica = Replica()
        if host.old:
            self.replica.known = Versions(0, 0)  # type: ignore[misc]
        attributes = {COMMANDS: str(self.replica.known.commands)}
        if settings.lease_reads:
            attributes[LEASE] = str(settings.election_timeout_s)
        self.admission = Admission(storage.identity, snapshot.membership, snapshot.index, attributes)
        for entry in image.entries(image.first_index(), image.last_index() + 1):
            if entry.kind == EntryKind.MEMBERSHIP:
                self.admission.note(entry)
        self.proposals = Proposals(self.node_id, settings.proposals_max, self._randomness())
        self.barriers = _Barriers(self.random.getrandbits(62))
        self.barriers.process = self
        self.lessee = _Lessee(self.random.getrandbits(62))
        self.lessee.simulation = simulation
        config = core_config(self.node_id, settings, snapshot.index)
        if self.options.plain:
            config = dataclasses.replace(config, pre_vote=False)
        self.node = RawNode(config, image, self._randomness())
        self.driver = _Driver(
            node_id=self.node_id,
            settings=settings,
            node=self.node,
            storage=storage,
            transport=Wire(simulation.network, self),  # type: ignore[arg-type]  # as much of one as is asked for
            replica=self.replica,
            admission=self.admission,
            proposals=self.proposals,
            barriers=self.barriers,
            lessee=self.lessee,
            listeners=self.listeners,
            send_snapshot=self._send_snapshot,
            membership_applied=self._membership_applied,
            moved=_ignore,
            randomness=self._randomness(),
        )
        self.driver.process = self
        self.driver._woken = self._woken  # type: ignore[assignment]
        self.writer = Writer(self)
        self.driver.persister = self.writer  # type: ignore[assignment]
        self.driver.taker = Taker(self)  # type: ignore[assignment]
        self.driver._clock = _Clock(host, settings.heartbeat_interval_s)  # type: ignore[assignment]
        self.driver.applier = applier = _Applier(
            self.replica, snapshot.index, snapshot.term, self._results, self.driver._apply_membership
        )
        applier.process = self
        face = Face(self)
        self.hub = WatchHub(face)
        self.store = Store(face, self.hub)

    def _randomness(self) -> Random:
        return Random(self.random.getrandbits(64))  # noqa: S311  # a function of the seed

    # -- its life ------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Rebuild the replica from the newest snapshot. Raises what storage raises."""
        index = self.storage.image.snapshot().index
        if index == 0:
            return
        restorer = self.replica.restorer()
        with self.storage.open_snapshot(index) as (_, chunks):
            for chunk in chunks:
                restorer.feed(chunk)
        restorer.finish()
        self.driver.restored()

    def begin(self) -> None:
        """Run: tick, and have a first turn."""
        self.simulation.oracle.core.observe(self.node.raft)
        self._membership_applied(self.admission.membership)
        if self.admission.membership.voters == {self.node_id}:
            self.run(self.driver.node.campaign)
        self.run(self.driver.wake)
        self.later(self._tick_s() * self.random.random(), self._tick)

    def end(self) -> None:
        """No step of it is taken any more, and nobody is told."""
        self.over = True
        for other in list(self.connections):
            self.simulation.network.disconnect(self.node_id, other)
        for tell in self.ended:
            tell()

    def refused(self, reason: str) -> None:
        """Somebody would not have it, for good."""
        if not self._refused and not self._waits_to_join():
            self._refused = True
            self.simulation.after(0.1, self.host.retire, self, reason.partition(":")[0])

    @property
    def stalled(self) -> bool:
        """Whether it stands still."""
        return self.host.stalled_until > self.simulation.now

    # -- steps ---------------------------------------------------------------------------------------------------------

    def later(self, seconds: float, step: Callable[..., object], *args: Any) -> None:
        """Take a step, unless the process has ended by then; when it goes on, if it stands still."""
        simulation = self.simulation
        simulation.at(simulation.now + seconds, self._step, (step, args))

    def run(self, step: Callable[..., object], *args: Any) -> None:
        """Take a step now, whether it stands still or not. Whatever ends a process ends it."""
        self._step(step, args, now=True)

    def _step(self, step: Callable[..., object], args: tuple[Any, ...], now: bool = False) -> None:
        if self.over:
            return
        host, simulation = self.host, self.simulation
        if host.stalled_until > simulation.now and not now:
            simulation.at(host.stalled_until, self._step, (step, args))
            return
        loop = simulation.loop
        clock, loop.clock = loop.clock, host.time
        try:
            step(*args)
            if loop.woken:
                loop.resume_woken()
            if self._woken.up and not self._turn_due:
                self._have_turn()
        except PowerCut:
            self.host.cut_power("in the middle of a call")
        except CorruptionError as exc:
            self.host.lose_disk(exc)
        except UpgradeRequiredError:
            self.host.upgrade()
        except StorageError as exc:
            self.host.fail(exc)
        finally:
            loop.clock = clock

    def receive(self, sender: str, frame: bytes) -> None:
        """A frame has arrived: it waits for the next turn."""
        self.driver.receive(sender, frame)
        if not self._turn_due:
            self._have_turn()

    def _have_turn(self) -> None:
        self._turn_due = True
        simulation = self.simulation
        simulation.at(simulation.now + self.random.random() * self.options.turn_s, self._step, (self._turn, ()))

    def _turn(self) -> None:
        self._turn_due = self._woken.up = False
        driver = self.driver
        driver._turn()
        if self.installing is not None and self.installing.done.is_set() and self.reception is not None:
            self.reception.finish()
        if self.simulation.telling:
            raft = self.node.raft
            self.simulation.tell(
                f"{self.node_id} is {raft.role} of term {raft.term}, entries to {raft.log.last_index()}, committed"
                f" {raft.log.committed}, applied {driver.applier.index}"
            )
        self.simulation.oracle.after_turn(self)

    def _tick_s(self) -> float:
        return self.settings.heartbeat_interval_s / self.host.rate

    def _tick(self) -> None:
        self.later(self._tick_s(), self._tick)
        self.driver.tick()

    # -- what the driver tells -----------------------------------------------------------------------------------------

    def _results(self, commands: Sequence[bytes], results: Sequence[bytes]) -> None:
        self.simulation.oracle.applied(self, commands, results)
        self.proposals.applied(commands, results)

    def _send_snapshot(self, node_id: str, term: int, index: int) -> None:
        if node_id not in self.sending:
            self.sending.add(node_id)
            Transfer(self, node_id, term, index)

    def _membership_applied(self, membership: Membership) -> None:
        self.simulation.note_membership(self.node.raft.membership_index, membership)
        if self.simulation.telling:
            self.simulation.tell(f"{self.node_id} knows {describe(membership)}")
        if self.node_id not in membership.ids:
            self.later(2 * self.settings.election_timeout_s + 0.2, self._leave)

    def _leave(self) -> None:
        if self.node_id in self.admission.membership.ids or self._waits_to_join():
            return
        if self.node.raft.leader == self.node_id or not self.host.dispensable():
            self.later(self.settings.election_timeout_s, self._leave)
        else:
            self.simulation.after(0.0, self.host.retire, self, "removed")

    def _waits_to_join(self) -> bool:
        return self.options.plain and bool(self.host.joining)


def _ignore(_moved: Moved) -> None:
    """Nobody moves in a simulation."""


def describe(membership: Membership) -> str:
    """A membership in few words."""
    words = [f"voters {','.join(sorted(membership.voters))}"]
    others = {name: getattr(membership, name) for name in ("outgoing", "learners", "learners_next")}
    words += [f"{name} {','.join(sorted(ids))}" for name, ids in others.items() if ids]
    return " ".join(words)
