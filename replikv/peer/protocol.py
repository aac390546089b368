"""What peers say to each other: the bytes of frames and of the snapshot channel (``docs/format.md``).

Consensus messages are packed by struct, each with a fixed header; entries and commands travel as the bytes they were
proposed as. Nothing of a user's is decoded here. A frame that does not parse is a ``MalformedFrameError``: whoever sent
it does not speak our protocol, and is dropped.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

from replikv.errors import InternalError
from replikv.machine.digests import DIGEST_BYTES, StateDigest
from replikv.raft.entries import Entry, EntryKind, SnapshotMetadata
from replikv.raft.log import check_slice
from replikv.raft.membership import Membership, MembershipChange
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    TransferLeadership,
)

__all__ = [
    "Digest",
    "Forwarded",
    "FrameKind",
    "LeaseAnswers",
    "LeaseQuestions",
    "MalformedFrameError",
    "Moved",
    "Refusal",
    "SnapshotHeader",
    "decode",
    "encode_digest",
    "encode_forwarded",
    "encode_lease_answers",
    "encode_lease_questions",
    "encode_message",
    "encode_moved",
    "encode_refusal",
    "encode_snapshot_header",
]


class MalformedFrameError(Exception):
    """Bytes that no peer of this protocol version sends."""


class FrameKind(enum.IntEnum):
    """The first byte of a frame. The numbers are on the wire: never change one."""

    APPEND_ENTRIES = 1
    APPEND_ENTRIES_RESPONSE = 2
    REQUEST_VOTE = 3
    REQUEST_VOTE_RESPONSE = 4
    HEARTBEAT = 5
    HEARTBEAT_RESPONSE = 6
    READ_INDEX = 7
    READ_INDEX_RESPONSE = 8
    TIMEOUT_NOW = 9
    TRANSFER_LEADERSHIP = 10
    FORWARDED = 32
    REFUSAL = 33
    MOVED = 34
    DIGEST = 35
    LEASE_QUESTIONS = 40
    LEASE_ANSWERS = 41
    SNAPSHOT_HEADER = 64


class Forwarded(NamedTuple):
    """Commands that a follower hands to the leader, packed as in an entry; ``batch`` names them in a refusal."""

    batch: int
    commands: bytes


class Refusal(NamedTuple):
    """The batch was not proposed, and will not be. ``leader`` may know better, or be empty."""

    batch: int
    leader: str


class Moved(NamedTuple):
    """Where another member is to be found, as it says."""

    node_id: str
    incarnation: str
    address: str


class Digest(NamedTuple):
    """The digest of the sender's replica at a position: see machine/digests.py."""

    format: int
    """How it was made."""
    position: int
    digest: StateDigest


class LeaseQuestions(NamedTuple):
    """What a peer asks the leader about leases: to keep them alive, or only how long they have left."""

    number: int
    """The asker's, which the answers name."""
    items: tuple[tuple[int, bool], ...]
    """(lease, whether to keep it alive)"""


class LeaseAnswers(NamedTuple):
    """The leader's answers, true at a moment after the questions arrived. One that is left out has none yet."""

    number: int
    items: tuple[tuple[int, int, int], ...]
    """(lease, the time it is granted for, the time it has left), in milliseconds; 0 and 0: it is not there"""


class SnapshotHeader(NamedTuple):
    """The first frame of a snapshot channel: in whose term it is sent, and what follows."""

    term: int
    snapshot: SnapshotMetadata


Content: TypeAlias = Message | Forwarded | Refusal | Moved | Digest | LeaseQuestions | LeaseAnswers | SnapshotHeader
"""What a frame may hold."""

MOVED_BYTES_MAX: Final = 4096
"""As much as a handshake, in which a node says the same of itself."""

_APPEND: Final = struct.Struct(">BQQQQI")  # kind, term, previous index, previous term, commit, entries
_ENTRY_KINDS: Final = frozenset(map(int, EntryKind))
_ENTRY: Final = struct.Struct(">QBI")  # term, kind, bytes of data; the index follows from the place
_APPEND_RESPONSE: Final = struct.Struct(">BQQ?QQ")  # kind, term, index, reject, hint index, hint term
_VOTE: Final = struct.Struct(">BQQQ??QQ")  # kind, term, last index, last term, pre-vote, transfer, commit and its term
_VOTE_RESPONSE: Final = struct.Struct(">BQ??QQ")  # kind, term, reject, pre-vote, commit and its term
_HEARTBEAT: Final = struct.Struct(">BQQQ")  # kind, term, commit, read position
_HEARTBEAT_RESPONSE: Final = struct.Struct(">BQQ")  # kind, term, read position
_READ_INDEX: Final = struct.Struct(">BQB")  # kind, context, hops; then who asked
_READ_INDEX_RESPONSE: Final = struct.Struct(">BQQ")  # kind, context, index
_TERM: Final = struct.Struct(">BQ")  # kind, term
_BATCH: Final = struct.Struct(">BQ")  # kind, batch
_DIGEST: Final = struct.Struct(f">BBQ{DIGEST_BYTES}s{DIGEST_BYTES}s")  # kind, format, position; state, machine
_LEASE_QUESTION: Final = struct.Struct(">QB")  # lease, 1 to keep it alive
_LEASE_ANSWER: Final = struct.Struct(">QII")  # lease, time to live, time left
_SNAPSHOT: Final = struct.Struct(">BQQQ")  # kind, term, index, term of the index; then the membership


