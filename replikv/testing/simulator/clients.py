"""Clients and watchers: they ask the processes that they are attached to, and are held to what they see."""

from __future__ import annotations

from collections.abc import Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, Final

import outcome

from replikv.errors import CompactedError, OutcomeUnknownError, UnavailableError
from replikv.machine import choices, commands
from replikv.machine.envelope import CommandKind, Status
from replikv.machine.record import HEAD
from replikv.machine.values import decode_value, encode_value
from replikv.store.entry import ABSENT
from replikv.testing.linearizability import Operation
from replikv.testing.simulator.loop import Errand
from replikv.testing.simulator.oracle import broken

if TYPE_CHECKING:
    from replikv.testing.simulator.process import Process
    from replikv.testing.simulator.simulation import Simulation

__all__ = ["Client", "Watcher"]

_BYTES_MAX: Final = 512
_HEAD_BYTES: Final = HEAD.size
Answer = tuple[Any, int | None]
"""Result and revision."""


class _RefusedError(Exception):
    """The command was refused: it surely did nothing."""


def _encode(value: object) -> bytes:
    return encode_value(value, _BYTES_MAX)


def _decode(data: bytes | None) -> Any:
    return ABSENT if data is None else decode_value(data)


async def _submit(process: Process, payload: bytes) -> bytes:
    driver = process.driver
    driver.wake()
    result = await process.proposals.submit(CommandKind.MAP, payload, driver.deadline())
    if result[0] != Status.OK:
        raise _RefusedError(f"{Status(result[0]).name}: {result[1:]!r}")
    return result[1:]


async def _barrier(process: Process) -> None:
    process.driver.wake()
    await process.barriers.wait(process.driver.deadline())


