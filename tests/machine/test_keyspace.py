"""The keyspace against a model that keeps every version of the whole map."""

import gc
import itertools
import struct
import sys
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from replikv.errors import CompactedError, InternalError
from replikv.machine.history import KeyspaceRestorer, keyspace_chunks
from replikv.machine.keyspace import CHANGE_BYTES, Keyspace, Write
from replikv.machine.pin import Pin
from replikv.machine.ranges import KeyRange
from replikv.machine.record import Record, digest_of, is_live, mod_revision_of, pack_record, unpack_record, value_of

KEYS = ["", "a", "a/", "a/b", "a/c", "a0", "b", "ä", "\U0010ffff", "\U0010ffff\U0010ffff"]
keys = st.sampled_from(KEYS[:3]) | st.sampled_from(KEYS)  # some are put and deleted again and again
values = st.binary(min_size=1, max_size=3)
some_writes = st.dictionaries(keys, st.none() | values, max_size=4)
ranges = st.builds(
    KeyRange, start=keys, stop=st.none() | keys, prefix=st.sampled_from(["", "a", "a/", "\U0010ffff", "zz"])
)
Model = dict[str, Record]


def records_of(keyspace: Keyspace) -> dict[str, Record]:
    """All shards in one."""
    return {key: record for shard in keyspace._records for key, record in shard.items()}


def in_range(model: Model, wanted: KeyRange, reverse: bool = False) -> list[tuple[str, Record]]:
    return [(key, model[key]) for key in sorted(model, reverse=reverse) if key in wanted]


