"""When the leader moves the beginning of the history, and how far."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from replikv.machine.keyspace import Keyspace
from replikv.peer.compactor import SAMPLES_PER_AGE, Compactor
from replikv.settings import Settings

TICK_S = 0.1
MANY = 10**9


def compactor(age_s: float = 10**9, revisions: int = MANY, size: int = MANY) -> Compactor:
    return Compactor(
        Settings(heartbeat_interval_s=TICK_S, history_age_s=age_s, history_revisions=revisions, history_bytes_max=size)
    )


def put(keyspace: Keyspace, count: int) -> None:
    for _ in range(count):
        keyspace.put("key", b"value")


@hypothesis_settings(max_examples=100, deadline=None)
@given(age_ticks=st.sampled_from([1, 7, 100, 1000]), steps=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3))))
def test_what_is_too_old_goes_and_what_is_not_stays(age_ticks: int, steps: list[tuple[int, int]]) -> None:
    """Whatever was made within the age can be read; what is more than a hundredth older, and a tick, cannot."""
    one, keyspace = compactor(age_s=age_ticks * TICK_S), Keyspace()
    made = [0]
    tick = 0
    for pause, puts in steps:
        for _ in range(pause):
            tick += 1
            one.tick(tick, keyspace.revision)
            if (floor := one.floor(keyspace)) is not None:
                assert keyspace.floor < floor <= keyspace.revision
                keyspace.compact(floor)
        assert all(at <= tick - age_ticks for at in made[1 : keyspace.floor + 1])
        old = tick - age_ticks - max(1, age_ticks // SAMPLES_PER_AGE)
        assert keyspace.floor >= sum(at < old for at in made[1:])
        assert len(one._samples) <= 2 * SAMPLES_PER_AGE + 1
        put(keyspace, puts)
        made += [tick] * puts


def test_a_new_leader_begins_to_count_anew() -> None:
    """What its predecessor has noted is not known to it: the history is kept longer."""
    one, keyspace = compactor(age_s=10 * TICK_S), Keyspace()
    put(keyspace, 5)
    one.tick(1, 5)
    one.begin_anew()
    put(keyspace, 1)
    one.tick(9, 6)
    one.tick(18, 6)
    assert one.floor(keyspace) is None
    one.tick(19, 6)
    assert 6 == one.floor(keyspace)


def test_a_floor_is_proposed_once() -> None:
    """Until it was dropped, or the leader has changed: it is in the log, and will be applied."""
    one, keyspace = compactor(age_s=1.0, revisions=10), Keyspace()
    put(keyspace, 12)
    assert 2 == one.floor(keyspace)
    assert one.floor(keyspace) is None
    one.dropped()
    assert 2 == one.floor(keyspace)
    one.begin_anew()
    assert 2 == one.floor(keyspace)
    one.tick(1, 12)
    one.tick(11, 12)
    assert [12, None] == [one.floor(keyspace), one.floor(keyspace)]


def test_the_limits_have_slack() -> None:
    """A tenth of it, so that one command frees many revisions, whichever limit is reached."""
    one, keyspace = compactor(revisions=100), Keyspace()
    put(keyspace, 110)
    assert one.floor(keyspace) is None
    put(keyspace, 1)
    assert 11 == one.floor(keyspace)

    one, keyspace = compactor(size=100_000), Keyspace()
    while keyspace.history_bytes <= 100_000:
        put(keyspace, 1)
        assert keyspace.history_bytes > 100_000 or one.floor(keyspace) is None
    floor = one.floor(keyspace)
    assert floor is not None
    keyspace.compact(floor)
    assert 89_000 < keyspace.history_bytes <= 90_000
