"""The map in many versions (MVCC): what every key held at every retained revision.

Revisions are consecutive above the floor; the empty map is at revision 0. Nothing that Python's garbage collector
tracks is kept per key: the dicts that grow with the map hold atoms only, so it passes them by (a million tuples cost
200 ms a collection). And nothing that grows with the map is one object: a dict of a million entries takes 100 ms when
it has to grow, and as long when it is freed. So keys are spread over *shards* by their hash.

Two floors. The *logical* one is moved by a command, so every replica refuses the same reads. Memory is freed up to
the *physical* one, later and bit by bit, and never past a pin. Nothing a command computes depends on the physical
floor.
"""

from __future__ import annotations

import bisect
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias, cast

from replikv.errors import CompactedError, InternalError
from replikv.machine.attachments import Attachments
from replikv.machine.pin import Pin
from replikv.machine.ranges import KeyRange
from replikv.machine.record import HEAD, LIVE, Record, digest_of, is_live, lease_of, mod_revision_of, pack_record
from replikv.machine.sorted_keys import SortedKeys

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

KEY_BYTES: Final = 200
"""What a key costs in memory beside the characters of itself and its value: the heads of a str, of a bytes and of a
record, slots of a dict and of a block. tracemalloc says 146 with CPython 3.11, a process with a million keys 189 each.
What commands compute depends on it: every peer must count alike, so it is as fixed as a layout."""

_TRIM_CHANGES: Final = 4
"""Changes trimmed per command beside twice its own: more than are made, so the physical floor always catches up."""

_SHARDS: Final = 256
"""Dicts that records are spread over: of 4,000 entries each, with a million keys."""
_SHARD: Final = sys.hash_info.width - 8
"""``hash(key) >> _SHARD`` is an index, if a negative one, into a list of so many. By the upper bits of the hash: dicts
look at the lower ones, and would all but collide where those are alike. Where a key is decides nothing."""

_SCAN_KEYS_MIN: Final = 16
_SCAN_KEYS_MAX: Final = 256
"""Keys that a scan looks up at a time; it starts small, since most readers want few."""

