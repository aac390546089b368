"""The Raft paper, section by section: etcd-io/raft's raft_paper_test."""

from __future__ import annotations

import pytest
from logs import terms
from network import FRESH, HOLE, Peer, accept, net, only

from replikv.raft.entries import NO_NODE, Entry
from replikv.raft.messages import AppendEntries, AppendEntriesResponse, Heartbeat, RequestVote, RequestVoteResponse
from replikv.raft.roles import Role

SOME = b"some data"


def vote(sender: str, *, term: int, granted: bool = True) -> RequestVoteResponse:
    """A voter's answer to node 1."""
    return RequestVoteResponse(to="1", sender=sender, term=term, reject=not granted)


# -- 5.1 Raft basics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER])
def test_a_newer_term_is_followed(role: Role) -> None:
    """Whoever hears of a newer term takes it and follows (5.1; TestFollower/Candidate/LeaderUpdateTermFromMessage)."""
    peer = Peer()
    if role is Role.FOLLOWER:
        peer.raft.become_follower(1, "2")
    else:
        peer.node.campaign()
        peer.take()
    if role is Role.LEADER:
        peer.step(vote("2", term=1))
    assert (role, 1) == peer.state

    peer.step(AppendEntries(to="1", sender="2", term=2))

    assert (Role.FOLLOWER, 2, "2") == (*peer.state, peer.raft.leader)


def test_an_older_term_is_turned_away() -> None:
    """A request with a stale term changes nothing (5.1; TestRejectStaleTermMessage)."""
    peer = Peer(term=2)

    sent = peer.step(AppendEntries(to="1", sender="2", term=1, entries=tuple(terms(1))))

    assert [] == sent
    assert [] == peer.log
    assert (Role.FOLLOWER, 2, NO_NODE) == (*peer.state, peer.raft.leader)


# -- 5.2 Leader election -----------------------------------------------------------------------------------------------


def test_a_node_starts_as_a_follower() -> None:
    """When servers start up, they begin as followers (5.2; TestStartAsFollower)."""
    assert (Role.FOLLOWER, 0) == Peer().state


def test_a_leader_sends_heartbeats() -> None:
    """Each heartbeat interval the leader tells everybody that it leads, without entries (5.2; TestLeaderBcastBeat)."""
    peer = Peer()
    peer.lead(acknowledged=False)
    for number in range(10):
        peer.node.propose(b"%d" % number)
    peer.take()

    sent = peer.tick()

    assert [Heartbeat(to=node_id, sender="1", term=1, commit=0) for node_id in "23"] == sent


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_an_election_is_started_after_the_timeout(role: Role) -> None:
    """Without a leader, or without a winner, a new election begins in the next term.

    5.2; TestFollowerStartElection, TestCandidateStartNewElection.
    """
    peer = Peer()
    if role is Role.FOLLOWER:
        peer.raft.become_follower(1, "2")
    else:
        peer.raft.become_candidate()
    peer.take()

    sent = peer.tick(19)

    assert (Role.CANDIDATE, 2) == peer.state
    assert "1" == peer.raft.vote
    assert {"1": True} == peer.raft.tracker.votes
    assert [RequestVote(to=node_id, sender="1", term=2) for node_id in "23"] == sent


@pytest.mark.parametrize(
    ("size", "answers", "role"),
    [
        (1, "", Role.LEADER),
        (3, "2y 3y", Role.LEADER),
        (3, "2y", Role.LEADER),
        (5, "2y 3y 4y 5y", Role.LEADER),
        (5, "2y 3y 4y", Role.LEADER),
        (5, "2y 3y", Role.LEADER),
        (3, "2n 3n", Role.FOLLOWER),
        (5, "2n 3n 4n 5n", Role.FOLLOWER),
        (5, "2y 3n 4n 5n", Role.FOLLOWER),
        (3, "", Role.CANDIDATE),
        (5, "2y", Role.CANDIDATE),
        (5, "2n 3n", Role.CANDIDATE),
        (5, "", Role.CANDIDATE),
    ],
)
def test_one_round_of_votes(size: int, answers: str, role: Role) -> None:
    """A majority of grants elects, a majority of refusals ends it, all else waits (TestLeaderElectionInOneRoundRPC)."""
    peer = Peer("1", "12345"[:size])
    peer.node.campaign()
    peer.take()

    for answer in answers.split():
        peer.step(vote(answer[0], term=1, granted=answer[1] == "y"))

    assert (role, 1) == peer.state


