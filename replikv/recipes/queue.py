"""A queue of work that is shared by processes: first in, first out, at least once.

The keys of a queue "mails", below ``queues/mails/`` of the store it is made of, NUMBER being 20 digits:

- ``number``: the number that was given out last. It only grows, so the order of the keys is that of the puts.
- ``items/NUMBER``: an item that nobody has acknowledged.
- ``claims/NUMBER``: somebody has it. Attached to the lease of who does, and vanishes with it.
- ``deliveries/NUMBER``: how often it was claimed, as the version of the key.
- ``dead/NUMBER``: an item that was delivered too often.

Rules, each kept by the comparisons of one transaction:

1. An item is claimed by one at a time: a claim is put only where there is none.
2. An item is deleted only together with a claim that is still held; its own *fence* says which. So who has lost his
   claim cannot acknowledge what was delivered to somebody else.
3. Claims and burials name the number of deliveries that they know of. So they rest on no old state, and no item is
   delivered more than ``max_deliveries`` times.
4. An item never leaves its place: a claim is a key beside it. Whoever gets it back finds it where it was.

No clock decides any of this. The leader ends leases; the holder of one is cancelled before it does (``store.lease``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple

import trio

from replikv import (
    Change,
    Compare,
    Delete,
    Lease,
    LeaseExpiredError,
    Operation,
    OutcomeUnknownError,
    Put,
    ReplikvError,
    Store,
    Txn,
    UnavailableError,
)
from replikv.recipes.arguments import check_count, check_seconds
from replikv.recipes.changes import wait_changed
from replikv.recipes.names import home

__all__ = ["Delivery", "Queue", "QueueStatistics"]


PAGE: Final = 64
"""Items that are looked at together: those at the head that others hold are passed over."""

BREADTH_MAX: Final = 8
"""Items of which one command takes the first that is free by then: under contention, as many processes each get one in
one round trip. A claim costs about 400 bytes of the command."""


@dataclasses.dataclass(frozen=True, slots=True)
class QueueStatistics:
    """A queue in numbers, as this process's replica has it."""

    waiting: int
    """Items that nobody holds."""
    held: int
    """Items that somebody holds."""
    dead: int
    """Items that were delivered too often."""


class _Plan(NamedTuple):
    """What a command does with one item, if it does anything."""

    number: str
    item: Any
    deliveries: int
    buries: bool
    txn: Txn


class Delivery:
    """An item in the hands of a consumer: what ``async with queue.receive()`` gives."""

    __slots__ = ("_by_hand", "_lease", "_queue", "acknowledged", "count", "fence", "item", "number")

    def __init__(self, queue: Queue, lease: Lease, number: int, item: Any, count: int, fence: Compare) -> None:
        self._queue = queue
        self._lease = lease
        self.number = number
        """Its place in the queue, which ``put`` returned. Unique: the name to remember what was done with it under."""
        self.item = item
        """What was put, this consumer's own copy."""
        self.count = count
        """How often it was delivered, this time included. Above 1, somebody may have done all of it, or a part."""
        self.fence = fence
        """Holds as long as the claim does: ``store.txn([delivery.fence], [Put(...)])`` does nothing once it is lost."""
        self.acknowledged = False
        # Whether the end of the block is not to acknowledge: what was to be done with it may not have been done.
        self._by_hand = False

    def __repr__(self) -> str:
        return f"<Delivery {self.number} of {self._queue.name!r}, delivered {self.count} times>"

    async def acknowledge(self, *operations: Operation) -> None:
        """Take the item off the queue now, and do ``operations`` with it: all of it at one revision, or nothing.

        So what is done with an item *in the map* is done exactly once. What follows in the block is on its own: it
        rests on no lease any more, and whatever becomes of it, the item is done. Leaving the block acknowledges by
        itself, for those who have nothing to add, unless this was called.

        Cancelled, or after OutcomeUnknownError, it may have taken effect; if it did not, the item is delivered again,
        as after any other error.

        Raises:
            LeaseExpiredError: the claim is lost. Nothing was done; the item is delivered again.
            RuntimeError: it was acknowledged already.
        """
        if self.acknowledged:
            raise RuntimeError(f"item {self.number} of queue {self._queue.name!r} was acknowledged already")
        self._by_hand = True
        await self._queue._acknowledge(self, operations)
        self.acknowledged = True
        with contextlib.suppress(ReplikvError):  # then it expires
            await self._lease.revoke()


