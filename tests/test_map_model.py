"""The map against a plain dict: one replica with snapshots in between, and a cluster that loses leaders and peers."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from clusters import Peers, id_of, running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from plain_map import KEYS, Call, PlainMap, calls, keys, prefixes, txns, values

from replikv import ABSENT, EncodingError, Entry, Settings, Store, Transaction, UnavailableError
from replikv.machine.commands import encode_compact
from replikv.machine.envelope import CommandKind, Envelope
from replikv.machine.governance import KNOWN_VERSION, Versions, encode_upgrade
from replikv.machine.replica import Replica
from replikv.store.watch_hub import WatchHub


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types: 1 is no True here."""
    return repr(left) == repr(right)


async def do(store: Store, call: Call) -> Any:
    """The result, or the type of the error."""
    try:
        return await getattr(store, call.name)(*call.arguments, **dict(call.keywords))
    except (EncodingError, KeyError) as exc:
        return EncodingError if isinstance(exc, EncodingError) else KeyError


def entries_of(store: Store) -> dict[str, Entry]:
    return {key: store.entry(key) for key in store}


async def compare(model: PlainMap, store: Store, batch: Sequence[Call]) -> None:
    """Any results are those of the dict."""
    for call in batch:
        expected, actual = model.do(call), await do(store, call)
        assert same(expected, actual), (call, expected, actual)


# -- transactions as functions -----------------------------------------------------------------------------------------

Action = tuple[str, tuple[Any, ...]]
actions: st.SearchStrategy[list[Action]] = st.lists(
    st.one_of(
        st.tuples(st.just("get"), st.tuples(keys)),
        st.tuples(st.just("put"), st.tuples(keys, values)),
        st.tuples(st.just("delete"), st.tuples(keys)),
        st.tuples(
            st.just("items"),
            st.tuples(prefixes, st.none() | keys, st.none() | keys, st.booleans(), st.none() | st.integers(0, 3)),
        ),
        st.tuples(st.just("entry"), st.tuples(keys)),
    ),
    max_size=6,
)


def act(tx: Transaction, script: Sequence[Action]) -> list[Any]:
    """What a function of somebody's may do in a transaction, and what it sees."""
    seen: list[Any] = []
    written: set[str] = set()
    for name, arguments in script:
        if name == "put":
            tx.put(*arguments)
            written.add(arguments[0])
        elif name == "delete":
            seen.append(tx.delete(*arguments))
            written.add(arguments[0])
        elif name == "get":
            seen.append(tx.get(arguments[0], ABSENT))
        elif name == "entry":
            if arguments[0] not in written:
                seen.append(tx.entry(arguments[0]) if arguments[0] in tx else None)
        else:
            prefix, start, stop, reverse, limit = arguments
            seen.append(list(tx.items(prefix, start=start, stop=stop, reverse=reverse, limit=limit)))
    return seen


def act_on(model: PlainMap, script: Sequence[Action]) -> list[Any]:
    """The same on a dict."""
    seen: list[Any] = []
    own: dict[str, Any] = dict(model.values)
    written: dict[str, Any] = {}
    for name, arguments in script:
        if name == "put":
            own[arguments[0]] = written[arguments[0]] = arguments[1]
        elif name == "delete":
            seen.append(own.pop(arguments[0], ABSENT) is not ABSENT)
            written[arguments[0]] = ABSENT
        elif name == "get":
            seen.append(own.get(arguments[0], ABSENT))
        elif name == "entry":
            if arguments[0] not in written:
                seen.append(model.entries.get(arguments[0]))
        else:
            prefix, start, stop, reverse, limit = arguments
            found = model._range(own, prefix, start, stop)
            seen.append([(key, own[key]) for key in (found[::-1] if reverse else found)[:limit]])
    model.update(written)
    return seen


# -- one replica -------------------------------------------------------------------------------------------------------


