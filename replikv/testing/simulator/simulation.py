"""One run: a pure function of its options.

Time passes from event to event. There is one heap of them, and nothing else that could make a difference: no threads,
no wall clock, no loop, no order of a set.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import Callable
from random import Random
from typing import Any, Final

from replikv.machine.values import decode_value
from replikv.raft.membership import Membership
from replikv.raft.roles import Role
from replikv.settings import Settings
from replikv.testing.linearizability import Operation, check, check_revisions
from replikv.testing.simulator.chaos import Chaos, Operator
from replikv.testing.simulator.clients import Client
from replikv.testing.simulator.holders import Holder
from replikv.testing.simulator.host import Host
from replikv.testing.simulator.loop import Loop
from replikv.testing.simulator.network import Network
from replikv.testing.simulator.options import Options
from replikv.testing.simulator.oracle import Oracle, broken
from replikv.testing.simulator.process import Process, describe
from replikv.testing.simulator.tenures import Tenures
from replikv.testing.simulator.watchers import Follower, Watcher, history_of
from replikv.testing.watch_validation import WatchStream, validate

__all__ = ["EVERYTHING", "Report", "Simulation", "run"]

EVERYTHING: Final = "everything"
"""The watcher, of no process, who is told all changes of all keys."""

_CHECK_S: Final = 60.0
"""How long the history may be searched for an order, on the wall clock: the only place where it counts."""
_QUIET_S: Final = 2.0
_PROGRESS_S: Final = 1.5


@dataclasses.dataclass(slots=True)
class Report:
    """What came of a run."""

    options: Options
    failure: str | None
    """None when all is well; else what broke, which begins with the name of the invariant."""
    counts: collections.Counter[str]
    simulated_s: float
    transcript: list[str] | None
    history: list[Operation]
    """What clients saw. What they still waited for in the end is unknown: others may have seen its effect."""
    streams: list[WatchStream]
    """What watchers were told; and one of EVERYTHING, of what replicas agree on, to hold the others against."""

    @property
    def kind(self) -> str | None:
        """What of the failure stays the same from run to run."""
        return None if self.failure is None else self.failure.partition(":")[0]


class Simulation:
    """A cluster, its clients, and what befalls them."""

    def __init__(self, options: Options, *, transcript: bool = False) -> None:
        self.options = options
        self.telling = transcript
        self.transcript: list[str] = []
        self.now = 0.0
        self.events = 0
        self.moment = 0
        """Counts the calls and returns of clients: the clock of the history."""
        self.history: list[Operation] = []
        self.streams: list[WatchStream] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = 0
        self.loop = Loop()
        self.settings = _settings(options)
        self.oracle = Oracle(self)
        self.tenures = Tenures(self)
        self.clients: list[Client] = []
        self.holders: list[Holder] = []
        self.watchers: list[Watcher] = []
        self.hosts: dict[str, Host] = {}
        self.processes: dict[str, Process] = {}
        self.membership = Membership()
        """The newest one that anybody has applied."""
        self.membership_index = 0
        self.first_membership = self.membership
        self.network = Network(self, Random(f"network of {options.seed}"))  # noqa: S311  # a function of the seed

    # -- time ----------------------------------------------------------------------------------------------------------

    def at(self, when: float, event: Callable[..., object], arguments: tuple[Any, ...] = ()) -> None:
        """Have something happen at a time."""
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, event, arguments))

    def after(self, seconds: float, event: Callable[..., object], *arguments: Any) -> None:
        """Have something happen some time from now."""
        self.at(self.now + seconds, event, arguments)

    def tell(self, line: str) -> None:
        """A line of the transcript."""
        if self.telling:
            self.transcript.append(f"{self.now:.6f} {line}")

    def _pass(self, until: float) -> None:
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            self.now, _, event, arguments = pop(heap)
            self.events += 1
            event(*arguments)
        self.now = until

    # -- what was seen -------------------------------------------------------------------------------------------------

    def whole_history(self) -> list[Operation]:
        """What clients saw, and what they still wait for."""
        pending = [client.pending() for client in self.clients]
        return [*self.history, *(one for one in pending if one is not None)]

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Chaos, then calm, then judgement. Raises whatever breaks."""
        options = self.options
        with self.loop.running():
            try:
                self._start()
                self.clients = [Client(self, f"c{number}") for number in range(1, options.clients + 1)]
                self.holders = [Holder(self, f"h{number}") for number in range(1, options.holders + 1)]
                self.watchers = [Watcher(self, f"w{number}") for number in range(1, options.watchers + 1)]
                self.follower = Follower(self)
                self.operator = Operator(self)
                self.chaos = Chaos(self)
                self.network.dial()
                self._pass(options.chaos_s)
                self.tell("calm")
                self.chaos.end()
                self._recover()
                self._judge()
            finally:
                self._close()

    def _close(self) -> None:
        for process in list(self.processes.values()):
            process.over = True
        closing: list[Client | Holder | Watcher] = [*self.clients, *self.holders, *self.watchers]
        for one in closing:
            one.close()

    def _start(self) -> None:
        ids = [f"n{number}" for number in range(1, self.options.peers + self.options.spares + 1)]
        self.hosts = {node_id: Host(self, node_id) for node_id in ids}
        first = ids[: self.options.peers]
        membership = Membership.of_voters({node_id: f"at {node_id}" for node_id in first})
        self.membership = self.first_membership = membership
        for node_id in first:
            host = self.hosts[node_id]
            storage = host.open()
            host.initialize(storage, membership, None)
            storage.close()
            self.after(host.random.random() * 0.5, host.start)

    def note_membership(self, index: int, membership: Membership) -> None:
        """Somebody has applied a change of the membership."""
        if index >= self.membership_index:
            self.membership_index, self.membership = index, membership

    def applied_by_all(self) -> int:
        """Up to where somebody has applied, and it is durable: what is behind may come to nothing."""
        return max((one.driver.applier.index for one in self.processes.values()), default=0)

    def _recover(self) -> None:
        """Everything works again, within a bound."""
        began = self.now
        answered = {client.name: client.answered for client in self.clients}
        reason: str | None = "nothing was tried"
        # Since when all else has been well in one term: then nobody but the clock holds leases.
        well: tuple[int, float] = (-1, 0.0)
        while self.now < began + self.options.calm_s:
            self._pass(self.now + 0.5)
            for host in self.hosts.values():
                host.start()
            if self.now < began + _QUIET_S:
                continue
            reason = self._unwell(answered)
            if reason is None and (lease := self._lease_left()) is not None:
                term, leader, left = lease
                if term != well[0]:
                    well = (term, self.now)
                reason = f"lease {left}, which nobody keeps alive, has not ended"
                if self.now > well[1] + self._lease_bound_s():
                    broken("liveness", f"{self.now - well[1]:.1f} s after all was well with {leader}: {reason}")
            if reason is None:
                self.counts["seconds to recover"] += round(self.now - began)
                return
        broken("liveness", f"{self.options.calm_s} s after the last fault: {reason}")

    def _lease_left(self) -> tuple[int, str, int] | None:
        """Term and name of the leader, and a lease that it has not ended, if there is one."""
        leader = self.operator.leader()
        left = next(iter(leader.replica.map.leases.table), None) if leader is not None else None
        return None if leader is None or left is None else (leader.node.raft.term, leader.node_id, left)

    def _lease_bound_s(self) -> float:
        """The longest lease, and time for whoever leads to notice, to be confirmed and to have its end committed."""
        return 1.5 * self.options.lease_ttl_s + 2 * self.settings.election_timeout_s + 3.0

    def _unwell(self, answered: dict[str, int]) -> str | None:
        """What does not work yet."""
        leaders = [one for one in self.processes.values() if one.node.raft.role is Role.LEADER]
        if not leaders:
            return "nobody leads"
        leader = max(leaders, key=lambda one: one.node.raft.term)
        membership = leader.node.raft.membership
        if membership.joint and membership.auto_leave:
            return f"{leader.node_id} does not leave the joint configuration: {describe(membership)}"
        if any(host.lost for host in self.hosts.values()):
            return "a lost disk is not replaced"
        for client in self.clients:
            if client.answered <= answered[client.name]:
                return f"{client.name} has no answer"
        members = [self.processes.get(node_id) for node_id in sorted(membership.ids)]
        if not all(members):
            return f"of {describe(membership)} some do not run"
        indexes = {one.driver.applier.index for one in members if one is not None}
        if max(indexes) - min(indexes) > 20:
            return f"some lag behind: {sorted(indexes)}"
        return None

    def _judge(self) -> None:
        """What clients and watchers saw in the end."""
        newest = max(self.processes.values(), key=lambda one: one.driver.applier.index)
        digests: dict[int, bytes] = {}
        for process in self.processes.values():
            if process.driver.applier.at_boundary:
                index, digest = process.driver.applier.index, process.replica.digest()
                if digests.setdefault(index, digest) != digest:
                    broken("equal replicas", f"{process.node_id} has another state at entry {index} in the end")
        self.tenures.judge()
        self._judge_watchers()
        history = self.whole_history()
        self._judge_increments(history, newest)
        verdict = check(history, timeout_s=_CHECK_S)
        if verdict.outcome == "violation":
            broken("linearizable", str(verdict))
        self.counts[f"histories {verdict.outcome}"] += 1
        verdict = check_revisions(history, timeout_s=_CHECK_S)
        if verdict.outcome == "violation":
            broken("linearizable", f"revisions: {verdict}")

    def _judge_watchers(self) -> None:
        self.follower.finish()
        ends = [watcher.finish() for watcher in self.watchers]
        last = {(end.watcher, end.stream): end for end in ends if end is not None}
        streams = [last.get((one.watcher, one.stream), one) for one in self.streams]
        for violation in validate(streams, history_of(self.oracle.changes)):
            broken("watches", str(violation))

    def _judge_increments(self, history: list[Operation], newest: Process) -> None:
        """An increment that was answered counts once, one of which nothing is known at most once."""
        for key in ("n0", "n1"):
            mine = [one for one in history if one.op == "increment" and one.key == key]
            sure = sum(one.status == "ok" for one in mine)
            unsure = sum(one.status == "unknown" for one in mine)
            value = newest.replica.keyspace.get_value(key)
            found = 0 if value is None else decode_value(value)
            if not sure <= found <= sure + unsure:
                broken("exactly once", f"{key} is {found} after {sure} increments, and {unsure} that may have been")


