"""The leader's clock of leases, by hand: who gets how much time, who is answered, and what ends."""

from __future__ import annotations

import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from replikv.machine import commands
from replikv.machine.envelope import CommandKind, Envelope, Status
from replikv.machine.governance import Limits, Versions, encode_set_limits, encode_upgrade
from replikv.machine.replica import Replica
from replikv.machine.values import encode_value
from replikv.peer.lessor import LOOKED_AT_PER_TICK, QUESTIONS_MAX, REVOKES_PER_LEASE, Lessor
from replikv.peer.protocol import LeaseQuestions

TICK_S = 0.1
STALL_S = 1.0
TTL_S = 5.0
VALUE = encode_value(1, 64)


class Leader:
    """A leader of which a test decides when it is confirmed, and when its commands are applied."""

    def __init__(self, *, operations: int = 1024) -> None:
        self.now = 1000.0
        self.replica = Replica()
        self.cluster(encode_upgrade(Versions(1, 0)))
        self.cluster(encode_set_limits(Limits(operations=operations)))
        self.lessor = Lessor(self.replica, STALL_S, 0)
        self.may_end = True
        self.index = 0
        """What is committed."""
        self.applied = 0
        self.confirms = True
        """Whether a majority answers at once."""
        self.rounds: list[int] = []
        """Contexts that nobody has confirmed yet."""
        self.revocations_max = 1 << 20
        """What fits an entry."""
        self.log: list[int] = []
        """The leases whose end was proposed, and is not applied yet."""
        self.number = 0
        self.answers: dict[int, dict[int, tuple[int, int]]] = {}
        """number -> lease -> (time to live, time left)"""

    def cluster(self, payload: bytes) -> None:
        self.replica.apply(Envelope(CommandKind.CLUSTER, 0, 0, 0, payload).encode())

    def run(self, payload: bytes) -> bytes:
        self.index += 1
        self.applied = self.index
        return self.replica.apply(Envelope(CommandKind.MAP, 0, 0, 0, payload).encode())

    def grant(self, ttl_s: float = TTL_S, *, keys: int = 0) -> int:
        lease = commands.decode_grant_result(self.run(commands.encode_grant(int(ttl_s * 1000)))[1:])
        for number in range(keys):
            self.run(commands.encode_put(b"%d/%d" % (lease, number), VALUE, lease))
        return lease

    def ask(self, *leases: int, renew: bool = True) -> int:
        """Somebody's question arrives; its number."""
        self.number += 1
        self.lessor.take("a", LeaseQuestions(self.number, tuple((lease, renew) for lease in leases)), self.now)
        self.turn()
        return self.number

    def turn(self) -> None:
        """What the driver does in each of its turns."""
        self.log += self.lessor.take_revocations(self.revocations_max)
        context = self.lessor.begin_round(self.now)
        if context is not None:
            self.rounds.append(context)
        if self.confirms:
            self.confirm()
        self.release()

    def confirm(self) -> None:
        for context in self.rounds:
            self.lessor.confirm(context, self.index)
        self.rounds.clear()

    def release(self) -> None:
        for asker, answers in self.lessor.release(self.applied, self.now):
            assert "a" == asker
            self.answers[answers.number] = {lease: (ttl_ms, left_ms) for lease, ttl_ms, left_ms in answers.items}

    def apply(self) -> None:
        """What was proposed is committed, and applied."""
        for lease in self.log:
            self.run(commands.encode_revoke(lease))
        self.log.clear()

    def tick(self, *, after_s: float = TICK_S) -> None:
        self.now += after_s
        self.lessor.tick(self.now, may_end=self.may_end)
        self.turn()

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.tick()
            self.apply()

    def change(self) -> None:
        """Another term, and this peer leads again."""
        self.lessor.begin_anew()
        self.rounds.clear()

    @property
    def leases(self) -> set[int]:
        return set(self.replica.map.leases.table)


# -- who gets how much time --------------------------------------------------------------------------------------------