class OneReplica:
    """A Replicator over a replica alone: a command is applied when it is proposed."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.replica = Replica()
        self.propose_now(CommandKind.CLUSTER, encode_upgrade(Versions(KNOWN_VERSION, 0)))

    def propose_now(self, kind: int, payload: bytes) -> bytes:
        return self.replica.apply(Envelope(kind, 0, 0, 0, payload).encode())

    async def propose(self, kind: int, payload: bytes, deadline: float | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.propose_now(kind, payload)

    async def barrier(self) -> None:
        await trio.lowlevel.checkpoint()

    async def ask_of_lease(self, lease: int, *, renew: bool) -> tuple[float, int, int]:
        raise AssertionError("nobody holds a lease here")

    def check_open(self) -> None:
        pass

    def add_listener(self, listener: Callable[[], None]) -> None:
        pass

    def remove_listener(self, listener: Callable[[], None]) -> None:
        pass

    def start_soon(self, task: Callable[[], Awaitable[None]], name: str) -> None:
        raise AssertionError("nobody subscribes here")


class MapComparison(RuleBasedStateMachine):
    """All operations, one after the other, on a replica that is now and then replaced by its own snapshot."""

    @initialize()
    def start(self) -> None:
        self.model = PlainMap()
        self.replicator = OneReplica()
        self.store = Store(self.replicator, WatchHub(self.replicator))
        self.floor = 0

    @rule(batch=st.lists(calls, min_size=1, max_size=6))
    def call(self, batch: list[Call]) -> None:
        """Any results are those of the dict."""
        trio.run(compare, self.model, self.store, batch)

    @rule(script=actions)
    def transact(self, script: list[Action]) -> None:
        """A function sees what it would see of the dict, and leaves what it would leave."""
        expected = act_on(self.model, script)
        actual = trio.run(self.store.transact, act, script)
        assert same(expected, actual), (script, expected, actual)

    @rule()
    def restore(self) -> None:
        """From here on, it is another replica, which never saw the log."""
        before, after = self.replicator.replica, Replica()
        after.restore(list(before.snapshot()))
        assert before.digest() == after.digest()
        self.replicator.replica = after

    @rule(back=st.integers(0, 20))
    def compact(self, back: int) -> None:
        """The past goes, and nothing else."""
        self.floor = max(self.floor, self.model.revision - back)
        self.replicator.propose_now(CommandKind.MAP, encode_compact(self.floor))

    @invariant()
    def equal(self) -> None:
        """The same entries, and the same keys at every revision that is left."""
        keyspace = self.replicator.replica.keyspace
        assert self.model.revision == keyspace.revision
        assert same(self.model.sorted_entries, entries_of(self.store))
        for revision in {self.floor, (self.floor + self.model.revision) // 2}:
            assert sorted(self.model.history[revision]) == [key for key, _ in keyspace.scan(revision=revision)]


@settings(max_examples=150, deadline=None)
@given(contents=st.dictionaries(keys, values), batch=st.lists(txns, min_size=1, max_size=4))
def test_transactions_are_those_of_the_dict(contents: dict[str, Any], batch: list[Call]) -> None:
    """Some on any map, one after the other."""
    model, replicator = PlainMap(), OneReplica()
    store = Store(replicator, WatchHub(replicator))
    filled = [Call("put", (key, value)) for key, value in contents.items()]
    trio.run(compare, model, store, filled + batch)
    assert same(model.sorted_entries, entries_of(store))


class LongMapComparison(MapComparison):
    """The same, many times."""


TestMapComparison = MapComparison.TestCase
TestMapComparison.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)
TestLongMapComparison = pytest.mark.long(LongMapComparison.TestCase)
TestLongMapComparison.settings = settings(max_examples=1500, stateful_step_count=40, deadline=None)


# -- a cluster ---------------------------------------------------------------------------------------------------------

SMALL = Settings(snapshot_log_entries=15, trailing_entries=3, request_timeout_s=120.0)
"""Snapshots all the time, and followers that were away need one."""

FAULTS = ["none", "none", "none", "kill leader", "kill follower", "transfer", "cut leader", "cut follower", "snapshot"]

Step = tuple[str, int, list[Call | list[Action]]]
"""A fault that strikes while the first call is under way; which peer calls; the calls."""
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(st.sampled_from(FAULTS), st.integers(0, 2), st.lists(calls | actions, min_size=1, max_size=6)),
    min_size=3,
    max_size=12,
)


class ClusterComparison:
    """One caller at a time, who waits for each result; faults strike while he waits."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.model = PlainMap()
        self.absent: str | None = None
        self.cut: str | None = None

    async def step(self, fault: str, caller: int, batch: Sequence[Call | list[Action]]) -> None:
        leader = id_of(await self.peers.leader(among=self.connected()))
        followers = [node_id for node_id in self.connected() if node_id != leader]
        struck = leader if fault.endswith("leader") else followers[caller % len(followers)]
        if self.absent is not None or self.cut is not None:
            fault = "mend" if fault != "none" else fault
        callers = [
            node_id for node_id in self.connected() if node_id != struck or not fault.startswith(("kill", "cut"))
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.call, callers[caller % len(callers)], batch)
            await trio.sleep(0.002 * caller)  # a round trip takes some of these
            await self.strike(fault, struck, leader)

    def connected(self) -> list[str]:
        return [node_id for node_id in "abc" if node_id not in (self.absent, self.cut)]

    async def strike(self, fault: str, struck: str, leader: str) -> None:
        if fault.startswith("kill"):
            self.absent = struck
            await self.peers.kill(struck)
        elif fault.startswith("cut"):
            self.cut = struck
            self.peers.network.isolate(struck)
        elif fault == "transfer":
            with contextlib.suppress(UnavailableError):  # its time is the clock's, which leaps while real disks write
                await self.peers[leader].transfer_leadership(struck)
        elif fault == "snapshot":
            await self.peers[struck].snapshot()
        elif fault == "mend":
            await self.mend()

    async def mend(self) -> None:
        if self.absent is not None:
            await self.peers.restart(self.absent, settings=SMALL)
        if self.cut is not None:
            self.peers.network.heal()
        self.absent = self.cut = None

    async def call(self, caller: str, batch: Sequence[Call | list[Action]]) -> None:
        store = self.peers[caller].store
        for call in batch:
            if isinstance(call, Call):
                expected, actual = self.model.do(call), await do(store, call)
            else:
                # Its replica may be behind: what it reads is checked before it is believed.
                expected, actual = act_on(self.model, call), await store.transact(act, call)
            assert same(expected, actual), (caller, call, expected, actual)
            if not isinstance(call, Call) or store.revision == self.model.revision:
                assert same(self.model.values, dict(store.items())), (caller, call)
        key = KEYS[self.model.revision % len(KEYS)]
        assert same(self.model._value(key), await store.get(key, ABSENT))

    async def end(self) -> None:
        """Every replica has everything, and the same."""
        await self.mend()
        await self.peers.leader()
        await self.peers.converge()
        for cluster in self.peers.all:
            assert same(self.model.sorted_entries, entries_of(cluster.store))
            for revision, then in enumerate(self.model.history):
                expected = then["a"].value if "a" in then else ABSENT
                assert same(expected, await cluster.store.get("a", ABSENT, revision=revision))


def compare_cluster(plan: list[Step], seed: int) -> None:
    """A cluster of three, with disks, through the plan."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with running(settings=SMALL, seed=seed, disks=Path(directory)) as peers:
                peers.network.set_faults(delay_s=(0.001, 0.004))
                comparison = ClusterComparison(peers)
                for step in plan:
                    await comparison.step(*step)
                await comparison.end()

    with structlog.testing.capture_logs():
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(plan=steps, seed=st.integers(0, 1000))
def test_a_cluster_is_the_dict_whatever_happens_to_its_peers(plan: list[Step], seed: int) -> None:
    """Leaders change, peers restart from their disks, snapshots are taken and installed: results and maps are equal."""
    compare_cluster(plan, seed)


@pytest.mark.long
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(plan=steps, seed=st.integers(0, 1000))
def test_a_cluster_is_the_dict_for_long(plan: list[Step], seed: int) -> None:
    """The same, many times."""
    compare_cluster(plan, seed)
