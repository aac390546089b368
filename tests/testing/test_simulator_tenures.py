"""What the simulator knows of leases: it takes what is promised, and rejects what breaks a promise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from replikv.testing.simulator import Options, Simulation
from replikv.testing.simulator.oracle import BrokenInvariantError
from replikv.testing.simulator.process import Process
from replikv.testing.simulator.tenures import Tenure, Tenures

DRIFT = 0.04


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    """Three peers that have just been started, on clocks that differ."""
    simulation = Simulation(Options(seed=1, drift=DRIFT))
    with simulation.loop.running():
        simulation._start()
        simulation._pass(1.0)
        yield simulation


@pytest.fixture
def tenures(simulation: Simulation) -> Tenures:
    return simulation.tenures


def process(simulation: Simulation, place: int) -> Process:
    return list(simulation.processes.values())[place]


def tenure(simulation: Simulation, place: int, lease: int, seconds: float) -> Tenure:
    """Of somebody who believes to have it for so many seconds more, as he counts."""
    one = process(simulation, place)
    return Tenure(one, lease, 4.0, one.host.time() + seconds)


def test_a_lease_may_end_when_its_time_is_up(simulation: Simulation, tenures: Tenures) -> None:
    """On the fastest clock there may be; its holder may let it go at any time."""
    tenures.promised(1, 4.0, 1.0)
    tenures.promised(2, 4.0, 1.0)
    simulation.now = 1.0 + 4.0 / (1 + DRIFT)
    tenures.ended(1, by_leader=True)
    tenures.ended(2, by_leader=False)
    tenures.ended(3, by_leader=True)  # nobody was told that he has it


def test_a_lease_must_not_end_before(simulation: Simulation, tenures: Tenures) -> None:
    """Counted from when the question was sent that was answered last."""
    tenures.promised(1, 4.0, 0.0)
    tenures.promised(1, 4.0, 1.0)
    simulation.now = 4.5
    with pytest.raises(BrokenInvariantError, match=r"leases last: lease 1 of 4\.0 s was ended 3\.5"):
        tenures.ended(1, by_leader=True)


def test_an_answer_that_comes_late_is_a_promise_too(simulation: Simulation, tenures: Tenures) -> None:
    """It was asked before the lease ended, and is told after: then it should not have ended."""
    tenures.promised(1, 4.0, 0.0)
    simulation.now = 4.5
    tenures.ended(1, by_leader=True)
    with pytest.raises(BrokenInvariantError, match="leases last"):
        tenures.promised(1, 4.0, 4.0)


def test_what_had_ended_is_not_kept_alive(simulation: Simulation, tenures: Tenures) -> None:
    """Whoever asks after a lease has ended, however it did, must not be told that he has it."""
    tenures.ended(1, by_leader=False)
    with pytest.raises(BrokenInvariantError, match="ended leases are over"):
        tenures.promised(1, 4.0, simulation.now + 0.1)


def test_a_holder_that_believes_too_long_is_noticed(simulation: Simulation, tenures: Tenures) -> None:
    """Whether the leader ends the lease while he counts on it, or he counts on it after that."""
    tenures.believed(tenure(simulation, 0, 1, 0.1))
    tenures.ended(1, by_leader=False)
    late = tenure(simulation, 0, 2, 0.1)
    tenures.believed(late)
    simulation.now += 0.1 / (1 - DRIFT)
    tenures.ended(2, by_leader=True)
    late.expires += 0.1
    with pytest.raises(BrokenInvariantError, match="holders stop in time: n"):
        tenures.believed(late)
    tenures.believed(tenure(simulation, 1, 3, 0.1))
    with pytest.raises(BrokenInvariantError, match="holders stop in time: n"):
        tenures.ended(3, by_leader=True)


def test_one_holder_follows_the_other(simulation: Simulation, tenures: Tenures) -> None:
    """When the first has let go, his time is up on his own clock, or his process has ended."""
    first, second, third = (tenure(simulation, place, place, 4.0) for place in range(3))
    tenures.acquired("k", first, 10)
    first.over = True
    tenures.acquired("k", second, 11)
    simulation.now += 4.0 / (1 - DRIFT)
    tenures.acquired("k", third, 15)
    third.expires += 100
    third.process.over = True
    tenures.acquired("k", tenure(simulation, 0, 4, 4.0), 16)
    tenures.acquired("other", tenure(simulation, 1, 5, 4.0), 3)


def test_two_holders_at_a_time_are_noticed(simulation: Simulation, tenures: Tenures) -> None:
    """Also where the first has little left."""
    tenures.acquired("k", tenure(simulation, 0, 1, 0.01), 10)
    with pytest.raises(BrokenInvariantError, match=r"lock exclusivity: .* takes k by lease 2"):
        tenures.acquired("k", tenure(simulation, 1, 2, 4.0), 11)


def test_tokens_that_do_not_grow_are_noticed(simulation: Simulation, tenures: Tenures) -> None:
    """The same one again, too."""
    first = tenure(simulation, 0, 1, 4.0)
    tenures.acquired("k", first, 10)
    first.over = True
    with pytest.raises(BrokenInvariantError, match="tokens grow"):
        tenures.acquired("k", tenure(simulation, 1, 2, 4.0), 10)


def test_a_write_under_an_old_token_is_noticed(tenures: Tenures) -> None:
    """It was to be refused."""
    tenures.wrote("k", 10, 20)
    tenures.wrote("k", 21, 22)
    tenures.judge()
    tenures.wrote("k", 10, 23)
    with pytest.raises(BrokenInvariantError, match="fenced writes"):
        tenures.judge()


def test_clocks_that_differ_by_more_excuse_holders_and_nobody_else() -> None:
    """A lock is exclusive as far as clocks are alike; that a lease lasts does not rest on it."""
    simulation = Simulation(Options(seed=1, drift=0.3))
    with simulation.loop.running():
        simulation._start()
        simulation._pass(1.0)
        tenures = simulation.tenures
        tenures.acquired("k", tenure(simulation, 0, 1, 4.0), 10)
        tenures.acquired("k", tenure(simulation, 1, 2, 4.0), 11)
        tenures.promised(1, 4.0, 0.0)
        simulation.now = 2.9
        with pytest.raises(BrokenInvariantError, match="leases last"):
            tenures.ended(1, by_leader=True)
