"""Bugs of what is replicated: the map, its history, transactions, sessions, snapshots of them."""

# ruff: noqa: ARG005 - a function in the place of another takes what that takes

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio

from replikv.machine import history, keyspace, keyvalue, transactions
from replikv.machine.envelope import Status
from replikv.machine.keyspace import Changes, Keyspace
from replikv.machine.keyvalue import KeyValue
from replikv.machine.pin import Pin
from replikv.machine.ranges import KeyRange
from replikv.machine.record import Record, mod_revision_of
from replikv.machine.replica import Replica, Restorer
from replikv.machine.sessions import Sessions
from replikv.peer.applier import Applier
from replikv.store.selection import Selection
from replikv.testing.simulator.patching import Patch
from replikv.testing.simulator.planted.catalogue import bug

__all__: list[str] = []


@bug(snapshot_log_entries=10, trailing_entries=1, partitions=0.5, crashes=0.3)
def drop_the_session_table_from_snapshots(patch: Patch) -> None:
    """Whoever is restored from a snapshot knows no session."""

    def wrong(self: Sessions) -> Iterator[bytes]:
        return iter([next(iter(right(self)))])

    right = patch.set(Sessions, "snapshot", wrong)


@bug(partitions=0.5, loss=0.1, clients=8, think_s=0.1)
def apply_a_retry_twice(patch: Patch) -> None:
    """A sequence that is known is applied again (raftos#2, ra#145)."""

    def wrong(
        self: Sessions,
        position: int,
        session_id: int,
        sequence: int,
        below: int,
        execute: Callable[[bytes, int], bytes],
        command: bytes,
        offset: int,
    ) -> bytes:
        session = self.table.get(session_id)
        if session is not None:
            session.results.pop(sequence, None)
        result: bytes = right(self, position, session_id, sequence, below, execute, command, offset)
        return result

    right = patch.set(Sessions, "answer", wrong)


@bug(history_revisions=10, snapshot_log_entries=8, clients=8, think_s=0.1)
def answer_by_what_is_pinned_here(patch: Patch) -> None:
    """What a command does depends on what the own process has not freed yet."""

    def wrong(self: Replica, command: bytes) -> bytes:
        pinned = self.keyspace.pinned_bytes > 0
        result: bytes = right(self, command)
        return bytes([Status.FAILED]) if pinned and self.position % 10 == 0 else result

    right = patch.set(Replica, "_apply", wrong)


@bug(crashes=0.5)
def evict_sessions_by_the_local_clock(patch: Patch) -> None:
    """A session that this replica has not seen for some seconds is forgotten, by its own clock (thesis 6.3)."""
    seen: dict[int, float] = {}

    def wrong(self: Sessions, position: int, nonce: int, node_id: bytes) -> int:
        now = trio.current_time()
        for session in [id_ for id_, one in self.table.items() if now - seen.setdefault(id(one), now) > 2.0]:
            del self.table[session]
        registered: int = right(self, position, nonce, node_id)
        return registered

    right = patch.set(Sessions, "register", wrong)


@bug(seeds=30, apply_look_s=0.0004, snapshot_log_entries=8, clients=8, think_s=0.1, crashes=0.3)
def take_a_snapshot_within_an_entry(patch: Patch) -> None:
    """The state of a snapshot and the index that it is told to be of do not belong together (etcd#13766)."""
    patch.set(Applier, "at_boundary", property(lambda self: True))


@bug(snapshot_log_entries=8, trailing_entries=1, crashes=0.3, clients=8, think_s=0.1)
def let_the_map_go_on_in_a_snapshot(patch: Patch) -> None:
    """The map in a snapshot is that of the moment in which its first chunk is read, not that of the call."""

    def wrong(keyspace: Keyspace, pin: Pin, _: int) -> Iterator[bytes]:
        yield from right(keyspace, pin, keyspace.revision)

    right = patch.set(history, "_chunks", wrong)


@bug(snapshot_log_entries=10, trailing_entries=1, crashes=0.3)
def forget_the_position_in_a_snapshot(patch: Patch) -> None:
    """Whoever is restored from a snapshot counts commands from there on, and so hands out other session ids."""

    def wrong(self: Restorer) -> None:
        right(self)
        self._replica.position = 0

    right = patch.set(Restorer, "finish", wrong)