class KeyspaceComparison(RuleBasedStateMachine):
    """Random writes, compactions, pins, trims and half-read scans; every revision is remembered by the model."""

    @initialize(pinned_bytes_max=st.sampled_from([0, 5 * CHANGE_BYTES, 1 << 30]))
    def start(self, pinned_bytes_max: int) -> None:
        self.keyspace = Keyspace(pinned_bytes_max=pinned_bytes_max)
        self.maps: list[Model] = [{}]
        self.changes: list[list[tuple[str, Record, Record | None]]] = [[]]
        self.floor = 0
        self.pins: list[Pin] = []
        self.scans: list[tuple[Iterator[tuple[str, Record]], list[tuple[str, Record]]]] = []

    @rule(many=st.lists(some_writes, min_size=1, max_size=4), lease=st.sampled_from([0, 7]))
    def commit_many(self, many: list[dict[str, bytes | None]], lease: int) -> None:
        """Puts and deletes, some at a time."""
        for writes in many:
            self.commit(writes, lease)

    def commit(self, writes: dict[str, bytes | None], lease: int) -> None:
        """Puts and deletes at one revision; deletes of nothing take none."""
        before = self.maps[-1]
        after, revision = dict(before), len(self.maps)
        changes: list[tuple[str, Record, Record | None]] = []
        for key, value in writes.items():
            old = before.get(key)
            if value is not None:
                _, created, _, version, _ = unpack_record(old) if old else (None, revision, 0, 0, 0)
                after[key] = pack_record(value, created, revision, version + 1, lease)
                changes.append((key, after[key], old))
            elif old is not None:
                del after[key]
                changes.append((key, pack_record(None, 0, revision, 0, lease), old))
        if changes:
            self.maps.append(after)
            self.changes.append(changes)
        given: list[Write] = [(key, value, lease) for key, value in writes.items()]
        if len(given) == 1 and given[0][1] is not None:
            assert revision == self.keyspace.put(given[0][0], given[0][1], lease)
        else:
            assert len(self.maps) - 1 == self.keyspace.commit(given)

    @rule(back=st.integers(0, 12))
    def compact(self, back: int) -> None:
        """The floor only rises."""
        self.floor = max(self.floor, len(self.maps) - 1 - back)
        assert self.floor == self.keyspace.compact(len(self.maps) - 1 - back)

    @rule(changes_max=st.integers(0, 10))
    def trim(self, changes_max: int) -> None:
        """Frees memory, changes nothing that can be seen."""
        self.keyspace.trim(changes_max)

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        """A firm pin at any revision that can be read."""
        self.pins.append(self.keyspace.pin(data.draw(st.integers(self.floor, len(self.maps) - 1))))

    @precondition(lambda self: self.pins)
    @rule(data=st.data(), again=st.booleans())
    def release(self, data: st.DataObject, again: bool) -> None:
        """Releases may be repeated, and come in any order."""
        pin = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        pin.release()
        if again:
            pin.release()

    @rule(data=st.data(), wanted=ranges, reverse=st.booleans(), limit=st.none() | st.integers(0, 5))
    def scan(self, data: st.DataObject, wanted: KeyRange, reverse: bool, limit: int | None) -> None:
        """Begin a scan at any revision that can be read, to be read on later."""
        revision = data.draw(st.integers(self.floor, len(self.maps) - 1))
        expected = in_range(self.maps[revision], wanted, reverse)[:limit]
        scan = self.keyspace.scan(wanted, revision=revision, reverse=reverse, limit=limit)
        self.scans.append((scan, expected))

    @precondition(lambda self: self.scans)
    @rule(data=st.data(), count=st.integers(1, 3))
    def read_scan(self, data: st.DataObject, count: int) -> None:
        """A scan sees its revision, or says that it was broken."""
        index = data.draw(st.integers(0, len(self.scans) - 1))
        scan, expected = self.scans[index]
        try:
            found = list(itertools.islice(scan, count))
        except CompactedError:
            assert self.keyspace.pinned_bytes_max < 1 << 30
            del self.scans[index]
            return
        assert expected[:count] == found
        del expected[:count]
        if len(found) < count:
            del self.scans[index]

    @rule()
    def restore(self) -> None:
        """A snapshot holds the same present, and the digest is a function of that."""
        one = restored(self.keyspace)
        assert (self.keyspace.revision, self.keyspace.floor) == (one.revision, one.floor)
        assert (self.keyspace.digest_sum, self.keyspace.state_bytes) == (one.digest_sum, one.state_bytes)
        assert list(self.keyspace.changes_since(self.floor)) == list(one.changes_since(self.floor))
        for wanted in (KeyRange(), KeyRange(prefix="a/"), KeyRange("b")):
            for revision in range(self.floor, one.revision + 1):
                assert self.keyspace.unchanged_since(wanted, revision) == one.unchanged_since(wanted, revision)

    @invariant()
    def the_present_is_the_model(self) -> None:
        """All keys, in order; length; membership."""
        model = self.maps[-1]
        assert len(self.maps) - 1 == self.keyspace.revision
        assert in_range(model, KeyRange()) == list(self.keyspace.scan())
        assert len(model) == len(self.keyspace)
        assert [model.get(key) for key in KEYS] == [self.keyspace.get(key) for key in KEYS]
        assert [key in model for key in KEYS] == [key in self.keyspace for key in KEYS]

    @invariant()
    def the_past_is_the_model(self) -> None:
        """Every retained revision can be read; what pins hold can be read below the floor; the rest is refused."""
        for pin in self.pins:
            assert not pin.broken
            found = [item for run in self.keyspace.scan_pinned(pin) for item in run]
            assert in_range(self.maps[pin.revision], KeyRange()) == found
        for revision in range(self.floor, len(self.maps)):
            model = self.maps[revision]
            assert [model.get(key) for key in KEYS] == [self.keyspace.get_at(key, revision) for key in KEYS]
        expected = [(at, tuple(self.changes[at])) for at in range(self.floor + 1, len(self.maps))]
        assert expected == list(self.keyspace.changes_since(self.floor))
        if self.floor:
            with pytest.raises(CompactedError):
                self.keyspace.get_at("a", self.floor - 1)
            with pytest.raises(CompactedError):
                self.keyspace.changes_since(self.floor - 1)

    @rule(data=st.data(), wanted=ranges)
    def unchanged(self, data: st.DataObject, wanted: KeyRange) -> None:
        """Whether a range was changed since any revision, whatever is pinned or not trimmed yet."""
        revision = data.draw(st.integers(0, len(self.maps)))
        since = [key for changes in self.changes[revision + 1 :] for key, _, _ in changes]
        expected = revision >= self.floor and not any(key in wanted for key in since)
        assert expected == self.keyspace.unchanged_since(wanted, revision)

    @invariant()
    def the_books_are_right(self) -> None:
        """Floors are ordered, bytes add up, and nothing is kept for longer than somebody can read it."""
        keyspace = self.keyspace
        assert keyspace.physical_floor <= min([self.floor, *(pin.revision for pin in self.pins)])
        retained = [change for changes in self.changes[self.floor + 1 :] for change in changes]
        assert sum(CHANGE_BYTES + len(key) + len(value_of(old) if old else b"") for key, _, old in retained) == (
            keyspace.history_bytes
        )
        assert sum(digest_of(key, record) for key, record in self.maps[-1].items()) % 2**64 == keyspace.digest_sum
        if keyspace.physical_floor == keyspace.revision:
            assert (0, {}) == (keyspace.pinned_bytes, keyspace._places)
            assert all(is_live(record) for record in records_of(keyspace).values())