@pytest.mark.parametrize(
    ("voted", "candidate", "reject"),
    [
        (NO_NODE, "2", False),
        (NO_NODE, "3", False),
        ("2", "2", False),
        ("3", "3", False),
        ("2", "3", True),
        ("3", "2", True),
    ],
)
def test_one_vote_per_term(voted: str, candidate: str, reject: bool) -> None:
    """A vote once given stands for the term, also after a restart (5.2; TestFollowerVote, PySyncObj)."""
    peer = Peer(term=1, vote=voted)

    sent = peer.step(RequestVote(to="1", sender=candidate, term=1))

    assert [RequestVoteResponse(to=candidate, sender="1", term=1, reject=reject)] == sent
    assert (voted if reject else candidate) == peer.storage.hard_state.vote


@pytest.mark.parametrize("term", [1, 2])
def test_a_candidate_gives_way_to_a_leader(term: int) -> None:
    """A candidate that hears from a leader of its term or a newer one follows it (5.2; TestCandidateFallback)."""
    peer = Peer()
    peer.node.campaign()
    peer.take()

    peer.step(AppendEntries(to="1", sender="2", term=term))

    assert (Role.FOLLOWER, term, "2") == (*peer.state, peer.raft.leader)


def reset(peer: Peer, role: Role) -> None:
    """Enter the role anew, which draws a new timeout."""
    if role is Role.FOLLOWER:
        peer.raft.become_follower(peer.raft.term + 1, "2")
    else:
        peer.raft.become_candidate()
    peer.raft.messages_after_append.clear()


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_election_timeouts_are_random(role: Role) -> None:
    """Timeouts cover the whole interval and nothing else (5.2; TestFollower/CandidateElectionTimeoutRandomized)."""
    peer = Peer(election_ticks=10)
    timeouts = set()
    for _ in range(500):
        reset(peer, role)
        ticks = 0
        while not peer.raft.messages_after_append and ticks < 100:
            peer.raft.tick()
            ticks += 1
        timeouts.add(ticks)

    assert set(range(10, 20)) == timeouts


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_election_timeouts_seldom_collide(role: Role) -> None:
    """Split votes are rare (5.2; TestFollowers/CandidatesElectionTimeoutNonconflict)."""
    peers = [Peer(node_id, "12345", election_ticks=10) for node_id in "12345"]
    collisions = 0
    for _ in range(300):
        for peer in peers:
            reset(peer, role)
        for _ in range(20):
            if timed_out := sum(bool(peer.raft.messages_after_append) for peer in peers):
                break
            for peer in peers:
                peer.raft.tick()
        assert timed_out
        collisions += timed_out > 1

    assert collisions <= 0.3 * 300


# -- 5.3 Log replication -----------------------------------------------------------------------------------------------


def test_replication_starts_with_a_proposal() -> None:
    """The leader appends, and sends before its own sync (5.3, thesis 10.2.1; TestLeaderStartReplication)."""
    peer = Peer()
    peer.lead()
    peer.lazy = True

    peer.node.propose(SOME)
    sent = peer.take()

    entry = Entry(2, 1, SOME)
    assert (2, 1) == (peer.raft.log.last_index(), peer.raft.log.committed)
    assert [entry] == peer.raft.log.unstable.entries
    assert [
        AppendEntries(to=node_id, sender="1", term=1, previous_index=1, previous_term=1, entries=(entry,), commit=1)
        for node_id in "23"
    ] == sent


def test_an_entry_is_committed_by_a_majority() -> None:
    """Then the leader applies it, and tells the followers (5.3; TestLeaderCommitEntry)."""
    peer = Peer()
    peer.lead()
    peer.node.propose(SOME)

    sent = peer.step(*map(accept, only(peer.take(), AppendEntries)))

    assert 2 == peer.raft.log.committed
    assert Entry(2, 1, SOME) == peer.applied[-1]
    assert [("2", 2), ("3", 2)] == [(message.to, message.commit) for message in only(sent, AppendEntries)]


