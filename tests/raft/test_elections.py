"""Who becomes leader: etcd-io/raft's raft_test, the tables of elections."""

from __future__ import annotations

from typing import Any

import pytest
from logs import terms
from network import FRESH, HOLE, Peer, net, three

from replikv.raft.entries import NO_NODE
from replikv.raft.messages import AppendEntries, Heartbeat, Message, RequestVote, RequestVoteResponse
from replikv.raft.roles import Role

FOLLOWER, PRE_CANDIDATE, CANDIDATE, LEADER = Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER
WITH_AND_WITHOUT_PRE_VOTE = pytest.mark.parametrize("pre_vote", [False, True], ids=["plain", "pre-vote"])


def in_role(role: Role, *, term: int = 1) -> Peer:
    """Node 1 of three, in this role; nothing waits to be sent."""
    peer = Peer()
    if role is FOLLOWER:
        peer.raft.become_follower(term, "3")
    elif role is PRE_CANDIDATE:
        peer.raft.become_follower(term, NO_NODE)
        peer.raft.become_pre_candidate()
    else:
        peer.raft.become_follower(term - 1, NO_NODE)
        peer.raft.become_candidate()
        if role is LEADER:
            peer.raft.become_leader()
    peer.take()
    return peer


@pytest.mark.parametrize(
    ("peers", "plain", "with_pre_vote"),
    [
        ([FRESH, FRESH, FRESH], (LEADER, 1), (LEADER, 1)),
        ([FRESH, FRESH, HOLE], (LEADER, 1), (LEADER, 1)),
        ([FRESH, HOLE, HOLE], (CANDIDATE, 1), (PRE_CANDIDATE, 0)),
        ([FRESH, HOLE, HOLE, FRESH], (CANDIDATE, 1), (PRE_CANDIDATE, 0)),
        ([FRESH, HOLE, HOLE, FRESH, FRESH], (LEADER, 1), (LEADER, 1)),
        (
            [
                FRESH,
                {"log": terms(1), "term": 1},
                {"log": terms(1), "term": 1},
                {"log": terms(1, 1), "term": 1},
                FRESH,
            ],
            (FOLLOWER, 1),
            (FOLLOWER, 1),
        ),
    ],
)
def test_an_election(
    peers: list[dict[str, Any] | None], plain: tuple[Role, int], with_pre_vote: tuple[Role, int]
) -> None:
    """A majority elects, a minority leaves it open, longer logs refuse (TestLeaderElection, ...PreVote)."""
    for pre_vote, expected in ((False, plain), (True, with_pre_vote)):
        network = net(*peers, pre_vote=pre_vote)

        network.campaign("1")

        assert expected == network["1"].state


@WITH_AND_WITHOUT_PRE_VOTE
def test_leadership_goes_round(pre_vote: bool) -> None:
    """Each node can be elected from a working leader's cluster (TestLeaderCycle, TestLeaderCyclePreVote)."""
    network = three(pre_vote=pre_vote)

    for campaigner in "123":
        network.campaign(campaigner)
        assert [LEADER if peer.id == campaigner else FOLLOWER for peer in network] == network.roles()


@WITH_AND_WITHOUT_PRE_VOTE
def test_a_leader_overwrites_newer_logs(pre_vote: bool) -> None:
    """An uncommitted entry of a newer term gives way to a leader without it (TestLeaderElectionOverwriteNewerLogs).

    3 was elected by 4 and 5 in term 2, and its entry is on its own disk alone.
    """
    network = net(
        {"log": terms(1), "term": 1},
        {"log": terms(1), "term": 1},
        {"log": terms(2), "term": 2},
        {"term": 2, "vote": "3"},
        {"term": 2, "vote": "3"},
        pre_vote=pre_vote,
    )

    network.campaign("1")
    assert (FOLLOWER, 2) == network["1"].state

    network.campaign("1")
    assert (LEADER, 3) == network["1"].state
    assert [[1, 3]] * 5 == [peer.terms for peer in network]


