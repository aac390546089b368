"""The replicated map, as an application sees it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar, TypeVarTuple

import trio

from replikv.errors import ConfigurationError, EncodingError, ValueTooLargeError
from replikv.machine import commands
from replikv.machine.choices import decode_transact_result, encode_transact
from replikv.machine.commands import encode_put
from replikv.machine.record import value_of
from replikv.machine.values import decode_value, encode_value
from replikv.store.arguments import check_count, check_text
from replikv.store.calls import MAP
from replikv.store.entry import ABSENT, Absent
from replikv.store.leases import Lease, LeaseCalls
from replikv.store.refusal import refusal
from replikv.store.schema import Schema, Upgrade
from replikv.store.transactions import Transaction, run_transaction
from replikv.store.txn import Compare, Lowering, Operation, Txn, TxnResult, raise_result
from replikv.store.typed import TypedStore

__all__ = ["Store"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_unpack_revision: Final = struct.Struct(">xQ").unpack_from
_RAISE: Final = object()
"""``pop`` without a default."""


class Store(LeaseCalls):
    """One map, sorted by key, the same on every peer of the cluster: ``cluster.store``.

    Keys are str; the empty str is one, too. Values are plain data: None, bool, int, float, str, bytes, list, dict,
    tuple (comes back as list), set, datetime, date, Decimal, UUID. They are encoded when the call is made and decoded
    for each reader: to change an object that was put, or read, changes no replica.

    Reads without ``await`` are of this process's replica, which may be behind the newest committed state; they see
    everything this process has awaited. Awaited operations work from any peer. Unless they say otherwise they return
    when a majority has the change on disk and this replica has applied it, take effect once however often the network
    fails, and raise

    - EncodingError, or ValueTooLargeError: the key or the value cannot be stored; nothing was proposed;
    - LeaseExpiredError: the lease it was to be put with is not there any more; QuotaExceededError: the map would grow
      over a limit that all replicas keep; nothing was changed;
    - UnavailableError: surely not applied within ``settings.request_timeout_s``;
    - OutcomeUnknownError: may have been applied, or may be later: ``cluster.outcome(error.token)`` settles it;
    - ClusterClosedError.

    One that is cancelled may have been applied, or may be later. *Revisions* count the commands that changed something.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Store {self._prefix!r}>" if self._prefix else "<Store>"

    def scoped(self, prefix: str) -> Store:
        """The same interface under a prefix, with keys relative to it. Costs nothing; scopes nest.

        Revisions stay those of the whole map. ``prefix`` is taken as it is: end it with a separator.

        >>> list(store.scoped("feature/").keys())
        ['dark-mode', 'search']
        """
        return Store(self._replicator, self._hub, self._prefix + check_text("prefix", prefix))

    def typed(
        self,
        prefix: str,
        record_class: type[T],
        *,
        version: int = 1,
        upgrade: Mapping[int, Upgrade] | None = None,
        ignore_unknown: bool = False,
    ) -> TypedStore[T]:
        """The keys under a prefix, with values of one class instead of plain data.

        A dataclass or an attrs class; a msgspec Struct or a pydantic model where that is installed
        (``replikv[msgspec]``, ``replikv[pydantic]``). Stored is a dict of its fields, and of ``"schema-version"``:
        whoever reads the map untyped understands it. Make it once, and keep it.

        ::

            users = store.typed("users/", User, version=2, upgrade={1: lambda fields: fields | {"email": ""}})
            await users.put("ann", User("Ann", email="ann@example.org"))

        Args:
            prefix: what stands before every key; taken as it is: end it with a separator.
            record_class: the class.
            version: of the class. To be raised when what is stored of the old one cannot be read as the new one.
            upgrade: version -> a function that makes the fields of the next version of those of this one, both as
                plain data. 0 stands for what was put untyped, without a version.
            ignore_unknown: whether fields that the class does not have are passed over; they are lost when it is put
                again. By default they are an error.

        Raises ConfigurationError for a class that cannot be stored, and says why.
        """
        return TypedStore(self.scoped(prefix), Schema(record_class, version, upgrade or {}, ignore_unknown))

    # -- changes of one key --------------------------------------------------------------------------------------------

    async def put(self, key: str, value: Any, *, lease: Lease | int | None = None) -> int:
        """Set a key, and return the revision that did.

        With a ``lease`` the key vanishes when that ends. Without one it stays, also if it was put with one before.
        """
        number = 0 if lease is None else await self._lease(lease)
        payload = encode_put(self._key(key), self._value(key, value), number)
        result = await self._propose(MAP, payload)
        if result[0]:
            raise refusal(result)
        revision: int = _unpack_revision(result)[0]
        return revision

    async def delete(self, key: str) -> bool:
        """Remove a key; whether it was there. A delete of nothing takes no revision."""
        result = await self._run(commands.encode_delete(self._key(key)))
        return commands.decode_outcome_result(result).done

    async def pop(self, key: str, default: Any = _RAISE) -> Any:
        """Remove a key and return its value, or ``default`` if it was not there; without a default: KeyError."""
        result = await self._run(commands.encode_pop(self._key(key)))
        value = commands.decode_old_value_result(result).value
        if value is not None:
            return decode_value(value)
        if default is _RAISE:
            raise KeyError(key)
        return default

    async def setdefault(self, key: str, value: Any, *, lease: Lease | int | None = None) -> Any:
        """Set a key unless it is there; what it holds then, as a reader would get it.

        The ``lease`` is for the key that is set; one that is there keeps its own.
        """
        data = self._value(key, value)
        number = await self._lease(lease)
        result = await self._run(commands.encode_setdefault(self._key(key), data, number))
        old = commands.decode_old_value_result(result).value
        return decode_value(data if old is None else old)

    async def increment(self, key: str, by: int = 1) -> int:
        """Add to an int, 0 if the key is not there, and return the sum.

        EncodingError if what is stored is no int (a bool is none): then nothing was added, on any replica.
        """
        if type(by) is not int:
            raise EncodingError(f"increment adds an int, not {type(by).__qualname__}: {by!r:.100}")
        payload = commands.encode_increment(self._key(key), encode_value(by, self._value_bytes_max))
        total: int = decode_value(commands.decode_increment_result(await self._run(payload)).value)
        return total

    async def compare_and_set(
        self, key: str, expected: Any | Absent, value: Any | Absent, *, lease: Lease | int | None = None
    ) -> bool:
        """Set a key if it holds a value equal to ``expected``; whether it did. One that did not takes no revision.

        Equality is Python's, of the values as a reader would get them: ``1 == 1.0 == True``. ``ABSENT`` stands for no
        value: expected, the key must not be there; as the value, the key is removed. ``lease`` is as in ``put``.
        """
        payload = commands.encode_compare_and_set(
            self._key(key),
            None if expected is ABSENT else self._value(key, expected),
            None if value is ABSENT else self._value(key, value),
            await self._lease(lease),
        )
        self._check_size(len(payload))  # of two values
        return commands.decode_outcome_result(await self._run(payload)).done

    async def replace(self, key: str, value: Any, *, revision: int, lease: Lease | int | None = None) -> bool:
        """Set a key if its ``mod_revision`` is still ``revision`` (0: if it is not there); whether it was.

        Unlike ``compare_and_set`` it is not fooled by a value that was changed and changed back. ``lease`` is as
        in ``put``.
        """
        check_count("revision", revision, 0)
        data = self._value(key, value)
        number = await self._lease(lease)
        result = await self._run(commands.encode_replace(self._key(key), data, revision, number))
        return commands.decode_outcome_result(result).done

    # -- changes of many keys ------------------------------------------------------------------------------------------

    async def update(self, mapping: Mapping[str, Any], *, lease: Lease | int | None = None) -> int:
        """Set many keys at one revision, which is returned: nobody ever sees a part of it.

        At most ``settings.operations_per_command_max`` keys, and ``settings.command_bytes_max`` bytes of them and
        their values: ValueTooLargeError. An empty mapping changes nothing: the newest revision of this replica.
        ``lease`` is as in ``put``, for all of them.
        """
        if not isinstance(mapping, Mapping):
            raise EncodingError(f"update takes a mapping, not {type(mapping).__qualname__}: make it a dict")
        count, limit = len(mapping), self._operations_max()
        if count > limit:
            raise ValueTooLargeError(
                f"an update of {count} keys, at most {limit} are atomic: split it, or raise operations_per_command_max"
            )
        number = await self._lease(lease)
        items: dict[bytes, bytes] = {}
        size = 0
        for key, value in mapping.items():
            name, data = self._key(key), self._value(key, value)
            items[name] = data
            size += len(name) + len(data)
            self._check_size(size)
        if not items:
            await trio.lowlevel.checkpoint()
            return self.revision
        payload = commands.encode_update(items, number)
        self._check_size(len(payload))
        return commands.decode_put_result(await self._run(payload))

    async def delete_prefix(self, prefix: str) -> int:
        """Remove all keys that begin with ``prefix`` (all there are, for ``""``); how many there were.

        Atomic up to ``settings.operations_per_command_max`` keys; more go in several steps, each of them atomic and a
        revision, in key order. When one of them fails the earlier ones have taken effect: call it again.
        """
        data = self._key(check_text("prefix", prefix))
        payload = commands.encode_delete_prefix(data, self._operations_max())
        deleted = 0
        while True:
            step = commands.decode_delete_prefix_result(await self._run(payload))
            deleted += step.deleted
            if not step.more:
                return deleted

    # -- transactions --------------------------------------------------------------------------------------------------

    async def txn(
        self, compares: Iterable[Compare], then: Iterable[Operation], otherwise: Iterable[Operation] = ()
    ) -> TxnResult:
        """If all comparisons hold, do ``then``, otherwise ``otherwise``: atomically, in one round trip.

        ::

            taken = await store.txn(
                [Compare.version("lock", "==", 0)], then=[Put("lock", "me")], otherwise=[Get("lock")]
            )
            if not taken:
                print("held by", taken.results[0].value)

        Operations are Put, Delete, DeleteRange, Get, GetRange and Txn. They are done in order, reads see what was
        written before them, and all changes are of one revision. All comparisons, those of a nested Txn as well, are of
        the state before. No key may be put twice, or put and deleted.

        Bounded: comparisons, operations and the keys that their ranges come across are together at most
        ``settings.operations_per_command_max``; what is read takes at most 2 MiB, unless it is a single value; Txns are
        nested at most 16 deep.

        Raises, beside what every operation does, ConfigurationError for a transaction that makes no sense,
        QuotaExceededError where it turned out too large or a limit of the map was reached, LeaseExpiredError for a Put
        with a lease that is gone: then nothing was changed, on any replica.
        """
        choice, kept = Lowering(self._prefix, self._settings).lower(Txn(compares, then, otherwise))
        payload = encode_transact(choice)
        self._check_size(len(payload))
        revision, result = decode_transact_result(await self._run(payload))
        return raise_result(kept, result, revision, self._prefix)

    async def transact(self, fn: Callable[[Transaction, *Ts], T], *args: *Ts) -> T:
        """Run ``fn(tx, *args)`` as if it were alone in the map, and return what it returns.

        ::

            def transfer(tx, source, target, amount):
                if tx[source] < amount:
                    raise ValueError("not enough")
                tx.put(source, tx[source] - amount)
                tx.put(target, tx.get(target, 0) + amount)

            await store.transact(transfer, "accounts/alice", "accounts/bob", 10)

        The function is a plain one. It reads one revision of this replica, and its writes are kept until it returns:
        then they are made at one revision if nothing that it read has changed, on any peer. Otherwise it is run again,
        on what has changed: so it must do nothing but compute. Transactions are strictly serializable: each takes
        effect at one moment between the call and its return, and what it read was so at that moment, ranges and keys
        that were not there included. That holds for one that only reads, too; it proposes nothing.

        An exception of the function's passes, once it is known not to come of a state that is past; nothing is changed.

        All runs share one ``settings.request_timeout_s``. Raises what every operation does, UnavailableError also when
        others changed what it reads in every run; QuotaExceededError and LeaseExpiredError as ``txn`` does.
        """
        return await run_transaction(self._replicator, self._prefix, fn, args)

    # -- reads that wait -----------------------------------------------------------------------------------------------

    async def get(self, key: str, default: Any = None, *, revision: int | None = None) -> Any:
        """The value under a key, or ``default``: linearizable, from any peer.

        With a ``revision``: as it was then. The past does not change, so that asks nobody unless this replica has not
        been there yet. CompactedError below the retained history, ConfigurationError for a revision that nobody has
        made yet. Cancelling it leaves nothing behind; it never raises OutcomeUnknownError.
        """
        self._key(key)
        key = self._prefix + key
        if revision is None:
            await self._replicator.barrier()
            record = self._keyspace().get(key)
        else:
            await self._reach(check_count("revision", revision, 0))
            record = self._keyspace().get_at(key, revision)
        return default if record is None else decode_value(value_of(record))

    async def compact(self, revision: int) -> int:
        """Forget the history below a revision, on every peer; where it begins now: there, or later already.

        Rarely needed: the leader keeps the history to ``settings.history_revisions``, ``history_bytes_max`` and
        ``history_age_s``. Reads of the revision itself, and changes since it, are still to be had; of earlier ones,
        CompactedError. The present loses nothing, iterators that are under way go on, and so do watches that keep up.
        It concerns the whole map, also when called on a scope. ConfigurationError for a revision that nobody has made
        yet.
        """
        await self._reach(check_count("revision", revision, 0))
        return commands.decode_compact_result(await self._run(commands.encode_compact(revision)))

    async def barrier(self) -> None:
        """Return when this replica has everything that was committed anywhere before the call.

        Every synchronous read that follows is at least as fresh as that. UnavailableError if no leader could be asked
        in time. Cancelling it leaves nothing behind.
        """
        await self._replicator.barrier()

    async def _reach(self, revision: int) -> None:
        if revision <= self._keyspace().revision:
            await trio.lowlevel.checkpoint()
            return
        await self._replicator.barrier()
        newest = self._keyspace().revision
        if revision > newest:
            raise ConfigurationError(f"revision {revision} is in the future: the newest is {newest}")