KeyspaceComparison.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestKeyspaceComparison = KeyspaceComparison.TestCase


def filled(count: int, **options: int) -> Keyspace:
    keyspace = Keyspace(**options)
    for index in range(count):
        keyspace.put(f"k{index:05}", b"v")
    return keyspace


@pytest.mark.parametrize("reverse", [False, True])
def test_a_long_scan_is_not_disturbed(reverse: bool) -> None:
    """Keys that are deleted ahead of a scan are still seen, new ones are not, over many blocks of keys."""
    keyspace = filled(2000)
    expected = sorted([f"k{index:05}" for index in range(2000)], reverse=reverse)
    found = []
    for step, (key, record) in enumerate(keyspace.scan(reverse=reverse)):
        found.append(key)
        assert mod_revision_of(record) <= 2000
        ahead = 1999 - step if reverse else step
        keyspace.commit([(f"k{(ahead + shift) % 2000:05}", None, 0) for shift in range(-7, 8)])
        keyspace.put(f"k{ahead:05}x", b"new")
        keyspace.compact(keyspace.revision)

    assert expected == found


@pytest.mark.parametrize("reverse", [False, True])
def test_many_that_are_dead_by_now_among_many_that_live(reverse: bool) -> None:
    """A scan of the past merges both as far as both are known, a block of keys at a time, in either direction."""
    keyspace = filled(600)
    then = keyspace.revision
    for index in range(600):
        if index % 100 < 45 or not index % 3:
            keyspace.commit([(f"k{index:05}", None, 0)])

    expected = sorted([f"k{index:05}" for index in range(600)], reverse=reverse)
    assert expected == [key for key, _ in keyspace.scan(revision=then, reverse=reverse)]


def test_a_key_that_comes_and_goes_is_there_in_between() -> None:
    """Trimming one deletion does not touch a later one, which what was between is found by."""
    keyspace = Keyspace()
    for value in (b"1", None, b"3", None):
        keyspace.commit([("key", value, 0), ("other", b"x", 0)])
    keyspace.compact(2)
    keyspace.trim(100)
    found = [keyspace.get_at("key", revision) for revision in (2, 3, 4)]
    assert [None, b"3", None] == [record and value_of(record) for record in found]
    assert ["key", "other"] == [key for key, _ in keyspace.scan(revision=3)]
    keyspace.compact(4)
    keyspace.trim(100)
    assert ["other"] == list(records_of(keyspace))


def test_a_dropped_scan_holds_nothing() -> None:
    """Neither one that was never begun nor one left half-way keeps history in memory."""
    keyspace = filled(10)
    unread, half = keyspace.scan(), keyspace.scan()
    next(half)
    keyspace.put("k00000", b"w")
    keyspace.compact(keyspace.revision)
    keyspace.trim(100)
    assert 10 == keyspace.physical_floor
    del unread, half
    keyspace.trim(100)

    assert 11 == keyspace.physical_floor


def test_a_scan_that_holds_too_much_is_broken() -> None:
    """A breakable pin gives way to the bound on bytes; a firm one holds."""
    keyspace = filled(3, pinned_bytes_max=4 * CHANGE_BYTES)
    scan, firm = keyspace.scan(), keyspace.pin(1)
    assert "k00000" == next(scan)[0]
    for _ in range(20):
        keyspace.put("k00001", b"w")
        keyspace.compact(keyspace.revision)
    assert "k00001" == next(scan)[0]  # the firm pin keeps what it needs
    firm.release()
    keyspace.trim(1000)

    with pytest.raises(CompactedError) as caught:
        next(scan)
    assert keyspace.floor == caught.value.revision


