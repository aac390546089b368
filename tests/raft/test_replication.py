"""How entries get into all logs: etcd-io/raft's raft_test, the tables of replication."""

from __future__ import annotations

import collections
from typing import Any

import pytest
from logs import snapshot_at, terms
from network import FRESH, HOLE, Peer, accept, net, only, three

from replikv.errors import InternalError
from replikv.raft.core import ProposalDroppedError
from replikv.raft.entries import Entry
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from replikv.raft.roles import Role

SOME = b"somedata"


def test_a_proposal_is_replicated() -> None:
    """A proposal is committed and applied everywhere (TestLogReplication, first row)."""
    network = three()
    network.campaign("1")

    network.propose("1", SOME)

    assert [(2, [SOME])] * 3 == [(peer.raft.log.committed, peer.payloads) for peer in network]


def test_proposals_of_two_leaders_are_replicated() -> None:
    """They are applied everywhere in the order of their commits (TestLogReplication, second row)."""
    network = three()
    network.campaign("1")
    network.propose("1", b"one")
    network.campaign("2")
    network.propose("2", b"two")

    assert [(4, [b"one", b"two"])] * 3 == [(peer.raft.log.committed, peer.payloads) for peer in network]


def test_messages_of_an_old_leader_are_ignored() -> None:
    """A late append of an older term changes no log (TestOldMessages, camunda#5360)."""
    network = three()
    for campaigner in "121":
        network.campaign(campaigner)
    assert (Role.LEADER, 3) == network["1"].state

    network.settle(AppendEntries(to="1", sender="2", term=2, entries=(Entry(3, 2),)))
    network.propose("1", SOME)

    for peer in network:
        assert ([1, 2, 3, 3], 4, [SOME]) == (peer.terms, peer.raft.log.committed, peer.payloads)


@pytest.mark.parametrize(
    ("peers", "committed"),
    [
        ([FRESH, FRESH, FRESH], True),
        ([FRESH, FRESH, HOLE], True),
        ([FRESH, HOLE, HOLE], False),
        ([FRESH, HOLE, HOLE, FRESH], False),
        ([FRESH, HOLE, HOLE, FRESH, FRESH], True),
    ],
)
def test_a_proposal_needs_a_majority(peers: list[dict[str, Any] | None], committed: bool) -> None:
    """With one it reaches all live nodes; without one nobody leads, and it is refused (TestProposal)."""
    network = net(*peers)
    network.campaign("1")

    if committed:
        network.propose("1", SOME)
    else:
        with pytest.raises(ProposalDroppedError, match="not the leader"):
            network.propose("1", SOME)

    assert 1 == network["1"].raft.term
    for peer in network:
        assert ([1, 1], 2, [SOME]) == (peer.terms, peer.raft.log.committed, peer.payloads) or not committed
        assert ([], 0, []) == (peer.terms, peer.raft.log.committed, peer.payloads) or committed


def test_a_follower_refuses_proposals() -> None:
    """Upstream's follower forwards a proposal (TestProposalByProxy); here that is the peer's work.

    The core refuses at once, so that a proposal is never dropped silently (etcd#8975) and the peer, which forwards
    whole batches and hears explicit refusals, knows whether it was taken.
    """
    network = three()
    network.campaign("1")

    with pytest.raises(ProposalDroppedError, match="not the leader"):
        network.propose("2", SOME)

    assert [[1]] * 3 == [peer.terms for peer in network]
    assert "1" == network["2"].raft.leader


