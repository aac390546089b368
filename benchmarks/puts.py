"""Durable puts, linearizable gets and local reads of three peers, beside the bare pipeline.

Both sets of processes are alive for the whole run, and idle but for the one whose turn it is. Windows are interleaved,
so that whatever else the machine does strikes both alike: read the ratios, not the numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks import peers, pipeline
from benchmarks.children import Child
from benchmarks.host import Host
from benchmarks.load import Window
from benchmarks.report import Measurement, Report, Row

__all__ = ["CONCURRENCIES", "measure_puts"]

CONCURRENCIES: Final = (1, 64, 512)
_NODE_IDS: Final = ("a", "b", "c")


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """Who is asked to put: one process out of a set of three, the leader first."""

    name: str
    asked: Child
    processes: Sequence[Child]

    def measure(self, operation: str, concurrency: int, seconds: float) -> Measurement:
        """One window."""
        before = [process.ask("cpu") for process in self.processes]
        window: Window = self.asked.ask(operation, concurrency, seconds)
        shares = [
            (process.ask("cpu") - cpu) / window.elapsed_s for process, cpu in zip(self.processes, before, strict=True)
        ]
        return Measurement(window, shares[0], max(shares[1:]))


@contextlib.contextmanager
def _pipeline(directory: Path) -> Iterator[Subject]:
    """The bare pipeline, filled."""
    with contextlib.ExitStack() as stack:
        leader = stack.enter_context(Child("pipeline leader", pipeline.lead, directory / "leader"))
        followers = [
            stack.enter_context(Child(f"pipeline {name}", pipeline.follow, directory / name))
            for name in ("follower 1", "follower 2")
        ]
        leader.ask("connect", [follower.ask("port") for follower in followers])
        leader.ask("fill")
        yield Subject("pipeline", leader, [leader, *followers])


@contextlib.contextmanager
def _cluster(directory: Path) -> Iterator[dict[str, Child]]:
    """Three peers, filled."""
    members = peers.free_addresses(_NODE_IDS)
    with contextlib.ExitStack() as stack:
        children = {
            node_id: stack.enter_context(Child(f"peer {node_id}", peers.serve, node_id, members, directory / node_id))
            for node_id in _NODE_IDS
        }
        for child in children.values():
            child.ask("fill")
        yield children


def _subjects(children: dict[str, Child]) -> tuple[Subject, Subject]:
    """The leader and a follower, as of now."""
    leader = children[children[_NODE_IDS[0]].ask("leader")]
    followers = [child for child in children.values() if child is not leader]
    processes = [leader, *followers]
    return Subject("leader", leader, processes), Subject("follower", followers[0], processes)


def measure_puts(directory: Path, *, seconds: float, rounds: int, concurrencies: Sequence[int]) -> Report:
    """Run the benchmark in an empty directory. Raises ChildFailedError."""
    host = Host.look(directory)
    found: dict[tuple[str, str, int], list[Measurement]] = {}
    with _pipeline(directory) as bare, _cluster(directory) as children:

        def measure(operation: str, subject: Subject, concurrency: int) -> None:
            measurement = subject.measure(operation, concurrency, seconds)
            found.setdefault((operation, subject.name, concurrency), []).append(measurement)

        for _ in range(rounds):
            for concurrency in concurrencies:
                leader, follower = _subjects(children)
                for subject in (bare, leader, follower):
                    measure("put", subject, concurrency)
                for subject in (leader, follower):
                    measure("get", subject, concurrency)
            measure("read", leader, 1)
    rows = []
    for (operation, name, concurrency), measurements in found.items():
        compared = found["put", "pipeline", concurrency] if operation == "put" else []
        rows.append(Row.of(operation, name, concurrency, measurements, compared))
    rows.sort(key=lambda row: ("put", "get", "read").index(row.operation))
    return Report(host, seconds, rounds, rows)
