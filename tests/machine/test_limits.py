"""The limits of the map, against a model that adds up what is there: refused is what would grow it over one, only."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from replikv.machine import commands
from replikv.machine.choices import Choice, Delete, Put, encode_transact
from replikv.machine.envelope import Status
from replikv.machine.governance import Governance, Limits, Versions
from replikv.machine.keyspace import KEY_BYTES
from replikv.machine.keyvalue import KeyValue
from replikv.machine.record import value_of
from replikv.machine.values import encode_value

KEYS = st.sampled_from(["a", "b", "ü", "key"])
VALUES = st.sampled_from([encode_value("x" * size, 1 << 10) for size in (0, 1, 20, 30, 190, 210, 400)])
ONE = encode_value(1, 8)
BYTES = st.integers(1, 1500) | st.just(1 << 62)
COUNTS = st.integers(1, 4)
LEASES = st.sampled_from([0, 0, 1])


def size_of(contents: dict[str, bytes]) -> int:
    return sum(KEY_BYTES + len(key) + len(value) for key, value in contents.items())


class LimitedMap(RuleBasedStateMachine):
    """Every operation that puts, under limits that are near, and change."""

    @initialize(state_bytes=BYTES, keys=COUNTS)
    def start(self, state_bytes: int, keys: int) -> None:
        self.governance = Governance(Versions(1, 0), Limits(state_bytes=state_bytes, keys=keys))
        self.map = KeyValue(self.governance)
        self.map.leases.grant(10_000)
        self.contents: dict[str, bytes] = {}

    def write(self, command: bytes, changes: dict[str, bytes | None]) -> None:
        """The command is to make these changes, or to be refused, and to change nothing."""
        wanted = {key: value for key, value in (self.contents | changes).items() if value is not None}
        limits = self.governance.limits
        size, before = size_of(wanted), size_of(self.contents)
        fits = size <= max(before, limits.state_bytes) and len(wanted) <= max(len(self.contents), limits.keys)
        revision = self.map.keyspace.revision
        assert (Status.OK if fits else Status.OVER_LIMIT) == self.map.execute(command, 0)[0]
        assert revision + fits == self.map.keyspace.revision
        if fits:
            self.contents = wanted

    @rule(key=KEYS, value=VALUES, lease=LEASES)
    def put(self, key: str, value: bytes, lease: int) -> None:
        self.write(commands.encode_put(key.encode(), value, lease), {key: value})

    @rule(items=st.dictionaries(KEYS, VALUES, min_size=1))
    def update(self, items: dict[str, bytes]) -> None:
        data = {key.encode(): value for key, value in items.items()}
        self.write(commands.encode_update(data), {**items})

    @rule(key=KEYS, value=VALUES)
    def set_if_it_is_as_it_is(self, key: str, value: bytes) -> None:
        command = commands.encode_compare_and_set(key.encode(), self.contents.get(key), value)
        self.write(command, {key: value})

    @rule(key=KEYS, value=VALUES)
    def replace(self, key: str, value: bytes) -> None:
        entry = self.map.keyspace.get(key)
        revision = 0 if entry is None else int.from_bytes(entry[8:16], "little")
        self.write(commands.encode_replace(key.encode(), value, revision), {key: value})

    @rule(key=KEYS, value=VALUES)
    def set_a_default(self, key: str, value: bytes) -> None:
        if key not in self.contents:
            self.write(commands.encode_setdefault(key.encode(), value), {key: value})

    @rule(key=KEYS)
    def increment(self, key: str) -> None:
        if key not in self.contents:
            self.write(commands.encode_increment(key.encode(), ONE), {key: ONE})

    @rule(put=KEYS, value=VALUES, delete=KEYS)
    def exchange(self, put: str, value: bytes, delete: str) -> None:
        """Room that is made is there at once."""
        if put != delete:
            choice = Choice([], [Put(put, value, 0), Delete(delete)], [])
            self.write(encode_transact(choice), {delete: None, put: value})

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.map.apply(0, commands.encode_delete(key.encode()))
        self.contents.pop(key, None)

    @rule(state_bytes=BYTES, keys=COUNTS)
    def limit(self, state_bytes: int, keys: int) -> None:
        """What is above a limit already stays."""
        self.governance.limits = Limits(state_bytes=state_bytes, keys=keys)

    @invariant()
    def what_is_there_is_counted(self) -> None:
        keyspace = self.map.keyspace
        assert self.contents == {key: value_of(record) for key, record in keyspace.scan()}
        assert (len(self.contents), size_of(self.contents)) == (len(keyspace), keyspace.state_bytes)


LimitedMap.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestLimitedMap = LimitedMap.TestCase
