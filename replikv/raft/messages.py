"""What peers' cores say to each other: one small class per RPC of the paper (figure 2) and the thesis.

Every message carries the sender's term, but for ReadIndex and ReadIndexResponse (term 0: never compared), and for a
pre-vote, which carries the term it would campaign in (thesis 9.6). Responses that rest on durable state
(AppendEntriesResponse, RequestVoteResponse) leave only when that state is on disk: the core keeps them apart.
"""

from __future__ import annotations

import dataclasses

from replikv.raft.entries import Entry, SnapshotMetadata

__all__ = [
    "AppendEntries",
    "AppendEntriesResponse",
    "Heartbeat",
    "HeartbeatResponse",
    "InstallSnapshot",
    "Message",
    "ReadIndex",
    "ReadIndexResponse",
    "RequestVote",
    "RequestVoteResponse",
    "TimeoutNow",
    "TransferLeadership",
]


@dataclasses.dataclass(slots=True, kw_only=True)
class Message:
    """The envelope. ``sender`` and ``to`` are node ids."""

    to: str
    sender: str = ""
    term: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class AppendEntries(Message):
    """Entries that follow (previous_index, previous_term), and how far the leader has committed (paper 5.3)."""

    previous_index: int = 0
    previous_term: int = 0
    entries: tuple[Entry, ...] = ()
    commit: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class AppendEntriesResponse(Message):
    """The log matches up to ``index``; or, rejected, does not match at ``index`` (the previous_index asked about).

    A rejection hints where it may match: ``hint_index`` is the follower's largest index of a term not above the
    previous_term asked about, ``hint_term`` its term (paper 5.3, the optimisation at its end).
    """

    index: int = 0
    reject: bool = False
    hint_index: int = 0
    hint_term: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class RequestVote(Message):
    """A candidate asks for a vote; with ``pre_vote``, whether it would be given (paper 5.2, thesis 9.6)."""

    last_index: int = 0
    last_term: int = 0
    pre_vote: bool = False
    transfer: bool = False
    """Campaigns on the leader's own request, so that leader stickiness does not apply (thesis 3.10, 4.2.3)."""
    commit: int = 0
    commit_term: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class RequestVoteResponse(Message):
    """The vote. A granted pre-vote echoes the term asked for; anything else carries the voter's own.

    A request and its rejection tell what their sender knows to be committed, so that neither holds up an election for
    want of that: a voter that was removed may be the only one to know that its vote is not needed. 0: not told.
    """

    reject: bool = False
    pre_vote: bool = False
    commit: int = 0
    commit_term: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class Heartbeat(Message):
    """An AppendEntries without entries and without a log position: it never conflicts.

    ``commit`` never exceeds what the leader knows the follower to match. ``read_position`` is the newest position in
    the leader's queue of reads at the time of sending (thesis 6.4).
    """

    commit: int = 0
    read_position: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class HeartbeatResponse(Message):
    """Still following you in your term; confirms every read up to ``read_position``."""

    read_position: int = 0


@dataclasses.dataclass(slots=True, kw_only=True)
class InstallSnapshot(Message):
    """The entries that the follower needs are compacted: take this instead. The data travels apart (paper 7)."""

    snapshot: SnapshotMetadata


@dataclasses.dataclass(slots=True, kw_only=True)
class TimeoutNow(Message):
    """Campaign at once: the leader hands over (thesis 3.10)."""


@dataclasses.dataclass(slots=True, kw_only=True)
class TransferLeadership(Message):
    """Asks the leader to hand over to ``transferee`` (thesis 3.10); followers forward it."""

    transferee: str


@dataclasses.dataclass(slots=True, kw_only=True)
class ReadIndex(Message):
    """A follower asks for a linearizable read position (thesis 6.4). ``sender`` is who asked first.

    ``context`` is the asker's own number of the request, handed back with the answer.
    """

    context: int
    hops: int = 0
    """How often it was forwarded: peers that each take another for the leader must not pass it on for ever."""


@dataclasses.dataclass(slots=True, kw_only=True)
class ReadIndexResponse(Message):
    """What was applied up to ``index`` at the asker is linearizable for the read ``context``."""

    context: int
    index: int
