"""Every call of a scripted peer to its disk crashes or fails, one after the other, and nothing acknowledged is lost.

The script has every kind of call: the first start, writes, segments that are cut, snapshots taken and received,
releases, restarts, a move. ``long`` does the same with many seeds and every combination.
"""

from __future__ import annotations

import contextlib
import errno
from random import Random

import pytest
from scripted_peer import SCRIPT, Run, recover, states

from replikv.errors import CorruptionError, StorageError
from replikv.testing.simulated_disk import PowerCut, SimulatedDisk

EXPECTED = states()
CHANGES = frozenset({"create", "pwrite", "fdatasync", "fsync", "rename", "unlink", "make_directory", "sync_directory"})
"""What changes the disk, and may need room for it."""


def calls_of_the_script() -> list[str]:
    """The operations, in order, where nothing fails."""
    disk = SimulatedDisk(Random(0))
    Run(disk).go()
    return [operation for operation, _ in disk.calls]


CALLS = calls_of_the_script()


def run_until_it_stops(run: Run) -> None:
    """Up to the call that was set to be the last, if the script gets there; then the power is cut."""
    with contextlib.suppress(PowerCut):
        run.go()
    run.disk.crash()


def crash_twice(seed: int, number: int, *, ignored: tuple[str, ...] = ()) -> None:
    """The power is cut in a call, and again soon after the next start, and somewhere in what follows."""
    random = Random(f"{seed}/{number}")
    disk = SimulatedDisk(random, ignored=ignored)
    run = Run(disk)
    disk.stop(after=number)
    run_until_it_stops(run)
    disk.stop(after=random.randrange(30))
    with contextlib.suppress(PowerCut):
        recover(disk)
    disk.crash()
    run.settle(EXPECTED)
    disk.stop(after=random.randrange(150))
    run_until_it_stops(run)
    run.settle(EXPECTED)
    run.go()
    disk.crash()
    run.settle(EXPECTED)
    assert run.done == len(SCRIPT)
    assert disk.syncs_after_failure == []


def fail_and_go_on(error: int, number: int, times: int | None, *, power: bool, seed: int = 0) -> str:
    """A call fails, once or from then on; the peer goes on or ends, and is started again. What came of it."""
    disk = SimulatedDisk(Random(f"{seed}/{number}"))
    disk.fail(error, after=number, times=times)
    run = Run(disk)
    try:
        run.go()
        outcome = "went on"
    except StorageError:
        outcome = "ended"
    assert disk.syncs_after_failure == []
    if power:
        disk.crash()
    else:
        disk.kill()
    run.settle(EXPECTED)
    run.go()
    disk.crash()
    run.settle(EXPECTED)
    assert run.done == len(SCRIPT)
    return outcome


def test_the_script_has_every_call() -> None:
    """Or the tests below would pass it over."""
    assert CHANGES <= set(CALLS)
    assert len(CALLS) > 200


def test_the_script_leaves_what_the_words_of_storage_say() -> None:
    """After each step, whether the process was closed, was killed, or lost its power."""
    for done in range(len(SCRIPT) + 1):
        disk = SimulatedDisk(Random(0))
        run = Run(disk, SCRIPT[:done])
        run.go()
        run.settle(EXPECTED)
        assert run.done == done or EXPECTED[run.done] == EXPECTED[done]


def test_a_crash_at_any_call_loses_nothing_that_was_acknowledged() -> None:
    """Whichever unsynced sectors and names the disk keeps, and when it happens again during the recovery, and later.

    A torn tail that is fatal: etcd#5230; that is not cut, and hides what is appended later: amelie#17; a vote or a term
    that is not durable before the reply: PySyncObj; a gap between snapshot and log: canonical/raft#199; two snapshots,
    or a restart, during receipt: etcd#18055.
    """
    for number, operation in enumerate(CALLS):
        if operation in CHANGES:  # to stop in one that only reads is to stop before the next one
            crash_twice(0, number)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 41))
def test_a_crash_at_any_call_with_many_seeds(seed: int) -> None:
    """As the test above."""
    for number in range(len(CALLS)):
        crash_twice(seed, number)


@pytest.mark.parametrize("sync", ["fdatasync", "fsync", "sync_directory"])
def test_a_disk_that_ignores_a_kind_of_sync_is_noticed(sync: str) -> None:
    """So none of them is spare, and the tests above would see one that is missing."""
    noticed = 0
    for number in range(len(CALLS) - 1, 0, -10):
        try:
            crash_twice(0, number, ignored=(sync,))
        except (AssertionError, CorruptionError):
            noticed += 1
    assert noticed > 5


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_call_that_fails_loses_nothing_that_was_acknowledged(error: int) -> None:
    """Each call, once or from then on: the peer ends loudly or goes on, and is right after a restart.

    A failed sync is never tried again: fsyncgate; a full disk does not wedge the log: arcadedb#5345.
    """
    outcomes = set()
    for number in range(len(CALLS)):
        if error == errno.EIO or CALLS[number] in CHANGES:
            outcomes.add(fail_and_go_on(error, number, (1, None)[number % 2], power=bool(number // 2 % 2)))
    assert {errno.EIO: {"ended"}, errno.ENOSPC: {"ended", "went on"}}[error] <= outcomes


@pytest.mark.long
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("times", [1, None])
@pytest.mark.parametrize("power", [False, True])
def test_a_call_that_fails_in_every_way(error: int, times: int | None, power: bool) -> None:
    """As the test above, in all combinations."""
    for number in range(len(CALLS)):
        for seed in range(3):
            fail_and_go_on(error, number, times, power=power, seed=seed)


def test_a_disk_that_gets_full_anywhere_goes_on_when_there_is_room() -> None:
    """The capacity ends at any sector: nothing is acknowledged that is not there, and nothing needs a restart."""
    disk = SimulatedDisk(Random(0))
    Run(disk).go()
    highest = max(sum(map(len, disk.files().values())), 12_000)
    full = 0
    for capacity in range(0, highest, 512):
        disk = SimulatedDisk(Random(capacity), capacity_bytes=capacity + 100)
        run = Run(disk)
        run.go()
        full += run.full
        disk.crash()
        run.settle(EXPECTED)
        assert run.done == len(SCRIPT)
    assert full > 20
