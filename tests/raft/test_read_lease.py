"""Reads under a lease (thesis 6.4.1): fast while a majority has promised not to vote, and never by a stale clock."""

from __future__ import annotations

from typing import Any

import pytest
from network import Network, Peer, accept, only, three

from replikv.errors import ConfigurationError, InternalError
from replikv.raft.core import Config
from replikv.raft.lease import ROUNDS_MAX, ReadLease, lease_ticks
from replikv.raft.membership import ChangeKind, MemberChange, MembershipChange
from replikv.raft.messages import (
    AppendEntries,
    Heartbeat,
    HeartbeatResponse,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from replikv.raft.reads import ReadState
from replikv.raft.roles import Role

ELECTION_TICKS = 10
LEASE = lease_ticks(ELECTION_TICKS)


def under_lease(members: str = "123", **config: Any) -> Peer:
    """A leader of term 1 that has committed its no-op, and whose round of heartbeats of time 0 is not answered yet."""
    peer = Peer("1", members, check_quorum=True, read_lease=True, **config)
    peer.raft.leader_silence = ELECTION_TICKS
    peer.lead()
    peer.node.tell_time(0.0)
    peer.beat()
    return peer


def answer(peer: Peer, sender: str = "2") -> None:
    """A follower answers the newest round."""
    peer.step(HeartbeatResponse(to="1", sender=sender, term=1, read_position=peer.raft.reads.position))


def read_at(peer: Peer, now: float, context: int = 7) -> list[ReadState]:
    """Read at a time; what can be served at once."""
    del peer.reads[:]
    peer.node.tell_time(now)
    peer.node.read_index(context)
    peer.take()
    return list(peer.reads)


def three_under_lease() -> Network:
    """Three with leases; 1 leads, and has a lease from time 0 on."""
    network = three(check_quorum=True, read_lease=True)
    for peer in network:
        peer.raft.leader_silence = ELECTION_TICKS
    network.campaign("1")
    network["1"].node.tell_time(0.0)
    network["1"].beat()
    network.settle()
    return network


# -- rounds of reads ---------------------------------------------------------------------------------------------------


def test_a_read_under_a_lease_is_at_the_commit_index() -> None:
    """Whoever asks, the index covers what was committed, and no heartbeat is sent (TestReadOnlyOptionLease)."""
    network = three_under_lease()
    for number, asker in enumerate("123123"):
        for _ in range(10):
            network.propose("1", b"")
        del network.sent[:]
        network["1"].node.tell_time(LEASE / 2)
        assert network[asker].node.read_index(100 + number)
        if asker == "1":
            network.settle()
        else:
            [asked] = network[asker].take()
            [answered] = network["1"].step(asked)
            assert ReadIndexResponse(to=asker, sender="1", context=100 + number, index=11 + 10 * number) == answered
            network.settle(answered)

        assert ReadState(100 + number, 11 + 10 * number) == network[asker].reads.pop()
        assert [] == only(network.sent, Heartbeat)


def test_the_lease_needs_check_quorum() -> None:
    """Without stickiness nobody is bound by having heard a leader."""
    with pytest.raises(ConfigurationError, match="check_quorum"):
        Config(node_id="1", read_lease=True)


# -- how long it lasts -------------------------------------------------------------------------------------------------


def test_the_lease_is_shorter_than_the_shortest_promise() -> None:
    """A promise of ten ticks may be nine long, as the first one may come at once, on a clock that is a tenth faster."""
    assert lease_ticks(10) == pytest.approx(8.1)


def test_the_lease_counts_from_when_the_heartbeat_was_sent() -> None:
    """However late the answers come: the promises behind them began when the heartbeat arrived, at the earliest."""
    peer = under_lease()
    peer.take()
    peer.node.tell_time(5.0)
    answer(peer)

    assert [ReadState(7, 1)] == read_at(peer, LEASE - 0.1)
    assert [] == read_at(peer, LEASE)


def test_answers_after_the_end_give_no_lease() -> None:
    """A process that was stopped between a heartbeat and its answers does not count from when it went on."""
    peer = under_lease()
    peer.take()

    peer.node.tell_time(100.0)
    answer(peer)

    assert [] == read_at(peer, 100.0)


def test_a_stopped_process_asks() -> None:
    """Ticks stand still while a process is stopped, time does not: the read goes by ReadIndex (tikv#964)."""
    peer = under_lease()
    answer(peer)
    assert [ReadState(7, 1)] == read_at(peer, 1.0)

    peer.node.tell_time(60.0)
    peer.node.read_index(8)
    sent = only(peer.take(), Heartbeat)

    assert 2 == len(sent)
    assert 1 == len(peer.reads)


def test_without_the_time_there_is_no_lease() -> None:
    """What was told holds for one turn: a runtime that forgets it gets ReadIndex, and no stale read."""
    peer = under_lease()
    answer(peer)
    assert [ReadState(7, 1)] == read_at(peer, 1.0)

    peer.node.read_index(8)
    peer.take()

    assert 1 == len(peer.reads)


def test_time_does_not_go_back() -> None:
    """A clock that does is none to base a lease on."""
    peer = Peer()
    peer.node.tell_time(2.0)

    with pytest.raises(InternalError, match="went back"):
        peer.node.tell_time(1.0)


def test_one_answer_of_three_is_a_majority_and_one_of_five_is_not() -> None:
    """The leader counts itself."""
    three_of_them, five = under_lease("123"), under_lease("12345")
    answer(three_of_them)
    answer(five)
    assert ([ReadState(7, 1)], []) == (read_at(three_of_them, 1.0), read_at(five, 1.0))

    peer = under_lease("12345")
    answer(peer, "2")
    answer(peer, "3")
    assert [ReadState(7, 1)] == read_at(peer, 1.0)


def test_an_old_answer_gives_an_old_lease() -> None:
    """Answers hand back which round they are for."""
    peer = under_lease()
    first = peer.raft.reads.position
    peer.take()
    peer.node.tell_time(6.0)
    peer.beat()
    peer.take()

    peer.step(HeartbeatResponse(to="1", sender="2", term=1, read_position=first))
    assert LEASE == peer.raft.lease.expires

    answer(peer)
    assert 6.0 + LEASE == peer.raft.lease.expires


def test_a_lease_is_renewed_by_the_tick() -> None:
    """Reads find one that holds as long as heartbeats are answered."""
    peer = under_lease()
    answer(peer)
    for now in range(1, 50):
        peer.node.tell_time(float(now))
        peer.tick()
        answer(peer)
        assert [ReadState(7, 1)] == read_at(peer, now + 0.5)


# -- what ends it ------------------------------------------------------------------------------------------------------


def test_a_new_leader_has_no_lease() -> None:
    """Nor does it answer at all before it has committed in its own term (thesis 6.4)."""
    peer = Peer("1", "123", check_quorum=True, read_lease=True)
    peer.raft.leader_silence = ELECTION_TICKS
    peer.lead(acknowledged=False)
    peer.node.tell_time(0.0)
    peer.beat()
    answer(peer)

    assert [] == read_at(peer, 1.0)
    assert 1 == len(peer.raft.reads.postponed)


def test_a_transfer_ends_the_lease_for_good() -> None:
    """Votes for the successor break the promise, whenever the request arrives, though the transfer is given up."""
    peer = under_lease()
    answer(peer)
    peer.take()
    assert peer.node.transfer_leadership("2")
    assert only(peer.take(), TimeoutNow)
    for now in range(1, 2 * ELECTION_TICKS):
        peer.node.tell_time(float(now))
        peer.tick()
        answer(peer)
    assert (Role.LEADER, "") == (peer.raft.role, peer.node.transferring)

    assert [] == read_at(peer, 2.0 * ELECTION_TICKS)


def test_a_new_leadership_has_a_lease_of_its_own() -> None:
    """What ended the last one, and the rounds that it sent, are of that one: the first answer of the new one counts."""
    peer = under_lease()
    answer(peer)
    peer.node.transfer_leadership("2")
    peer.take()
    for now in range(1, 4):  # rounds that nobody answers, at positions that the new leadership has yet to reach
        peer.node.tell_time(float(now))
        peer.beat()
    peer.step(RequestVote(to="1", sender="2", term=2, transfer=True, last_index=1, last_term=1))
    assert Role.FOLLOWER is peer.raft.role
    peer.lead()
    assert [] == read_at(peer, 4.0)

    peer.node.tell_time(5.0)
    peer.beat()
    peer.step(HeartbeatResponse(to="1", sender="2", term=3, read_position=peer.raft.reads.position))

    assert [ReadState(7, 2)] == read_at(peer, 5.0 + LEASE / 2)


def test_a_change_of_the_voters_revokes_the_lease() -> None:
    """Who promised may be no majority of the new voters; the next round counts again."""
    peer = under_lease()
    answer(peer)
    peer.node.tell_time(1.0)
    peer.node.propose_membership(MembershipChange((MemberChange(ChangeKind.ADD_VOTER, "4"),)))
    [append] = [message for message in only(peer.take(), AppendEntries) if message.to == "2"]
    peer.step(accept(append))
    assert 4 == len(peer.raft.membership.voters)
    assert [] == read_at(peer, 2.0)

    for sender in "23":
        answer(peer, sender)
    assert [ReadState(7, 2)] == read_at(peer, 3.0)


# -- the promise behind it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre_vote", [False, True])
def test_the_promise_outlives_a_restart(pre_vote: bool) -> None:
    """A member that has started does not know whom it answered before: it votes for nobody for an election timeout."""
    peer = Peer(term=1, check_quorum=True, read_lease=True)
    request = RequestVote(to="1", sender="3", term=2, last_index=9, last_term=1, pre_vote=pre_vote)
    peer.raft.randomized_election_ticks = 2 * ELECTION_TICKS
    peer.tick(ELECTION_TICKS - 1)
    assert [] == peer.step(request)

    peer.tick()

    assert [RequestVoteResponse(to="3", sender="1", term=2, pre_vote=pre_vote)] == peer.step(request)


def test_the_promise_outlives_a_newer_term() -> None:
    """A term heard of elsewhere makes a member forget its leader, and not what it has promised."""
    peer = Peer(term=1, check_quorum=True, read_lease=True)
    peer.tick(ELECTION_TICKS - 1)
    peer.step(Heartbeat(to="1", sender="2", term=1, read_position=4))
    peer.step(RequestVoteResponse(to="1", sender="3", term=2, reject=True))
    assert (Role.FOLLOWER, 2, "") == (*peer.state, peer.raft.leader)

    assert [] == peer.step(RequestVote(to="1", sender="3", term=2, last_index=9, last_term=1))
    assert [] == peer.step(RequestVote(to="1", sender="3", term=3, last_index=9, last_term=1, pre_vote=True))


def test_who_promised_does_not_campaign_by_hand() -> None:
    """The own vote is promised as well; the leader's request is another matter."""
    peer = Peer(term=1, check_quorum=True, read_lease=True)
    peer.step(Heartbeat(to="1", sender="2", term=1))

    peer.node.campaign()
    assert (Role.FOLLOWER, 1) == peer.state

    peer.step(TimeoutNow(to="1", sender="2", term=1))
    assert (Role.CANDIDATE, 2) == peer.state


def test_nobody_is_elected_while_a_lease_lasts() -> None:
    """A leader that is cut off right after its heartbeats were answered serves no read once another could write."""
    network = three_under_lease()
    network.isolate("1")
    ticks = 0
    while network["2"].raft.role is not Role.LEADER and network["3"].raft.role is not Role.LEADER:
        ticks += 1
        for node_id in "23":
            network[node_id].node.tick()
        network.settle()

    # The members' clocks may be a tenth fast, and their first tick may come at once.
    assert (ticks - 1) * 0.9 >= LEASE
    assert [] == read_at(network["1"], (ticks - 1) * 0.9)


def test_a_read_of_a_follower_under_lease() -> None:
    """The leader's lease serves whoever asks it."""
    peer = under_lease()
    answer(peer)
    peer.node.tell_time(1.0)

    assert [ReadIndexResponse(to="3", sender="1", context=5, index=1)] == peer.step(
        ReadIndex(to="1", sender="3", context=5)
    )


def test_rounds_are_bounded() -> None:
    """Rounds that nobody answers are forgotten, the oldest first: the lease only gets shorter."""
    lease = ReadLease(ELECTION_TICKS)
    for position in range(1, 10 * ROUNDS_MAX):
        lease.sent(position, float(position))

    lease.confirm(9 * ROUNDS_MAX - 1)
    assert not lease.holds(0.0)
    lease.confirm(10 * ROUNDS_MAX)
    assert 10 * ROUNDS_MAX - 1 + LEASE == lease.expires
