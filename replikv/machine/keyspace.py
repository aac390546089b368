"""The map in many versions (MVCC): what every key held at every retained revision.

Revisions are consecutive above the floor; the empty map is at revision 0. Nothing that Python's garbage collector
tracks is kept per key: the dicts that grow with the map hold atoms only, so it passes them by (a million tuples cost
200 ms a collection).

Two floors. The *logical* one is moved by a command, so every replica refuses the same reads. Memory is freed up to
the *physical* one, later and bit by bit, and never past a pin. Nothing a command computes depends on the physical
floor.
"""

from __future__ import annotations

import bisect
import struct
import sys
from collections.abc import Iterable, Iterator, KeysView
from typing import Any, Final, TypeAlias, cast

from sortedcontainers import SortedList

from replikv.errors import CompactedError, InternalError
from replikv.machine.ranges import KeyRange
from replikv.machine.record import HEAD, LIVE, Record, is_live, lease_of, mod_revision_of, pack_record

__all__ = ["Change", "Changes", "Keyspace", "Pin", "Write"]

Change: TypeAlias = tuple[str, Record, Record | None]
"""(key, record, the live record that it replaced)"""
Changes: TypeAlias = tuple[Change, ...]
"""All changes of one revision, in the order in which the command made them; never two of one key."""
Write: TypeAlias = tuple[str, bytes | None, int]
"""(key, value or None to delete, lease)"""

CHANGE_BYTES: Final = 350
"""What a retained change costs beside its key and the value it replaced: the head of a record, a tuple, a bytearray,
slots of two dicts, integers. Measured with tracemalloc on CPython 3.11 (325), and a little for what the allocator
loses."""

KEY_BYTES: Final = 300
"""What a key costs in memory beside itself and its value."""

_TRIM_CHANGES: Final = 4
"""Changes trimmed per command beside twice its own: more than are made, so the physical floor always catches up."""

_SCAN_KEYS_MIN: Final = 16
_SCAN_KEYS_MAX: Final = 256
"""Keys that a scan looks up at a time; it starts small, since most readers want few."""

