"""A cluster whose public calls are cancelled, and what must be so afterwards.

A :class:`Scene` is three peers in memory and something to hold their state against: the tables of each peer as they
were when nothing was under way, what the map held before a call, and what it holds when the call was let finish.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import trio
from clusters import Peers, id_of, peer_of, running
from steps import CancelAtStep

from replikv import Cluster, DeleteRange, ReplikvError, StateMachine, Store

SOUND = "~sound/"
"""The counters that tell whether commands after a cancelled one still take effect once each; beyond all other keys."""
TTL_S = 3.0
"""Three election timeouts."""
EXPIRED_S = 2 * TTL_S + 3.0
"""After this time a lease that nobody keeps alive is gone."""
AGAIN_S = 1.0
"""Long enough for any call that nobody is in the way of, and too short for a lease to end."""
CUT_OFF_S = 2 * EXPIRED_S
"""Who could not reach the cluster while it let go is in its own way until its lease ends."""
SETTLED_S = 3.0
"""What was under way when a call was cancelled is over within this time; what rests on a lease takes longer."""

Observation = dict[str, Any]


class Tally(StateMachine):
    """State of the application's own: the commands, in order."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def apply(self, position: int, command: bytes) -> bytes:
        self.commands.append(command)
        return b"%d" % len(self.commands)

    def snapshot(self) -> Iterator[bytes]:
        return iter(self.commands)

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.commands = list(chunks)


@dataclasses.dataclass
class Scene:
    """The peers, and whose public face is used: ``cluster``, and ``other`` for whoever it meets."""

    peers: Peers
    cluster: Cluster
    other: Cluster
    directory: Path
    nursery: trio.Nursery
    baseline: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    counted: dict[str, int] = dataclasses.field(default_factory=dict)
    patience_s: float = AGAIN_S
    """How long a call may take that is made again."""
    settled_s: float = SETTLED_S
    """Within what time everything is over that was under way."""
    given: Any = None
    """What the preparation of a call made for it."""

    @property
    def store(self) -> Store:
        return self.cluster.store

    def machine_of(self, cluster: Cluster) -> Tally:
        machine = peer_of(cluster).replica.custom
        assert isinstance(machine, Tally)
        return machine

    # -- what must be so ---------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """The cluster works from every peer, each command took effect once, replicas are equal, nothing is left."""
        async with trio.open_nursery() as nursery:
            for cluster in self.peers.all:
                nursery.start_soon(self._check_peer, cluster)
        await self.peers.converge()
        await self._settle()

    async def _check_peer(self, cluster: Cluster) -> None:
        node_id = id_of(cluster)
        self.counted[node_id] = self.counted.get(node_id, 0) + 1
        with trio.fail_after(EXPIRED_S):
            assert self.counted[node_id] == await cluster.store.increment(SOUND + node_id)
            assert self.counted[node_id] == await cluster.store.get(SOUND + node_id)

    async def _settle(self) -> None:
        """Wait until every table of every peer is as it was before anything was called."""
        patience = trio.current_time() + self.settled_s
        while (tables := self._tables()) != self.baseline:
            if trio.current_time() > patience:
                raise AssertionError(f"left behind: {list(self._differences(tables))}")
            await trio.sleep(0.02)

    def _differences(self, tables: dict[str, dict[str, int]]) -> Iterator[str]:
        for name, counts in tables.items():
            before = self.baseline.get(name, {})
            yield from (f"{name}.{key}: {before.get(key)} -> {n}" for key, n in counts.items() if before.get(key) != n)

    def _tables(self) -> dict[str, dict[str, int]]:
        found = {id_of(cluster): tables_of(cluster) for cluster in self.peers.all}
        found["network"] = {
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "channels": len(self.peers.network._channels),
        }
        return found

    async def begin(self) -> None:
        """Have every peer's session opened, and note what is there when nothing is under way."""
        async with trio.open_nursery() as nursery:
            for cluster in self.peers.all:
                nursery.start_soon(self._check_peer, cluster)
        await trio.sleep(1.0)
        await self.peers.converge()
        self.baseline = self._tables()

    # -- the map -----------------------------------------------------------------------------------------------------

    async def clear(self) -> None:
        """Delete all but the counters."""
        await self.store.txn([], [DeleteRange(stop=SOUND)])

    def observe(self) -> Observation:
        """What the map holds, but for what vanishes with its lease."""
        entries = (self.store.entry(key) for key in self.store.keys(stop=SOUND))
        return {entry.key: (entry.value, entry.version) for entry in entries if entry.lease is None}

    async def expire(self) -> None:
        """Let every lease end that nobody keeps alive; none is left, and no key of one."""
        if any(peer_of(cluster).replica.map.leases for cluster in self.peers.all):
            await trio.sleep(EXPIRED_S)
        await self.peers.converge()
        for cluster in self.peers.all:
            assert 0 == len(peer_of(cluster).replica.map.leases)
            leased = [key for key in cluster.store if cluster.store.entry(key).lease is not None]
            assert [] == leased