@pytest.mark.parametrize(
    ("size", "acceptors", "committed"),
    [
        (1, "", True),
        (3, "", False),
        (3, "2", True),
        (3, "23", True),
        (5, "", False),
        (5, "2", False),
        (5, "23", True),
        (5, "234", True),
        (5, "2345", True),
    ],
)
def test_acknowledgements_commit(size: int, acceptors: str, committed: bool) -> None:
    """An entry commits once it is on a majority of disks, the leader's included (5.3; TestLeaderAcknowledgeCommit)."""
    peer = Peer("1", "12345"[:size])
    peer.lead()
    peer.node.propose(SOME)

    sent = only(peer.take(), AppendEntries)
    peer.step(*(accept(message) for message in sent if message.to in acceptors))

    assert committed == (peer.raft.log.committed == 2)


def test_the_leader_counts_itself_only_when_durable() -> None:
    """Neither alone nor with others is the leader's own copy counted before its sync (thesis 10.2.1, etcd#14370)."""
    for members, answers in (("1", []), ("12", ["2"])):
        peer = Peer("1", members)
        peer.lead()
        peer.lazy = True
        peer.node.propose(SOME)
        peer.take()
        peer.step(*(AppendEntriesResponse(to="1", sender=sender, term=1, index=2) for sender in answers))
        assert 1 == peer.raft.log.committed

        peer.persist()
        assert 2 == peer.raft.log.committed


@pytest.mark.parametrize("log", [[], terms(2), terms(1, 2), terms(1)])
def test_an_entry_commits_those_before_it(log: list[Entry]) -> None:
    """Also those of earlier leaders, in order (5.3; TestLeaderCommitPrecedingEntries)."""
    peer = Peer(log=log, term=2)
    peer.lead(acknowledged=False)
    peer.node.propose(SOME)

    for node_id in "23":
        peer.step(AppendEntriesResponse(to="1", sender=node_id, term=3, index=len(log) + 2))

    assert [*log, Entry(len(log) + 1, 3), Entry(len(log) + 2, 3, SOME)] == peer.applied


@pytest.mark.parametrize(
    ("data", "commit"), [([b"d1"], 1), ([b"d1", b"d2"], 2), ([b"d2", b"d1"], 2), ([b"d1", b"d2"], 1)]
)
def test_a_follower_applies_what_the_leader_committed(data: list[bytes], commit: int) -> None:
    """In log order, and no further than the leader says (5.3; TestFollowerCommitEntry)."""
    peer = Peer()
    peer.raft.become_follower(1, "2")
    entries = tuple(Entry(index, 1, payload) for index, payload in enumerate(data, 1))

    peer.step(AppendEntries(to="1", sender="2", term=1, entries=entries, commit=commit))

    assert commit == peer.raft.log.committed
    assert list(entries[:commit]) == peer.applied


@pytest.mark.parametrize(
    ("previous", "index", "reject", "hint"),
    [
        ((0, 0), 1, False, (0, 0)),
        ((1, 1), 1, False, (0, 0)),
        ((2, 2), 2, False, (0, 0)),
        ((2, 1), 2, True, (1, 1)),
        ((3, 3), 3, True, (2, 2)),
    ],
)
def test_a_follower_checks_the_previous_entry(
    previous: tuple[int, int], index: int, reject: bool, hint: tuple[int, int]
) -> None:
    """No match: refused, with a hint where it may match (5.3; TestFollowerCheckMsgApp). previous = (index, term)."""
    peer = Peer(log=terms(1, 2), term=2, commit=1)
    peer.raft.become_follower(2, "2")

    sent = peer.step(AppendEntries(to="1", sender="2", term=2, previous_index=previous[0], previous_term=previous[1]))

    assert [
        AppendEntriesResponse(
            to="2", sender="1", term=2, index=index, reject=reject, hint_index=hint[0], hint_term=hint[1]
        )
    ] == sent


