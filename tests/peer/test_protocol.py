"""What peers say to each other: every message comes out as it went in, and nothing else comes out at all."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replikv.peer.protocol import (
    Forwarded,
    FrameKind,
    LeaseAnswers,
    LeaseQuestions,
    MalformedFrameError,
    Moved,
    Refusal,
    SnapshotHeader,
    decode,
    encode_forwarded,
    encode_lease_answers,
    encode_lease_questions,
    encode_message,
    encode_moved,
    encode_refusal,
    encode_snapshot_header,
)
from replikv.raft.entries import Entry, EntryKind, SnapshotMetadata
from replikv.raft.membership import ChangeKind, MemberChange, MemberRecord, Membership, MembershipChange
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    TransferLeadership,
)

numbers = st.integers(0, 2**64 - 1)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ends = {"sender": st.just("us"), "to": st.just("them")}


@st.composite
def appends(draw: st.DrawFn) -> AppendEntries:
    """Of entries such as a leader of that term can have."""
    previous_index = draw(st.integers(0, 2**63))
    previous_term, *terms = sorted(draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6)))
    contents = st.binary(max_size=50).map(lambda data: (data, EntryKind.COMMANDS)) | names.map(
        lambda name: (MembershipChange((MemberChange(ChangeKind.REMOVE, name),)).encode(), EntryKind.MEMBERSHIP)
    )
    entries = tuple(Entry(previous_index + 1 + place, term, *draw(contents)) for place, term in enumerate(terms))
    return AppendEntries(
        sender="us",
        to="them",
        term=draw(st.integers(max(previous_term, *terms, 0), 2**64 - 1)),
        previous_index=previous_index,
        previous_term=previous_term,
        entries=entries,
        commit=draw(numbers),
    )


@st.composite
def memberships(draw: st.DrawFn) -> Membership:
    ids = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    records = {
        node_id: MemberRecord(draw(names), draw(names), draw(numbers), draw(st.dictionaries(names, names, max_size=2)))
        for node_id in ids
    }
    return Membership(voters=frozenset(ids[:3]), learners=frozenset(ids[3:]), members=records)


messages: st.SearchStrategy[Message] = st.one_of(
    appends(),
    st.builds(
        AppendEntriesResponse,
        **ends,
        term=numbers,
        index=numbers,
        reject=st.booleans(),
        hint_index=numbers,
        hint_term=numbers,
    ),
    st.builds(
        RequestVote,
        **ends,
        term=numbers,
        last_index=numbers,
        last_term=numbers,
        pre_vote=st.booleans(),
        transfer=st.booleans(),
        commit=numbers,
        commit_term=numbers,
    ),
    st.builds(
        RequestVoteResponse,
        **ends,
        term=numbers,
        reject=st.booleans(),
        pre_vote=st.booleans(),
        commit=numbers,
        commit_term=numbers,
    ),
    st.builds(Heartbeat, **ends, term=numbers, commit=numbers, read_position=numbers),
    st.builds(HeartbeatResponse, **ends, term=numbers, read_position=numbers),
    st.builds(ReadIndex, sender=names.filter(bool), to=st.just("them"), context=numbers, hops=st.integers(0, 255)),
    st.builds(ReadIndexResponse, **ends, context=numbers, index=numbers),
    st.builds(TimeoutNow, **ends, term=numbers),
    st.builds(TransferLeadership, **ends, term=numbers, transferee=names),
)


@given(messages)
def test_every_message_comes_out_as_it_went_in(message: Message) -> None:
    """Sender and receiver are those of the connection; of a read, which is passed on, who asked first."""
    assert message == decode(encode_message(message), "us", "them")


def test_every_kind_of_message_is_covered() -> None:
    """A kind that is added needs a frame, and a place in the test above; a snapshot travels on a channel."""
    drawn = {AppendEntries, AppendEntriesResponse, RequestVote, RequestVoteResponse, Heartbeat, HeartbeatResponse}
    drawn |= {ReadIndex, ReadIndexResponse, TimeoutNow, TransferLeadership}
    assert drawn == set(Message.__subclasses__()) - {InstallSnapshot}
    with pytest.raises(TypeError, match="InstallSnapshot"):
        encode_message(InstallSnapshot(to="them", snapshot=SnapshotMetadata(1, 1, Membership())))


@given(numbers, st.binary(max_size=100))
def test_forwarded_commands_come_out_as_they_went_in(batch: int, commands: bytes) -> None:
    """Opaque on their way."""
    assert Forwarded(batch, commands) == decode(encode_forwarded(batch, commands), "us", "them")


@given(numbers, names)
def test_refusals_come_out_as_they_went_in(batch: int, leader: str) -> None:
    """With the leader that is known, or none."""
    assert Refusal(batch, leader) == decode(encode_refusal(batch, leader), "us", "them")


@given(numbers, st.lists(st.tuples(numbers, st.booleans()), max_size=5).map(tuple))
def test_questions_of_leases_come_out_as_they_went_in(number: int, items: tuple[tuple[int, bool], ...]) -> None:
    """Of any number of leases; cut off in the middle of one it is none."""
    questions = LeaseQuestions(number, items)
    frame = encode_lease_questions(questions)
    assert questions == decode(frame, "us", "them")
    with pytest.raises(MalformedFrameError):
        decode(frame + b"\0", "us", "them")


milliseconds = st.integers(0, 2**32 - 1)


@given(numbers, st.lists(st.tuples(numbers, milliseconds, milliseconds), max_size=5).map(tuple))
def test_answers_of_leases_come_out_as_they_went_in(number: int, items: tuple[tuple[int, int, int], ...]) -> None:
    """With times of up to 49 days; cut off in the middle of one it is none."""
    answers = LeaseAnswers(number, items)
    frame = encode_lease_answers(answers)
    assert answers == decode(frame, "us", "them")
    with pytest.raises(MalformedFrameError):
        decode(frame + b"\0", "us", "them")


@given(numbers, numbers, numbers, memberships())
def test_snapshot_headers_come_out_as_they_went_in(term: int, index: int, of: int, membership: Membership) -> None:
    """With the membership as of the snapshot."""
    header = SnapshotHeader(term, SnapshotMetadata(index, of, membership))
    assert header == decode(encode_snapshot_header(header), "us", "them")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
FIELDS = ("voters", "outgoing", "learners", "learners_next", "auto_leave", "members")


@given(
    st.binary(max_size=80)
    | st.builds(lambda kind, rest: bytes([kind]) + rest, st.sampled_from(FrameKind), st.binary(max_size=80))
    | st.builds(lambda frame, at: frame[:at], messages.map(encode_message), st.integers(0, 100))
)
@example(b"")
def test_garbage_is_malformed_and_nothing_worse(frame: bytes) -> None:
    """Random bytes behind any first byte, and frames that are cut off: content, or MalformedFrameError."""
    try:
        decode(frame, "us", "them")
    except MalformedFrameError:
        return
    assert frame[0] in set(FrameKind)


@given(json_values | st.fixed_dictionaries(dict.fromkeys(FIELDS, json_values)))
@example([])
@example({field: [] for field in FIELDS})
def test_a_membership_that_is_none_is_malformed(value: object) -> None:
    """JSON of the wrong shape, however it is wrong."""
    head = encode_snapshot_header(SnapshotHeader(1, SnapshotMetadata(1, 1, Membership())))[:25]
    try:
        decode(head + json.dumps(value).encode(), "us", "them")
    except MalformedFrameError:
        return
    assert isinstance(value, dict)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"9" * 10_000, b"\xff", b"NaN", b'{"voters":[{}]}'])
def test_json_that_is_meant_badly_is_malformed(text: bytes) -> None:
    """Deep, long, or not text at all."""
    head = encode_snapshot_header(SnapshotHeader(1, SnapshotMetadata(1, 1, Membership())))[:25]
    with pytest.raises(MalformedFrameError):
        decode(head + text, "us", "them")


def test_an_append_is_exactly_as_long_as_it_says() -> None:
    """Not a byte more or less; and it does not hold what no leader has."""
    message = AppendEntries(
        sender="us", to="them", term=5, previous_index=1, previous_term=3, entries=(Entry(2, 4, b"ab"),)
    )
    frame = encode_message(message)
    for broken in (frame + b"\0", frame[:-1], frame[:1] + frame[2:]):
        with pytest.raises(MalformedFrameError):
            decode(broken, "us", "them")
    for wrong in (
        dataclasses.replace(message, term=3),
        dataclasses.replace(message, previous_term=5),
        dataclasses.replace(message, entries=(Entry(2, 4), Entry(3, 3))),
        dataclasses.replace(message, entries=(Entry(2, 4, kind=7),)),
        dataclasses.replace(message, entries=(Entry(2, 4, b"{}", kind=EntryKind.MEMBERSHIP),)),
    ):
        with pytest.raises(MalformedFrameError):
            decode(encode_message(wrong), "us", "them")


@given(words=st.tuples(st.text(max_size=50), st.text(max_size=50), st.text(max_size=50)))
def test_where_somebody_is_comes_out_as_it_went_in(words: tuple[str, str, str]) -> None:
    """Three words of any characters that there are."""
    moved = Moved(*words)
    assert moved == decode(encode_moved(moved), "a", "b")


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'["b","i"]', b'["b","i",1]', b'["b","i","x","y"]', b'"bix"', b"[" * 5000]
)
def test_what_says_not_where_somebody_is(body: bytes) -> None:
    """Anything but a list of three strings, of the length of a handshake at the most."""
    with pytest.raises(MalformedFrameError):
        decode(bytes([FrameKind.MOVED]) + body, "a", "b")