def encode_message(message: Message) -> bytes:  # one branch a kind, as in a table
    """The frame of a consensus message. InstallSnapshot has none: it travels on a channel."""
    match message:
        case AppendEntries():
            parts = [
                _APPEND.pack(
                    FrameKind.APPEND_ENTRIES,
                    message.term,
                    message.previous_index,
                    message.previous_term,
                    message.commit,
                    len(message.entries),
                )
            ]
            for entry in message.entries:
                parts += (_ENTRY.pack(entry.term, entry.kind, len(entry.data)), entry.data)
            return b"".join(parts)
        case AppendEntriesResponse():
            return _APPEND_RESPONSE.pack(
                FrameKind.APPEND_ENTRIES_RESPONSE,
                message.term,
                message.index,
                message.reject,
                message.hint_index,
                message.hint_term,
            )
        case Heartbeat():
            return _HEARTBEAT.pack(FrameKind.HEARTBEAT, message.term, message.commit, message.read_position)
        case HeartbeatResponse():
            return _HEARTBEAT_RESPONSE.pack(FrameKind.HEARTBEAT_RESPONSE, message.term, message.read_position)
        case RequestVote():
            return _VOTE.pack(
                FrameKind.REQUEST_VOTE,
                message.term,
                message.last_index,
                message.last_term,
                message.pre_vote,
                message.transfer,
                message.commit,
                message.commit_term,
            )
        case RequestVoteResponse():
            return _VOTE_RESPONSE.pack(
                FrameKind.REQUEST_VOTE_RESPONSE,
                message.term,
                message.reject,
                message.pre_vote,
                message.commit,
                message.commit_term,
            )
        case ReadIndex():
            return _READ_INDEX.pack(FrameKind.READ_INDEX, message.context, message.hops) + message.sender.encode()
        case ReadIndexResponse():
            return _READ_INDEX_RESPONSE.pack(FrameKind.READ_INDEX_RESPONSE, message.context, message.index)
        case TimeoutNow():
            return _TERM.pack(FrameKind.TIMEOUT_NOW, message.term)
        case TransferLeadership():
            return _TERM.pack(FrameKind.TRANSFER_LEADERSHIP, message.term) + message.transferee.encode()
        case _:
            raise TypeError(f"{type(message).__name__} has no frame")


def encode_forwarded(batch: int, commands: bytes) -> bytes:
    """The frame of :class:`Forwarded`."""
    return _BATCH.pack(FrameKind.FORWARDED, batch) + commands


def encode_refusal(batch: int, leader: str) -> bytes:
    """The frame of :class:`Refusal`."""
    return _BATCH.pack(FrameKind.REFUSAL, batch) + leader.encode()


def encode_moved(moved: Moved) -> bytes:
    """The frame of :class:`Moved`."""
    return bytes([FrameKind.MOVED]) + json.dumps(moved, separators=(",", ":"), ensure_ascii=False).encode()


def encode_digest(digest: Digest) -> bytes:
    """The frame of :class:`Digest`."""
    return _DIGEST.pack(FrameKind.DIGEST, digest.format, digest.position, *digest.digest)


def encode_lease_questions(questions: LeaseQuestions) -> bytes:
    """The frame of :class:`LeaseQuestions`."""
    head = _BATCH.pack(FrameKind.LEASE_QUESTIONS, questions.number)
    return head + b"".join(_LEASE_QUESTION.pack(*item) for item in questions.items)


def encode_lease_answers(answers: LeaseAnswers) -> bytes:
    """The frame of :class:`LeaseAnswers`."""
    head = _BATCH.pack(FrameKind.LEASE_ANSWERS, answers.number)
    return head + b"".join(_LEASE_ANSWER.pack(*item) for item in answers.items)