_pack_head: Final = HEAD.pack
_unpack_head: Final = HEAD.unpack_from
_HEAD_BYTES: Final = HEAD.size
_pack_place: Final = struct.Struct("=QQ").pack
_PLACE_BYTES: Final = 16


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
        self._places: dict[str, bytearray] = {}
        """Where in the log the changes of a key are: (revision, index of the replaced record in its entry), ascending,
        two words of eight bytes each. Exactly the keys that were changed above the physical floor. Packed: a bytearray
        is not tracked by the garbage collector, and gives up its first bytes in O(1)."""
        self._live: SortedList[str] = SortedList()
        """The keys of ``_records`` whose record is live."""
        self._dead: SortedList[str] = SortedList()
        """The keys of ``_records`` whose record is a tombstone: scans of the past need their order too."""
        self.state_bytes = 0
        """What the keys that are there cost in memory, about: themselves, their values, ``KEY_BYTES`` each."""
        self._attached: dict[int, set[str]] = {}
        """lease -> the keys whose newest record names it. No empty sets, and not for lease 0."""
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
        return record is not None and record[LIVE] == 1

    def get(self, key: str) -> Record | None:
        """The record of a key, None if there is none. O(1)."""
        record = self._records.get(key)
        return None if record is None or not record[LIVE] else record

    def get_value(self, key: str) -> bytes | None:
        """The encoded value of a key, None if there is none. O(1)."""
        record = self._records.get(key)
        return record[_HEAD_BYTES:] if record is not None and record[LIVE] else None

    def count(self, keys: KeyRange) -> int:
        """How many keys of the range there are. O(log n)."""
        return keys.count(self._live)

    def first_keys(self, keys: KeyRange, limit: int) -> list[str]:
        """Up to ``limit`` keys of the range, in order, as of now. O(log n + limit)."""
        return keys.select(self._live, limit)

    def iterate_keys(self, keys: KeyRange) -> Iterator[str]:
        """The keys of the range, in order, while nothing is changed. O(log n) to begin, O(1) per key."""
        return keys.iterate(self._live)

    def attached_keys(self, lease: int, limit: int | None = None) -> list[str]:
        """The keys that are attached to a lease, in order; the first ``limit`` of them. O(n log n) of all of them."""
        return sorted(self._attached.get(lease, ()))[:limit]

    def attached_count(self, lease: int) -> int:
        """How many keys are attached to a lease. O(1)."""
        return len(self._attached.get(lease, ()))

    def growth(self, writes: Iterable[Write]) -> tuple[int, int]:
        """By how many keys, and how many of ``state_bytes``, the writes would change the map. O(writes)."""
        keys = size = 0
        for key, value, _ in writes:
            previous = self.get(key)
            if previous is not None:
                keys -= 1
                size -= KEY_BYTES + len(key) + len(previous) - _HEAD_BYTES
            if value is not None:
                keys += 1
                size += KEY_BYTES + len(key) + len(value)
        return keys, size

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
        if record is None:
            return None
        if mod_revision_of(record) > revision:
            places = memoryview(self._places[key]).cast("Q")
            first = 2 * bisect.bisect_right(places[::2], revision)  # what that change replaced was there before it
            return cast("Record | None", self._log[places[first]][places[first + 1]])
        return record if record[LIVE] else None

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
            if len(entry) == 4:  # one change: the many
                yield revision, (cast("Change", entry[1:]),)
            else:
                yield revision, tuple(zip(entry[1::3], entry[2::3], entry[3::3], strict=True))

    def unchanged_since(self, keys: KeyRange, revision: int) -> bool:
        """Whether no key of the range was put or deleted after a revision. O(changes since).

        False below the logical floor, where nobody knows. A function of the logical state: commands may ask.
        """
        if revision < self.floor:
            return False
        return not any(
            key in keys for later in range(revision + 1, self.revision + 1) for key in self._log[later][1::3]
        )

    # -- changes -------------------------------------------------------------------------------------------------------

    def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Set one key, as a revision of its own, which is returned. O(1); O(log n) for a new key."""
        previous = self._records.get(key)
        if previous is None or not previous[LIVE]:
            return self.commit(((key, value, lease),))
        revision = self.revision + 1
        created, _, version, attached, _ = _unpack_head(previous)
        record = cast("Record", _pack_head(created, revision, version + 1, lease, 1) + value)
        self._records[key] = record
        self.state_bytes += len(record) - len(previous)
        if attached != lease:
            self._move(key, attached, lease)
        places = self._places.get(key)
        if places is None:
            self._places[key] = bytearray(_pack_place(revision, 3))
        else:
            places += _pack_place(revision, 3)
        self._bytes += CHANGE_BYTES + len(key) + len(previous) - _HEAD_BYTES
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
        records, places = self._records, self._places
        changes: list[str | Record | None] = []
        for key, value, lease in writes:
            replaced = records.get(key)
            previous = replaced if replaced is not None and is_live(replaced) else None
            if value is not None:
                if previous is not None:
                    created, _, version, attached, _ = _unpack_head(previous)
                    self.state_bytes += len(value) + _HEAD_BYTES - len(previous)
                    if attached != lease:
                        self._move(key, attached, lease)
                    record = pack_record(value, created, revision, version + 1, lease)
                else:
                    record = pack_record(value, revision, revision, 1, lease)
                    self.state_bytes += KEY_BYTES + len(key) + len(value)
                    if lease:
                        self._move(key, 0, lease)
                    self._live.add(key)
                    if replaced is not None:
                        self._dead.remove(key)
            elif previous is None:
                continue
            else:
                record = pack_record(None, 0, revision, 0, lease)
                self.state_bytes -= KEY_BYTES + len(key) + len(previous) - _HEAD_BYTES
                if attached := lease_of(previous):
                    self._move(key, attached, 0)
                self._live.remove(key)
                self._dead.add(key)
            records[key] = record
            places.setdefault(key, bytearray()).extend(_pack_place(revision, len(changes) + 3))
            self._bytes += CHANGE_BYTES + len(key) + (len(previous) - _HEAD_BYTES if previous is not None else 0)
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
        if key in self._records or not is_live(record) or mod_revision_of(record) > self.revision or self._log:
            raise InternalError(f"the snapshot has a record of {key!r} that cannot stand at revision {self.revision}")
        self._records[key] = record
        self._live.add(key)
        self.state_bytes += KEY_BYTES + len(key) + len(record) - _HEAD_BYTES
        if lease := lease_of(record):
            self._move(key, 0, lease)

    def _move(self, key: str, old: int, new: int) -> None:
        """The key was attached to one lease, and is to another; 0 is none."""
        if old:
            keys = self._attached[old]
            keys.remove(key)
            if not keys:
                del self._attached[old]
        if new:
            self._attached.setdefault(new, set()).add(key)

    def leases(self) -> KeysView[int]:
        """The leases that keys are attached to."""
        return self._attached.keys()

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

    def advance(self, revisions: int) -> int:
        """Leave so many revisions out, and return the newest one: as if they had changed nothing, and been compacted.

        For a map whose newest revisions are lost: what comes next must not be taken for one of them. Records keep
        their revisions; the history goes, so whoever asks for what came after an older one is told that there is a
        gap. Not a command, and nothing may be pinned. O(history).
        """
        if self._firm_pins or self._breakable_pins:
            raise InternalError("revisions were to be left out of a map that somebody reads")
        self.compact(self.revision)
        self.trim(sys.maxsize)
        self.revision += revisions
        self.floor = self.physical_floor = self._target = self.revision
        return self.revision

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
        log, places, revision = self._log, self._places, self.physical_floor
        while changes_max > 0 and revision < self._target:
            revision += 1
            entry = log.pop(revision)
            changes_max -= len(entry) // 3
            for index in range(1, len(entry), 3):
                key, record = entry[index], entry[index + 1]
                own = places[key]
                if len(own) == _PLACE_BYTES:
                    del places[key]
                else:
                    del own[:_PLACE_BYTES]
                if not record[LIVE] and self._records.get(key) is record:
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