@pytest.mark.parametrize("breakable", [False, True])
def test_a_revision_is_held_until_the_last_pin_on_it_is_released(breakable: bool) -> None:
    """Two readers of one revision do not take it from each other."""
    keyspace = filled(1)
    first, second = (keyspace.pin(breakable=breakable) for _ in range(2))
    keyspace.put("k00000", b"w")
    first.release()
    keyspace.compact(2)
    keyspace.trim(100)
    assert (1, False) == (keyspace.physical_floor, second.broken)
    second.release()
    keyspace.trim(100)
    assert 2 == keyspace.physical_floor


def test_what_a_breakable_pin_may_hold() -> None:
    """Up to the bound, and not a change more; what it held is free at once then."""
    keyspace = filled(1, pinned_bytes_max=2 * (CHANGE_BYTES + len("k00000") + 1))
    pin = keyspace.pin(breakable=True)
    for _ in range(2):
        keyspace.put("k00000", b"w")
    keyspace.compact(3)
    while keyspace.trim(100):
        pass
    assert (1, False) == (keyspace.physical_floor, pin.broken)
    keyspace.put("k00000", b"w")
    keyspace.compact(4)
    while keyspace.trim(100):
        pass
    assert (4, True) == (keyspace.physical_floor, pin.broken)


def test_a_slow_reader_of_changes_is_told() -> None:
    """Changes that were trimmed before they were read are a CompactedError, not a gap."""
    keyspace = filled(10)
    changes = keyspace.changes_since(0)
    assert 1 == next(changes)[0]
    keyspace.compact(10)
    keyspace.trim(1000)

    with pytest.raises(CompactedError):
        next(changes)


@pytest.mark.parametrize("wanted", [KeyRange("k00100", "k00103"), KeyRange("k00100"), KeyRange(prefix="none/")])
def test_both_ways_to_see_a_change_agree(wanted: KeyRange) -> None:
    """Be the log the shorter way or the records, be it a put, a delete, or both: only changes of the range count."""
    keyspace = filled(200)
    before = keyspace.revision
    keyspace.put("k00099", b"w")
    assert keyspace.unchanged_since(wanted, before)
    for key, value in [("k00101", b"w"), ("k00102", None), ("none/1", b"v"), ("none/1", None)]:
        last = keyspace.commit([(key, value, 0), ("k00000", b"w", 0)])
        for noise in (0, 1, 300):  # so that the log is the shorter way at first, and the longer one in the end
            for _ in range(noise):
                keyspace.put("k00000", b"x")
            assert (key not in wanted) == keyspace.unchanged_since(wanted, last - 1)
            assert keyspace.unchanged_since(wanted, last)
            keyspace.compact(last - 1)
        keyspace.compact(keyspace.revision)
        assert not keyspace.unchanged_since(wanted, keyspace.revision - 1)  # below the floor


def test_the_future_is_an_error_of_its_own() -> None:
    """A revision that this replica has not reached is a ValueError that names both."""
    keyspace = filled(3)
    for read in (lambda: keyspace.get_at("k", 4), lambda: keyspace.changes_since(4), lambda: keyspace.scan(revision=4)):
        with pytest.raises(ValueError, match="revision 4 is in the future: this replica is at 3"):
            read()


def test_trimming_is_spread_over_commands() -> None:
    """A floor that jumps costs each command a little, and the physical floor catches up with the logical one."""
    keyspace = filled(1000)
    keyspace.compact(1000)
    assert 0 < keyspace.physical_floor < 20
    for _ in range(500):
        keyspace.put("k00000", b"w")
    assert 1000 == keyspace.physical_floor
    keyspace.compact(1500)
    while keyspace.trim(100):
        pass

    assert (1500, 0, {}, {}) == (keyspace.physical_floor, keyspace.pinned_bytes, keyspace._log, keyspace._places)