def encode_snapshot_header(header: SnapshotHeader) -> bytes:
    """The frame of :class:`SnapshotHeader`."""
    snapshot = header.snapshot
    return (
        _SNAPSHOT.pack(FrameKind.SNAPSHOT_HEADER, header.term, snapshot.index, snapshot.term)
        + snapshot.membership.encode()
    )


def decode(frame: bytes, sender: str, to: str) -> Content:
    """The frame's content, as sent by ``sender`` to ``to``. Raises MalformedFrameError."""
    try:
        return _DECODERS[frame[0]](frame, sender, to)
    except (struct.error, KeyError, IndexError, ValueError, TypeError, RecursionError) as exc:
        raise MalformedFrameError(f"{sender} sent a frame of {len(frame)} bytes that is none: {frame[:32]!r}") from exc


def _decode_append(frame: bytes, sender: str, to: str) -> AppendEntries:
    _, term, previous_index, previous_term, commit, count = _APPEND.unpack_from(frame)
    entries = []
    position = _APPEND.size
    for index in range(previous_index + 1, previous_index + 1 + count):
        entry_term, kind, length = _ENTRY.unpack_from(frame, position)
        position += _ENTRY.size
        data = frame[position : position + length]
        position += length
        if kind not in _ENTRY_KINDS:
            raise ValueError(f"entry {index} is of kind {kind}")
        if kind == EntryKind.MEMBERSHIP:
            _check_change(data)
        entries.append(Entry(index, entry_term, data, kind))
    if position != len(frame):
        raise ValueError("the last entry is cut off, or bytes stand behind it")
    check_slice(term, previous_index, previous_term, entries)
    return AppendEntries(
        to=to,
        sender=sender,
        term=term,
        previous_index=previous_index,
        previous_term=previous_term,
        entries=tuple(entries),
        commit=commit,
    )


def _check_change(data: bytes) -> None:
    """Nothing may get into the log that its reader would fail on: it would, at every start. Raises ValueError."""
    try:
        change = MembershipChange.decode(data)
        for member in change.changes:
            _check_words(member.node_id, *(word for word in (member.address, member.incarnation) if word is not None))
            if member.attributes is not None:
                _check_words(*member.attributes.keys(), *member.attributes.values())
    except (InternalError, AttributeError, KeyError, TypeError, RecursionError) as exc:
        raise ValueError("a membership entry that changes no membership") from exc


def _check_membership(membership: Membership) -> None:
    """Raises ValueError, TypeError, AttributeError for one that no leader can have."""
    _check_words(*membership.ids, *membership.members)
    auto_leave: object = membership.auto_leave
    if type(auto_leave) is not bool or not membership.ids <= membership.members.keys():
        raise ValueError("a membership with a member that it does not know")
    if membership.voters & membership.learners or not membership.learners_next <= membership.outgoing:
        raise ValueError("a membership in which somebody is two things")
    for record in membership.members.values():
        _check_words(record.address, record.incarnation, *record.attributes.keys(), *record.attributes.values())
        if type(record.bound_index) is not int or record.bound_index < 0:
            raise ValueError("a member that was bound at no index")


def _check_words(*words: object) -> None:
    """Raise ValueError for what is no text, or, by an escape of JSON, half of a surrogate pair."""
    for word in words:
        if type(word) is not str:
            raise ValueError(f"a {type(word).__name__} where a text belongs")
        word.encode()


def _decode_append_response(frame: bytes, sender: str, to: str) -> AppendEntriesResponse:
    _, term, index, reject, hint_index, hint_term = _APPEND_RESPONSE.unpack(frame)
    return AppendEntriesResponse(
        to=to, sender=sender, term=term, index=index, reject=reject, hint_index=hint_index, hint_term=hint_term
    )


def _decode_vote(frame: bytes, sender: str, to: str) -> RequestVote:
    _, term, last_index, last_term, pre_vote, transfer, commit, commit_term = _VOTE.unpack(frame)
    return RequestVote(
        to=to,
        sender=sender,
        term=term,
        last_index=last_index,
        last_term=last_term,
        pre_vote=pre_vote,
        transfer=transfer,
        commit=commit,
        commit_term=commit_term,
    )


def _decode_vote_response(frame: bytes, sender: str, to: str) -> RequestVoteResponse:
    _, term, reject, pre_vote, commit, commit_term = _VOTE_RESPONSE.unpack(frame)
    return RequestVoteResponse(
        to=to, sender=sender, term=term, reject=reject, pre_vote=pre_vote, commit=commit, commit_term=commit_term
    )


def _decode_heartbeat(frame: bytes, sender: str, to: str) -> Heartbeat:
    _, term, commit, read_position = _HEARTBEAT.unpack(frame)
    return Heartbeat(to=to, sender=sender, term=term, commit=commit, read_position=read_position)


