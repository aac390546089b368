"""Clients of one peer, each doing one operation after the other, and writing down what it was told.

An operation whose outcome is unknown may take effect at any later time. So its client goes on under another name then:
whoever has a name in the history has one operation at a time.

Values are unique: a put that is applied twice, or one that failed and took effect, is seen by its value. Counters are
only ever incremented, so that an increment that is applied twice is seen by the sum.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from typing import Any, Final

import trio

from replikv.cluster import Cluster
from replikv.errors import ClusterClosedError, OutcomeUnknownError, UnavailableError
from replikv.machine.commands import decode_increment_result
from replikv.machine.values import decode_value
from replikv.store.entry import ABSENT
from replikv.store.transactions import Transaction
from replikv.store.txn import Compare, Get, Put, TxnResult
from replikv.testing.chaos.records import OperationFile
from replikv.testing.linearizability import Call

__all__ = ["COUNTERS", "PAIRS", "REGISTERS", "Clients"]

REGISTERS: Final = "register/"
COUNTERS: Final = "counter/"
PAIRS: Final = "pair/"

_OPERATIONS: Final = {
    REGISTERS: ("put", "put", "put", "get", "get", "get", "cas", "cas", "delete", "pop", "setdefault"),
    COUNTERS: ("increment", "increment", "increment", "get"),
    PAIRS: ("update", "txn", "txn", "transact"),
}
"""What is done with keys of each kind, as often as it stands here."""
_KINDS: Final = (REGISTERS, REGISTERS, REGISTERS, COUNTERS, COUNTERS, PAIRS)

_CANCELLED: Final = 0.02
"""This part of the operations is cancelled on its way, within milliseconds."""


class Clients:
    """All clients of one process.

    Args:
        name: theirs begin with it; another one at each start.
        keys: registers, counters and pairs, each so many.
        pause_s: between two operations of one client, on average.
        chance: what they draw from.
    """

    def __init__(
        self, name: str, cluster: Cluster, file: OperationFile, keys: int, pause_s: float, chance: random.Random
    ) -> None:
        self._name = name
        self._cluster = cluster
        self._store = cluster.store
        self._file = file
        self._keys = keys
        self._pause_s = pause_s
        self._chance = chance
        self._stopping = False
        self.succeeded = 0
        """Operations that were answered, by all clients."""

    async def run(self, count: int) -> None:
        """Have so many work until they are stopped, and have all they asked for."""
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(self._work, f"{self._name}/{number}")

    def stop(self) -> None:
        """Have nobody begin another operation."""
        self._stopping = True

    async def read_all(self) -> dict[str, Any]:
        """Read every key once, linearizable; key -> value of those that are there."""
        found: dict[str, Any] = {}
        for kind in _OPERATIONS:
            for number in range(self._keys):
                for key in [f"{kind}{number}"] if kind != PAIRS else _pair(number):
                    value = await self._get(f"{self._name}/reader", key)
                    if value is not ABSENT:
                        found[key] = value
        return found

    async def _work(self, name: str) -> None:
        seen: dict[str, Any] = {}
        client, unknown = name, 0
        for number in itertools.count():
            if self._stopping:
                return
            kind = self._chance.choice(_KINDS)
            op = self._chance.choice(_OPERATIONS[kind])
            key = f"{kind}{self._chance.randrange(self._keys)}"
            patience_s = self._chance.uniform(0, 0.01) if self._chance.random() < _CANCELLED else float("inf")
            try:
                with trio.move_on_after(patience_s) as patience:
                    await self._do(client, op, key, f"{name}:{number}", seen)
                    self.succeeded += 1
                known = not patience.cancelled_caught
            except UnavailableError:  # written down, like all that follow, for others to judge
                known = True
            except OutcomeUnknownError:
                known = False
            except ClusterClosedError:
                return
            if not known:
                unknown += 1
                client = f"{name}.{unknown}"
            with contextlib.suppress(KeyError):  # a local read is nobody's to judge, and must not break
                self._store[key]
            await trio.sleep(self._pause_s * self._chance.uniform(0.5, 1.5))

    async def _do(self, client: str, op: str, key: str, value: str, seen: dict[str, Any]) -> None:
        """Do one operation, and remember what the key held then."""
        store, call = self._store, self._file.call
        match op:
            case "get":
                seen[key] = await self._get(client, key)
            case "put":
                with call(client, op, key, value=value) as done:
                    try:
                        done.ok(rev=await store.put(key, value))
                    except OutcomeUnknownError as exc:
                        await self._settle(done, exc.token)
                seen[key] = value
            case "cas":
                expected = seen.get(key, ABSENT)
                with call(client, op, key, value=value, expect=expected) as done:
                    done.ok(await store.compare_and_set(key, expected, value))
                seen[key] = value
            case "delete":
                with call(client, op, key) as done:
                    done.ok(await store.delete(key))
                seen[key] = ABSENT
            case "pop":
                with call(client, op, key) as done:
                    done.ok(await store.pop(key, ABSENT))
                seen[key] = ABSENT
            case "setdefault":
                with call(client, op, key, value=value) as done:
                    seen[key] = await store.setdefault(key, value)
                    done.ok(seen[key])
            case "increment":
                with call(client, op, key, value=1) as done:
                    try:
                        done.ok(await store.increment(key))
                    except OutcomeUnknownError as exc:
                        await self._settle(done, exc.token)
            case "update":
                with call(client, op, value=dict.fromkeys(_pair(key), value)) as done:
                    done.ok(rev=await store.update(dict.fromkeys(_pair(key), value)))
            case "txn":
                await self._txn(client, _pair(key), value, seen)
            case _:
                await self._transact(client, _pair(key), value)

    async def _get(self, client: str, key: str) -> Any:
        with self._file.call(client, "get", key) as done:
            value = await self._store.get(key, ABSENT)
            done.ok(value)
        return value

    async def _txn(self, client: str, pair: list[str], value: str, seen: dict[str, Any]) -> None:
        """Both keys are set if the first one holds what was seen last."""
        first = pair[0]
        expected = seen.get(first, ABSENT)
        asked = {"compares": [[first, "==", expected]], "then": dict.fromkeys(pair, value), "reads": pair}
        gets = [Get(key) for key in pair]
        with self._file.call(client, "txn", value=asked) as done:
            result: TxnResult = await self._store.txn(
                [Compare.value(first, "==", expected)], [*gets, *(Put(key, value) for key in pair)], gets
            )
            entries = result.results[: len(pair)]
            reads = {key: ABSENT if entry is None else entry.value for key, entry in zip(pair, entries, strict=True)}
            done.ok({"succeeded": result.succeeded, "reads": reads}, rev=result.revision if result.succeeded else None)
        seen[first] = value if result.succeeded else reads[first]

    async def _transact(self, client: str, pair: list[str], value: str) -> None:
        """Both are read, and set."""

        def function(tx: Transaction) -> dict[str, Any]:
            reads = {key: tx.get(key, ABSENT) for key in pair}
            for key in pair:
                tx.put(key, value)
            return reads

        asked = {"then": dict.fromkeys(pair, value), "reads": pair}
        with self._file.call(client, "txn", value=asked) as done:
            done.ok({"succeeded": True, "reads": await self._store.transact(function)})

    async def _settle(self, done: Call, token: tuple[int, int]) -> None:
        """Have the cluster say what became of it. What it says is held against the map like any other answer."""
        try:
            outcome = await self._cluster.outcome(token)
        except UnavailableError as exc:  # of the question: it would be taken for one of what was asked about
            raise OutcomeUnknownError(str(exc), token) from exc
        if not outcome:
            done.fail()
        elif done.operation.op == "increment":
            done.ok(decode_value(decode_increment_result(outcome.result).value))
        else:
            done.ok()


def _pair(key: str | int) -> list[str]:
    name = key if isinstance(key, str) else f"{PAIRS}{key}"
    return [f"{name}/left", f"{name}/right"]
