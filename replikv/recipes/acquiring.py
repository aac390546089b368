"""What tasks take by ``async with``, and give back at its end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeAlias

import trio

from replikv import Claim, Contenders, Entry, Store
from replikv.recipes.arguments import check_seconds

__all__ = ["Acquiring", "Holders", "nearest"]

Rule: TypeAlias = Callable[[Sequence[Entry]], Sequence[Entry]]
"""See :meth:`Contenders.wait_turn`."""


def nearest(ahead: Sequence[Entry]) -> Sequence[Entry]:
    """The rule of who excludes everybody: wait for the last one ahead, and no other, so that nobody wakes in vain."""
    return ahead[-1:]


class Holders:
    """Contenders for something that a task holds when it is its turn."""

    def __init__(self, store: Store, prefix: str, ttl_s: float) -> None:
        check_seconds("ttl_s", ttl_s)
        self.contenders = Contenders(store, prefix, ttl_s)
        self._store = store
        # Tasks that hold or wait, by way of this object. One that did so twice would wait for itself.
        self._tasks: set[trio.lowlevel.Task] = set()

    @contextlib.contextmanager
    def once(self) -> Iterator[None]:
        """Run the block unless this task is in one already: RuntimeError."""
        task = trio.lowlevel.current_task()
        if task in self._tasks:
            raise RuntimeError(
                f"this task has {self.contenders.prefix.rstrip('/')} already, or waits for it: entering it again would"
                " wait for itself; pass what the first 'async with' gave on to who needs it"
            )
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.remove(task)

    @contextlib.asynccontextmanager
    async def hold(
        self, rule: Rule, value: Any = None, *, kind: str = "", nowait: bool = False
    ) -> AsyncGenerator[Claim]:
        """Run the block when it is this task's turn by the rule; with ``nowait``: now, or raise trio.WouldBlock."""
        with self.once():
            if nowait:
                await self._store.barrier()
                _check_free(rule(self.contenders.all()))  # the common refusal costs nobody a lease
            async with self.contenders.join(value, kind=kind) as claim:
                if nowait:
                    _check_free(rule(self.contenders.ahead_of(claim)))
                await self.contenders.wait_turn(claim, rule)
                yield claim


class Acquiring:
    """At most ``limit`` holders at a time, who are the first in line."""

    def __init__(self, store: Store, prefix: str, limit: int, ttl_s: float, owner: Any) -> None:
        self._holders = Holders(store, prefix, ttl_s)
        self._store = store
        self._limit = limit
        self._owner = owner
        # By the task that is inside: __aexit__ is not told which block it ends, but runs in that block's task.
        self._blocks: dict[trio.lowlevel.Task, AbstractAsyncContextManager[Claim]] = {}

    async def __aenter__(self) -> Claim:
        block = self._holders.hold(self._in_my_way, self._owner)
        claim = await block.__aenter__()
        self._blocks[trio.lowlevel.current_task()] = block
        return claim

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._blocks.pop(trio.lowlevel.current_task()).__aexit__(kind, error, traceback)

    def acquire_nowait(self) -> AbstractAsyncContextManager[Claim]:
        """As the block itself, but who would have to wait gets trio.WouldBlock.

        ::

            try:
                async with lock.acquire_nowait() as held:
                    ...
            except trio.WouldBlock:
                ...

        What it does not wait for are other contenders; the cluster is asked, as ever. An attempt that fails is a
        contender itself for a moment, and may be in the way of another attempt.
        """
        return self._holders.hold(self._in_my_way, self._owner, nowait=True)

    def owners(self) -> list[Any]:
        """The ``owner`` of each that holds it, as far as this process's replica knows; first come, first listed."""
        return [entry.value for entry in self._holders.contenders.all()[: self._limit]]

    def _in_my_way(self, ahead: Sequence[Entry]) -> Sequence[Entry]:
        # While so many of those ahead are there, whichever, there is no room. The nearest, because those let go last.
        return ahead[-self._limit :] if len(ahead) >= self._limit else ()


def _check_free(entries: Sequence[Entry]) -> None:
    if entries:
        raise trio.WouldBlock(f"{entries[-1].key} came before")