def _decode_heartbeat_response(frame: bytes, sender: str, to: str) -> HeartbeatResponse:
    _, term, read_position = _HEARTBEAT_RESPONSE.unpack(frame)
    return HeartbeatResponse(to=to, sender=sender, term=term, read_position=read_position)


def _decode_read_index(frame: bytes, sender: str, to: str) -> ReadIndex:
    _, context, hops = _READ_INDEX.unpack_from(frame)
    asker = frame[_READ_INDEX.size :].decode()
    return ReadIndex(to=to, sender=asker or sender, context=context, hops=hops)


def _decode_read_index_response(frame: bytes, sender: str, to: str) -> ReadIndexResponse:
    _, context, index = _READ_INDEX_RESPONSE.unpack(frame)
    return ReadIndexResponse(to=to, sender=sender, context=context, index=index)


def _decode_timeout_now(frame: bytes, sender: str, to: str) -> TimeoutNow:
    _, term = _TERM.unpack(frame)
    return TimeoutNow(to=to, sender=sender, term=term)


def _decode_transfer(frame: bytes, sender: str, to: str) -> TransferLeadership:
    _, term = _TERM.unpack_from(frame)
    return TransferLeadership(to=to, sender=sender, term=term, transferee=frame[_TERM.size :].decode())


def _decode_forwarded(frame: bytes, _sender: str, _to: str) -> Forwarded:
    _, batch = _BATCH.unpack_from(frame)
    return Forwarded(batch, frame[_BATCH.size :])


def _decode_moved(frame: bytes, _sender: str, _to: str) -> Moved:
    if len(frame) > MOVED_BYTES_MAX:
        raise ValueError("too long for an address")
    words = json.loads(frame[1:])
    if type(words) is not list or not all(type(word) is str for word in words):
        raise TypeError("no list of strings")
    return Moved(*words)


def _decode_digest(frame: bytes, _sender: str, _to: str) -> Digest:
    _, made, position, state, machine = _DIGEST.unpack_from(frame)  # another format may have more
    return Digest(made, position, StateDigest(state, machine))


def _decode_refusal(frame: bytes, _sender: str, _to: str) -> Refusal:
    _, batch = _BATCH.unpack_from(frame)
    return Refusal(batch, frame[_BATCH.size :].decode())


def _decode_lease_questions(frame: bytes, _sender: str, _to: str) -> LeaseQuestions:
    _, number = _BATCH.unpack_from(frame)
    items = _LEASE_QUESTION.iter_unpack(frame[_BATCH.size :])
    return LeaseQuestions(number, tuple((lease, bool(renew)) for lease, renew in items))


def _decode_lease_answers(frame: bytes, _sender: str, _to: str) -> LeaseAnswers:
    _, number = _BATCH.unpack_from(frame)
    return LeaseAnswers(number, tuple(_LEASE_ANSWER.iter_unpack(frame[_BATCH.size :])))


def _decode_snapshot_header(frame: bytes, _sender: str, _to: str) -> SnapshotHeader:
    _, term, index, index_term = _SNAPSHOT.unpack_from(frame)
    try:
        membership = Membership.decode(frame[_SNAPSHOT.size :])
        _check_membership(membership)
    except (InternalError, AttributeError, RecursionError) as exc:
        raise ValueError("its membership is none") from exc
    return SnapshotHeader(term, SnapshotMetadata(index, index_term, membership))


_DECODERS: Final[Mapping[int, Callable[[bytes, str, str], Content]]] = {
    FrameKind.APPEND_ENTRIES: _decode_append,
    FrameKind.APPEND_ENTRIES_RESPONSE: _decode_append_response,
    FrameKind.REQUEST_VOTE: _decode_vote,
    FrameKind.REQUEST_VOTE_RESPONSE: _decode_vote_response,
    FrameKind.HEARTBEAT: _decode_heartbeat,
    FrameKind.HEARTBEAT_RESPONSE: _decode_heartbeat_response,
    FrameKind.READ_INDEX: _decode_read_index,
    FrameKind.READ_INDEX_RESPONSE: _decode_read_index_response,
    FrameKind.TIMEOUT_NOW: _decode_timeout_now,
    FrameKind.TRANSFER_LEADERSHIP: _decode_transfer,
    FrameKind.FORWARDED: _decode_forwarded,
    FrameKind.REFUSAL: _decode_refusal,
    FrameKind.MOVED: _decode_moved,
    FrameKind.DIGEST: _decode_digest,
    FrameKind.LEASE_QUESTIONS: _decode_lease_questions,
    FrameKind.LEASE_ANSWERS: _decode_lease_answers,
    FrameKind.SNAPSHOT_HEADER: _decode_snapshot_header,
}