@pytest.mark.parametrize(
    ("previous", "entries", "commit", "rejected", "last", "committed"),
    [
        pytest.param((3, 2), [], 3, True, 2, 0, id="another term before it"),
        pytest.param((3, 3), [], 3, True, 2, 0, id="nothing before it"),
        pytest.param((1, 1), [], 1, False, 2, 1, id="nothing new, and not all that is here"),
        pytest.param((0, 0), terms(2), 1, False, 1, 1, id="a conflict at the first takes the rest away"),
        pytest.param((2, 2), terms(2, 2, at=3), 3, False, 4, 3, id="two more, one committed"),
        pytest.param((2, 2), terms(2, at=3), 4, False, 3, 3, id="one more, and no commit beyond it"),
        pytest.param((1, 1), terms(2, at=2), 4, False, 2, 2, id="what is here, and no commit beyond it"),
        pytest.param((1, 1), [], 3, False, 2, 1, id="commits what is known to match, not what is here"),
        pytest.param((2, 2), [], 3, False, 2, 2, id="commits all that is here"),
        pytest.param((2, 2), [], 4, False, 2, 2, id="and nothing beyond it"),
    ],
)
def test_an_append(
    previous: tuple[int, int], entries: list[Entry], commit: int, rejected: bool, last: int, committed: int
) -> None:
    """Own log L[1,2], term 2 (5.3, figure 2; TestHandleMsgApp). previous = (term, index)."""
    peer = Peer(log=terms(1, 2), term=2)
    term, index = previous

    [answer] = only(
        peer.step(
            AppendEntries(
                to="1",
                sender="2",
                term=2,
                previous_term=term,
                previous_index=index,
                entries=tuple(entries),
                commit=commit,
            )
        ),
        AppendEntriesResponse,
    )

    assert (rejected, last, committed) == (answer.reject, peer.raft.log.last_index(), peer.raft.log.committed)
    assert index + (0 if rejected else len(entries)) == answer.index


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER])
def test_messages_of_an_old_term_have_no_effect(role: Role) -> None:
    """Whatever they say, and whoever they reach (TestStepIgnoreOldTermMsg; 5.1)."""
    peer = Peer(log=terms(1), term=1)
    if role is not Role.FOLLOWER:
        peer.node.campaign()
        peer.take()
    if role is Role.LEADER:
        peer.step(RequestVoteResponse(to="1", sender="2", term=2))
    peer.step(*([Heartbeat(to="1", sender="3", term=2)] if role is Role.FOLLOWER else []))
    before = (*peer.state, peer.raft.vote, peer.raft.leader, peer.log, peer.raft.log.committed)
    assert (role, 2) == peer.state

    for message in (
        AppendEntries(to="1", sender="2", term=1, entries=tuple(terms(1, 1)), commit=2),
        AppendEntriesResponse(to="1", sender="2", term=1, index=1),
        Heartbeat(to="1", sender="2", term=1, commit=1),
        HeartbeatResponse(to="1", sender="2", term=1, read_position=9),
        InstallSnapshot(to="1", sender="2", term=1, snapshot=snapshot_at(9, 1, "1", "2", "3")),
        RequestVote(to="1", sender="2", term=1, last_index=9, last_term=1),
        RequestVoteResponse(to="1", sender="3", term=1),
        TimeoutNow(to="1", sender="2", term=1),
    ):
        assert [] == peer.step(message)
        assert before == (*peer.state, peer.raft.vote, peer.raft.leader, peer.log, peer.raft.log.committed)


def test_a_late_append_does_not_shorten_the_log() -> None:
    """A message that was overtaken by a longer one takes nothing back (akka-raft#66, PySyncObj)."""
    peer = Peer()
    entries = tuple(terms(1, 1, 1))
    peer.step(AppendEntries(to="1", sender="2", term=1, entries=entries))

    sent = peer.step(AppendEntries(to="1", sender="2", term=1, entries=entries[:2]))

    assert [AppendEntriesResponse(to="2", sender="1", term=1, index=2)] == sent
    assert [1, 1, 1] == peer.terms


def test_a_late_acknowledgement_takes_nothing_back() -> None:
    """What a follower is known to have only grows, and so does the commit index (PySyncObj#166, #167)."""
    peer = Peer()
    peer.lead()
    for _ in range(3):
        peer.node.propose(SOME)
    answers = [accept(message) for message in only(peer.take(), AppendEntries) if message.to == "2"]
    assert [2, 3, 4] == [answer.index for answer in answers]

    for answer in reversed(answers):
        peer.step(answer)
        assert (4, 4) == (peer.raft.tracker.progress["2"].match, peer.raft.log.committed)


def test_what_is_committed_here_is_told_to_a_leader_that_asks_below() -> None:
    """An append below the commit index is answered with that, also when it is compacted here (RedisLabs/raft#49)."""
    peer = Peer()
    entries = tuple(terms(1, 1, 1, 1))
    peer.step(AppendEntries(to="1", sender="2", term=1, entries=entries, commit=3))
    peer.storage.compact(3)

    sent = peer.step(AppendEntries(to="1", sender="2", term=1, previous_index=1, previous_term=1, entries=entries[1:]))

    assert [AppendEntriesResponse(to="2", sender="1", term=1, index=3)] == sent
    assert 4 == peer.raft.log.last_index()