@pytest.mark.parametrize("pre_vote", [False, True], ids=["vote", "pre-vote"])
@pytest.mark.parametrize(
    ("role", "index", "term", "voted", "refused"),
    [
        *((FOLLOWER, index, term, NO_NODE, True) for index in (0, 1) for term in (0, 1, 2)),
        *((FOLLOWER, index, 3, NO_NODE, False) for index in (0, 1, 2, 3)),
        *((FOLLOWER, index, term, NO_NODE, True) for index in (2, 3) for term in (0, 1)),
        *((FOLLOWER, index, 2, NO_NODE, False) for index in (2, 3)),
        (FOLLOWER, 3, 2, "2", False),
        (FOLLOWER, 3, 2, "1", True),
        (LEADER, 3, 3, "1", True),
        (PRE_CANDIDATE, 3, 3, "1", True),
        (CANDIDATE, 3, 3, "1", True),
    ],
)
def test_a_vote_within_the_term(role: Role, index: int, term: int, voted: str, refused: bool, pre_vote: bool) -> None:
    """Own log L[2,2]: refused with an older log, or when the vote is given (TestRecvMsgVote, TestRecvMsgPreVote).

    The asker's log ends in (index, term); both are in the later one of their terms.
    """
    now = max(2, term)
    peer = Peer(log=terms(2, 2), term=now, vote=voted)
    peer.raft.role, peer.raft.leader = role, "1" if role is LEADER else NO_NODE

    sent = peer.step(RequestVote(to="1", sender="2", term=now, last_index=index, last_term=term, pre_vote=pre_vote))

    assert [RequestVoteResponse(to="2", sender="1", term=now, pre_vote=pre_vote, reject=refused)] == sent


@pytest.mark.parametrize("role", Role)
def test_a_vote_from_any_role(role: Role) -> None:
    """A candidate of a newer term with a newer log gets everybody's vote (TestVoteFromAnyState)."""
    peer = in_role(role)

    sent = peer.step(RequestVote(to="1", sender="2", term=2, last_term=2, last_index=42))

    assert [RequestVoteResponse(to="2", sender="1", term=2)] == sent
    assert (FOLLOWER, 2, "2") == (*peer.state, peer.raft.vote)


@pytest.mark.parametrize("role", Role)
def test_a_pre_vote_from_any_role(role: Role) -> None:
    """A pre-vote binds nobody: it is granted by everybody, and changes nothing (TestPreVoteFromAnyState)."""
    peer = in_role(role)
    before = (*peer.state, peer.raft.vote, peer.raft.leader)

    sent = peer.step(RequestVote(to="1", sender="2", term=2, last_term=2, last_index=42, pre_vote=True))

    assert [RequestVoteResponse(to="2", sender="1", term=2, pre_vote=True)] == sent
    assert before == (*peer.state, peer.raft.vote, peer.raft.leader)


def test_duelling_candidates() -> None:
    """A candidate with the shorter log loses, but its newer term unseats the leader (TestDuelingCandidates)."""
    network = three()
    network.cut("1", "3")
    network.campaign("1")
    network.campaign("3")
    assert [LEADER, CANDIDATE] == [network["1"].raft.role, network["3"].raft.role]

    network.recover()
    network.campaign("3")

    assert [(FOLLOWER, 2, 1), (FOLLOWER, 2, 1), (FOLLOWER, 2, 0)] == [
        (*peer.state, peer.raft.log.last_index()) for peer in network
    ]


def test_duelling_pre_candidates() -> None:
    """With pre-vote the same candidate disturbs nobody (TestDuelingPreCandidates, etcd#9333)."""
    network = three(pre_vote=True)
    network.cut("1", "3")
    network.campaign("1")
    network.campaign("3")
    assert [LEADER, FOLLOWER] == [network["1"].raft.role, network["3"].raft.role]

    network.recover()
    network.campaign("3")

    assert [(LEADER, 1, 1), (FOLLOWER, 1, 1), (FOLLOWER, 1, 0)] == [
        (*peer.state, peer.raft.log.last_index()) for peer in network
    ]


