"""Heartbeats and their answers: etcd-io/raft's raft_test, section of heartbeats."""

from __future__ import annotations

import pytest
from logs import snapshot_at, terms
from network import Peer, accept, only

from replikv.raft.entries import NO_NODE
from replikv.raft.messages import AppendEntries, Heartbeat, HeartbeatResponse
from replikv.raft.roles import Role
from replikv.raft.stable import MemoryStorage


@pytest.mark.parametrize(("commit", "committed"), [(3, 3), (1, 2)])
def test_a_follower_commits_what_the_heartbeat_says(commit: int, committed: int) -> None:
    """Forwards only; the answer hands the read position back (TestHandleHeartbeat)."""
    peer = Peer("1", "12", log=terms(1, 2, 3), term=3, commit=2)

    sent = peer.step(Heartbeat(to="1", sender="2", term=3, commit=commit, read_position=7))

    assert committed == peer.raft.log.committed
    assert [HeartbeatResponse(to="2", sender="1", term=3, read_position=7)] == sent


def test_a_heartbeat_answer_of_a_follower_that_lags_is_answered_with_entries() -> None:
    """Until it has acknowledged all there is (TestHandleHeartbeatResp)."""
    peer = Peer("1", "12", log=terms(1, 2, 3), term=3)
    peer.lead(acknowledged=False)
    answer = HeartbeatResponse(to="1", sender="2", term=4)

    assert [AppendEntries] == [type(message) for message in peer.step(answer)]
    [append] = only(peer.step(answer), AppendEntries)
    assert (3, 3) == (append.previous_index, append.previous_term)

    peer.step(accept(append))
    assert [] == peer.step(answer)


def test_a_heartbeat_never_tells_more_than_the_follower_has() -> None:
    """Its commit is the lower one of the leader's and the follower's match (TestBcastBeat)."""
    storage = MemoryStorage()
    storage.install(snapshot_at(1000, 1, "1", "2", "3"))
    peer = Peer(storage=storage)
    peer.lead(acknowledged=False)
    for number in range(10):
        peer.node.propose(b"%d" % number)
    peer.take()
    for node_id, match in (("2", 5), ("3", peer.raft.log.last_index())):
        peer.raft.tracker.progress[node_id].match = match

    peer.beat()

    assert [
        Heartbeat(to="2", sender="1", term=1, commit=5),
        Heartbeat(to="3", sender="1", term=1, commit=1000),
    ] == peer.take()


@pytest.mark.parametrize(("role", "count"), [(Role.LEADER, 2), (Role.CANDIDATE, 0), (Role.FOLLOWER, 0)])
def test_only_a_leader_sends_heartbeats(role: Role, count: int) -> None:
    """The tick of another role sends none (TestRecvMsgBeat; here a heartbeat interval of one tick)."""
    peer = Peer(log=terms(0, 1), heartbeat_ticks=1)
    if role is Role.FOLLOWER:
        peer.raft.become_follower(1, NO_NODE)
    else:
        peer.raft.become_candidate()
        if role is Role.LEADER:
            peer.raft.become_leader()
    peer.take()

    assert [Heartbeat] * count == [type(message) for message in peer.tick()]


def test_the_heartbeat_interval_is_kept() -> None:
    """One heartbeat per interval, however many ticks that is (5.2)."""
    peer = Peer("1", "12", heartbeat_ticks=3)
    peer.lead()

    assert [0, 0, 1, 0, 0, 1] == [len(peer.tick()) for _ in range(6)]
