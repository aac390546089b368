"""Transactions as a function: it reads and writes as if it were alone, and is run again when it was not.

What it reads is of one revision of this process's replica, and is recorded; what it writes is kept back. Then one
command makes the writes, if nothing that was read has changed (optimistic concurrency control, Kung & Robinson 1981;
etcd's STM at its level "serializable snapshot"). When something has, the answer comes back to a replica that has
applied the change already, so the next run sees it.
"""

from __future__ import annotations

import heapq
import inspect
import itertools
from collections.abc import Callable, Container, Iterator
from operator import itemgetter
from typing import Any, Final, TypeVar, TypeVarTuple, cast

import outcome
import trio

from replikv.errors import ConfigurationError, EncodingError, UnavailableError, ValueTooLargeError
from replikv.machine import choices
from replikv.machine.choices import Choice, Comparison, Relation, Target, decode_transact_result, encode_transact
from replikv.machine.envelope import CommandKind
from replikv.machine.keyspace import Keyspace
from replikv.machine.ranges import KeyRange
from replikv.machine.record import Record, mod_revision_of, unpack_record, value_of
from replikv.machine.values import decode_value
from replikv.settings import Settings
from replikv.store.arguments import check_count
from replikv.store.entry import Entry
from replikv.store.leases import Lease
from replikv.store.refusal import refusal
from replikv.store.replicator import Replicator
from replikv.store.txn import Lowering, range_of

