"""Faults at random, and a judge who knows nothing but who was in when, with which token, and what the cluster took.

The peers of a mock clock share one clock, so that exclusion holds in time here, and not by token only: nobody comes in
before the last one is out.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from clusters import Peers, running
from contending import TTL_S, Stay, Stays, left_behind, overlaps

from replikv import Claim, LeaseExpiredError, OutcomeUnknownError, Put, Store, UnavailableError
from replikv.recipes import Election, Lock, ReadWriteLock, Semaphore

STORM_S = 40.0
CALM_S = 5 * TTL_S
LIMIT = 2


def block_of(recipe: str, store: Store, kind: str) -> AbstractAsyncContextManager[Claim]:
    match recipe:
        case "lock":
            return Lock(store, "job", ttl_s=TTL_S)
        case "semaphore":
            return Semaphore(store, "job", LIMIT, ttl_s=TTL_S)
        case "election":
            return led(Election(store, "job", ttl_s=TTL_S))
        case _:
            lock = ReadWriteLock(store, "job", ttl_s=TTL_S)
            return lock.read() if kind == "reader" else lock.write()


@contextlib.asynccontextmanager
async def led(election: Election) -> AsyncGenerator[Claim]:
    """A leader, as a holder."""
    async with election.campaign() as elected:
        yield elected.claim


class Contender:
    """Takes it again and again, patient or not, and writes under its fence while it is in."""

    def __init__(self, recipe: str, store: Store, name: str, kind: str, stays: Stays, seed: str) -> None:
        self._recipe = recipe
        self._store = store
        self._name = name
        self._kind = kind
        self._stays = stays
        self._chance = random.Random(seed)
        self.entered = 0
        self.written: list[tuple[int, int]] = []
        """(revision, token) of what the cluster took."""

    async def run(self, calm_at: float, until: float) -> None:
        while (now := trio.current_time()) < until:
            patience_s = self._chance.choice([0.5, 5.0, 1e6]) if now < calm_at else 1e6
            with (
                contextlib.suppress(LeaseExpiredError, UnavailableError, OutcomeUnknownError),
                trio.move_on_after(patience_s) as scope,
            ):
                async with block_of(self._recipe, self._store, self._kind) as held:
                    scope.deadline = trio.current_time() + 20.0
                    self.entered += 1
                    with self._stays.stay(self._name, held.token, self._kind):
                        await self._work(held)
            await trio.sleep(self._chance.uniform(0.0, 1.0))

    async def _work(self, held: Claim) -> None:
        for _ in range(self._chance.randrange(1, 6)):
            done = await self._store.txn([held.fence], [Put("resource", self._name)])
            if done.succeeded:
                self.written.append((done.revision, held.token))
            await trio.sleep(self._chance.uniform(0.0, 0.5))


async def rage(peers: Peers, chance: random.Random, until: float) -> None:
    """Cut off one, two from one, everybody; hand leadership over; in between, calm of some length."""
    while trio.current_time() < until:
        match chance.randrange(4):
            case 0:
                peers.network.isolate(chance.choice("abc"))
            case 1:
                peers.network.partition(["a"], ["b"], ["c"])
            case 2:
                peers.network.set_faults(loss=0.2)
            case _:
                with contextlib.suppress(UnavailableError):
                    for cluster in peers.all:
                        if cluster.is_leader:
                            await cluster.transfer_leadership()
                            break
        await trio.sleep(chance.choice([0.5, 2.0, TTL_S, 2 * TTL_S]))
        peers.network.set_faults()
        peers.network.heal()
        await trio.sleep(chance.choice([0.5, 2.0, TTL_S]))


def excluded(recipe: str, stays: Sequence[Stay]) -> list[object]:
    """Who was in though another was."""
    pairs = overlaps(stays)
    match recipe:
        case "semaphore":
            moments = sorted({stay.came for stay in stays})
            crowds = [[stay for stay in stays if stay.came <= moment < stay.left] for moment in moments]
            return [crowd for crowd in crowds if len(crowd) > LIMIT]
        case "read_write_lock":
            return [pair for pair in pairs if any(stay.kind == "writer" for stay in pair)]
        case _:
            return list(pairs)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 10))])
@pytest.mark.parametrize("recipe", ["lock", "read_write_lock", "semaphore", "election"])
async def test_nobody_is_in_who_is_excluded_whatever_the_network_does(
    autojump_clock: trio.abc.Clock, recipe: str, seed: int
) -> None:
    """And nobody writes who was followed; when it is calm again, everybody gets in; nothing is left at the end."""
    stays = Stays()
    async with running(seed=seed) as peers:
        await peers.leader()
        chance = random.Random(f"{recipe}/{seed}")
        contenders = [
            Contender(recipe, peers[node_id].store, name, kind, stays, f"{seed}/{name}")
            for node_id in "abc"
            for kind in ("reader", "writer")
            for name in [f"{node_id}-{kind}"]
        ]
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for contender in contenders:
                nursery.start_soon(contender.run, began + STORM_S, began + STORM_S + CALM_S)
            await rage(peers, chance, began + STORM_S)
            await peers.leader()
            entered = [contender.entered for contender in contenders]
        assert all(contender.entered > before for contender, before in zip(contenders, entered, strict=True)), entered
        assert [] == excluded(recipe, stays.done)
        if recipe in {"lock", "election"}:
            written = sorted(itertools.chain.from_iterable(contender.written for contender in contenders))
            tokens = [token for _, token in written]
            assert sorted(tokens) == tokens
            assert len(set(tokens)) > 10
        await trio.sleep(2 * TTL_S)
        await peers.converge()
        assert (["resource"], 0) == left_behind(await peers.leader())
