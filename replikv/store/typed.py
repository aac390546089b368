"""The map with values of one class: the same operations, told and asked in objects rather than in plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

from replikv.errors import ConfigurationError, EncodingError, SchemaError
from replikv.store.change import Change, Kind
from replikv.store.entry import ABSENT, Absent, Entry
from replikv.store.leases import Lease
from replikv.store.reads import LocalReads
from replikv.store.schema import Schema
from replikv.store.subscriptions import Subscription
from replikv.store.watch import Watch

if TYPE_CHECKING:
    from replikv.store.store import Store

__all__ = ["TypedChange", "TypedEntry", "TypedStore", "TypedWatch"]

T = TypeVar("T")
D = TypeVar("D")

_RAISE: Final = object()
"""``pop`` without a default."""
_MISSING: Final = object()
"""What a read of the untyped map gives for a key that is not there."""


@dataclasses.dataclass(frozen=True, slots=True)
class TypedEntry(Entry, Generic[T]):
    """As :class:`Entry`, with a value of the class."""

    value: T


@dataclasses.dataclass(frozen=True, slots=True)
class TypedChange(Change, Generic[T]):
    """As :class:`Change`, with values of the class.

    ``previous`` is None, too, where what was there before does not fit the class: its own change has told of it.
    """

    value: T | None
    previous: T | None


class TypedStore(LocalReads, Generic[T]):
    """The keys under a prefix, with values of one class: made by :meth:`Store.typed`.

    Everything is as in :class:`Store`, with keys relative to the prefix, and each operation that gives or takes a
    value raises SchemaError for one that does not fit: what was to be put is not proposed, what is stored is told with
    its key, the field, what was expected and what was found. To iterate over ``items()`` or ``values()`` ends there;
    ``untyped`` shows what is stored, and can mend it.
    """

    __slots__ = ("_schema", "_store")

    def __init__(self, store: Store, schema: Schema[T]) -> None:
        super().__init__(store._replicator, store._prefix)
        self._store = store
        self._schema = schema

    def __repr__(self) -> str:
        return f"<TypedStore {self._prefix!r} of {self._schema.record_class.__qualname__}>"

    @property
    def untyped(self) -> Store:
        """The same keys with plain data, as they are stored."""
        return self._store

    def scoped(self, prefix: str) -> TypedStore[T]:
        """The same class under a longer prefix."""
        return TypedStore(self._store.scoped(prefix), self._schema)

    # -- the local replica ---------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> T:
        """The value under a key, the caller's own copy. Raises KeyError, SchemaError."""
        return self._schema.decode(key, self._store[key])

    def entry(self, key: str) -> TypedEntry[T]:
        """The value with its revisions. Raises KeyError, SchemaError."""
        entry = self._store.entry(key)
        return TypedEntry(**_fields(entry) | {"value": self._schema.decode(key, entry.value)})

    def items(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[str, T]]:
        """As :meth:`Store.items`. The iterator raises SchemaError, and ends."""
        pairs = self._store.items(prefix, start=start, stop=stop, reverse=reverse, limit=limit)
        decode = self._schema.decode
        return ((key, decode(key, plain)) for key, plain in pairs)

    def values(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[T]:
        """As :meth:`items`, the values only."""
        pairs = self.items(prefix, start=start, stop=stop, reverse=reverse, limit=limit)
        return (value for _, value in pairs)

    # -- changes -------------------------------------------------------------------------------------------------------

    async def put(self, key: str, value: T, *, lease: Lease | int | None = None) -> int:
        """As :meth:`Store.put`."""
        return await self._store.put(key, self._schema.encode(key, value), lease=lease)

    async def delete(self, key: str) -> bool:
        """As :meth:`Store.delete`: what is stored need not fit."""
        return await self._store.delete(key)

    async def delete_prefix(self, prefix: str) -> int:
        """As :meth:`Store.delete_prefix`: what is stored need not fit."""
        return await self._store.delete_prefix(prefix)

    @overload
    async def pop(self, key: str) -> T: ...
    @overload
    async def pop(self, key: str, default: D) -> T | D: ...
    async def pop(self, key: str, default: Any = _RAISE) -> Any:
        """As :meth:`Store.pop`. A value that does not fit is gone all the same: ``SchemaError.value`` has it."""
        plain = await self._store.pop(key, _MISSING)
        if plain is not _MISSING:
            return self._schema.decode(key, plain)
        if default is _RAISE:
            raise KeyError(key)
        return default

    async def setdefault(self, key: str, value: T, *, lease: Lease | int | None = None) -> T:
        """As :meth:`Store.setdefault`."""
        plain = self._schema.encode(key, value)
        return self._schema.decode(key, await self._store.setdefault(key, plain, lease=lease))

    async def compare_and_set(
        self, key: str, expected: T | Absent, value: T | Absent, *, lease: Lease | int | None = None
    ) -> bool:
        """As :meth:`Store.compare_and_set`, where values are equal whose fields are, as they are stored.

        So a value that was read of this map is equal to what it was read of, whatever version that is stored in.
        """
        return await self._store.compare_and_set(
            key,
            ABSENT if expected is ABSENT else self._as_stored(key, expected),
            ABSENT if value is ABSENT else self._schema.encode(key, value),
            lease=lease,
        )

    async def replace(self, key: str, value: T, *, revision: int, lease: Lease | int | None = None) -> bool:
        """As :meth:`Store.replace`."""
        return await self._store.replace(key, self._schema.encode(key, value), revision=revision, lease=lease)

    async def update(self, mapping: Mapping[str, T], *, lease: Lease | int | None = None) -> int:
        """As :meth:`Store.update`. One value that does not fit, and none is put."""
        if not isinstance(mapping, Mapping):
            raise EncodingError(f"update takes a mapping, not {type(mapping).__qualname__}: make it a dict")
        plain = {key: self._schema.encode(key, value) for key, value in mapping.items()}
        return await self._store.update(plain, lease=lease)

    def _as_stored(self, key: str, value: T) -> dict[str, Any]:
        """What is stored under the key if that stands for this value; what would be stored else.

        An older version, a default that was left out, a field that is ignored: what is stored may not be what would be.
        """
        plain = self._schema.encode(key, value)
        try:
            stored: dict[str, Any] = self._store[key]
            return stored if self._schema.encode(key, self._schema.decode(key, stored)) == plain else plain
        except (KeyError, SchemaError):  # there is nothing, or nothing that stands for a value
            return plain

    # -- reads that wait -----------------------------------------------------------------------------------------------

    @overload
    async def get(self, key: str, default: None = None, *, revision: int | None = None) -> T | None: ...
    @overload
    async def get(self, key: str, default: D, *, revision: int | None = None) -> T | D: ...
    async def get(self, key: str, default: Any = None, *, revision: int | None = None) -> Any:
        """As :meth:`Store.get`."""
        plain = await self._store.get(key, _MISSING, revision=revision)
        return default if plain is _MISSING else self._schema.decode(key, plain)

    async def barrier(self) -> None:
        """As :meth:`Store.barrier`."""
        await self._store.barrier()

    # -- being told ----------------------------------------------------------------------------------------------------

    def watch(
        self,
        prefix: str = "",
        *,
        key: str | None = None,
        start: str | None = None,
        stop: str | None = None,
        kinds: Iterable[Kind] | None = None,
        previous: bool = True,
        progress: bool = False,
        coalesce: bool = False,
        since: int | None = None,
        snapshot: bool = False,
        buffer: int = 1024,
    ) -> AbstractAsyncContextManager[TypedWatch[T]]:
        """As :meth:`Store.watch`. A change whose value does not fit is raised as SchemaError by the iterator.

        That change is taken then: asked again, the iterator goes on with the next one.
        """
        watching = self._store.watch(
            prefix,
            key=key,
            start=start,
            stop=stop,
            kinds=kinds,
            previous=previous,
            progress=progress,
            coalesce=coalesce,
            since=since,
            snapshot=snapshot,
            buffer=buffer,
        )
        return self._watching(watching)

    @asynccontextmanager
    async def _watching(self, watching: AbstractAsyncContextManager[Watch]) -> AsyncGenerator[TypedWatch[T]]:
        async with watching as watch:
            yield TypedWatch(watch, self._narrow)

    def subscribe(
        self,
        callback: Callable[[TypedChange[T]], object],
        *,
        prefix: str = "",
        key: str | None = None,
        start: str | None = None,
        stop: str | None = None,
        kinds: Iterable[Kind] | None = None,
        previous: bool = True,
        progress: bool = False,
        coalesce: bool = False,
        since: int | None = None,
        buffer: int = 1024,
        on_error: Callable[[Exception], object] | None = None,
    ) -> Subscription:
        """As :meth:`Store.subscribe`. A change whose value does not fit is told to ``on_error`` as SchemaError."""
        if not callable(callback):
            raise ConfigurationError(f"callback must be callable, not {callback!r}")

        def narrowed(change: Change) -> object:
            return callback(self._narrow(change))

        return self._store.subscribe(
            narrowed,
            prefix=prefix,
            key=key,
            start=start,
            stop=stop,
            kinds=kinds,
            previous=previous,
            progress=progress,
            coalesce=coalesce,
            since=since,
            buffer=buffer,
            on_error=on_error,
        )

    def _narrow(self, change: Change) -> TypedChange[T]:
        decode = self._schema.decode
        value = decode(change.key, change.value) if change.kind == "put" else None
        try:
            previous = None if change.previous is None else decode(change.key, change.previous)
        except SchemaError:
            previous = None
        return TypedChange(**_fields(change) | {"value": value, "previous": previous})


class TypedWatch(Generic[T]):
    """An async iterator of typed changes, made by ``async with users.watch(...) as changes``; see :class:`Watch`."""

    def __init__(self, watch: Watch, narrow: Callable[[Change], TypedChange[T]]) -> None:
        self._watch = watch
        self._narrow = narrow

    def __aiter__(self) -> TypedWatch[T]:
        return self

    async def __anext__(self) -> TypedChange[T]:
        return self._narrow(await anext(self._watch))


def _fields(record: Entry | Change) -> dict[str, Any]:
    """The fields of a dataclass, not copied."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
