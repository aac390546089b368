"""The divergence alarm: the odd one out stops, and nobody else, whatever the network does with what they say."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replikv.errors import InternalError
from replikv.machine.commands import encode_increment, encode_put
from replikv.machine.digests import FORMAT, INTERVAL, NO_DIGEST, StateDigest
from replikv.machine.envelope import CommandKind, Envelope
from replikv.machine.governance import Versions, encode_upgrade
from replikv.machine.replica import Replica
from replikv.peer.admission import COMMANDS, VERSION, Admission
from replikv.peer.auditor import POSITIONS_MAX, Auditor
from replikv.peer.protocol import Digest, FrameKind, MalformedFrameError, decode, encode_digest
from replikv.raft.membership import MemberRecord, Membership
from replikv.storage.base import Identity
from replikv.transport.memory import MemoryTransport

UPGRADE = Envelope(CommandKind.CLUSTER, 0, 0, 0, encode_upgrade(Versions(1, 0))).encode()


def put(number: int) -> bytes:
    return Envelope(CommandKind.MAP, 0, 0, 0, encode_put(b"k%d" % (number % 7), b"\x01")).encode()


def add(by: int) -> bytes:
    return Envelope(CommandKind.MAP, 0, 0, 0, encode_increment(b"n", bytes([by]))).encode()


class Outbox(MemoryTransport):
    """Keeps what is sent, for a test to carry."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, bytes]] = []

    def send(self, node_id: str, frame: bytes) -> bool:
        self.sent.append((node_id, frame))
        return True


class Member:
    """A replica and its auditor. All members apply the same log, at their own pace, but for what a test slips in."""

    def __init__(self, node_id: str, membership: Membership) -> None:
        self.node_id = node_id
        self.replica = Replica()
        self.outbox = Outbox()
        self.admission = Admission(Identity("cluster", node_id, f"{node_id}1", "", ""), membership)
        self.auditor = Auditor(node_id, self.replica, self.admission, self.outbox)
        self.error: InternalError | None = None
        self.replica.apply(UPGRADE)

    def apply(self, log: list[bytes], count: int) -> None:
        start = self.replica.position - 1
        self.replica.apply_many(log[start : start + count])

    def guard(self, call: Callable[[], None]) -> None:
        if self.error is None:
            try:
                call()
            except InternalError as exc:
                self.error = exc

    def take(self, sender: str, frame: bytes) -> None:
        content = decode(frame, sender, self.node_id)
        assert isinstance(content, Digest)
        self.guard(lambda: self.auditor.take(sender, content))


class Members:
    def __init__(self, voters: str = "abc", learners: str = "", old: str = "") -> None:
        told = {VERSION: "1", COMMANDS: "1"}
        records = {
            node_id: MemberRecord(node_id, f"{node_id}1", 1, {VERSION: "0"} if node_id in old else told)
            for node_id in voters + learners
        }
        self.membership = Membership(voters=frozenset(voters), learners=frozenset(learners), members=records)
        self.all = {node_id: Member(node_id, self.membership) for node_id in voters + learners}

    def __getitem__(self, node_id: str) -> Member:
        return self.all[node_id]

    @property
    def stopped(self) -> str:
        return "".join(node_id for node_id, member in self.all.items() if member.error is not None)

    def outgoing(self) -> list[tuple[str, str, bytes]]:
        """(sender, receiver, frame) of all that was sent since."""
        sent = [(member.node_id, *one) for member in self.all.values() for one in member.outbox.sent]
        for member in self.all.values():
            member.outbox.sent.clear()
        return sent

    def carry(self) -> None:
        """A tick of everybody, and everything that is said arrives, also what is said because of it."""
        for member in self.all.values():
            member.guard(member.auditor.tick)
        while sent := self.outgoing():
            for sender, receiver, frame in sent:
                self.all[receiver].take(sender, frame)


LOG = [put(number) if number % 3 else add(1) for number in range(120 * INTERVAL)]


def test_equal_replicas_have_nothing_to_say_but_their_digests() -> None:
    """One frame to each other member when there is a new digest, and none when there is not."""
    members = Members()
    for member in members.all.values():
        member.apply(LOG, INTERVAL)
        member.auditor.tick()
    sent = members.outgoing()
    assert {(a, b) for a in "abc" for b in "abc" if a != b} == {(sender, receiver) for sender, receiver, _ in sent}
    assert 6 == len(sent)
    members.carry()
    assert ("", []) == (members.stopped, members.outgoing())
    assert [{}, {}, {}] == [member.auditor.divergences for member in members.all.values()]