def test_a_lost_message_is_sent_again_without_proposals() -> None:
    """An idle leader brings a follower up to date by heartbeats alone (etcd#13951)."""
    network = three()
    network.campaign("1")
    network.isolate("3")
    network.propose("1", SOME)
    network.recover()
    assert 1 == network["3"].raft.log.last_index()

    network.settle(*network["1"].tick(2))

    assert [SOME] == network["3"].payloads


@pytest.mark.parametrize(
    ("leader_log", "follower_log"),
    [
        pytest.param(terms(1, 3, 3, 3, 5, 5, 5, 5, 5), terms(1, 1, 1, 1, 2, 2, 2, 2, 2), id="the leader skips terms"),
        pytest.param(terms(1, 1, 1, 1, 1, 5), terms(1, 1, 1, 1, 1, 4, 4, 4, 4, 4), id="the follower is longer"),
        pytest.param(terms(1, 1, 1, 1, 1, 5, 5, 5, 5), terms(1, 1), id="the follower is shorter"),
    ],
)
def test_diverging_logs_meet_in_one_rejection(leader_log: list[Entry], follower_log: list[Entry]) -> None:
    """Both sides skip what cannot match, a whole term at a time (5.3, at its end; TestFastLogRejection)."""
    network = net({"log": leader_log, "term": 5}, {"log": follower_log, "term": 5}, HOLE)
    network.campaign("1")
    network.settle(RequestVoteResponse(to="1", sender="3", term=6))

    assert 1 == sum(message.reject for message in only(network.sent, AppendEntriesResponse))
    assert network["1"].log == network["2"].log


def test_another_entry_than_the_last_that_is_committed_is_a_bug() -> None:
    """Committed entries are never replaced, up to the last one: two histories cannot both be kept."""
    for index in (2, 3):
        peer = Peer(log=terms(1, 1, 1), term=1, commit=3)
        with pytest.raises(InternalError, match=f"another entry {index} than the one that is committed"):
            peer.step(
                AppendEntries(
                    to="1",
                    sender="2",
                    term=2,
                    previous_index=index - 1,
                    previous_term=1,
                    entries=tuple(terms(2, at=index)),
                )
            )


def test_all_logs_of_figure_7_are_brought_together() -> None:
    """The leader finds where each of them parts from its own, in one probe or two (5.3; probe_and_replicate)."""
    logs = [
        terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6),
        terms(1, 1, 1, 4, 4, 5, 5, 6, 6),
        terms(1, 1, 1, 4),
        terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
        terms(1, 1, 1, 4, 4, 5, 5, 6, 7, 7, 7, 7),
        terms(1, 1, 1, 4, 4, 4, 4),
        terms(1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
    ]
    network = net(*({"log": log, "term": 7} for log in logs))

    network.campaign("1")

    assert (Role.LEADER, 8) == network["1"].state
    assert [[*logs[0], Entry(11, 8)]] * 7 == [peer.log for peer in network]
    assert [11] * 7 == [peer.raft.log.committed for peer in network]
    refusals = collections.Counter(
        message.sender for message in only(network.sent, AppendEntriesResponse) if message.reject
    )
    assert {"2": 1, "3": 1, "5": 1, "6": 1, "7": 1} == refusals


def test_a_second_leader_of_the_term_is_a_bug() -> None:
    """Election safety is broken already when two leaders send in one term: stop (5.2)."""
    peer = Peer()
    peer.step(AppendEntries(to="1", sender="2", term=1))
    with pytest.raises(InternalError, match="two leaders in term 1"):
        peer.step(AppendEntries(to="1", sender="3", term=1))

    peer = Peer()
    peer.lead()
    with pytest.raises(InternalError, match="two leaders in term 1"):
        peer.step(AppendEntries(to="1", sender="2", term=1))


def test_a_restarted_node_goes_on_with_its_log() -> None:
    """Term, vote, log and commit index come from storage, and applying begins where the state machine says."""
    network = three()
    network.campaign("1")
    network.propose("1", SOME)
    network.propose("1", b"more")

    restarted = Peer(storage=network["1"].storage, applied=2)
    restarted.take()

    assert (Role.FOLLOWER, 1, "1") == (*restarted.state, restarted.raft.vote)
    # The commit index is saved with later writes only: it lags here, and catches up from the next leader.
    assert (3, 2) == (restarted.raft.log.last_index(), restarted.raft.log.committed)
    assert [] == restarted.applied