def test_a_candidate_concedes() -> None:
    """A candidate that was cut off follows the leader of its own term (TestCandidateConcede)."""
    network = three()
    network.isolate("1")
    network.campaign("1")
    network.campaign("3")
    network.recover()

    network.beat("3")
    network.propose("3", b"force follower")
    network.beat("3")

    assert (FOLLOWER, 1) == network["1"].state
    for peer in network:
        assert ([1, 1], 2, [b"force follower"]) == (peer.terms, peer.raft.log.committed, peer.payloads)


@WITH_AND_WITHOUT_PRE_VOTE
def test_a_single_node_elects_itself(pre_vote: bool) -> None:
    """One voter is a majority of one, by the same steps (TestSingleNodeCandidate, TestSingleNodePreCandidate)."""
    network = net(FRESH, pre_vote=pre_vote)

    network.campaign("1")

    assert (LEADER, 1) == network["1"].state


def test_a_single_node_leads_only_when_its_vote_is_durable() -> None:
    """Not even alone is a vote counted before its sync (etcd#14370)."""
    peer = Peer("1", "1")
    peer.lazy = True
    peer.node.campaign()
    peer.take()
    assert (CANDIDATE, 1) == peer.state

    peer.persist()
    assert (LEADER, 1) == peer.state


@WITH_AND_WITHOUT_PRE_VOTE
def test_a_leader_does_not_campaign(pre_vote: bool) -> None:
    """Who leads already has nothing to win (TestCampaignWhileLeader, TestPreCampaignWhileLeader)."""
    network = net(FRESH, pre_vote=pre_vote)
    network.campaign("1")

    network.campaign("1")

    assert (LEADER, 1) == network["1"].state


@pytest.mark.parametrize("kind", [Heartbeat, AppendEntries])
def test_a_candidate_follows_the_leader_of_its_term(kind: type[Message]) -> None:
    """It was cut off, and stands in the very term that the others have reached without it.

    Whatever the leader sends shows that the election of that term is over (TestCandidateResetTermMsgApp,
    TestCandidateResetTermMsgHeartbeat).
    """
    network = three()
    network.campaign("1")
    network.isolate("3")
    network.campaign("2")
    network.campaign("1")
    assert [(LEADER, 3), (FOLLOWER, 3), (FOLLOWER, 1)] == network.states()
    while network["3"].raft.term < 3:
        network["3"].tick()
    assert (CANDIDATE, 3) == network["3"].state

    network.recover()
    network.settle(kind(to="3", sender="1", term=3))

    assert ((FOLLOWER, 3), "1") == (network["3"].state, network["3"].raft.leader)


@WITH_AND_WITHOUT_PRE_VOTE
def test_the_own_vote_comes_after_the_election_is_lost(pre_vote: bool) -> None:
    """Another leader was heard of while it was on its way to the disk (TestCandidateSelfVoteAfterLostElection...)."""
    peer = Peer(pre_vote=pre_vote)
    peer.lazy = True
    peer.node.campaign()
    peer.take()
    peer.step(Heartbeat(to="1", sender="2", term=peer.raft.term))
    assert FOLLOWER is peer.raft.role

    peer.persist()
    peer.take()

    assert (FOLLOWER, {}) == (peer.raft.role, peer.raft.tracker.votes)


def test_the_own_pre_vote_comes_after_it_is_won() -> None:
    """The others are enough; it says nothing in the election that follows.

    (TestCandidateDeliversPreCandidateSelfVoteAfterBecomingCandidate.)
    """
    peer = Peer(pre_vote=True)
    peer.lazy = True
    peer.node.campaign()
    peer.take()
    for sender in "23":
        peer.step(RequestVoteResponse(to="1", sender=sender, term=1, pre_vote=True))
    assert (CANDIDATE, 1) == peer.state

    peer.persist(1)
    assert (CANDIDATE, {}) == (peer.raft.role, peer.raft.tracker.votes)
    peer.step(RequestVoteResponse(to="1", sender="2", term=1))
    assert CANDIDATE is peer.raft.role

    peer.persist()
    assert LEADER is peer.raft.role