def test_a_hot_key_keeps_no_stale_versions() -> None:
    """Each version of a key with a long history can be read while it is retained, and is forgotten behind the floor."""
    keyspace = Keyspace()
    for index in range(3000):
        keyspace.put("hot", b"%d" % index)
        keyspace.compact(index - 1000)
        keyspace.trim(100)
    assert [b"%d" % (at - 1) for at in range(1999, 3001)] == [
        value_of(record) for at in range(1999, 3001) if (record := keyspace.get_at("hot", at))
    ]
    assert 1002 * 16 >= len(keyspace._places["hot"])
    keyspace.compact(3000)
    while keyspace.trim(100):
        pass

    assert {} == keyspace._places


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=30),
    st.integers(0, 30),
    st.integers(0, 8000),
    st.none() | st.integers(0, 30),
)
def test_where_the_floor_should_be(sizes: list[int], revisions_max: int, bytes_max: int, exactly: int | None) -> None:
    """The smallest floor that keeps to both limits; also where so many of the newest revisions just fit."""
    keyspace = Keyspace()
    for size in sizes:
        keyspace.put("key", b"x" * (size + 1))
    if exactly is not None:
        replaced = [0, *(size + 1 for size in sizes[:-1])][max(0, len(sizes) - exactly) :]
        bytes_max = sum(CHANGE_BYTES + len("key") + size for size in replaced)
    floor = keyspace.floor_for(revisions_max=revisions_max, bytes_max=bytes_max)

    assert keyspace.revision - floor <= revisions_max
    before = Keyspace()
    for size in sizes:
        before.put("key", b"x" * (size + 1))
    if floor:
        before.compact(floor - 1)
        assert before.history_bytes > bytes_max or before.revision - before.floor > revisions_max
    keyspace.compact(floor)
    assert keyspace.history_bytes <= bytes_max


def grown(count: int) -> Keyspace:
    """So many keys, then as many overwrites, deletes and new keys, and a history of 1,000 revisions."""
    keyspace = filled(count)
    for index in range(0, count, 2):
        keyspace.put(f"k{index:05}", b"w", 7)
        keyspace.commit([(f"k{index + 1:05}", None, 0), (f"n{index:05}", b"new", 0), (f"k{index:05}", b"x", 0)])
        keyspace.compact(keyspace.revision - 1000)
    while keyspace.trim(1000):
        pass
    return keyspace


def test_the_digest_is_of_the_present_alone() -> None:
    """It is the same however a state came about, and another one as soon as anything is."""
    keyspace = Keyspace()
    assert 0 == keyspace.digest_sum
    keyspace.put("a", b"1")
    keyspace.put("b", b"2")
    found = {keyspace.digest_sum}
    for writes in ([("a", b"2", 0)], [("a", b"2", 0)], [("a", b"2", 5)], [("c", b"1", 0)], [("a", None, 0)]):
        keyspace.commit(writes)
        found.add(keyspace.digest_sum)
    assert 6 == len(found)

    exchanged = Keyspace()
    exchanged.commit([("a", b"2", 0), ("b", b"1", 0)])
    straight = Keyspace()
    straight.commit([("a", b"1", 0), ("b", b"2", 0)])
    assert exchanged.digest_sum != straight.digest_sum
    again = Keyspace()
    again.commit([("b", b"2", 0), ("a", b"1", 0)])
    assert straight.digest_sum == again.digest_sum
    again.commit([("a", None, 0), ("b", None, 0)])
    assert 0 == again.digest_sum


def test_the_digest_is_the_same_on_every_machine() -> None:
    """Records are of one byte order, and no seed of the process is in it."""
    keyspace = Keyspace()
    keyspace.put("ä", b"1", 3)
    keyspace.put("b", b"2")

    crcs = [
        zlib.crc32("ä".encode() + struct.pack("<QQQQB", 1, 1, 1, 3, 1) + b"1"),
        zlib.crc32(b"b" + struct.pack("<QQQQB", 2, 2, 1, 0, 1) + b"2"),
    ]
    assert sum(crc * crc for crc in crcs) % 2**64 == keyspace.digest_sum


def test_a_keyspace_is_freed_bit_by_bit() -> None:
    """Once nobody reads it: then everything goes, a part at a time."""
    keyspace = grown(3000)
    keyspace.put("k00000", b"more")
    scan, firm = keyspace.scan(), keyspace.pin()
    assert "k00000" == next(scan)[0]
    assert keyspace.free(100)
    assert 2999 == len(list(scan))
    assert keyspace.free(100)
    assert 3000 == len(keyspace)
    firm.release()
    steps = 1
    while keyspace.free(100):
        steps += 1

    assert steps > 1000 // 100 + len(keyspace._records)
    assert ({}, {}, {}, 0, []) == (
        records_of(keyspace),
        keyspace._places,
        keyspace._log,
        len(keyspace),
        list(keyspace._dead),
    )


