"""Handshakes with bytes carried by hand from one side to the other."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replikv.errors import ConfigurationError
from replikv.transport.base import Hello
from replikv.transport.handshake import (
    CALL,
    CHANNEL,
    FRAMES,
    HANDSHAKE_BYTES_MAX,
    MAGIC,
    Handshake,
    Initiator,
    Responder,
)
from replikv.transport.wire import FrameDecoder, ProtocolError

A = Hello(
    cluster_id="c",
    node_id="a",
    incarnation="i-a",
    bound_index=3,
    address="10.0.0.1:7001",
    attributes={"release": "0.1"},
)
B = dataclasses.replace(A, node_id="b", incarnation="i-b", address="[::1]:7001", attributes={})

FIELDS: dict[str, Any] = {
    "kind": "hello",
    "protocol_min": 1,
    "protocol_max": 1,
    "cluster_id": "c",
    "node_id": "a",
    "incarnation": "i-a",
    "bound_index": 3,
    "address": "10.0.0.1:7001",
    "attributes": {},
    "purpose": "frames",
    "auth": "none",
    "nonce": b"",
}
GONE = object()


def initiator(
    hello: Hello = A, admit: Callable[[Hello], str | None] = lambda hello: None, purpose: str = FRAMES
) -> Initiator:
    return Initiator(hello, purpose, admit)


def responder(hello: Hello = B, admit: Callable[[Hello, str], str | None] = lambda hello, purpose: None) -> Responder:
    return Responder(hello, admit)


def body_of(outgoing: bytes) -> bytes:
    (body,) = FrameDecoder(HANDSHAKE_BYTES_MAX).feed(outgoing)
    return body


def frame(**fields: Any) -> bytes:
    """The body of a handshake frame, taken from a good hello but for these fields."""
    merged = {name: value for name, value in {**FIELDS, **fields}.items() if value is not GONE}
    return MAGIC + cbor2.dumps(merged)


def carry(dialer: Handshake, accepter: Handshake) -> list[str]:
    """Carry the frames until nobody has one to send; the kinds of those that went over."""
    kinds: list[str] = []
    outgoing, sides = dialer.start(), [accepter, dialer]
    while outgoing:
        body = body_of(outgoing)
        kinds.append(cbor2.loads(body[len(MAGIC) :])["kind"])
        outgoing = sides[0].receive(body)
        sides.reverse()
    return kinds


def test_both_sides_learn_of_each_other() -> None:
    """Four frames, and each side has the other's hello, the purpose and the version."""
    asked: list[tuple[Hello, str]] = []

    def admit(hello: Hello, purpose: str) -> None:
        asked.append((hello, purpose))

    dialer, accepter = Initiator(A, CHANNEL, lambda hello: None), responder(admit=admit)
    assert ["hello", "challenge", "proof", "proof"] == carry(dialer, accepter)
    assert (True, True) == (dialer.established, accepter.established)
    assert (B, A) == (dialer.theirs, accepter.theirs)
    assert [(A, CHANNEL)] == asked
    assert (1, 1, CHANNEL) == (dialer.version, accepter.version, accepter.purpose)


@pytest.mark.parametrize(
    ("ours", "theirs", "version"),
    [((1, 1), (1, 3), 1), ((1, 3), (2, 5), 3), ((2, 2), (1, 9), 2), ((4, 7), (7, 7), 7)],
)
def test_the_highest_common_version(ours: tuple[int, int], theirs: tuple[int, int], version: int) -> None:
    """Two ranges that overlap meet at the highest version in both, whoever dials."""
    hello = dataclasses.replace(A, protocol_min=ours[0], protocol_max=ours[1])
    answer = dataclasses.replace(B, protocol_min=theirs[0], protocol_max=theirs[1])
    dialer, accepter = initiator(hello), responder(answer)
    carry(dialer, accepter)
    assert (version, version) == (dialer.version, accepter.version)
    assert dialer.established


@pytest.mark.parametrize("purpose", [FRAMES, CHANNEL, CALL])
def test_no_common_version(purpose: str) -> None:
    """Ranges that do not meet are refused in a sentence with both of them, before anybody is admitted."""
    hello = dataclasses.replace(A, protocol_min=3, protocol_max=4)
    dialer, accepter = initiator(hello, purpose=purpose), responder(dataclasses.replace(B, protocol_max=2))
    assert ["hello", "refusal"] == carry(dialer, accepter)
    assert dialer.refusal == accepter.refusal
    assert dialer.refusal is not None
    assert "1 to 2" in dialer.refusal
    assert "3 to 4" in dialer.refusal
    assert (False, False) == (dialer.established, accepter.established)