@pytest.mark.parametrize("odd", "abc")
def test_one_against_two_stops(odd: str) -> None:
    """It names the position, its digest and that of the others; they go on, and their doctors know."""
    members = Members()
    members[odd].replica.apply(add(9))
    for member in members.all.values():
        if member.node_id != odd:
            member.replica.apply(add(1))
        member.apply(LOG, INTERVAL)
    members.carry()
    assert odd == members.stopped
    others = sorted(set("abc") - {odd})
    own, theirs = (str(members[node_id].replica.notes.get(INTERVAL)) for node_id in (odd, others[0]))
    assert own != theirs
    words = str(members[odd].error)
    assert (
        f"the replica of {odd} has diverged: at position {INTERVAL} its digest is {own}, and {theirs} is that" in words
    )
    assert f"of {', '.join(others)}, a majority of the voters" in words
    for node_id in others:
        (found,) = members[node_id].auditor.divergences.values()
        assert (odd, INTERVAL, theirs, own, True) == (
            found.node_id,
            found.position,
            found.own,
            found.other,
            found.outvoted,
        )


def test_all_are_compared_at_one_position_however_far_apart_they_are() -> None:
    """Each tells its newest digest, of another position than the others': who differs asks for the rest."""
    members = Members("abcde")
    for place, member in enumerate(members.all.values()):
        member.replica.apply(add(9 if member.node_id == "c" else 1))
        member.apply(LOG, (3 + 2 * place) * INTERVAL)
    members.carry()
    members.carry()
    assert "c" == members.stopped


def test_one_against_one_nobody_can_tell() -> None:
    """Both go on, and both say so."""
    members = Members("ab")
    for node_id in "ab":
        members[node_id].replica.apply(add(1 if node_id == "a" else 9))
        members[node_id].apply(LOG, INTERVAL)
    members.carry()
    assert "" == members.stopped
    for node_id, other in ("ab", "ba"):
        (found,) = members[node_id].auditor.divergences.values()
        assert (other, False) == (found.node_id, found.outvoted)


def test_without_a_majority_that_agrees_nobody_stops() -> None:
    """All three differ, as replicas of a machine that asks the clock would."""
    members = Members()
    for number, member in enumerate(members.all.values()):
        member.replica.apply(add(1 + number))
        member.apply(LOG, INTERVAL)
    members.carry()
    assert "" == members.stopped
    assert [2, 2, 2] == [len(member.auditor.divergences) for member in members.all.values()]


def test_a_learner_that_differs_stops_too_and_has_no_say() -> None:
    """It hears the voters; two learners that are wrong alike are no majority."""
    members = Members("abc", "xy")
    for member in members.all.values():
        member.replica.apply(add(9 if member.node_id in "xy" else 1))
        member.apply(LOG, INTERVAL)
    members.carry()
    assert "xy" == members.stopped


def test_in_a_joint_configuration_both_halves_must_agree() -> None:
    """Three of the old voters against all of the new ones: nobody can tell."""
    members = Members("abcdef")
    joint = Membership(
        voters=frozenset("def"), outgoing=frozenset("abc"), members=members.membership.members, auto_leave=True
    )
    for member in members.all.values():
        member.admission.membership = joint
        member.replica.apply(add(9 if member.node_id in "abc" else 1))
        member.apply(LOG, INTERVAL)
    members.carry()
    assert "" == members.stopped


def test_who_agrees_again_is_forgiven() -> None:
    """It was restarted, or has got a snapshot: at a later position it is as the others."""
    members = Members("ab")
    for node_id in "ab":
        members[node_id].replica.apply(add(1 if node_id == "a" else 9))
        members[node_id].apply(LOG, INTERVAL)
    members.carry()
    assert ["b"] == list(members["a"].auditor.divergences)
    members["b"].replica.restore(list(members["a"].replica.snapshot()))
    for node_id in "ab":
        members[node_id].apply(LOG, INTERVAL)
    members.carry()
    assert [{}, {}] == [members[node_id].auditor.divergences for node_id in "ab"]


def test_members_of_an_older_replikv_are_told_nothing() -> None:
    """They do not know the frame."""
    members = Members("abc", old="c")
    members["a"].apply(LOG, INTERVAL)
    members["a"].auditor.tick()
    assert ["b"] == [receiver for _, receiver, _ in members.outgoing()]


