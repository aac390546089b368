"""The session of a peer and its commands: handing over, answering, losing and finding again."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from own_session import PLENTY, Counted, Peer, forget_session, mark, sequences, surely_not

from replikv.errors import InternalError, OutcomeUnknownError, UnavailableError
from replikv.machine.commands import encode_put
from replikv.machine.envelope import CommandKind, Envelope, pack_commands, unpack_commands
from replikv.machine.replica import Replica
from replikv.machine.sessions import WINDOW
from replikv.peer.proposals import UNSETTLED_MAX, Proposal, Proposals


@pytest.fixture
async def peer(nursery: trio.Nursery) -> Peer:
    """One with a session."""
    peer = Peer(nursery)
    peer.register()
    return peer


# -- the session -------------------------------------------------------------------------------------------------------


async def test_nothing_is_handed_over_without_a_session(nursery: trio.Nursery) -> None:
    """The registration goes first, once at a time, and again when it was lost or its answer is overdue."""
    peer = Peer(nursery)
    await peer.put(1)
    assert b"" == peer.take()
    registration = peer.proposals.take_registration(0)
    assert registration is not None
    assert peer.proposals.take_registration(1) is None
    assert not peer.proposals.waiting
    peer.proposals.registration_lost()
    assert registration == peer.proposals.take_registration(2)
    peer.proposals.hand_overdue_again(2)
    assert peer.proposals.take_registration(3) is None
    peer.proposals.hand_overdue_again(3)
    assert registration == peer.proposals.take_registration(4)
    peer.proposals.hand_all_again()
    assert registration == peer.proposals.take_registration(5)
    peer.apply(pack_commands([registration, registration]))
    assert 1 == peer.proposals.session  # the first of them counts
    peer.apply(peer.take())
    assert {1} == set(await peer.settled())


async def test_the_registration_of_another_opens_nothing(nursery: trio.Nursery) -> None:
    """Nor does a command that only looks like one."""
    peer = Peer(nursery)
    other = Proposals("b", 10, random.Random(2)).take_registration(0)
    own = peer.proposals.take_registration(0)
    assert other is not None
    assert own is not None
    envelope = Envelope.decode(own)
    seal = Envelope(CommandKind.MAP, 0, envelope.sequence, 0, encode_put(b"k", b"\x01")).encode()
    peer.apply(pack_commands([other, seal]))
    assert 0 == peer.proposals.session
    peer.apply(pack_commands([own]))
    assert 3 == peer.proposals.session


# -- handing over ------------------------------------------------------------------------------------------------------


async def test_each_command_has_its_own_sequence_and_answer(peer: Peer) -> None:
    """Sequences ascend from 1; each task gets the result of its own command, whatever the order of application."""
    for number in range(1, 6):
        await peer.put(number, by=number)
    data = peer.take()
    assert [1, 2, 3, 4, 5] == sequences(data)
    peer.apply(pack_commands(reversed(unpack_commands(data))))
    results = await peer.settled()
    assert [bytes([n]) for n in (15, 14, 12, 9, 5)] == [results[n][-1:] for n in range(1, 6)]  # type: ignore[index]
    assert 0 == peer.proposals.in_flight


async def test_the_mark_is_the_lowest_command_without_an_answer(peer: Peer) -> None:
    """What it acknowledges, replicas may forget: so it never passes a command that somebody waits for."""
    for number in range(1, 4):
        await peer.put(number)
    first, second, third = unpack_commands(peer.take())
    peer.apply(pack_commands([first, third]))
    await peer.put(4)
    assert 2 == mark(peer.take())
    peer.apply(pack_commands([second]))
    await peer.put(5)
    assert 4 == mark(peer.take())


async def test_a_batch_is_bounded_in_bytes_and_lets_one_through(peer: Peer) -> None:
    """Commands go as they fit, one at the least."""
    for number in range(10, 14):
        await peer.put(number)
    payload = len(b"10")
    assert 1 == len(sequences(peer.take(bytes_max=1)))
    assert 2 == len(sequences(peer.take(bytes_max=2 * payload)))
    assert peer.proposals.waiting
    assert 1 == len(sequences(peer.take(bytes_max=2 * payload)))
    assert not peer.proposals.waiting


async def test_no_more_than_the_limit_is_in_flight(nursery: trio.Nursery) -> None:
    """The others wait for answers; so does ``waiting``, or the driver would spin."""
    peer = Peer(nursery, in_flight_max=2)
    peer.register()
    for number in range(5):
        await peer.put(number)
    taken = []
    while data := peer.take():
        taken.append(sequences(data))
        assert not peer.proposals.waiting
        peer.apply(data)
    assert [[1, 2], [3, 4], [5]] == taken
    assert 5 == len(await peer.settled())


async def test_the_window_is_never_left(nursery: trio.Nursery) -> None:
    """While the first command has no answer, sequences stop a window above it."""
    peer = Peer(nursery, in_flight_max=10**9)
    peer.register()
    await peer.put(0)
    first = peer.take()
    count = 1
    while True:
        for number in range(100):
            await peer.put(count * 1000 + number)
        if not (data := peer.take()):
            break
        assert max(sequences(data)) <= WINDOW
        peer.apply(data)
        count += 1
    assert all(isinstance(result, bytes) for result in (await peer.settled()).values())
    peer.apply(first)
    data = peer.take()
    assert data
    peer.apply(data)
    assert 0 not in {result if result is None else 1 for result in peer.results.values()}
    assert isinstance((await peer.settled())[0], bytes)


async def test_handed_again_it_is_the_same_command(peer: Peer) -> None:
    """Applied twice, answered once; what has an answer is not handed again."""
    await peer.put(1, by=1)
    await peer.put(2, by=1)
    data = peer.take()
    first, _ = unpack_commands(data)
    peer.apply(pack_commands([first]))
    peer.proposals.hand_all_again()
    assert peer.proposals.waiting
    again = peer.take()
    assert [2] == sequences(again)
    peer.apply(data)
    peer.apply(again)
    results = await peer.settled()
    assert [b"\x01", b"\x02"] == [results[1][-1:], results[2][-1:]]  # type: ignore[index]


async def test_overdue_commands_go_again_alone(peer: Peer) -> None:
    """Those handed over before the tick, and not those since; none while the oldest is not overdue."""
    await peer.put(1)
    peer.take(ticks=5)
    await peer.put(2)
    peer.take(ticks=8)
    peer.proposals.hand_overdue_again(5)
    assert not peer.proposals.waiting
    peer.proposals.hand_overdue_again(6)
    assert [1] == sequences(peer.take(ticks=9))
    peer.proposals.hand_overdue_again(9)
    assert not peer.proposals.waiting
    peer.proposals.hand_overdue_again(10)
    assert [1, 2] == sequences(peer.take(ticks=10))


async def test_given_back_it_goes_again_before_what_is_new(peer: Peer) -> None:
    """A refused batch is handed over once more, under the same sequences."""
    await peer.put(1)
    taken, data = peer.proposals.take(0, PLENTY)
    await peer.put(2)
    peer.proposals.give_back(taken, 1)
    assert [1, 2] == sequences(peer.take())
    assert [1] == sequences(data)


# -- cancellation ------------------------------------------------------------------------------------------------------


async def test_cancelled_in_the_queue_it_is_gone(peer: Peer) -> None:
    """Never handed over, and no sequence lost on it."""
    await peer.put(1)
    await peer.put(2)
    await peer.cancel(1)
    data = peer.take()
    assert [1] == sequences(data)
    peer.apply(data)
    assert {1: "cancelled"}.items() <= (await peer.settled()).items()
    assert {b"2": 1} == peer.counted.times


async def test_cancelled_after_hand_over_its_result_is_kept_for_a_while(peer: Peer) -> None:
    """Its outcome may be asked for: the mark stays below it, until half a window has passed."""
    await peer.put(0)
    first = peer.take()
    await peer.cancel(0)
    assert 0 == peer.proposals.in_flight
    handed = 0
    for number in range(1, UNSETTLED_MAX + 3):
        await peer.put(number)
        data = peer.take()
        (handed,) = sequences(data)
        assert mark(data) == (1 if handed <= UNSETTLED_MAX + 1 else handed)
        peer.apply(data)
    peer.apply(first)  # late, and too late
    assert 0 == peer.counted.times[b"0"]


async def test_a_cancelled_command_that_was_lost_holds_the_mark_until_its_time_is_up(peer: Peer) -> None:
    """Nobody asks what became of it: replicas need not keep what came after it, and refuse it if it comes after all."""
    await peer.put(1, deadline=5.0)
    late = peer.take()
    await peer.cancel(1)
    for number, now, expected in ((2, 0.0, 1), (3, 4.9, 1), (4, 5.0, 4)):
        peer.proposals.expire(now, surely_not, lambda: "why")
        await peer.put(number)
        data = peer.take()
        assert expected == mark(data)
        peer.apply(data)
    peer.apply(late)
    assert 0 == peer.counted.times[b"1"]


async def test_a_command_whose_token_was_told_holds_the_mark_beyond_its_time(peer: Peer) -> None:
    """Whoever has the token may ask what became of it."""
    await peer.put(1, deadline=5.0)
    late = peer.take()
    for now in (5.0, 500.0):
        peer.proposals.expire(now, surely_not, lambda: "why")
    assert isinstance((await peer.settled())[1], OutcomeUnknownError)
    await peer.put(2)
    data = peer.take()
    assert 1 == mark(data)
    peer.apply(data)
    peer.apply(late)
    assert 1 == peer.counted.times[b"1"]


async def test_what_is_given_up_never_blocks_the_window(peer: Peer) -> None:
    """Thousands of callers that left: the bound on what is remembered of them lets the others go on."""
    for number in range(2 * WINDOW):
        await peer.put(number)
        peer.take()
        await peer.cancel(number)
        if number % 500 == 0:
            await peer.put(-number - 1)
            data = peer.take()
            assert data
            peer.apply(data)
    assert 17 == sum(isinstance(result, bytes) for result in (await peer.settled()).values())


async def test_cancelled_after_it_was_given_back_it_is_gone(peer: Peer) -> None:
    """Surely not taken by anybody: there is nothing to remember."""
    await peer.put(1)
    taken, _ = peer.proposals.take(0, PLENTY)
    peer.proposals.give_back(taken, 1)
    await peer.cancel(1)
    await peer.put(2)
    data = peer.take()
    assert [2] == sequences(data)
    assert 2 == mark(data)


async def test_payloads_are_let_go_of_with_their_callers(peer: Peer) -> None:
    """Answered, or left: whoever remembers a proposal for longer, in case it is refused, does not hold its bytes."""
    for number in (1, 2, 3):
        await peer.put(number)
    taken, data = peer.proposals.take(0, PLENTY)
    first, *_ = unpack_commands(data)
    assert [b"1", b"2", b"3"] == [proposal.payload for proposal in taken]
    peer.apply(pack_commands([first]))
    await peer.cancel(2)
    assert [b"", b"", b"3"] == [proposal.payload for proposal in taken]


async def test_who_waits_first_does_not_hold_the_payloads_of_those_that_left(peer: Peer) -> None:
    """They stay in the queue behind it, as nothing more than a place."""
    await peer.put(1)
    for number in range(2, 12):
        await peer.put(number)
        await peer.cancel(number)
    assert b"1" == b"".join(proposal.payload for proposal in peer.proposals._queue)
    peer.apply(peer.take())
    await peer.settled()
    assert {b"1": 1} == peer.counted.times


# -- the end of waiting ------------------------------------------------------------------------------------------------


async def test_time_is_up(peer: Peer) -> None:
    """Not handed over, or given back: surely not. Handed over: unknown, with a token that names it."""
    await peer.put(1, deadline=5.0)
    await peer.put(2, deadline=6.0)
    taken, _ = peer.proposals.take(0, 1)
    await peer.put(3, deadline=7.0)
    given_back, _ = peer.proposals.take(0, 1)
    peer.proposals.give_back(given_back, 1)
    peer.proposals.expire(4.9, surely_not, lambda: "why")
    assert {} == await peer.settled()
    peer.proposals.expire(6.0, surely_not, lambda: "the reason")
    results = await peer.settled()
    assert {1, 2} == set(results)
    assert isinstance(results[1], OutcomeUnknownError)
    assert (1, 1) == results[1].token
    assert "the reason" in str(results[1])
    assert isinstance(results[2], UnavailableError)
    peer.proposals.expire(7.0, surely_not, lambda: "why")
    assert isinstance((await peer.settled())[3], UnavailableError)
    assert [1] == [proposal.sequence for proposal in taken]
    assert 0 == peer.proposals.in_flight


async def test_a_command_refused_once_and_taken_once_is_unknown(peer: Peer) -> None:
    """Handed over twice: one refusal does not vouch for the other attempt."""
    await peer.put(1, deadline=5.0)
    first, _ = peer.proposals.take(0, PLENTY)
    peer.proposals.hand_all_again()
    peer.take()
    peer.proposals.give_back(first, 1)
    peer.proposals.expire(5.0, surely_not, lambda: "why")
    assert isinstance((await peer.settled())[1], OutcomeUnknownError)


async def test_when_the_peer_stops_everybody_is_told(peer: Peer) -> None:
    """Who waits in the queue, and who was handed over."""
    await peer.put(1)
    peer.take()
    await peer.put(2)
    peer.proposals.fail_all(surely_not, "stopped")
    results = await peer.settled()
    assert [OutcomeUnknownError, UnavailableError] == [type(results[1]), type(results[2])]


async def test_an_answer_that_no_replica_gives_is_our_bug(peer: Peer) -> None:
    """The caller gets InternalError, and nobody else is harmed."""
    await peer.put(1)
    await peer.put(2)
    commands = unpack_commands(peer.take())
    peer.proposals.applied(commands, [b"\x03", b"\x00ok"])
    results = await peer.settled()
    assert isinstance(results[1], InternalError)
    assert b"\x00ok" == results[2]


async def test_beyond_the_window_it_goes_again(peer: Peer) -> None:
    """A replica that keeps too much for us refuses for now: the attempt does not count."""
    await peer.put(1)
    peer.proposals.applied(unpack_commands(peer.take()), [b"\x04"])
    assert {} == await peer.settled()
    assert [1] == sequences(peer.take())


# -- a session that is lost --------------------------------------------------------------------------------------------


async def test_an_unknown_session_is_opened_anew(peer: Peer) -> None:
    """What was refused with it goes again in the new one, in order; who was answered before is done."""
    await peer.put(1, by=1)
    peer.apply(peer.take())
    for number in range(2, 5):
        await peer.put(number, by=1)
    data = peer.take()
    await peer.put(5, by=1)
    first, *rest = unpack_commands(data)
    peer.apply(pack_commands([first]))
    forget_session(peer)
    peer.apply(pack_commands(rest))
    assert 0 == peer.proposals.session
    peer.register()
    assert peer.proposals.session > 1
    data = peer.take()
    assert [1, 2, 3] == sequences(data)
    peer.apply(data)
    results = await peer.settled()
    assert [bytes([n]) for n in range(1, 6)] == [results[n][-1:] for n in range(1, 6)]  # type: ignore[index]


async def test_a_refusal_from_the_time_of_a_lost_session_does_not_count(peer: Peer) -> None:
    """It says that the old command was not taken: of the new one, which was, it says nothing."""
    await peer.put(1, deadline=5.0)
    of_old_session, old = peer.proposals.take(0, PLENTY)
    forget_session(peer)
    peer.apply(old)
    peer.register()
    peer.take()
    peer.proposals.give_back(of_old_session, 1)
    peer.proposals.expire(5.0, surely_not, lambda: "why")
    assert isinstance((await peer.settled())[1], OutcomeUnknownError)


async def test_results_that_came_with_a_snapshot_are_found(peer: Peer, nursery: trio.Nursery) -> None:
    """Applied elsewhere while this replica was away: answered; the others stay."""
    for number in range(1, 4):
        await peer.put(number, by=1)
    first, _, third = unpack_commands(peer.take())
    elsewhere = Replica(Counted())
    elsewhere.restore(peer.replica.snapshot())
    elsewhere.apply_many([first, third])
    peer.replica.restore(elsewhere.snapshot())
    peer.proposals.find_in(peer.replica.sessions)
    results = await peer.settled()
    assert {1, 3} == set(results)
    assert [b"\x01", b"\x02"] == [results[1][-1:], results[3][-1:]]  # type: ignore[index]
    assert 1 == peer.proposals.in_flight


async def test_a_session_registered_twice_is_none_that_was_evicted(nursery: trio.Nursery) -> None:
    """The registration was handed over again, and both are in the log: the first is ours, and a snapshot has it too."""
    peer = Peer(nursery)
    registration = peer.proposals.take_registration(0)
    assert registration is not None
    peer.apply(pack_commands([registration, registration]))
    await peer.put(1, by=1)
    await peer.put(2, by=1)
    first, _ = unpack_commands(peer.take())
    elsewhere = Replica(Counted())
    elsewhere.restore(peer.replica.snapshot())
    elsewhere.apply(first)
    peer.replica.restore(elsewhere.snapshot())
    peer.proposals.find_in(peer.replica.sessions)
    assert 1 == peer.proposals.session
    results = await peer.settled()
    assert {1} == set(results)
    assert b"\x01" == results[1][-1:]  # type: ignore[index]
    assert 1 == peer.proposals.in_flight


async def test_a_registration_that_came_with_a_snapshot_is_found(nursery: trio.Nursery) -> None:
    """The session is open without its command ever having been applied here."""
    peer = Peer(nursery)
    await peer.put(1)
    registration = peer.proposals.take_registration(0)
    assert registration is not None
    peer.proposals.find_in(peer.replica.sessions)
    assert 0 == peer.proposals.session
    elsewhere = Replica(Counted())
    elsewhere.apply(registration)
    peer.replica.restore(elsewhere.snapshot())
    peer.proposals.find_in(peer.replica.sessions)
    assert 1 == peer.proposals.session
    peer.apply(peer.take())
    assert {1} == set(await peer.settled())


async def test_a_session_that_a_snapshot_no_longer_has_leaves_outcomes_unknown(peer: Peer) -> None:
    """What was handed over may have been applied before the eviction; what was not goes into the next session."""
    await peer.put(1)
    peer.take()
    await peer.put(2)
    peer.proposals.find_in(Replica().sessions)
    results = await peer.settled()
    assert {1} == set(results)
    assert isinstance(results[1], OutcomeUnknownError)
    assert (1, 1) == results[1].token
    peer.register()
    peer.apply(peer.take())
    assert {1, 2} == set(await peer.settled())


# -- all of it ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_each_command_is_applied_once_at_most_and_truly_told(seed: int) -> None:
    """Batches lost, refused, doubled and late, sessions evicted, callers cancelled or out of time, in any order:
    answered commands count once, unavailable ones never, all others once at most, and nobody waits for ever.
    """
    trio.run(tell_truly, random.Random(seed))


async def tell_truly(chance: random.Random) -> None:
    async with trio.open_nursery() as nursery:
        peer = Peer(nursery, in_flight_max=chance.choice((1, 3, 100)))
        proposals = peer.proposals
        under_way: list[tuple[list[Proposal], bytes]] = []
        refusable: list[Callable[[], None]] = []
        now = number = 0

        async def submit() -> None:
            nonlocal number
            number += 1
            await peer.put(number, deadline=now + chance.randint(1, 30))

        def hand_over() -> None:
            registration = proposals.take_registration(now)
            if registration is not None:
                under_way.append(([], pack_commands([registration])))
            taken, data = proposals.take(now, PLENTY)
            if data and chance.random() < 0.3:
                refusable.append(functools.partial(proposals.give_back, taken, proposals.session))
            elif data:
                under_way.append((taken, data))

        def arrive() -> None:
            if under_way:
                place = chance.randrange(len(under_way))
                peer.apply(under_way[place][1] if chance.random() < 0.3 else under_way.pop(place)[1])

        for _ in range(150):
            now += chance.random() < 0.3
            match chance.randrange(10):
                case 0 | 1:
                    await submit()
                case 2 | 3 | 4:
                    hand_over()
                case 5 | 6:
                    arrive()
                case 7 if refusable:
                    refusable.pop(0)()
                case 8:
                    refusable.clear()  # a new route: later refusals of the old one are not listened to
                    proposals.hand_all_again()
                    if chance.random() < 0.2:
                        forget_session(peer)
                case _:
                    if number and chance.random() < 0.3:
                        await peer.cancel(chance.randint(1, number))
            proposals.expire(now, surely_not, lambda: "why")
        for _, data in under_way:
            peer.apply(data)
        proposals.fail_all(surely_not, "the end")
        results = await peer.settled()
        assert set(range(1, number + 1)) == set(results)
        for command, result in results.items():
            times = peer.counted.times[b"%d" % command]
            assert times <= 1
            if isinstance(result, bytes):
                assert 1 == times
            elif isinstance(result, UnavailableError):
                assert 0 == times
