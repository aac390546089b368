"""Clients: they ask the processes that they are attached to, and what they are told is written down."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import outcome

from replikv.errors import OutcomeUnknownError, UnavailableError
from replikv.machine import choices, commands
from replikv.machine.envelope import CommandKind, Status
from replikv.machine.values import decode_value, encode_value
from replikv.peer.outcomes import Outcome, outcome_of
from replikv.store.entry import ABSENT
from replikv.testing.linearizability import Operation
from replikv.testing.simulator.loop import Errand

if TYPE_CHECKING:
    from replikv.testing.simulator.process import Process
    from replikv.testing.simulator.simulation import Simulation

__all__ = ["Client"]

_BYTES_MAX: Final = 512
_QUESTIONS_MAX: Final = 3
"""So often somebody asks for an outcome."""
Answer: TypeAlias = tuple[Any, int | None]
"""Result and revision."""
Decode: TypeAlias = Callable[[bytes], Answer]
"""Reads the result of a command."""


class _RefusedError(Exception):
    """The command was refused: it surely did nothing."""


def _encode(value: object) -> bytes:
    return encode_value(value, _BYTES_MAX)


def _decode(data: bytes | None) -> Any:
    return ABSENT if data is None else decode_value(data)


async def _submit(process: Process, payload: bytes, decode: Decode) -> Answer:
    driver = process.driver
    driver.wake()
    result = await process.proposals.submit(CommandKind.MAP, payload, driver.deadline())
    if result[0] != Status.OK:
        raise _RefusedError(f"{Status(result[0]).name}: {result[1:]!r}")
    return decode(result[1:])


async def _settle(process: Process, token: tuple[int, int]) -> Outcome:
    driver = process.driver
    driver.wake()
    return outcome_of(token, await process.proposals.settle(token, driver.deadline()))


async def _barrier(process: Process) -> None:
    process.driver.wake()
    await process.barriers.wait(process.driver.deadline())


class Client:
    """Does one thing after the other, and writes down what it saw.

    An operation whose outcome is unknown may take effect at any later time. So it goes on under another name then:
    whoever has a name in the history has one operation at a time.
    """

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.name = name
        self._unknown = 0
        """Operations whose outcome it never learnt."""
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
        self._decode: Decode = _nothing
        self._questions = 0
        simulation.after(self.random.random(), self._begin)

    @property
    def _called(self) -> str:
        return f"{self.name}.{self._unknown}" if self._unknown else self.name

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
        self._attend(process)
        process.later(0.0, self._call, process)

    def _attend(self, process: Process) -> None:
        if process is not self._known:
            self._known = process
            process.ended.append(lambda: self._left_alone(process))

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
        self._questions = 0
        simulation.moment += 1
        operation["called"] = simulation.moment
        self._operation = operation
        self._errand = errand = Errand(simulation.loop, coroutine, self._done, process.later)
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
            self._ask_for_outcome(answer.error.token)
        else:
            raise answer.error

    def _ask_for_outcome(self, token: tuple[int, int]) -> None:
        """What became of the operation? Its own peer may be asked, or any other."""
        process = self._attach() if self.random.random() < self.simulation.options.settle else None
        self._errand = None
        if process is None or self._questions >= _QUESTIONS_MAX:
            self._end("unknown")
            return
        self._questions += 1
        self._attend(process)

        def settled(answer: outcome.Outcome[Outcome]) -> None:
            if not isinstance(answer, outcome.Error):
                found = answer.unwrap()
                self.simulation.counts[f"outcomes settled as {'applied' if found else 'not applied'}"] += 1
                self._end("ok", *self._decode(found.result)) if found else self._end("fail")
            elif isinstance(answer.error, UnavailableError):
                self._ask_for_outcome(token)
            elif isinstance(answer.error, OutcomeUnknownError):
                self.simulation.counts["outcomes that nobody knows"] += 1
                self._end("unknown")
            else:
                raise answer.error

        self._errand = errand = Errand(self.simulation.loop, _settle(process, token), settled, process.later)
        process.later(0.0, errand.start)

    def _end(self, status: str, result: Any = None, revision: int | None = None) -> None:
        simulation = self.simulation
        simulation.moment += 1
        operation, self._operation, self._errand = self._operation, {}, None
        operation |= {"status": status, "returned": simulation.moment if status != "unknown" else None}
        if status == "ok":
            self.answered += 1
            operation |= {"result": result, "rev": revision}
        if operation["op"] != "compact":
            simulation.history.append(Operation(client=self._called, **operation))
        self._unknown += status == "unknown"
        simulation.counts[f"operations {status}"] += 1
        simulation.counts[f"operation {operation['op']}"] += 1
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
        if self._errand is None or self._operation["op"] == "compact":
            return None
        return Operation(client=self._called, **self._operation)

    def close(self) -> None:
        """The run is over."""
        if self._errand is not None:
            self._errand.forget()

    # -- what it does --------------------------------------------------------------------------------------------------

    def _draw(self, process: Process) -> tuple[dict[str, Any], Coroutine[Any, Any, Answer]]:
        random = self.random
        if random.random() < self.simulation.options.reads:
            key = f"r{random.randrange(self.simulation.options.keys)}"
            if random.random() < 0.3:
                key = f"n{random.randrange(2)}"
            return {"op": "get", "key": key}, self._get(process, key)
        operation, payload, self._decode = self._draw_command(process)
        return operation, _submit(process, payload, self._decode)

    def _draw_command(self, process: Process) -> tuple[dict[str, Any], bytes, Decode]:
        random, options = self.random, self.simulation.options
        key = f"r{random.randrange(options.keys)}"
        name = key.encode()
        self._number += 1
        value = f"{self.name}-{self._number}"
        if options.compactions and random.random() < options.compactions:
            floor = max(process.replica.keyspace.revision - random.choice((0, 5, 20)), 0)
            return {"op": "compact"}, commands.encode_compact(floor), _nothing
        kind = random.random()
        if kind < 0.45:
            return {"op": "put", "key": key, "value": value}, commands.encode_put(name, _encode(value)), _revision
        if kind < 0.75:
            key = f"n{random.randrange(2)}"
            return (
                {"op": "increment", "key": key, "value": 1},
                commands.encode_increment(key.encode(), _encode(1)),
                _sum,
            )
        if kind < 0.87:
            expected = self._seen.get(key, ABSENT)
            wanted = None if expected is ABSENT else _encode(expected)
            return (
                {"op": "cas", "key": key, "expect": expected, "value": value},
                commands.encode_compare_and_set(name, wanted, _encode(value)),
                _done,
            )
        if kind < 0.9:
            return {"op": "delete", "key": key}, commands.encode_delete(name), _done
        if kind < 0.92:
            return {"op": "pop", "key": key}, commands.encode_pop(name), _old_value
        if kind < 0.94:
            return (
                {"op": "setdefault", "key": key, "value": value},
                commands.encode_setdefault(name, _encode(value)),
                _found_or(value),
            )
        if kind < 0.95:
            items = {f"r{number}": value + f"+{number}" for number in range(options.keys)}
            encoded = {key.encode(): _encode(value) for key, value in items.items()}
            return {"op": "update", "value": items}, commands.encode_update(encoded), _revision
        other = f"r{random.randrange(options.keys)}"
        expected = self._seen.get(key, ABSENT)
        writes = {other: value + "+", key: value}
        asked = {"compares": [[key, "==", expected]], "then": writes, "otherwise": {}, "reads": [key]}
        operand = None if expected is ABSENT else _encode(expected)
        compare = choices.Comparison(choices.Target.VALUE, key, choices.Relation.EQUAL, operand)
        puts = [choices.Put(written, _encode(value), 0) for written, value in writes.items()]
        choice = choices.Choice([compare], [choices.Get(key), *puts], [choices.Get(key)])
        return {"op": "txn", "value": asked}, choices.encode_transact(choice), _choice(key)

    @staticmethod
    async def _get(process: Process, key: str) -> Answer:
        await _barrier(process)
        return _decode(process.replica.keyspace.get_value(key)), None


def _nothing(_: bytes) -> Answer:
    return None, None


def _revision(data: bytes) -> Answer:
    return None, commands.decode_put_result(data)


def _sum(data: bytes) -> Answer:
    result = commands.decode_increment_result(data)
    return _decode(result.value), result.revision


def _done(data: bytes) -> Answer:
    result = commands.decode_outcome_result(data)
    return result.done, result.revision if result.done else None


def _old_value(data: bytes) -> Answer:
    result = commands.decode_old_value_result(data)
    return _decode(result.value), result.revision if result.value is not None else None


def _found_or(value: str) -> Decode:
    def decode(data: bytes) -> Answer:
        result = commands.decode_old_value_result(data)
        made = result.value is None
        return value if made else _decode(result.value), result.revision if made else None

    return decode


def _choice(key: str) -> Decode:
    def decode(data: bytes) -> Answer:
        revision, result = choices.decode_transact_result(data)
        found = result.results[0]
        assert isinstance(found, list)
        read = _decode(found[0].value) if found else ABSENT
        answer = {"succeeded": result.succeeded, "reads": {key: read}}
        return answer, revision if result.succeeded else None

    return decode