def _settings(options: Options) -> Settings:
    entry = options.entry_bytes_max
    message = options.message_bytes_max
    return Settings(
        heartbeat_interval_s=options.heartbeat_s,
        election_timeout_s=options.heartbeat_s * options.election_heartbeats,
        request_timeout_s=options.request_timeout_s,
        lease_reads=options.lease_reads,
        voter_replace_after_s=options.replace_after_s,
        value_bytes_max=512,
        key_bytes_max=64,
        command_bytes_max=2048,
        entry_bytes_max=entry,
        message_bytes_max=message,
        frame_bytes_max=max(entry + message + (65 << 10), 128 << 10),
        inflight_messages_max=options.inflight_messages_max,
        uncommitted_bytes_max=options.uncommitted_bytes_max,
        snapshot_log_entries=options.snapshot_log_entries,
        trailing_entries=options.trailing_entries,
        history_revisions=options.history_revisions,
        history_bytes_max=options.history_bytes_max,
        history_age_s=options.history_age_s,
        sessions_max=options.sessions_max,
        watch_progress_interval_s=_PROGRESS_S,
        wal_segment_bytes=options.segment_bytes,
    )


def run(options: Options, *, transcript: bool = False) -> Report:
    """Run once, and tell what came of it. Raises nothing but what ends the program."""
    simulation = Simulation(options, transcript=transcript)
    failure = None
    try:
        simulation.run()
    except Exception as exc:  # whatever it is, it is what was looked for
        failure = str(exc) if ": " in str(exc) else f"{type(exc).__name__}: {exc}"
        simulation.tell(f"broken: {failure}")
        if not type(exc).__module__.startswith("replikv."):
            failure = f"{type(exc).__name__}: {exc} at {_place(exc)}"
    counts = simulation.counts
    counts["events"] = simulation.events
    lines = simulation.transcript if transcript else None
    streams = [*simulation.streams, history_of(simulation.oracle.changes).as_stream(EVERYTHING)]
    return Report(options, failure, counts, simulation.now, lines, simulation.whole_history(), streams)


def _place(exc: BaseException) -> str:
    traceback = exc.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "nowhere"
    name = traceback.tb_frame.f_code.co_filename.rpartition("replikv/")[2]
    return f"{name}:{traceback.tb_lineno}"
