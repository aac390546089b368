"""How much is sent ahead of the answers, and how much is kept: etcd-io/raft's raft_test and raft_flow_control_test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from logs import terms
from network import Peer, accept, only, three

from replikv.raft.core import ProposalDroppedError
from replikv.raft.entries import NO_NODE, Entry, payload_bytes
from replikv.raft.messages import AppendEntries, AppendEntriesResponse, Heartbeat, HeartbeatResponse
from replikv.raft.progress import Progress, ProgressState

SOME = b"somedata"


def leader_of(members: str, *, log: Sequence[Entry] = (), **config: Any) -> tuple[Peer, Progress]:
    """A leader of term 1 that has sent nothing yet, and its progress of node 2."""
    peer = Peer("1", members, log=log, **config)
    peer.raft.become_candidate()
    peer.raft.become_leader()
    peer.take()
    return peer, peer.raft.tracker.progress["2"]


def propose(peer: Peer, data: bytes = SOME) -> list[AppendEntries]:
    """Propose at the leader; the appends that were sent."""
    peer.node.propose(data)
    return only(peer.take(), AppendEntries)


def acknowledge(peer: Peer, index: int, sender: str = "2") -> list[AppendEntries]:
    """Node 2 acknowledges the index; the appends that were sent."""
    return only(peer.step(AppendEntriesResponse(to="1", sender=sender, term=1, index=index)), AppendEntries)


def answer_heartbeat(peer: Peer) -> list[AppendEntries]:
    """Node 2 answers a heartbeat; the appends that were sent."""
    return only(peer.step(HeartbeatResponse(to="1", sender="2", term=1)), AppendEntries)


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "reject", "match", "next_index", "sent"),
    [
        pytest.param(3, True, 0, 3, [], id="stale reject"),
        pytest.param(2, True, 0, 2, [(1, 0)], id="reject: probe one lower"),
        pytest.param(2, False, 2, 4, [(2, 2), (2, 2)], id="accept: replicate, and tell everybody the commit"),
        pytest.param(0, False, 0, 4, [(0, 0)], id="accept at the origin: replicate"),
    ],
)
def test_an_answer_moves_the_progress(
    index: int, reject: bool, match: int, next_index: int, sent: list[tuple[int, int]]
) -> None:
    """Log L[1,1] and the no-op at 3; 2 is probed at 3 (TestLeaderAppResp). sent = (previous index, commit)."""
    peer, progress = leader_of("123", log=terms(1, 1))
    assert (0, 3) == (progress.match, progress.next)

    messages = only(
        peer.step(AppendEntriesResponse(to="1", sender="2", term=1, index=index, reject=reject, hint_index=index)),
        AppendEntries,
    )

    assert (match, next_index) == (progress.match, progress.next)
    assert sent == [(message.previous_index, message.commit) for message in messages]


@pytest.mark.parametrize(("state", "next_index"), [(ProgressState.REPLICATE, 6), (ProgressState.PROBE, 2)])
def test_sending_moves_next_only_while_replicating(state: ProgressState, next_index: int) -> None:
    """A probe is not known to arrive at a matching log (TestLeaderIncreaseNext)."""
    peer, progress = leader_of("12", log=terms(1, 2, 3))
    progress.state, progress.next = state, 2

    propose(peer)

    assert next_index == progress.next


def test_the_leader_acknowledges_itself_when_durable() -> None:
    """Own entries count in its own progress only after the sync (TestProgressLeader)."""
    peer = Peer("1", "12")
    peer.lazy = True
    peer.raft.become_candidate()
    peer.raft.become_leader()
    for _ in range(5):
        peer.node.propose(b"foo")
    peer.take()
    own = peer.raft.tracker.progress["1"]
    assert 0 == own.match
    assert [b"", *[b"foo"] * 5] == [entry.data for entry in peer.raft.log.unstable.entries]

    peer.persist()
    assert (6, 7) == (own.match, own.next)


def test_an_answer_resumes_each_follower_by_itself() -> None:
    """Whoever has answered its probe is sent entries, the other waits (TestMsgAppRespWaitReset)."""
    peer = Peer()
    peer.lead(acknowledged=False)
    acknowledge(peer, 1)
    assert 1 == peer.raft.log.committed

    [to_2] = propose(peer, b"")
    assert ("2", (Entry(2, 1),)) == (to_2.to, to_2.entries)

    [to_3] = acknowledge(peer, 1, sender="3")
    assert ("3", (Entry(2, 1),)) == (to_3.to, to_3.entries)


def test_a_follower_that_was_paused_hears_of_the_commit() -> None:
    """What was committed while it did not answer is told with the next message, though there are no entries to send."""
    peer = Peer()
    peer.lead(acknowledged=False)
    acknowledge(peer, 1)

    [to_3] = acknowledge(peer, 1, sender="3")

    assert ("3", (), 1) == (to_3.to, to_3.entries, to_3.commit)


def test_a_rejection_while_replicating_leads_back_to_probing() -> None:
    """A message was lost: start again behind what is known to match, one message at a time (5.3)."""
    peer, progress = leader_of("12")
    progress.become_replicate()
    propose(peer)
    acknowledge(peer, 2)
    propose(peer)
    propose(peer)

    [again] = only(
        peer.step(AppendEntriesResponse(to="1", sender="2", term=1, index=3, reject=True, hint_index=2, hint_term=1)),
        AppendEntries,
    )

    assert (2, (3, 4)) == (again.previous_index, tuple(entry.index for entry in again.entries))
    assert (ProgressState.PROBE, 3, True) == (progress.state, progress.next, progress.paused)


def test_an_unreachable_follower_is_probed_again() -> None:
    """What was sent ahead may be lost (TestRecvMsgUnreachable)."""
    peer, progress = leader_of("12", log=terms(1, 1, 1))
    progress.match = 3
    progress.become_replicate()
    progress.next = 6

    peer.node.report_unreachable("2")

    assert (ProgressState.PROBE, 4) == (progress.state, progress.next)


def test_an_unreachable_follower_is_found_again_without_proposals() -> None:
    """It has everything: its answers to a heartbeat and to the empty probe behind it are enough to send ahead again."""
    peer, progress = leader_of("12")
    acknowledge(peer, 1)
    peer.node.report_unreachable("2")
    assert (ProgressState.PROBE, 1) == (progress.state, progress.match)

    [probe] = answer_heartbeat(peer)
    assert (1, ()) == (probe.previous_index, probe.entries)
    acknowledge(peer, 1)

    assert ProgressState.REPLICATE is progress.state


def test_who_awaits_a_snapshot_is_not_probed_when_its_connection_breaks() -> None:
    """The snapshot comes on another one: whoever sends it says what became of it."""
    peer, progress = leader_of("12", log=terms(1, 1, 1))
    progress.become_snapshot(3)

    peer.node.report_unreachable("2")

    assert (ProgressState.SNAPSHOT, 3) == (progress.state, progress.pending_snapshot)


# -- probing -----------------------------------------------------------------------------------------------------------


def test_a_heartbeat_answer_resumes() -> None:
    """Sending a heartbeat does not, its answer does (TestProgressResumeByHeartbeatResp)."""
    peer, progress = leader_of("12")
    progress.paused = True
    peer.beat()
    assert progress.paused

    progress.become_replicate()
    progress.paused = True
    answer_heartbeat(peer)
    assert not progress.paused


def test_a_probe_is_sent_alone() -> None:
    """Further proposals wait until it is answered (TestProgressPaused)."""
    peer, _ = leader_of("12")

    assert [1, 0, 0] == [len(propose(peer)) for _ in range(3)]


def test_a_lost_probe_is_sent_again() -> None:
    """Once per answer to a heartbeat, not per heartbeat, not per proposal (TestSendAppendForProgressProbe)."""
    peer, progress = leader_of("12")
    [first] = propose(peer)
    assert (0, True) == (first.previous_index, progress.paused)

    for _ in range(3):
        for _ in range(10):
            assert [] == propose(peer)
        assert [Heartbeat] == [type(message) for message in peer.tick()]
        assert progress.paused

        [again] = answer_heartbeat(peer)
        assert (0, True) == (again.previous_index, progress.paused)


def test_nothing_is_sent_beside_a_snapshot() -> None:
    """Entries wait until the snapshot has arrived (TestSendAppendForProgressSnapshot)."""
    peer, progress = leader_of("12")
    progress.become_snapshot(10)

    assert [] == [message for _ in range(10) for message in propose(peer)]


# -- the window --------------------------------------------------------------------------------------------------------


def test_replicating_sends_each_proposal_at_once() -> None:
    """Ahead of the answers (TestSendAppendForProgressReplicate)."""
    peer, progress = leader_of("12")
    progress.become_replicate()

    assert [1] * 10 == [len(propose(peer)) for _ in range(10)]


def test_a_full_window_stops_the_flow() -> None:
    """256 messages may be on their way, no more (TestMsgAppFlowControlFull)."""
    peer, progress = leader_of("12", inflight_messages_max=256)
    progress.become_replicate()

    assert [1] * 256 == [len(propose(peer)) for _ in range(256)]
    assert progress.is_paused()
    assert [0] * 10 == [len(propose(peer)) for _ in range(10)]


def test_an_acknowledgement_moves_the_window() -> None:
    """It frees all slots up to its index; a stale one frees none (TestMsgAppFlowControlMoveForward)."""
    peer, progress = leader_of("12", inflight_messages_max=16)
    progress.become_replicate()
    for _ in range(16):
        propose(peer)

    # Index 1 is the no-op, which went with the first proposal.
    for index in range(2, 16):
        acknowledge(peer, index)
        assert 15 == progress.inflights.count
        assert 1 == len(propose(peer))
        assert progress.is_paused()

        for stale in range(index):
            acknowledge(peer, stale)
            assert progress.is_paused()


def test_a_full_window_lets_empty_messages_through() -> None:
    """One per answer to a heartbeat: it finds out what was lost (TestMsgAppFlowControlRecvHeartbeat)."""
    peer, progress = leader_of("12", inflight_messages_max=16)
    progress.become_replicate()
    for _ in range(16):
        propose(peer)

    for _ in range(5):
        [message] = answer_heartbeat(peer)
        assert () == message.entries
        assert progress.is_paused()
        assert [] == propose(peer)


def test_the_window_counts_messages_and_bytes() -> None:
    """Proposals of 1,000 and 5,000 bytes through 3 messages and 9,000 bytes (TestProgressFlowControl)."""
    peer, progress = leader_of("12", inflight_messages_max=3, inflight_bytes_max=9000, message_bytes_max=2048)
    progress.become_probe()
    sent: list[AppendEntries] = []
    for number in range(22):
        sent += propose(peer, b"a" * (5000 if 10 <= number < 16 else 1000))
    assert [[b"", b"a" * 1000]] == [[entry.data for entry in message.entries] for message in sent]

    counts = []
    while sent:
        sent = only(peer.step(accept(sent[-1])), AppendEntries)
        counts.append([len(message.entries) for message in sent])

    # The last answer advances the commit index, which is told by empty messages.
    assert [[2, 2, 2], [2, 1, 1], [1, 1], [1, 1], [1, 2, 2], [2]] == [
        full for full in ([count for count in batch if count] for batch in counts) if full
    ]


# -- sizes and limits --------------------------------------------------------------------------------------------------


def test_messages_are_limited() -> None:
    """A follower that was cut off catches up in messages of limited size (TestAppendPagination)."""
    network = three(message_bytes_max=2048)
    network.campaign("1")
    network.isolate("1")
    for _ in range(5):
        network.propose("1", b"a" * 1000)
    network.recover()
    del network.sent[:]

    network.beat("1")

    sizes = [payload_bytes(message.entries) for message in only(network.sent, AppendEntries)]
    assert 1024 < max(sizes) <= 2048
    assert [5] * 3 == [len(peer.payloads) for peer in network]


def test_batches_to_apply_are_limited() -> None:
    """Committed entries are handed out in batches of limited size (TestCommitPagination)."""
    peer = Peer("1", "1", applying_bytes_max=2048)
    peer.lead()
    for _ in range(3):
        peer.node.propose(b"a" * 1000)

    peer.take()

    assert [1, 2, 1] == peer.batches


def test_the_uncommitted_tail_is_limited() -> None:
    """A full one takes only empty proposals, an empty one takes any (TestUncommittedEntryLimit)."""
    peer, progress = leader_of("123", uncommitted_bytes_max=1024 * len(SOME))
    progress.become_replicate()
    for _ in range(1024):
        propose(peer)
    with pytest.raises(ProposalDroppedError, match="uncommitted"):
        peer.node.propose(SOME)

    acknowledge(peer, 1025)
    assert (1025, 0) == (len(peer.applied), peer.raft.uncommitted_bytes)

    # Upstream proposes 2,048 entries at once; a proposal is one entry here.
    propose(peer, SOME * 2048)
    with pytest.raises(ProposalDroppedError, match="uncommitted"):
        peer.node.propose(SOME)
    propose(peer, b"")
    assert 1027 == peer.raft.log.last_index()


def test_the_log_stays_bounded_without_a_quorum() -> None:
    """A leader that is cut off refuses what it is asked (TestRawNodeBoundedLogGrowthWithPartition, etcd#10167)."""
    peer, progress = leader_of("123", uncommitted_bytes_max=16 * len(SOME))
    progress.become_replicate()
    refused = 0
    for _ in range(1024):
        try:
            propose(peer)
        except ProposalDroppedError:
            refused += 1
    assert (1024 - 16, 1 + 16) == (refused, peer.raft.log.last_index())

    # The account is settled when entries are applied, not when they are committed.
    peer.node.step(AppendEntriesResponse(to="1", sender="2", term=1, index=17))
    assert (17, 16 * len(SOME)) == (peer.raft.log.committed, peer.raft.uncommitted_bytes)
    peer.take()
    assert 0 == peer.raft.uncommitted_bytes


def test_a_new_leadership_starts_with_an_empty_account() -> None:
    """Entries of earlier terms are not counted, and their commit takes nothing off: the account never falls below 0."""
    network = three(uncommitted_bytes_max=len(SOME))
    network.campaign("1")
    network.isolate("1")
    network.propose("1", SOME)
    network["1"].raft.become_follower(2, NO_NODE)
    network.recover()
    network.ignore(AppendEntries)
    network.campaign("1")
    assert (3, 0) == (network["1"].raft.log.last_index(), network["1"].raft.uncommitted_bytes)

    network.recover()
    network["1"].node.tick()
    network.settle()
    assert ([SOME], 0) == (network["1"].payloads, network["1"].raft.uncommitted_bytes)


def test_entries_of_earlier_leaders_make_no_room() -> None:
    """They take none either: the limit holds for what this leader was given (raft-rs: uncommitted_state)."""
    peer = Peer("1", "12", log=[Entry(1, 1, SOME), Entry(2, 1, SOME)], term=1, uncommitted_bytes_max=2 * len(SOME))
    peer.lead(acknowledged=False)
    peer.node.propose(SOME)
    peer.node.propose(SOME)
    peer.take()

    peer.step(AppendEntriesResponse(to="1", sender="2", term=2, index=3))
    assert ([SOME, SOME], 2 * len(SOME)) == (peer.payloads, peer.raft.uncommitted_bytes)
    with pytest.raises(ProposalDroppedError, match="uncommitted"):
        peer.node.propose(SOME)

    peer.step(AppendEntriesResponse(to="1", sender="2", term=2, index=5))
    assert 0 == peer.raft.uncommitted_bytes
