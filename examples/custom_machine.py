"""Replicated state of your own, and how a new version of it is rolled out: one peer after the other, without a stop.

A machine is a pure function of its commands. What is new in its next version takes effect on all replicas at the same
place of the log, once every member runs the program that knows it. Here all peers run in one process.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog
import trio

from replikv import Cluster, EncodingError, MemoryNetwork, MemoryTransport, Settings, StateMachine
from replikv.testing.machine_suite import MachineSuite

NAMES = ["a", "b", "c"]
SETTINGS = Settings(heartbeat_interval_s=0.02, election_timeout_s=0.2)  # impatient, so that this is over soon


class Bank(StateMachine):
    """Accounts, none of which goes below zero. ``b"ann +5"`` puts 5 into ann's."""

    version = 1

    def __init__(self) -> None:
        self.accounts: dict[str, int] = {}

    def apply(self, position: int, command: bytes) -> bytes:
        name, amount = command.decode().split()
        self.accounts[name] = self.checked(name, int(amount))  # only now anything changes
        return b"%d" % self.accounts[name]

    def checked(self, name: str, amount: int) -> int:
        """What the account will hold. An exception is a result, too: on every replica the same."""
        balance = self.accounts.get(name, 0) + amount
        if balance < 0:
            raise ValueError(f"{name} has not so much")
        return balance

    def snapshot(self) -> Iterator[bytes]:
        lines = [f"{name} {balance}\n".encode() for name, balance in sorted(self.accounts.items())]  # pinned: a copy
        return iter(lines)

    def restore(self, chunks: Iterable[bytes]) -> None:
        lines = b"".join(chunks).decode().splitlines()  # the same bytes, cut elsewhere
        self.accounts = {name: int(balance) for name, balance in (line.split() for line in lines)}  # all at once


class NewBank(Bank):
    """The next version: ``b"ann > bob 5"`` moves 5, wholly or not at all."""

    version = 2

    def __init__(self) -> None:
        super().__init__()
        self.active = 1  # a machine that was told nothing keeps to version 1

    def activate(self, version: int) -> None:
        self.active = version

    def apply(self, position: int, command: bytes) -> bytes:
        if self.active < 2 or b">" not in command:
            return super().apply(position, command)
        source, _, target, amount = command.decode().split()
        paid, got = self.checked(source, -int(amount)), self.checked(target, int(amount))
        self.accounts |= {source: paid, target: got}
        return b""


class TestNewBank(MachineSuite):
    """With this in a test module, pytest finds what would make replicas of it differ."""

    def make_machine(self) -> StateMachine:
        return NewBank()

    def make_former_machine(self) -> StateMachine:
        return Bank()

    def commands(self) -> list[bytes]:
        return [b"ann +5", b"bob +7", b"ann > bob 3", b"ann -9", b"bob > ann 99", b"nonsense", b"bob > cid 4"]


class Peers:
    """Three of them, each with a directory: for this example in one process, yours are one process each."""

    def __init__(self, nursery: trio.Nursery, directory: Path) -> None:
        self._nursery = nursery
        self._directory = directory
        self._network = MemoryNetwork()
        self.clusters: dict[str, Cluster] = {}

    async def start(self, name: str, machine: StateMachine) -> None:
        cluster = self.clusters[name] = Cluster(
            name,
            members={name: name for name in NAMES},
            data_dir=self._directory / name,
            transport=MemoryTransport(self._network),
            machine=machine,
            settings=SETTINGS,
        )
        await self._nursery.start(cluster.run)

    async def restart(self, name: str, machine: StateMachine) -> None:
        await self.clusters[name].shutdown()
        await self.start(name, machine)
        await self.clusters[name].store.barrier()  # it has everything again: now the next one may go


async def main(directory: Path) -> None:
    async with trio.open_nursery() as nursery:
        peers = Peers(nursery, directory)
        for name in NAMES:
            await peers.start(name, Bank())
        await roll_out(peers)
        for cluster in peers.clusters.values():
            await cluster.shutdown()


async def roll_out(peers: Peers) -> None:
    print("ann has", (await peers.clusters["a"].propose(b"ann +5")).decode())
    try:
        await peers.clusters["b"].propose(b"ann -9")
    except EncodingError as error:
        print("refused alike on every replica:", error)

    for name in NAMES:
        await peers.restart(name, NewBank())
        cluster = peers.clusters[name]
        if name != NAMES[-1]:
            print(
                f"{name} runs version {NewBank.version}; in effect is {cluster.machine_version};", cluster.doctor()[-1]
            )
            try:
                await cluster.propose(b"ann > bob 2")
            except EncodingError as error:
                print(f"{name}: not yet:", error)

    with trio.fail_after(10):
        while cluster.machine_version < NewBank.version:  # noqa: ASYNC110  # the leader sees that all know it
            await trio.sleep(SETTINGS.heartbeat_interval_s)
    await cluster.propose(b"ann > bob 2")
    print("all run version 2, and it is in effect: ann has", (await cluster.propose(b"ann +0")).decode())
    for other in peers.clusters.values():
        await other.store.barrier()
    assert len({other.digest() for other in peers.clusters.values()}) == 1
    print("and the replicas are equal, byte for byte")


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, errors only.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as temporary:
        trio.run(main, Path(temporary))