class Queue:
    """Items that processes hand to each other: any of them puts, any of them takes, each item goes to one of them.

    ::

        mails = Queue(cluster.store, "mails", visibility_s=30)
        await mails.put({"to": "ann@example.org", "text": "hello"})

        async with mails.take() as mail:
            await send(mail)

    An item is there until it was acknowledged, by leaving the block without an exception. Whoever leaves it with one,
    dies, or is cut off for ``visibility_s``, gives the item back, and it is delivered again: *at least once*. So a
    consumer does no harm by doing an item twice, or does it in the map, with :meth:`Delivery.acknowledge`.

    Items are delivered in the order of their puts: of two, the one whose ``put`` returned before the other's began
    comes first. One that was given back is at its old place.

    One object serves any number of tasks. Waiting costs no consensus; of the tasks of a process that wait, one watches.

    Args:
        store: the map, or a scope of it. The queue's keys begin with ``queues/NAME/`` there.
        name: without "/".
        visibility_s: how long after a consumer was last heard of its item is delivered to somebody else. A consumer
            that lives may take longer: its lease is kept alive. SQS: 30; a shorter time notices dead consumers sooner.
        max_deliveries: after so many deliveries without an acknowledgement an item is *dead*: it is put aside for
            :meth:`dead_letters`, and does not come back by itself. The same in every process. None: never.

    Raises:
        ConfigurationError: an argument makes no sense.
    """

    def __init__(
        self, store: Store, name: str, *, visibility_s: float = 30.0, max_deliveries: int | None = None
    ) -> None:
        self._prefix = home(store, "queues", name)
        check_seconds("visibility_s", visibility_s)
        if max_deliveries is not None:
            check_count("max_deliveries", max_deliveries)
        self.name = name
        self._store = store
        self._visibility_s = visibility_s
        self._max_deliveries = max_deliveries
        self._number = self._prefix + "number"
        self._items = self._prefix + "items/"
        self._claims = self._prefix + "claims/"
        self._deliveries = self._prefix + "deliveries/"
        self._dead = self._prefix + "dead/"
        # The one task of this process that waits for an item; the others wait for it, first come first.
        self._turn = trio.StrictFIFOLock()
        self._waiting: trio.CancelScope | None = None
        # What tasks of this process are about to claim: each goes for another item.
        self._reserved: set[str] = set()
        # How many items a claim names: doubled when others were quicker.
        self._breadth = 1

    def __repr__(self) -> str:
        return f"<Queue {self.name!r}>"

    # -- producers -----------------------------------------------------------------------------------------------------

    async def put(self, item: Any) -> int:
        """Append an item, once; the number that it has in the queue.

        Two commands: one that takes a number, and one that puts. The items of tasks that put at the same time share
        them with each other's on their way to disk; for many from one task, :meth:`put_many`.

        Raises:
            UnavailableError: surely not put, and never will be.
            OutcomeUnknownError: may have been put, or may be later, once. Cancelled, likewise.
        """
        return (await self.put_many([item]))[0]

    async def put_many(self, items: Iterable[Any]) -> range:
        """Append items, all at one revision, at numbers that follow each other. Errors as :meth:`put`.

        At most ``settings.operations_per_command_max`` items (1,024), and ``settings.command_bytes_max`` bytes (2 MiB):
        ValueTooLargeError.
        """
        items = list(items)
        try:
            last = await self._store.increment(self._number, len(items))
        except OutcomeUnknownError as exc:
            raise UnavailableError(
                f"nothing was put into queue {self.name!r}: it could not get a number: {exc}"
            ) from exc
        numbers = range(last - len(items) + 1, last + 1)
        await self._store.update({f"{self._items}{n:020}": item for n, item in zip(numbers, items, strict=True)})
        return numbers

    # -- consumers -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def take(self) -> AsyncGenerator[Any]:
        """Wait for an item, and hold it while the block runs; leaving it without an exception acknowledges.

        ::

            async with queue.take() as item:
                ...

        An exception gives the item back, and leaves unwrapped. It is then at its old place: a consumer that fails at it
        is the next to get it, too. When the claim is about to be lost, because this process could not renew its lease,
        the body is cancelled and LeaseExpiredError raised, before anybody else can have the item. Cancelled while it
        waits, it leaves nothing behind.

        Raises:
            LeaseExpiredError: the claim was lost, or could not be shown to be still held at the end. The item is
                delivered again.
            OutcomeUnknownError: at the end: nobody knows whether it was acknowledged; if not, it is delivered again.
                At the beginning: nothing was delivered.
            UnavailableError: likewise, and surely not acknowledged.
        """
        async with self.receive() as delivery:
            yield delivery.item

    @contextlib.asynccontextmanager
    async def take_nowait(self) -> AsyncGenerator[Any]:
        """As :meth:`take`, but trio.WouldBlock when there is nothing to take.

        "Nowait" means: not for items. The cluster is asked: before it says that there is nothing, it makes sure that
        this process's replica has whatever was put before the call.
        """
        async with self.receive_nowait() as delivery:
            yield delivery.item

    def receive(self) -> AbstractAsyncContextManager[Delivery]:
        """As :meth:`take`, for those who want more than the item: a :class:`Delivery`."""
        return self._receive(wait=True)

    def receive_nowait(self) -> AbstractAsyncContextManager[Delivery]:
        """As :meth:`take_nowait`, for those who want more than the item: a :class:`Delivery`."""
        return self._receive(wait=False)

    def __aiter__(self) -> Queue:
        """One delivery after the other, without end.

        ::

            async for delivery in queue:
                async with delivery as item:
                    ...
        """
        return self

    async def __anext__(self) -> AbstractAsyncContextManager[Any]:
        await trio.lowlevel.checkpoint()
        return self.take()

    @contextlib.asynccontextmanager
    async def _receive(self, *, wait: bool) -> AsyncGenerator[Delivery]:
        while True:
            # Without a lease: who waits has nothing to lose yet, and costs nobody anything.
            number = await (self._reserve() if wait else self._reserve_or_raise())
            try:
                async with self._store.lease(self._visibility_s) as lease:
                    delivery = await self._claim(number, lease)
                    if delivery is not None:
                        yield delivery
                        if not delivery._by_hand:
                            await self._acknowledge(delivery)
                        return
            finally:
                self._release(number)

    # -- from free to claimed ------------------------------------------------------------------------------------------

    async def _reserve(self) -> str:
        """Wait for an item that is free. Until its release no other task of this process goes for it."""
        async with self._turn:
            while (number := self._reserve_nowait()) is None:
                with trio.CancelScope() as self._waiting:
                    await wait_changed(
                        self._store, self._prefix, since=self._store.revision, wanted=self._may_have_freed
                    )
                self._waiting = None
        return number

    async def _reserve_or_raise(self) -> str:
        await trio.lowlevel.checkpoint()
        number = self._reserve_nowait()
        if number is None:
            await self._store.barrier()
            number = self._reserve_nowait()
        if number is None:
            raise trio.WouldBlock(f"nothing in queue {self.name!r} is free to be taken")
        return number

    def _reserve_nowait(self) -> str | None:
        number = next(self._free(), None)
        if number is not None:
            self._reserved.add(number)
        return number

    def _release(self, number: str) -> None:
        """The reverse of reserving; idempotent. Whoever waits looks again: perhaps the item was not claimed."""
        if number in self._reserved:
            self._reserved.remove(number)
            if self._waiting is not None:
                self._waiting.cancel()

    def _may_have_freed(self, change: Change) -> bool:
        put = change.kind == "put"
        return change.key.startswith(self._items if put else self._claims)

    def _free(self, start: str = "") -> Iterator[str]:
        """The items from ``start`` on, in order, that nobody holds and no task of this process is about to claim."""
        store, length = self._store, len(self._items)
        start = self._items + start
        while True:
            page = list(store.keys(self._items, start=start, limit=PAGE))
            for key in page:
                number = key[length:]
                if number not in self._reserved and self._claims + number not in store:
                    yield number
            if len(page) < PAGE:
                return
            start = page[-1] + "\0"

    async def _claim(self, number: str, lease: Lease) -> Delivery | None:
        """Claim a reserved item, or the next that is free, and release it; None if there is none left."""
        reserved: str | None = number
        while reserved is not None:
            try:
                delivery = await self._attempt(reserved, lease)
            finally:
                self._release(reserved)
            if delivery is not None:
                return delivery
            reserved = self._reserve_nowait()
        return None

    async def _attempt(self, number: str, lease: Lease) -> Delivery | None:
        """Claim an item, or of the next free ones the first that is still free when the command is applied.

        None if others were quicker, or if it was buried instead.
        """
        if self._items + number not in self._store or self._claims + number in self._store:
            return None  # the replica has learned better since the reservation
        behind = itertools.islice(self._free(number), self._breadth - 1)
        plans = [self._plan(candidate, lease) for candidate in (number, *behind)]
        command = plans[-1].txn
        for plan in reversed(plans[:-1]):
            command = Txn(plan.txn.compares, plan.txn.then, [command])
        result = await self._store.txn(command.compares, command.then, command.otherwise)
        for plan in plans:
            if result.succeeded:
                self._breadth = max(1, self._breadth // 2) if plan is plans[0] else self._breadth
                return None if plan.buries else self._delivery(plan, lease, result.revision)
            result = result.results[0] if result.results else result
        self._breadth = min(2 * self._breadth, BREADTH_MAX)
        return None

    def _plan(self, number: str, lease: Lease) -> _Plan:
        """What is to be done with an item that is free as far as this replica knows, if it is so."""
        store = self._store
        item, claim, deliveries = self._items + number, self._claims + number, self._deliveries + number
        count = store.entry(deliveries).version if deliveries in store else 0
        compares = [
            Compare.version(item, ">", 0),
            Compare.version(claim, "==", 0),
            Compare.version(deliveries, "==", count),
        ]
        value = store[item]
        if self._max_deliveries is not None and count >= self._max_deliveries:
            burial: list[Operation] = [Delete(item), Delete(deliveries), Put(self._dead + number, value)]
            return _Plan(number, value, count, True, Txn(compares, burial))
        claiming: list[Operation] = [Put(claim, None, lease), Put(deliveries, None)]
        return _Plan(number, value, count + 1, False, Txn(compares, claiming))

    def _delivery(self, plan: _Plan, lease: Lease, revision: int) -> Delivery:
        fence = Compare.create_revision(self._claims + plan.number, "==", revision)
        return Delivery(self, lease, int(plan.number), plan.item, plan.deliveries, fence)

    async def _acknowledge(self, delivery: Delivery, operations: Iterable[Operation] = ()) -> None:
        number = f"{delivery.number:020}"
        gone = [Delete(self._claims + number), Delete(self._items + number), Delete(self._deliveries + number)]
        result = await self._store.txn([delivery.fence], [*gone, *operations])
        if not result.succeeded:
            raise LeaseExpiredError(
                f"the claim of item {delivery.number} of queue {self.name!r} was lost before it was acknowledged:"
                " it is delivered again, if it was not yet"
            )

    # -- looking at it -------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Items that nobody has acknowledged, held ones included, as this process's replica has it. O(log n)."""
        return self._count(self._items)

    def statistics(self) -> QueueStatistics:
        """The queue in numbers, as this process's replica has it. O(log n)."""
        held = self._count(self._claims)
        return QueueStatistics(self.size - held, held, self._count(self._dead))

    def peek(self, default: Any = None) -> Any:
        """The item that would be delivered next, as this process's replica has it; it stays where it is."""
        store = self._store
        for key in store.keys(self._items):
            if self._claims + key[len(self._items) :] not in store:
                return store[key]
        return default

    def _count(self, prefix: str) -> int:
        return len(self._store.scoped(prefix))

    # -- the dead ------------------------------------------------------------------------------------------------------

    def dead_letters(self) -> dict[int, Any]:
        """Number -> item, of those that were delivered ``max_deliveries`` times, as this process's replica has it."""
        return {int(key[len(self._dead) :]): item for key, item in self._store.items(self._dead)}

    async def revive(self, number: int) -> bool:
        """Put a dead item back, at its old place, as if it had never been delivered; whether it was among the dead."""
        dead = f"{self._dead}{number:020}"
        await self._store.barrier()
        if dead not in self._store:
            return False
        put = Put(f"{self._items}{number:020}", self._store[dead])
        return (await self._store.txn([Compare.version(dead, ">", 0)], [Delete(dead), put])).succeeded

    async def discard(self, number: int) -> bool:
        """Delete a dead item; whether it was among the dead."""
        return await self._store.delete(f"{self._dead}{number:020}")
