"""Commands on their way into the log: packed by the leader, forwarded by the others, refused in so many words."""

from __future__ import annotations

from random import Random

import pytest
import trio
from own_session import Peer, sequences

from replikv.errors import OutcomeUnknownError, UnavailableError
from replikv.machine.envelope import CommandKind, Envelope, pack_commands
from replikv.machine.governance import Versions, encode_upgrade
from replikv.peer.handover import Handover
from replikv.peer.lessor import Lessor
from replikv.peer.protocol import Forwarded, Refusal, decode
from replikv.raft.core import Config
from replikv.raft.entries import Entry
from replikv.raft.membership import Membership
from replikv.raft.messages import Heartbeat
from replikv.raft.node import RawNode
from replikv.raft.stable import MemoryStorage
from replikv.settings import KIB, Settings
from replikv.transport.memory import MemoryTransport

SETTINGS = Settings(value_bytes_max=KIB, key_bytes_max=KIB, command_bytes_max=4 * KIB, entry_bytes_max=8 * KIB)


class Outbox(MemoryTransport):
    """Keeps what is sent, for a test to look at; or takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.takes = True
        self.sent: list[tuple[str, object]] = []

    def send(self, node_id: str, frame: bytes) -> bool:
        if self.takes:
            self.sent.append((node_id, decode(frame, "a", node_id)))
        return self.takes


class Side:
    """Peer a, with a session: it leads alone, until it is told otherwise, or follows b."""

    def __init__(self, nursery: trio.Nursery, *, leads: bool) -> None:
        self.storage = MemoryStorage(Membership.of_voters({"a": ""} if leads else {"a": "", "b": "", "c": ""}))
        self.node = RawNode(Config(node_id="a"), self.storage, Random(1))
        self.outbox = Outbox()
        self.peer = Peer(nursery)
        self.peer.register()
        self.handover = Handover(
            SETTINGS,
            self.node,
            self.outbox,
            self.peer.replica,
            self.peer.proposals,
            Lessor(self.peer.replica, SETTINGS.election_timeout_s, 0),
            100,
        )
        self.ticks = 0
        if leads:
            self.node.campaign()
            self.work()
        else:
            self.follow(1)

    def work(self) -> list[Entry]:
        """Do what the core wants done; the entries that it had written."""
        written: list[Entry] = []
        while self.node.has_ready():
            ready = self.node.ready()
            if ready.write is not None:
                written += ready.write.entries
                self.storage.apply(ready.write)
                self.node.persisted(ready.write)
            self.node.applied(ready.committed)
        return written

    def follow(self, term: int) -> None:
        """Hear of b as the leader of the term."""
        self.node.step(Heartbeat(to="a", sender="b", term=term))

    def turn(self) -> list[bytes]:
        """One turn; the data of the entries that were proposed."""
        self.handover.hand_over()
        return [entry.data for entry in self.work() if entry.data]

    def tick(self) -> list[bytes]:
        """A tick, and a turn behind it."""
        self.ticks += 1
        self.handover.tick(self.ticks)
        return self.turn()

    def forwarded(self) -> list[tuple[int, list[int]]]:
        """(number, sequences) of the batches that went to b since this was last asked."""
        sent, self.outbox.sent = self.outbox.sent, []
        return [(content.batch, sequences(content.commands)) for _, content in sent if isinstance(content, Forwarded)]

    def lose_leadership(self) -> None:
        """A newer leader is heard of."""
        self.follow(self.node.raft.term + 1)
        self.work()


@pytest.fixture
async def leader(nursery: trio.Nursery) -> Side:
    """One that leads."""
    return Side(nursery, leads=True)


@pytest.fixture
async def follower(nursery: trio.Nursery) -> Side:
    """One that follows b."""
    return Side(nursery, leads=False)


def command(size: int = 0, kind: CommandKind = CommandKind.CUSTOM, payload: bytes = b"") -> bytes:
    """A command of another peer's, packed as it is forwarded."""
    return pack_commands([Envelope(kind, 0, 0, 0, payload or bytes(size)).encode()])


# -- the leader --------------------------------------------------------------------------------------------------------


async def test_what_is_forwarded_is_proposed_as_it_came(leader: Side) -> None:
    """All batches of a turn share an entry, in the order of their coming; nobody is told anything."""
    leader.handover.take_forwarded("b", Forwarded(1, command(3)))
    leader.handover.take_forwarded("c", Forwarded(1, command(5)))

    assert [command(3) + command(5)] == leader.turn()
    assert [] == leader.turn()
    assert [] == leader.outbox.sent


async def test_a_batch_that_arrives_twice_is_taken_once(leader: Side) -> None:
    """And a late copy is not refused: whoever sent it would take the first one for refused as well."""
    leader.handover.take_forwarded("b", Forwarded(1, command(3)))
    leader.handover.take_forwarded("b", Forwarded(1, command(3)))
    assert [command(3)] == leader.turn()

    leader.lose_leadership()
    leader.handover.take_forwarded("b", Forwarded(1, command(3)))

    assert [] == leader.outbox.sent