def test_a_lease_that_nobody_keeps_alive_ends_after_its_time() -> None:
    """Not earlier, and at most some ticks later; its keys go with it."""
    leader = Leader()
    lease = leader.grant(keys=3)
    leader.pass_time(TTL_S)
    assert {lease} == leader.leases
    leader.pass_time(0.5)
    assert set() == leader.leases
    assert 0 == len(leader.replica.keyspace)


def test_a_lease_that_is_kept_alive_stays() -> None:
    """For as long as somebody asks in time; each question is answered with the whole time."""
    leader = Leader()
    lease = leader.grant()
    for _ in range(20):
        leader.pass_time(TTL_S - 0.5)
        assert {lease: (5000, 5000)} == leader.answers[leader.ask(lease)]
    leader.pass_time(TTL_S + 0.5)
    assert set() == leader.leases


def test_to_look_is_not_to_keep_alive() -> None:
    """Who only asks how long it has left is told, and it ends in time."""
    leader = Leader()
    lease = leader.grant()
    leader.tick()
    leader.pass_time(3.0)
    ttl_ms, left_ms = leader.answers[leader.ask(lease, renew=False)][lease]
    assert (5000, True) == (ttl_ms, 1998 <= left_ms <= 2002)
    leader.pass_time(2.5)
    assert set() == leader.leases


def test_a_new_leader_grants_full_time() -> None:
    """Known elsewhere as: time to live lost, or reset to nothing, on a change of leader (etcd#20273).

    However little was left, and however often the leader changes; what was kept alive elsewhere is not known here.
    """
    leader = Leader()
    lease = leader.grant()
    for _ in range(5):
        leader.pass_time(TTL_S - 0.2)
        leader.change()
    leader.tick()
    assert {lease: (5000, 5000)} == leader.answers[leader.ask(lease, renew=False)]
    leader.pass_time(TTL_S - 0.2)
    assert {lease} == leader.leases
    leader.pass_time(1.0)
    assert set() == leader.leases


@pytest.mark.parametrize("gap_s", [STALL_S + 0.1, 3600.0])
def test_a_stalled_leader_grants_full_time(gap_s: float) -> None:
    """Known elsewhere as: a stalled leader expires leases (etcd#12528, #15247).

    Its process was stopped, or its machine slept: the questions of all that time may still be in its sockets.
    """
    leader = Leader()
    lease = leader.grant()
    leader.pass_time(TTL_S - 0.2)
    leader.tick(after_s=gap_s)
    leader.pass_time(TTL_S - 0.2)
    assert {lease} == leader.leases
    leader.pass_time(1.0)
    assert set() == leader.leases


def test_a_leader_that_is_a_little_late_goes_on_counting() -> None:
    """Ticks that come late, but not by an election timeout, do not keep a dead holder's lease alive for ever."""
    leader = Leader()
    leader.grant()
    for _ in range(8):
        leader.tick(after_s=0.9)
        leader.apply()
    assert set() == leader.leases


def test_a_leader_without_a_quorum_ends_nothing() -> None:
    """Whatever is due, for however long; and when it has one again, everybody gets his full time."""
    leader = Leader()
    lease = leader.grant()
    leader.confirms = False
    leader.pass_time(10 * TTL_S)
    assert ({lease}, []) == (leader.leases, leader.log)
    leader.confirms = True
    leader.turn()
    leader.pass_time(TTL_S - 1.0)
    assert {lease} == leader.leases
    leader.pass_time(2.0)
    assert set() == leader.leases


def test_whoever_asks_before_the_confirmation_comes_is_heard() -> None:
    """A lease that is due ends only when a majority has answered since, and a question that came before that counts."""
    leader = Leader()
    lease = leader.grant()
    leader.tick()
    leader.pass_time(TTL_S - 0.3)
    leader.confirms = False
    leader.pass_time(0.5)
    assert 1 == len(leader.rounds)
    leader.ask(lease)
    leader.confirms = True
    leader.turn()
    leader.pass_time(TTL_S - 0.5)
    assert {lease} == leader.leases


