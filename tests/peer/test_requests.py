"""Requests and answers on the wire: what goes in comes out, and whatever else comes is refused as malformed."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replikv.peer.protocol import MalformedFrameError
from replikv.peer.requests import (
    REQUEST_BYTES_MAX,
    Accepted,
    Answer,
    ChangeRequest,
    CompareRequest,
    Denial,
    Denied,
    JoinRequest,
    Request,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    is_request,
)
from replikv.raft.membership import ChangeKind, MemberChange

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
attributes = st.dictionaries(texts, texts, max_size=3)
changes = st.builds(
    MemberChange,
    st.sampled_from(ChangeKind),
    texts,
    st.none() | texts,
    st.none() | texts,
    st.none() | attributes,
)
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(ChangeRequest, st.lists(changes, max_size=4).map(tuple), st.booleans(), st.booleans()),
    st.builds(JoinRequest, words, words, words, texts, attributes),
    st.builds(CompareRequest, texts),
)
answers: st.SearchStrategy[Answer] = st.one_of(
    st.builds(Accepted, st.integers(0, 2**63), texts), st.builds(Denied, st.sampled_from(Denial), texts)
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(requests)
def test_a_request_comes_back(request: Request) -> None:
    """Each kind of it, with everything that it has."""
    frame = encode_request(request)
    assert is_request(frame)
    assert request == decode_request(frame)


@given(answers)
def test_an_answer_comes_back(answer: Answer) -> None:
    """And is no request."""
    frame = encode_answer(answer)
    assert not is_request(frame)
    assert answer == decode_answer(frame)


def test_the_bytes_are_these() -> None:
    """Peers of two versions talk to each other: what is on the wire stays."""
    change = MemberChange(ChangeKind.ADD_VOTER, "d", address="x:1")
    assert encode_request(ChangeRequest((change,), forced=True)) == (
        b'A{"changes":[{"address":"x:1","kind":"add-voter","node_id":"d"}],"forced":true,"kind":"change",'
        b'"repeated":false}'
    )
    assert encode_request(JoinRequest("d", "d1", "x:1", attributes={"zone": "z"})) == (
        b'A{"address":"x:1","attributes":{"zone":"z"},"cluster_id":"","incarnation":"d1","kind":"join","node_id":"d"}'
    )
    assert encode_request(CompareRequest("c")) == b'A{"cluster_id":"c","kind":"compare"}'
    assert encode_answer(Accepted(7, "c")) == b'B{"cluster_id":"c","index":7,"kind":"accepted"}'
    assert encode_answer(Denied(Denial.LATER, "why")) == b'B{"denial":"later","kind":"denied","reason":"why"}'


# -- hostile bytes -----------------------------------------------------------------------------------------------------


def decode_all(frame: bytes) -> None:
    """Anything but MalformedFrameError fails the test."""
    for decode in (decode_request, decode_answer):
        with contextlib.suppress(MalformedFrameError):
            decode(frame)


@given(st.binary(max_size=100))
def test_any_bytes_are_refused(body: bytes) -> None:
    """With the one error, whatever they are."""
    for head in (b"", b"A", b"B"):
        decode_all(head + body)


@given(st.sampled_from(["change", "join", "compare", "accepted", "denied", "other", 1, None]), plain, st.data())
def test_any_json_is_refused_or_of_the_right_types(kind: Any, value: Any, data: st.DataObject) -> None:
    """What is taken for a request can be encoded again, and is the same: no field is of another type."""
    names = ["node_id", "incarnation", "address", "cluster_id", "attributes", "changes", "forced", "repeated"]
    names += ["index", "denial", "reason"]
    fields = {name: data.draw(plain | st.just(value)) for name in data.draw(st.sets(st.sampled_from(names)))}
    body = json.dumps({"kind": kind, **fields}).encode()
    decode_all(b"B" + body)
    try:
        request = decode_request(b"A" + body)
    except MalformedFrameError:
        return
    assert request == decode_request(encode_request(request))


@given(requests, st.data())
def test_a_cut_or_changed_frame_is_refused_or_parses(request: Request, data: st.DataObject) -> None:
    """No exception but the one."""
    frame = bytearray(encode_request(request))
    decode_all(bytes(frame[: data.draw(st.integers(0, len(frame)))]))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decode_all(bytes(frame))


def join(**fields: Any) -> bytes:
    whole = {"kind": "join", "node_id": "d", "incarnation": "d1", "address": "x:1", **fields}
    return b"A" + json.dumps(whole).encode()


def change(**fields: Any) -> bytes:
    return b"A" + json.dumps({"kind": "change", "changes": [{"kind": "remove", "node_id": "d", **fields}]}).encode()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"A",
        b"A[]",
        b"A{}",
        b'A{"kind":"join"}',
        b'A{"kind":"nothing"}',
        b'A{"kind":["join"]}',
        b"A" + b"[" * 60_000,
        b'A{"kind":"compare","cluster_id":7}',
        b'B{"kind":"compare","cluster_id":"c"}',
        join(node_id=7),
        join(incarnation=None),
        join(address=["x"]),
        join(cluster_id=1),
        join(attributes=None),
        join(attributes={"zone": 1}),
        join(attributes=["zone"]),
        join(attributes="zone"),
        join(more="fields"),
        change(node_id=None),
        change(kind="explode"),
        change(kind=["remove"]),
        change(address=5),
        change(incarnation=[]),
        change(attributes={"a": None}),
        change(attributes=[["a", "b"]]),
        change(more=1),
        b'A{"kind":"change"}',
        b'A{"kind":"change","changes":5}',
        b'A{"kind":"change","changes":[5]}',
        b'A{"kind":"change","changes":"ab"}',
        b'A{"kind":"change","changes":[],"forced":1}',
        b'A{"kind":"change","changes":[],"repeated":null}',
        join(address="x" * REQUEST_BYTES_MAX),
        join(address=""),
        join(node_id=""),
        join(incarnation=""),
        join(node_id="ä" * 65),
        join(address="x" * 513),
        join(attributes={"zone": "x" * 513}),
        join(attributes={str(number): "" for number in range(33)}),
        b'A{"kind":"join","node_id":"\\ud800","incarnation":"d1","address":"x:1"}',
    ],
)
def test_mistakes_in_a_request(frame: bytes) -> None:
    """A field that is missing, too many, or of another type; text that cannot be written; more than the limit."""
    with pytest.raises(MalformedFrameError):
        decode_request(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"B{}",
        b'A{"kind":"accepted","index":1,"cluster_id":"c"}',
        b'B{"kind":"accepted","index":1}',
        b'B{"kind":"accepted","index":true,"cluster_id":"c"}',
        b'B{"kind":"accepted","index":1.0,"cluster_id":"c"}',
        b'B{"kind":"accepted","index":1,"cluster_id":null}',
        b'B{"kind":"denied","denial":"never","reason":"x"}',
        b'B{"kind":"denied","denial":[],"reason":"x"}',
        b'B{"kind":"denied","denial":"later","reason":5}',
        b'B{"kind":"denied","reason":"x"}',
        b'B{"kind":"join","reason":"x"}',
    ],
)
def test_mistakes_in_an_answer(frame: bytes) -> None:
    """As in a request."""
    with pytest.raises(MalformedFrameError):
        decode_answer(frame)
