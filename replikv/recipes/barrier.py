"""Where so many parties wait for each other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import trio

from replikv import Claim, CompactedError, Compare, Entry, LaggedError, Put, Store
from replikv.recipes.acquiring import Holders
from replikv.recipes.arguments import check_count
from replikv.recipes.names import home

__all__ = ["Barrier", "Passage"]


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
    """What a party gets when the barrier opens."""

    generation: int
    """The same for all parties that pass together, and greater each time: the revision that opened the barrier."""
    index: int
    """0 to parties - 1, in the order in which they came: so that one of them, say 0, does what is to be done once."""


class Barrier:
    """``parties`` tasks of all processes wait until so many of them have come; then they go on together, and it closes.

    ::

        barrier = Barrier(store, "phase", 3)
        passage = await barrier.wait()

        async with barrier as passage:  # a double barrier
            ...

    As a block it is entered when all have come, and left when all who came with it have left theirs, or have died: so
    what follows the block finds the work of all others done, or given up. A body that raises, or is cancelled, leaves
    at once. It may be used again and again; of more parties than it takes, those who come first pass first.

    Who dies while it waits is not counted any more, ``ttl_s`` later at the latest; then somebody else has to come. The
    barrier opens by one transaction, for all its parties or for none, so no generation passes short of a party. One who
    dies after that has passed.

    LeaseExpiredError if this process was cut off for too long, while waiting or in the body of a block.
    Cancelling leaves nothing behind: then this party has not come, or has passed and left. A task may be in one block
    of a barrier at a time: RuntimeError.

    Args:
        store: the map; its keys are below ``barriers/NAME/`` in it.
        name: the same wherever it is used. No slash.
        parties: the same wherever it is used; some hundreds at the most, as one command opens it for all.
        ttl_s: how long the cluster counts a party that is gone.
    """

    def __init__(self, store: Store, name: str, parties: int, *, ttl_s: float = 10.0) -> None:
        check_count("parties", parties)
        # A contender's value is None while it waits, and its index when it has passed: then, the revision of that is
        # the generation, and the key stands for being inside.
        self._holders = Holders(store, home(store, "barriers", name), ttl_s)
        self._contenders = self._holders.contenders
        self._store = store
        self._parties = parties
        self._blocks: dict[trio.lowlevel.Task, AbstractAsyncContextManager[Passage]] = {}

    @property
    def parties(self) -> int:
        """How many pass together."""
        return self._parties

    def waiting(self) -> int:
        """How many wait, as far as this process's replica knows."""
        return sum(entry.value is None for entry in self._contenders.all())

    async def wait(self) -> Passage:
        """Return when so many parties have come, this one among them."""
        with self._holders.once():
            async with self._contenders.join() as claim:
                return await self._pass(claim)

    async def __aenter__(self) -> Passage:
        block = self._run_block()
        passage = await block.__aenter__()
        self._blocks[trio.lowlevel.current_task()] = block
        return passage

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._blocks.pop(trio.lowlevel.current_task()).__aexit__(kind, error, traceback)

    @contextlib.asynccontextmanager
    async def _run_block(self) -> AsyncGenerator[Passage]:
        with self._holders.once():
            async with self._contenders.join() as claim:
                passage = await self._pass(claim)
                yield passage
            while inside := [entry.key for entry in self._contenders.all() if _is_inside(entry, claim, passage)]:
                await self._contenders.wait_gone(inside[-1:])

    async def _pass(self, claim: Claim) -> Passage:
        while True:
            with contextlib.suppress(LaggedError, CompactedError):  # then look again
                async with self._store.watch(self._contenders.prefix, previous=False) as changes:
                    while True:
                        own = self._contenders.entry_of(claim)
                        if own.value is not None:
                            return Passage(own.mod_revision, own.value)
                        waiting = [entry for entry in self._contenders.all() if entry.value is None]
                        # It is the last of them who opens, so that one transaction is made and not one by each. If it
                        # dies first, they are not complete.
                        if waiting[self._parties - 1 : self._parties] == [own]:
                            await self._open(waiting[: self._parties])
                        else:
                            await anext(changes)

    async def _open(self, parties: Sequence[Entry]) -> None:
        """For these, if all are there still; if one is not, this replica knows when this returns."""
        compares = [Compare.mod_revision(entry.key, "==", entry.mod_revision) for entry in parties]
        puts = [Put(entry.key, index, lease=entry.lease) for index, entry in enumerate(parties)]
        await self._store.txn(compares, puts)


def _is_inside(entry: Entry, claim: Claim, passage: Passage) -> bool:
    """Another party of the same generation: the own key may be there still, if it could not be deleted."""
    return entry.key != claim.key and entry.value is not None and entry.mod_revision == passage.generation