def test_a_confirmation_counts_from_when_it_was_asked_for() -> None:
    """A lease that came to be due while others answered waits for the next one: they may have answered before that."""
    leader = Leader()
    lease = leader.grant()
    leader.tick()
    leader.pass_time(TTL_S - 0.3)
    leader.confirms = False
    asked = leader.ask(lease, renew=False)
    leader.pass_time(0.4)
    leader.confirm()
    leader.release()
    assert asked in leader.answers

    leader.tick()
    assert ([], 1) == (leader.log, len(leader.rounds))
    leader.confirm()
    leader.tick()
    assert [lease] == leader.log


def test_nothing_ends_before_an_entry_of_the_own_term_is_applied() -> None:
    """Until then the table may be that of long ago."""
    leader = Leader()
    lease = leader.grant()
    leader.may_end = False
    leader.pass_time(3 * TTL_S)
    assert ({lease}, []) == (leader.leases, leader.log)
    leader.may_end = True
    leader.pass_time(0.5)
    assert set() == leader.leases


# -- who is answered ---------------------------------------------------------------------------------------------------


def test_no_question_is_answered_before_a_majority_has_confirmed_the_leader_since() -> None:
    """A round that began before the question does not count for it."""
    leader = Leader()
    lease = leader.grant()
    leader.confirms = False
    first = leader.ask(lease)
    second = leader.ask(lease)
    third = leader.ask(lease)  # waits: two rounds are under way
    assert 2 == len(leader.rounds)
    leader.lessor.confirm(leader.rounds.pop(0), leader.index)
    leader.release()
    assert {first} == leader.answers.keys()
    leader.confirm()
    leader.release()
    assert {first, second} == leader.answers.keys()
    leader.turn()
    leader.confirm()
    leader.release()
    assert {first, second, third} == leader.answers.keys()


def test_a_turn_shares_a_round() -> None:
    """However many ask: one confirmation."""
    leader = Leader()
    leases = [leader.grant() for _ in range(50)]
    for number, lease in enumerate(leases):
        leader.lessor.take("a", LeaseQuestions(number, ((lease, True),)), leader.now)
    leader.confirms = False
    leader.turn()
    assert 1 == len(leader.rounds)
    leader.confirm()
    leader.release()
    assert set(range(50)) == leader.answers.keys()


def test_no_question_is_answered_before_what_was_committed_is_applied() -> None:
    """The end of the lease may be among it: then the answer is that it is gone."""
    leader = Leader()
    lease = leader.grant()
    applied = leader.applied
    leader.index += 1  # somebody's REVOKE is committed
    number = leader.ask(lease)
    assert {} == leader.answers
    leader.replica.apply(Envelope(CommandKind.MAP, 0, 0, 0, commands.encode_revoke(lease)).encode())
    leader.applied = applied + 1
    leader.release()
    assert {lease: (0, 0)} == leader.answers[number]


def test_once_its_end_is_proposed_a_lease_cannot_be_kept_alive() -> None:
    """Nobody knows yet whether that is committed: no answer until it is applied, and then that it is gone."""
    leader = Leader()
    lease = leader.grant()
    other = leader.grant(ttl_s=60.0)
    leader.tick()
    while not leader.log:
        leader.tick()
    number = leader.ask(lease, other)
    assert {other} == leader.answers[number].keys()
    leader.apply()
    assert {lease: (0, 0)} == leader.answers[leader.ask(lease)]


def test_an_end_that_was_surely_not_taken_is_taken_back() -> None:
    """The lease may be renewed again, and is; without that it is tried again."""
    leader = Leader()
    renewed, dead = leader.grant(), leader.grant()
    while not leader.log:
        leader.tick()
    leader.lessor.dropped(leader.log)
    leader.log.clear()
    assert {renewed: (5000, 5000)} == leader.answers[leader.ask(renewed)]
    leader.pass_time(0.5)
    assert {renewed} == leader.leases
    assert dead not in leader.leases


def test_questions_of_an_earlier_leadership_are_not_answered() -> None:
    """What a majority confirmed was not this one."""
    leader = Leader()
    lease = leader.grant()
    leader.confirms = False
    leader.ask(lease)
    late = list(leader.rounds)
    leader.change()
    leader.rounds = late
    leader.confirm()
    leader.release()
    assert {} == leader.answers