def test_the_own_acknowledgement_comes_after_the_term_is_over() -> None:
    """The write of the old leader's entries ends when it follows another (TestLeaderMsgAppSelfAckAfterTermChange)."""
    peer = in_role(LEADER)
    peer.lazy = True
    peer.node.propose(b"some data")
    peer.take()
    peer.step(Heartbeat(to="1", sender="2", term=2))

    peer.persist()
    peer.take()

    assert (FOLLOWER, 2) == peer.state
    assert 0 == peer.raft.log.committed


def test_a_stale_vote_is_not_counted() -> None:
    """A grant of an older term elects nobody in the next (little-raft#44)."""
    peer = Peer()
    peer.node.campaign()
    peer.take()
    peer.node.campaign()
    peer.take()

    peer.step(RequestVoteResponse(to="1", sender="2", term=1))
    assert (CANDIDATE, 2) == peer.state

    peer.step(RequestVoteResponse(to="1", sender="2", term=2))
    assert (LEADER, 2) == peer.state


def test_a_late_pre_vote_is_not_counted_as_a_vote() -> None:
    """A grant of the pre-vote carries the term of the election that follows it, and has no say in that."""
    peer = Peer("1", "12345", pre_vote=True)
    peer.node.campaign()
    peer.take()
    for voter in "2345":
        peer.step(RequestVoteResponse(to="1", sender=voter, term=1, pre_vote=True))
    assert (CANDIDATE, 1) == peer.state

    for voter in "23":
        peer.step(RequestVoteResponse(to="1", sender=voter, term=1))
    assert (LEADER, 1) == peer.state


def test_a_late_refusal_of_the_pre_vote_is_none_of_the_vote() -> None:
    """Whoever would not have been for it, as it heard a leader then, may be for it now."""
    peer = Peer(pre_vote=True)
    peer.node.campaign()
    peer.take()
    peer.step(RequestVoteResponse(to="1", sender="2", term=1, pre_vote=True))
    assert (CANDIDATE, 1) == peer.state

    for voter in "23":
        peer.step(RequestVoteResponse(to="1", sender=voter, term=1, reject=True, pre_vote=True))
    peer.step(RequestVoteResponse(to="1", sender="3", term=1))

    assert (LEADER, 1) == peer.state


def test_a_late_vote_is_not_counted_as_a_pre_vote() -> None:
    """It was given for an election that is over: nobody has said that he would elect this node in the next one."""
    peer = Peer("1", "12345", pre_vote=True)
    peer.raft.become_candidate()
    peer.take()
    peer.node.campaign()
    peer.take()
    assert (PRE_CANDIDATE, 1) == peer.state

    for voter in "234":
        peer.step(RequestVoteResponse(to="1", sender=voter, term=1))

    assert (PRE_CANDIDATE, 1) == peer.state


@pytest.mark.parametrize(
    "message",
    [
        RequestVote(to="1", sender="2", term=1, last_index=1, last_term=1),
        AppendEntries(to="1", sender="2", term=1),
        Heartbeat(to="1", sender="2", term=1),
    ],
    ids=["a vote", "an append", "a heartbeat"],
)
def test_the_election_timer_starts_anew(message: Message) -> None:
    """Whoever gives a vote, or hears of the leader, waits a whole timeout again (5.2)."""
    peer = Peer(term=1, election_ticks=10)
    peer.tick(9)

    peer.step(message)

    assert [] == peer.tick(9)


@pytest.mark.parametrize(
    "message",
    [
        RequestVote(to="1", sender="2", term=3, last_index=1, last_term=1, pre_vote=True),
        AppendEntries(to="1", sender="2", term=1),
        Heartbeat(to="1", sender="2", term=1),
    ],
    ids=["a pre-vote", "an append of an older term", "a heartbeat of an older term"],
)
def test_the_election_timer_runs_on(message: Message) -> None:
    """Neither who only asks nor who leads no more keeps others from campaigning (5.2; openraft#2080)."""
    peer = Peer(term=2, election_ticks=10, check_quorum=True)
    peer.tick(9)

    assert peer.step(message)  # it is answered

    assert 9 == peer.raft.election_elapsed