def restored(keyspace: Keyspace) -> Keyspace:
    restorer = KeyspaceRestorer(pinned_bytes_max=1)
    for chunk in keyspace_chunks(keyspace):
        restorer.feed(chunk)
    return restorer.finish()


@pytest.mark.parametrize("build", [grown, lambda count: restored(grown(count))], ids=["grown", "restored"])
def test_the_garbage_collector_has_nothing_to_walk(build: Callable[[int], Keyspace]) -> None:
    """What it tracks grows neither with the keys nor with the changes that are retained."""
    gc.collect()
    before = len(gc.get_objects())
    keyspace = build(20_000)
    for _ in range(3):  # a tuple is untracked once it has survived a collection
        gc.collect()

    assert 20_000 == len(keyspace)
    assert 1000 == len(keyspace._log)
    assert 0.01 * len(keyspace) > len(gc.get_objects()) - before
    things = [*records_of(keyspace).values(), *keyspace._places.values(), *keyspace._log.values()]
    assert [] == [thing for thing in things if gc.is_tracked(thing)]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="tracks every dict from the start")
def test_the_garbage_collector_passes_the_records_by() -> None:
    """The dicts with an entry per key are untracked, whatever was put, deleted, trimmed or restored."""
    keyspace = grown(200)
    for one in (keyspace, restored(keyspace)):
        assert [] == [shard for shard in (*one._records, one._places) if gc.is_tracked(shard)]


def test_loading_into_a_map_that_has_history_is_a_bug() -> None:
    """Records of a snapshot come before its changes, once each."""
    keyspace = filled(1)
    with pytest.raises(InternalError):
        keyspace.load("other", pack_record(b"v", 1, 1, 1, 0))
    loading = Keyspace(revision=5)
    loading.load("key", pack_record(b"v", 1, 5, 1, 0))
    for record in (pack_record(b"v", 1, 5, 1, 0), pack_record(b"w", 1, 6, 1, 0), pack_record(None, 0, 5, 0, 0)):
        with pytest.raises(InternalError):
            loading.load("key" if is_live(record) and mod_revision_of(record) == 5 else "other", record)
    with pytest.raises(InternalError):
        KeyspaceRestorer(pinned_bytes_max=1).finish()


def test_revisions_that_are_left_out() -> None:
    """Records stay as they are, the history goes, and what is done next is as if it had always begun there."""
    keyspace = Keyspace()
    for index in range(20):
        keyspace.commit([(f"k{index % 7}", b"v%d" % index, 0), ("often", b"%d" % index, 0)])
    keyspace.commit([("k3", None, 0)])
    keyspace.compact(15)
    before = dict(keyspace.scan())
    assert 1021 == keyspace.advance(1000)

    assert (1021, 1021, 1021) == (keyspace.revision, keyspace.floor, keyspace.physical_floor)
    assert (0, 0) == (keyspace.history_bytes, keyspace.pinned_bytes)
    assert before == dict(keyspace.scan())
    assert max(map(mod_revision_of, before.values())) < 21
    assert [] == list(keyspace.changes_since(1021))
    for revision in (15, 21, 1020):
        with pytest.raises(CompactedError) as caught:
            keyspace.changes_since(revision)
        assert 1021 == caught.value.revision

    restorer = KeyspaceRestorer(pinned_bytes_max=0)
    for chunk in keyspace_chunks(keyspace):
        restorer.feed(chunk)
    for one in (keyspace, restorer.finish()):
        assert 1022 == one.put("k0", b"new")
        assert 1023 == one.commit([("k3", b"again", 0), ("often", None, 0)])
        assert [1022, 1023] == [revision for revision, _ in one.changes_since(1021)]
        assert before["often"] == one.get_at("often", 1022)
        assert 1022 == one.floor_for(revisions_max=1, bytes_max=1 << 30)
        assert 1023 == one.compact(1023)
        one.trim(100)
        assert before.keys() - {"often"} | {"k3"} == dict(one.scan()).keys()


@pytest.mark.parametrize("breakable", [False, True])
def test_no_revision_is_left_out_under_a_reader(breakable: bool) -> None:
    """What he reads would be gone."""
    keyspace = Keyspace()
    keyspace.put("a", b"1")
    pin = keyspace.pin(breakable=breakable)
    with pytest.raises(InternalError):
        keyspace.advance(10)
    pin.release()
    assert 11 == keyspace.advance(10)
