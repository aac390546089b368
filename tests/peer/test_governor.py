"""What a leader does for all replicas by itself: versions that everybody knows, limits that it was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from random import Random

import pytest

from replikv.errors import ConfigurationError
from replikv.machine.base import StateMachine
from replikv.machine.envelope import CommandKind, Envelope, unpack_commands
from replikv.machine.governance import (
    ClusterOperation,
    Limits,
    Versions,
    decode_set_limits,
    decode_upgrade,
    encode_upgrade,
)
from replikv.machine.replica import Replica
from replikv.peer.admission import COMMANDS, LEARNER, MACHINE, VERSION, Admission
from replikv.peer.governor import Governor, limits_of, versions_in
from replikv.raft.core import Config
from replikv.raft.entries import EntryKind
from replikv.raft.membership import MemberRecord, Membership
from replikv.raft.node import RawNode
from replikv.raft.stable import MemoryStorage
from replikv.settings import Settings
from replikv.storage.base import Identity
from replikv.transport.base import Hello

SETTINGS = Settings(keys_max=77)


class Machine(StateMachine):
    version = 3

    def apply(self, position: int, command: bytes) -> bytes:
        return b""

    def snapshot(self) -> Iterator[bytes]:
        return iter(())

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Nobody asks."""


def knowing(commands: object, machine: object = "") -> dict[str, str]:
    attributes = {VERSION: "0.1", COMMANDS: str(commands), MACHINE: str(machine)}
    return {name: value for name, value in attributes.items() if value}


class Leader:
    """The only voter, which leads without asking, and learners, which are what they say."""

    def __init__(self, members: Mapping[str, Mapping[str, str]], machine: StateMachine | None = None) -> None:
        records = {node_id: MemberRecord(f"m-{node_id}", f"{node_id}1", 1, told) for node_id, told in members.items()}
        records["a"] = MemberRecord("m-a", "a1", 1)
        self.membership = Membership(voters=frozenset("a"), learners=frozenset(members), members=records)
        self.storage = MemoryStorage(self.membership)
        self.node = RawNode(Config(node_id="a", election_ticks=10), self.storage, Random(1))
        self.replica = Replica(machine)
        self.admission = Admission(Identity("cluster", "a", "a1", "m-a", "m-a"), self.membership)
        self.governor = Governor(SETTINGS, self.node, self.replica, self.admission)
        self.proposed: list[object] = []
        self.ticks = 0
        self.node.campaign()
        self.work()
        self.work()
        assert self.node.raft.leader == "a"

    def work(self) -> None:
        """What a driver does: persist, and apply what is committed."""
        while self.node.has_ready():
            ready = self.node.ready()
            if ready.write is not None:
                self.storage.apply(ready.write)
                self.node.persisted(ready.write)
            for entry in ready.committed:
                if entry.kind == EntryKind.COMMANDS:
                    self.replica.apply_many(unpack_commands(entry.data))
            self.node.applied(ready.committed)

    def tick(self) -> list[object]:
        """What is proposed in this tick, and takes effect in it."""
        self.ticks += 1
        before = self.node.raft.log.last_index()
        self.governor.look(self.ticks)
        proposed: list[object] = []
        log = self.node.raft.log
        for entry in log.slice(before + 1, log.last_index() + 1) if log.last_index() > before else []:
            for command in unpack_commands(entry.data):
                envelope = Envelope.decode(command)
                assert (CommandKind.CLUSTER, 0) == (envelope.kind, envelope.session)
                payload = envelope.payload
                upgrade = payload[0] == ClusterOperation.UPGRADE
                proposed.append(decode_upgrade(payload, 0) if upgrade else decode_set_limits(payload, 0))
        self.work()
        return proposed

    def meet(self, node_id: str, attributes: Mapping[str, str]) -> None:
        hello = Hello(
            cluster_id="cluster",
            node_id=node_id,
            incarnation=f"{node_id}1",
            bound_index=1,
            address=f"m-{node_id}",
            attributes=attributes,
        )
        assert self.admission.admit(hello) is None


LIMITS = limits_of(SETTINGS)


def test_the_first_look_of_the_first_leader_makes_a_cluster_usable() -> None:
    """At once, though a founding member has never come: UPGRADE, and behind it the limits. Once."""
    leader = Leader({"b": {}, "c": knowing(1)})
    assert [Versions(1, 0), LIMITS] == leader.tick()
    assert (Versions(1, 0), LIMITS) == (leader.replica.governance.versions, leader.replica.governance.limits)
    assert [[], [], []] == [leader.tick() for _ in range(3)]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        pytest.param([knowing(1, 3), knowing(1, 3)], Versions(1, 3), id="all know all"),
        pytest.param([knowing(1, 3), knowing(1, 2)], Versions(1, 2), id="one has an older machine"),
        pytest.param([knowing(1, 9), knowing(7, 9)], Versions(1, 3), id="others are newer than the leader"),
        pytest.param([knowing(0, 3), knowing(1, 3)], Versions(0, 0), id="one has an older replikv"),
        pytest.param([{VERSION: "0.0.1"}], Versions(0, 0), id="one is from before versions"),
        pytest.param([knowing(1)], Versions(1, 0), id="one has no machine"),
        pytest.param([{}, knowing(1, 3)], Versions(1, 3), id="one was never met"),
        pytest.param([{LEARNER: "always"}], Versions(1, 3), id="one was named, and never met"),
        pytest.param([knowing("x", "-1")], Versions(0, 0), id="one talks nonsense"),
    ],
)
def test_what_every_member_knows_takes_effect(others: list[dict[str, str]], expected: Versions) -> None:
    """The highest versions that all know; of the first UPGRADE, those who were never met have no say."""
    leader = Leader(dict(zip("bcd", others, strict=False)), Machine())
    leader.tick()
    assert expected == leader.replica.governance.versions


