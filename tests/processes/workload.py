"""Clients of one peer that use a few keys together, and a file of what they asked for and were told.

The histories of several processes make one: their times are from one clock (CLOCK_MONOTONIC is the machine's), and the
checker of linearizability judges them together.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import trio

from replikv import ABSENT, ClusterClosedError, Store
from replikv.testing.linearizability import Call, Operation, Recorder, read_history, write_history

REGISTERS = ("put", "put", "get", "get", "cas", "delete")
COUNTERS = ("increment", "increment", "increment", "get", "delete")
"""What is done with keys of each kind, as often as it stands here."""


class HistoryFile:
    """Two lines for each operation: one before it is called, and one with the answer. So ``kill -9`` loses none."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._recorder = Recorder(time.monotonic)

    @contextlib.contextmanager
    def call(self, client: str, op: str, key: str, *, value: Any = None, expect: Any = None) -> Iterator[Call]:
        """As :meth:`Recorder.call`."""
        call = self._recorder.call(client, op, key, value=value, expect=expect)
        try:
            with call:
                write_history([call.operation], self._file)
                yield call
        finally:
            write_history([call.operation], self._file)


def read_histories(paths: Iterable[Path]) -> list[Operation]:
    """The operations in these files. Of the lines for one operation the last counts; one cut off by a kill does not."""
    operations: dict[tuple[Path, str, float], str] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                record = json.loads(line)
                operations[path, record["client"], record["call"]] = line
    return read_history(operations.values())


class Workload:
    """Clients of one peer, each doing one operation after the other until they are stopped."""

    def __init__(self, name: str, store: Store, history: HistoryFile) -> None:
        self._name = name
        self._store = store
        self._history = history
        self._clients = itertools.count()
        self._stopping = False

    async def run(self, clients: int, keys: int, pause_s: float, only: str | None) -> None:
        """Have so many clients use so many registers and counters, until they are stopped and have all they asked for.

        ``only``: this operation alone, on registers.
        """
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(self._run_client, keys, pause_s, only)

    def stop(self) -> None:
        """Have no client begin another operation."""
        self._stopping = True

    async def read_all(self, keys: int) -> None:
        """Read every key once."""
        for key in itertools.chain.from_iterable((f"register/{n}", f"counter/{n}") for n in range(keys)):
            await self._get(f"{self._name}/reader", key)

    async def _run_client(self, keys: int, pause_s: float, only: str | None) -> None:
        name = f"{self._name}/{next(self._clients)}"
        chance = random.Random(name)
        seen: dict[str, Any] = {}
        with contextlib.suppress(ClusterClosedError):  # this peer is on its way out
            for number in itertools.takewhile(lambda _: not self._stopping, itertools.count()):
                kind = "register" if only or chance.random() < 0.7 else "counter"
                key = f"{kind}/{chance.randrange(keys)}"
                op = only or chance.choice(REGISTERS if kind == "register" else COUNTERS)
                with contextlib.suppress(TimeoutError):  # recorded, for the test to judge
                    seen[key] = await self._do(name, op, key, f"{name}:{number}", seen.get(key, ABSENT))
                await trio.sleep(pause_s * chance.uniform(0.5, 1.5))

    async def _do(self, client: str, op: str, key: str, value: str, seen: Any) -> Any:
        """Do one operation; the value that the key had then, as far as the answer says."""
        store, call = self._store, self._history.call
        match op:
            case "get":
                return await self._get(client, key)
            case "put":
                with call(client, op, key, value=value) as done:
                    done.ok(rev=await store.put(key, value))
                return value
            case "cas":
                with call(client, op, key, value=value, expect=seen) as done:
                    was_set = await store.compare_and_set(key, seen, value)
                    done.ok(was_set)
                return value if was_set else await self._get(client, key)
            case "delete":
                with call(client, op, key) as done:
                    done.ok(await store.delete(key))
                return ABSENT
            case _:
                with call(client, op, key, value=1) as done:
                    total = await store.increment(key)
                    done.ok(total)
                return total

    async def _get(self, client: str, key: str) -> Any:
        with self._history.call(client, "get", key) as done:
            value = await self._store.get(key, ABSENT)
            done.ok(value)
        return value