@bug(snapshot_log_entries=10, trailing_entries=1, crashes=0.3)
def forget_the_limits_in_a_snapshot(patch: Patch) -> None:
    """Whoever is restored from a snapshot goes by the limits of a new cluster."""

    def wrong(self: Restorer) -> None:
        right(self)
        self._replica.governance = self._replica.map.governance = type(self._governance)()

    right = patch.set(Restorer, "finish", wrong)


@bug(clients=8, think_s=0.1)
def set_whatever_is_compared(patch: Patch) -> None:
    """A compare-and-set does not compare."""
    patch.set(keyvalue, "equal_values", lambda left, right: True)


@bug(clients=8, think_s=0.1)
def let_any_comparison_hold(patch: Patch) -> None:
    """A transaction takes its branch without looking at the state it is applied to."""
    patch.set(transactions, "_related", lambda left, relation, right: True)


@bug(clients=8, think_s=0.1, history_revisions=10)
def increment_what_was_there(patch: Patch) -> None:
    """An increment adds to what the history has of the key, not to what there is."""

    def wrong(self: KeyValue, data: bytes, offset: int) -> bytes:
        with Patch() as inner:
            inner.set(Keyspace, "get", lambda self, key: self.version_at(key, max(self.floor, self.revision - 3)))
            result: bytes = right(self, data, offset)
        return result

    right = patch.set(KeyValue, "_increment", wrong)


@bug(history_revisions=10, clients=8, think_s=0.1)
def lose_a_live_key_to_compaction(patch: Patch) -> None:
    """Compaction takes the newest record of a key, if it is old enough."""

    def wrong(self: Keyspace, revision: int) -> int:
        floor: int = right(self, revision)
        for key in self.first_keys(KeyRange(), 1):
            records = self._records[hash(key) >> keyspace._SHARD]
            if mod_revision_of(records[key]) <= floor:
                del records[key]
                self._live.remove(key)
                self.key_count -= 1
        return floor

    right = patch.set(Keyspace, "compact", wrong)


@bug(history_revisions=10, crashes=0.3, clients=8, think_s=0.1)
def go_on_with_a_watch_behind_a_gap(patch: Patch) -> None:
    """A watch that asks for what is compacted goes on with the oldest that is there, and is not told (etcd#15271)."""

    def wrong(self: Keyspace, revision: int) -> Iterator[tuple[int, Changes]]:
        return self._changes(max(revision, self.floor), self.revision)

    patch.set(Keyspace, "changes_since", wrong)


@bug()
def tell_a_watch_the_last_change_again(patch: Patch) -> None:
    """A watch that goes on after a revision begins with that one (etcd#17247)."""

    def wrong(self: Keyspace, revision: int) -> Iterator[tuple[int, Changes]]:
        self._require(revision)
        return self._changes(max(revision - 1, self.floor), self.revision)

    patch.set(Keyspace, "changes_since", wrong)


@bug(clients=8, think_s=0.1)
def tell_no_previous_value(patch: Patch) -> None:
    """A change does not say what it has replaced."""

    def wrong(self: Keyspace, revision: int, last: int) -> Iterator[tuple[int, Changes]]:
        for number, changes in right(self, revision, last):
            yield number, tuple((key, record, None) for key, record, _ in changes)

    right = patch.set(Keyspace, "_changes", wrong)


@bug(clients=8, think_s=0.1)
def keep_the_mark_of_a_creation(patch: Patch) -> None:
    """A key that is made anew is told to have been there before."""

    def wrong(value: bytes | None, create: int, mod: int, version: int, lease: int) -> Record:
        record: Record = right(value, create - 1 if create == mod else create, mod, version, lease)
        return record

    right = patch.set(keyspace, "pack_record", wrong)


@bug(watchers=4)
def tell_a_watch_of_other_kinds(patch: Patch) -> None:
    """A watch is told of changes that it has not asked for."""
    patch.set(Selection, "takes", lambda self, record: True)