_DIGEST_MASK: Final = (1 << 64) - 1
_crc32: Final = zlib.crc32
_pack_head: Final = HEAD.pack
_unpack_head: Final = HEAD.unpack_from
_HEAD_BYTES: Final = HEAD.size
_pack_place: Final = struct.Struct("=QQ").pack
_PLACE_BYTES: Final = 16
_CHANGE_BYTES: Final = CHANGE_BYTES - HEAD.size


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
        self._records: list[dict[str, Record]] = [{} for _ in range(_SHARDS)]
        """The newest record of each key; a tombstone only while its revision is above the physical floor."""
        self._places: dict[str, bytearray] = {}
        """Where in the log the changes of a key are: (revision, index of the replaced record in its entry), ascending,
        two words of eight bytes each. Exactly the keys that were changed above the physical floor. Packed: a bytearray
        is not tracked by the garbage collector, and gives up its first bytes in O(1)."""
        self.key_count = 0
        """``len(self)``: an attribute costs half of what a call does, and every put asks."""
        self._live = SortedKeys()
        """The keys of ``_records`` whose record is live."""
        self._dead = SortedKeys()
        """The keys of ``_records`` whose record is a tombstone: scans of the past need their order too."""
        self.state_bytes = 0
        """What the keys that are there cost in memory, about: themselves, their values, ``KEY_BYTES`` each."""
        self._digest = 0
        """The sum of :func:`digest_of` over all keys that are there."""
        self.attachments = Attachments()
        """Which keys are attached to which lease, as their newest records say."""
        self._log: dict[int, tuple[Any, ...]] = {}
        """revision -> (bytes of all changes up to it, then key, record and replaced record of each of its changes), for
        each revision in (physical_floor, revision]. Flat: nested tuples are what the garbage collector would walk."""
        self.changed_bytes = 0
        """What all changes ever made here have cost in memory, about. It only grows; differences of it are what
        stretches of the log hold."""
        self._floor_bytes = 0
        """``changed_bytes`` as of the logical floor."""
        self._trimmed_bytes = 0
        """``changed_bytes`` as of the physical floor."""
        self._firm_pins: dict[int, int] = {}
        self._breakable_pins: dict[int, int] = {}
        """revision -> how many pins hold it."""
        self._shards_freed = 0
        """How many shards :meth:`free` has freed."""
        self._target = revision
        """What the physical floor may rise to: min(floor, the oldest pin)."""

    # -- the present ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many keys there are. O(1)."""
        return self.key_count

    def __contains__(self, key: object) -> bool:
        record = self._records[hash(key) >> _SHARD].get(key)  # type: ignore[call-overload]  # no str is no key
        return record is not None and record[LIVE] == 1

    def get(self, key: str) -> Record | None:
        """The record of a key, None if there is none. O(1)."""
        record = self._records[hash(key) >> _SHARD].get(key)
        return None if record is None or not record[LIVE] else record

    def get_value(self, key: str) -> bytes | None:
        """The encoded value of a key, None if there is none. O(1)."""
        record = self._records[hash(key) >> _SHARD].get(key)
        return record[_HEAD_BYTES:] if record is not None and record[LIVE] else None

    @property
    def digest_sum(self) -> int:
        """A number that tells states apart, mod 2**64: a function of the keys that are there and their records. O(1).

        Replicas that have applied equally much and differ in it differ; of those that differ, all but one in 2**32 do.
        """
        return self._digest & _DIGEST_MASK

    def count(self, keys: KeyRange) -> int:
        """How many keys of the range there are. O(log n)."""
        return keys.count(self._live)

    def first_keys(self, keys: KeyRange, limit: int) -> list[str]:
        """Up to ``limit`` keys of the range, in order, as of now. O(log n + limit)."""
        return keys.select(self._live, limit)

    def iterate_keys(self, keys: KeyRange) -> Iterator[str]:
        """The keys of the range, in order, while nothing is changed. O(log n) to begin, O(1) per key."""
        return keys.iterate(self._live)

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
        record = self._records[hash(key) >> _SHARD].get(key)
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

    def scan_pinned(self, pin: Pin) -> Iterator[list[tuple[str, Record]]]:
        """As :meth:`scan`, over all keys, under a pin that is there already; in runs, each in well under a millisecond.

        A run may be empty: of all keys that came after the pinned revision there is nothing to tell, but whoever goes
        on in slices must be able to stop there.
        """
        return self._runs(pin, KeyRange(), False, _SCAN_KEYS_MAX)

    def _scan(self, pin: Pin, keys: KeyRange, reverse: bool, limit: int) -> Iterator[tuple[str, Record]]:
        if not limit:
            return
        for run in self._runs(pin, keys, reverse, min(limit, _SCAN_KEYS_MIN)):
            for item in run:
                if self.physical_floor > pin.revision:
                    raise self._compacted(pin.revision)
                yield item
                limit -= 1
                if not limit:
                    return

    def _runs(self, pin: Pin, keys: KeyRange, reverse: bool, block: int) -> Iterator[list[tuple[str, Record]]]:
        revision = pin.revision
        after: str | None = None
        more = True
        while more:
            if self.physical_floor > revision:
                raise self._compacted(revision)
            names, more = self._select(keys, revision, after, reverse, block)
            yield [(name, record) for name in names if (record := self.version_at(name, revision)) is not None]
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
        log = self._log
        while revision < last and revision < self.revision:
            revision += 1
            entry = log.get(revision)
            if entry is None:
                raise self._compacted(revision - 1)
            if len(entry) == 4:  # one change: the many
                yield revision, (entry[1:],)
            else:
                yield revision, tuple(zip(entry[1::3], entry[2::3], entry[3::3], strict=True))

    def unchanged_since(self, keys: KeyRange, revision: int) -> bool:
        """Whether surely no key of the range was put or deleted after a revision. Below the floor: never sure.

        O(the changes since, or the keys of the range, whichever are fewer), beside O(log n). The answer is a function
        of the logical state: commands may depend on it.
        """
        if revision < self.floor:
            return False
        count = keys.count(self._live) + keys.count(self._dead)
        start, stop = keys.start, keys.stop
        log = self._log
        for changed in range(revision + 1, self.revision + 1):
            entry = log[changed]
            count -= len(entry) // 3
            if count < 0:
                break
            for key in entry[1::3]:
                if start <= key and (stop is None or key < stop):
                    return False
        else:
            return True
        # The log is longer than the range. A key that was deleted since is among the dead: those are kept down to the
        # physical floor, and older ones change nothing.
        records = self._records
        return not any(
            mod_revision_of(records[hash(key) >> _SHARD][key]) > revision
            for names in (self._live, self._dead)
            for key in keys.select(names, len(names))
        )

    # -- changes -------------------------------------------------------------------------------------------------------

    def put(self, key: str, value: bytes, lease: int = 0, name: bytes = b"") -> int:
        """Set one key, as a revision of its own, which is returned. O(1); O(log n) for a new key.

        ``name`` is the key in UTF-8, for whoever has it at hand.
        """
        records = self._records[hash(key) >> _SHARD]
        previous = records.get(key)
        if previous is None or not previous[LIVE]:
            return self.commit(((key, value, lease),))
        revision = self.revision + 1
        created, _, version, attached, _ = _unpack_head(previous)
        record: Record = _pack_head(created, revision, version + 1, lease, 1) + value  # type: ignore[assignment]  # a call
        records[key] = record
        before = len(previous)
        self.state_bytes += len(record) - before
        seed = _crc32(name or key.encode())
        new, old = _crc32(record, seed), _crc32(previous, seed)
        self._digest += (new + old) * (new - old)  # the difference of their digest_of
        if attached != lease:
            self.attachments.move(key, attached, lease)
        places = self._places.get(key)
        if places is None:
            self._places[key] = bytearray(_pack_place(revision, 3))
        else:
            places += _pack_place(revision, 3)
        self.changed_bytes = changed = self.changed_bytes + _CHANGE_BYTES + len(key) + before
        self._log[revision] = (changed, key, record, previous)
        self.revision = revision
        if self.physical_floor < self._target:
            self.trim(2 + _TRIM_CHANGES)
        return revision

    def commit(self, writes: Iterable[Write]) -> int:
        """Make all writes at the next revision, and return it. Keys must be distinct.

        Deletes of what is not there are left out; when nothing is left, no revision is taken.
        """
        revision = self.revision + 1
        places = self._places
        changes: list[str | Record | None] = []
        for key, value, lease in writes:
            records = self._records[hash(key) >> _SHARD]
            replaced = records.get(key)
            previous = replaced if replaced is not None and is_live(replaced) else None
            if value is not None:
                if previous is not None:
                    created, _, version, attached, _ = _unpack_head(previous)
                    self.state_bytes += len(value) + _HEAD_BYTES - len(previous)
                    if attached != lease:
                        self.attachments.move(key, attached, lease)
                    record = pack_record(value, created, revision, version + 1, lease)
                else:
                    record = pack_record(value, revision, revision, 1, lease)
                    self.state_bytes += KEY_BYTES + len(key) + len(value)
                    if lease:
                        self.attachments.move(key, 0, lease)
                    self._live.add(key)
                    self.key_count += 1
                    if replaced is not None:
                        self._dead.remove(key)
            elif previous is None:
                continue
            else:
                record = pack_record(None, 0, revision, 0, lease)
                self.state_bytes -= KEY_BYTES + len(key) + len(previous) - _HEAD_BYTES
                if attached := lease_of(previous):
                    self.attachments.move(key, attached, 0)
                self._live.remove(key)
                self.key_count -= 1
                self._dead.add(key)
            records[key] = record
            if value is not None:
                self._digest += digest_of(key, record)
            if previous is not None:
                self._digest -= digest_of(key, previous)
            places.setdefault(key, bytearray()).extend(_pack_place(revision, len(changes) + 3))
            self.changed_bytes += CHANGE_BYTES + len(key) + (len(previous) - _HEAD_BYTES if previous is not None else 0)
            changes += (key, record, previous)
        if not changes:
            return self.revision
        self._log[revision] = (self.changed_bytes, *changes)
        self.revision = revision
        if self.physical_floor < self._target:
            self.trim(2 * len(changes) // 3 + _TRIM_CHANGES)
        return revision

    def load(self, key: str, record: Record) -> None:
        """Add a record as of ``revision`` while a keyspace is built from a snapshot: no change, no history."""
        records = self._records[hash(key) >> _SHARD]
        if key in records or not is_live(record) or mod_revision_of(record) > self.revision or self._log:
            raise InternalError(f"the snapshot has a record of {key!r} that cannot stand at revision {self.revision}")
        records[key] = record
        self._live.add(key)
        self.key_count += 1
        self._digest += digest_of(key, record)
        self.state_bytes += KEY_BYTES + len(key) + len(record) - _HEAD_BYTES
        if lease := lease_of(record):
            self.attachments.move(key, 0, lease)

    # -- the floors ----------------------------------------------------------------------------------------------------

    @property
    def history_bytes(self) -> int:
        """What the history above the logical floor costs in memory, about. O(1)."""
        return self.changed_bytes - self._floor_bytes

    @property
    def pinned_bytes(self) -> int:
        """What is in memory beyond the logical floor: pinned, or not trimmed yet. O(1)."""
        return self._floor_bytes - self._trimmed_bytes

    def floor_for(self, *, revisions_max: int, bytes_max: int) -> int:
        """The smallest logical floor under which the history keeps to both limits.

        O(1), and O(log of the history) where its bytes are too many: it is asked in every turn of the leader.
        """
        low = max(self.floor, self.revision - revisions_max)
        excess = self.changed_bytes - bytes_max
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
                if not record[LIVE]:
                    records = self._records[hash(key) >> _SHARD]
                    if records.get(key) is record:
                        del records[key]
                        self._dead.remove(key)
            self._trimmed_bytes = entry[0]
        self.physical_floor = revision
        return revision < self._target

    def free(self, changes_max: int) -> bool:
        """Free a part of a keyspace that nobody needs any more; whether there is something left. About a millisecond.

        All at once takes a tenth of a second per million keys. While something is pinned, nothing is freed: call it
        again. The keyspace is empty afterwards, and of no other use.
        """
        if self._firm_pins or self._breakable_pins:
            return True
        self.compact(self.revision)
        if self.trim(changes_max):
            return True
        self.key_count = 0
        if self._shards_freed < _SHARDS:
            self._records[self._shards_freed] = {}
            self._shards_freed += 1
            return True
        return self._live.free()

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

    def unpin(self, pin: Pin) -> None:
        """What releasing a pin does."""
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