class Client:
    """Does one thing after the other, and writes down what it saw."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.name = name
        self.random = Random(f"{name} of {simulation.options.seed}")  # noqa: S311  # a function of the seed
        self.process: Process | None = None
        self.answered = 0
        """Operations that were answered with success."""
        self._seen: dict[str, Any] = {}
        self._number = 0
        self._errand: Errand | None = None
        self._calling = False
        self._known: Process | None = None
        self._operation: dict[str, Any] = {}
        simulation.after(self.random.random(), self._begin)

    def _pause(self) -> float:
        return self.random.expovariate(1 / self.simulation.options.think_s)

    def _attach(self) -> Process | None:
        if self.process is None or self.process.over or self.random.random() < 0.02:
            processes = list(self.simulation.processes.values())
            self.process = self.random.choice(processes) if processes else None
        return self.process

    def _begin(self) -> None:
        process = self._attach()
        if process is None:
            self.simulation.after(0.5, self._begin)
            return
        self._calling = True
        if process is not self._known:
            self._known = process
            process.ended.append(lambda: self._left_alone(process))
        process.later(0.0, self._call, process)

    def _left_alone(self, process: Process) -> None:
        """The process has ended: whatever it was asked for, nobody will say."""
        if process is not self.process:
            return
        if self._errand is not None:
            self._errand.forget()
            self._end("unknown")
        elif self._calling:
            self._calling = False
            self.simulation.after(self._pause(), self._begin)

    def _call(self, process: Process) -> None:
        self._calling = False
        operation, coroutine = self._draw(process)
        simulation = self.simulation
        simulation.moment += 1
        operation["called"] = simulation.moment
        self._operation = operation
        self._errand = errand = Errand(simulation.loop, coroutine, self._done)
        if simulation.telling:
            simulation.tell(f"{self.name} at {process.node_id}: {operation['op']} {operation.get('key', '')}")
        errand.start()
        if not errand.over and self.random.random() < simulation.options.give_up:
            process.later(self.random.random() * 2, self._give_up, errand)

    def _give_up(self, errand: Errand) -> None:
        if errand is self._errand and not errand.over:
            self.simulation.counts["operations cancelled"] += 1
            errand.cancel()
            self._end("unknown")

    def _done(self, answer: outcome.Outcome[Answer]) -> None:
        if not isinstance(answer, outcome.Error):
            self._end("ok", *answer.unwrap())
        elif isinstance(answer.error, UnavailableError | _RefusedError):
            self._end("fail")
        elif isinstance(answer.error, OutcomeUnknownError):
            self._end("unknown")
        else:
            raise answer.error

    def _end(self, status: str, result: Any = None, revision: int | None = None) -> None:
        simulation = self.simulation
        simulation.moment += 1
        operation, self._operation, self._errand = self._operation, {}, None
        operation |= {"status": status, "returned": simulation.moment if status != "unknown" else None}
        if status == "ok":
            self.answered += 1
            operation |= {"result": result, "rev": revision}
        if operation["op"] != "lease":
            simulation.history.append(Operation(client=self.name, **operation))
        simulation.counts[f"operations {status}"] += 1
        if simulation.telling:
            simulation.tell(f"{self.name}: {operation['op']} {operation.get('key', '')} {status} {result!r} {revision}")
        key = operation.get("key")
        if status == "ok" and key is not None:
            if operation["op"] == "get":
                self._seen[key] = result
            elif operation["op"] in ("put", "cas") and result is not False:
                self._seen[key] = operation["value"]
        simulation.after(self._pause(), self._begin)

    def pending(self) -> Operation | None:
        """What it waits for: nobody knows what becomes of it."""
        if self._errand is None or self._operation["op"] == "lease":
            return None
        return Operation(client=self.name, **self._operation)

    def close(self) -> None:
        """The run is over."""
        if self._errand is not None:
            self._errand.forget()

    # -- what it does --------------------------------------------------------------------------------------------------

    def _draw(self, process: Process) -> tuple[dict[str, Any], Coroutine[Any, Any, Answer]]:
        random = self.random
        key = f"r{random.randrange(self.simulation.options.keys)}"
        self._number += 1
        value = f"{self.name}-{self._number}"
        if random.random() < self.simulation.options.reads:
            if random.random() < 0.3:
                key = f"n{random.randrange(2)}"
            return {"op": "get", "key": key}, self._get(process, key)
        kind = random.random()
        if kind < 0.45:
            return {"op": "put", "key": key, "value": value}, self._put(process, key, value)
        if kind < 0.75:
            key = f"n{random.randrange(2)}"
            return {"op": "increment", "key": key, "value": 1}, self._increment(process, key)
        if kind < 0.87:
            expected = self._seen.get(key, ABSENT)
            return (
                {"op": "cas", "key": key, "expect": expected, "value": value},
                self._compare_and_set(process, key, expected, value),
            )
        if kind < 0.9:
            return {"op": "delete", "key": key}, self._delete(process, key)
        if kind < 0.92:
            return {"op": "pop", "key": key}, self._pop(process, key)
        if kind < 0.94:
            return {"op": "setdefault", "key": key, "value": value}, self._set_default(process, key, value)
        if kind < 0.95:
            items = {f"r{number}": value + f"+{number}" for number in range(self.simulation.options.keys)}
            return {"op": "update", "value": items}, self._update(process, items)
        if kind < 0.96:
            return {"op": "lease"}, self._lease(process, random.randrange(4))
        other = f"r{random.randrange(self.simulation.options.keys)}"
        expected = self._seen.get(key, ABSENT)
        writes = {other: value + "+", key: value}
        asked = {"compares": [[key, "==", expected]], "then": writes, "otherwise": {}, "reads": [key]}
        return {"op": "txn", "value": asked}, self._transact(process, key, expected, writes)

    @staticmethod
    async def _put(process: Process, key: str, value: str) -> Answer:
        data = await _submit(process, commands.encode_put(key.encode(), _encode(value)))
        return None, commands.decode_put_result(data)

    @staticmethod
    async def _get(process: Process, key: str) -> Answer:
        await _barrier(process)
        return _decode(process.replica.keyspace.get_value(key)), None

    @staticmethod
    async def _increment(process: Process, key: str) -> Answer:
        data = await _submit(process, commands.encode_increment(key.encode(), _encode(1)))
        result = commands.decode_increment_result(data)
        return _decode(result.value), result.revision

    @staticmethod
    async def _compare_and_set(process: Process, key: str, expected: Any, value: str) -> Answer:
        wanted = None if expected is ABSENT else _encode(expected)
        data = await _submit(process, commands.encode_compare_and_set(key.encode(), wanted, _encode(value)))
        result = commands.decode_outcome_result(data)
        return result.done, result.revision if result.done else None

    @staticmethod
    async def _delete(process: Process, key: str) -> Answer:
        data = await _submit(process, commands.encode_delete(key.encode()))
        result = commands.decode_outcome_result(data)
        return result.done, result.revision if result.done else None

    @staticmethod
    async def _pop(process: Process, key: str) -> Answer:
        data = await _submit(process, commands.encode_pop(key.encode()))
        result = commands.decode_old_value_result(data)
        return _decode(result.value), result.revision if result.value is not None else None

    @staticmethod
    async def _set_default(process: Process, key: str, value: str) -> Answer:
        data = await _submit(process, commands.encode_setdefault(key.encode(), _encode(value)))
        result = commands.decode_old_value_result(data)
        made = result.value is None
        return value if made else _decode(result.value), result.revision if made else None

    @staticmethod
    async def _update(process: Process, items: dict[str, str]) -> Answer:
        encoded = {key.encode(): _encode(value) for key, value in items.items()}
        data = await _submit(process, commands.encode_update(encoded))
        return None, commands.decode_put_result(data)

    @staticmethod
    async def _lease(process: Process, number: int) -> Answer:
        """Keys that come and go with a lease. They are in no history: replicas and watchers are compared."""
        lease = commands.decode_grant_result(await _submit(process, commands.encode_grant(1000)))
        for key in (f"l{number}", f"l{number}+"):
            await _submit(process, commands.encode_put(key.encode(), _encode(number), lease))
        await _submit(process, commands.encode_attach(f"l{number}".encode(), 0))
        await _submit(process, commands.encode_revoke(lease))
        return None, None

    @staticmethod
    async def _transact(process: Process, key: str, expected: Any, writes: dict[str, str]) -> Answer:
        operand = None if expected is ABSENT else _encode(expected)
        compare = choices.Comparison(choices.Target.VALUE, key, choices.Relation.EQUAL, operand)
        puts = [choices.Put(name, _encode(value), 0) for name, value in writes.items()]
        choice = choices.Choice([compare], [choices.Get(key), *puts], [choices.Get(key)])
        data = await _submit(process, choices.encode_transact(choice))
        revision, result = choices.decode_transact_result(data)
        found = result.results[0]
        assert isinstance(found, list)
        read = _decode(found[0].value) if found else ABSENT
        answer = {"succeeded": result.succeeded, "reads": {key: read}}
        return answer, revision if result.succeeded else None


class Watcher:
    """Follows all changes of the replica of one process, and goes on with another one when that ends."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.name = name
        self.random = Random(f"{name} of {simulation.options.seed}")  # noqa: S311  # a function of the seed
        self.revision = 0
        self._map: dict[str, bytes] = {}
        self._process: Process | None = None
        simulation.after(self.random.random(), self._attach)

    def _attach(self) -> None:
        processes = list(self.simulation.processes.values())
        if not processes:
            self.simulation.after(0.5, self._attach)
            return
        self._process = process = self.random.choice(processes)
        process.listeners.append(self._read)
        process.ended.append(self._detached)
        self._read()

    def _detached(self) -> None:
        self._process = None
        self.simulation.after(self.random.random(), self._attach)

    def _read(self) -> None:
        process = self._process
        assert process is not None
        keyspace = process.replica.keyspace
        if keyspace.revision <= self.revision:
            return  # it lags behind what was seen elsewhere
        oracle = self.simulation.oracle
        try:
            changes_since = keyspace.changes_since(self.revision)
        except CompactedError:
            self.simulation.counts["watches that began anew"] += 1
            self._map = dict(keyspace.scan())
            self.revision = keyspace.revision
            return
        for revision, changes in changes_since:
            if revision != self.revision + 1:
                broken("watches", f"{self.name} sees revision {revision} after {self.revision}")
            oracle.compare_changes(process.node_id, revision, changes)
            for key, record, previous in changes:
                if self._map.get(key) != previous:
                    broken("watches", f"{self.name} is told of another {key!r} before {revision} than it saw")
                if HEAD.unpack_from(record)[4]:
                    self._map[key] = record
                else:
                    self._map.pop(key, None)
            self.revision = revision
            self.simulation.counts["changes watched"] += 1

    def finish(self) -> None:
        """All is well, and nothing more happens: it must have been told of everything that its replica has."""
        process = self._process
        if process is None:
            return
        keyspace = process.replica.keyspace
        if self.revision < keyspace.revision:
            broken("watches", f"{self.name} was told up to {self.revision}, and {keyspace.revision} is there")
        if self.revision == keyspace.revision and self._map != dict(keyspace.scan()):
            broken("watches", f"{self.name} has another map at {self.revision} than its replica")
