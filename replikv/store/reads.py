"""The synchronous side of the map: plain reads of this process's replica, no I/O, no await."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from replikv.machine.keyspace import Keyspace
from replikv.machine.ranges import KeyRange
from replikv.machine.record import Record, unpack_record, value_of
from replikv.machine.values import decode_value
from replikv.store.arguments import check_count, check_text
from replikv.store.entry import Entry
from replikv.store.replicator import Replicator

__all__ = ["LocalMap", "LocalReads"]


class LocalReads:
    """What is read of the replica as it is at the call. All of it raises ClusterClosedError once the cluster is closed.

    A key that cannot be stored (of another type, too long) is absent here, as from any mapping.
    """

    __slots__ = ("_prefix", "_replicator")

    def __init__(self, replicator: Replicator, prefix: str) -> None:
        self._replicator = replicator
        self._prefix = prefix
        """The scope: what stands before every key of this map in the keys of the cluster's."""

    # -- one key -------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        """The value under a key, the caller's own copy. O(1). Raises KeyError."""
        replicator = self._replicator
        replicator.check_open()
        if isinstance(key, str):  # nobody is held to the annotation
            value = replicator.replica.keyspace.get_value(self._prefix + key)
            if value is not None:
                return decode_value(value)
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        """Whether the key is there. O(1)."""
        return self._record(key) is not None

    def entry(self, key: str) -> Entry:
        """The value with its revisions. O(1). Raises KeyError.

        >>> store.entry("feature/dark-mode")
        Entry(key='feature/dark-mode', value=True, create_revision=1, mod_revision=1, version=1, lease=None)
        """
        record = self._record(key)
        if record is None:
            raise KeyError(key)
        _, created, modified, version, lease = unpack_record(record)
        return Entry(key, decode_value(value_of(record)), created, modified, version, lease or None)

    # -- all keys, in order --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many keys there are. O(log n); O(1) without a scope."""
        keyspace = self._keyspace()
        return keyspace.count(KeyRange(prefix=self._prefix)) if self._prefix else len(keyspace)

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    def __reversed__(self) -> Iterator[str]:
        return self.keys(reverse=True)

    def keys(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[str]:
        """The keys in order, as they are now: whatever is changed while the iterator is used, awaits included.

        ``start`` is included, ``stop`` is not, whichever the direction; ``limit`` counts from the end that comes first.
        O(log n) to begin and for each slice, O(1) per key. An iterator that is not used up keeps the revision it was
        made at; one that keeps too much of the history for too long raises CompactedError.

        >>> list(store.keys("feature/", limit=2))
        ['feature/dark-mode', 'feature/search']
        >>> list(store.keys(start="a", stop="g", reverse=True))
        ['feature/search', 'feature/dark-mode']
        """
        length = len(self._prefix)
        return (key[length:] for key, _ in self._scan(prefix, start, stop, reverse, limit))

    def items(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """As :meth:`keys`, with the values. Each is decoded when its turn comes.

        >>> for key, value in store.items("feature/"):
        ...     print(key, value)
        feature/dark-mode True
        feature/search beta
        """
        length = len(self._prefix)
        scan = self._scan(prefix, start, stop, reverse, limit)
        return ((key[length:], decode_value(value_of(record))) for key, record in scan)

    def values(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        stop: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[Any]:
        """As :meth:`items`, the values only, in the order of their keys.

        >>> list(store.values("feature/", reverse=True))
        ['beta', True]
        """
        scan = self._scan(prefix, start, stop, reverse, limit)
        return (decode_value(value_of(record)) for _, record in scan)

    # -- the replica ---------------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The newest revision that this replica has applied, 0 before the first; of the whole map, in scopes too."""
        return self._keyspace().revision

    @property
    def local(self) -> LocalMap:
        """The same replica as a :class:`collections.abc.Mapping`, for code that takes one; its ``get`` is plain.

        >>> store.local.get("feature/none", "off")
        'off'
        """
        return LocalMap(self)

    def _keyspace(self) -> Keyspace:
        self._replicator.check_open()
        return self._replicator.replica.keyspace

    def _record(self, key: object) -> Record | None:
        self._replicator.check_open()
        return self._replicator.replica.keyspace.get(self._prefix + key) if isinstance(key, str) else None

    def _scan(
        self, prefix: str, start: str | None, stop: str | None, reverse: bool, limit: int | None
    ) -> Iterator[tuple[str, Record]]:
        # The scan pins its revision here, before the caller's generator takes its first step.
        check_text("prefix", prefix)
        scope = self._prefix
        keys = KeyRange(
            "" if start is None else scope + check_text("start", start),
            None if stop is None else scope + check_text("stop", stop),
            scope + prefix,
        )
        if limit is not None:
            check_count("limit", limit, 0)
        return self._keyspace().scan(keys, reverse=reverse, limit=limit)


class LocalMap(Mapping[str, Any]):
    """The local replica as a plain mapping. Read only: what changes the map is awaited, on the store.

    Two reads with an ``await`` between them may see two revisions; one iteration sees one.
    """

    __slots__ = ("_reads",)

    def __init__(self, reads: LocalReads) -> None:
        self._reads = reads

    def __getitem__(self, key: str) -> Any:
        return self._reads[key]

    def __contains__(self, key: object) -> bool:
        return key in self._reads

    def __len__(self) -> int:
        return len(self._reads)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reads)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._reads)

    def keys(self) -> KeysView[str]:
        """The keys, in order."""
        return KeysView(self)

    def items(self) -> ItemsView[str, Any]:
        """The pairs, in the order of their keys, of one revision each time they are iterated over."""
        return _Items(self._reads, self)

    def values(self) -> ValuesView[Any]:
        """The values, likewise."""
        return _Values(self._reads, self)

    def __repr__(self) -> str:
        return f"<{len(self)} keys at revision {self._reads.revision}>"


class _Items(ItemsView[str, Any]):
    """The mixin's would look each key up in the map as it is by then, and miss one that was deleted meanwhile."""

    def __init__(self, reads: LocalReads, mapping: Mapping[str, Any]) -> None:
        super().__init__(mapping)
        self._reads = reads

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self._reads.items()


class _Values(ValuesView[Any]):
    """As :class:`_Items`."""

    def __init__(self, reads: LocalReads, mapping: Mapping[str, Any]) -> None:
        super().__init__(mapping)
        self._reads = reads

    def __iter__(self) -> Iterator[Any]:
        return self._reads.values()
