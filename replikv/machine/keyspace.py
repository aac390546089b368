"""The map in many versions (MVCC): what every key held at every retained revision.

A record is a plain tuple of atoms, so that Python's garbage collector untracks it (a million slotted objects cost
150 ms a collection, a million such tuples next to nothing)::

    (value, create_revision, mod_revision, version, lease)

``value`` is None in a *tombstone*, which says that the key was deleted at ``mod_revision``; its ``lease`` names the
lease that expired, 0 if a command deleted it. Revisions are consecutive; the empty map is at revision 0.

Two floors. The *logical* one is moved by a command, so every replica refuses the same reads. Memory is freed up to
the *physical* one, later and bit by bit, and never past a pin. Nothing a command computes depends on the physical
floor.
"""

from __future__ import annotations

import bisect
import operator
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

from sortedcontainers import SortedList

from replikv.errors import CompactedError, InternalError
from replikv.machine.ranges import KeyRange

__all__ = ["Change", "Changes", "Keyspace", "Pin", "Record", "Write", "is_live"]

Record: TypeAlias = tuple[bytes | None, int, int, int, int]
"""(value, create_revision, mod_revision, version, lease)"""
Change: TypeAlias = tuple[str, Record, Record | None]
"""(key, record, the live record that it replaced)"""
Changes: TypeAlias = tuple[Change, ...]
"""All changes of one revision, in the order in which the command made them; never two of one key."""
Write: TypeAlias = tuple[str, bytes | None, int]
"""(key, value or None to delete, lease)"""

CHANGE_BYTES: Final = 350
"""What a retained change costs beside its key and the value it replaced: two tuples, a list, slots of two dicts,
integers. Measured with tracemalloc on CPython 3.11 (330), and a little for what the allocator loses."""

_TRIM_CHANGES: Final = 4
"""Changes trimmed per command beside twice its own: more than are made, so the physical floor always catches up."""

_EAGER_VERSIONS: Final = 128
_STALE_VERSIONS: Final = 64
"""Up to so many older versions of a key are dropped one by one; those of a hotter key in blocks, since what is dropped
at the front of a list moves all that follows. The last ones are dropped one by one again, so none are forgotten."""

_SCAN_KEYS_MIN: Final = 16
_SCAN_KEYS_MAX: Final = 256
"""Keys that a scan looks up at a time; it starts small, since most readers want few."""

_mod_revision: Final = operator.itemgetter(2)


def is_live(record: Record | None) -> bool:
    """Whether there is a value: neither an absent key nor a tombstone."""
    return record is not None and record[0] is not None


class Pin:
    """Keeps a revision readable, though the logical floor may pass it. Released when it is dropped, at the latest.

    A breakable one (an iterator's) is broken when it holds too many bytes; a firm one (a snapshot's) never.
    """

    __slots__ = ("_keyspace", "_released", "breakable", "revision")

    def __init__(self, keyspace: Keyspace, revision: int, breakable: bool) -> None:
        self._keyspace = keyspace
        self._released = False
        self.revision = revision
        self.breakable = breakable

    @property
    def broken(self) -> bool:
        """Whether what was pinned is gone."""
        return self._keyspace.physical_floor > self.revision

    def release(self) -> None:
        """Let the revision go. Does nothing the second time."""
        if not self._released:
            self._released = True
            self._keyspace._unpin(self)

    def __del__(self) -> None:
        self.release()


