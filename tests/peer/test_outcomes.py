"""What became of a command: seals on their way through the log, lost, doubled and late."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from own_session import NEVER, PLENTY, Peer, forget_session, mark, surely_not

from replikv.errors import OutcomeUnknownError, UnavailableError
from replikv.machine.envelope import CommandKind, Envelope, Status, pack_commands, unpack_commands
from replikv.machine.sessions import WINDOW
from replikv.peer.outcomes import NONCE_BIT, SEALS_PER_BATCH, Outcome, outcome_of

SEALED = bytes([Status.SEALED])


class Asker:
    """Tasks that ask for outcomes, and what they are told, by the number of the question."""

    def __init__(self, peer: Peer, nursery: trio.Nursery) -> None:
        self.peer = peer
        self.answers: dict[int, object] = {}
        self.scopes: dict[int, trio.CancelScope] = {}
        self._nursery = nursery

    async def ask(self, number: int, token: tuple[int, int], deadline: float = NEVER) -> None:
        scope = self.scopes[number] = trio.CancelScope()

        async def wait() -> None:
            with scope:
                try:
                    self.answers[number] = await self.peer.proposals.settle(token, deadline)
                except Exception as exc:
                    self.answers[number] = exc

        self._nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()

    def take(self, ticks: int = 0) -> bytes:
        taken = self.peer.proposals.take_seals(ticks)
        return b"" if taken is None else taken[0]

    async def answered(self) -> dict[int, object]:
        await trio.testing.wait_all_tasks_blocked()
        return self.answers


@pytest.fixture
async def asker(nursery: trio.Nursery) -> Asker:
    peer = Peer(nursery)
    peer.register()
    return Asker(peer, nursery)


# -- what the answers mean ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"\x00result", Outcome(True, b"result")),
        (b"\x00", Outcome(True, b"")),
        (b"\x01the machine raised", Outcome(False, reason="the machine raised")),
        (b"\x06", Outcome(False, reason="UNKNOWN_COMMAND")),
        (b"\x07no lease", Outcome(False, reason="no lease")),
        (b"\x08too much", Outcome(False, reason="too much")),
        (SEALED, Outcome(False, reason="it had not been applied when this was asked, and never will be")),
    ],
)
def test_what_a_recorded_answer_says(answer: bytes, expected: Outcome) -> None:
    """Applied with its result, or not applied with the reason; true when applied."""
    assert expected == outcome_of((7, 3), answer)
    assert expected.applied == bool(outcome_of((7, 3), answer))


@pytest.mark.parametrize(("status", "words"), [(Status.UNKNOWN_SESSION, "evicted"), (Status.STALE, "was told")])
def test_nobody_can_tell_any_more(status: Status, words: str) -> None:
    """A session that is gone, a command that was acknowledged: the same token, and the reason."""
    with pytest.raises(OutcomeUnknownError, match=f"nobody can tell any more.*{words}") as caught:
        outcome_of((7, 3), bytes([status]))
    assert (7, 3) == caught.value.token


def test_it_may_be_too_early_to_tell() -> None:
    """Far ahead of what the session has acknowledged nothing can be settled: it may be asked again."""
    with pytest.raises(UnavailableError, match="cannot be settled yet"):
        outcome_of((7, 9999), bytes([Status.BEYOND_WINDOW]))


# -- on their way ------------------------------------------------------------------------------------------------------


async def test_a_timed_out_put_must_not_be_applied_later_without_a_trace(asker: Asker) -> None:
    """Once its outcome was told as "not applied", no late attempt of it is executed, however often it comes."""
    peer = asker.peer
    await peer.put(1, deadline=1.0)
    late = peer.take()
    peer.proposals.expire(1.0, surely_not, lambda: "too slow")
    unknown = (await peer.settled())[1]
    assert isinstance(unknown, OutcomeUnknownError)
    await asker.ask(1, unknown.token)
    peer.apply(asker.take())
    assert {1: SEALED} == await asker.answered()
    for _ in range(2):
        peer.apply(late)
        await peer.put(2)
        peer.apply(peer.take())  # with a mark above the sealed one
    assert {b"2": 2} == dict(peer.counted.times)


async def test_what_was_applied_is_told_with_its_result(asker: Asker) -> None:
    """The log had the command although its answer came too late; asking does not apply it again."""
    peer = asker.peer
    await peer.put(1, deadline=1.0, by=5)
    late = peer.take()
    peer.proposals.expire(1.0, surely_not, lambda: "too slow")
    peer.apply(late)
    await asker.ask(1, (peer.proposals.session, 1))
    peer.apply(asker.take())
    answer = (await asker.answered())[1]
    assert isinstance(answer, bytes)
    assert (0, 5) == (answer[0], answer[-1])


async def test_what_was_told_does_not_hold_the_mark_any_more(asker: Asker) -> None:
    """Replicas keep the results of open questions; once this one is answered they may forget it."""
    peer = asker.peer
    await peer.put(1, deadline=1.0)
    peer.take()
    peer.proposals.expire(1.0, surely_not, lambda: "too slow")
    await peer.put(2)
    assert 1 == mark(peer.take())
    await asker.ask(1, (peer.proposals.session, 1))
    seal = asker.take()
    assert [1] == [Envelope.decode(command).acknowledged_below for command in unpack_commands(seal)]
    peer.apply(seal)
    await asker.answered()
    await peer.put(3)
    assert 2 == mark(peer.take())


async def test_a_question_that_was_cancelled_leaves_the_mark_where_it_is(asker: Asker) -> None:
    """Nobody was told: it can be asked again, with the same answer."""
    peer = asker.peer
    await peer.put(1, deadline=1.0)
    peer.take()
    peer.proposals.expire(1.0, surely_not, lambda: "too slow")
    await asker.ask(1, (peer.proposals.session, 1))
    seal = asker.take()
    asker.scopes[1].cancel()
    await trio.testing.wait_all_tasks_blocked()
    peer.apply(seal)
    await peer.put(2)
    assert 1 == mark(peer.take())
    await asker.ask(2, (peer.proposals.session, 1))
    peer.apply(asker.take())
    assert {2: SEALED} == await asker.answered()


async def test_who_waits_for_a_command_that_somebody_has_settled_is_told_the_truth(asker: Asker) -> None:
    """It was surely not applied, and may be sent again: UnavailableError, no bug of ours."""
    peer = asker.peer
    await peer.put(1)
    put = peer.take()
    await asker.ask(1, (peer.proposals.session, 1))
    peer.apply(asker.take())
    peer.apply(put)
    answer = (await peer.settled())[1]
    assert isinstance(answer, UnavailableError)
    assert "safe to send it again" in str(answer)
    assert {} == dict(peer.counted.times)
    assert 0 == peer.proposals.in_flight


async def test_a_seal_goes_again_when_it_may_be_lost(asker: Asker) -> None:
    """Not taken; overdue; a new leader. It is the same seal, and each goes once meanwhile."""
    proposals = asker.peer.proposals
    await asker.ask(1, (1, 1))
    assert proposals.waiting
    taken = proposals.take_seals(5)
    assert taken is not None
    seal, dropped = taken
    assert not proposals.waiting
    assert proposals.take_seals(5) is None
    dropped()
    assert seal == asker.take(6)
    proposals.hand_overdue_again(6)
    assert b"" == asker.take(7)
    proposals.hand_overdue_again(7)
    assert seal == asker.take(8)
    proposals.hand_all_again()
    assert seal == asker.take(9)
    asker.peer.apply(seal + seal)
    assert {1: SEALED} == await asker.answered()
    assert not proposals.waiting


async def test_a_seal_needs_no_session_and_takes_no_sequence(nursery: trio.Nursery) -> None:
    """A peer that has none yet may ask; its number in the log is none that a command has."""
    peer = Peer(nursery)
    asker = Asker(peer, nursery)
    await asker.ask(1, (77, 5))
    (command,) = unpack_commands(asker.take())
    envelope = Envelope.decode(command)
    assert (CommandKind.SEAL, 77, 0, (5).to_bytes(8)) == (envelope.kind, *envelope[1:2], *envelope[3:])
    assert envelope.sequence >= NONCE_BIT
    peer.apply(pack_commands([command]))
    assert {1: bytes([Status.UNKNOWN_SESSION])} == await asker.answered()


async def test_questions_end_in_time_and_with_the_peer(asker: Asker) -> None:
    """Nothing is settled then: it may be asked again."""
    await asker.ask(1, (1, 1), deadline=2.0)
    await asker.ask(2, (1, 2), deadline=5.0)
    asker.peer.proposals.expire(2.0, surely_not, lambda: "no leader")
    answers = await asker.answered()
    assert [1] == list(answers)
    assert isinstance(answers[1], UnavailableError)
    assert "no leader; ask again" in str(answers[1])
    asker.peer.proposals.fail_all(lambda: ValueError("closed"), "closed")
    assert isinstance((await asker.answered())[2], ValueError)


async def test_many_questions_go_in_several_batches(asker: Asker) -> None:
    """A batch stays far below what an entry may hold; each is answered."""
    for number in range(SEALS_PER_BATCH + 1):
        await asker.ask(number, (1, 1 + number % WINDOW))
    first, second = asker.take(), asker.take()
    assert SEALS_PER_BATCH == len(unpack_commands(first))
    assert 1 == len(unpack_commands(second))
    asker.peer.apply(first)
    asker.peer.apply(second)
    assert SEALS_PER_BATCH + 1 == len(await asker.answered())


# -- all of it ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_is_told_stays_true(seed: int) -> None:
    """Commands and seals lost, doubled and late, sessions evicted, questions of this and of another peer: what is told
    to be applied is, once; what is told not to be never is, though its attempts come to the very end.
    """
    trio.run(tell_for_good, random.Random(seed))


async def tell_for_good(chance: random.Random) -> None:
    async with trio.open_nursery() as nursery:
        peer = Peer(nursery)
        asker = Asker(peer, nursery)
        under_way: list[bytes] = []
        names: dict[tuple[int, int], bytes] = {}
        asked: dict[int, tuple[int, int]] = {}
        now = number = 0
        for _ in range(150):
            now += chance.random() < 0.3
            match chance.randrange(9):
                case 0 | 1:
                    number += 1
                    await peer.put(number, deadline=now + chance.randint(1, 10))
                case 2 | 3:
                    registration = peer.proposals.take_registration(now)
                    if registration is not None:
                        under_way.append(pack_commands([registration]))
                    taken, data = peer.proposals.take(now, PLENTY)
                    names |= {(peer.proposals.session, one.sequence): one.payload for one in taken}
                    under_way += [data] if data else []
                case 4 if names:
                    token = chance.choice(list(names))
                    asked[len(asked)] = token
                    await asker.ask(len(asked) - 1, token, deadline=now + chance.randint(1, 30))
                case 5:
                    under_way += [seal] if (seal := asker.take(now)) else []
                case 6 | 7 if under_way:
                    place = chance.randrange(len(under_way))
                    peer.apply(under_way[place] if chance.random() < 0.3 else under_way.pop(place))
                case _:
                    peer.proposals.hand_all_again()
                    if chance.random() < 0.1:
                        forget_session(peer)
            peer.proposals.expire(now, surely_not, lambda: "why")
        for data in under_way:
            peer.apply(data)
        peer.proposals.fail_all(surely_not, "the end")
        results = await peer.settled()
        unknown = {result.token for result in results.values() if isinstance(result, OutcomeUnknownError)}
        for question, answer in (await asker.answered()).items():
            if not isinstance(answer, bytes):
                continue
            token = asked[question]
            times = peer.counted.times[names[token]]
            try:
                told = outcome_of(token, answer)
            except OutcomeUnknownError:
                assert times <= 1
                continue
            # A command that nobody was given the token of goes again, under another, when its session was evicted.
            others = [other for other, payload in names.items() if payload == names[token] and other != token]
            if told or not others or token in unknown:
                assert times == (1 if told else 0)
            else:
                assert times <= 1