def tables_of(cluster: Cluster) -> dict[str, int]:
    """How much a peer holds on behalf of tasks that wait, watch or lock."""
    peer = peer_of(cluster)
    driver, life, replica = peer._driver, peer._alive, peer.replica
    proposals, barriers, lessee = driver.proposals, driver.barriers, driver.leasing.lessee
    keyspace = replica.keyspace
    return {
        "queued": len(proposals._queue),
        "handed": proposals.in_flight,
        "hurried": len(proposals._hurried),
        "again": len(proposals._again),
        "unsettled": len(proposals._unsettled),
        "seals": len(proposals._seals),
        "reads waiting": len(barriers._waiting),
        "rounds of reads": len(barriers._rounds),
        "confirmed reads": len(barriers._confirmed),
        "questions": len(lessee._waiting),
        "questions sent": len(lessee._sent),
        "watches": cluster.store._hub._open,
        "pins": sum(keyspace._firm_pins.values()) + sum(keyspace._breakable_pins.values()),
        "listeners": len(peer._listeners),
        "changes being made": life.reconfigurator._making.locked() + life.reconfigurator._change_requested,
        "snapshots being taken": driver.taker.busy + driver.snapshot_lock.locked(),
        "members": len(cluster.status().members),
    }


@contextlib.asynccontextmanager
async def scene(directory: Path, *, role: str = "follower", delay_s: float = 0.0) -> AsyncIterator[Scene]:
    """Three peers, of whom one in this role is used."""
    async with running(absent="abc") as peers, trio.open_nursery() as nursery:
        for node_id in "abc":
            await peers.start(node_id, machine=Tally())
        leader = await peers.leader()
        first, second = peers.without(leader)
        cluster, other = (leader, first) if role == "leader" else (first, second)
        peers.network.set_faults(delay_s=(delay_s, delay_s))
        made = Scene(peers, cluster, other, directory, nursery)
        await made.begin()
        yield made
        await made.expire()
        nursery.cancel_scope.cancel()