class Keyspace:
    """The map, its history from ``floor`` on, and the log of its changes. Not thread-safe, never blocks.

    ``pinned_bytes_max`` bounds what breakable pins may hold back beyond the logical floor. It is local: it decides
    what a reader of this process may go on to read, never what a command does.
    """

    def __init__(self, *, revision: int = 0, pinned_bytes_max: int = 64 * 1024 * 1024) -> None:
        self.revision = revision
        """The newest revision."""
        self.floor = revision
        """The oldest revision that can be read, and the smallest to see changes since. Replicated state."""
        self.physical_floor = revision
        """Changes above it are in memory. At most ``floor``, and at most the oldest pin."""
        self.pinned_bytes_max = pinned_bytes_max
        self._records: dict[str, Record] = {}
        """The newest record of each key; a tombstone only while its revision is above the physical floor."""
        self._older: dict[str, list[Record]] = {}
        """Older records of a key that are visible above the physical floor (and a few stale ones of hot keys), by
        ascending mod_revision. No empty lists."""
        self._live: SortedList[str] = SortedList()
        """The keys of ``_records`` whose record is live."""
        self._dead: SortedList[str] = SortedList()
        """The keys of ``_records`` whose record is a tombstone: scans of the past need their order too."""
        self._log: dict[int, tuple[Any, ...]] = {}
        """revision -> (bytes of all changes up to it, then key, record and replaced record of each of its changes), for
        each revision in (physical_floor, revision]. Flat: nested tuples are what the garbage collector would walk."""
        self._bytes = 0
        """Bytes of all changes ever logged here; differences of it are what stretches of the log hold."""
        self._floor_bytes = 0
        """``_bytes`` as of the logical floor."""
        self._trimmed_bytes = 0
        """``_bytes`` as of the physical floor."""
        self._firm_pins: dict[int, int] = {}
        self._breakable_pins: dict[int, int] = {}
        """revision -> how many pins hold it."""
        self._target = revision
        """What the physical floor may rise to: min(floor, the oldest pin)."""

    # -- the present ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many keys there are. O(1)."""
        return len(self._live)

    def __contains__(self, key: object) -> bool:
        record = self._records.get(key)  # type: ignore[call-overload]  # whatever is no str is in no dict of str
        return record is not None and record[0] is not None

    def get(self, key: str) -> Record | None:
        """The record of a key, None if there is none. O(1)."""
        record = self._records.get(key)
        return None if record is None or record[0] is None else record

    def count(self, keys: KeyRange) -> int:
        """How many keys of the range there are. O(log n)."""
        return keys.count(self._live)

    def first_keys(self, keys: KeyRange, limit: int) -> list[str]:
        """Up to ``limit`` keys of the range, in order, as of now. O(log n + limit)."""
        return keys.select(self._live, limit)

    # -- the past ------------------------------------------------------------------------------------------------------

    def get_at(self, key: str, revision: int) -> Record | None:
        """The record of a key as it was at a revision. O(log of the key's versions).

        Raises:
            CompactedError: below the logical floor.
            ValueError: above ``revision``: this replica has not been there yet.
        """
        self._require(revision)
        return self.version_at(key, revision)

    def version_at(self, key: str, revision: int) -> Record | None:
        """:meth:`get_at` for who holds a pin: right down to the physical floor, unchecked."""
        record = self._records.get(key)
        if record is not None and record[2] > revision:
            older = self._older.get(key, ())
            index = bisect.bisect_right(older, revision, key=_mod_revision)
            record = older[index - 1] if index else None
        return None if record is None or record[0] is None else record

    def scan(
        self,
        keys: KeyRange | None = None,
        *,
        revision: int | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Record]]:
        """An iterator over (key, record) in key order, as of a revision (now by default), whatever changes meanwhile.

        It holds a breakable pin, until it ends or is dropped. Raises as :meth:`get_at` does; the iterator itself
        CompactedError, once its pin is broken.
        """
        pin = self.pin(revision, breakable=True)
        return self._scan(pin, keys or KeyRange(), reverse, sys.maxsize if limit is None else limit)

    def scan_pinned(self, pin: Pin) -> Iterator[tuple[str, Record]]:
        """As :meth:`scan`, over all keys, under a pin that is there already."""
        return self._scan(pin, KeyRange(), False, sys.maxsize)

    def _scan(self, pin: Pin, keys: KeyRange, reverse: bool, limit: int) -> Iterator[tuple[str, Record]]:
        revision = pin.revision
        after: str | None = None
        block = min(limit, _SCAN_KEYS_MIN)
        more = limit > 0
        while more:
            names, more = self._select(keys, revision, after, reverse, block)
            for name in names:
                if self.physical_floor > revision:
                    raise self._compacted(revision)
                record = self.version_at(name, revision)
                if record is not None:
                    yield name, record
                    limit -= 1
                    if not limit:
                        return
            after = names[-1] if names else None
            block = min(2 * block, _SCAN_KEYS_MAX)

    def _select(
        self, keys: KeyRange, revision: int, after: str | None, reverse: bool, block: int
    ) -> tuple[list[str], bool]:
        """The next keys that may have been live at a revision, and whether more may follow them."""
        live = keys.select(self._live, block, after=after, reverse=reverse)
        more = len(live) == block
        if revision == self.revision or not self._dead:
            return live, more
        # Some that were live are dead by now. Two runs of keys are merged as far as both are known.
        dead = keys.select(self._dead, block, after=after, reverse=reverse)
        names = sorted(live + dead, reverse=reverse)
        ends = [run[-1] for run in (live, dead) if len(run) == block]
        if not ends:
            return names, False
        return names[: names.index(max(ends) if reverse else min(ends)) + 1], True

    def changes_since(self, revision: int) -> Iterator[tuple[int, Changes]]:
        """(revision, changes) for each revision above the given one, as far as there are any when asked.

        O(1) to begin and per revision. Raises CompactedError and ValueError as :meth:`get_at` does; the iterator
        CompactedError when it is so slow that what follows has been trimmed.
        """
        self._require(revision)
        return self._changes(revision, sys.maxsize)

    def changes_pinned(self, pin: Pin, revision: int) -> Iterator[tuple[int, Changes]]:
        """As :meth:`changes_since` what is pinned, up to ``revision``."""
        return self._changes(pin.revision, revision)

    def _changes(self, revision: int, last: int) -> Iterator[tuple[int, Changes]]:
        while revision < min(self.revision, last):
            revision += 1
            entry = self._log.get(revision)
            if entry is None:
                raise self._compacted(revision - 1)
            yield revision, tuple(zip(entry[1::3], entry[2::3], entry[3::3], strict=True))

    # -- changes -------------------------------------------------------------------------------------------------------

    def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Set one key, as a revision of its own, which is returned. O(1); O(log n) for a new key."""
        previous = self._records.get(key)
        if previous is None or previous[0] is None:
            return self.commit(((key, value, lease),))
        revision = self.revision + 1
        record = (value, previous[1], revision, previous[3] + 1, lease)
        self._records[key] = record
        older = self._older.get(key)
        if older is None:
            self._older[key] = [previous]
        else:
            older.append(previous)
        self._bytes += CHANGE_BYTES + len(key) + len(previous[0])
        self._log[revision] = (self._bytes, key, record, previous)
        self.revision = revision
        if self.physical_floor < self._target:
            self.trim(2 + _TRIM_CHANGES)
        return revision

    def commit(self, writes: Iterable[Write]) -> int:
        """Make all writes at the next revision, and return it. Keys must be distinct.

        Deletes of what is not there are left out; when nothing is left, no revision is taken.
        """
        revision = self.revision + 1
        records = self._records
        changes: list[str | Record | None] = []
        for key, value, lease in writes:
            replaced = records.get(key)
            previous = None if replaced is None or replaced[0] is None else replaced
            record: Record
            if value is not None:
                if previous is not None:
                    record = (value, previous[1], revision, previous[3] + 1, lease)
                else:
                    record = (value, revision, revision, 1, lease)
                    self._live.add(key)
                    if replaced is not None:
                        self._dead.remove(key)
            elif previous is None:
                continue
            else:
                record = (None, 0, revision, 0, lease)
                self._live.remove(key)
                self._dead.add(key)
            records[key] = record
            if replaced is not None:
                self._older.setdefault(key, []).append(replaced)
            self._bytes += CHANGE_BYTES + len(key) + (len(previous[0] or b"") if previous is not None else 0)
            changes += (key, record, previous)
        if not changes:
            return self.revision
        self._log[revision] = (self._bytes, *changes)
        self.revision = revision
        if self.physical_floor < self._target:
            self.trim(2 * len(changes) // 3 + _TRIM_CHANGES)
        return revision

    def load(self, key: str, record: Record) -> None:
        """Add a record as of ``revision`` while a keyspace is built from a snapshot: no change, no history."""
        if key in self._records or record[0] is None or record[2] > self.revision or self._log:
            raise InternalError(f"the snapshot has a record of {key!r} that cannot stand at revision {self.revision}")
        self._records[key] = record
        self._live.add(key)

    # -- the floors ----------------------------------------------------------------------------------------------------

    @property
    def history_bytes(self) -> int:
        """What the history above the logical floor costs in memory, about. O(1)."""
        return self._bytes - self._floor_bytes

    @property
    def pinned_bytes(self) -> int:
        """What is in memory beyond the logical floor: pinned, or not trimmed yet. O(1)."""
        return self._floor_bytes - self._trimmed_bytes

    def floor_for(self, *, revisions_max: int, bytes_max: int) -> int:
        """The smallest logical floor under which the history keeps to both limits.

        O(1), and O(log of the history) where its bytes are too many: it is asked in every turn of the leader.
        """
        low = max(self.floor, self.revision - revisions_max)
        excess = self._bytes - bytes_max
        if self._bytes_at(low) >= excess:
            return low
        revisions = range(low, self.revision + 1)
        return low + bisect.bisect_left(revisions, excess, hi=len(revisions) - 1, key=self._bytes_at)

    def compact(self, revision: int) -> int:
        """Raise the logical floor to a revision (at most the newest), and return the floor. Never lowers it."""
        revision = min(revision, self.revision)
        if revision > self.floor:
            self._floor_bytes = self._bytes_at(revision)
            self.floor = revision
            self._break_pins()
            self._retarget()
            self.trim(_TRIM_CHANGES)
        return self.floor

    def pin(self, revision: int | None = None, *, breakable: bool = False) -> Pin:
        """Keep a revision (now by default) readable until the pin is released. Raises as :meth:`get_at` does."""
        if revision is None:
            revision = self.revision
        else:
            self._require(revision)
        pins = self._breakable_pins if breakable else self._firm_pins
        pins[revision] = pins.get(revision, 0) + 1
        return Pin(self, revision, breakable)

    def trim(self, changes_max: int) -> bool:
        """Free up to about so many changes that nobody can read any more; whether there are more of them.

        Every command does a little of it; call it when there is time, and when no commands come.
        """
        log, older, revision = self._log, self._older, self.physical_floor
        while changes_max > 0 and revision < self._target:
            revision += 1
            entry = log.pop(revision)
            changes_max -= len(entry) // 3
            for index in range(1, len(entry), 3):
                key, record, replaced = entry[index : index + 3]
                versions = older.get(key)
                if versions is not None and versions[0][2] < revision:
                    stale = 1 if versions[0] is replaced else bisect.bisect_left(versions, revision, key=_mod_revision)
                    if stale == len(versions):
                        del older[key]
                    elif stale >= _STALE_VERSIONS or len(versions) <= _EAGER_VERSIONS:
                        del versions[:stale]
                if record[0] is None and self._records.get(key) is record:
                    del self._records[key]
                    self._dead.remove(key)
            self._trimmed_bytes = entry[0]
        self.physical_floor = revision
        return revision < self._target

    def _bytes_at(self, revision: int) -> int:
        return self._log[revision][0] if revision > self.physical_floor else self._trimmed_bytes

    def _retarget(self) -> None:
        self._target = min((self.floor, *self._firm_pins, *self._breakable_pins))

    def _break_pins(self) -> None:
        """Let go of breakable pins that hold more than ``pinned_bytes_max`` beyond the logical floor."""
        for revision in [
            revision
            for revision in self._breakable_pins
            if self._floor_bytes - self._bytes_at(revision) > self.pinned_bytes_max
        ]:
            del self._breakable_pins[revision]

    def _unpin(self, pin: Pin) -> None:
        pins = self._breakable_pins if pin.breakable else self._firm_pins
        count = pins.get(pin.revision, 0)
        if count > 1:
            pins[pin.revision] = count - 1
        elif count:
            del pins[pin.revision]
            if pin.revision == self._target:
                self._retarget()

    def _require(self, revision: int) -> None:
        if revision < self.floor:
            raise self._compacted(revision)
        if revision > self.revision:
            raise ValueError(
                f"revision {revision} is in the future: this replica is at {self.revision}; wait for a barrier() first"
            )

    def _compacted(self, revision: int) -> CompactedError:
        return CompactedError(
            f"revision {revision} is no longer held: the history begins at {self.floor}; read the present instead",
            self.floor,
        )
