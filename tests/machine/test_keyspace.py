"""The keyspace against a model that keeps every version of the whole map."""

import gc
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from replikv.errors import CompactedError, InternalError
from replikv.machine.history import KeyspaceRestorer
from replikv.machine.keyspace import CHANGE_BYTES, Keyspace, Pin, Record, Write, is_live
from replikv.machine.ranges import KeyRange

KEYS = ["", "a", "a/", "a/b", "a/c", "a0", "b", "ä", "\U0010ffff", "\U0010ffff\U0010ffff"]
keys = st.sampled_from(KEYS)
values = st.binary(min_size=1, max_size=3)
ranges = st.builds(
    KeyRange, start=keys, stop=st.none() | keys, prefix=st.sampled_from(["", "a", "a/", "\U0010ffff", "zz"])
)
Model = dict[str, Record]


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

    @rule(writes=st.dictionaries(keys, st.none() | values, max_size=4), lease=st.sampled_from([0, 7]))
    def commit(self, writes: dict[str, bytes | None], lease: int) -> None:
        """Puts and deletes at one revision; deletes of nothing take none."""
        before = self.maps[-1]
        after, revision = dict(before), len(self.maps)
        changes: list[tuple[str, Record, Record | None]] = []
        for key, value in writes.items():
            old = before.get(key)
            if value is not None:
                after[key] = (value, old[1] if old else revision, revision, old[3] + 1 if old else 1, lease)
                changes.append((key, after[key], old))
            elif old is not None:
                del after[key]
                changes.append((key, (None, 0, revision, 0, lease), old))
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
            assert self.maps[pin.revision] == dict(self.keyspace.scan_pinned(pin))
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

    @invariant()
    def the_books_are_right(self) -> None:
        """Floors are ordered, bytes add up, and nothing is kept for longer than somebody can read it."""
        keyspace = self.keyspace
        assert keyspace.physical_floor <= min([self.floor, *(pin.revision for pin in self.pins)])
        retained = [change for changes in self.changes[self.floor + 1 :] for change in changes]
        assert sum(CHANGE_BYTES + len(key) + len(old[0] or b"" if old else b"") for key, _, old in retained) == (
            keyspace.history_bytes
        )
        if keyspace.physical_floor == keyspace.revision:
            assert (0, {}) == (keyspace.pinned_bytes, keyspace._older)
            assert all(is_live(record) for record in keyspace._records.values())


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
        assert record[2] <= 2000
        ahead = 1999 - step if reverse else step
        keyspace.commit([(f"k{(ahead + shift) % 2000:05}", None, 0) for shift in range(-7, 8)])
        keyspace.put(f"k{ahead:05}x", b"new")
        keyspace.compact(keyspace.revision)

    assert expected == found


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


def test_a_slow_reader_of_changes_is_told() -> None:
    """Changes that were trimmed before they were read are a CompactedError, not a gap."""
    keyspace = filled(10)
    changes = keyspace.changes_since(0)
    assert 1 == next(changes)[0]
    keyspace.compact(10)
    keyspace.trim(1000)

    with pytest.raises(CompactedError):
        next(changes)


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

    assert (1500, 0, {}, {}) == (keyspace.physical_floor, keyspace.pinned_bytes, keyspace._log, keyspace._older)


def test_a_hot_key_keeps_no_stale_versions() -> None:
    """Versions of a key with a long history are dropped in blocks, and in the end all of them."""
    keyspace = Keyspace()
    for index in range(3000):
        keyspace.put("hot", b"%d" % index)
        keyspace.compact(index - 1000)
        keyspace.trim(100)
    assert len(keyspace._older["hot"]) < 1100
    assert (b"2500", 1, 2501, 2501, 0) == keyspace.get_at("hot", 2501)
    keyspace.compact(3000)
    while keyspace.trim(100):
        pass

    assert {} == keyspace._older


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.integers(0, 30), st.integers(0, 8000))
def test_where_the_floor_should_be(sizes: list[int], revisions_max: int, bytes_max: int) -> None:
    """The smallest floor that keeps to both limits."""
    keyspace = Keyspace()
    for size in sizes:
        keyspace.put("key", b"x" * (size + 1))
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


def test_the_garbage_collector_has_nothing_to_walk() -> None:
    """Records, changes and entries of the log are untracked: atoms all the way down."""
    keyspace = filled(200)
    for index in range(100):
        keyspace.put(f"k{index:05}", b"w")
    for _ in range(4):  # a tuple is untracked after what is in it
        gc.collect()

    records = list(keyspace._records.values())
    assert [] == [thing for thing in [*records, *keyspace._log.values()] if gc.is_tracked(thing)]


def test_loading_into_a_map_that_has_history_is_a_bug() -> None:
    """Records of a snapshot come before its changes, once each."""
    keyspace = filled(1)
    with pytest.raises(InternalError):
        keyspace.load("other", (b"v", 1, 1, 1, 0))
    with pytest.raises(InternalError):
        KeyspaceRestorer(pinned_bytes_max=1).finish()