__all__ = ["Transaction", "run_transaction"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_MAP: Final = int(CommandKind.MAP)


class Transaction:
    """The map as one run of a function sees it: at one revision, with what the run itself has written.

    For use within the function that ``store.transact`` calls, and no longer: ConfigurationError after that.
    """

    def __init__(self, keyspace: Keyspace, scope: str, settings: Settings) -> None:
        self._keyspace = keyspace
        """Does not change while the function runs: there is no ``await`` in it."""
        self._scope = scope
        self._settings = settings
        self._lowering = Lowering(scope, settings)
        self._ended = False
        self._revision = keyspace.revision
        self._keys_read: dict[str, int] = {}
        """Key -> the mod_revision that it had, 0 for a key that was not there."""
        self._ranges_read: dict[KeyRange, None] = {}
        self._writes: dict[str, choices.Put | choices.Delete] = {}

    @property
    def revision(self) -> int:
        """The revision that is read."""
        return self._revision

    # -- reads ---------------------------------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """The value under a key, or ``default``."""
        value = self._value(key)
        return default if value is None else decode_value(value)

    def __getitem__(self, key: str) -> Any:
        """The value under a key. Raises KeyError."""
        value = self._value(key)
        if value is None:
            raise KeyError(key)
        return decode_value(value)

    def __contains__(self, key: object) -> bool:
        """Whether the key is there."""
        return self._value(key) is not None

    def entry(self, key: str) -> Entry:
        """The value with its revisions. Raises KeyError; ConfigurationError for a key that this run has written."""
        self._check_open()
        name = self._name(key)
        if name in self._writes:
            raise ConfigurationError(f"{key!r:.100} was written in this transaction, and has no revision yet: use get")
        record = None if name is None else self._read(name)
        if record is None:
            raise KeyError(key)
        value, created, modified, version, lease = unpack_record(record)
        return Entry(key, decode_value(cast("bytes", value)), created, modified, version, lease or None)

    def keys(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[str]:
        """The keys in order, as ``store.keys``; what is written later does not show in the iterator.

        The range is read, whether it is iterated over or not, up to the last key that a ``limit`` lets through: any key
        of it that is put or deleted by somebody else meanwhile has the function run again.
        """
        length = len(self._scope)
        return iter([key[length:] for key, _ in self._scan(prefix, start, stop, reverse, limit)])

    def items(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """As :meth:`keys`, with the values. Each is decoded when its turn comes."""
        length = len(self._scope)
        found = self._scan(prefix, start, stop, reverse, limit)
        return ((key[length:], decode_value(value)) for key, value in found)

    def values(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[Any]:
        """As :meth:`items`, the values only."""
        return (value for _, value in self.items(prefix, start=start, stop=stop, reverse=reverse, limit=limit))

    def __iter__(self) -> Iterator[str]:
        """All keys, in order. Reads the whole map, or the whole scope."""
        return self.keys()

    # -- writes --------------------------------------------------------------------------------------------------------

    def put(self, key: str, value: Any, *, lease: Lease | int | None = None) -> None:
        """Set a key when the transaction is committed. Raises EncodingError and ValueTooLargeError."""
        self._check_open()
        put = self._lowering.put(key, value, lease)
        self._make_room(self._writes, put.key)
        self._writes[put.key] = put

    def delete(self, key: str) -> bool:
        """Remove a key when the transaction is committed; whether it is there, which is a read."""
        found = self._value(key) is not None
        name = self._lowering.key(key)
        self._make_room(self._writes, name)
        self._writes[name] = choices.Delete(name)
        return found

    # -- inside --------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._ended:
            raise ConfigurationError("this transaction has ended: use it inside of the function that got it, only")

    def _make_room(self, parts: Container[Any], part: object) -> None:
        """Before something is added to what was read, or written."""
        count = len(self._keys_read) + len(self._ranges_read) + len(self._writes)
        limit = self._settings.operations_per_command_max
        if count >= limit and part not in parts:
            raise ValueTooLargeError(
                f"a transaction that reads and writes more than {limit} keys: read ranges instead of single keys, split"
                " it, or raise operations_per_command_max"
            )

    def _name(self, key: object) -> str | None:
        """In the keys of the whole map; None for one that cannot be stored, and so is not there."""
        try:
            return self._lowering.key(cast("str", key))
        except EncodingError:
            return None

    def _value(self, key: object) -> bytes | None:
        self._check_open()
        name = self._name(key)
        if name is None:
            return None
        written = self._writes.get(name)
        if written is not None:
            return written.value if isinstance(written, choices.Put) else None
        record = self._read(name)
        return None if record is None else value_of(record)

    def _read(self, name: str) -> Record | None:
        record = self._keyspace.get(name)
        self._make_room(self._keys_read, name)
        self._keys_read[name] = 0 if record is None else mod_revision_of(record)
        return record

    def _scan(
        self, prefix: str, start: str | None, stop: str | None, reverse: bool, limit: int | None
    ) -> list[tuple[str, bytes]]:
        self._check_open()
        keys = range_of(self._scope, prefix, start, stop)
        if limit is not None:
            check_count("limit", limit, 0)
        held = (
            (key, value_of(record))
            for key, record in self._keyspace.scan(keys, reverse=reverse)
            if key not in self._writes
        )
        written = sorted(
            ((key, step.value) for key, step in self._writes.items() if isinstance(step, choices.Put) and key in keys),
            reverse=reverse,
        )
        merged = heapq.merge(held, written, key=itemgetter(0), reverse=reverse)
        found = list(itertools.islice(merged, limit))
        if limit is not None and len(found) == limit:
            if not found:
                return found
            last = found[-1][0]  # nothing was seen behind it
            keys = KeyRange(last, keys.stop) if reverse else KeyRange(keys.start, last + "\0")
        self._make_room(self._ranges_read, keys)
        self._ranges_read[keys] = None
        return found

    # -- for who runs it -----------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """The function has returned."""
        self._ended = True

    def _command(self) -> bytes:
        """One compare-and-write: what was read must be as it was."""
        compares = [
            Comparison(Target.MOD_REVISION, key, Relation.EQUAL, revision) for key, revision in self._keys_read.items()
        ]
        compares += [Comparison(Target.UNCHANGED, keys, Relation.EQUAL, self._revision) for keys in self._ranges_read]
        payload = encode_transact(Choice(compares, list(self._writes.values()), ()))
        limit = self._settings.command_bytes_max
        if len(payload) > limit:
            raise ValueTooLargeError(
                f"the transaction takes {len(payload)} bytes, at most {limit} are one command: write less at once, or"
                " raise command_bytes_max"
            )
        return payload

    def _still_holds(self, keyspace: Keyspace) -> bool:
        """Whether all that was read is the same in another state of the map."""
        for key, revision in self._keys_read.items():
            record = keyspace.get(key)
            if revision != (0 if record is None else mod_revision_of(record)):
                return False
        return all(keyspace.unchanged_since(keys, self._revision) for keys in self._ranges_read)


async def run_transaction(
    replicator: Replicator, scope: str, fn: Callable[[Transaction, *Ts], T], args: tuple[*Ts]
) -> T:
    """As ``Store.transact``."""
    if inspect.iscoroutinefunction(fn) or not callable(fn):
        raise ConfigurationError(
            f"transact takes a plain function, which may be run several times, not {fn!r:.100}: await before and after"
        )
    settings = replicator.settings
    # As the peer's own deadlines, one tick early: the caller is told within request_timeout_s.
    deadline = trio.current_time() + settings.request_timeout_s - settings.heartbeat_interval_s
    runs, fresh = 0, False
    while True:
        replicator.check_open()
        tx = Transaction(replicator.replica.keyspace, scope, settings)
        answer = _run(fn, tx, args)
        runs += 1
        if isinstance(answer, outcome.Error) or not tx._writes:
            # An exception is an answer, too, and may come of a state that is long past: "no such account".
            if not fresh:
                await _barrier(replicator, deadline, answer)
                fresh = True
                if not tx._still_holds(replicator.replica.keyspace):
                    continue  # nothing can change between the barrier and the next run
            return answer.unwrap()
        if runs > 1 and trio.current_time() >= deadline:
            raise UnavailableError(
                f"what the transaction reads was changed by others in each of {runs - 1} runs within"
                f" {settings.request_timeout_s} s; nothing was changed by it: let fewer of them meet, or read less"
            )
        result = await replicator.propose(_MAP, tx._command(), deadline)
        if result[0]:
            raise refusal(result)
        _, done = decode_transact_result(result[1:])
        if done.succeeded:
            return answer.unwrap()
        fresh = False


def _run(fn: Callable[[Transaction, *Ts], T], tx: Transaction, args: tuple[*Ts]) -> outcome.Value[T] | outcome.Error:
    try:
        value = fn(tx, *args)
    except Exception as exc:  # whatever it is, it is the caller's
        return outcome.Error(exc)
    finally:
        tx._end()
    if inspect.iscoroutine(value):
        value.close()
        raise ConfigurationError(f"{fn!r:.100} returned a coroutine: transact takes a plain function")
    return outcome.Value(value)


async def _barrier(replicator: Replicator, deadline: float, answer: outcome.Value[Any] | outcome.Error) -> None:
    cause = answer.error if isinstance(answer, outcome.Error) else None
    try:
        with trio.move_on_at(deadline) as scope:
            await replicator.barrier()
    except UnavailableError as exc:
        raise exc from cause
    if scope.cancelled_caught:
        raise UnavailableError(
            f"what the transaction has read could not be confirmed within {replicator.settings.request_timeout_s} s;"
            " nothing was changed, so it is safe to try again"
        ) from cause