def test_who_was_never_met_blocks_every_upgrade_but_the_first() -> None:
    """It may be there with an older program by now: nobody can tell. The doctor names it."""
    leader = Leader({"b": {}, "c": knowing(1, 2)}, Machine())
    leader.tick()
    assert Versions(1, 2) == leader.replica.governance.versions
    leader.meet("c", knowing(1, 3))
    assert [] == leader.tick()
    assert {"b": "has never said what it knows: start it once, or remove it"} == leader.governor.holding_back()
    leader.meet("b", knowing(1, 3))
    assert [Versions(1, 3)] == leader.tick()
    assert {} == leader.governor.holding_back()


def test_what_a_member_says_now_counts_rather_than_what_is_recorded() -> None:
    """It was restarted with another program; the record follows."""
    leader = Leader({"b": knowing(1, 3)}, Machine())
    leader.meet("b", knowing(1, 2))
    leader.tick()
    assert Versions(1, 2) == leader.replica.governance.versions
    assert {"b": "has a StateMachine of version 2: restart it with the newer program"} == leader.governor.holding_back()


def test_the_doctor_is_told_why() -> None:
    """An older replikv, and none of the application's machine."""
    leader = Leader({"b": knowing(0, 3), "c": knowing(1)}, Machine())
    leader.tick()
    assert {
        "b": "knows commands of version 0 only: restart it with a newer replikv",
        "c": "has no StateMachine: start it with the machine= of the others",
    } == leader.governor.holding_back()


def test_nothing_is_proposed_before_what_others_left_is_applied() -> None:
    """What holds is not known until then: an UPGRADE may be among it."""
    leader = Leader({})
    leader.node.raft.become_follower(leader.node.raft.term + 1, "")
    leader.node.campaign()
    while leader.node.raft.log.last_index() == leader.node.raft.log.applied:
        ready = leader.node.ready()
        if ready.write is not None:
            leader.storage.apply(ready.write)
            leader.node.persisted(ready.write)
    assert leader.node.raft.leader == "a"
    left = leader.node.raft.log.applied
    leader.node.raft.log.applied = left - 1
    leader.governor.look(1)
    assert left + 1 == leader.node.raft.log.last_index()
    leader.node.raft.log.applied = left
    leader.governor.look(1)
    assert left + 2 == leader.node.raft.log.last_index()


def test_limits_are_proposed_once_in_a_leadership() -> None:
    """Two leaders of other settings must not go on for ever: the one that leads next has its say, once."""
    leader = Leader({})
    leader.tick()
    leader.replica.governance.limits = Limits()
    assert [] == leader.tick()
    leader.node.raft.become_follower(leader.node.raft.term + 1, "")
    leader.node.campaign()
    leader.work()
    leader.work()
    assert [LIMITS] == leader.tick()


def test_limits_wait_for_the_first_upgrade() -> None:
    """A member that does not know them would not keep them."""
    leader = Leader({"b": knowing(0)})
    assert [] == leader.tick()
    leader.meet("b", knowing(1))
    assert [Versions(1, 0), LIMITS] == leader.tick()


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({}, "the newcomer knows 0"),
        (knowing(0, 2), "commands of version 1 of replikv, and the newcomer knows 0"),
        (knowing(1, 1), "version 2 of its StateMachine, and the newcomer has 1"),
        (knowing(1), "version 2 of its StateMachine, and the newcomer has none"),
        (knowing(1, 2), None),
        (knowing(2, 3), None),
    ],
)
def test_newcomers_that_would_stop_at_once(attributes: dict[str, str], words: str | None) -> None:
    """Better told when they ask to join, in words, than let in."""
    leader = Leader({}, Machine())
    leader.replica.apply(Envelope(CommandKind.CLUSTER, 0, 0, 0, encode_upgrade(Versions(1, 2))).encode())
    reason = leader.governor.too_old(attributes)
    assert (words is None) == (reason is None)
    assert words is None or words in str(reason)


def test_versions_are_read_from_what_members_say() -> None:
    """None of who has said nothing; 0 of who does not say it, or says what is no number."""
    assert versions_in({}) is None
    assert versions_in({LEARNER: "always"}) is None
    assert Versions(0, 0) == versions_in({VERSION: "1"})
    assert Versions(0, 12) == versions_in({COMMANDS: "9999999999999", MACHINE: "12"})


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_every_limit_is_a_setting(name: str) -> None:
    """Of the same name and more; one that no command could hold is refused when it is set."""
    setting = next(one for one in (f"{name}_max", f"{name}_per_command_max") if hasattr(SETTINGS, one))
    fields = {field.name: getattr(SETTINGS, field.name) for field in dataclasses.fields(SETTINGS)}
    assert 5 == getattr(limits_of(Settings(**{**fields, setting: 5})), name)
    with pytest.raises(ConfigurationError, match=setting):
        Settings(**{**fields, setting: 1 << 62})