@pytest.mark.parametrize("sentence", ["b has lost its disk", ""])
def test_the_responder_refuses(sentence: str) -> None:
    """Whatever sentence admit returns, the empty one included, is a refusal that both sides have."""
    dialer, accepter = initiator(), responder(admit=lambda hello, purpose: sentence)
    assert ["hello", "challenge", "proof", "refusal"] == carry(dialer, accepter)
    assert (sentence, sentence) == (dialer.refusal, accepter.refusal)
    assert (False, False) == (dialer.established, accepter.established)


@pytest.mark.parametrize("sentence", ["another cluster", ""])
def test_the_dialer_refuses(sentence: str) -> None:
    """The dialer's refusal takes the place of its proof, and the responder is never asked to admit it."""

    def never(hello: Hello, purpose: str) -> str | None:
        raise AssertionError("asked to admit a dialer that refuses")

    dialer, accepter = initiator(admit=lambda hello: sentence), responder(admit=never)
    assert ["hello", "challenge", "refusal"] == carry(dialer, accepter)
    assert (sentence, sentence) == (dialer.refusal, accepter.refusal)


@pytest.mark.parametrize("hello", [A, B, dataclasses.replace(A, cluster_id=""), dataclasses.replace(B, cluster_id="x")])
def test_who_calls_may_be_anybody(hello: Hello) -> None:
    """A call is not refused for the dialer's cluster, nor for the responder's own node id: that is said over it."""
    dialer, accepter = initiator(hello, purpose=CALL), responder(B)
    assert ["hello", "challenge", "proof", "proof"] == carry(dialer, accepter)
    assert (True, True) == (dialer.established, accepter.established)
    assert (CALL, hello) == (accepter.purpose, accepter.theirs)


@pytest.mark.parametrize("purpose", [FRAMES, CHANNEL])
def test_a_namesake_is_refused(purpose: str) -> None:
    """A peer that answers under our own id is ourselves, or a mistake."""
    dialer, accepter = initiator(purpose=purpose), responder(A)
    assert ["hello", "refusal"] == carry(dialer, accepter)
    assert "a is the id of both sides" in str(dialer.refusal)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"auth": "hmac-sha256"}, "hmac-sha256"),
        ({"auth": "hmac-sha256", "purpose": CALL}, "hmac-sha256"),
        ({"purpose": "gossip"}, "gossip"),
    ],
)
def test_what_a_later_version_may_ask_for(fields: dict[str, Any], words: str) -> None:
    """Another authentication or purpose is well-formed: it is refused in words, not cut off."""
    accepter = responder()
    answer = accepter.receive(frame(**fields))
    assert "refusal" == cbor2.loads(body_of(answer)[len(MAGIC) :])["kind"]
    assert words in str(accepter.refusal)


def test_unknown_fields_and_attributes_are_skipped() -> None:
    """A later version may say more, and is understood as far as we know."""
    accepter = responder()
    accepter.receive(frame(colour="green", nested={"a": [1, 2.5, None]}, attributes={"zone": "eu-1"}))
    assert accepter.theirs == dataclasses.replace(A, attributes={"zone": "eu-1"})
    assert accepter.refusal is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        *(({name: GONE}, repr(name)) for name in FIELDS),
        ({"kind": "proof"}, "'proof' in a handshake where 'hello'"),
        ({"node_id": b"a"}, "'node_id' is not a str"),
        ({"node_id": 7}, "'node_id' is not a str"),
        ({"bound_index": -1}, "negative"),
        ({"bound_index": True}, "'bound_index' is not a int"),
        ({"bound_index": 1.0}, "'bound_index' is not a int"),
        ({"protocol_min": 2}, "2 to 1"),
        ({"attributes": {"a": 1}}, "not strings"),
        ({"attributes": {b"a": "1"}}, "not strings"),
        ({"attributes": ["a"]}, "'attributes' is not a dict"),
        ({"nonce": ""}, "'nonce' is not a bytes"),
        ({"later": cbor2.CBORTag(4, [99_999_999, 1])}, "plain CBOR"),
        ({"later": cbor2.CBORTag(35, "(a+)+$")}, "plain CBOR"),
        ({"later": cbor2.CBORTag(55799, 1)}, "plain CBOR"),
        ({"later": {1: 2}}, "plain CBOR"),
        ({"later": [[[[[[[[[[]]]]]]]]]]}, "plain CBOR"),
    ],
)
def test_malformed_fields(fields: dict[str, Any], words: str) -> None:
    """Fields that lack or have another type, tags, keys that are no text, depth: a protocol error each."""
    with pytest.raises(ProtocolError, match=words):
        responder().receive(frame(**fields))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not a replikv peer"),
        (b"GET / HTTP/1.1\r\n", "not a replikv peer"),
        (MAGIC, "plain CBOR"),
        (MAGIC + b"\x01", "not a CBOR map"),
        (frame() + b"\x00", "bytes after"),
        (frame()[:-1], "plain CBOR"),
        (MAGIC + b"\xbf\x64kind\x65hello\xff", "plain CBOR"),
        (MAGIC + b"\xa2\x61a\x01\x61a\x01", "plain CBOR"),
        (MAGIC + b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff", "plain CBOR"),
        (MAGIC + b"\x81" * 4000, "plain CBOR"),
        (MAGIC + b"\xc1" * 4000, "plain CBOR"),
        (frame(later=bytes(HANDSHAKE_BYTES_MAX)), "the limit is 4096"),
    ],
    ids=range(12),
)
def test_malformed_bytes(body: bytes, words: str) -> None:
    """No magic, no map, cut short, too long, indefinite, duplicate, deep: a protocol error each, on either side."""
    for side in (responder(), initiator()):
        with pytest.raises(ProtocolError, match=words):
            side.receive(body)


