"""Every decoder that bytes of the network reach, against a corpus, bombs, and mutants of both.

What comes out is what was sent, or the one error that the decoder has for it: nothing else, and within bounded memory
and time. The short run takes a few hundred inputs for each decoder, the long one 200,000.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import zlib
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import BOMBS, attack, mutants

from replikv.errors import EncodingError, UpgradeRequiredError
from replikv.machine.commands import (
    encode_attach,
    encode_compact,
    encode_compare_and_set,
    encode_delete,
    encode_delete_prefix,
    encode_grant,
    encode_increment,
    encode_pop,
    encode_put,
    encode_replace,
    encode_revoke,
    encode_setdefault,
    encode_update,
)
from replikv.machine.envelope import CommandKind, Envelope
from replikv.machine.replica import Replica
from replikv.machine.values import decode_value, encode_value
from replikv.peer.protocol import (
    FrameKind,
    MalformedFrameError,
    Moved,
    SnapshotHeader,
    decode,
    encode_forwarded,
    encode_message,
    encode_moved,
    encode_refusal,
    encode_snapshot_header,
)
from replikv.peer.requests import (
    Accepted,
    ChangeRequest,
    CompareRequest,
    Denial,
    Denied,
    JoinRequest,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from replikv.raft.entries import Entry, EntryKind, SnapshotMetadata
from replikv.raft.membership import ChangeKind, MemberChange, Membership, MembershipChange
from replikv.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
    TransferLeadership,
)
from replikv.transport.authentication import SealedFrameDecoder, Sealer, SharedSecret
from replikv.transport.base import Hello
from replikv.transport.handshake import CALL, CHANNEL, HANDSHAKE_BYTES_MAX, MAGIC, Initiator, Responder
from replikv.transport.wire import FrameDecoder, ProtocolError, encode_frames

SHORT, LONG = 150, 200_000
A = Hello(cluster_id="c", node_id="a", incarnation="i-a", bound_index=3, address="10.0.0.1:7001", attributes={"x": "y"})
B = dataclasses.replace(A, node_id="b", incarnation="i-b", address="[::1]:7001")
SECRET = SharedSecret(b"a secret of 16 bytes, and more")
KEY = bytes(32)


# -- frames and handshakes ---------------------------------------------------------------------------------------------


def bodies(outgoing: bytes) -> list[bytes]:
    return FrameDecoder(HANDSHAKE_BYTES_MAX).feed(outgoing)


def conversation(secret: SharedSecret | None, purpose: str) -> tuple[list[bytes], list[bytes]]:
    """What a dialer and a responder say to each other, in order of their saying it."""
    dialer, responder = (
        Initiator(A, purpose, lambda hello: None, secret),
        Responder(B, lambda hello, what: None, secret),
    )
    said: tuple[list[bytes], list[bytes]] = ([], [])
    outgoing, sides = dialer.start(), itertools.cycle([(0, responder), (1, dialer)])
    while outgoing:
        number, listener = next(sides)
        said[number].extend(bodies(outgoing))
        outgoing = b"".join(listener.receive(body) for body in bodies(outgoing))
    return said


HANDSHAKES = [
    body
    for secret in (None, SECRET)
    for purpose in (CHANNEL, CALL)
    for side in conversation(secret, purpose)
    for body in side
] + [MAGIC + bomb for bomb in BOMBS]
HANDSHAKES += [MAGIC + b"\xa2\x64kind\x65hello\x61x" + bomb for bomb in BOMBS if len(bomb) < 4000]


def in_pieces(data: bytes) -> list[bytes]:
    size = 1 + len(data) % 37
    return [data[start : start + size] for start in range(0, len(data), size)]


def cut_into_frames(data: bytes) -> None:
    decoder, frames = FrameDecoder(4096), list[bytes]()
    with contextlib.suppress(ProtocolError):
        for piece in in_pieces(data):
            frames += decoder.feed(piece)
    assert data.startswith(encode_frames(frames))


def cut_into_sealed_frames(data: bytes) -> None:
    decoder, frames = SealedFrameDecoder(4096, KEY), list[bytes]()
    with contextlib.suppress(ProtocolError):
        for piece in in_pieces(data):
            frames += decoder.feed(piece)
    assert data.startswith(Sealer(KEY).encode(frames))


def never(*_: object) -> str | None:
    raise AssertionError("asked to admit one that has not proved itself")


def shake_hands(data: bytes, secret: SharedSecret | None, before: int) -> None:
    """To both sides, when so many frames of the other side have been heard."""
    admit: Callable[..., str | None] = never if secret is not None else lambda *_: None
    dialer, responder = Initiator(A, CHANNEL, admit, secret), Responder(B, admit, secret)
    hello = bodies(dialer.start())
    answer = bodies(Responder(B, admit, secret).receive(hello[0]))
    for side, heard in ((dialer, answer[: min(before, 1)]), (responder, hello[:before])):
        for body in heard:
            side.receive(body)
        with contextlib.suppress(ProtocolError):
            side.receive(data)
        assert secret is None or not side.established


def shake_hands_somehow(data: bytes) -> None:
    """With a secret or without, as the first word or as the second."""
    state = zlib.crc32(data)
    shake_hands(data, (None, SECRET)[state & 1], state >> 1 & 1)


def shake_hands_anyhow(data: bytes) -> None:
    """In all those ways."""
    for secret, before in itertools.product((None, SECRET), (0, 1)):
        shake_hands(data, secret, before)


# -- messages and requests ---------------------------------------------------------------------------------------------

CHANGE = MembershipChange(
    (
        MemberChange(ChangeKind.ADD_LEARNER, "d", "10.0.0.4:7001", "i-d", {"zone": "z"}),
        MemberChange(ChangeKind.REMOVE, "c"),
    )
)
MEMBERSHIP = Membership.of_voters({"a": "10.0.0.1:7001", "b": "10.0.0.2:7001"})
ENTRIES = (
    Entry(8, 2, b"\x5a\x00\x00\x00\x01x", EntryKind.COMMANDS),
    Entry(9, 3, CHANGE.encode(), EntryKind.MEMBERSHIP),
    Entry(10, 3, b"", EntryKind.COMMANDS),
)
FRAMES = [
    *(
        encode_message(message)
        for message in (
            AppendEntries(to="b", sender="a", term=3, previous_index=7, previous_term=2, entries=ENTRIES, commit=7),
            AppendEntriesResponse(to="b", sender="a", term=3, index=9, reject=True, hint_index=4, hint_term=2),
            RequestVote(to="b", sender="a", term=3, last_index=9, last_term=3, commit=7, commit_term=2),
            RequestVoteResponse(to="b", sender="a", term=3, reject=False, commit=7, commit_term=2),
            Heartbeat(to="b", sender="a", term=3, commit=7, read_position=5),
            HeartbeatResponse(to="b", sender="a", term=3, read_position=5),
            ReadIndex(to="b", sender="a", context=77, hops=1),
            ReadIndexResponse(to="b", sender="a", context=77, index=9),
            TimeoutNow(to="b", sender="a", term=3),
            TransferLeadership(to="b", sender="a", term=3, transferee="b"),
        )
    ),
    encode_forwarded(7, b"\x5a\x00\x00\x00\x01x"),
    encode_refusal(7, "b"),
    encode_moved(Moved("c", "i-c", "10.0.0.3:7001")),
    encode_snapshot_header(SnapshotHeader(3, SnapshotMetadata(9, 3, MEMBERSHIP))),
]
FRAMES += [bytes([kind]) + bomb for kind in (FrameKind.MOVED, FrameKind.REFUSAL) for bomb in BOMBS]
RECORDS = [
    b"{}",
    b'{"changes":[{}],"transition":"auto"}',
    b'{"changes":[{"kind":"remove","node_id":7}],"transition":"auto"}',
    b'{"changes":[{"kind":"update","node_id":"a","address":7}],"transition":"auto"}',
    b'{"changes":[{"kind":"update","node_id":"a","attributes":{"a":1}}],"transition":"auto"}',
    b'{"changes":[{"kind":"update","node_id":"a","attributes":["a"]}],"transition":"auto"}',
    b'{"changes":[{"kind":"update","node_id":"\\ud800"}],"transition":"auto"}',
    b'{"changes":[{"kind":"burn","node_id":"a"}],"transition":"auto"}',
    b'{"changes":{},"transition":"never"}',
    *(MEMBERSHIP.encode().replace(good, bad) for good, bad in (
        (b'["a","b"]', b'"ab"'),
        (b'["a","b"]', b"[1,2]"),
        (b'["a","b"]', b'["a","z"]'),
        (b'["a","b"]', b'["\\ud800"]'),
        (b'"auto_leave":false', b'"auto_leave":"no"'),
        (b'"10.0.0.1:7001"', b"7"),
        (b'"bound_index":0', b'"bound_index":-1'),
        (b'"bound_index":0', b'"bound_index":"0"'),
        (b'"attributes":{}', b'"attributes":{"a":1}'),
        (b'"attributes":{}', b'"attributes":[]'),
    )),
    *BOMBS,
]  # fmt: skip


def appending(record: bytes) -> bytes:
    entry = Entry(8, 3, record, EntryKind.MEMBERSHIP)
    return encode_message(
        AppendEntries(to="b", sender="a", term=3, previous_index=7, previous_term=2, entries=(entry,), commit=7)
    )


FRAMES += [FRAMES[13][:25] + record for record in RECORDS]
FRAMES += map(appending, RECORDS)
REQUESTS = [
    encode_request(ChangeRequest(CHANGE.changes, forced=True)),
    encode_request(JoinRequest("d", "i-d", "10.0.0.4:7001", "c", {"zone": "z"})),
    encode_request(CompareRequest("c")),
    encode_answer(Accepted(9, "c")),
    encode_answer(Denied(Denial.LATER, "later")),
    *(bytes([kind]) + bomb for kind in (65, 66) for bomb in BOMBS),
]


def read_message(data: bytes) -> None:
    """And what is read can be said again, in the same bytes where there is one way to say it."""
    try:
        content = decode(data, "a", "b")
    except MalformedFrameError:
        return
    if isinstance(content, AppendEntries):
        assert data == encode_message(content)
        for entry in content.entries:
            if entry.kind == EntryKind.MEMBERSHIP:
                again = MembershipChange.decode(entry.data)
                assert again == MembershipChange.decode(again.encode())
                assert all(type(change.node_id) is str for change in again.changes)
    elif isinstance(content, SnapshotHeader):
        membership = content.snapshot.membership
        assert membership == Membership.decode(membership.encode())
        for node_id in membership.ids | membership.members.keys():
            assert type(node_id) is str
        for record in membership.members.values():
            assert (str, str, int) == (type(record.address), type(record.incarnation), type(record.bound_index))


def read_request(data: bytes) -> None:
    for read in (decode_request, decode_answer):
        with contextlib.suppress(MalformedFrameError):
            read(data)


# -- commands and values -----------------------------------------------------------------------------------------------

VALUES = [
    encode_value(value, 10_000)
    for value in (None, -1, 2**70, 1.5, "text", b"bytes", [1, [2]], {"a": {1: b"x"}}, {1, "2", (3,)})
] + BOMBS
PAYLOADS = [
    payload
    for value in VALUES
    for payload in (
        encode_put(b"key", value),
        encode_setdefault(b"new", value),
        encode_increment(b"number", value),
        encode_compare_and_set(b"key", value, value),
        encode_replace(b"key", value, 1),
        encode_update({b"key": value, b"other": value}),
    )
] + [
    encode_delete(b"key"),
    encode_delete_prefix(b"k", 10),
    encode_pop(b"key"),
    encode_compact(3),
    encode_grant(1000),
    encode_revoke(1),
    encode_attach(b"key", 1),
    bytes(8),
]
COMMANDS = [
    Envelope(kind, session, 1, 0, payload).encode()
    for payload in PAYLOADS
    for kind, session in ((CommandKind.MAP, 0), (CommandKind.MAP, 1), (random.Random(len(payload)).randrange(7), 0))
]


def fresh_replica() -> Replica:
    replica = Replica()
    replica.apply(Envelope(CommandKind.REGISTER, 0, 1, 0, b"a").encode())
    return replica


class TwoReplicas:
    """Two that apply the same, one of them through snapshots, and stay equal."""

    def __init__(self) -> None:
        self.one, self.other = fresh_replica(), fresh_replica()

    def apply(self, data: bytes) -> None:
        position = self.one.position
        try:
            result = self.one.apply(data)
        except UpgradeRequiredError:  # the one command that ends a replica: nothing of it is applied
            with pytest.raises(UpgradeRequiredError):
                self.other.apply(data)
            assert position == self.one.position == self.other.position
            return
        assert result == self.other.apply(data)
        assert position + 1 == self.one.position
        if self.one.position % 50 == 0:
            restored = Replica()
            restored.restore(list(self.one.snapshot()))
            assert self.other.digest() == restored.digest() == self.one.digest()
            self.other = restored
        if self.one.position > 2000:
            self.one, self.other = fresh_replica(), fresh_replica()


def read_value(data: bytes) -> None:
    try:
        value = decode_value(data)
    except EncodingError:
        return
    with contextlib.suppress(EncodingError):  # such as it could not be put again: too deep, say
        again = encode_value(value, 1_000_000)
        assert len(again) == len(encode_value(decode_value(again), 1_000_000))


TARGETS: dict[str, tuple[Callable[[], Callable[[bytes], Any]], list[bytes]]] = {
    "frames": (lambda: cut_into_frames, [encode_frames(HANDSHAKES[:6]), encode_frames([b"", b"x" * 4096]), *BOMBS]),
    "sealed frames": (lambda: cut_into_sealed_frames, [Sealer(KEY).encode([b"", b"frame", b"x" * 4096]), *BOMBS]),
    "handshakes": (lambda: shake_hands_somehow, HANDSHAKES),
    "messages": (lambda: read_message, FRAMES),
    "requests": (lambda: read_request, REQUESTS),
    "commands": (lambda: TwoReplicas().apply, COMMANDS),
    "values": (lambda: read_value, VALUES),
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    """Good bytes, bombs, and good bytes with a bomb in them."""
    make, corpus = TARGETS[name]
    attack(make(), iter(corpus), len(corpus))


@pytest.mark.parametrize("name", TARGETS)
def test_mutants(name: str) -> None:
    """A few hundred changes of the corpus, the same in every run."""
    make, corpus = TARGETS[name]
    attack(make(), mutants(1, corpus), SHORT)


@settings(deadline=None, max_examples=40)  # attack() has bounds that a busy machine does not reach
@given(seed=st.integers(2, 2**32))
@pytest.mark.parametrize("name", TARGETS)
def test_mutants_of_any_seed(name: str, seed: int) -> None:
    """Others in every run; a failure is shrunk to a small seed, and shows its input."""
    make, corpus = TARGETS[name]
    attack(make(), mutants(seed, corpus), 3)


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutants(name: str) -> None:
    """200,000 for each decoder."""
    make, corpus = TARGETS[name]
    attack(make(), mutants(0, corpus), LONG)


@pytest.mark.parametrize("name", TARGETS)
def test_truncation(name: str) -> None:
    """Good bytes that end anywhere."""
    make, corpus = TARGETS[name]
    inputs = [data[:end] for data in corpus[:12] for end in range(0, min(len(data), 400), 1 if len(data) < 60 else 31)]
    attack(make(), iter(inputs), len(inputs))


# -- the bugs by name --------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    return b"\x81" * depth + b"\x00"


def colliding(bytes_min: int) -> bytes:
    """A map of so many bytes whose keys all have one hash: quadratic to decode."""
    count = bytes_min // 10
    return cbor2.dumps({number * (2**61 - 1) % 2**63: 0 for number in range(1, count)})


@pytest.mark.parametrize("bomb", [nested(100_000), colliding(4_000)], ids=["nested", "colliding keys"])
def test_53_nested_cbor_before_authentication(bomb: bytes) -> None:
    """A stranger's handshake costs what 4 KiB cost, and is refused before it is decoded where it is longer."""
    attack(shake_hands_anyhow, iter([MAGIC + bomb, MAGIC + b"\xa1\x61x" + bomb]), 2, seconds_max=0.1)
    with pytest.raises(ProtocolError):
        FrameDecoder(HANDSHAKE_BYTES_MAX).feed(encode_frames([bytes(HANDSHAKE_BYTES_MAX + 1)]))


@pytest.mark.parametrize("bomb", [nested(100_000), colliding(206_000)], ids=["nested", "colliding keys"])
def test_53_nested_cbor_on_the_way(bomb: bytes) -> None:
    """Consensus and the map carry values and decode none of them: a bomb costs what its bytes cost."""
    command = Envelope(CommandKind.MAP, 0, 0, 0, encode_put(b"key", bomb)).encode()
    entry = Entry(8, 2, command, EntryKind.COMMANDS)
    frame = encode_message(
        AppendEntries(to="b", sender="a", term=3, previous_index=7, previous_term=2, entries=(entry,), commit=7)
    )
    attack(read_message, iter([frame, encode_forwarded(1, command)]), 2, seconds_max=0.1)
    attack(fresh_replica().apply, iter([command, command]), 2, seconds_max=0.1)


def test_53_nested_cbor_that_is_read() -> None:
    """Depth is an error, not the end of the process; a map of colliding keys is nothing that could be put."""
    with pytest.raises(EncodingError):
        decode_value(nested(100_000))
    with pytest.raises(EncodingError):
        encode_value({number * (2**61 - 1): 0 for number in range(2_000)}, 1_000_000)
