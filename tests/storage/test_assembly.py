"""What meta, the log and the newest snapshot amount to together, at the bounds of the rules."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from replikv.errors import CorruptionError
from replikv.raft.entries import Entry, HardState, SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.storage.assembly import assemble, check_owner, seal
from replikv.storage.base import Identity
from replikv.storage.records import Marker
from replikv.storage.recovery import Replay

DIRECTORY = Path("/data/a")
IDENTITY = Identity("cluster", "a", "incarnation", "10.0.0.1:7001", "0.0.0.0:7001")
MEMBERSHIP = Membership.of_voters({"a": "10.0.0.1:7001"})


def at(index: int, term: int = 1) -> SnapshotMetadata:
    return SnapshotMetadata(index, term, MEMBERSHIP)


def log(*entries: tuple[int, int], marker: int = 0, hard_state: HardState | None = None) -> Replay:
    """Of entries with these indexes and terms."""
    replay = Replay()
    replay.add(seal(IDENTITY))
    replay.add(Marker(*at(marker)))
    replay.add(hard_state or HardState(1, "b", 0))
    for index, term in entries:
        replay.add(Entry(index, term, b"data"))
    return replay


def test_a_log_follows_its_snapshot_without_a_gap() -> None:
    """It may begin before s, at s, or at s + 1; at s + 2 an entry is missing."""
    for first in (2, 3, 4):
        found = assemble(DIRECTORY, log(*((index, 1) for index in range(first, 7))), at(3))
        assert ([4, 5, 6], True) == ([entry.index for entry in found.following], found.agrees)
    with pytest.raises(CorruptionError, match="its first entry is 5, and the newest snapshot is at 3"):
        assemble(DIRECTORY, log((5, 1), (6, 1)), at(3))


@pytest.mark.parametrize(
    ("entries", "agrees"),
    [
        ([(2, 1), (3, 2), (4, 2)], True),
        ([(2, 1), (3, 1), (4, 1)], False),
        ([(2, 1), (3, 3), (4, 3)], False),
        ([(1, 1), (2, 1)], False),
        ([(4, 2)], True),
        ([(4, 3)], True),
        ([(4, 1)], False),
    ],
)
def test_a_log_that_the_snapshot_contradicts_begins_anew(entries: list[tuple[int, int]], agrees: bool) -> None:
    """Entry s of another term, none at all, or one behind s that is older than S: it is another history."""
    found = assemble(DIRECTORY, log(*entries), at(3, 2))
    assert agrees == found.agrees
    assert [index for index, _ in entries if agrees and index > 3] == [entry.index for entry in found.following]


@pytest.mark.parametrize("newest", [None, 4])
def test_a_snapshot_that_the_log_knows_of_must_be_there(newest: int | None) -> None:
    """Or one after it; an older one is not enough, however far the log goes back."""
    replay = log(*((index, 1) for index in range(1, 8)), marker=5)
    with pytest.raises(CorruptionError, match="there is a snapshot at 5"):
        assemble(DIRECTORY, replay, None if newest is None else at(newest))
    assert 5 == assemble(DIRECTORY, log((6, 1), marker=5), at(5)).snapshot.index


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (HardState(1, "b", 2), HardState(2, "", 3)),
        (HardState(2, "b", 2), HardState(2, "b", 3)),
        (HardState(3, "b", 9), HardState(3, "b", 9)),
    ],
)
def test_term_vote_and_commit_never_go_back(known: HardState, expected: HardState) -> None:
    """A vote is kept in its own term, and in a later one of the snapshot none was given; what S covers is committed."""
    assert expected == assemble(DIRECTORY, log((4, 2), hard_state=known), at(3, 2)).hard_state


@pytest.mark.parametrize("field", ["cluster_id", "node_id", "incarnation"])
def test_a_log_is_that_of_its_directory(field: str) -> None:
    """Of another cluster, peer or incarnation it is damage; only addresses may differ."""
    check_owner(DIRECTORY, dataclasses.replace(IDENTITY, address="elsewhere:1", listen="x:1"), log(), 9)
    with pytest.raises(CorruptionError, match="the log of another peer"):
        check_owner(DIRECTORY, dataclasses.replace(IDENTITY, **{field: "another"}), log(), 9)


def test_a_log_without_meta_is_an_attempt_while_it_has_only_its_head() -> None:
    """One frame more, and somebody was told that it is durable."""
    check_owner(DIRECTORY, None, None, 0)
    check_owner(DIRECTORY, None, log(), 1)
    with pytest.raises(CorruptionError, match="meta is damaged: it is missing"):
        check_owner(DIRECTORY, None, log(), 2)
