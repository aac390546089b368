"""What a leader may commit: etcd-io/raft's raft_test (paper 5.3, 5.4.2; thesis 4.3)."""

from __future__ import annotations

import pytest
from logs import terms
from network import FRESH, Network, Peer, net

from replikv.raft import replication
from replikv.raft.entries import Entry
from replikv.raft.membership import Membership
from replikv.raft.messages import AppendEntries
from replikv.raft.roles import Role


def committed(network: Network) -> list[int]:
    """The commit index of each peer."""
    return [peer.raft.log.committed for peer in network]


def test_a_single_node_commits_alone() -> None:
    """Its own disk is a majority (TestSingleNodeCommit)."""
    network = net(FRESH)
    network.campaign("1")

    network.propose("1", b"some data")
    network.propose("1", b"some data")

    assert [3] == committed(network)


def left_with_two_of_five() -> Network:
    """Five nodes; two entries of leader 1 are on its disk and that of 2, and committed nowhere; then all links heal."""
    network = net(*[FRESH] * 5)
    network.campaign("1")
    for other in "345":
        network.cut("1", other)
    network.propose("1", b"some data")
    network.propose("1", b"some data")
    assert 1 == network["1"].raft.log.committed
    network.recover()
    return network


def test_entries_of_an_older_term_wait_for_one_of_the_own() -> None:
    """Though a majority may have them by then (5.4.2; TestCannotCommitWithoutNewTermEntry)."""
    network = left_with_two_of_five()
    network.ignore(AppendEntries)
    network.campaign("2")
    assert (Role.LEADER, 2, 1) == (*network["2"].state, network["2"].raft.log.committed)

    network.recover()
    network.beat("2")
    network.propose("2", b"some data")

    assert [5] * 5 == committed(network)


def test_the_first_entry_of_a_leader_commits_those_before_it() -> None:
    """Nobody needs to propose for it (TestCommitWithoutNewTermEntry)."""
    network = left_with_two_of_five()

    network.campaign("2")

    assert [4] * 5 == committed(network)


@pytest.mark.parametrize(
    ("matches", "log", "term", "expected"),
    [
        # One voter.
        ([1], terms(1), 1, 1),
        ([1], terms(1), 2, 0),
        ([2], terms(1, 2), 2, 2),
        ([1], terms(2), 2, 1),
        # An odd number of them.
        ([2, 1, 1], terms(1, 2), 1, 1),
        ([2, 1, 1], terms(1, 1), 2, 0),
        ([2, 1, 2], terms(1, 2), 2, 2),
        ([2, 1, 2], terms(1, 1), 2, 0),
        # An even number.
        ([2, 1, 1, 1], terms(1, 2), 1, 1),
        ([2, 1, 1, 1], terms(1, 1), 2, 0),
        ([2, 1, 1, 2], terms(1, 2), 1, 1),
        ([2, 1, 1, 2], terms(1, 1), 2, 0),
        ([2, 1, 2, 2], terms(1, 2), 2, 2),
        ([2, 1, 2, 2], terms(1, 1), 2, 0),
    ],
)
def test_what_a_majority_has_is_committed(matches: list[int], log: list[Entry], term: int, expected: int) -> None:
    """If it is of the leader's own term (TestCommit)."""
    raft = Peer("1", "1234"[: len(matches)], log=log, term=term).raft
    for progress, match in zip(raft.tracker.progress.values(), matches, strict=True):
        progress.match, progress.next = match, match + 1

    replication.maybe_commit(raft)

    assert expected == raft.log.committed


@pytest.mark.parametrize(
    ("incoming", "outgoing", "expected"),
    [((3, 3, 1), (3, 1, 1), 1), ((3, 1, 1), (3, 3, 3), 1), ((3, 3, 1), (3, 2, 2), 2), ((3, 3, 3), (3, 3, 1), 3)],
)
def test_both_halves_of_a_joint_configuration_commit(
    incoming: tuple[int, ...], outgoing: tuple[int, ...], expected: int
) -> None:
    """The smaller of what their majorities have (thesis 4.3)."""
    members = Membership(voters=frozenset("123"), outgoing=frozenset("145"))
    raft = Peer("1", members, log=terms(1, 1, 1), term=1).raft
    for node_id, match in [*zip("123", incoming, strict=True), *zip("145", outgoing, strict=True)]:
        raft.tracker.progress[node_id].match = match

    replication.maybe_commit(raft)

    assert expected == raft.log.committed