@pytest.mark.parametrize(
    ("sender", "made"), [pytest.param("b", FORMAT + 1, id="another format"), pytest.param("z", FORMAT, id="a stranger")]
)
def test_what_says_nothing(sender: str, made: int) -> None:
    """Digests that are made in another way, and those of nobody whom the membership knows."""
    member = Members("abc")["a"]
    member.apply(LOG, INTERVAL)
    member.auditor.take(sender, Digest(made, INTERVAL, StateDigest(b"x" * 16, NO_DIGEST)))
    assert {} == member.auditor.divergences
    assert [] == member.outbox.sent


def test_digests_that_nobody_can_compare_any_more() -> None:
    """Of positions that this replica never noted, or has forgotten: no word, no memory."""
    member = Members("abc")["a"]
    member.apply(LOG, 2 * INTERVAL)
    for position in (1, INTERVAL - 1, INTERVAL + 1):
        member.auditor.take("b", Digest(FORMAT, position, StateDigest(b"x" * 16, NO_DIGEST)))
    assert {} == member.auditor.divergences


def test_what_is_remembered_is_bounded() -> None:
    """However much others tell, of the past or of the future, and however much of it is wrong."""
    members = Members("abc")
    member = members["a"]
    member.apply(LOG, len(LOG))
    strange = StateDigest(b"x" * 16, NO_DIGEST)
    for number in range(1, 100_000):
        member.auditor.take("bc"[number % 2], Digest(FORMAT, number * INTERVAL, strange))
        member.outbox.sent.clear()
    auditor = member.auditor
    assert POSITIONS_MAX == len(auditor._ahead) >= len(auditor._behind)
    assert POSITIONS_MAX >= len(auditor._disputed)
    assert 2 == len(auditor.divergences)


def test_who_was_removed_is_forgotten() -> None:
    """What it held is nobody's business any more."""
    members = Members("ab")
    for node_id in "ab":
        members[node_id].replica.apply(add(1 if node_id == "a" else 9))
        members[node_id].apply(LOG, INTERVAL)
    members.carry()
    records = {"a": members.membership.members["a"]}
    members["a"].admission.membership = Membership(voters=frozenset("a"), members=records)
    members["a"].auditor.tick()
    assert {} == members["a"].auditor.divergences


@pytest.mark.parametrize("size", range(2, 42, 8))
def test_a_frame_that_is_cut_off_is_none(size: int) -> None:
    """Nobody of this protocol sends it."""
    frame = encode_digest(Digest(FORMAT, INTERVAL, StateDigest(b"x" * 16, NO_DIGEST)))
    assert FrameKind.DIGEST == frame[0]
    assert Digest(FORMAT, INTERVAL, StateDigest(b"x" * 16, NO_DIGEST)) == decode(frame, "b", "a")
    with pytest.raises(MalformedFrameError):
        decode(frame[:size], "b", "a")


# -- all of it ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_no_false_alarm_and_no_odd_one_that_stays(seed: int, one_is_odd: bool) -> None:
    """Frames lost, doubled and late; replicas at their own pace, restored from each other's snapshots, begun anew:
    nobody stops who is as the others. And once the network is whole, who is not does.
    """
    chance = random.Random(seed)
    members = Members("abc", "x")
    under_way: list[tuple[str, str, bytes]] = []
    odd = chance.choice("abcx") if one_is_odd else ""
    for member in members.all.values():
        member.replica.apply(add(9 if member.node_id == odd else 1))
    for _ in range(100):
        member = members[chance.choice("abcx")]
        match chance.randrange(8):
            case 0 | 1 | 2:
                member.apply(LOG, chance.choice((1, 30, 64, 200)))
            case 3 | 4:
                member.guard(member.auditor.tick)
            case 5 if member.node_id != odd:
                source = members[chance.choice("abcx")]
                if source.node_id != odd and source.replica.position > member.replica.position:
                    member.replica.restore(list(source.replica.snapshot()))
            case 6 if member.node_id != odd:
                again = members.all[member.node_id] = Member(member.node_id, members.membership)
                again.replica.apply(add(1))
            case _ if under_way:
                for _ in range(chance.randint(1, 4)):
                    sender, receiver, frame = chance.choice(under_way)
                    members[receiver].take(sender, frame)
        under_way += members.outgoing()
        while len(under_way) > 30:
            under_way.pop(chance.randrange(len(under_way)))
    assert members.stopped in ("", odd)
    end = max(member.replica.position for member in members.all.values()) // INTERVAL * INTERVAL + 2 * INTERVAL
    for member in members.all.values():
        member.apply(LOG, end - member.replica.position)
    for _ in range(2):
        members.carry()
    assert odd == members.stopped