async def test_who_does_not_lead_says_so(follower: Side) -> None:
    """One hop and no more: it is not passed on, and the refusal names whom this peer takes for the leader."""
    follower.handover.take_forwarded("c", Forwarded(7, command(3)))

    assert [("c", Refusal(7, "b"))] == follower.outbox.sent
    assert [] == follower.turn()


async def test_what_was_taken_in_the_turn_that_lost_leadership_is_refused(leader: Side) -> None:
    """It is in no log: whoever forwarded it must not wait until it is overdue."""
    leader.handover.take_forwarded("b", Forwarded(7, command(3)))
    leader.lose_leadership()

    assert [] == leader.turn()
    assert [("b", Refusal(7, "b"))] == leader.outbox.sent


async def test_no_entry_is_larger_than_it_may_be(leader: Side) -> None:
    """What does not fit beside the batches before it goes into the next entry; two that just fit share one."""
    half = SETTINGS.entry_bytes_max // 2 - len(command())
    for number, size in enumerate((half, half, half, 1)):
        leader.handover.take_forwarded("b", Forwarded(number, command(size)))

    assert [SETTINGS.entry_bytes_max, len(command(half)) + len(command(1))] == [len(data) for data in leader.turn()]


async def test_a_batch_that_no_entry_holds_is_refused(leader: Side) -> None:
    """Its sender has other settings; the largest that fits is taken."""
    largest = SETTINGS.entry_bytes_max - len(command())
    leader.handover.take_forwarded("b", Forwarded(1, command(largest)))
    leader.handover.take_forwarded("b", Forwarded(2, command(largest + 1)))

    assert [command(largest)] == leader.turn()
    assert [("b", Refusal(2, "a"))] == leader.outbox.sent


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(command(kind=CommandKind.CLUSTER, payload=encode_upgrade(Versions(9, 9))), id="the leader's own"),
        pytest.param(pack_commands([b"short"]), id="shorter than a header"),
    ],
)
async def test_what_nobody_may_forward_is_dropped(leader: Side, commands: bytes) -> None:
    """An UPGRADE that a follower makes up would end every replica that does not know it."""
    leader.handover.take_forwarded("b", Forwarded(1, commands))

    assert [] == leader.turn()


# -- the others --------------------------------------------------------------------------------------------------------


async def test_a_refused_batch_goes_again_with_the_next_tick(follower: Side) -> None:
    """Not before: two that take each other for the leader would keep each other busy."""
    await follower.peer.put(1)
    follower.turn()
    assert [(101, [1])] == follower.forwarded()

    follower.handover.take_refusal(Refusal(101, ""))
    follower.turn()
    assert [] == follower.forwarded()

    follower.tick()
    assert [(102, [1])] == follower.forwarded()


async def test_a_new_leader_is_not_waited_with(follower: Side) -> None:
    """That the one before it has refused says nothing of the next."""
    await follower.peer.put(1)
    follower.turn()
    follower.handover.take_refusal(Refusal(101, ""))
    follower.handover.begin_anew()

    follower.turn()

    assert [(101, [1]), (102, [1])] == follower.forwarded()


async def test_what_cannot_be_sent_was_not_handed_over(follower: Side) -> None:
    """It goes again with the next tick, and was surely not applied if its time is up before that."""
    follower.outbox.takes = False
    await follower.peer.put(1, deadline=5.0)
    await follower.peer.put(2)
    follower.turn()
    follower.peer.proposals.expire(5.0, lambda: UnavailableError("surely not"), lambda: "why")
    assert isinstance((await follower.peer.settled())[1], UnavailableError)

    follower.outbox.takes = True
    follower.turn()
    assert [] == follower.forwarded()
    follower.tick()
    assert [[2]] == [taken for _, taken in follower.forwarded()]


async def test_a_refusal_of_what_went_again_meanwhile_says_nothing(follower: Side) -> None:
    """The batch may be in the log of the next leader: only that one's refusal would take the attempt back."""
    await follower.peer.put(1, deadline=5.0)
    follower.turn()
    follower.handover.forget_forwarded()
    follower.peer.proposals.hand_all_again()
    follower.turn()
    assert [(101, [1]), (102, [1])] == follower.forwarded()

    follower.handover.take_refusal(Refusal(101, ""))
    follower.handover.take_refusal(Refusal(102, ""))
    follower.peer.proposals.expire(5.0, lambda: UnavailableError("surely not"), lambda: "why")

    assert isinstance((await follower.peer.settled())[1], OutcomeUnknownError)


async def test_a_refusal_is_not_waited_for_beyond_two_election_timeouts(follower: Side) -> None:
    """Whoever gives none costs no memory; what was in the batch goes again by itself."""
    await follower.peer.put(1, deadline=5.0)
    follower.turn()
    for _ in range(2 * SETTINGS.election_ticks + 1):
        follower.tick()

    follower.handover.take_refusal(Refusal(101, ""))
    follower.tick()

    assert [(101, [1])] == follower.forwarded()