def test_a_lease_that_was_just_granted_can_be_kept_alive() -> None:
    """Before the first tick has seen it: it has its whole time."""
    leader = Leader()
    leader.tick()
    lease = leader.grant()
    assert {lease: (5000, 5000)} == leader.answers[leader.ask(lease)]


def test_questions_without_end_are_dropped() -> None:
    """Memory is bounded: who was not heard asks again. When there are answers, there is room again."""
    leader = Leader()
    lease = leader.grant()
    leader.confirms = False
    leader.ask(*[lease] * QUESTIONS_MAX)
    dropped = leader.ask(lease)
    leader.confirms = True
    leader.turn()
    assert dropped not in leader.answers
    assert leader.ask(lease) in leader.answers


def test_questions_that_were_given_up_take_no_room() -> None:
    """A leader that was cut off for long, and has a quorum again, answers."""
    leader = Leader()
    lease = leader.grant()
    leader.confirms = False
    for _ in range(10):
        leader.ask(*[lease] * (QUESTIONS_MAX // 4))
        leader.tick(after_s=STALL_S + 0.1)
    leader.confirms = True
    assert leader.ask(lease) in leader.answers


# -- what ends ---------------------------------------------------------------------------------------------------------


def test_a_large_lease_ends_in_several_commands_by_itself() -> None:
    """As many as its keys take are proposed at once, and the rest when those are applied."""
    leader = Leader(operations=2)
    leader.grant(keys=2 * REVOKES_PER_LEASE + 7)
    while not leader.log:
        leader.tick()
    assert REVOKES_PER_LEASE == len(leader.log)
    leader.pass_time(1.0)
    assert set() == leader.leases
    assert 0 == len(leader.replica.keyspace)


def test_whoever_leads_next_goes_on_with_what_is_ending() -> None:
    """Also with what a user began to revoke, and did not go on with; with no more commands than it takes."""
    leader = Leader(operations=2)
    lease = leader.grant(ttl_s=3600.0, keys=9)
    leader.run(commands.encode_revoke(lease))
    leader.change()
    leader.tick()
    for _ in range(20):
        leader.tick()  # nothing is applied meanwhile
    assert [lease] * 4 == leader.log
    leader.pass_time(0.5)
    assert (set(), 0) == (leader.leases, len(leader.replica.keyspace))


def test_what_is_ending_is_gone_for_who_asks() -> None:
    """Nothing can be attached to it any more."""
    leader = Leader(operations=2)
    lease = leader.grant(keys=9)
    leader.run(commands.encode_revoke(lease))
    assert {lease: (0, 0)} == leader.answers[leader.ask(lease)]


def test_many_ends_come_bit_by_bit() -> None:
    """Those that are not proposed yet may be renewed, and the log takes other things meanwhile."""
    leader = Leader()
    for _ in range(2 * LOOKED_AT_PER_TICK):
        leader.grant()
    while not leader.log:
        leader.tick()
    assert LOOKED_AT_PER_TICK == len(leader.log)
    leader.pass_time(1.0)
    assert set() == leader.leases


def test_ends_that_do_not_fit_an_entry_follow_in_the_next() -> None:
    """Those of one lease stay together; one that waits for its turn is not kept alive any more, as it has none left."""
    leader = Leader(operations=1)
    leader.revocations_max = 4
    leases = [leader.grant(keys=3) for _ in range(4)]
    while not leader.log:
        leader.tick()
    assert [leases[0]] * 3 + [leases[1]] * 3 == leader.log
    leader.lessor.dropped(leader.log)
    leader.log.clear()
    number = leader.ask(*leases)  # which is a turn, too
    assert set(leases[:2]) == leader.answers[number].keys()
    assert [leases[2]] * 3 + [leases[3]] * 3 == leader.log
    leader.pass_time(0.5)
    assert set(leases[:2]) == leader.leases


def test_leases_that_come_and_go_leave_nothing_behind() -> None:
    """Granted for days and revoked at once: deadlines do not pile up."""
    leader = Leader()
    for _ in range(200):
        for _ in range(10):
            leader.run(commands.encode_revoke(leader.grant(ttl_s=86400.0)))
        leader.tick()
    assert len(leader.lessor._heap) < 100
    assert len(leader.lessor._deadlines) < 100


def test_ten_thousand_leases_cost_little() -> None:
    """All of them kept alive, question by question: a tick takes well under a millisecond."""
    leader = Leader()
    leases = [leader.grant() for _ in range(10_000)]
    leader.tick()
    spent_s = 0.0
    ticks = 200
    for tick in range(ticks):
        for lease in leases[tick % 17 :: 17]:
            leader.lessor.take("a", LeaseQuestions(lease, ((lease, True),)), leader.now)
        leader.turn()
        started = time.process_time()
        leader.tick()
        spent_s += time.process_time() - started
    assert len(leases) == len(leader.leases)
    assert spent_s / ticks < 0.002


# -- against the promise -----------------------------------------------------------------------------------------------

LEASES = st.integers(1, 3)


class Promise(RuleBasedStateMachine):
    """Leaders of the same state follow one another; commands commit late, or with a later leader, or never.

    Whatever happens: whoever was told that his lease is kept alive has it for its time from when he sent the question.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leader = Leader(operations=2)
        self.sent: dict[int, tuple[int, float]] = {}
        self.promised: dict[int, float] = {}
        self.left: list[int] = []
        """Ends that an earlier leader has proposed, and that may yet be committed."""
        for _ in range(3):
            lease = self.leader.grant(keys=lease_keys(self.leader))
            self.promised[lease] = self.leader.now + TTL_S
        self.leader.tick()

    @rule(lease=LEASES, renew=st.booleans(), late_s=st.sampled_from([0.0, 0.0, 0.5, 3.0]))
    def ask(self, lease: int, renew: bool, late_s: float) -> None:
        """The question was sent a while before it arrives."""
        number = self.leader.ask(lease, renew=renew)
        if renew:
            self.sent[number] = (lease, self.leader.now - late_s)

    @rule(ticks=st.sampled_from([1, 5, 20, 45, 51]))
    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            self.leader.tick()
            self.look()

    @rule(gap_s=st.sampled_from([0.9, 1.1, 30.0]))
    def stall(self, gap_s: float) -> None:
        self.leader.tick(after_s=gap_s)
        self.look()

    @rule(confirms=st.booleans())
    def confirm(self, confirms: bool) -> None:
        """A majority answers from now on, or does not."""
        self.leader.confirms = confirms
        if confirms:
            self.inherit()
            self.leader.turn()

    @rule()
    def apply(self) -> None:
        self.leader.apply()
        self.look()

    @rule(keep=st.booleans())
    def change(self, keep: bool) -> None:
        """The next leader has what this one had proposed in its log, or has not."""
        if keep:
            self.left += self.leader.log
        self.leader.log.clear()
        self.leader.change()
        if self.leader.confirms:
            self.inherit()

    def inherit(self) -> None:
        """A new leader is confirmed for reads only once it has committed all that was in its log."""
        for lease in self.left:
            self.leader.run(commands.encode_revoke(lease))
        self.left.clear()

    @invariant()
    def hear(self) -> None:
        for number, answers in list(self.leader.answers.items()):
            del self.leader.answers[number]
            if number in self.sent:
                lease, sent = self.sent.pop(number)
                if lease in answers and answers[lease][0]:
                    assert lease in self.leader.leases
                    self.promised[lease] = max(self.promised.get(lease, 0.0), sent + TTL_S)

    @invariant()
    def look(self) -> None:
        """A lease that is not there was promised to nobody; and one whose end is under way is promised to nobody."""
        for lease, until in self.promised.items():
            gone = not self.leader.replica.map.leases.alive(lease) or lease in self.leader.log
            assert not gone or until <= self.leader.now, (lease, until, self.leader.now)


def lease_keys(leader: Leader) -> int:
    return 3 * len(leader.leases)


Promise.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestPromise = Promise.TestCase


def test_status_of_a_gone_lease_is_what_the_machine_says() -> None:
    """The machine refuses what the lessor calls gone."""
    leader = Leader()
    lease = leader.grant()
    leader.pass_time(TTL_S + 1.0)
    assert Status.NO_LEASE == leader.run(commands.encode_put(b"key", VALUE, lease))[0]
