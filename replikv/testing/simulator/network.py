"""A network that delays, loses, repeats and reorders frames, is cut in one way or both, and resets connections.

Two processes are connected when each has admitted the other's hello, as with any transport. What is sent over a
connection arrives as long as nobody has restarted at its other end, or does not. It is worse than TCP, on purpose: a
frame may be lost, repeated or overtaken while the connection lasts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from random import Random
from typing import TYPE_CHECKING, Any, Final

from replikv.peer.admission import Refused
from replikv.peer.protocol import FrameKind

if TYPE_CHECKING:
    from replikv.testing.simulator.process import Process
    from replikv.testing.simulator.simulation import Simulation

__all__ = ["Network", "Wire"]

DIAL_S: Final = 0.2
"""How often those that are not connected try to be."""


class Network:
    """All links of one cluster. ``cut`` has the (sender, receiver) between which nothing arrives."""

    def __init__(self, simulation: Simulation, random: Random) -> None:
        self.simulation = simulation
        self.random = random
        options = simulation.options
        self.delay_s = options.delay_s
        self.jitter_s = options.jitter_s
        self.reorder = options.reorder
        self.late = options.late
        self.loss = options.loss
        self.duplication = options.duplication
        self.cut: set[tuple[str, str]] = set()
        # (sender, receiver) -> when the last frame arrives that was sent in order.
        self._last: dict[tuple[str, str], float] = {}
        # (sender, receiver) -> how likely its frames are to be late.
        self._late: dict[tuple[str, str], float] = {}
        self._unsettled: dict[tuple[str, str], int] = {}

    # -- faults --------------------------------------------------------------------------------------------------------

    def part(self, links: Collection[tuple[str, str]], seconds: float, what: str) -> None:
        """Cut links for a while. Connections over them are noticed to be dead at some time, or never."""
        for link in links:
            self.cut.add(link)
            self._unsettled[link] = self._unsettled.get(link, 0) + 1
        simulation = self.simulation
        if simulation.telling:
            simulation.tell(f"network {what}: cut {' '.join('>'.join(link) for link in sorted(links))}")
        simulation.after(seconds, self._join, links)
        notice = self.random.choice((0.0, 1.0, None))
        if notice is not None:
            for link in sorted(links):
                simulation.after(notice * self.random.uniform(0.5, 4), self._notice, link)

    def _join(self, links: Collection[tuple[str, str]]) -> None:
        for link in sorted(links):
            if link not in self._unsettled:
                continue
            self._unsettled[link] -= 1
            if not self._unsettled[link]:
                del self._unsettled[link]
                self.cut.discard(link)
        self.simulation.tell("network joined again")

    def _notice(self, link: tuple[str, str]) -> None:
        if link in self.cut:
            self.disconnect(*link)

    def heal(self) -> None:
        """Nothing is lost from now on."""
        self.cut.clear()
        self._unsettled.clear()
        self.loss = self.duplication = self.late = 0.0
        self.reorder = False

    def disconnect(self, one: str, other: str) -> None:
        """Reset the connection between two nodes, if there is one."""
        processes = self.simulation.processes
        left, right = processes.get(one), processes.get(other)
        for process, node_id in ((left, other), (right, one)):
            if process is not None and process.connections.pop(node_id, None) is not None:
                process.run(process.driver.disconnected, node_id)
                if self.simulation.telling:
                    self.simulation.tell(f"{process.node_id} lost its connection to {node_id}")

    # -- connections ---------------------------------------------------------------------------------------------------

    def dial(self) -> None:
        """Connect whoever is not connected, and may be."""
        simulation = self.simulation
        processes = list(simulation.processes.values())
        for place, one in enumerate(processes):
            for other in processes[place + 1 :]:
                if one.over or other.over:
                    continue
                if one.connections.get(other.node_id) is other:
                    self._judge(one, other)
                    self._judge(other, one)
                elif (
                    (other.node_id in one.admission.membership.ids or one.node_id in other.admission.membership.ids)
                    and (one.node_id, other.node_id) not in self.cut
                    and (other.node_id, one.node_id) not in self.cut
                    and not one.stalled
                    and not other.stalled
                ):
                    self._connect(one, other)
        simulation.after(DIAL_S * self.random.uniform(0.5, 1.5), self.dial)

    def _connect(self, one: Process, other: Process) -> None:
        for asker, asked in ((one, other), (other, one)):
            reason = asked.admission.admit(asker.admission.hello())
            if reason is not None:
                if self.simulation.telling:
                    self.simulation.tell(f"{asked.node_id} refuses {asker.node_id}: {reason.partition(':')[0]}")
                if reason.startswith((Refused.REMOVED, Refused.INCARNATION)):
                    asker.refused(reason)
                return
        if self.simulation.telling:
            self.simulation.tell(f"{one.node_id} and {other.node_id} are connected")
        one.connections[other.node_id] = other
        other.connections[one.node_id] = one
        one.run(one.driver.connected, other.node_id)
        other.run(other.driver.connected, one.node_id)

    def _judge(self, one: Process, other: Process) -> None:
        """Hang up on who is no member any more, some time after that is known."""
        if other.node_id in one.admission.membership.ids or other.admission.hello().bound_index > (
            one.admission.applied_index
        ):
            one.strangers.pop(other.node_id, None)
            return
        since = one.strangers.setdefault(other.node_id, self.simulation.now)
        if self.simulation.now - since > 2 * one.settings.election_timeout_s:
            del one.strangers[other.node_id]
            self.disconnect(one.node_id, other.node_id)

    # -- frames --------------------------------------------------------------------------------------------------------

    def send(self, sender: Process, to: str, frame: bytes) -> bool:
        """Whether the frame was taken; which is not whether it arrives."""
        receiver = sender.connections.get(to)
        if receiver is None:
            return False
        simulation, random, loss = self.simulation, self.random, self.loss
        counts = simulation.counts
        counts["frames"] += 1
        link = (sender.node_id, to)
        if link in self.cut:
            counts["frames cut off"] += 1
            return True
        if loss:
            if random.random() < loss:
                counts["frames lost"] += 1
                return True
            if random.random() < loss / 4:
                counts["frames not taken"] += 1
                return False  # its outbox is full
        at = simulation.now + self.delay_s + self.jitter_s * random.random()
        if self.late and random.random() < self._lateness(link):
            at += 2 * random.random()
            counts["frames late"] += 1
        elif not self.reorder:
            at = self._last[link] = max(at, self._last.get(link, 0.0))
        simulation.at(at, self._deliver, (receiver, sender, frame))
        if self.duplication and random.random() < self.duplication:
            counts["frames repeated"] += 1
            simulation.at(at + random.random() * random.choice((0.01, 1.0)), self._deliver, (receiver, sender, frame))
        return True

    def _lateness(self, link: tuple[str, str]) -> float:
        """How likely a frame is to be late: one way may be slow where the other is not."""
        known = self._late.get(link)
        if known is None:
            known = self._late[link] = min(self.late * self.random.choice((0.0, 0.0, 1.0, 3.0)), 0.9)
        return known

    def _deliver(self, receiver: Process, sender: Process, frame: bytes) -> None:
        # Whoever was there before its last connection is not heard any more.
        if not receiver.over and receiver.connections.get(sender.node_id) is sender:
            if self.simulation.telling:
                kind = FrameKind(frame[0]).name
                self.simulation.tell(f"{receiver.node_id} gets {kind} of {len(frame)} bytes from {sender.node_id}")
            receiver.receive(sender.node_id, frame)

    def passes(self, one: str, other: str) -> bool:
        """Whether a stream of bytes gets through now, acknowledgements and all."""
        return (
            (one, other) not in self.cut
            and (other, one) not in self.cut
            and (not self.loss or self.random.random() >= self.loss / 4)
        )


class Wire:
    """The transport of one process, as far as the driver and its parts ask for it."""

    def __init__(self, network: Network, process: Process) -> None:
        self._process = process
        self.send: Final[Callable[[str, bytes], bool]] = functools.partial(network.send, process)
        """As :meth:`replikv.Transport.send`."""

    def statistics(self) -> dict[str, dict[str, Any]]:
        """As :meth:`replikv.Transport.statistics`, as far as it is asked for."""
        return {node_id: {"connected": True} for node_id in self._process.connections}