@pytest.mark.parametrize("purpose", [FRAMES, CHANNEL, CALL])
def test_a_proof_is_empty_without_authentication(purpose: str) -> None:
    """Bytes of proof where none was asked for are a protocol error, and so is a second hello."""
    for body in (MAGIC + cbor2.dumps({"kind": "proof", "proof": b"x"}), frame(purpose=purpose)):
        accepter = responder()
        accepter.receive(frame(purpose=purpose))
        with pytest.raises(ProtocolError):
            accepter.receive(body)


@pytest.mark.parametrize(("asked", "answered"), [(FRAMES, CHANNEL), (FRAMES, CALL), (CALL, CHANNEL), (CHANNEL, CALL)])
def test_an_answer_for_another_purpose(asked: str, answered: str) -> None:
    """A responder that speaks of another purpose than the dialer's is not followed."""
    with pytest.raises(ProtocolError, match=f"'{asked}' was answered as one for '{answered}'"):
        initiator(purpose=asked).receive(frame(kind="challenge", node_id="b", purpose=answered))


def test_a_refusal_is_fit_for_a_log() -> None:
    """The other side's sentence comes cut to length and without control characters."""
    dialer = initiator()
    dialer.receive(MAGIC + cbor2.dumps({"kind": "refusal", "reason": "no\x1b[2J\n" + "x" * 2000}))
    assert dialer.refusal is not None
    assert dialer.refusal.startswith("no?[2J?xxx")
    assert 500 == len(dialer.refusal)


def test_our_own_hello_may_not_be_too_long() -> None:
    """Attributes that no peer would accept are the caller's mistake, and raise here."""
    dialer = initiator(dataclasses.replace(A, attributes={"novel": "x" * 5000}))
    with pytest.raises(ConfigurationError, match="shorten"):
        dialer.start()


@given(body=st.binary(max_size=200), rest=st.binary(max_size=20))
def test_any_bytes_are_a_protocol_error(body: bytes, rest: bytes) -> None:
    """Random bytes after the magic never pass, and never raise anything else."""
    for side in (initiator(), responder()):
        with pytest.raises(ProtocolError):
            side.receive(MAGIC + body + rest)


@given(
    purpose=st.sampled_from([FRAMES, CHANNEL, CALL]),
    position=st.integers(min_value=0, max_value=len(frame(purpose=CALL)) - 1),
    value=st.integers(min_value=0, max_value=255),
)
def test_one_changed_byte(purpose: str, position: int, value: int) -> None:
    """A hello with one byte changed is understood, refused in words, or a protocol error."""
    body = bytearray(frame(purpose=purpose))
    body[position] = value
    accepter = responder()
    try:
        answer = accepter.receive(bytes(body))
    except ProtocolError:
        return
    assert struct.unpack(">I", answer[:4]) == (len(answer) - 4,)
    assert accepter.theirs is not None


@given(
    fields=st.dictionaries(
        st.sampled_from(sorted(FIELDS)),
        st.none()
        | st.booleans()
        | st.integers(-(2**64), 2**64 - 1)
        | st.text("abc", max_size=5)
        | st.binary(max_size=5),
        max_size=4,
    )
)
def test_any_values(fields: dict[str, Any]) -> None:
    """Well-formed CBOR with any values is an answer or a protocol error."""
    accepter = responder()
    try:
        answer = accepter.receive(frame(**fields))
    except ProtocolError:
        return
    assert answer