@pytest.mark.parametrize(
    ("previous", "entries", "log", "unstable"),
    [
        ((2, 2), terms(3, at=3), terms(1, 2, 3), terms(3, at=3)),
        ((1, 1), terms(3, 4, at=2), terms(1, 3, 4), terms(3, 4, at=2)),
        ((0, 0), terms(1), terms(1, 2), []),
        ((0, 0), terms(3), terms(3), terms(3)),
    ],
)
def test_a_follower_deletes_what_conflicts(
    previous: tuple[int, int], entries: list[Entry], log: list[Entry], unstable: list[Entry]
) -> None:
    """Only what conflicts, and all that follows it; the rest is left (5.3; TestFollowerAppendEntries, akka-raft#66)."""
    peer = Peer(log=terms(1, 2), term=2)
    peer.raft.become_follower(2, "2")
    peer.lazy = True

    peer.step(
        AppendEntries(
            to="1", sender="2", term=4, previous_index=previous[0], previous_term=previous[1], entries=tuple(entries)
        )
    )

    assert (log, unstable) == (peer.log, peer.raft.log.unstable.entries)


@pytest.mark.parametrize(
    "follower",
    [
        pytest.param(terms(1, 1, 1, 4, 4, 5, 5, 6, 6), id="a"),
        pytest.param(terms(1, 1, 1, 4), id="b"),
        pytest.param(terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6), id="c"),
        pytest.param(terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7), id="d"),
        pytest.param(terms(1, 1, 1, 4, 4, 4, 4), id="e"),
        pytest.param(terms(1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3), id="f"),
    ],
)
def test_logs_are_brought_together(follower: list[Entry]) -> None:
    """Whatever a follower misses or has too much of, it ends up with the leader's log (5.3, figure 7).

    TestLeaderSyncFollowerLog. The third node only votes, by hand.
    """
    leader_log = terms(1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    network = net(
        {"log": leader_log, "term": 8, "commit": len(leader_log)},
        {"log": follower, "term": 7},
        HOLE,
    )
    network.campaign("1")
    network.settle(vote("3", term=9))
    assert (Role.LEADER, 9) == network["1"].state

    network.propose("1", b"")

    assert [*leader_log, Entry(11, 9), Entry(12, 9)] == network["1"].log == network["2"].log
    assert 12 == network["1"].raft.log.committed == network["2"].raft.log.committed
    assert network["1"].applied == network["2"].applied


# -- 5.4 Safety --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("log", "term"), [(terms(1), 2), (terms(1, 2), 3)])
def test_a_vote_request_tells_the_own_log(log: list[Entry], term: int) -> None:
    """A candidate says where its log ends (5.4.1; TestVoteRequest)."""
    peer = Peer()
    peer.step(AppendEntries(to="1", sender="2", term=term - 1, entries=tuple(log)))

    sent = peer.tick(19)

    assert [
        RequestVote(to=node_id, sender="1", term=term, last_index=len(log), last_term=log[-1].term) for node_id in "23"
    ] == sent


@pytest.mark.parametrize(
    ("log", "last_term", "last_index", "reject"),
    [
        (terms(1), 1, 1, False),
        (terms(1), 1, 2, False),
        (terms(1, 1), 1, 1, True),
        (terms(1), 2, 1, False),
        (terms(1), 2, 2, False),
        (terms(1, 1), 2, 1, False),
        (terms(2), 1, 1, True),
        (terms(2), 1, 2, True),
        (terms(2, 2), 1, 1, True),
    ],
)
def test_a_voter_refuses_an_older_log(log: list[Entry], last_term: int, last_index: int, reject: bool) -> None:
    """A vote is refused if the voter's own log is more up-to-date (5.4.1; TestVoter)."""
    peer = Peer("1", "12", log=log)

    sent = peer.step(RequestVote(to="1", sender="2", term=3, last_index=last_index, last_term=last_term))

    assert [RequestVoteResponse(to="2", sender="1", term=3, reject=reject)] == sent


@pytest.mark.parametrize(("index", "committed"), [(1, 0), (2, 0), (3, 3)])
def test_only_entries_of_the_own_term_are_committed_by_counting(index: int, committed: int) -> None:
    """Figure 8: an older term's entry commits only under one of the leader's own (5.4.2, logcabin#44).

    TestLeaderOnlyCommitsLogFromCurrentTerm.
    """
    peer = Peer("1", "12", log=terms(1, 2), term=2)
    peer.lead(acknowledged=False)
    peer.node.propose(b"")
    peer.take()

    peer.step(AppendEntriesResponse(to="1", sender="2", term=3, index=index))

    assert committed == peer.raft.log.committed


def test_a_vote_is_durable_before_it_leaves() -> None:
    """Term and vote are on disk before anybody hears of them (figure 2; known from PySyncObj)."""
    peer = Peer()
    peer.lazy = True

    assert [] == peer.step(RequestVote(to="1", sender="2", term=1))
    assert [RequestVoteResponse(to="2", sender="1", term=1)] == peer.persist()

    restarted = Peer(storage=peer.storage)
    assert [RequestVoteResponse(to="3", sender="1", term=1, reject=True)] == restarted.step(
        RequestVote(to="1", sender="3", term=1)
    )


def test_a_vote_in_a_term_that_is_durable_already_is_written_too() -> None:
    """The term came with a candidate that was refused: the vote for another one in it is news for the disk."""
    peer = Peer(log=terms(1, 1), term=1)
    refused = peer.step(RequestVote(to="1", sender="3", term=2, last_index=1, last_term=1))
    assert [True] == [message.reject for message in only(refused, RequestVoteResponse)]
    assert (2, "") == peer.storage.hard_state[:2]

    peer.step(RequestVote(to="1", sender="2", term=2, last_index=2, last_term=1))

    assert (2, "2") == peer.storage.hard_state[:2]


def test_entries_are_durable_before_they_are_acknowledged() -> None:
    """An acknowledgement leaves only after the entries it covers are on disk (figure 2; thesis 10.2.1)."""
    peer = Peer()
    peer.lazy = True
    message = AppendEntries(to="1", sender="2", term=1, entries=tuple(terms(1, 1)), commit=2)

    assert [] == peer.step(message)
    assert [] == peer.applied
    assert [accept(message)] == peer.persist()
    assert terms(1, 1) == peer.storage.entries(1, 3)
    peer.take()
    assert terms(1, 1) == peer.applied


def test_a_late_sync_of_replaced_entries_acknowledges_nothing() -> None:
    """A write that was overtaken twice must not make the newest entries look durable (ABA).

    Entry 1 is of term 1, then of term 2, then of term 1 again, all before the first sync ends: storage still has to
    pass through the entry of term 2.
    """
    peer = Peer()
    peer.lazy = True
    first, second = tuple(terms(1)), tuple(terms(2))
    for term, entries in ((1, first), (2, second), (3, first)):
        peer.step(AppendEntries(to="1", sender="2", term=term, entries=entries))

    peer.persist(1)
    assert 0 == peer.raft.log.stable_index()

    peer.persist()
    assert (1, terms(1)) == (peer.raft.log.stable_index(), peer.storage.entries(1, 2))


def test_entries_of_an_older_term_become_stable_with_the_newer() -> None:
    """A late sync that was ignored is made good by the next write: nothing stays unstable for ever."""
    peer = Peer()
    peer.lazy = True
    peer.step(AppendEntries(to="1", sender="2", term=1, entries=tuple(terms(1, 1)), commit=2))
    peer.step(RequestVote(to="1", sender="3", term=2, last_index=2, last_term=1))

    peer.persist()
    peer.take()

    assert 2 == peer.raft.log.stable_index()
    assert terms(1, 1) == peer.applied


def test_fresh_peers_elect_and_agree() -> None:
    """The whole of it: an election, a proposal, the same log everywhere."""
    network = net(FRESH, FRESH, FRESH)
    network.campaign("1")
    network.propose("1", SOME)

    assert [[Entry(1, 1), Entry(2, 1, SOME)]] * 3 == [peer.applied for peer in network]