@pytest.mark.parametrize("pre_vote", [False, True])
def test_who_knows_the_leader_of_a_term_elects_nobody_else_in_it(pre_vote: bool) -> None:
    """That it has not voted for that one makes no difference, nor that it is only asked whether it would (etcd)."""
    peer = Peer(term=2)
    peer.step(Heartbeat(to="1", sender="2", term=2))

    sent = peer.step(RequestVote(to="1", sender="3", term=2, last_index=9, last_term=2, pre_vote=pre_vote))

    assert [RequestVoteResponse(to="3", sender="1", term=2, reject=True, pre_vote=pre_vote)] == sent
    assert NO_NODE == peer.raft.vote


def test_a_refused_vote_does_not_delay_the_own_campaign() -> None:
    """A candidate that cannot win must not hold up one that can (5.2: only granting a vote resets the timer)."""
    peer = Peer(log=terms(1, 1), term=1, vote="3")
    peer.raft.election_elapsed = 9

    peer.step(RequestVote(to="1", sender="2", term=1))

    assert 9 == peer.raft.election_elapsed


def test_a_vote_stands_when_the_candidate_steps_down() -> None:
    """A candidate that follows another in the same term has voted in it already (akka-raft#56)."""
    peer = Peer()
    peer.node.campaign()
    peer.take()
    peer.step(AppendEntries(to="1", sender="2", term=1))
    assert (FOLLOWER, 1, "1") == (*peer.state, peer.raft.vote)

    sent = peer.step(RequestVote(to="1", sender="3", term=1, last_index=9, last_term=9))

    assert [RequestVoteResponse(to="3", sender="1", term=1, reject=True)] == sent


@pytest.mark.parametrize(
    ("elapsed", "probability", "exactly"),
    [(5, 0.0, True), (10, 0.1, False), (13, 0.4, False), (15, 0.6, False), (18, 0.9, False), (20, 1.0, True)],
)
def test_past_the_election_timeout(elapsed: int, probability: float, exactly: bool) -> None:
    """The timeout is drawn evenly from [ET, 2 ET - 1] (TestPastElectionTimeout)."""
    peer = Peer("1", "1", election_ticks=10)
    draws = 4_000
    past = 0
    for _ in range(draws):
        peer.raft.become_follower(0, NO_NODE)
        peer.raft.election_elapsed = elapsed
        past += peer.raft.past_election_timeout()

    assert probability == (past / draws if exactly else round(past / draws, 1))


@pytest.mark.parametrize("role", Role)
def test_everybody_steps_down_for_a_newer_term(role: Role) -> None:
    """By a vote request without knowing the leader yet, by an append with it (TestAllServerStepdown)."""
    last_index = 1 if role is LEADER else 0
    peer = in_role(role)
    peer.step(RequestVote(to="1", sender="2", term=3, last_term=3))
    assert (FOLLOWER, 3, NO_NODE) == (*peer.state, peer.raft.leader)
    assert last_index == peer.raft.log.last_index()

    # Upstream's append claims a previous term of 3 at index 0, which no log has: here it fits the origin.
    peer.step(AppendEntries(to="1", sender="2", term=3))
    assert (FOLLOWER, 3, "2") == (*peer.state, peer.raft.leader)
    assert last_index == peer.raft.log.last_index()


@pytest.mark.parametrize(
    ("node_id", "voters", "promotable"), [("1", "1", True), ("1", "123", True), ("1", "", False), ("1", "23", False)]
)
def test_only_members_campaign(node_id: str, voters: str, promotable: bool) -> None:
    """Who is no member never campaigns (TestPromotable)."""
    peer = Peer(node_id, voters)
    assert promotable == peer.raft.promotable()

    peer.tick(20)

    assert promotable == (peer.raft.role is not FOLLOWER)