Call = Callable[[Scene], Awaitable[object]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A public call, and what it may have done when it was cancelled."""

    name: str
    covers: tuple[str, ...]
    """The public names that are under test in it."""
    call: Call
    prepare: Call | None = None
    """Has the state made that the call starts from, which :meth:`Scene.clear` ends."""
    partly: Callable[[Observation, Observation, Observation], bool] | None = None
    """Whether an observation that is neither that before the call nor that after it may be."""
    observe: Callable[[Scene], Any] | None = None
    """What to look at beside the map."""
    tidy: Call | None = None
    """What a user does after such a call; before the tables are looked at."""
    afterwards: Call | None = None
    """What must work with what the call was made on."""
    again: bool = False
    """Whether nothing is in the way of the same call with the same objects, whatever became of the one before."""


async def stay(block: AbstractAsyncContextManager[Any]) -> None:
    """Enter a block, be in it for a step, and leave."""
    async with block:
        await trio.lowlevel.checkpoint()


def registering(cases: list[Case]) -> Callable[..., Callable[[Call], Call]]:
    """A decorator that adds what it decorates to the cases, as one for the names that it is given."""

    def case(*covers: str, **more: Any) -> Callable[[Call], Call]:
        def register(call: Call) -> Call:
            cases.append(Case(call.__name__, covers, call, **more))
            return call

        return register

    return case


def steps_of(own: bool, stride: int, seed: object) -> Iterator[int]:
    """The steps to cancel at: each, or with a ``stride`` about one in so many, beginning anywhere."""
    step = 0 if own else 1 + random.Random(str(seed)).randrange(stride)
    while True:
        yield step
        step += 1 if own else stride


async def cancel_everywhere(scene: Scene, case: Case, *, own: bool, stride: int) -> int:
    """Run the call again and again, cancelled one step later each time, until it is through; how often.

    After each, the state is sound, and the call took effect once or never.
    """
    effects = await _what_it_does(scene, case)
    attempts = 0
    for step in steps_of(own, stride, case.name):
        await _prepare(scene, case)
        cancelling = CancelAtStep(step, own=own)
        with cancelling.counting():
            await case.call(scene)
        attempts += 1
        with noting(f"{case.name}, cancelled at step {step} of {'its task' if own else 'all tasks'}"):
            await _judge(scene, case, effects, ended=cancelling.ended)
        if cancelling.too_late:
            break
    return attempts


async def cancel_cut_off(scene: Scene, case: Case, after_s: Sequence[float]) -> None:
    """Run the call on a peer that hears nobody, and cancel it after so long; then the network heals."""
    effects = await _what_it_does(scene, case)
    scene.patience_s = CUT_OFF_S
    # What was lost with its frame is given up when the time of its request is up.
    scene.settled_s = scene.peers.settings.request_timeout_s
    for seconds in after_s:
        await _prepare(scene, case)
        scene.peers.network.isolate(id_of(scene.cluster))
        ended = False
        with trio.move_on_after(seconds), contextlib.suppress(ReplikvError):
            await case.call(scene)
            ended = True
        scene.peers.network.heal()
        with noting(f"{case.name}, cut off and cancelled after {seconds} s"):
            await scene.peers.leader()
            await _judge(scene, case, effects, ended=ended)


@contextlib.contextmanager
def noting(where: str) -> Iterator[None]:
    """Have an error say where."""
    try:
        yield
    except Exception as exc:
        exc.add_note(where)
        raise


async def _judge(scene: Scene, case: Case, effects: tuple[Any, Any], *, ended: bool) -> None:
    before, after = effects
    await _tidy(scene, case)
    await scene.check()
    seen = _look(scene, case)
    if ended:
        assert after == seen
    elif seen not in effects:
        assert case.partly is not None, (before, seen, after)
        assert case.partly(seen, before, after), (before, seen, after)
    if case.afterwards is not None:
        await case.afterwards(scene)
    if case.again:
        with trio.fail_after(scene.patience_s):
            await case.call(scene)


async def _what_it_does(scene: Scene, case: Case) -> tuple[Any, Any]:
    await _prepare(scene, case)
    before = _look(scene, case)
    await case.call(scene)
    await _tidy(scene, case)
    await scene.check()
    return before, _look(scene, case)


async def _prepare(scene: Scene, case: Case) -> None:
    await scene.clear()
    if case.prepare is not None:
        scene.given = await case.prepare(scene)


async def _tidy(scene: Scene, case: Case) -> None:
    if case.tidy is not None:
        await case.tidy(scene)


def _look(scene: Scene, case: Case) -> Any:
    return scene.observe(), None if case.observe is None else case.observe(scene)
